//! The Identify Namespace data structure of the NVM command set and its LBA formats (NVM 4.1.5.1).
#![forbid(unsafe_code)]

use core::mem::offset_of;

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::units::LbaSize;

/// How large a namespace is, how it is formatted and what it likes (NVM 4.1.5.1, CNS 00h).
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyNamespace {
    /// Bytes 7:0, NSZE: size, in logical blocks; LBA 0 to NSZE - 1.
    pub nsze: U64,
    /// Bytes 15:8, NCAP: most logical blocks allocated at one time.
    pub ncap: U64,
    /// Bytes 23:16, NUSE: logical blocks allocated now.
    pub nuse: U64,
    /// Byte 24, NSFEAT: which of the fields below mean something, [`NsFeat`].
    pub nsfeat: u8,
    /// Byte 25, NLBAF: LBA formats that any namespace may have, zero-based.
    pub nlbaf: u8,
    /// Byte 26, FLBAS: the format in use, [`Flbas`].
    pub flbas: u8,
    /// Byte 27, MC: metadata inline with the data (bit 0), in a buffer of its own (bit 1).
    pub mc: u8,
    /// Byte 28, DPC: protection types 1 to 3 (bits 2:0), in the first (bit 3) or last (bit 4) bytes of metadata.
    pub dpc: u8,
    /// Byte 29, DPS: the protection in use, [`Dps`].
    pub dps: u8,
    /// Byte 30, NMIC: bit 0 says that several controllers may attach it at a time.
    pub nmic: u8,
    /// Byte 31, RESCAP: kinds of reservation.
    pub rescap: u8,
    /// Byte 32, FPI: percentage of a format that remains (bits 6:0), valid if bit 7 is set.
    pub fpi: u8,
    /// Byte 33, DLFEAT: what deallocated blocks read as, [`Dlfeat`].
    pub dlfeat: u8,
    /// Bytes 35:34, NAWUN: write that is atomic to other commands, in logical blocks, zero-based.
    pub nawun: U16,
    /// Bytes 37:36, NAWUPF: write that is atomic to power failure, in logical blocks, zero-based.
    pub nawupf: U16,
    /// Bytes 39:38, NACWU: fused Compare and Write that is atomic, in logical blocks, zero-based.
    pub nacwu: U16,
    /// Bytes 41:40, NABSN: atomic boundary to other commands, in logical blocks, zero-based; 0 is none.
    pub nabsn: U16,
    /// Bytes 43:42, NABO: the LBA at which the first atomic boundary lies.
    pub nabo: U16,
    /// Bytes 45:44, NABSPF: atomic boundary to power failure, in logical blocks, zero-based; 0 is none.
    pub nabspf: U16,
    /// Bytes 47:46, NOIOB: boundary that reads and writes do well not to cross, in logical blocks; 0 is none.
    pub noiob: U16,
    /// Bytes 63:48, NVMCAP: capacity allocated to the namespace, in bytes.
    pub nvmcap: U128,
    /// Bytes 65:64, NPWG: preferred write granularity, in logical blocks, zero-based.
    pub npwg: U16,
    /// Bytes 67:66, NPWA: preferred write alignment, in logical blocks, zero-based.
    pub npwa: U16,
    /// Bytes 69:68, NPDG: preferred deallocate granularity, in logical blocks, zero-based.
    pub npdg: U16,
    /// Bytes 71:70, NPDA: preferred deallocate alignment, in logical blocks, zero-based.
    pub npda: U16,
    /// Bytes 73:72, NOWS: optimal write size, in logical blocks, zero-based.
    pub nows: U16,
    /// Bytes 75:74, MSSRL: most logical blocks in one source range of Copy.
    pub mssrl: U16,
    /// Bytes 79:76, MCL: most logical blocks in one Copy.
    pub mcl: U32,
    /// Byte 80, MSRC: most source ranges in one Copy, zero-based.
    pub msrc: u8,
    _reserved_81: [u8; 1],
    /// Byte 82, NULBAF: LBA formats after the first NLBAF + 1 that only some namespaces may have.
    pub nulbaf: u8,
    _reserved_83: [u8; 9],
    /// Bytes 95:92, ANAGRPID: the access group of the namespace.
    pub anagrpid: U32,
    _reserved_96: [u8; 3],
    /// Byte 99, NSATTR: bit 0 says that the namespace is write protected.
    pub nsattr: u8,
    /// Bytes 101:100, NVMSETID: the NVM set of the namespace.
    pub nvmsetid: U16,
    /// Bytes 103:102, ENDGID: the endurance group of the namespace.
    pub endgid: U16,
    /// Bytes 119:104, NGUID: globally unique identifier, most significant byte first; 0 is none.
    pub nguid: [u8; 16],
    /// Bytes 127:120, EUI64: IEEE extended unique identifier, most significant byte first; 0 is none.
    pub eui64: [u8; 8],
    /// Bytes 383:128, LBAF0 to LBAF63: the LBA formats.
    pub lbaf: [LbaFormat; 64],
    /// Bytes 4095:384, VS: the vendor's own.
    pub vs: [u8; 3712],
}

