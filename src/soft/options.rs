//! What a software controller is made of, and why one could not be made.
//!
//! [`Options`] describe a controller, [`NamespaceOptions`] one of its namespaces, [`MediaOptions`] what
//! holds the data. All of it is checked once, in `Controller::new`; afterwards nothing here changes.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::disk::Disk;
use super::interposer::Interposer;
use crate::units::LbaSize;

/// What a controller is made of.
#[derive(Clone)]
pub struct Options {
    /// The namespaces, from namespace id 1.
    pub namespaces: Vec<NamespaceOptions>,
    /// Whose time the controller lives on.
    pub execution: Execution,
    /// The most bytes of one command, a power of two of at least 8192 and a block of every namespace;
    /// `None` for no limit.
    ///
    /// MDTS is an exponent of pages and 0 stands for no limit, so that a limit of one page cannot be said
    /// (Base 5.17.2.1, MDTS).
    pub mdts: Option<u32>,
    /// The most entries of one queue, 2 to 65536 (CAP.MQES).
    pub max_queue_entries: u32,
    /// I/O queue pairs on offer, 1 to 65534.
    pub max_queues: u16,
    /// Blocks between the boundaries that commands had better not cross; 0 for none (NOIOB).
    pub noiob: u32,
    /// Blocks that are written whole or not at all at a power cut, at least 1 (AWUPF).
    pub awupf_blocks: u32,
    /// Whether data may be described by SGLs.
    pub sgl: bool,
    /// Whether doorbells may be shadowed in memory (Doorbell Buffer Config).
    pub shadow_doorbells: bool,
    /// Whether completed writes may be lost at a power cut until a flush. Without one, a write to a
    /// file is on the disk before it completes.
    pub volatile_write_cache: bool,
    /// CAP.DSTRD: doorbells are `4 << stride` bytes apart. At 4 and more, two cores never share a cache line.
    pub doorbell_stride: u8,
    /// Whether the doorbells are in memory that can be shared with another process (`Controller::doorbells_file`).
    pub shared_doorbells: bool,
    /// How long the controller takes to become ready.
    pub ready_delay: Duration,
    /// What the host is asked to wait before it sends a command again that failed for now, in units of 100 ms (CRDT1 to
    /// CRDT3). Failures that pass name the first, once the host has said that it heeds delays (ACRE); 0 is none.
    pub retry_delays: [u16; 3],
    /// Model number, up to 40 printable ASCII characters.
    pub model: String,
    /// Serial number, up to 20.
    pub serial: String,
    /// Firmware revision, up to 8.
    pub firmware: String,
    /// Who may decide otherwise about each I/O command.
    pub interposer: Option<Arc<dyn Interposer>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespaces: vec![NamespaceOptions::default()],
            execution: Execution::Inline,
            mdts: Some(1 << 20),
            max_queue_entries: 65_536,
            max_queues: 64,
            noiob: 0,
            awupf_blocks: 1,
            sgl: true,
            shadow_doorbells: false,
            volatile_write_cache: true,
            doorbell_stride: 4,
            shared_doorbells: false,
            ready_delay: Duration::ZERO,
            retry_delays: [0; 3],
            model: "udirect software controller".into(),
            serial: "UD0001".into(),
            firmware: "1.0".into(),
            interposer: None,
        }
    }
}

/// What a namespace is made of.
#[derive(Clone, Debug)]
pub struct NamespaceOptions {
    /// The size of one logical block.
    pub lba_size: LbaSize,
    /// What holds the data.
    pub media: MediaOptions,
    /// What is kept beside each block. RAM and files can: their capacity is that of the data, and a file is
    /// longer by the metadata of all blocks.
    pub metadata: Option<MetadataOptions>,
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        let media = MediaOptions::Ram { bytes: 64 << 20 };
        Self { lba_size: LbaSize::B4096, media, metadata: None }
    }
}

impl NamespaceOptions {
    /// Returns the bytes of a block as it is transferred.
    fn block_bytes(&self) -> u32 {
        let inline = self.metadata.filter(|metadata| metadata.inline);
        self.lba_size.bytes() + inline.map_or(0, |metadata| u32::from(metadata.bytes))
    }
}

