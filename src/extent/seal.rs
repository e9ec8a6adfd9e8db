//! Sealed blocks: what every block of metadata begins with, so that it cannot be taken for another one.
//!
//! ```text
//!    0 magic      4 B   superblock, journal or checkpoint
//!    4 checksum   4 B   CRC-32C of the whole block with this field zero: rot, and tears inside a block
//!    8 store     16 B   the store's UUID: what an earlier store has left
//!   24 place      8 B   the block's own number: reads and writes that went astray
//!   32 epoch      8 B   counts openings: what a dead process has left
//!   40 sequence   8 B   which superblock, record or checkpoint
//!   48 index      4 B   which block of it
//!   52 count      4 B   of how many: blocks of an older one between
//!   56 length     4 B   bytes of payload in this block
//!   60 whole      4 B   CRC-32C of the payload of all its blocks
//!   64 payload
//! ```
//!
//! All numbers are little-endian. Invariant: a block that fails its own checks never comes from a power cut, since
//! a device writes a block whole or not at all; it is damage.
#![forbid(unsafe_code)]

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::error::Damage;
use super::uuid::Uuid;
use crate::units::Lba;

/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 64;

/// Bytes that the checksum takes.
const CHECKSUM: core::ops::Range<usize> = 4..8;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Raw {
    magic: U32,
    checksum: U32,
    store: [u8; 16],
    place: U64,
    epoch: U64,
    sequence: U64,
    index: U32,
    count: U32,
    length: U32,
    whole: U32,
}

const _: () = {
    assert!(size_of::<Raw>() == HEADER_BYTES);
    assert!(core::mem::offset_of!(Raw, checksum) == CHECKSUM.start);
    assert!(core::mem::offset_of!(Raw, whole) == 60);
};

/// What a block of metadata is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Superblock,
    Journal,
    Checkpoint,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Superblock, Self::Journal, Self::Checkpoint];

    /// Returns the first four bytes: `UDSB`, `UDJR`, `UDCP`.
    const fn magic(self) -> u32 {
        u32::from_le_bytes(match self {
            Self::Superblock => *b"UDSB",
            Self::Journal => *b"UDJR",
            Self::Checkpoint => *b"UDCP",
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Journal => "journal",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// What a sealed block says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) store: Uuid,
    pub(super) place: Lba,
    pub(super) epoch: u64,
    pub(super) sequence: u64,
    pub(super) index: u32,
    pub(super) count: u32,
    pub(super) length: u32,
    pub(super) whole: u32,
}

/// Seals a block whose payload is in place.
pub(super) fn seal(block: &mut [u8], header: &Header) {
    let raw = Raw {
        magic: header.kind.magic().into(),
        checksum: 0.into(),
        store: header.store.0,
        place: header.place.0.into(),
        epoch: header.epoch.into(),
        sequence: header.sequence.into(),
        index: header.index.into(),
        count: header.count.into(),
        length: header.length.into(),
        whole: header.whole.into(),
    };
    block[..HEADER_BYTES].copy_from_slice(raw.as_bytes());
    let checksum = checksum(block);
    block[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
}

/// Opens a block that should be this kind of metadata, of this store, in this place.
pub(super) fn open(block: &[u8], kind: Kind, store: Uuid, place: Lba) -> Result<Header, Damage> {
    let header = open_any(block, place)?;
    if header.kind != kind {
        return Err(Damage::Kind { found: header.kind.name() });
    }
    if header.store != store {
        return Err(Damage::Store { found: header.store });
    }
    Ok(header)
}

/// Opens a block that should be some metadata of some store in this place.
pub(super) fn open_any(block: &[u8], place: Lba) -> Result<Header, Damage> {
    let (raw, _) = Raw::read_from_prefix(block).expect("a block is larger than its header");
    let magic = raw.magic.get();
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.magic() == magic) else {
        let blank = block.iter().all(|byte| *byte == 0);
        return Err(if blank { Damage::Blank } else { Damage::Magic { found: magic } });
    };
    let (found, computed) = (raw.checksum.get(), checksum(block));
    if found != computed {
        return Err(Damage::Checksum { found, computed });
    }
    let header = Header {
        kind,
        store: Uuid(raw.store),
        place: Lba(raw.place.get()),
        epoch: raw.epoch.get(),
        sequence: raw.sequence.get(),
        index: raw.index.get(),
        count: raw.count.get(),
        length: raw.length.get(),
        whole: raw.whole.get(),
    };
    let room = (block.len() - HEADER_BYTES) as u64;
    if header.place != place {
        Err(Damage::Place { found: header.place })
    } else if u64::from(header.length) > room {
        Err(Damage::Number { what: "the length", found: header.length.into(), wanted: room })
    } else if header.index >= header.count {
        let (found, wanted) = (header.index.into(), header.count.into());
        Err(Damage::Number { what: "the index", found, wanted })
    } else {
        Ok(header)
    }
}

/// Returns the payload of a block that was opened.
pub(super) fn payload<'a>(block: &'a [u8], header: &Header) -> &'a [u8] {
    &block[HEADER_BYTES..HEADER_BYTES + header.length as usize]
}

fn checksum(block: &[u8]) -> u32 {
    let before = crc32c::crc32c(&block[..CHECKSUM.start]);
    let field = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(field, &block[CHECKSUM.end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> (Vec<u8>, Header) {
        let mut block = vec![0; 512];
        block[HEADER_BYTES..HEADER_BYTES + 5].copy_from_slice(b"bytes");
        let header = Header {
            kind: Kind::Journal,
            store: Uuid::from_random(7),
            place: Lba(9),
            epoch: 1,
            sequence: 2,
            index: 0,
            count: 1,
            length: 5,
            whole: 3,
        };
        seal(&mut block, &header);
        (block, header)
    }

    #[test]
    fn a_sealed_block_opens_in_its_place_only() {
        let (block, header) = sealed();
        assert_eq!(open(&block, Kind::Journal, header.store, Lba(9)), Ok(header));
        assert_eq!(payload(&block, &header), b"bytes");
        let elsewhere = open(&block, Kind::Journal, header.store, Lba(8));
        assert_eq!(elsewhere, Err(Damage::Place { found: Lba(9) }));
        let kind = open(&block, Kind::Superblock, header.store, Lba(9));
        assert_eq!(kind, Err(Damage::Kind { found: "journal" }));
        let foreign = open(&block, Kind::Journal, Uuid::default(), Lba(9));
        assert_eq!(foreign, Err(Damage::Store { found: header.store }));
        assert_eq!(open_any(&[0; 512], Lba(0)), Err(Damage::Blank));
        assert_eq!(open_any(&[1; 512], Lba(0)), Err(Damage::Magic { found: 0x0101_0101 }));
    }

    #[test]
    fn every_flipped_bit_of_a_sealed_block_is_noticed() {
        let (mut block, header) = sealed();
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&block, Kind::Journal, header.store, Lba(9)).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn an_impossible_length_or_index_is_noticed_though_it_is_sealed() {
        let (mut block, header) = sealed();
        seal(&mut block, &Header { length: 449, ..header });
        assert!(matches!(open_any(&block, Lba(9)), Err(Damage::Number { found: 449, .. })));
        seal(&mut block, &Header { index: 1, ..header });
        assert!(matches!(open_any(&block, Lba(9)), Err(Damage::Number { found: 1, .. })));
    }
}
