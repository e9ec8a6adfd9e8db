//! The superblock: one block that says what the store is and where its history begins.
//!
//! There are four copies at fixed places. Version n of it is written to copies 0 and 1 if n is even, to 2 and 3 if
//! it is odd, so that the version before stays whole while it is written. The newest valid copy wins. One block
//! is all that a device writes whole, so a superblock has to fit 512 bytes.
//!
//! Payload, behind the header of every sealed block (`seal`; its sequence is the version, its epoch the store's):
//!
//! ```text
//!    0 format       4 B   version of the format
//!    4 block shift  1 B   log2 of the block
//!    5 unit shift   1 B   log2 of the allocation unit
//!    6 region       1 B   which checkpoint is the newest
//!    7              1 B   zero
//!    8 compatible, read-only compatible, incompatible   3 x 8 B   feature bits
//!   32 blocks       8 B   of the whole store
//!   40 journal      2 x 8 B   first block, blocks
//!   56 checkpoints  3 x 8 B   first block of 0 and of 1, blocks of each
//!   80 data         2 x 8 B   first block, units
//!   96 checkpoint   4 x 8 B   its sequence, blocks, bytes; CRC-32C of all bytes
//!  128 journal head 4 x 8 B   position, record and operation that follow the checkpoint; CRC of the record before
//!  160 epoch record 8 B   the next record when this was written: those before are there, those from it on of this epoch
//!  168 created      8 B   nanoseconds since 1970
//! ```
#![forbid(unsafe_code)]

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::error::{Damage, StoreError};
use super::layout::{COPIES, Layout};
use super::seal::{self, HEADER_BYTES, Header, Kind};
use super::uuid::Uuid;
use crate::units::Lba;

/// The version of the format that is written, and the newest that is read.
pub(super) const FORMAT: u32 = 1;

/// Feature bits that are known: none yet.
const COMPATIBLE_WRITE: u64 = 0;
const INCOMPATIBLE: u64 = 0;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Default)]
#[repr(C)]
struct Raw {
    format: U32,
    block_shift: u8,
    unit_shift: u8,
    region: u8,
    zero: u8,
    compatible: U64,
    read_only: U64,
    incompatible: U64,
    blocks: U64,
    journal: [U64; 2],
    checkpoints: [U64; 2],
    checkpoint_blocks: U64,
    data: U64,
    units: U64,
    checkpoint: [U64; 4],
    head: [U64; 4],
    epoch_record: U64,
    created: U64,
}

const _: () = {
    assert!(size_of::<Raw>() == 176 && size_of::<Raw>() + HEADER_BYTES <= 512);
    assert!(core::mem::offset_of!(Raw, blocks) == 32);
    assert!(core::mem::offset_of!(Raw, checkpoint) == 96);
    assert!(core::mem::offset_of!(Raw, created) == 168);
};

/// A checkpoint: where the map is, as it was at a point of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CheckpointAt {
    /// Which of the two regions.
    pub(super) region: usize,
    pub(super) sequence: u64,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    pub(super) crc: u32,
}

/// A point of the journal: what the next record looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Blocks since the journal was begun; the place is this modulo its length.
    pub(super) position: u64,
    /// The number of the record.
    pub(super) record: u64,
    /// The number of its first operation.
    pub(super) lsn: u64,
    /// The CRC of the record before it.
    pub(super) chain: u32,
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) store: Uuid,
    /// Rises with each that is written.
    pub(super) version: u64,
    /// Rises with each opening for writing.
    pub(super) epoch: u64,
    pub(super) layout: Layout,
    pub(super) checkpoint: CheckpointAt,
    pub(super) head: Head,
    /// The next record when this was written: those before it were durable, those from it on are of this epoch.
    pub(super) epoch_record: u64,
    pub(super) created: u64,
    pub(super) features: Features,
}

/// Feature bits: what a program has to know to touch a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    /// Whoever does not know one may read and write.
    pub(super) compatible: u64,
    /// Whoever does not know one may read.
    pub(super) read_only: u64,
    /// Whoever does not know one may do neither.
    pub(super) incompatible: u64,
}

impl Superblock {
    /// Returns the copies that this version is written to.
    pub(super) fn copies(&self) -> [usize; 2] {
        if self.version.is_multiple_of(2) { [0, 1] } else { [2, 3] }
    }