/// Bytes that are kept beside each logical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataOptions {
    /// How many, 1 to 4096 (MS); 8 at least where they hold protection information.
    pub bytes: u16,
    /// Whether they follow the data of their block in one buffer, or have a buffer of their own (FLBAS, bit 4).
    pub inline: bool,
    /// What protects each block, if anything does.
    pub protection: Option<ProtectionOptions>,
}

/// Protection information of each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtectionOptions {
    /// The type, 1 to 3.
    pub kind: u8,
    /// Whether it is in the first eight bytes of the metadata, or in the last.
    pub first: bool,
}

impl MetadataOptions {
    fn check(&self) -> Result<(), SoftError> {
        let least = if self.protection.is_some() { 8 } else { 1 };
        within("metadata of a block in bytes", self.bytes.into(), least, 4096)?;
        let kind = self.protection.map_or(1, |protection| protection.kind);
        within("the type of protection information", kind.into(), 1, 3)
    }
}

/// What holds the data of a namespace.
#[derive(Clone, Debug)]
pub enum MediaOptions {
    /// Memory of this process; gone with the controller.
    Ram {
        /// Capacity.
        bytes: u64,
    },
    /// A sparse file, locked for as long as the controller lives.
    File {
        /// Where it is; made if it does not exist and a capacity is given.
        path: PathBuf,
        /// Capacity; `None` for the length of the file.
        bytes: Option<u64>,
    },
    /// A disk in memory that outlives the controller, with a volatile write cache and power that can be cut.
    Disk(Arc<Disk>),
    /// Nothing: commands are checked and answered, and no data moves.
    Null {
        /// Capacity.
        bytes: u64,
    },
}

impl MediaOptions {
    /// Returns the capacity that is asked for.
    pub(super) fn bytes(&self) -> Option<u64> {
        match self {
            Self::Ram { bytes } | Self::Null { bytes } => Some(*bytes),
            Self::File { bytes, .. } => *bytes,
            Self::Disk(disk) => Some(disk.bytes()),
        }
    }

    /// Returns what is asked for with `more` bytes in the place of each block of `block`.
    pub(super) fn with_metadata(&self, block: u64, more: u64) -> Result<Self, SoftError> {
        let grown = |bytes: u64| (bytes / block).saturating_mul(block + more);
        match self {
            Self::Ram { bytes } => Ok(Self::Ram { bytes: grown(*bytes) }),
            Self::File { path, bytes } => {
                Ok(Self::File { path: path.clone(), bytes: bytes.map(grown) })
            }
            Self::Disk(_) => Err(SoftError::NoMetadata { medium: "a disk that loses its power" }),
            Self::Null { .. } => Err(SoftError::NoMetadata { medium: "a medium of nothing" }),
        }
    }

    /// Returns the size of a block, where it is the medium's to say.
    pub(super) fn lba_size(&self) -> Option<LbaSize> {
        if let Self::Disk(disk) = self { Some(disk.lba_size()) } else { None }
    }
}

/// Whose time a controller lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// The host's: each queue is served by the host's own pump.
    Inline,
    /// A thread of its own that serves every queue.
    Thread,
    /// The test's: queues are served when `Controller::step` is called.
    Stepped,
}

