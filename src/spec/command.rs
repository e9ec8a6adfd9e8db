//! Submission queue entries: the common layout, opcodes, and the dwords of each command.
#![forbid(unsafe_code)]

use core::mem::offset_of;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A submission queue entry (Base 3.3.3.1, Figure 87).
#[repr(C, align(8))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Command {
    /// CDW0 bits 7:0, OPC: the opcode, [`AdminOpcode`] or [`NvmOpcode`].
    pub opcode: u8,
    /// CDW0 bits 15:8: fused operation and data pointer format.
    pub flags: CommandFlags,
    /// CDW0 bits 31:16, CID: the command identifier.
    pub cid: u16,
    /// CDW1, NSID: the namespace.
    pub nsid: u32,
    /// CDW2.
    pub cdw2: u32,
    /// CDW3.
    pub cdw3: u32,
    /// MPTR: where the metadata is.
    pub mptr: u64,
    /// DPTR: PRP1 and PRP2, or one SGL descriptor.
    pub dptr: [u64; 2],
    /// CDW10.
    pub cdw10: u32,
    /// CDW11.
    pub cdw11: u32,
    /// CDW12.
    pub cdw12: u32,
    /// CDW13.
    pub cdw13: u32,
    /// CDW14.
    pub cdw14: u32,
    /// CDW15.
    pub cdw15: u32,
}

const _: () = {
    assert!(size_of::<Command>() == 64);
    assert!(offset_of!(Command, cid) == 2);
    assert!(offset_of!(Command, nsid) == 4);
    assert!(offset_of!(Command, mptr) == 16);
    assert!(offset_of!(Command, dptr) == 24);
    assert!(offset_of!(Command, cdw10) == 40);
    assert!(offset_of!(Command, cdw15) == 60);
};

impl Command {
    /// Returns CDW10 and CDW11 as the 64-bit starting LBA of the I/O commands (NVM 3.2).
    #[inline]
    pub const fn slba(&self) -> u64 {
        self.cdw10 as u64 | (self.cdw11 as u64) << 32
    }

    /// Sets CDW10 and CDW11 to a starting LBA.
    #[inline]
    #[must_use]
    pub const fn with_slba(mut self, lba: u64) -> Self {
        self.cdw10 = lba as u32;
        self.cdw11 = (lba >> 32) as u32;
        self
    }
}

/// CDW0 bits 15:8 (Base Figure 86).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandFlags {
    /// FUSE: part of a fused operation.
    #[bits(2)]
    pub fuse: u8,
    #[bits(4)]
    __: u8,
    /// PSDT: what the data pointer is.
    #[bits(2)]
    pub psdt: u8,
}

/// PSDT: PRPs.
pub const PSDT_PRP: u8 = 0;
/// PSDT: an SGL; a metadata pointer, if any, is the address of one contiguous buffer.
pub const PSDT_SGL: u8 = 1;
/// PSDT: an SGL; a metadata pointer, if any, is the address of an SGL segment.
pub const PSDT_SGL_METADATA_SGL: u8 = 2;

