//! The Identify Controller data structure and the bitfields in it (Base 5.17.2.1).
#![forbid(unsafe_code)]

use core::mem::offset_of;
use std::borrow::Cow;

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::PowerState;
use crate::spec::erase::{Fna, SanitizeCapabilities};

/// What a controller is and can do (Base 5.17.2.1, CNS 01h).
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyController {
    /// Bytes 1:0, VID: the vendor, as assigned by the PCI SIG.
    pub vid: U16,
    /// Bytes 3:2, SSVID: the vendor of the subsystem.
    pub ssvid: U16,
    /// Bytes 23:4, SN: serial number, ASCII, padded with spaces.
    pub sn: [u8; 20],
    /// Bytes 63:24, MN: model number, ASCII, padded with spaces.
    pub mn: [u8; 40],
    /// Bytes 71:64, FR: revision of the active firmware, ASCII, padded with spaces.
    pub fr: [u8; 8],
    /// Byte 72, RAB: recommended arbitration burst, as a power of two of commands.
    pub rab: u8,
    /// Bytes 75:73, IEEE: organizationally unique identifier of the vendor, least byte first.
    pub ieee: [u8; 3],
    /// Byte 76, CMIC: paths and sharing, [`Cmic`].
    pub cmic: u8,
    /// Byte 77, MDTS: most data of one command, 2^n times the least memory page; 0 is no limit.
    pub mdts: u8,
    /// Bytes 79:78, CNTLID: the controller in its subsystem.
    pub cntlid: U16,
    /// Bytes 83:80, VER: the version of the standard, as in register VS.
    pub ver: U32,
    /// Bytes 87:84, RTD3R: usual time to resume from D3cold, in microseconds; 0 is not reported.
    pub rtd3r: U32,
    /// Bytes 91:88, RTD3E: usual time to enter D3cold, in microseconds; 0 is not reported.
    pub rtd3e: U32,
    /// Bytes 95:92, OAES: optional asynchronous events, at the bits of the feature that enables them.
    pub oaes: U32,
    /// Bytes 99:96, CTRATT: attributes; bit 15 says that there may be more than 16 LBA formats.
    pub ctratt: U32,
    /// Bytes 101:100, RRLS: one bit for each read recovery level.
    pub rrls: U16,
    _reserved_102: [u8; 9],
    /// Byte 111, CNTRLTYPE: [`ControllerType`].
    pub cntrltype: u8,
    /// Bytes 127:112, FGUID: globally unique identifier of the field-replaceable unit.
    pub fguid: [u8; 16],
    /// Bytes 129:128, CRDT1: command retry delay 1, in units of 100 milliseconds.
    pub crdt1: U16,
    /// Bytes 131:130, CRDT2: command retry delay 2, in units of 100 milliseconds.
    pub crdt2: U16,
    /// Bytes 133:132, CRDT3: command retry delay 3, in units of 100 milliseconds.
    pub crdt3: U16,
    _reserved_134: [u8; 119],
    /// Byte 253, NVMSR: whether the subsystem is a storage device (bit 0) or an enclosure (bit 1).
    pub nvmsr: u8,
    /// Byte 254, VWCI: writes left to the vital product data (bits 6:0), valid if bit 7 is set.
    pub vwci: u8,
    /// Byte 255, MEC: management endpoints on the management bus (bit 0) and PCI Express (bit 1).
    pub mec: u8,
    /// Bytes 257:256, OACS: optional admin commands, [`Oacs`].
    pub oacs: U16,
    /// Byte 258, ACL: most Abort commands outstanding, zero-based.
    pub acl: u8,
    /// Byte 259, AERL: most Asynchronous Event Requests outstanding, zero-based.
    pub aerl: u8,
    /// Byte 260, FRMW: firmware slots and updates, [`Frmw`].
    pub frmw: u8,
    /// Byte 261, LPA: optional log pages and their options, [`Lpa`].
    pub lpa: u8,
    /// Byte 262, ELPE: entries of the error log, zero-based.
    pub elpe: u8,
    /// Byte 263, NPSS: power states, zero-based.
    pub npss: u8,
    /// Byte 264, AVSCC: bit 0 says that vendor specific admin commands use the common format.
    pub avscc: u8,
    /// Byte 265, APSTA: bit 0 says that autonomous power state transitions exist.
    pub apsta: u8,
    /// Bytes 267:266, WCTEMP: composite temperature of a warning, in kelvins; 0 is not reported.
    pub wctemp: U16,
    /// Bytes 269:268, CCTEMP: critical composite temperature, in kelvins; 0 is not reported.
    pub cctemp: U16,
    /// Bytes 271:270, MTFA: longest pause to activate firmware, in units of 100 milliseconds.
    pub mtfa: U16,
    /// Bytes 275:272, HMPRE: preferred host memory buffer, in units of 4 KiB; 0 is none.
    pub hmpre: U32,
    /// Bytes 279:276, HMMIN: least host memory buffer of use, in units of 4 KiB.
    pub hmmin: U32,
    /// Bytes 295:280, TNVMCAP: total capacity, in bytes.
    pub tnvmcap: U128,
    /// Bytes 311:296, UNVMCAP: capacity of no namespace, in bytes.
    pub unvmcap: U128,
    /// Bytes 315:312, RPMBS: replay protected memory blocks.
    pub rpmbs: U32,
    /// Bytes 317:316, EDSTT: usual time of an extended self-test, in minutes.
    pub edstt: U16,
    /// Byte 318, DSTO: bit 0 says that the subsystem runs one self-test at a time.
    pub dsto: u8,
    /// Byte 319, FWUG: alignment of firmware image pieces, in units of 4 KiB; 0 is not reported, 0xff is none.
    pub fwug: u8,
    /// Bytes 321:320, KAS: granularity of the keep alive timer, in units of 100 milliseconds; 0 is no timer.
    pub kas: U16,
    /// Bytes 323:322, HCTMA: bit 0 says that the host may control thermal management.
    pub hctma: U16,
    /// Bytes 325:324, MNTMT: least thermal management temperature, in kelvins.
    pub mntmt: U16,
    /// Bytes 327:326, MXTMT: highest thermal management temperature, in kelvins.
    pub mxtmt: U16,
    /// Bytes 331:328, SANICAP: what a sanitize can be, [`SanitizeCapabilities`].
    pub sanicap: U32,
    /// Bytes 335:332, HMMINDS: least entry of the host memory buffer, in units of 4 KiB; 0 is no limit.
    pub hmminds: U32,
    /// Bytes 337:336, HMMAXD: most entries of the host memory buffer; 0 is no limit.
    pub hmmaxd: U16,
    /// Bytes 339:338, NSETIDMAX: highest NVM set identifier.
    pub nsetidmax: U16,
    /// Bytes 341:340, ENDGIDMAX: highest endurance group identifier.
    pub endgidmax: U16,
    /// Byte 342, ANATT: longest transition between namespace access states, in seconds.
    pub anatt: u8,
    /// Byte 343, ANACAP: the namespace access states that may be reported.
    pub anacap: u8,
    /// Bytes 347:344, ANAGRPMAX: highest access group identifier.
    pub anagrpmax: U32,
    /// Bytes 351:348, NANAGRPID: number of access groups.
    pub nanagrpid: U32,
    /// Bytes 355:352, PELS: most persistent event log, in units of 64 KiB.
    pub pels: U32,
    /// Bytes 357:356, DOMAINID: the domain of the controller; 0 is a subsystem of one domain.
    pub domainid: U16,
    _reserved_358: [u8; 10],
    /// Bytes 383:368, MEGCAP: largest endurance group that can be made, in bytes.
    pub megcap: U128,
    _reserved_384: [u8; 128],
    /// Byte 512, SQES: sizes of a submission queue entry, [`EntrySize`].
    pub sqes: u8,
    /// Byte 513, CQES: sizes of a completion queue entry, [`EntrySize`].
    pub cqes: u8,
    /// Bytes 515:514, MAXCMD: most commands wanted in one queue; 0 is not reported (mandatory over fabrics).
    pub maxcmd: U16,
    /// Bytes 519:516, NN: highest namespace identifier.
    pub nn: U32,
    /// Bytes 521:520, ONCS: optional I/O commands, [`Oncs`].
    pub oncs: U16,
    /// Bytes 523:522, FUSES: bit 0 says that Compare and Write may be fused.
    pub fuses: U16,
    /// Byte 524, FNA: what Format NVM concerns, [`Fna`].
    pub fna: u8,
    /// Byte 525, VWC: the volatile write cache, [`Vwc`].
    pub vwc: u8,
    /// Bytes 527:526, AWUN: write that is atomic to other commands, in logical blocks, zero-based.
    pub awun: U16,
    /// Bytes 529:528, AWUPF: write that is atomic to power failure, in logical blocks, zero-based.
    pub awupf: U16,
    /// Byte 530, ICSVSCC: bit 0 says that vendor specific I/O commands use the common format.
    pub icsvscc: u8,
    /// Byte 531, NWPC: kinds of namespace write protection.
    pub nwpc: u8,
    /// Bytes 533:532, ACWU: fused Compare and Write that is atomic, in logical blocks, zero-based.
    pub acwu: U16,
    /// Bytes 535:534, CDFS: one bit for each descriptor format of Copy.
    pub cdfs: U16,
    /// Bytes 539:536, SGLS: what scatter gather lists may be, [`Sgls`].
    pub sgls: U32,
    /// Bytes 543:540, MNAN: most namespaces; 0 is NN.
    pub mnan: U32,
    /// Bytes 559:544, MAXDNA: most namespace attachments in a domain; 0 is no limit.
    pub maxdna: U128,
    /// Bytes 563:560, MAXCNA: most namespaces attached to this controller; 0 is no limit.
    pub maxcna: U32,
    _reserved_564: [u8; 204],
    /// Bytes 1023:768, SUBNQN: qualified name of the subsystem, UTF-8, ended by NUL.
    pub subnqn: [u8; 256],
    _reserved_1024: [u8; 768],
    /// Bytes 1795:1792, IOCCSZ: fabrics, most bytes of an I/O command capsule, in units of 16 bytes.
    pub ioccsz: U32,
    /// Bytes 1799:1796, IORCSZ: fabrics, most bytes of an I/O response capsule, in units of 16 bytes.
    pub iorcsz: U32,
    /// Bytes 1801:1800, ICDOFF: fabrics, where data starts in a capsule, in units of 16 bytes.
    pub icdoff: U16,
    /// Byte 1802, FCATT: fabrics, attributes; bit 0 is clear for dynamic controllers.
    pub fcatt: u8,
    /// Byte 1803, MSDBD: fabrics, most SGL data blocks in a command; 0 is no limit.
    pub msdbd: u8,
    /// Bytes 1805:1804, OFCS: fabrics, bit 0 is the Disconnect command.
    pub ofcs: U16,
    _reserved_1806: [u8; 242],
    /// Bytes 3071:2048, PSD0 to PSD31: the power states, of which NPSS + 1 mean something.
    pub psd: [PowerState; 32],
    /// Bytes 4095:3072, VS: the vendor's own.
    pub vs: [u8; 1024],
}

