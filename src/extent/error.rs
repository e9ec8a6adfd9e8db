//! What can go wrong with a store: one variant for each thing that a user can do something different about.
//!
//! [`StoreError`] is what opening, checking and naming return. Reads and writes go through `block`, so it
//! converts into [`BlockError`] as well, with itself as the source.
#![forbid(unsafe_code)]

use core::fmt;
use std::io;

use super::uuid::Uuid;
use crate::block::{BlockError, Cause, ErrorKind};
use crate::units::{ByteLen, FileId, Lba};

/// What is wrong with one block of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is all zeroes, as formatting leaves it.
    #[error("never written")]
    Blank,
    /// It does not begin as metadata does.
    #[error("no metadata (it begins with {found:#010x})")]
    Magic {
        /// Its first word.
        found: u32,
    },
    /// Its checksum does not fit its bytes.
    #[error("checksum {found:#010x}, its bytes give {computed:#010x}")]
    Checksum {
        /// What it says.
        found: u32,
        /// What its bytes say.
        computed: u32,
    },
    /// It belongs to another store.
    #[error("belongs to store {found}")]
    Store {
        /// Which.
        found: Uuid,
    },
    /// It was written for another place.
    #[error("written for block {found}")]
    Place {
        /// Which.
        found: Lba,
    },
    /// It is another kind of metadata.
    #[error("is a block of a {found}")]
    Kind {
        /// Which.
        found: &'static str,
    },
    /// Its numbers contradict themselves or their neighbours.
    #[error("{what} is {found}, where {wanted} is expected")]
    Number {
        /// Which number.
        what: &'static str,
        /// What it is.
        found: u64,
        /// What it should be, or the most that it may be.
        wanted: u64,
    },
}

/// Where in the metadata something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// A copy of the superblock.
    Superblock,
    /// The journal.
    Journal,
    /// A checkpoint.
    Checkpoint,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::Journal => "journal",
            Self::Checkpoint => "checkpoint",
        })
    }
}

/// An error of a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No copy of a superblock, damaged or not, is on the device.
    #[error("not a store: {what}")]
    NotAStore {
        /// What is there instead.
        what: String,
    },
    /// The store was made by a version of the format that this one does not know.
    #[error("format version {found}, this program knows up to {known}")]
    Version {
        /// The store's.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// The store needs features that this program does not have.
    #[error("unknown {kind} features {bits:#x}")]
    Features {
        /// `incompatible`, or `read-only compatible` where the store was to be written.
        kind: &'static str,
        /// The unknown ones.
        bits: u64,
    },
    /// It is a store, but not the one that was asked for.
    #[error("this is store {found}, not {wanted}")]
    Foreign {
        /// The one that is there.
        found: Uuid,
        /// The one that was asked for.
        wanted: Uuid,
    },
    /// Every copy of the superblock is damaged, or both of what may have been its newest version.
    #[error(
        "{copies} of 4 copies of the superblock are damaged, among them all of one version: {first}"
    )]
    Superblocks {
        /// How many are.
        copies: usize,
        /// What is wrong with one.
        first: Damage,
    },
    /// A block of metadata that is needed is damaged.
    #[error("{area} damaged at block {lba}: {damage}")]
    Damaged {
        /// Which part of the metadata.
        area: Area,
        /// Which block.
        lba: Lba,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Records of the journal are missing in its middle: what follows them was durable, so they were too.
    #[error(
        "journal record {missing} is missing, and record {found} is there: not the end of the journal"
    )]
    JournalGap {
        /// The first that is missing.
        missing: u64,
        /// A later one that is there.
        found: u64,
    },
    /// The metadata is whole and says what cannot be.
    #[error("{area} says what cannot be: {what}")]
    Inconsistent {
        /// Which part of the metadata.
        area: Area,
        /// What.
        what: String,
    },
    /// The device is smaller than the store on it.
    #[error("the device has {device}, the store on it {store}")]
    DeviceTooSmall {
        /// Bytes of the device.
        device: ByteLen,
        /// Bytes of the store.
        store: ByteLen,
    },
    /// The device's blocks are not those that the store was made on.
    #[error("the device has blocks of {device} bytes, the store was made on blocks of {store}")]
    BlockSize {
        /// The device's.
        device: u32,
        /// The store's.
        store: u32,
    },
    /// Somebody has the store open.
    #[error("store {0} is open already")]
    Open(Uuid),
    /// There is a store already, and nobody asked for it to be overwritten.
    #[error("store {0} is on the device: formatting destroys it (force to do so)")]
    Exists(Uuid),
    /// A number of the format's options.
    #[error("{what} is {value}, outside {least}..={most}")]
    Option {
        /// Which.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The least that is possible.
        least: u64,
        /// The most.
        most: u64,
    },
    /// A name that no object can have.
    #[error("object name of {len} bytes: {problem}")]
    Name {
        /// Its length.
        len: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is no object of this name.
    #[error("no object {0:?}")]
    NoName(String),
    /// There is no object of this number.
    #[error("no object {0}")]
    NoObject(FileId),
    /// There is an object of this name.
    #[error("object {0:?} exists")]
    NameTaken(String),
    /// An attribute whose key or value no object can have, or that is not there.
    #[error("attribute {key:?}: {problem}")]
    Attribute {
        /// Its key.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A size beyond what an object can have.
    #[error("{size} bytes, an object has at most {most}")]
    TooLarge {
        /// The size.
        size: u64,
        /// The largest.
        most: u64,
    },
    /// There is no space.
    #[error("no space: {what}")]
    NoSpace {
        /// What ran out, with numbers.
        what: String,
    },
    /// The journal cannot take more for the moment, or space is about to come back: give the store turns, and try again.
    #[error(
        "not before the store has had some turns: its journal is full, or space is coming back"
    )]
    NotYet,
    /// Something in flight is in the way, and stayed there until the deadline.
    #[error("{what} did not finish within {millis} ms")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        millis: u64,
    },
    /// The store was opened for reading only.
    #[error("the store is open for reading only")]
    ReadOnly,
    /// An earlier failure made it impossible to say what is durable.
    #[error("read-only after an earlier failure ({what}): close and reopen the store")]
    Poisoned {
        /// The failure.
        what: String,
    },
    /// The device failed.
    #[error("{what}")]
    Device {
        /// What was being done.
        what: &'static str,
        /// How it failed.
        source: BlockError,
    },
}