open_enum! {
    /// Opcodes of the admin queue (Base 5, Figure 138).
    pub struct AdminOpcode(u8) {
        /// Delete I/O Submission Queue.
        DELETE_SUBMISSION_QUEUE = 0x00 => "Delete I/O Submission Queue",
        /// Create I/O Submission Queue.
        CREATE_SUBMISSION_QUEUE = 0x01 => "Create I/O Submission Queue",
        /// Get Log Page.
        GET_LOG_PAGE = 0x02 => "Get Log Page",
        /// Delete I/O Completion Queue.
        DELETE_COMPLETION_QUEUE = 0x04 => "Delete I/O Completion Queue",
        /// Create I/O Completion Queue.
        CREATE_COMPLETION_QUEUE = 0x05 => "Create I/O Completion Queue",
        /// Identify.
        IDENTIFY = 0x06 => "Identify",
        /// Abort.
        ABORT = 0x08 => "Abort",
        /// Set Features.
        SET_FEATURES = 0x09 => "Set Features",
        /// Get Features.
        GET_FEATURES = 0x0a => "Get Features",
        /// Asynchronous Event Request.
        ASYNC_EVENT_REQUEST = 0x0c => "Asynchronous Event Request",
        /// Namespace Management.
        NAMESPACE_MANAGEMENT = 0x0d => "Namespace Management",
        /// Firmware Commit.
        FIRMWARE_COMMIT = 0x10 => "Firmware Commit",
        /// Firmware Image Download.
        FIRMWARE_DOWNLOAD = 0x11 => "Firmware Image Download",
        /// Device Self-test.
        DEVICE_SELF_TEST = 0x14 => "Device Self-test",
        /// Namespace Attachment.
        NAMESPACE_ATTACHMENT = 0x15 => "Namespace Attachment",
        /// Keep Alive.
        KEEP_ALIVE = 0x18 => "Keep Alive",
        /// Directive Send.
        DIRECTIVE_SEND = 0x19 => "Directive Send",
        /// Directive Receive.
        DIRECTIVE_RECEIVE = 0x1a => "Directive Receive",
        /// Virtualization Management.
        VIRTUALIZATION_MANAGEMENT = 0x1c => "Virtualization Management",
        /// NVMe-MI Send.
        MI_SEND = 0x1d => "NVMe-MI Send",
        /// NVMe-MI Receive.
        MI_RECEIVE = 0x1e => "NVMe-MI Receive",
        /// Capacity Management.
        CAPACITY_MANAGEMENT = 0x20 => "Capacity Management",
        /// Lockdown.
        LOCKDOWN = 0x24 => "Lockdown",
        /// Doorbell Buffer Config.
        DOORBELL_BUFFER_CONFIG = 0x7c => "Doorbell Buffer Config",
        /// Fabrics commands.
        FABRICS = 0x7f => "Fabrics Commands",
        /// Format NVM.
        FORMAT_NVM = 0x80 => "Format NVM",
        /// Security Send.
        SECURITY_SEND = 0x81 => "Security Send",
        /// Security Receive.
        SECURITY_RECEIVE = 0x82 => "Security Receive",
        /// Sanitize.
        SANITIZE = 0x84 => "Sanitize",
        /// Get LBA Status.
        GET_LBA_STATUS = 0x86 => "Get LBA Status",
    }
}

open_enum! {
    /// Opcodes of the NVM command set (NVM 3, Figure 12; Base 7 for the common ones).
    pub struct NvmOpcode(u8) {
        /// Flush.
        FLUSH = 0x00 => "Flush",
        /// Write.
        WRITE = 0x01 => "Write",
        /// Read.
        READ = 0x02 => "Read",
        /// Write Uncorrectable.
        WRITE_UNCORRECTABLE = 0x04 => "Write Uncorrectable",
        /// Compare.
        COMPARE = 0x05 => "Compare",
        /// Write Zeroes.
        WRITE_ZEROES = 0x08 => "Write Zeroes",
        /// Dataset Management.
        DATASET_MANAGEMENT = 0x09 => "Dataset Management",
        /// Verify.
        VERIFY = 0x0c => "Verify",
        /// Reservation Register.
        RESERVATION_REGISTER = 0x0d => "Reservation Register",
        /// Reservation Report.
        RESERVATION_REPORT = 0x0e => "Reservation Report",
        /// Reservation Acquire.
        RESERVATION_ACQUIRE = 0x11 => "Reservation Acquire",
        /// Reservation Release.
        RESERVATION_RELEASE = 0x15 => "Reservation Release",
        /// Copy.
        COPY = 0x19 => "Copy",
    }
}

/// CDW10 of Create I/O Submission Queue and Create I/O Completion Queue (Base Figures 151 and 155).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct QueueSizeAndId {
    /// QID: the queue identifier.
    pub qid: u16,
    /// QSIZE: entries, less one.
    pub qsize: u16,
}

/// CDW11 of Create I/O Completion Queue (Base Figure 152).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CreateCompletionQueueDword11 {
    /// PC: physically contiguous.
    pub pc: bool,
    /// IEN: interrupts are enabled.
    pub ien: bool,
    #[bits(14)]
    __: u16,
    /// IV: the interrupt vector.
    pub iv: u16,
}