const _: () = {
    assert!(size_of::<IdentifyNamespace>() == 4096);
    assert!(offset_of!(IdentifyNamespace, nsfeat) == 24);
    assert!(offset_of!(IdentifyNamespace, dps) == 29);
    assert!(offset_of!(IdentifyNamespace, nawun) == 34);
    assert!(offset_of!(IdentifyNamespace, nabspf) == 44);
    assert!(offset_of!(IdentifyNamespace, noiob) == 46);
    assert!(offset_of!(IdentifyNamespace, nvmcap) == 48);
    assert!(offset_of!(IdentifyNamespace, nows) == 72);
    assert!(offset_of!(IdentifyNamespace, mcl) == 76);
    assert!(offset_of!(IdentifyNamespace, nulbaf) == 82);
    assert!(offset_of!(IdentifyNamespace, anagrpid) == 92);
    assert!(offset_of!(IdentifyNamespace, nsattr) == 99);
    assert!(offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(offset_of!(IdentifyNamespace, eui64) == 120);
    assert!(offset_of!(IdentifyNamespace, lbaf) == 128);
    assert!(offset_of!(IdentifyNamespace, vs) == 384);
};

impl IdentifyNamespace {
    /// Returns NSFEAT.
    pub const fn nsfeat(&self) -> NsFeat {
        NsFeat::from_bits(self.nsfeat)
    }

    /// Returns FLBAS.
    pub const fn flbas(&self) -> Flbas {
        Flbas::from_bits(self.flbas)
    }

    /// Returns DPS.
    pub const fn dps(&self) -> Dps {
        Dps::from_bits(self.dps)
    }

    /// Returns DLFEAT.
    pub const fn dlfeat(&self) -> Dlfeat {
        Dlfeat::from_bits(self.dlfeat)
    }

    /// Returns the LBA format in use.
    pub const fn lba_format(&self) -> &LbaFormat {
        // Six bits cannot pass the end of 64 formats.
        &self.lbaf[self.format_index()]
    }

    /// Returns which LBA format is in use, 0 to 63.
    ///
    /// With 16 formats or fewer the upper bits of FLBAS mean nothing (NVM 4.1.5.1, byte 26).
    pub const fn format_index(&self) -> usize {
        let index = self.flbas().format_index();
        let last = self.nlbaf as usize + self.nulbaf as usize;
        if last < 16 { index & 0xf } else { index }
    }
}

/// One way to format a namespace (NVM 4.1.5.1, Figure 98).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LbaFormat {
    /// Bytes 1:0, MS: metadata of each logical block, in bytes.
    pub ms: U16,
    /// Byte 2, LBADS: data of each logical block, as a power of two of bytes; 0 is no format.
    pub lbads: u8,
    /// Byte 3, RP: relative performance in bits 1:0, from 0 (best) to 3 (degraded).
    pub rp: u8,
}

const _: () = {
    assert!(size_of::<LbaFormat>() == 4);
    assert!(offset_of!(LbaFormat, lbads) == 2);
};

impl LbaFormat {
    /// Returns LBADS as a size, or `None` if it is not one that we take.
    pub const fn lba_size(&self) -> Option<LbaSize> {
        LbaSize::from_shift(self.lbads)
    }
}

/// NSFEAT: which of the optional fields mean something (NVM 4.1.5.1, byte 24).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct NsFeat {
    /// Thin provisioning: NCAP may be less than NSZE.
    pub thin_provisioning: bool,
    /// NAWUN, NAWUPF and NACWU apply, not the controller's AWUN, AWUPF and ACWU.
    pub atomics: bool,
    /// Reads of deallocated blocks can fail.
    pub deallocated_error: bool,
    /// NGUID and EUI64 are never used again.
    pub id_never_reused: bool,
    /// NPWG, NPWA, NPDG, NPDA and NOWS apply.
    pub preferred_io: bool,
    #[bits(3)]
    __: u8,
}

/// FLBAS: the LBA format in use (NVM 4.1.5.1, byte 26).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Flbas {
    /// The lower four bits of the index.
    #[bits(4)]
    pub index_low: u8,
    /// Metadata follows the data of each logical block, and has no buffer of its own.
    pub metadata_inline: bool,
    /// The upper two bits of the index.
    #[bits(2)]
    pub index_high: u8,
    __: bool,
}

impl Flbas {
    /// Returns the six bits of the index, which lie on both sides of the metadata bit.
    pub const fn format_index(self) -> usize {
        (self.index_high() as usize) << 4 | self.index_low() as usize
    }

    /// Returns the field with the index set to the lower six bits of `index`.
    #[must_use]
    pub const fn with_format_index(self, index: u8) -> Self {
        self.with_index_low(index & 0xf).with_index_high(index >> 4 & 0x3)
    }
}

/// DPS: end-to-end protection in use (NVM 4.1.5.1, byte 29).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Dps {
    /// The type, 1 to 3; 0 is none.
    #[bits(3)]
    pub kind: u8,
    /// It lies in the first bytes of the metadata, not the last.
    pub first_bytes: bool,
    #[bits(4)]
    __: u8,
}

/// DLFEAT: what deallocated blocks read as (NVM 4.1.5.1, byte 33).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Dlfeat {
    /// [`READS_UNKNOWN`](Self::READS_UNKNOWN), zeros, or ones.
    #[bits(3)]
    pub read: u8,
    /// Write Zeroes can deallocate.
    pub write_zeroes_deallocates: bool,
    /// The guard is the CRC of what is read, not 0xffff.
    pub guard_is_crc: bool,
    #[bits(3)]
    __: u8,
}

impl Dlfeat {
    /// The controller does not say.
    pub const READS_UNKNOWN: u8 = 0;
    /// Every byte is 0x00.
    pub const READS_ZEROS: u8 = 1;
    /// Every byte is 0xff.
    pub const READS_ONES: u8 = 2;
}