const _: () = {
    assert!(size_of::<IdentifyController>() == 4096);
    assert!(offset_of!(IdentifyController, mn) == 24);
    assert!(offset_of!(IdentifyController, fr) == 64);
    assert!(offset_of!(IdentifyController, mdts) == 77);
    assert!(offset_of!(IdentifyController, ver) == 80);
    assert!(offset_of!(IdentifyController, rrls) == 100);
    assert!(offset_of!(IdentifyController, cntrltype) == 111);
    assert!(offset_of!(IdentifyController, crdt1) == 128);
    assert!(offset_of!(IdentifyController, nvmsr) == 253);
    assert!(offset_of!(IdentifyController, oacs) == 256);
    assert!(offset_of!(IdentifyController, wctemp) == 266);
    assert!(offset_of!(IdentifyController, tnvmcap) == 280);
    assert!(offset_of!(IdentifyController, rpmbs) == 312);
    assert!(offset_of!(IdentifyController, sanicap) == 328);
    assert!(offset_of!(IdentifyController, anatt) == 342);
    assert!(offset_of!(IdentifyController, domainid) == 356);
    assert!(offset_of!(IdentifyController, megcap) == 368);
    assert!(offset_of!(IdentifyController, sqes) == 512);
    assert!(offset_of!(IdentifyController, nn) == 516);
    assert!(offset_of!(IdentifyController, oncs) == 520);
    assert!(offset_of!(IdentifyController, vwc) == 525);
    assert!(offset_of!(IdentifyController, awupf) == 528);
    assert!(offset_of!(IdentifyController, sgls) == 536);
    assert!(offset_of!(IdentifyController, maxcna) == 560);
    assert!(offset_of!(IdentifyController, subnqn) == 768);
    assert!(offset_of!(IdentifyController, ioccsz) == 1792);
    assert!(offset_of!(IdentifyController, ofcs) == 1804);
    assert!(offset_of!(IdentifyController, psd) == 2048);
    assert!(offset_of!(IdentifyController, vs) == 3072);
};

