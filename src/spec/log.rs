//! What the Get Log Page command returns: errors, health, firmware, changes, effects (Base 5.16).
//!
//! [`SmartLog`] and [`ErrorLogEntry`] are the ones that people ask for; [`LogPage`] names them all.
//! Counters are raw, in the standard's units, which each field states. As in `identify`, fields that
//! hold flags have a method of the same name, and reserved bytes are private.
#![forbid(unsafe_code)]

use core::mem::offset_of;
use std::borrow::Cow;

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::completion::StatusField;
use super::identify::padded_text;
use crate::units::NamespaceId;

open_enum! {
    /// LID: which log page (Base 5.16.1, NVM 4.1.4).
    pub struct LogPage(u8) {
        /// Which log pages there are.
        SUPPORTED = 0x00 => "Supported Log Pages",
        /// The last errors, newest first: [`ErrorLogEntry`].
        ERROR = 0x01 => "Error Information",
        /// Health and life of the device: [`SmartLog`].
        SMART = 0x02 => "SMART / Health Information",
        /// Revisions in the firmware slots: [`FirmwareSlotLog`].
        FIRMWARE_SLOT = 0x03 => "Firmware Slot Information",
        /// Namespaces that changed since it was last read: [`ChangedNamespaceList`].
        CHANGED_NAMESPACES = 0x04 => "Changed Namespace List",
        /// What each command does besides: [`CommandsSupportedAndEffects`].
        COMMAND_EFFECTS = 0x05 => "Commands Supported and Effects",
        /// Results of self-tests.
        SELF_TEST = 0x06 => "Device Self-test",
        /// Telemetry that the host asked for.
        TELEMETRY_HOST = 0x07 => "Telemetry Host-Initiated",
        /// Telemetry that the controller gathered by itself.
        TELEMETRY_CONTROLLER = 0x08 => "Telemetry Controller-Initiated",
        /// Health of an endurance group.
        ENDURANCE_GROUP = 0x09 => "Endurance Group Information",
        /// Predictable latency of an NVM set.
        PREDICTABLE_LATENCY = 0x0a => "Predictable Latency Per NVM Set",
        /// NVM sets with predictable latency events.
        PREDICTABLE_LATENCY_EVENTS = 0x0b => "Predictable Latency Event Aggregate",
        /// Access states of namespaces.
        ASYMMETRIC_ACCESS = 0x0c => "Asymmetric Namespace Access",
        /// Events that outlive resets.
        PERSISTENT_EVENT = 0x0d => "Persistent Event Log",
        /// LBAs that may not be readable.
        LBA_STATUS = 0x0e => "LBA Status Information",
        /// Endurance groups with events.
        ENDURANCE_GROUP_EVENTS = 0x0f => "Endurance Group Event Aggregate",
        /// State of media units.
        MEDIA_UNIT_STATUS = 0x10 => "Media Unit Status",
        /// Ways to divide the capacity.
        CAPACITY_CONFIGURATIONS = 0x11 => "Supported Capacity Configuration List",
        /// What each feature does besides.
        FEATURE_EFFECTS = 0x12 => "Feature Identifiers Supported and Effects",
        /// What each management command does besides.
        MI_COMMAND_EFFECTS = 0x13 => "NVMe-MI Commands Supported and Effects",
        /// What is locked down.
        LOCKDOWN = 0x14 => "Command and Feature Lockdown",
        /// The boot partition.
        BOOT_PARTITION = 0x15 => "Boot Partition",
        /// Rotating media of an endurance group.
        ROTATIONAL_MEDIA = 0x16 => "Rotational Media Information",
        /// Subsystems that can be reached over fabrics.
        DISCOVERY = 0x70 => "Discovery",
        /// Reservations that changed.
        RESERVATION_NOTIFICATION = 0x80 => "Reservation Notification",
        /// Progress and result of a sanitize: [`SanitizeStatusLog`](super::erase::SanitizeStatusLog).
        SANITIZE_STATUS = 0x81 => "Sanitize Status",
    }
}