/// Why a controller could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SoftError {
    /// A number outside what the controller or the standard allows.
    #[error("{what} is {value}, outside {least}..={most}")]
    Option {
        /// Which option.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The least that is allowed.
        least: u64,
        /// The most.
        most: u64,
    },
    /// A text that is too long for its field or not printable ASCII.
    #[error("{what} {text:?} is not 1 to {most} printable ASCII characters")]
    Text {
        /// Which option.
        what: &'static str,
        /// The text.
        text: String,
        /// The most characters.
        most: usize,
    },
    /// A transfer limit that is not a power of two.
    #[error("mdts is {0} bytes, not a power of two of at least 8192")]
    Mdts(u32),
    /// A capacity that is not a whole number of blocks.
    #[error("{bytes} bytes are not a multiple of the logical block of {block} bytes")]
    Capacity {
        /// The capacity.
        bytes: u64,
        /// The block.
        block: u32,
    },
    /// A disk with blocks of another size than the namespace's.
    #[error("the disk has blocks of {disk} bytes, its namespace of {block}")]
    Blocks {
        /// The disk's.
        disk: u32,
        /// The namespace's.
        block: u32,
    },
    /// A medium that has no place for metadata.
    #[error("{medium} keeps no metadata: use memory or a file, or leave the metadata away")]
    NoMetadata {
        /// Which medium.
        medium: &'static str,
    },
    /// There is not so much memory.
    #[error("cannot map {bytes} bytes")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The file cannot be opened for reading and writing.
    #[error("cannot open {} for reading and writing", path.display())]
    Open {
        /// Where it is.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The path leads to something that is not a regular file.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// Where it is.
        path: PathBuf,
    },
    /// Another process, or another controller of this one, has the file.
    #[error("{} is locked by another process or controller", path.display())]
    Locked {
        /// Where it is.
        path: PathBuf,
    },
    /// The file is shorter than the capacity asked for.
    #[error("{} has {have} bytes, fewer than the {want} of the namespace", path.display())]
    TooSmall {
        /// Where it is.
        path: PathBuf,
        /// Its length.
        have: u64,
        /// The capacity.
        want: u64,
    },
    /// The file can be neither locked nor sized.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// Where it is.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The most I/O queue pairs: queue ids are 16 bits, 0 is the admin queue and counts travel one less.
const QUEUES_MAX: u64 = 65_534;

/// The largest CAP.DSTRD that is offered: with all queues the doorbells take 512 MiB of addresses then.
const STRIDE_MAX: u64 = 10;

impl Options {
    /// Makes them those of a controller that other processes can drive: it has a thread of its own, and doorbells that can
    /// be shared, next to each other, since hosts map one page of them.
    pub fn shareable(self) -> Self {
        let execution = Execution::Thread;
        Self { execution, shared_doorbells: true, doorbell_stride: 0, ..self }
    }

    /// Checks every number and text; media are checked when they are opened.
    pub(super) fn check(&self) -> Result<(), SoftError> {
        within("the number of namespaces", self.namespaces.len() as u64, 1, 1024)?;
        within("max_queue_entries", self.max_queue_entries.into(), 2, 65_536)?;
        within("noiob", self.noiob.into(), 0, u16::MAX.into())?;
        within("awupf_blocks", self.awupf_blocks.into(), 1, 65_536)?;
        within("doorbell_stride", self.doorbell_stride.into(), 0, STRIDE_MAX)?;
        within("max_queues", self.max_queues.into(), 1, self.queues_max())?;
        within("ready_delay in ms", self.ready_delay.as_millis() as u64, 0, 127_500)?;
        let metadata = self.namespaces.iter().filter_map(|namespace| namespace.metadata);
        metadata.into_iter().try_for_each(|metadata| metadata.check())?;
        text("model", &self.model, 40)?;
        text("serial", &self.serial, 20)?;
        text("firmware", &self.firmware, 8)?;
        let Some(mdts) = self.mdts else { return Ok(()) };
        if !mdts.is_power_of_two() || mdts < 8192 {
            return Err(SoftError::Mdts(mdts));
        }
        let longest = self.namespaces.iter().map(NamespaceOptions::block_bytes).max();
        within("mdts", mdts.into(), longest.unwrap_or(0).into(), u32::MAX.into())
    }

    /// Returns how many queue pairs have room: shadows of all doorbells have to fit a page.
    fn queues_max(&self) -> u64 {
        let pair_bytes = 8 << self.doorbell_stride;
        if self.shadow_doorbells { (4096_u64 / pair_bytes).saturating_sub(1) } else { QUEUES_MAX }
    }
}

fn within(what: &'static str, value: u64, least: u64, most: u64) -> Result<(), SoftError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(SoftError::Option { what, value, least, most })
    }
}

fn text(what: &'static str, text: &str, most: usize) -> Result<(), SoftError> {
    let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if printable && (1..=most).contains(&text.len()) {
        Ok(())
    } else {
        Err(SoftError::Text { what, text: text.into(), most })
    }
}
