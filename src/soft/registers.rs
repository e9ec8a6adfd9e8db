//! The registers of a controller: what the host reads, and what its writes ask for.
//!
//! [`Registers`] holds the values and turns each write into a [`Change`], which `controller` carries out.
//! It checks what the host configures and knows no queue.
//! Invariant: a configuration that cannot be served is fatal (CSTS.CFS), never served in part.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::options::Options;
use crate::spec::registers::{
    AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, IOCQES_NVM, IOSQES_NVM,
    ReadyTimeouts, SHN_NONE, SHST_COMPLETE, SHST_NORMAL, SUBSYSTEM_RESET, Version, offset,
};

/// What a write asks the controller to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// Get ready: CC.EN went to 1 and everything fits.
    Enable,
    /// Let go of all queues: CC.EN went to 0, or the subsystem was reset.
    Disable,
    /// Make everything durable and stop: CC.SHN was set.
    ShutDown,
    /// Stop: the host asked for what cannot be.
    Fail,
}

/// Where in its life the controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Disabled,
    /// Enabled; ready from then on.
    Enabling(Instant),
    Ready,
}

/// The admin queues that the host configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AdminQueues {
    /// Entries and device address of the submission queue.
    pub(super) submission: (u32, u64),
    /// Entries and device address of the completion queue.
    pub(super) completion: (u32, u64),
}

/// The registers that hold something.
pub(super) struct Registers {
    capabilities: Capabilities,
    interrupt_mask: u32,
    configuration: Configuration,
    attributes: AdminQueueAttributes,
    asq: u64,
    acq: u64,
    phase: Phase,
    shutdown: u8,
    subsystem_reset: bool,
    delay: std::time::Duration,
}