/// One entry of the error log (Base 5.16.1.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ErrorLogEntry {
    /// Bytes 7:0: which error it was since the first, counted from 1; 0 is an entry without error.
    pub error_count: U64,
    /// Bytes 9:8: the submission queue of the command; 0xffff if there was none.
    pub sqid: U16,
    /// Bytes 11:10: the command; 0xffff if there was none.
    pub cid: U16,
    /// Bytes 13:12: the status in bits 15:1, as in a completion; bit 0 may be its phase tag.
    pub status: U16,
    /// Bytes 15:14: what in the command was wrong, [`ParameterLocation`]; 0xffff if nothing was.
    pub parameter_location: U16,
    /// Bytes 23:16: the first LBA that failed.
    pub lba: U64,
    /// Bytes 27:24: the namespace.
    pub nsid: U32,
    /// Byte 28: the vendor's log page with more about it, 0x80 to 0xff; 0 is none.
    pub vendor_page: u8,
    /// Byte 29, TRTYPE: the transport; 0 is PCI Express or not reported.
    pub trtype: u8,
    _reserved_30: [u8; 2],
    /// Bytes 39:32: specific to the command.
    pub command_specific: U64,
    /// Bytes 41:40: specific to the transport.
    pub transport_specific: U16,
    _reserved_42: [u8; 22],
}

const _: () = {
    assert!(size_of::<ErrorLogEntry>() == 64);
    assert!(offset_of!(ErrorLogEntry, sqid) == 8);
    assert!(offset_of!(ErrorLogEntry, status) == 12);
    assert!(offset_of!(ErrorLogEntry, lba) == 16);
    assert!(offset_of!(ErrorLogEntry, vendor_page) == 28);
    assert!(offset_of!(ErrorLogEntry, command_specific) == 32);
    assert!(offset_of!(ErrorLogEntry, transport_specific) == 40);
};

impl ErrorLogEntry {
    /// Returns STS as it was in the completion.
    pub const fn status(&self) -> StatusField {
        StatusField::from_bits(self.status.get())
    }

    /// Returns what in the command was wrong.
    pub const fn parameter_location(&self) -> ParameterLocation {
        ParameterLocation::from_bits(self.parameter_location.get())
    }
}

/// The place in a command of a wrong parameter (Base 5.16.1.2, bytes 15:14).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct ParameterLocation {
    /// The byte in the command, 0 to 63.
    pub byte: u8,
    /// The first bit in that byte.
    #[bits(3)]
    pub bit: u8,
    #[bits(5)]
    __: u8,
}

/// Health and life of the device (Base 5.16.1.3).
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SmartLog {
    /// Byte 0: what needs attention, [`CriticalWarning`].
    pub critical_warning: u8,
    /// Bytes 2:1: composite temperature, in kelvins.
    pub composite_temperature: U16,
    /// Byte 3: spare capacity that remains, in percent.
    pub available_spare: u8,
    /// Byte 4: spare capacity below which the warning is raised, in percent.
    pub available_spare_threshold: u8,
    /// Byte 5: life used, in percent of what the vendor estimates; may pass 100, stays at 255.
    pub percentage_used: u8,
    /// Byte 6: what needs attention in the endurance groups.
    pub endurance_group_warnings: u8,
    _reserved_7: [u8; 25],
    /// Bytes 47:32: data that the host read, in units of 512,000 bytes, rounded up; 0 is not reported.
    pub data_units_read: U128,
    /// Bytes 63:48: data that the host wrote, in units of 512,000 bytes, rounded up; 0 is not reported.
    pub data_units_written: U128,
    /// Bytes 79:64: Read and Compare commands completed.
    pub host_read_commands: U128,
    /// Bytes 95:80: Write commands completed.
    pub host_write_commands: U128,
    /// Bytes 111:96: time with I/O commands outstanding, in minutes.
    pub controller_busy_time: U128,
    /// Bytes 127:112: power cycles.
    pub power_cycles: U128,
    /// Bytes 143:128: time with power, in hours; may leave out non-operational states.
    pub power_on_hours: U128,
    /// Bytes 159:144: power losses without a shutdown before.
    pub unsafe_shutdowns: U128,
    /// Bytes 175:160: errors in data that could not be corrected.
    pub media_errors: U128,
    /// Bytes 191:176: entries ever made in the error log.
    pub error_log_entries: U128,
    /// Bytes 195:192: time at or above WCTEMP and below CCTEMP, in minutes.
    pub warning_temperature_time: U32,
    /// Bytes 199:196: time at or above CCTEMP, in minutes.
    pub critical_temperature_time: U32,
    /// Bytes 215:200: temperature sensors 1 to 8, in kelvins; 0 is no sensor.
    pub temperature_sensors: [U16; 8],
    /// Bytes 219:216: times that light thermal management began.
    pub thermal_1_transitions: U32,
    /// Bytes 223:220: times that heavy thermal management began.
    pub thermal_2_transitions: U32,
    /// Bytes 227:224: time in light thermal management, in seconds.
    pub thermal_1_time: U32,
    /// Bytes 231:228: time in heavy thermal management, in seconds.
    pub thermal_2_time: U32,
    _reserved_232: [u8; 280],
}

