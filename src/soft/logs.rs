//! Log pages: errors, health, firmware, changed namespaces, effects, sanitize.
//!
//! [`ErrorLog`] remembers failed commands and what a test wants the health log to say; [`page`] builds
//! any page on demand. `admin` cuts out the part that was asked for.
//! Invariant: the newest error comes first, and error counts only rise.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use zerocopy::{FromZeros, IntoBytes};

use super::engine::Core;
use super::identify::padded;
use crate::spec::command::{AdminOpcode, Command, NvmOpcode};
use crate::spec::completion::StatusField;
use crate::spec::log::{
    ActiveFirmware, ChangedNamespaceList, CommandEffects, CommandsSupportedAndEffects,
    CriticalWarning, ErrorLogEntry, FirmwareSlotLog, LogPage, SmartLog,
};
use crate::spec::status::MEDIA;
use crate::units::NamespaceId;

/// The most errors that are remembered (ELPE + 1).
pub(super) const ERRORS_MAX: usize = 64;

/// What the health log says beside what was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmartOverrides {
    /// Critical warning bits.
    pub critical_warning: u8,
    /// Composite temperature.
    pub temperature_kelvins: u16,
    /// Spare that is left, in percent.
    pub available_spare: u8,
    /// Life that is used, in percent; may pass 100.
    pub percentage_used: u8,
}

impl Default for SmartOverrides {
    fn default() -> Self {
        Self {
            critical_warning: 0,
            temperature_kelvins: 300,
            available_spare: 100,
            percentage_used: 0,
        }
    }
}

/// Failed commands, newest first.
#[derive(Default)]
pub(super) struct ErrorLog {
    entries: VecDeque<ErrorLogEntry>,
    count: u64,
    media_errors: u64,
    smart: SmartOverrides,
}

impl ErrorLog {
    /// Remembers a failed command.
    pub(super) fn record(&mut self, queue: u16, command: &Command, status: StatusField) {
        self.count += 1;
        self.media_errors += u64::from(status.sct() == MEDIA);
        let mut entry = ErrorLogEntry::new_zeroed();
        entry.error_count = self.count.into();
        entry.sqid = queue.into();
        entry.cid = command.cid.into();
        entry.status = u16::from(status).into();
        entry.nsid = command.nsid.into();
        entry.lba = command.slba().into();
        // No parameter is named (NVMe Base 2.0, Figure 206, bytes 15:14).
        entry.parameter_location = u16::MAX.into();
        self.entries.truncate(ERRORS_MAX - 1);
        self.entries.push_front(entry);
    }

    /// Changes what the health log says, and returns the critical warnings that were set before.
    pub(super) fn set_smart(&mut self, smart: SmartOverrides) -> u8 {
        std::mem::replace(&mut self.smart, smart).critical_warning
    }

    /// Returns the composite temperature.
    pub(super) fn temperature(&self) -> u16 {
        self.smart.temperature_kelvins
    }

    /// Sets the critical warning of a temperature beyond a threshold.
    pub(super) fn warn_of_temperature(&mut self) {
        let warning = CriticalWarning::from(self.smart.critical_warning).with_temperature(true);
        self.smart.critical_warning = warning.into();
    }
}

/// Builds a log page, or returns `None` if there is no such page. `clear` lets go of what is told once.
pub(super) fn page(core: &Core, page: LogPage, clear: bool) -> Option<Vec<u8>> {
    match page {
        LogPage::ERROR => Some(errors(core)),
        LogPage::SMART => Some(smart(core).as_bytes().to_vec()),
        LogPage::FIRMWARE_SLOT => Some(firmware(core).as_bytes().to_vec()),
        LogPage::CHANGED_NAMESPACES => Some(changed(core, clear).as_bytes().to_vec()),
        LogPage::COMMAND_EFFECTS => Some(effects(core).as_bytes().to_vec()),
        LogPage::SANITIZE_STATUS => Some(core.sanitize().log(&core.namespaces).as_bytes().to_vec()),
        _ => None,
    }
}

fn errors(core: &Core) -> Vec<u8> {
    let log = core.errors();
    let mut page = vec![0; ERRORS_MAX * size_of::<ErrorLogEntry>()];
    for (place, entry) in page.chunks_exact_mut(size_of::<ErrorLogEntry>()).zip(&log.entries) {
        place.copy_from_slice(entry.as_bytes());
    }
    page
}