    /// Writes one copy into a block.
    pub(super) fn encode(&self, copy: usize, block: &mut [u8]) {
        let Layout { journal, checkpoints, .. } = &self.layout;
        let CheckpointAt { region, sequence, blocks, bytes, crc } = self.checkpoint;
        let Head { position, record, lsn, chain } = self.head;
        let raw = Raw {
            format: FORMAT.into(),
            block_shift: self.layout.block_shift,
            unit_shift: self.layout.unit_shift,
            region: region as u8,
            zero: 0,
            compatible: self.features.compatible.into(),
            read_only: self.features.read_only.into(),
            incompatible: self.features.incompatible.into(),
            blocks: self.layout.blocks.into(),
            journal: [journal.start.into(), (journal.end - journal.start).into()],
            checkpoints: checkpoints.map(U64::new),
            checkpoint_blocks: self.layout.checkpoint_blocks.into(),
            data: self.layout.data.into(),
            units: self.layout.units.into(),
            checkpoint: [sequence, blocks, bytes, crc.into()].map(U64::new),
            head: [position, record, lsn, chain.into()].map(U64::new),
            epoch_record: self.epoch_record.into(),
            created: self.created.into(),
        };
        block.fill(0);
        let payload = &mut block[HEADER_BYTES..HEADER_BYTES + size_of::<Raw>()];
        payload.copy_from_slice(raw.as_bytes());
        let whole = crc32c::crc32c(payload);
        let header = Header {
            kind: Kind::Superblock,
            store: self.store,
            place: Layout::copy(self.layout.block_shift, copy),
            epoch: self.epoch,
            sequence: self.version,
            index: 0,
            count: 1,
            length: size_of::<Raw>() as u32,
            whole,
        };
        seal::seal(block, &header);
    }

    /// Reads one copy. A version that is not known is an error of its own, found before anything else is
    /// believed.
    fn decode(block: &[u8], place: Lba) -> Result<Self, Refusal> {
        let header = seal::open_any(block, place)?;
        if header.kind != Kind::Superblock {
            return Err(Damage::Kind { found: "journal or a checkpoint" }.into());
        }
        let payload = seal::payload(block, &header);
        let Ok((raw, _)) = Raw::read_from_prefix(payload) else {
            let (found, wanted) = (header.length.into(), size_of::<Raw>() as u64);
            return Err(Damage::Number { what: "the length", found, wanted }.into());
        };
        let number = |what, found: u64, wanted: u64| Damage::Number { what, found, wanted };
        match raw.format.get() {
            FORMAT => {}
            0 => return Err(number("the format", 0, FORMAT.into()).into()),
            found => {
                return Err(Refusal::Store(StoreError::Version { found, known: FORMAT }));
            }
        }
        let unknown = raw.incompatible.get() & !INCOMPATIBLE;
        if unknown != 0 {
            let kind = "incompatible";
            return Err(Refusal::Store(StoreError::Features { kind, bits: unknown }));
        }
        if crc32c::crc32c(payload) != header.whole {
            let (found, wanted) = (header.whole.into(), crc32c::crc32c(payload).into());
            return Err(number("the checksum of the payload", found, wanted).into());
        }
        if !(9..=16).contains(&raw.block_shift) || 1 << raw.block_shift != block.len() {
            let wanted = block.len().trailing_zeros().into();
            return Err(number("the size of a block (log2)", raw.block_shift.into(), wanted).into());
        }
        raw.into_superblock(&header).map_err(Refusal::Damage)
    }
}