const _: () = {
    assert!(size_of::<SmartLog>() == 512);
    assert!(offset_of!(SmartLog, composite_temperature) == 1);
    assert!(offset_of!(SmartLog, percentage_used) == 5);
    assert!(offset_of!(SmartLog, data_units_read) == 32);
    assert!(offset_of!(SmartLog, controller_busy_time) == 96);
    assert!(offset_of!(SmartLog, error_log_entries) == 176);
    assert!(offset_of!(SmartLog, critical_temperature_time) == 196);
    assert!(offset_of!(SmartLog, temperature_sensors) == 200);
    assert!(offset_of!(SmartLog, thermal_2_time) == 228);
};

impl SmartLog {
    /// Bytes in a unit of the data counters: a thousand blocks of 512 bytes, whatever the format.
    pub const DATA_UNIT_BYTES: u32 = 512_000;

    /// Returns what needs attention.
    pub const fn critical_warning(&self) -> CriticalWarning {
        CriticalWarning::from_bits(self.critical_warning)
    }

    /// Returns the composite temperature in degrees Celsius.
    pub const fn celsius(&self) -> i32 {
        const FREEZING_POINT_KELVINS: i32 = 273;
        self.composite_temperature.get() as i32 - FREEZING_POINT_KELVINS
    }
}

/// What needs attention (Base 5.16.1.3, byte 0).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct CriticalWarning {
    /// Spare capacity is below its threshold.
    pub spare_low: bool,
    /// A temperature is past a threshold.
    pub temperature: bool,
    /// Media or internal errors have made the subsystem less reliable.
    pub reliability_degraded: bool,
    /// All media are read-only.
    pub read_only: bool,
    /// What keeps volatile memory through a power loss has failed.
    pub backup_failed: bool,
    /// The persistent memory region is read-only or unreliable.
    pub persistent_memory: bool,
    #[bits(2)]
    __: u8,
}

/// Revisions in the firmware slots (Base 5.16.1.4).
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FirmwareSlotLog {
    /// Byte 0, AFI: the active slot and the next, [`ActiveFirmware`].
    pub afi: u8,
    _reserved_1: [u8; 7],
    /// Bytes 63:8, FRS1 to FRS7: revision in each slot, ASCII, padded with spaces; zero if empty.
    pub frs: [[u8; 8]; 7],
    _reserved_64: [u8; 448],
}

const _: () = {
    assert!(size_of::<FirmwareSlotLog>() == 512);
    assert!(offset_of!(FirmwareSlotLog, frs) == 8);
};

impl FirmwareSlotLog {
    /// Returns AFI.
    pub const fn afi(&self) -> ActiveFirmware {
        ActiveFirmware::from_bits(self.afi)
    }

    /// Returns the revision in `slot`, 1 to 7, without its padding.
    pub fn revision(&self, slot: u8) -> Option<Cow<'_, str>> {
        let index = usize::from(slot).checked_sub(1)?;
        self.frs.get(index).map(|bytes| padded_text(bytes))
    }
}

/// AFI: the active firmware slot and the next (Base 5.16.1.4, byte 0).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct ActiveFirmware {
    /// The slot that runs, 1 to 7.
    #[bits(3)]
    pub active: u8,
    __: bool,
    /// The slot that runs after the next reset; 0 is not reported.
    #[bits(3)]
    pub next: u8,
    __: bool,
}

/// Namespaces that changed since the page was last read, ascending (Base 5.16.1.5).
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ChangedNamespaceList {
    /// Bytes 4095:0: the identifiers, ended by 0; the first is all ones if they were too many.
    pub nsid: [U32; 1024],
}

const _: () = assert!(size_of::<ChangedNamespaceList>() == 4096);

impl ChangedNamespaceList {
    /// Says whether more namespaces changed than the list can hold, so that any may have.
    pub const fn overflowed(&self) -> bool {
        self.nsid[0].get() == NamespaceId::ALL.0
    }

    /// Returns the identifiers before the 0 that ends the list; after an overflow, all ones alone.
    pub fn iter(&self) -> impl Iterator<Item = NamespaceId> + '_ {
        self.nsid
            .iter()
            .map(|nsid| NamespaceId(nsid.get()))
            .take_while(|&nsid| nsid != NamespaceId::NONE)
    }
}

/// What each command does besides (Base 5.16.1.6).
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandsSupportedAndEffects {
    /// Bytes 1023:0, ACS0 to ACS255: [`CommandEffects`] by opcode of the admin queue.
    pub acs: [U32; 256],
    /// Bytes 2047:1024, IOCS0 to IOCS255: [`CommandEffects`] by opcode of I/O queues.
    pub iocs: [U32; 256],
    _reserved_2048: [u8; 2048],
}