impl IdentifyController {
    /// Returns SN without its padding.
    pub fn serial_number(&self) -> Cow<'_, str> {
        padded_text(&self.sn)
    }

    /// Returns MN without its padding.
    pub fn model_number(&self) -> Cow<'_, str> {
        padded_text(&self.mn)
    }

    /// Returns FR without its padding.
    pub fn firmware_revision(&self) -> Cow<'_, str> {
        padded_text(&self.fr)
    }

    /// Returns SUBNQN up to its NUL.
    pub fn subsystem_nqn(&self) -> Cow<'_, str> {
        padded_text(&self.subnqn)
    }

    /// Returns CNTRLTYPE.
    pub const fn cntrltype(&self) -> ControllerType {
        ControllerType(self.cntrltype)
    }

    /// Returns CMIC.
    pub const fn cmic(&self) -> Cmic {
        Cmic::from_bits(self.cmic)
    }

    /// Returns OACS.
    pub const fn oacs(&self) -> Oacs {
        Oacs::from_bits(self.oacs.get())
    }

    /// Returns FRMW.
    pub const fn frmw(&self) -> Frmw {
        Frmw::from_bits(self.frmw)
    }

    /// Returns LPA.
    pub const fn lpa(&self) -> Lpa {
        Lpa::from_bits(self.lpa)
    }

    /// Returns SQES.
    pub const fn sqes(&self) -> EntrySize {
        EntrySize::from_bits(self.sqes)
    }

    /// Returns CQES.
    pub const fn cqes(&self) -> EntrySize {
        EntrySize::from_bits(self.cqes)
    }

    /// Returns ONCS.
    pub const fn oncs(&self) -> Oncs {
        Oncs::from_bits(self.oncs.get())
    }

    /// Returns SANICAP.
    pub const fn sanicap(&self) -> SanitizeCapabilities {
        SanitizeCapabilities::from_bits(self.sanicap.get())
    }

    /// Returns FNA.
    pub const fn fna(&self) -> Fna {
        Fna::from_bits(self.fna)
    }

    /// Says whether LBA formats may have guards of more than 16 bits, and storage tags (CTRATT bit 15, ELBAS).
    pub const fn has_extended_formats(&self) -> bool {
        self.ctratt.get() & 1 << 15 != 0
    }

    /// Returns VWC.
    pub const fn vwc(&self) -> Vwc {
        Vwc::from_bits(self.vwc)
    }

    /// Returns SGLS.
    pub const fn sgls(&self) -> Sgls {
        Sgls::from_bits(self.sgls.get())
    }
}