/// CDW11 of Create I/O Submission Queue (Base Figure 156).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CreateSubmissionQueueDword11 {
    /// PC: physically contiguous.
    pub pc: bool,
    /// QPRIO: the priority class under weighted round robin.
    #[bits(2)]
    pub qprio: u8,
    #[bits(13)]
    __: u16,
    /// CQID: the completion queue.
    pub cqid: u16,
}

/// CDW10 of Identify (Base Figure 273).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IdentifyDword10 {
    /// CNS: the structure that is asked for, a [`Cns`].
    pub cns: u8,
    __: u8,
    /// CNTID: the controller that is asked about.
    pub cntid: u16,
}

/// CDW11 of Identify (Base Figure 274).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IdentifyDword11 {
    /// The CNS-specific identifier.
    pub cns_specific: u16,
    __: u8,
    /// CSI: the command set that is asked about; 0 is NVM.
    pub csi: u8,
}

open_enum! {
    /// Controller or Namespace Structure: what Identify returns (Base Figure 275).
    pub struct Cns(u8) {
        /// One namespace.
        NAMESPACE = 0x00 => "Identify Namespace",
        /// The controller.
        CONTROLLER = 0x01 => "Identify Controller",
        /// Active namespaces above the NSID given.
        ACTIVE_NAMESPACES = 0x02 => "Active Namespace ID list",
        /// A namespace's identifiers.
        NAMESPACE_DESCRIPTORS = 0x03 => "Namespace Identification Descriptor list",
        /// NVM sets.
        NVM_SETS = 0x04 => "NVM Set List",
        /// One namespace, of the I/O command set.
        COMMAND_SET_NAMESPACE = 0x05 => "I/O Command Set specific Identify Namespace",
        /// The controller, of the I/O command set.
        COMMAND_SET_CONTROLLER = 0x06 => "I/O Command Set specific Identify Controller",
        /// Active namespaces, of the I/O command set.
        COMMAND_SET_ACTIVE_NAMESPACES = 0x07 => "I/O Command Set specific Active Namespace ID list",
        /// One namespace, independent of command sets.
        INDEPENDENT_NAMESPACE = 0x08 => "I/O Command Set Independent Identify Namespace",
        /// Allocated namespaces above the NSID given.
        ALLOCATED_NAMESPACES = 0x10 => "Allocated Namespace ID list",
        /// One allocated namespace.
        ALLOCATED_NAMESPACE = 0x11 => "Identify Allocated Namespace",
        /// Controllers attached to a namespace.
        ATTACHED_CONTROLLERS = 0x12 => "Namespace Attached Controller list",
        /// Controllers.
        CONTROLLERS = 0x13 => "Controller list",
        /// I/O command sets.
        COMMAND_SETS = 0x1c => "Identify I/O Command Set",
    }
}

/// CDW10 of Get Log Page (Base Figure 197).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GetLogPageDword10 {
    /// LID: the log page.
    pub lid: u8,
    /// LSP: log specific parameter.
    #[bits(7)]
    pub lsp: u8,
    /// RAE: keep the event that announced the log.
    pub rae: bool,
    /// NUMDL: low half of the number of dwords, less one.
    pub numdl: u16,
}

/// CDW11 of Get Log Page (Base Figure 198).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GetLogPageDword11 {
    /// NUMDU: high half of the number of dwords, less one.
    pub numdu: u16,
    /// LSI: log specific identifier.
    pub lsi: u16,
}

/// CDW10 of Set Features (Base Figure 316).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SetFeaturesDword10 {
    /// FID: the feature.
    pub fid: u8,
    #[bits(23)]
    __: u32,
    /// SV: keep the value through a reset.
    pub sv: bool,
}

/// CDW10 of Get Features (Base Figure 192).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GetFeaturesDword10 {
    /// FID: the feature.
    pub fid: u8,
    /// SEL: current, default, saved or capabilities.
    #[bits(3)]
    pub sel: u8,
    #[bits(21)]
    __: u32,
}

/// CDW10 of Abort (Base Figure 141).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AbortDword10 {
    /// SQID: the submission queue of the command.
    pub sqid: u16,
    /// CID: the command.
    pub cid: u16,
}