impl Registers {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            capabilities: capabilities(options),
            interrupt_mask: 0,
            configuration: Configuration::new(),
            attributes: AdminQueueAttributes::new(),
            asq: 0,
            acq: 0,
            phase: Phase::Disabled,
            shutdown: 0,
            subsystem_reset: false,
            delay: options.ready_delay,
        }
    }

    /// Reads a register; reserved ones are 0. `fatal` becomes CSTS.CFS.
    pub(super) fn read32(&self, at: u32, fatal: bool) -> u32 {
        match at {
            offset::VS => VERSION.into(),
            offset::INTMS | offset::INTMC => self.interrupt_mask,
            offset::CC => self.configuration.into(),
            offset::CSTS => self.status(fatal).into(),
            offset::AQA => self.attributes.into(),
            offset::CRTO => ReadyTimeouts::new().with_crwmt(self.capabilities.to().into()).into(),
            _ => half(self.read64(at & !7), at),
        }
    }

    /// Reads a 64-bit register; anything else is two 32-bit ones.
    pub(super) fn read64(&self, at: u32) -> u64 {
        match at {
            offset::CAP => self.capabilities.into(),
            offset::ASQ => self.asq,
            offset::ACQ => self.acq,
            _ => 0,
        }
    }

    /// Writes a register; read-only and reserved ones ignore it.
    pub(super) fn write32(&mut self, at: u32, value: u32) -> Change {
        const ASQ_HIGH: u32 = offset::ASQ + 4;
        const ACQ_HIGH: u32 = offset::ACQ + 4;
        match at {
            offset::INTMS => self.interrupt_mask |= value,
            offset::INTMC => self.interrupt_mask &= !value,
            offset::CC => return self.configure(Configuration::from(value)),
            offset::CSTS => self.clear_status(ControllerStatus::from(value)),
            offset::NSSR if value == SUBSYSTEM_RESET => return self.reset_subsystem(),
            offset::AQA => self.attributes = AdminQueueAttributes::from(value),
            offset::ASQ => set_low(&mut self.asq, value),
            ASQ_HIGH => set_high(&mut self.asq, value),
            offset::ACQ => set_low(&mut self.acq, value),
            ACQ_HIGH => set_high(&mut self.acq, value),
            _ => {}
        }
        Change::None
    }

    /// Becomes ready if it is time, and says whether that happened now.
    pub(super) fn advance(&mut self) -> bool {
        let due = matches!(self.phase, Phase::Enabling(at) if Instant::now() >= at);
        if due {
            self.phase = Phase::Ready;
        }
        due
    }

    /// Says that the shutdown that was asked for is complete.
    pub(super) fn shut_down(&mut self) {
        self.shutdown = SHST_COMPLETE;
    }

    /// Returns the admin queues as configured, or `None` if they cannot be.
    pub(super) fn admin_queues(&self) -> Option<AdminQueues> {
        let entries = |zero_based: u16| u32::from(zero_based) + 1;
        let (asqs, acqs) = (entries(self.attributes.asqs()), entries(self.attributes.acqs()));
        let aligned = self.asq.is_multiple_of(4096) && self.acq.is_multiple_of(4096);
        let reserved = u32::from(self.attributes) & 0xf000_f000 != 0;
        (asqs >= 2 && acqs >= 2 && aligned && !reserved)
            .then_some(AdminQueues { submission: (asqs, self.asq), completion: (acqs, self.acq) })
    }

    /// Says whether queue entries have the sizes that I/O queues need.
    pub(super) fn entry_sizes_are_set(&self) -> bool {
        (self.configuration.iosqes(), self.configuration.iocqes()) == (IOSQES_NVM, IOCQES_NVM)
    }

    fn configure(&mut self, new: Configuration) -> Change {
        let old = std::mem::replace(&mut self.configuration, new);
        match (old.en(), new.en()) {
            (false, false) => Change::None,
            (false, true) => self.enable(new),
            (true, false) => self.disable(),
            (true, true) => self.adjust(old, new),
        }
    }

    fn enable(&mut self, new: Configuration) -> Change {
        if !can_serve(new) || self.admin_queues().is_none() {
            return Change::Fail;
        }
        self.phase = Phase::Enabling(Instant::now() + self.delay);
        Change::Enable
    }

    fn disable(&mut self) -> Change {
        self.phase = Phase::Disabled;
        self.shutdown = SHST_NORMAL;
        self.interrupt_mask = 0;
        // AQA, ASQ and ACQ survive a controller reset (NVMe Base 2.0, 3.7.2).
        Change::Disable
    }

    /// Takes a write to CC of an enabled controller: only SHN and the entry sizes may change.
    fn adjust(&self, old: Configuration, new: Configuration) -> Change {
        let fixed = |cc: Configuration| (cc.css(), cc.mps(), cc.ams());
        if fixed(old) != fixed(new) || !can_serve(new) {
            return Change::Fail;
        }
        if new.shn() != SHN_NONE && old.shn() == SHN_NONE { Change::ShutDown } else { Change::None }
    }

    fn reset_subsystem(&mut self) -> Change {
        self.configuration = Configuration::new();
        self.subsystem_reset = true;
        self.disable()
    }

    fn status(&self, fatal: bool) -> ControllerStatus {
        ControllerStatus::new()
            .with_rdy(self.phase == Phase::Ready)
            .with_cfs(fatal)
            .with_shst(self.shutdown)
            .with_nssro(self.subsystem_reset)
    }

    /// NSSRO is cleared by writing 1; nothing else in CSTS can be written.
    fn clear_status(&mut self, value: ControllerStatus) {
        self.subsystem_reset &= !value.nssro();
    }
}

/// The version of the standard.
pub(super) const VERSION: Version = Version::new().with_major(2);

/// Says whether a configuration is one that we serve: the NVM command set, 4 KiB pages, round robin, and
/// entry sizes that are right or not yet set.
fn can_serve(cc: Configuration) -> bool {
    let sizes = [0, IOSQES_NVM].contains(&cc.iosqes()) && [0, IOCQES_NVM].contains(&cc.iocqes());
    cc.css() == 0 && cc.mps() == 0 && cc.ams() == 0 && !cc.crime() && sizes
}

fn capabilities(options: &Options) -> Capabilities {
    // CAP.TO counts half seconds; the host gets one more than it needs.
    let timeout = options.ready_delay.as_millis().div_ceil(500).saturating_add(1).min(255) as u8;
    Capabilities::new()
        .with_mqes((options.max_queue_entries - 1) as u16)
        .with_cqr(true)
        .with_to(timeout)
        .with_dstrd(options.doorbell_stride)
        .with_nssrs(true)
        .with_css(1)
        .with_crms(1)
}

fn half(value: u64, at: u32) -> u32 {
    (value >> (at % 8 * 8)) as u32
}

fn set_low(register: &mut u64, value: u32) {
    *register = *register & !0xffff_ffff | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = *register & 0xffff_ffff | u64::from(value) << 32;
}
