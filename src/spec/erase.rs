//! What Format NVM and Sanitize carry, and how far a sanitize has come (Base 5.14, 5.24 and 5.16.1.25).
//!
//! [`FormatDword10`] and [`SanitizeDword10`] are the commands, [`SanitizeStatusLog`] is log page 81h,
//! [`SanitizeCapabilities`] and [`Fna`] are what Identify Controller says of both.
#![forbid(unsafe_code)]

use core::mem::offset_of;

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// CDW10 of Format NVM (Base 5.14, Figure 189).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FormatDword10 {
    /// LBAFL: the lower four bits of the index of the LBA format.
    #[bits(4)]
    pub lbafl: u8,
    /// MSET: metadata follows the data of each logical block, and has no buffer of its own.
    pub mset: bool,
    /// PI: the type of protection information, 1 to 3; 0 is none.
    #[bits(3)]
    pub pi: u8,
    /// PIL: protection information lies in the first bytes of the metadata, not the last.
    pub pil: bool,
    /// SES: [`SecureErase`].
    #[bits(3)]
    pub ses: u8,
    /// LBAFU: the upper two bits of the index of the LBA format.
    #[bits(2)]
    pub lbafu: u8,
    #[bits(18)]
    __: u32,
}

impl FormatDword10 {
    /// Returns the index of the LBA format, 0 to 63.
    pub const fn format_index(self) -> u8 {
        self.lbafu() << 4 | self.lbafl()
    }

    /// Returns the field with the index set to the lower six bits of `index`.
    #[must_use]
    pub const fn with_format_index(self, index: u8) -> Self {
        self.with_lbafl(index & 0xf).with_lbafu(index >> 4 & 0x3)
    }
}

open_enum! {
    /// SES: what a format does to what was there (Base 5.14, Figure 189, bits 11:09).
    pub struct SecureErase(u8) {
        /// Nothing is asked for.
        NONE = 0 => "no secure erase",
        /// All user data is gone afterwards.
        USER_DATA = 1 => "user data erase",
        /// The key is gone that user data was encrypted with.
        CRYPTOGRAPHIC = 2 => "cryptographic erase",
    }
}

/// FNA: what Format NVM concerns (Base 5.17.2.1, byte 524).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Fna {
    /// A format concerns all namespaces, not one.
    pub format_all: bool,
    /// A secure erase as part of a format concerns all namespaces, not one.
    pub erase_all: bool,
    /// Cryptographic erase is supported as part of a format.
    pub crypto_erase: bool,
    /// The namespace identifier of all namespaces is not supported.
    pub no_broadcast: bool,
    #[bits(4)]
    __: u8,
}

/// CDW10 of Sanitize (Base 5.24, Figure 303).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SanitizeDword10 {
    /// SANACT: [`SanitizeAction`].
    #[bits(3)]
    pub sanact: u8,
    /// AUSE: a failure may be left without another sanitize that succeeds.
    pub ause: bool,
    /// OWPASS: passes of an overwrite, 1 to 15; 0 is 16.
    #[bits(4)]
    pub owpass: u8,
    /// OIPBP: each pass of an overwrite inverts the pattern of the one before.
    pub oipbp: bool,
    /// NDAS: nothing is deallocated after a sanitize that succeeds.
    pub ndas: bool,
    #[bits(22)]
    __: u32,
}

impl SanitizeDword10 {
    /// Returns how many passes an overwrite makes.
    pub const fn passes(self) -> u8 {
        if self.owpass() == 0 { 16 } else { self.owpass() }
    }
}

open_enum! {
    /// SANACT: what a sanitize does (Base 5.24, Figure 303, bits 02:00).
    pub struct SanitizeAction(u8) {
        /// Leaves the state that a failed sanitize has left.
        EXIT_FAILURE = 1 => "exit failure mode",
        /// Erases by the means of the media.
        BLOCK_ERASE = 2 => "block erase",
        /// Writes a pattern over everything.
        OVERWRITE = 3 => "overwrite",
        /// Changes the keys that everything is encrypted with.
        CRYPTO_ERASE = 4 => "crypto erase",
    }
}

/// SANICAP: what a sanitize can be (Base 5.17.2.1, bytes 331:328).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SanitizeCapabilities {
    /// CES: crypto erase.
    pub crypto_erase: bool,
    /// BES: block erase.
    pub block_erase: bool,
    /// OWS: overwrite.
    pub overwrite: bool,
    #[bits(26)]
    __: u32,
    /// NDI: NDAS cannot be asked for.
    pub no_deallocate_inhibited: bool,
    /// NODMMAS: whether media are modified besides after a sanitize; 0 is not reported, 1 no, 2 yes.
    #[bits(2)]
    pub modifies_after: u8,
}

impl SanitizeCapabilities {
    /// Says whether an action is on offer; leaving a failure is, wherever anything can fail.
    pub const fn offers(self, action: SanitizeAction) -> bool {
        match action {
            SanitizeAction::CRYPTO_ERASE => self.crypto_erase(),
            SanitizeAction::BLOCK_ERASE => self.block_erase(),
            SanitizeAction::OVERWRITE => self.overwrite(),
            SanitizeAction::EXIT_FAILURE => {
                self.crypto_erase() || self.block_erase() || self.overwrite()
            }
            _ => false,
        }
    }
}

