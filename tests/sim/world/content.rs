//! Blocks that say where they belong: object, block of the object, and the write that they come from.
//!
//! Every 16 bytes say all of it, so that a block which is torn, shifted, or somebody else's cannot pass.
//! [`ZERO`] stands for a block of zeroes.

use udirect::units::Lba;

/// The number of no write: zeroes.
pub(crate) const ZERO: u64 = 0;

/// The byte that the whole disk holds before anything is written: whoever reads it reads stale data.
const TAG: u8 = 0xa5;

/// Fills a block that was never written.
pub(crate) fn tag(_: Lba, block: &mut [u8]) {
    block.fill(TAG);
}

fn place(object: u64, block: u64, cell: usize) -> u64 {
    1 << 63 | object << 40 | block << 12 | cell as u64
}

/// Fills a block as a write fills it.
pub(crate) fn fill(bytes: &mut [u8], object: u64, block: u64, write: u64) {
    let (cells, _) = bytes.as_chunks_mut::<16>();
    for (cell, bytes) in cells.iter_mut().enumerate() {
        bytes[..8].copy_from_slice(&place(object, block, cell).to_le_bytes());
        bytes[8..].copy_from_slice(&write.to_le_bytes());
    }
}

/// Returns the write that a block comes from, or its first bytes where it is none of this object's block.
pub(crate) fn read(bytes: &[u8], object: u64, block: u64) -> Result<u64, [u8; 16]> {
    let (cells, _) = bytes.as_chunks::<16>();
    let first = cells[0];
    if first == [0; 16] {
        let is_zero = cells.iter().all(|cell| *cell == [0; 16]);
        return if is_zero { Ok(ZERO) } else { Err(first) };
    }
    let write = u64::from_le_bytes(first[8..].try_into().expect("eight bytes"));
    let mut wanted = first;
    for (cell, bytes) in cells.iter().enumerate() {
        wanted[..8].copy_from_slice(&place(object, block, cell).to_le_bytes());
        if *bytes != wanted {
            return Err(*bytes);
        }
    }
    Ok(write)
}