/// Returns the text up to a NUL, without spaces around it.
///
/// The standard pads with spaces; devices that pad with NUL are common enough to read both.
pub(in crate::spec) fn padded_text(bytes: &[u8]) -> Cow<'_, str> {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text.trim_ascii())
}

open_enum! {
    /// CNTRLTYPE: what kind of controller it is (Base 3.1.2).
    pub struct ControllerType(u8) {
        /// Not reported, by controllers older than 1.4.
        NOT_REPORTED = 0 => "not reported",
        /// Reads and writes.
        IO = 1 => "I/O controller",
        /// Tells of other subsystems.
        DISCOVERY = 2 => "Discovery controller",
        /// Manages, without I/O queues.
        ADMINISTRATIVE = 3 => "Administrative controller",
    }
}

/// CMIC: paths and sharing (Base 5.17.2.1, byte 76).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Cmic {
    /// The subsystem may have more than one port.
    pub multiple_ports: bool,
    /// The subsystem may have more than one controller.
    pub multiple_controllers: bool,
    /// The controller is an SR-IOV virtual function.
    pub virtual_function: bool,
    /// Asymmetric namespace access is reported.
    pub asymmetric_access: bool,
    #[bits(4)]
    __: u8,
}

/// OACS: optional admin commands (Base 5.17.2.1, bytes 257:256).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Oacs {
    /// Security Send and Security Receive.
    pub security: bool,
    /// Format NVM.
    pub format: bool,
    /// Firmware Commit and Firmware Image Download.
    pub firmware: bool,
    /// Namespace Management and Namespace Attachment.
    pub namespace_management: bool,
    /// Device Self-test.
    pub self_test: bool,
    /// Directive Send and Directive Receive.
    pub directives: bool,
    /// NVMe-MI Send and NVMe-MI Receive.
    pub management_interface: bool,
    /// Virtualization Management.
    pub virtualization: bool,
    /// Doorbell Buffer Config.
    pub doorbell_buffer: bool,
    /// Get LBA Status.
    pub lba_status: bool,
    /// Lockdown.
    pub lockdown: bool,
    #[bits(5)]
    __: u8,
}

