//! Protection information as the controller makes and checks it: eight bytes of a block's metadata.
//!
//! [`Protection`] is what one command asks for: [`generate`](Protection::generate) puts tuples in their places,
//! [`check`](Protection::check) holds blocks against theirs. `tagged` calls both between memory and medium.
//! Invariant: nothing here is shared with the driver, which computes the same from the same standard on its own.
#![forbid(unsafe_code)]

use super::options::{MetadataOptions, ProtectionOptions};
use crate::spec::status::Status;

/// Bytes of one tuple with a guard of 16 bits (NVM 5.2.1.1).
pub(super) const TUPLE_BYTES: usize = 8;

/// The generator polynomial of the guard: x^16 + x^15 + x^11 + x^9 + x^8 + x^7 + x^5 + x^4 + x^2 + x + 1.
const POLYNOMIAL: u16 = 0x8bb7;

/// What protection information a command asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Protection {
    pub(super) format: ProtectionOptions,
    /// PRCHK: the guard, the application tag, the reference tag.
    pub(super) checks_guard: bool,
    pub(super) checks_application: bool,
    pub(super) checks_reference: bool,
    pub(super) application: u16,
    pub(super) application_mask: u16,
    /// The reference tag of the first block.
    pub(super) reference: u32,
}

impl Protection {
    /// Returns the reference tag of block `index` of the command.
    fn reference_at(&self, index: usize) -> u32 {
        match self.format.kind {
            3 => self.reference,
            _ => self.reference.wrapping_add(index as u32),
        }
    }

    /// Puts a tuple into the metadata of every block.
    pub(super) fn generate(&self, data: &[u8], metadata: &mut [u8], block: usize, bytes: usize) {
        let at = place(self.format, bytes);
        for (index, data) in data.chunks_exact(block).enumerate() {
            let metadata = &mut metadata[index * bytes..][..bytes];
            let guard = guard(data, &metadata[..covered(self.format, bytes)]);
            let tuple = &mut metadata[at..][..TUPLE_BYTES];
            tuple[..2].copy_from_slice(&guard.to_be_bytes());
            tuple[2..4].copy_from_slice(&self.application.to_be_bytes());
            tuple[4..].copy_from_slice(&self.reference_at(index).to_be_bytes());
        }
    }

    /// Holds every block against its tuple.
    pub(super) fn check(
        &self,
        data: &[u8],
        metadata: &[u8],
        block: usize,
        bytes: usize,
    ) -> Result<(), Status> {
        let blocks = data.chunks_exact(block).zip(metadata.chunks_exact(bytes)).enumerate();
        blocks.into_iter().try_for_each(|(index, (data, metadata))| {
            self.check_block(data, metadata, self.reference_at(index))
        })
    }

    fn check_block(&self, data: &[u8], metadata: &[u8], reference: u32) -> Result<(), Status> {
        let tuple = &metadata[place(self.format, metadata.len())..][..TUPLE_BYTES];
        let found_guard = u16::from_be_bytes([tuple[0], tuple[1]]);
        let found_application = u16::from_be_bytes([tuple[2], tuple[3]]);
        let found_reference = u32::from_be_bytes([tuple[4], tuple[5], tuple[6], tuple[7]]);
        // Tags of all ones turn every check of the block off; with type 3 it takes both (NVM 5.2.3).
        let unchecked =
            found_application == u16::MAX && (self.format.kind != 3 || found_reference == u32::MAX);
        if unchecked {
            return Ok(());
        }
        let covered = &metadata[..covered(self.format, metadata.len())];
        if self.checks_guard && found_guard != guard(data, covered) {
            return Err(Status::GUARD_CHECK_ERROR);
        }
        let differs = (found_application ^ self.application) & self.application_mask != 0;
        if self.checks_application && differs {
            return Err(Status::APPLICATION_TAG_CHECK_ERROR);
        }
        if self.checks_reference && found_reference != reference {
            return Err(Status::REFERENCE_TAG_CHECK_ERROR);
        }
        Ok(())
    }
}

/// Turns over the tuples of metadata on its way to or from the medium.
///
/// Zeroes on the medium are then tuples of all ones, which is what blocks have that were never written: no
/// check applies to them (NVM 5.2.3), and a sparse medium need not be filled.
pub(super) fn turn_over(format: MetadataOptions, metadata: &mut [u8]) {
    let Some(protection) = format.protection else { return };
    let bytes = usize::from(format.bytes);
    for metadata in metadata.chunks_exact_mut(bytes) {
        let tuple = &mut metadata[place(protection, bytes)..][..TUPLE_BYTES];
        tuple.iter_mut().for_each(|byte| *byte = !*byte);
    }
}

/// Returns where the tuple is in the metadata of a block.
pub(super) fn place(format: ProtectionOptions, bytes: usize) -> usize {
    if format.first { 0 } else { bytes - TUPLE_BYTES }
}

/// Returns how many bytes of metadata the guard covers: those before the tuple.
fn covered(format: ProtectionOptions, bytes: usize) -> usize {
    place(format, bytes)
}

/// Returns the guard of a block and the metadata before its tuple.
fn guard(data: &[u8], metadata: &[u8]) -> u16 {
    data.iter()
        .chain(metadata)
        .fold(0, |crc, byte| crc << 8 ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ POLYNOMIAL };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-16/T10-DIF in the catalogues.
    #[test]
    fn the_guard_is_the_crc_of_t10_dif() {
        assert_eq!(guard(b"123456789", &[]), 0xd0db);
        assert_eq!(guard(b"12345", b"6789"), 0xd0db);
        assert_eq!(guard(&[0; 4096], &[]), 0);
    }
}