fn smart(core: &Core) -> SmartLog {
    let counters = core.io_counters();
    let errors = core.errors();
    let units = |bytes: u64| u128::from(bytes.div_ceil(SmartLog::DATA_UNIT_BYTES.into()));
    let commands = |opcode: NvmOpcode| u128::from(counters.io_commands.of(opcode.0));
    let mut log = SmartLog::new_zeroed();
    log.critical_warning = errors.smart.critical_warning;
    log.composite_temperature = errors.smart.temperature_kelvins.into();
    log.available_spare = errors.smart.available_spare;
    log.available_spare_threshold = 10;
    log.percentage_used = errors.smart.percentage_used;
    log.data_units_read = units(counters.bytes_read).into();
    log.data_units_written = units(counters.bytes_written).into();
    let compares = commands(NvmOpcode::COMPARE);
    log.host_read_commands = (commands(NvmOpcode::READ) + compares).into();
    log.host_write_commands = commands(NvmOpcode::WRITE).into();
    log.power_cycles = 1.into();
    log.media_errors = u128::from(errors.media_errors).into();
    log.error_log_entries = u128::from(errors.count).into();
    log
}

fn firmware(core: &Core) -> FirmwareSlotLog {
    let mut log = FirmwareSlotLog::new_zeroed();
    log.afi = ActiveFirmware::new().with_active(1).into();
    log.frs[0] = padded(&core.options.firmware);
    log
}

fn changed(core: &Core, clear: bool) -> ChangedNamespaceList {
    let mut list = ChangedNamespaceList::new_zeroed();
    let changed = core.events.changed_namespaces(clear);
    if changed.len() > list.nsid.len() {
        list.nsid[0] = NamespaceId::ALL.0.into();
        return list;
    }
    list.nsid.iter_mut().zip(changed).for_each(|(place, nsid)| *place = nsid.into());
    list
}

fn effects(core: &Core) -> CommandsSupportedAndEffects {
    let plain = CommandEffects::new().with_supported(true);
    let writes = plain.with_content_changes(true);
    let mut log = CommandsSupportedAndEffects::new_zeroed();
    for opcode in ADMIN {
        log.acs[usize::from(opcode.0)] = u32::from(plain).into();
    }
    let formats = writes.with_namespace_changes(true).with_exclusion(1);
    log.acs[usize::from(AdminOpcode::FORMAT_NVM.0)] = u32::from(formats).into();
    let sanitizes = writes.with_exclusion(2);
    log.acs[usize::from(AdminOpcode::SANITIZE.0)] = u32::from(sanitizes).into();
    if core.options.shadow_doorbells {
        let place = usize::from(AdminOpcode::DOORBELL_BUFFER_CONFIG.0);
        log.acs[place] = u32::from(plain).into();
    }
    READS.iter().for_each(|op| log.iocs[usize::from(op.0)] = u32::from(plain).into());
    WRITES.iter().for_each(|op| log.iocs[usize::from(op.0)] = u32::from(writes).into());
    log
}

/// Admin commands that change no data.
const ADMIN: [AdminOpcode; 11] = [
    AdminOpcode::DELETE_SUBMISSION_QUEUE,
    AdminOpcode::CREATE_SUBMISSION_QUEUE,
    AdminOpcode::GET_LOG_PAGE,
    AdminOpcode::DELETE_COMPLETION_QUEUE,
    AdminOpcode::CREATE_COMPLETION_QUEUE,
    AdminOpcode::IDENTIFY,
    AdminOpcode::ABORT,
    AdminOpcode::SET_FEATURES,
    AdminOpcode::GET_FEATURES,
    AdminOpcode::ASYNC_EVENT_REQUEST,
    AdminOpcode::KEEP_ALIVE,
];

/// I/O commands that change no data.
const READS: [NvmOpcode; 4] =
    [NvmOpcode::FLUSH, NvmOpcode::READ, NvmOpcode::COMPARE, NvmOpcode::VERIFY];

/// I/O commands that change data.
const WRITES: [NvmOpcode; 5] = [
    NvmOpcode::WRITE,
    NvmOpcode::WRITE_UNCORRECTABLE,
    NvmOpcode::WRITE_ZEROES,
    NvmOpcode::DATASET_MANAGEMENT,
    NvmOpcode::COPY,
];
