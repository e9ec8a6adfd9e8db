//! Controller properties: the registers at the start of BAR0 (Base 3.1.3).
#![forbid(unsafe_code)]

use bitfield_struct::bitfield;

use crate::units::QueueId;

/// Register offsets in bytes (Base 3.1.3, Figure 35).
pub mod offset {
    /// Controller Capabilities, 64 bits.
    pub const CAP: u32 = 0x00;
    /// Version.
    pub const VS: u32 = 0x08;
    /// Interrupt Mask Set.
    pub const INTMS: u32 = 0x0c;
    /// Interrupt Mask Clear.
    pub const INTMC: u32 = 0x10;
    /// Controller Configuration.
    pub const CC: u32 = 0x14;
    /// Controller Status.
    pub const CSTS: u32 = 0x1c;
    /// NVM Subsystem Reset.
    pub const NSSR: u32 = 0x20;
    /// Admin Queue Attributes.
    pub const AQA: u32 = 0x24;
    /// Admin Submission Queue Base Address, 64 bits.
    pub const ASQ: u32 = 0x28;
    /// Admin Completion Queue Base Address, 64 bits.
    pub const ACQ: u32 = 0x30;
    /// Controller Memory Buffer Location.
    pub const CMBLOC: u32 = 0x38;
    /// Controller Memory Buffer Size.
    pub const CMBSZ: u32 = 0x3c;
    /// Controller Ready Timeouts.
    pub const CRTO: u32 = 0x68;
    /// The first doorbell.
    pub const DOORBELLS: u32 = 0x1000;
}

/// What is written to NSSR to reset the subsystem: "NVMe" (Base 3.1.3.7).
pub const SUBSYSTEM_RESET: u32 = 0x4e56_4d65;

/// What every register reads as when there is no device behind the bus.
pub const ALL_ONES: u32 = u32::MAX;

/// Controller Capabilities (Base 3.1.3.1, Figure 36).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Capabilities {
    /// MQES: entries of the largest I/O queue, less one.
    pub mqes: u16,
    /// CQR: queues have to be physically contiguous.
    pub cqr: bool,
    /// AMS: arbitration mechanisms beside round robin.
    #[bits(2)]
    pub ams: u8,
    #[bits(5)]
    __: u8,
    /// TO: worst time to become ready, in units of 500 ms.
    pub to: u8,
    /// DSTRD: doorbells lie 4 << DSTRD bytes apart.
    #[bits(4)]
    pub dstrd: u8,
    /// NSSRS: the subsystem can be reset.
    pub nssrs: bool,
    /// CSS: command sets; bit 0 is the NVM command set, bit 6 "one or more", bit 7 none.
    pub css: u8,
    /// BPS: there are boot partitions.
    pub bps: bool,
    /// CPS: power scope.
    #[bits(2)]
    pub cps: u8,
    /// MPSMIN: the smallest page is 4096 << MPSMIN bytes.
    #[bits(4)]
    pub mpsmin: u8,
    /// MPSMAX: the largest page is 4096 << MPSMAX bytes.
    #[bits(4)]
    pub mpsmax: u8,
    /// PMRS: there is a persistent memory region.
    pub pmrs: bool,
    /// CMBS: there is a controller memory buffer.
    pub cmbs: bool,
    /// NSSS: the subsystem can be shut down.
    pub nsss: bool,
    /// CRMS: ready modes; bit 0 with media, bit 1 independent of media.
    #[bits(2)]
    pub crms: u8,
    #[bits(3)]
    __: u8,
}

/// Version (Base 3.1.3.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// TER: tertiary number.
    pub tertiary: u8,
    /// MNR: minor number.
    pub minor: u8,
    /// MJR: major number.
    pub major: u16,
}

/// Controller Configuration (Base 3.1.3.5, Figure 46).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Configuration {
    /// EN: the controller processes commands.
    pub en: bool,
    #[bits(3)]
    __: u8,
    /// CSS: the I/O command set; 0 is the NVM command set, 6 every supported one.
    #[bits(3)]
    pub css: u8,
    /// MPS: the page is 4096 << MPS bytes.
    #[bits(4)]
    pub mps: u8,
    /// AMS: the arbitration mechanism; 0 is round robin.
    #[bits(3)]
    pub ams: u8,
    /// SHN: shutdown notification.
    #[bits(2)]
    pub shn: u8,
    /// IOSQES: an I/O submission entry is 2^IOSQES bytes; 6 for the NVM command set.
    #[bits(4)]
    pub iosqes: u8,
    /// IOCQES: an I/O completion entry is 2^IOCQES bytes; 4 for the NVM command set.
    #[bits(4)]
    pub iocqes: u8,
    /// CRIME: ready independent of media.
    pub crime: bool,
    #[bits(7)]
    __: u8,
}

