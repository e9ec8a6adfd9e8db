//! What an Asynchronous Event Request completes with (Base 5.2.1).
//!
//! [`AsyncEventResult`] is dword 0 of that completion: a type, information whose meaning the type
//! decides, and the log page to read. Events of one type stay silent until that page is read, so a
//! driver that does not read it hears of nothing more; only immediate events need no page.
#![forbid(unsafe_code)]

use bitfield_struct::bitfield;

use super::log::LogPage;

/// Dword 0 of the completion of an Asynchronous Event Request (Base 5.2.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AsyncEventResult {
    /// Bits 2:0: [`AsyncEventType`].
    #[bits(3)]
    pub event_type: u8,
    #[bits(5)]
    __: u8,
    /// Bits 15:8: what happened, in the terms of the type.
    pub info: u8,
    /// Bits 23:16, LID: [`LogPage`].
    pub log_page: u8,
    #[bits(8)]
    __: u8,
}

impl AsyncEventResult {
    /// Returns the event of type `kind` and information `info`, to be followed by reading `page`.
    pub const fn of(kind: AsyncEventType, info: u8, page: LogPage) -> Self {
        Self::new().with_event_type(kind.0).with_info(info).with_log_page(page.0)
    }

    /// Returns the type.
    pub const fn kind(self) -> AsyncEventType {
        AsyncEventType(self.event_type())
    }

    /// Returns the log page to read.
    pub const fn page(self) -> LogPage {
        LogPage(self.log_page())
    }

    /// Returns what happened in the standard's words, or `None` if it has none for it.
    pub const fn info_name(self) -> Option<&'static str> {
        match self.kind() {
            AsyncEventType::ERROR => ErrorEvent(self.info()).name(),
            AsyncEventType::SMART => SmartEvent(self.info()).name(),
            AsyncEventType::NOTICE => NoticeEvent(self.info()).name(),
            AsyncEventType::IMMEDIATE => ImmediateEvent(self.info()).name(),
            AsyncEventType::COMMAND_SPECIFIC => CommandSpecificEvent(self.info()).name(),
            _ => None,
        }
    }
}

open_enum! {
    /// The type of an event (Base 5.2.1, bits 2:0).
    pub struct AsyncEventType(u8) {
        /// An error that belongs to no command: [`ErrorEvent`].
        ERROR = 0 => "Error status",
        /// Health of the device: [`SmartEvent`].
        SMART = 1 => "SMART / Health status",
        /// Something changed: [`NoticeEvent`].
        NOTICE = 2 => "Notice",
        /// Something that no log page explains: [`ImmediateEvent`].
        IMMEDIATE = 3 => "Immediate",
        /// Of a command set: [`CommandSpecificEvent`].
        COMMAND_SPECIFIC = 6 => "I/O Command specific status",
        /// The vendor's own.
        VENDOR = 7 => "Vendor specific",
    }
}

open_enum! {
    /// Information of [`AsyncEventType::ERROR`] (Base 5.2.1).
    pub struct ErrorEvent(u8) {
        /// The host wrote the doorbell of a queue that does not exist.
        INVALID_DOORBELL = 0x00 => "Write to Invalid Doorbell Register",
        /// The host wrote a doorbell value that cannot be.
        INVALID_DOORBELL_VALUE = 0x01 => "Invalid Doorbell Write Value",
        /// A diagnostic failed.
        DIAGNOSTIC_FAILURE = 0x02 => "Diagnostic Failure",
        /// An internal error that stays; the controller needs a reset.
        PERSISTENT_INTERNAL = 0x03 => "Persistent Internal Error",
        /// An internal error that concerned some commands only.
        TRANSIENT_INTERNAL = 0x04 => "Transient Internal Error",
        /// The firmware image did not load, and an earlier one runs.
        FIRMWARE_LOAD = 0x05 => "Firmware Image Load Error",
    }
}

