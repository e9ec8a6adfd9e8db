//! What the Identify command returns: controller, namespace, and lists of them (Base 5.17, NVM 4.1.5).
//!
//! [`IdentifyController`] and [`IdentifyNamespace`] are whole data structures of 4096 bytes. Fields
//! that hold flags are stored as they travel; the method of the same name reads them as a bitfield.
//! Sizes and limits are raw here: the driver's room decides what to make of them. Reserved bytes are
//! private, so that a structure starts from `new_zeroed` and they stay zero.
#![forbid(unsafe_code)]

mod controller;
mod namespace;

use core::mem::offset_of;

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub(super) use self::controller::padded_text;
pub use self::controller::{
    Cmic, ControllerType, EntrySize, Frmw, IdentifyController, Lpa, Oacs, Oncs, Sgls, Vwc,
};
pub use self::namespace::{Dlfeat, Dps, Flbas, IdentifyNamespace, LbaFormat, NsFeat};
use crate::units::NamespaceId;

/// One power state of a controller (Base 5.17.2.1, Figure 276).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PowerState {
    /// Bytes 1:0, MP: most power, in units of 0.01 W, or 0.0001 W if MXPS is set.
    pub mp: U16,
    _reserved_2: u8,
    /// Byte 3: MXPS and NOPS, [`PowerFlags`].
    pub flags: u8,
    /// Bytes 7:4, ENLAT: most time to enter, in microseconds.
    pub enlat: U32,
    /// Bytes 11:8, EXLAT: most time to leave, in microseconds.
    pub exlat: U32,
    /// Byte 12, RRT: rank in read throughput (bits 4:0); 0 is best.
    pub rrt: u8,
    /// Byte 13, RRL: rank in read latency (bits 4:0); 0 is best.
    pub rrl: u8,
    /// Byte 14, RWT: rank in write throughput (bits 4:0); 0 is best.
    pub rwt: u8,
    /// Byte 15, RWL: rank in write latency (bits 4:0); 0 is best.
    pub rwl: u8,
    /// Bytes 17:16, IDLP: usual power when idle, in the unit that IPS says.
    pub idlp: U16,
    /// Byte 18, IPS: unit of IDLP in bits 7:6: 1 is 0.0001 W, 2 is 0.01 W, 0 is not reported.
    pub ips: u8,
    _reserved_19: u8,
    /// Bytes 21:20, ACTP: most power averaged over 10 seconds of APW, in the unit that APS says.
    pub actp: U16,
    /// Byte 22, APW: workload of ACTP in bits 2:0; APS: unit of ACTP in bits 7:6, as in IPS.
    pub aps: u8,
    _reserved_23: [u8; 9],
}

const _: () = {
    assert!(size_of::<PowerState>() == 32);
    assert!(offset_of!(PowerState, flags) == 3);
    assert!(offset_of!(PowerState, enlat) == 4);
    assert!(offset_of!(PowerState, rrt) == 12);
    assert!(offset_of!(PowerState, idlp) == 16);
    assert!(offset_of!(PowerState, actp) == 20);
    assert!(offset_of!(PowerState, aps) == 22);
};

impl PowerState {
    /// Returns MXPS and NOPS.
    pub const fn flags(&self) -> PowerFlags {
        PowerFlags::from_bits(self.flags)
    }

    /// Returns MP in microwatts.
    pub const fn max_power_uw(&self) -> u32 {
        let unit_uw = if self.flags().fine_scale() { 100 } else { 10_000 };
        self.mp.get() as u32 * unit_uw
    }
}

/// Byte 3 of a power state (Base 5.17.2.1, Figure 276).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct PowerFlags {
    /// MXPS: MP counts 0.0001 W, not 0.01 W.
    pub fine_scale: bool,
    /// NOPS: no I/O command is processed in this state.
    pub non_operational: bool,
    #[bits(6)]
    __: u8,
}

/// Identifiers of active namespaces, ascending, ended by 0 unless full (Base 5.17.2.2, CNS 02h).
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ActiveNamespaceList {
    /// Bytes 4095:0: the identifiers.
    pub nsid: [U32; 1024],
}