impl Raw {
    fn into_superblock(self, header: &Header) -> Result<Superblock, Damage> {
        let [start, blocks] = self.journal.map(U64::get);
        let end = start.checked_add(blocks);
        let number = |what, found: u64, wanted: u64| Damage::Number { what, found, wanted };
        let layout = Layout {
            block_shift: self.block_shift,
            unit_shift: self.unit_shift,
            blocks: self.blocks.get(),
            journal: start..end.ok_or_else(|| number("the journal", blocks, u64::MAX - start))?,
            checkpoints: self.checkpoints.map(U64::get),
            checkpoint_blocks: self.checkpoint_blocks.get(),
            data: self.data.get(),
            units: self.units.get(),
        };
        if let Some(what) = layout.problem() {
            return Err(number(what, layout.data, layout.blocks));
        }
        let [sequence, blocks, bytes, crc] = self.checkpoint.map(U64::get);
        let [position, record, lsn, chain] = self.head.map(U64::get);
        let narrow = |what, value: u64| {
            u32::try_from(value).map_err(|_| number(what, value, u32::MAX.into()))
        };
        if blocks > layout.checkpoint_blocks || bytes.div_ceil(layout.payload() as u64) != blocks {
            return Err(number("the checkpoint's blocks", blocks, layout.checkpoint_blocks));
        }
        if self.region > 1 {
            return Err(number("the checkpoint's region", self.region.into(), 1));
        }
        let crc = narrow("the checkpoint's checksum", crc)?;
        let region = self.region.into();
        Ok(Superblock {
            store: header.store,
            version: header.sequence,
            epoch: header.epoch,
            checkpoint: CheckpointAt { region, sequence, blocks, bytes, crc },
            head: Head { position, record, lsn, chain: narrow("the chain", chain)? },
            epoch_record: self.epoch_record.get(),
            created: self.created.get(),
            features: Features {
                compatible: self.compatible.get(),
                read_only: self.read_only.get(),
                incompatible: self.incompatible.get(),
            },
            layout,
        })
    }
}

/// Why a copy is of no use.
#[derive(Debug)]
enum Refusal {
    Damage(Damage),
    Store(StoreError),
}

impl From<Damage> for Refusal {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

/// What was found in the four places.
#[derive(Debug)]
pub(super) struct Found {
    /// The newest whole one.
    pub(super) newest: Superblock,
    /// The copies that should be whole and are not.
    pub(super) damaged: Vec<(Lba, Damage)>,
}

/// Chooses among the blocks at the places of the four copies.
pub(super) fn choose(blocks: &[Vec<u8>; COPIES], shift: u8) -> Result<Found, StoreError> {
    let mut newest: Option<Superblock> = None;
    let mut damaged = Vec::new();
    let mut refused = None;
    for (copy, block) in blocks.iter().enumerate() {
        let place = Layout::copy(shift, copy);
        match Superblock::decode(block, place) {
            Ok(found) => {
                if let Some(other) = newest.as_ref().filter(|other| other.store != found.store) {
                    let what = format!("copies of stores {} and {}", other.store, found.store);
                    return Err(StoreError::Inconsistent { area: super::Area::Superblock, what });
                }
                if newest.as_ref().is_none_or(|other| other.version < found.version) {
                    newest = Some(found);
                }
            }
            Err(Refusal::Damage(damage)) => damaged.push((place, damage)),
            Err(Refusal::Store(error)) => refused = Some(error),
        }
    }
    if let Some(error) = refused {
        return Err(error);
    }
    let Some(newest) = newest else { return Err(none_of(&damaged)) };
    if let Some(first) = lost_pair(&damaged, shift) {
        return Err(StoreError::Superblocks { copies: damaged.len(), first });
    }
    Ok(Found { newest, damaged })
}

/// Says whether both copies of one version are damaged: it may have been the newest, and what it knew is lost.
fn lost_pair(damaged: &[(Lba, Damage)], shift: u8) -> Option<Damage> {
    let of = |copy| damaged.iter().find(|(place, _)| *place == Layout::copy(shift, copy));
    [[0, 1], [2, 3]].into_iter().find_map(|[one, other]| Some(of(one).and(of(other))?.1))
}

/// Says why there is no superblock: nothing of the kind was ever there, or all of it is damaged.
fn none_of(damaged: &[(Lba, Damage)]) -> StoreError {
    let of_ours = |damage: &Damage| !matches!(damage, Damage::Blank | Damage::Magic { .. });
    match damaged.iter().find(|(_, damage)| of_ours(damage)) {
        Some((_, first)) => StoreError::Superblocks { copies: damaged.len(), first: *first },
        None => {
            let blank = damaged.iter().all(|(_, damage)| *damage == Damage::Blank);
            let what =
                if blank { "the device is blank" } else { "the device holds something else" };
            StoreError::NotAStore { what: what.into() }
        }
    }
}

impl Features {
    /// Says whether the store may be written by this program.
    pub(super) fn may_write(&self) -> Result<(), StoreError> {
        let bits = self.read_only & !COMPATIBLE_WRITE;
        let kind = "read-only compatible";
        if bits == 0 { Ok(()) } else { Err(StoreError::Features { kind, bits }) }
    }
}