/// How far a sanitize has come and how it ended (Base 5.16.1.25).
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SanitizeStatusLog {
    /// Bytes 1:0, SPROG: the part that is done, of 65536; 65535 if nothing is in progress.
    pub sprog: U16,
    /// Bytes 3:2, SSTAT: [`SanitizeStatus`].
    pub sstat: U16,
    /// Bytes 7:4, SCDW10: dword 10 of the last Sanitize that was started, [`SanitizeDword10`].
    pub scdw10: U32,
    /// Bytes 11:8, ETO: time of an overwrite of 16 passes, in seconds; all ones is not reported.
    pub eto: U32,
    /// Bytes 15:12, ETBE: time of a block erase, in seconds; all ones is not reported.
    pub etbe: U32,
    /// Bytes 19:16, ETCE: time of a crypto erase, in seconds; all ones is not reported.
    pub etce: U32,
    /// Bytes 23:20, ETOND: as ETO, with NDAS.
    pub etond: U32,
    /// Bytes 27:24, ETBEND: as ETBE, with NDAS.
    pub etbend: U32,
    /// Bytes 31:28, ETCEND: as ETCE, with NDAS.
    pub etcend: U32,
    _reserved_32: [u8; 480],
}

const _: () = {
    assert!(size_of::<SanitizeStatusLog>() == 512);
    assert!(offset_of!(SanitizeStatusLog, sstat) == 2);
    assert!(offset_of!(SanitizeStatusLog, scdw10) == 4);
    assert!(offset_of!(SanitizeStatusLog, etcend) == 28);
};

impl SanitizeStatusLog {
    /// SPROG: nothing is in progress.
    pub const IDLE: u16 = u16::MAX;
    /// An estimated time that is not reported.
    pub const TIME_UNKNOWN: u32 = u32::MAX;

    /// Returns SSTAT.
    pub const fn sstat(&self) -> SanitizeStatus {
        SanitizeStatus::from_bits(self.sstat.get())
    }

    /// Returns the share that is done, from 0 to 1.
    pub fn fraction(&self) -> f64 {
        f64::from(self.sprog.get()) / 65_536.0
    }
}

/// SSTAT: how the last sanitize ended (Base 5.16.1.25, bytes 3:2).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct SanitizeStatus {
    /// SOS: [`SanitizeOutcome`].
    #[bits(3)]
    pub outcome: u8,
    /// OPC: passes of an overwrite that are complete.
    #[bits(5)]
    pub passes: u8,
    /// GDE: no user data was written since.
    pub global_data_erased: bool,
    #[bits(7)]
    __: u8,
}

impl SanitizeStatus {
    /// Returns SOS.
    pub const fn state(self) -> SanitizeOutcome {
        SanitizeOutcome(self.outcome())
    }
}

open_enum! {
    /// SOS: how the last sanitize ended (Base 5.16.1.25, bytes 3:2, bits 02:00).
    pub struct SanitizeOutcome(u8) {
        /// There never was one.
        NEVER = 0 => "never sanitized",
        /// It succeeded.
        DONE = 1 => "completed",
        /// It is in progress.
        RUNNING = 2 => "in progress",
        /// It failed.
        FAILED = 3 => "failed",
        /// It succeeded with NDAS, and deallocated nothing.
        DONE_ALLOCATED = 4 => "completed without deallocation",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_has_its_index_on_both_ends() {
        let dword = FormatDword10::new().with_format_index(0x2a).with_mset(true).with_pi(3);
        let dword = dword.with_pil(true).with_ses(SecureErase::USER_DATA.0);
        assert_eq!(dword.into_bits(), 0x2000 | 0xa | 1 << 4 | 3 << 5 | 1 << 8 | 1 << 9);
        assert_eq!(dword.format_index(), 0x2a);
    }

    #[test]
    fn sixteen_passes_are_written_as_none() {
        let dword = SanitizeDword10::new().with_sanact(SanitizeAction::OVERWRITE.0);
        assert_eq!((dword.passes(), dword.with_owpass(3).passes()), (16, 3));
        let all = dword.with_ause(true).with_owpass(3).with_oipbp(true).with_ndas(true);
        assert_eq!(all.into_bits(), 0x33b);
    }

    #[test]
    fn what_is_on_offer_is_in_the_capabilities() {
        let both = SanitizeCapabilities::from_bits(0x6000_0006);
        let offered = |action| both.offers(SanitizeAction(action));
        assert_eq!([0, 1, 2, 3, 4, 5].map(offered), [false, true, true, true, false, false]);
        assert!(both.no_deallocate_inhibited() && both.modifies_after() == 1);
        assert!(!SanitizeCapabilities::new().offers(SanitizeAction::EXIT_FAILURE));
    }

    #[test]
    fn a_status_page_reads_back_by_field() {
        let mut page = [0; 512];
        page[..8].copy_from_slice(&[0x00, 0x80, 0x1a, 0x01, 0x03, 0, 0, 0]);
        page[28] = 7;
        let log = SanitizeStatusLog::ref_from_bytes(&page).expect("the page is as long as the log");
        assert_eq!(log.fraction(), 0.5);
        assert_eq!(log.sstat().state(), SanitizeOutcome::RUNNING);
        assert_eq!((log.sstat().passes(), log.sstat().global_data_erased()), (3, true));
        assert_eq!((log.scdw10.get(), log.etcend.get()), (3, 7));
    }
}