/// CC.SHN: no shutdown.
pub const SHN_NONE: u8 = 0;
/// CC.SHN: normal shutdown.
pub const SHN_NORMAL: u8 = 1;
/// CC.SHN: abrupt shutdown.
pub const SHN_ABRUPT: u8 = 2;

/// CC.IOSQES of the NVM command set: 64-byte submission entries.
pub const IOSQES_NVM: u8 = 6;
/// CC.IOCQES of the NVM command set: 16-byte completion entries.
pub const IOCQES_NVM: u8 = 4;

/// Controller Status (Base 3.1.3.6, Figure 47).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ControllerStatus {
    /// RDY: the controller is ready for commands.
    pub rdy: bool,
    /// CFS: a fatal error that only a reset clears.
    pub cfs: bool,
    /// SHST: shutdown status.
    #[bits(2)]
    pub shst: u8,
    /// NSSRO: a subsystem reset occurred.
    pub nssro: bool,
    /// PP: processing is paused.
    pub pp: bool,
    /// ST: the shutdown is one of the subsystem.
    pub st: bool,
    #[bits(25)]
    __: u32,
}

/// CSTS.SHST: normal operation.
pub const SHST_NORMAL: u8 = 0;
/// CSTS.SHST: shutdown is under way.
pub const SHST_OCCURRING: u8 = 1;
/// CSTS.SHST: shutdown is complete.
pub const SHST_COMPLETE: u8 = 2;

/// Admin Queue Attributes (Base 3.1.3.8, Figure 49).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AdminQueueAttributes {
    /// ASQS: entries of the admin submission queue, less one.
    #[bits(12)]
    pub asqs: u16,
    #[bits(4)]
    __: u8,
    /// ACQS: entries of the admin completion queue, less one.
    #[bits(12)]
    pub acqs: u16,
    #[bits(4)]
    __: u8,
}

/// Controller Ready Timeouts (Base 3.1.3.20).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ReadyTimeouts {
    /// CRWMT: ready with media, in units of 500 ms.
    pub crwmt: u16,
    /// CRIMT: ready independent of media, in units of 500 ms.
    pub crimt: u16,
}

/// Returns where a queue's doorbell lies: submission tail or completion head (Base 3.1.3.21 and PCIe
/// Transport 1.0, 3.1.2).
pub const fn doorbell_offset(queue: QueueId, completion: bool, dstrd: u8) -> u32 {
    offset::DOORBELLS + ((2 * queue.0 as u32 + completion as u32) * (4 << dstrd))
}

/// Returns the highest queue whose doorbells lie at 32-bit offsets, which is as far as anybody maps registers.
pub const fn last_queue_with_doorbells(dstrd: u8) -> u16 {
    let pairs = (u32::MAX - offset::DOORBELLS) as u64 / (8 << dstrd);
    if pairs > u16::MAX as u64 { u16::MAX } else { pairs as u16 - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_lie_at_1000h_plus_2y_plus_c_strides() {
        assert_eq!(doorbell_offset(QueueId(0), false, 0), 0x1000);
        assert_eq!(doorbell_offset(QueueId(0), true, 0), 0x1004);
        assert_eq!(doorbell_offset(QueueId(3), false, 0), 0x1018);
        assert_eq!(doorbell_offset(QueueId(3), true, 4), 0x1000 + 7 * 64);
    }

    #[test]
    fn the_doorbells_of_the_last_queue_fit_and_those_of_the_next_do_not() {
        for dstrd in 0..16 {
            let last = last_queue_with_doorbells(dstrd);
            let end = |queue: u64| 0x1000 + (2 * queue + 2) * (4 << dstrd);
            assert!(end(last.into()) <= u64::from(u32::MAX), "DSTRD {dstrd}");
            assert!(last == u16::MAX || end(u64::from(last) + 1) > u64::from(u32::MAX));
            assert!(u64::from(doorbell_offset(QueueId(last), true, dstrd)) < end(last.into()));
        }
        assert_eq!(last_queue_with_doorbells(15), 16_382);
    }

    #[test]
    fn configuration_bits_are_where_the_standard_has_them() {
        let cc = Configuration::new().with_en(true).with_iosqes(6).with_iocqes(4).with_shn(1);
        assert_eq!(cc.into_bits(), 0x0046_4001);
        let cap = Capabilities::from_bits(0x0000_0020_1401_03ff);
        assert_eq!((cap.mqes(), cap.cqr(), cap.to(), cap.dstrd()), (1023, true, 20, 0));
        assert_eq!(cap.css(), 1);
        assert_eq!(Version::from_bits(0x0002_0000).major(), 2);
    }
}
