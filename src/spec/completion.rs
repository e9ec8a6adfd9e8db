//! Completion queue entries (Base 3.3.3.2).
#![forbid(unsafe_code)]

use core::mem::offset_of;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::status::Status;

/// A completion queue entry (Base 3.3.3.2, Figure 89).
#[repr(C, align(8))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Completion {
    /// DW0: specific to the command.
    pub dw0: u32,
    /// DW1: specific to the command.
    pub dw1: u32,
    /// DW2 bits 15:0, SQHD: how far the controller has read the submission queue.
    pub sq_head: u16,
    /// DW2 bits 31:16, SQID: the submission queue of the command.
    pub sq_id: u16,
    /// DW3 bits 15:0, CID: the command.
    pub cid: u16,
    /// DW3 bits 31:16: phase tag and status.
    pub status: StatusField,
}

const _: () = {
    assert!(size_of::<Completion>() == 16);
    assert!(offset_of!(Completion, sq_head) == 8);
    assert!(offset_of!(Completion, cid) == 12);
    assert!(offset_of!(Completion, status) == 14);
};

/// Phase tag and status (Base Figures 91 and 92).
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StatusField {
    /// P: tells new entries from old ones.
    pub phase: bool,
    /// SC: status code.
    pub sc: u8,
    /// SCT: status code type.
    #[bits(3)]
    pub sct: u8,
    /// CRD: which retry delay to wait; 0 is none, else CRDT1 to CRDT3.
    #[bits(2)]
    pub crd: u8,
    /// M: the error log has more.
    pub more: bool,
    /// DNR: the same command would fail again.
    pub dnr: bool,
}

impl StatusField {
    /// Returns type and code.
    #[inline]
    pub const fn code(self) -> Status {
        Status::new(self.sct(), self.sc())
    }

    /// Says whether the command succeeded.
    #[inline]
    pub const fn is_success(self) -> bool {
        const TYPE_AND_CODE: u16 = 0x0ffe;
        self.into_bits() & TYPE_AND_CODE == 0
    }

    /// Returns the field with type and code set.
    #[must_use]
    pub const fn with_code(self, status: Status) -> Self {
        self.with_sct(status.kind).with_sc(status.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_tag_is_bit_16_of_dw3() {
        let completion = Completion {
            sq_head: 7,
            sq_id: 1,
            cid: 0xabcd,
            status: StatusField::new()
                .with_phase(true)
                .with_code(Status::LBA_OUT_OF_RANGE)
                .with_dnr(true),
            ..Completion::default()
        };
        let bytes = [0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 1, 0, 0xcd, 0xab, 0x01, 0x81];
        assert_eq!(completion.as_bytes(), bytes);
        assert!(!completion.status.is_success());
        assert!(StatusField::new().with_phase(true).is_success());
    }
}