const _: () = assert!(size_of::<ActiveNamespaceList>() == 4096);

impl ActiveNamespaceList {
    /// Returns the identifiers before the 0 that ends the list.
    pub fn iter(&self) -> impl Iterator<Item = NamespaceId> + '_ {
        self.nsid
            .iter()
            .map(|nsid| NamespaceId(nsid.get()))
            .take_while(|&id| id != NamespaceId::NONE)
    }
}

/// What precedes each identifier in the list of a namespace's identifiers (Base 5.17.2.3, CNS 03h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NamespaceIdDescriptor {
    /// Byte 0, NIDT: the kind of identifier, [`NamespaceIdType`].
    pub nidt: u8,
    /// Byte 1, NIDL: length of the identifier that follows, in bytes; 0 ends the list.
    pub nidl: u8,
    _reserved_2: [u8; 2],
}

const _: () = {
    assert!(size_of::<NamespaceIdDescriptor>() == 4);
    assert!(offset_of!(NamespaceIdDescriptor, nidl) == 1);
};

impl NamespaceIdDescriptor {
    /// Returns a descriptor of an identifier of `nidl` bytes.
    pub const fn new(nidt: NamespaceIdType, nidl: u8) -> Self {
        Self { nidt: nidt.0, nidl, _reserved_2: [0; 2] }
    }

    /// Returns NIDT.
    pub const fn nidt(&self) -> NamespaceIdType {
        NamespaceIdType(self.nidt)
    }
}

open_enum! {
    /// NIDT: kinds of namespace identifier (Base 5.17.2.3, Figure 277).
    pub struct NamespaceIdType(u8) {
        /// IEEE extended unique identifier, 8 bytes.
        EUI64 = 1 => "EUI64",
        /// Namespace globally unique identifier, 16 bytes.
        NGUID = 2 => "NGUID",
        /// Universally unique identifier, 16 bytes.
        UUID = 3 => "UUID",
        /// Command set identifier, 1 byte.
        CSI = 4 => "CSI",
    }
}

/// Limits of the NVM command set in a controller (NVM 4.1.5.4, CNS 06h, CSI 00h).
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyNvmController {
    /// Byte 0, VSL: most data of one Verify, 2^n times the least memory page; 0 is no limit.
    pub vsl: u8,
    /// Byte 1, WZSL: most data of one Write Zeroes, 2^n times the least memory page; 0 is no limit.
    pub wzsl: u8,
    /// Byte 2, WUSL: most data of one Write Uncorrectable, 2^n times the least memory page; 0 is no limit.
    pub wusl: u8,
    /// Byte 3, DMRL: most ranges of one Dataset Management; 0 is no limit.
    pub dmrl: u8,
    /// Bytes 7:4, DMRSL: most logical blocks in one range of Dataset Management; 0 is no limit.
    pub dmrsl: U32,
    /// Bytes 15:8, DMSL: most logical blocks in one Dataset Management; 0 is no limit.
    pub dmsl: U64,
    _reserved_16: [u8; 4080],
}

const _: () = {
    assert!(size_of::<IdentifyNvmController>() == 4096);
    assert!(offset_of!(IdentifyNvmController, dmrl) == 3);
    assert!(offset_of!(IdentifyNvmController, dmrsl) == 4);
    assert!(offset_of!(IdentifyNvmController, dmsl) == 8);
};

/// What the NVM command set adds to a namespace (NVM 4.1.5.3, CNS 05h, CSI 00h).
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyNvmNamespace {
    /// Bytes 7:0, LBSTM: mask of the storage tag.
    pub lbstm: U64,
    /// Byte 8, PIC: what protection information there can be with storage tags.
    pub pic: u8,
    _reserved_9: [u8; 3],
    /// Bytes 267:12, ELBAF0 to ELBAF63: what the LBA formats have besides, [`ExtendedLbaFormat`].
    pub elbaf: [U32; 64],
    _reserved_268: [u8; 3828],
}

const _: () = {
    assert!(size_of::<IdentifyNvmNamespace>() == 4096);
    assert!(offset_of!(IdentifyNvmNamespace, elbaf) == 12);
};

