//! SGL descriptors (Base 4.1.2).
#![forbid(unsafe_code)]

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One SGL descriptor (Base 4.1.2.1, Figures 102 to 107).
#[repr(C, align(8))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SglDescriptor {
    /// Bytes 7:0: where the data or the next segment is.
    pub address: u64,
    /// Bytes 11:8: length in bytes.
    pub len: u32,
    /// Bytes 14:12: reserved.
    pub reserved: [u8; 3],
    /// Byte 15: type in bits 7:4, subtype in bits 3:0.
    pub identifier: u8,
}

const _: () = {
    assert!(size_of::<SglDescriptor>() == 16);
    assert!(offset_of!(SglDescriptor, len) == 8);
    assert!(offset_of!(SglDescriptor, identifier) == 15);
};

open_enum! {
    /// SGL descriptor types (Base Figure 100).
    pub struct SglType(u8) {
        /// Data.
        DATA_BLOCK = 0x0 => "SGL Data Block descriptor",
        /// Data of a read that nobody wants.
        BIT_BUCKET = 0x1 => "SGL Bit Bucket descriptor",
        /// The next segment, which is not the last.
        SEGMENT = 0x2 => "SGL Segment descriptor",
        /// The last segment.
        LAST_SEGMENT = 0x3 => "SGL Last Segment descriptor",
        /// Data with a key.
        KEYED_DATA_BLOCK = 0x4 => "Keyed SGL Data Block descriptor",
        /// Data of a transport.
        TRANSPORT_DATA_BLOCK = 0x5 => "Transport SGL Data Block descriptor",
    }
}

/// Subtype: the address is a memory address (Base Figure 101).
pub const SUBTYPE_ADDRESS: u8 = 0;

impl SglDescriptor {
    /// Makes a descriptor of a type with an absolute address.
    pub const fn new(kind: SglType, address: u64, len: u32) -> Self {
        let identifier = kind.0 << 4 | SUBTYPE_ADDRESS;
        Self { address, len, reserved: [0; 3], identifier }
    }

    /// Returns the type.
    pub const fn kind(&self) -> SglType {
        SglType(self.identifier >> 4)
    }

    /// Returns the subtype.
    pub const fn subtype(&self) -> u8 {
        self.identifier & 0xf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_in_the_high_half_of_the_last_byte() {
        let segment = SglDescriptor::new(SglType::LAST_SEGMENT, 0x1000, 32);
        assert_eq!(segment.as_bytes(), [0, 0x10, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0x30]);
        assert_eq!(segment.kind(), SglType::LAST_SEGMENT);
    }
}