/// FRMW: firmware slots and updates (Base 5.17.2.1, byte 260).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Frmw {
    /// Slot 1 is read-only.
    pub slot_1_read_only: bool,
    /// How many slots there are, 1 to 7.
    #[bits(3)]
    pub slots: u8,
    /// An image can become active without a reset.
    pub activate_without_reset: bool,
    /// Overlapping updates are detected.
    pub overlap_detection: bool,
    #[bits(2)]
    __: u8,
}

/// LPA: optional log pages and their options (Base 5.17.2.1, byte 261).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Lpa {
    /// The SMART log exists for each namespace.
    pub smart_per_namespace: bool,
    /// Commands Supported and Effects exists.
    pub command_effects: bool,
    /// Get Log Page takes an offset and a 32-bit length.
    pub extended_data: bool,
    /// The telemetry logs and their events exist.
    pub telemetry: bool,
    /// The persistent event log exists.
    pub persistent_event: bool,
    /// Supported Log Pages and the effects of features and management commands exist.
    pub supported_log_pages: bool,
    /// Telemetry has data area 4.
    pub telemetry_area_4: bool,
    __: bool,
}

/// SQES, CQES: sizes of a queue entry, as powers of two of bytes (Base 5.17.2.1, bytes 512 and 513).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct EntrySize {
    /// The size that must be used: 6 for submission, 4 for completion.
    #[bits(4)]
    pub min: u8,
    /// The largest size that may be used.
    #[bits(4)]
    pub max: u8,
}

/// ONCS: optional I/O commands and behaviour (Base 5.17.2.1, bytes 521:520).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Oncs {
    /// Compare.
    pub compare: bool,
    /// Write Uncorrectable.
    pub write_uncorrectable: bool,
    /// Dataset Management.
    pub dataset_management: bool,
    /// Write Zeroes.
    pub write_zeroes: bool,
    /// Features can be saved, and Get Features takes Select.
    pub save_and_select: bool,
    /// Reservations.
    pub reservations: bool,
    /// The Timestamp feature.
    pub timestamp: bool,
    /// Verify.
    pub verify: bool,
    /// Copy.
    pub copy: bool,
    #[bits(7)]
    __: u8,
}

/// VWC: the volatile write cache (Base 5.17.2.1, byte 525).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Vwc {
    /// There is one: what was written is safe only after Flush.
    pub present: bool,
    /// Flush of all namespaces at once: [`FLUSH_ALL_UNKNOWN`](Self::FLUSH_ALL_UNKNOWN) and its neighbours.
    #[bits(2)]
    pub flush_all: u8,
    #[bits(5)]
    __: u8,
}

impl Vwc {
    /// The controller, older than 1.4, does not say.
    pub const FLUSH_ALL_UNKNOWN: u8 = 0;
    /// Flush of all namespaces at once is refused.
    pub const FLUSH_ALL_REFUSED: u8 = 2;
    /// Flush of all namespaces at once is accepted.
    pub const FLUSH_ALL_ACCEPTED: u8 = 3;
}

/// SGLS: what scatter gather lists may be (Base 5.17.2.1, bytes 539:536).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Sgls {
    /// Whether I/O commands take them: [`UNSUPPORTED`](Self::UNSUPPORTED) and its neighbours.
    #[bits(2)]
    pub support: u8,
    /// Keyed data blocks.
    pub keyed: bool,
    #[bits(5)]
    __: u8,
    /// Recommended most descriptors of one command; 0 is not reported.
    pub descriptor_threshold: u8,
    /// Bit buckets.
    pub bit_bucket: bool,
    /// A contiguous metadata buffer may start at any byte.
    pub metadata_byte_aligned: bool,
    /// A list may be longer than the data.
    pub longer_than_data: bool,
    /// The metadata pointer may name an SGL segment.
    pub metadata_sgl: bool,
    /// Addresses may be offsets.
    pub offset_address: bool,
    /// Transport data blocks.
    pub transport: bool,
    #[bits(10)]
    __: u16,
}

impl Sgls {
    /// None.
    pub const UNSUPPORTED: u8 = 0;
    /// Supported, at any byte.
    pub const BYTE_ALIGNED: u8 = 1;
    /// Supported, at multiples of four bytes.
    pub const DWORD_ALIGNED: u8 = 2;
}