impl StoreError {
    /// Returns the classification to match on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAStore { .. } | Self::Version { .. } | Self::Features { .. } => {
                ErrorKind::Unsupported
            }
            Self::Superblocks { .. }
            | Self::Damaged { .. }
            | Self::JournalGap { .. }
            | Self::Inconsistent { .. } => ErrorKind::Corrupt,
            Self::Open(_) | Self::NotYet => ErrorKind::Busy,
            Self::NoName(_) | Self::NoObject(_) => ErrorKind::NotFound,
            Self::NameTaken(_) | Self::Exists(_) => ErrorKind::Exists,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::ReadOnly | Self::Poisoned { .. } => ErrorKind::Poisoned,
            Self::Device { source, .. } => source.kind(),
            Self::Foreign { .. }
            | Self::DeviceTooSmall { .. }
            | Self::BlockSize { .. }
            | Self::Option { .. }
            | Self::Name { .. }
            | Self::Attribute { .. }
            | Self::TooLarge { .. } => ErrorKind::Invalid,
        }
    }

    /// Makes the error of a device.
    pub(super) fn device(what: &'static str) -> impl FnOnce(BlockError) -> Self {
        move |source| Self::Device { what, source }
    }

    /// Makes the error of a damaged block.
    pub(super) fn damaged(area: Area, lba: Lba) -> impl FnOnce(Damage) -> Self {
        move |damage| Self::Damaged { area, lba, damage }
    }
}

impl From<StoreError> for BlockError {
    fn from(error: StoreError) -> Self {
        let what = error.to_string();
        let cause = match error.kind() {
            ErrorKind::NoSpace => Cause::NoSpace { what: what.into() },
            ErrorKind::NotFound => Cause::NotFound { what: what.into() },
            ErrorKind::Exists => Cause::Exists { what: what.into() },
            ErrorKind::Poisoned => Cause::Poisoned { what: what.into() },
            ErrorKind::Corrupt => Cause::Corrupt { what: what.into() },
            ErrorKind::Busy => Cause::Busy { what: what.into() },
            _ => match error {
                StoreError::Device { source, .. } => return source,
                StoreError::TooLarge { size, most } => {
                    Cause::Invalid { what: "the size of an object", value: size, least: 0, most }
                }
                StoreError::Option { what, value, least, most } => {
                    Cause::Invalid { what, value, least, most }
                }
                StoreError::Name { len, problem: what } => {
                    Cause::Invalid { what, value: len as u64, least: 1, most: 255 }
                }
                StoreError::Attribute { key, problem: what } => {
                    Cause::Invalid { what, value: key.len() as u64, least: 1, most: 64 }
                }
                _ => Cause::Unsupported { what: what.into() },
            },
        };
        cause.into()
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        BlockError::from(error).into()
    }
}