const _: () = {
    assert!(size_of::<CommandsSupportedAndEffects>() == 4096);
    assert!(offset_of!(CommandsSupportedAndEffects, iocs) == 1024);
};

impl CommandsSupportedAndEffects {
    /// Returns the effects of an admin command.
    pub const fn admin(&self, opcode: u8) -> CommandEffects {
        CommandEffects::from_bits(self.acs[opcode as usize].get())
    }

    /// Returns the effects of an I/O command.
    pub const fn io(&self, opcode: u8) -> CommandEffects {
        CommandEffects::from_bits(self.iocs[opcode as usize].get())
    }
}

/// What one command does besides (Base 5.16.1.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CommandEffects {
    /// CSUPP: the command is supported; without it, the other bits mean nothing.
    pub supported: bool,
    /// LBCC: the content of logical blocks can change.
    pub content_changes: bool,
    /// NCC: a namespace can change in what it can do.
    pub namespace_changes: bool,
    /// NIC: namespaces can come, go, be attached or detached.
    pub inventory_changes: bool,
    /// CCC: a controller can change in what it can do.
    pub controller_changes: bool,
    #[bits(11)]
    __: u16,
    /// CSE: what may run beside it: 0 anything, 1 nothing else in the namespace, 2 nothing else at all.
    #[bits(3)]
    pub exclusion: u8,
    /// The command takes a UUID index.
    pub uuid_selection: bool,
    /// CSP: one bit for each scope of the command, namespace first; 0 is not reported.
    #[bits(12)]
    pub scope: u16,
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn a_health_page_reads_back_by_field() {
        let mut page = [0; 512];
        page[0] = 0b10_1001;
        page[1..3].copy_from_slice(&[0x36, 0x01]);
        page[3..6].copy_from_slice(&[100, 10, 3]);
        page[32..34].copy_from_slice(&[0x01, 0x02]);
        page[63] = 0x80;
        page[128] = 42;
        page[192] = 5;
        page[202..204].copy_from_slice(&[0x2c, 0x01]);
        page[231] = 1;

        let smart = SmartLog::ref_from_bytes(&page).expect("the page is as long as the log");
        let warning = smart.critical_warning();
        assert!(warning.spare_low() && warning.read_only() && warning.persistent_memory());
        assert!(!warning.temperature());
        assert_eq!(smart.celsius(), 37);
        assert_eq!(smart.available_spare, 100);
        assert_eq!(smart.percentage_used, 3);
        assert_eq!(smart.data_units_read.get(), 0x0201);
        assert_eq!(smart.data_units_written.get(), 1 << 127);
        assert_eq!(smart.power_on_hours.get(), 42);
        assert_eq!(smart.warning_temperature_time.get(), 5);
        assert_eq!(smart.temperature_sensors[1].get(), 300);
        assert_eq!(smart.thermal_2_time.get(), 1 << 24);
    }

    #[test]
    fn firmware_slots_count_from_one() {
        let mut log = FirmwareSlotLog::new_zeroed();
        log.afi = 0x21;
        log.frs[0] = *b"A1      ";
        log.frs[6] = *b"B7      ";
        assert_eq!((log.afi().active(), log.afi().next()), (1, 2));
        assert_eq!(log.revision(1).as_deref(), Some("A1"));
        assert_eq!(log.revision(7).as_deref(), Some("B7"));
        assert_eq!(log.revision(0), None);
        assert_eq!(log.revision(8), None);
    }

    #[test]
    fn too_many_changed_namespaces_are_told_by_the_first_identifier() {
        let mut list = ChangedNamespaceList::new_zeroed();
        list.nsid[0] = U32::new(3);
        assert!(!list.overflowed());
        assert_eq!(list.iter().collect::<Vec<_>>(), [NamespaceId(3)]);
        list.nsid[0] = U32::new(u32::MAX);
        assert!(list.overflowed());
    }

    #[test]
    fn effects_are_found_by_opcode() {
        let mut log = CommandsSupportedAndEffects::new_zeroed();
        log.acs[0x80] = U32::new(0x0002_001b);
        let format = log.admin(0x80);
        assert!(format.supported() && format.content_changes() && format.controller_changes());
        assert!(!format.namespace_changes());
        assert_eq!(format.exclusion(), 2);
        assert!(!log.io(0x80).supported());
    }

    #[test]
    fn a_wrong_parameter_is_located_by_byte_and_bit() {
        let mut entry = ErrorLogEntry::new_zeroed();
        entry.parameter_location = U16::new(0x0328);
        let place = entry.parameter_location();
        assert_eq!((place.byte(), place.bit()), (40, 3));
    }
}