open_enum! {
    /// Information of [`AsyncEventType::SMART`] (Base 5.2.1).
    pub struct SmartEvent(u8) {
        /// The subsystem has become less reliable.
        RELIABILITY = 0x00 => "NVM subsystem Reliability",
        /// A temperature passed its threshold.
        TEMPERATURE = 0x01 => "Temperature Threshold",
        /// Spare capacity fell below its threshold.
        SPARE = 0x02 => "Spare Below Threshold",
    }
}

open_enum! {
    /// Information of [`AsyncEventType::NOTICE`] (Base 5.2.1).
    pub struct NoticeEvent(u8) {
        /// A namespace came, went or changed; [`LogPage::CHANGED_NAMESPACES`] says which.
        NAMESPACE_CHANGED = 0x00 => "Namespace Attribute Changed",
        /// Firmware is about to be activated, and commands pause for as long as MTFA.
        FIRMWARE_ACTIVATION = 0x01 => "Firmware Activation Starting",
        /// The controller gathered telemetry.
        TELEMETRY = 0x02 => "Telemetry Log Changed",
        /// Access states of namespaces changed.
        ASYMMETRIC_ACCESS = 0x03 => "Asymmetric Namespace Access Change",
        /// The predictable latency event log changed.
        PREDICTABLE_LATENCY = 0x04 => "Predictable Latency Event Aggregate Log Change",
        /// LBAs may have become unreadable.
        LBA_STATUS = 0x05 => "LBA Status Information Alert",
        /// The endurance group event log changed.
        ENDURANCE_GROUP = 0x06 => "Endurance Group Event Aggregate Log Page Change",
        /// A zone changed by itself.
        ZONE_CHANGED = 0xef => "Zone Descriptor Changed",
        /// The discovery log changed.
        DISCOVERY_CHANGED = 0xf0 => "Discovery Log Page Change",
    }
}

open_enum! {
    /// Information of [`AsyncEventType::IMMEDIATE`] (Base 5.2.1).
    pub struct ImmediateEvent(u8) {
        /// The subsystem was told to shut down.
        SHUTDOWN = 0x00 => "Normal NVM Subsystem Shutdown",
    }
}

open_enum! {
    /// Information of [`AsyncEventType::COMMAND_SPECIFIC`] (Base 5.2.1).
    pub struct CommandSpecificEvent(u8) {
        /// Reservations changed.
        RESERVATION = 0x00 => "Reservation Log Page Available",
        /// A sanitize ended.
        SANITIZE_COMPLETED = 0x01 => "Sanitize Operation Completed",
        /// A sanitize ended, and deallocated although it was asked not to.
        SANITIZE_DEALLOCATED = 0x02 => "Sanitize Operation Completed With Unexpected Deallocation",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_decodes_into_type_information_and_log_page() {
        let result = AsyncEventResult::from_bits(0x0002_0101);
        assert_eq!(result.kind(), AsyncEventType::SMART);
        assert_eq!(result.info(), SmartEvent::TEMPERATURE.0);
        assert_eq!(result.page(), LogPage::SMART);
        assert_eq!(result.info_name(), Some("Temperature Threshold"));
    }

    #[test]
    fn the_same_information_means_another_thing_in_another_type() {
        let name = |kind| AsyncEventResult::of(kind, 0, LogPage(0)).info_name();
        assert_eq!(name(AsyncEventType::NOTICE), Some("Namespace Attribute Changed"));
        assert_eq!(name(AsyncEventType::ERROR), Some("Write to Invalid Doorbell Register"));
        assert_eq!(name(AsyncEventType::VENDOR), None);
    }

    #[test]
    fn a_made_result_has_the_bits_of_the_wire() {
        let result = AsyncEventResult::of(
            AsyncEventType::NOTICE,
            NoticeEvent::NAMESPACE_CHANGED.0,
            LogPage::CHANGED_NAMESPACES,
        );
        assert_eq!(result.into_bits(), 0x0004_0002);
    }
}