/// CDW12 of Read, Write, Compare, Verify, Write Zeroes and Write Uncorrectable (NVM Figures 49, 67 …).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IoDword12 {
    /// NLB: blocks, less one.
    pub nlb: u16,
    __: u8,
    /// STC: storage tag check.
    pub stc: bool,
    /// DEAC: Write Zeroes may deallocate.
    pub deac: bool,
    /// PRINFO: protection information.
    #[bits(4)]
    pub prinfo: u8,
    /// FUA: through the volatile cache.
    pub fua: bool,
    /// LR: limited retry.
    pub lr: bool,
}

/// CDW10 of Dataset Management (NVM Figure 39).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DsmDword10 {
    /// NR: ranges, less one.
    pub nr: u8,
    #[bits(24)]
    __: u32,
}

/// CDW11 of Dataset Management (NVM Figure 40).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DsmDword11 {
    /// IDR: integral dataset for read.
    pub idr: bool,
    /// IDW: integral dataset for write.
    pub idw: bool,
    /// AD: deallocate.
    pub ad: bool,
    #[bits(29)]
    __: u32,
}

/// One range of Dataset Management (NVM Figure 41).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DsmRange {
    /// Context attributes: hints.
    pub attributes: u32,
    /// Length in blocks; not zero-based.
    pub blocks: u32,
    /// Starting LBA.
    pub slba: u64,
}

const _: () = {
    assert!(size_of::<DsmRange>() == 16);
    assert!(offset_of!(DsmRange, slba) == 8);
};

/// CDW12 of Copy (NVM Figure 29).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CopyDword12 {
    /// NR: source ranges, less one.
    pub nr: u8,
    /// CDFT: format of the source ranges.
    #[bits(4)]
    pub format: u8,
    /// PRINFOR: protection information when reading.
    #[bits(4)]
    pub prinfor: u8,
    #[bits(4)]
    __: u8,
    /// DTYPE: directive.
    #[bits(4)]
    pub dtype: u8,
    #[bits(2)]
    __: u8,
    /// PRINFOW: protection information when writing.
    #[bits(4)]
    pub prinfow: u8,
    /// FUA.
    pub fua: bool,
    /// LR.
    pub lr: bool,
}

/// One source range of Copy, format 0h (NVM Figure 33).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CopyRange {
    /// Reserved.
    pub reserved0: u64,
    /// Starting LBA.
    pub slba: u64,
    /// Blocks, less one.
    pub nlb: u16,
    /// Reserved.
    pub reserved18: [u8; 6],
    /// Expected initial logical block reference tag.
    pub eilbrt: u32,
    /// Expected logical block application tag and its mask.
    pub elbat: u32,
}

const _: () = {
    assert!(size_of::<CopyRange>() == 32);
    assert!(offset_of!(CopyRange, slba) == 8);
    assert!(offset_of!(CopyRange, nlb) == 16);
    assert!(offset_of!(CopyRange, eilbrt) == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_the_64_bytes_of_the_standard() {
        let mut command = Command {
            opcode: NvmOpcode::READ.0,
            cid: 0x1234,
            nsid: 1,
            dptr: [0x1_0000_1000, 0x1_0000_2000],
            cdw12: IoDword12::new().with_nlb(15).with_fua(true).into_bits(),
            ..Command::default()
        };
        command = command.with_slba(0x0000_0002_8000_0010);
        let mut expected = [0u8; 64];
        expected[..8].copy_from_slice(&[0x02, 0, 0x34, 0x12, 1, 0, 0, 0]);
        expected[24..32].copy_from_slice(&[0, 0x10, 0, 0, 1, 0, 0, 0]);
        expected[32..40].copy_from_slice(&[0, 0x20, 0, 0, 1, 0, 0, 0]);
        expected[40..48].copy_from_slice(&[0x10, 0, 0, 0x80, 2, 0, 0, 0]);
        expected[48..52].copy_from_slice(&[15, 0, 0, 0x40]);
        assert_eq!(command.as_bytes(), expected);
    }

    #[test]
    fn unknown_opcodes_print_as_numbers() {
        assert_eq!(NvmOpcode(0x02).to_string(), "Read");
        assert_eq!(format!("{:?}", NvmOpcode(0xc7)), "NvmOpcode(0xc7)");
    }
}
