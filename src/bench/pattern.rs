//! Data that can be checked: every logical block says where it belongs and carries a CRC32C.
//!
//! ```text
//!  0       4       8                16               24
//!  | magic | crc   | byte offset    | stamp          | words drawn from offset and stamp …
//! ```
//!
//! The checksum covers everything after it, so that rot is told from a block that lies where another one
//! belongs, and both from a block that was never written.
#![forbid(unsafe_code)]

use core::fmt;

/// "uDvb", the first bytes of a block that was written for verification.
const MAGIC: u32 = u32::from_le_bytes(*b"uDvb");

/// Bytes before the drawn words.
const HEADER_BYTES: usize = 24;

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It was not written for verification, or its first bytes are damaged.
    NoHeader {
        /// What stands where the magic number should.
        found: u32,
    },
    /// The checksum does not match the contents.
    Checksum {
        /// What the block says.
        stored: u32,
        /// What its contents come to.
        computed: u32,
    },
    /// The block is sound and in its place, and another run wrote it: this run's write is lost.
    Stale {
        /// The stamp of the run that wrote it.
        stamp: u64,
    },
    /// The block is sound and belongs elsewhere.
    Misplaced {
        /// Where it belongs, in bytes.
        belongs: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader { found } => {
                write!(f, "no verification header (found {found:#010x}, expected {MAGIC:#010x})")
            }
            Self::Checksum { stored, computed } => {
                write!(f, "CRC32C is {computed:#010x}, the header says {stored:#010x}")
            }
            Self::Stale { stamp } => {
                write!(f, "still holds what an earlier run wrote (stamp {stamp:#018x})")
            }
            Self::Misplaced { belongs } => write!(f, "holds the data of byte offset {belongs}"),
        }
    }
}

/// A block that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBlock {
    /// Its number on the device.
    pub lba: u64,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for BadBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "verify: LBA {:#x}: {}", self.lba, self.fault)
    }
}

/// Fills `data`, which goes to byte `offset` of a device, block by block.
pub fn fill(data: &mut [u8], offset: u64, block_bytes: usize, stamp: u64) {
    for (at, block) in (offset..).step_by(block_bytes).zip(data.chunks_exact_mut(block_bytes)) {
        fill_block(block, at, stamp);
    }
}

/// Checks `data`, which came from byte `offset` of a device; the first bad block is named.
///
/// With a stamp, blocks of other runs are bad too.
pub fn check(
    data: &[u8],
    offset: u64,
    block_bytes: usize,
    stamp: Option<u64>,
) -> Result<(), BadBlock> {
    for (at, block) in (offset..).step_by(block_bytes).zip(data.chunks_exact(block_bytes)) {
        check_block(block, at, stamp)
            .map_err(|fault| BadBlock { lba: at / block_bytes as u64, fault })?;
    }
    Ok(())
}

fn fill_block(block: &mut [u8], offset: u64, stamp: u64) {
    block[..4].copy_from_slice(&MAGIC.to_le_bytes());
    block[8..16].copy_from_slice(&offset.to_le_bytes());
    block[16..24].copy_from_slice(&stamp.to_le_bytes());
    let mut words = fastrand::Rng::with_seed(stamp ^ offset.rotate_left(32));
    for word in block[HEADER_BYTES..].chunks_exact_mut(8) {
        word.copy_from_slice(&words.u64(..).to_le_bytes());
    }
    let crc = crc32c::crc32c(&block[8..]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn check_block(block: &[u8], offset: u64, stamp: Option<u64>) -> Result<(), Fault> {
    let word =
        |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let found = word(0);
    if found != MAGIC {
        return Err(Fault::NoHeader { found });
    }
    let (stored, computed) = (word(4), crc32c::crc32c(&block[8..]));
    if stored != computed {
        return Err(Fault::Checksum { stored, computed });
    }
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let (belongs, found) = (long(8), long(16));
    if belongs != offset {
        return Err(Fault::Misplaced { belongs });
    }
    match stamp {
        Some(stamp) if stamp != found => Err(Fault::Stale { stamp: found }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let mut data = vec![0; 4 * 512];
        fill(&mut data, 512 * 8, 512, 7);
        data
    }

    #[test]
    fn every_flipped_bit_is_found_and_named_by_its_block() {
        let good = written();
        assert_eq!(check(&good, 512 * 8, 512, Some(7)), Ok(()));
        for bit in 0..good.len() * 8 {
            let mut data = good.clone();
            data[bit / 8] ^= 1 << (bit % 8);
            let bad = check(&data, 512 * 8, 512, Some(7)).unwrap_err();
            assert_eq!(bad.lba, 8 + bit as u64 / 8 / 512, "bit {bit}");
        }
    }

    #[test]
    fn a_block_that_lies_where_another_belongs_is_told_from_rot() {
        let mut data = written();
        data.rotate_left(512);
        let bad = check(&data, 512 * 8, 512, Some(7)).unwrap_err();
        assert_eq!(bad.to_string(), "verify: LBA 0x8: holds the data of byte offset 4608");
    }

    #[test]
    fn a_block_of_an_earlier_run_is_sound_and_stale() {
        let data = written();
        assert_eq!(check(&data, 512 * 8, 512, None), Ok(()));
        let bad = check(&data, 512 * 8, 512, Some(8)).unwrap_err();
        assert_eq!(bad.fault, Fault::Stale { stamp: 7 });
    }

    #[test]
    fn a_block_that_was_never_written_has_no_header() {
        let bad = check(&[0; 512], 0, 512, None).unwrap_err();
        assert_eq!(bad.fault, Fault::NoHeader { found: 0 });
    }
}