impl IdentifyNvmNamespace {
    /// Returns what format `index`, 0 to 63, has besides.
    pub const fn elbaf(&self, index: usize) -> ExtendedLbaFormat {
        ExtendedLbaFormat::from_bits(self.elbaf[index].get())
    }
}

/// What an LBA format has besides (NVM Figure 101).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ExtendedLbaFormat {
    /// STS: bits of the storage tag.
    #[bits(7)]
    pub sts: u8,
    /// PIF: the guard; 0 is 16 bits, 1 is 32, 2 is 64.
    #[bits(2)]
    pub pif: u8,
    #[bits(23)]
    __: u32,
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::units::LbaSize;

    #[test]
    fn the_format_index_passes_over_the_metadata_bit() {
        let flbas = Flbas::from_bits(0b0101_0011);
        assert_eq!(flbas.format_index(), 0b10_0011);
        assert!(flbas.metadata_inline());
        for index in 0..64 {
            let set = flbas.with_format_index(index);
            assert_eq!(set.format_index(), usize::from(index));
            assert!(set.metadata_inline(), "{index}");
        }
    }

    #[test]
    fn sixteen_formats_need_only_the_lower_index_bits() {
        let mut id = IdentifyNamespace::new_zeroed();
        id.flbas = Flbas::new().with_format_index(0x21).into_bits();
        id.lbaf[1].lbads = 12;
        id.lbaf[0x21].lbads = 9;
        id.nlbaf = 15;
        assert_eq!(id.lba_format().lba_size(), Some(LbaSize::B4096));
        id.nulbaf = 48;
        assert_eq!(id.lba_format().lba_size(), Some(LbaSize::B512));
    }

    #[test]
    fn text_fields_lose_their_padding() {
        let mut id = IdentifyController::new_zeroed();
        id.sn = *b"S/N 1               ";
        id.fr = *b"1.0\0\0\0\0\0";
        id.subnqn[..7].copy_from_slice(b"nqn.abc");
        assert_eq!(id.serial_number(), "S/N 1");
        assert_eq!(id.firmware_revision(), "1.0");
        assert_eq!(id.subsystem_nqn(), "nqn.abc");
        assert_eq!(id.model_number(), "");
    }

    #[test]
    fn flag_bits_lie_where_the_standard_puts_them() {
        assert_eq!(Oacs::new().with_doorbell_buffer(true).into_bits(), 1 << 8);
        assert_eq!(Oacs::new().with_lockdown(true).into_bits(), 1 << 10);
        assert_eq!(Oncs::new().with_copy(true).into_bits(), 1 << 8);
        assert_eq!(Sgls::new().with_bit_bucket(true).into_bits(), 1 << 16);
        assert_eq!(Sgls::new().with_transport(true).into_bits(), 1 << 21);
        assert_eq!(Sgls::from_bits(0x0000_1200).descriptor_threshold(), 0x12);
        assert_eq!(Vwc::from_bits(0b111).flush_all(), Vwc::FLUSH_ALL_ACCEPTED);
        assert_eq!((EntrySize::from_bits(0x64).min(), EntrySize::from_bits(0x64).max()), (4, 6));
        assert_eq!(Frmw::from_bits(0x16).slots(), 3);
        assert_eq!(NsFeat::new().with_preferred_io(true).into_bits(), 1 << 4);
    }

    #[test]
    fn a_list_of_namespaces_ends_at_zero() {
        let mut list = ActiveNamespaceList::new_zeroed();
        list.nsid[0] = U32::new(1);
        list.nsid[1] = U32::new(7);
        list.nsid[3] = U32::new(9);
        let ids: Vec<_> = list.iter().collect();
        assert_eq!(ids, [NamespaceId(1), NamespaceId(7)]);
    }

    #[test]
    fn power_is_in_hundredths_or_ten_thousandths_of_a_watt() {
        let mut state = PowerState::new_zeroed();
        state.mp = U16::new(825);
        assert_eq!(state.max_power_uw(), 8_250_000);
        state.flags = PowerFlags::new().with_fine_scale(true).into_bits();
        assert_eq!(state.max_power_uw(), 82_500);
    }
}
