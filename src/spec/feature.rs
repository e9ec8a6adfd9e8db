//! What Get Features and Set Features speak of: identifiers and values (Base 5.27.1, NVM 4.1.3).
//!
//! [`FeatureId`] names the features. A value bitfield is dword 11 of Set Features and, unless it
//! says otherwise, dword 0 of the completion of Get Features. Counts are as on the wire; a method
//! ending in `_count` returns what a zero-based one means.
#![forbid(unsafe_code)]

use bitfield_struct::bitfield;

use crate::units::ZeroBased16;

open_enum! {
    /// FID: which feature (Base 5.27.1, NVM 4.1.3).
    pub struct FeatureId(u8) {
        /// How commands of several queues take turns: [`Arbitration`].
        ARBITRATION = 0x01 => "Arbitration",
        /// The power state: [`PowerManagement`].
        POWER_MANAGEMENT = 0x02 => "Power Management",
        /// What ranges of LBAs hold.
        LBA_RANGE_TYPE = 0x03 => "LBA Range Type",
        /// Temperatures that raise an event: [`TemperatureThreshold`].
        TEMPERATURE_THRESHOLD = 0x04 => "Temperature Threshold",
        /// Limits on retries inside the device: [`ErrorRecovery`].
        ERROR_RECOVERY = 0x05 => "Error Recovery",
        /// Whether the write cache is on: [`VolatileWriteCache`].
        VOLATILE_WRITE_CACHE = 0x06 => "Volatile Write Cache",
        /// How many I/O queues there may be: [`NumberOfQueues`].
        NUMBER_OF_QUEUES = 0x07 => "Number of Queues",
        /// How completions gather before an interrupt: [`InterruptCoalescing`].
        INTERRUPT_COALESCING = 0x08 => "Interrupt Coalescing",
        /// Whether one vector coalesces: [`InterruptVector`].
        INTERRUPT_VECTOR = 0x09 => "Interrupt Vector Configuration",
        /// Whether writes beyond the power failure limit are atomic to other commands: [`WriteAtomicity`].
        WRITE_ATOMICITY = 0x0a => "Write Atomicity Normal",
        /// Which events are reported: [`AsyncEventConfig`].
        ASYNC_EVENT_CONFIG = 0x0b => "Asynchronous Event Configuration",
        /// Power states that are entered when idle.
        AUTONOMOUS_POWER_STATE = 0x0c => "Autonomous Power State Transition",
        /// Memory that the host lends.
        HOST_MEMORY_BUFFER = 0x0d => "Host Memory Buffer",
        /// The time of day.
        TIMESTAMP = 0x0e => "Timestamp",
        /// How long the controller waits for a sign of life.
        KEEP_ALIVE = 0x0f => "Keep Alive Timer",
        /// Temperatures at which to slow down: [`ThermalManagement`].
        THERMAL_MANAGEMENT = 0x10 => "Host Controlled Thermal Management",
        /// Whether background work may pass the limit of a non-operational state.
        NON_OPERATIONAL_POWER = 0x11 => "Non-Operational Power State Config",
        /// How hard to try to read.
        READ_RECOVERY_LEVEL = 0x12 => "Read Recovery Level Config",
        /// Predictable latency of an NVM set.
        PREDICTABLE_LATENCY_CONFIG = 0x13 => "Predictable Latency Mode Config",
        /// The window of predictable latency.
        PREDICTABLE_LATENCY_WINDOW = 0x14 => "Predictable Latency Mode Window",
        /// How often lost LBAs are reported.
        LBA_STATUS_INTERVAL = 0x15 => "LBA Status Information Report Interval",
        /// What the host understands.
        HOST_BEHAVIOR = 0x16 => "Host Behavior Support",
        /// How a sanitize may end.
        SANITIZE_CONFIG = 0x17 => "Sanitize Config",
        /// Which events of an endurance group are reported.
        ENDURANCE_GROUP_EVENTS = 0x18 => "Endurance Group Event Configuration",
        /// Which command sets are in use.
        COMMAND_SET_PROFILE = 0x19 => "I/O Command Set Profile",
        /// Whether rotating media wait to spin up.
        SPINUP_CONTROL = 0x1a => "Spinup Control",
        /// What the host tells of itself, with more than one value of a kind.
        ENHANCED_CONTROLLER_METADATA = 0x7d => "Enhanced Controller Metadata",
        /// What the host tells of itself.
        CONTROLLER_METADATA = 0x7e => "Controller Metadata",
        /// What the host tells of a namespace.
        NAMESPACE_METADATA = 0x7f => "Namespace Metadata",
        /// How far system software has started.
        SOFTWARE_PROGRESS = 0x80 => "Software Progress Marker",
        /// The host as reservations know it.
        HOST_IDENTIFIER = 0x81 => "Host Identifier",
        /// Which reservation events are reported.
        RESERVATION_MASK = 0x82 => "Reservation Notification Mask",
        /// Whether reservations outlive a power loss.
        RESERVATION_PERSISTENCE = 0x83 => "Reservation Persistence",
        /// Whether a namespace can be written.
        WRITE_PROTECTION = 0x84 => "Namespace Write Protection Config",
    }
}

impl FeatureId {
    /// Returns how many bytes of data a value has beside its dword (Base 5.27.1, Figure 317).
    pub const fn data_bytes(self) -> usize {
        match self {
            Self::LBA_RANGE_TYPE
            | Self::HOST_MEMORY_BUFFER
            | Self::ENHANCED_CONTROLLER_METADATA
            | Self::CONTROLLER_METADATA
            | Self::NAMESPACE_METADATA => 4096,
            Self::PREDICTABLE_LATENCY_CONFIG | Self::HOST_BEHAVIOR => 512,
            Self::AUTONOMOUS_POWER_STATE => 256,
            Self::TIMESTAMP | Self::HOST_IDENTIFIER => 8,
            _ => 0,
        }
    }
}

open_enum! {
    /// SEL: which value of a feature Get Features returns (Base 5.15).
    pub struct Select(u8) {
        /// The value in use.
        CURRENT = 0 => "current",
        /// The value as delivered.
        DEFAULT = 1 => "default",
        /// The value that a reset restores.
        SAVED = 2 => "saved",
        /// What can be done with the feature: [`FeatureCapabilities`].
        CAPABILITIES = 3 => "supported capabilities",
    }
}

/// What can be done with a feature: dword 0 of Get Features with [`Select::CAPABILITIES`] (Base 5.15).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FeatureCapabilities {
    /// The value can be saved.
    pub saveable: bool,
    /// Each namespace has a value of its own.
    pub per_namespace: bool,
    /// The value can be changed.
    pub changeable: bool,
    #[bits(29)]
    __: u32,
}

/// Arbitration: how commands of several queues take turns (Base 5.27.1.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Arbitration {
    /// AB: commands fetched from a queue at a time, as a power of two.
    #[bits(3)]
    pub burst: u8,
    #[bits(5)]
    __: u8,
    /// LPW: commands of low priority in a round, zero-based.
    pub low_weight: u8,
    /// MPW: commands of medium priority in a round, zero-based.
    pub medium_weight: u8,
    /// HPW: commands of high priority in a round, zero-based.
    pub high_weight: u8,
}

impl Arbitration {
    /// AB: no limit.
    pub const BURST_UNLIMITED: u8 = 7;
}

/// Power Management: the power state (Base 5.27.1.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PowerManagement {
    /// PS: the state, an index of the power states that Identify Controller lists.
    #[bits(5)]
    pub state: u8,
    /// WH: the workload to expect; 0 is unknown.
    #[bits(3)]
    pub workload: u8,
    #[bits(24)]
    __: u32,
}

/// Temperature Threshold: a temperature that raises an event (Base 5.27.1.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct TemperatureThreshold {
    /// TMPTH: the temperature, in kelvins.
    pub kelvins: u16,
    /// TMPSEL: the sensor, 1 to 8, or [`COMPOSITE`](Self::COMPOSITE) or [`ALL`](Self::ALL).
    #[bits(4)]
    pub sensor: u8,
    /// THSEL: the event is for temperatures [`OVER`](Self::OVER) or [`UNDER`](Self::UNDER).
    #[bits(2)]
    pub side: u8,
    #[bits(10)]
    __: u16,
}

impl TemperatureThreshold {
    /// TMPSEL: the composite temperature.
    pub const COMPOSITE: u8 = 0x0;
    /// TMPSEL: all sensors; for Set Features only.
    pub const ALL: u8 = 0xf;
    /// THSEL: at or above the threshold.
    pub const OVER: u8 = 0;
    /// THSEL: at or below the threshold.
    pub const UNDER: u8 = 1;
}

/// Error Recovery: limits on retries inside the device (NVM 4.1.3.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ErrorRecovery {
    /// TLER: time for retries once an error has occurred, in units of 100 milliseconds; 0 is no limit.
    pub time_limit: u16,
    /// DULBE: reads of deallocated or unwritten blocks fail.
    pub deallocated_error: bool,
    #[bits(15)]
    __: u16,
}

/// Volatile Write Cache: whether it is on (Base 5.27.1.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct VolatileWriteCache {
    /// WCE: writes may be cached until Flush.
    pub enabled: bool,
    #[bits(31)]
    __: u32,
}

/// Number of Queues: the I/O queues asked for, and in the completion those allocated (Base 5.27.1.5).
///
/// Set Features answers in dword 0 too; either number may be more or less than was asked for.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NumberOfQueues {
    /// NSQR, NSQA: I/O submission queues, zero-based; 0xffff is not allowed.
    pub submission: u16,
    /// NCQR, NCQA: I/O completion queues, zero-based; 0xffff is not allowed.
    pub completion: u16,
}

impl NumberOfQueues {
    /// Returns how many I/O submission queues that is.
    pub const fn submission_count(self) -> u32 {
        ZeroBased16::from_wire(self.submission()).count()
    }

    /// Returns how many I/O completion queues that is.
    pub const fn completion_count(self) -> u32 {
        ZeroBased16::from_wire(self.completion()).count()
    }
}

/// Interrupt Coalescing: how completions gather before an interrupt (Base 5.27.1.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptCoalescing {
    /// THR: completions that raise an interrupt at once, zero-based.
    pub threshold: u8,
    /// TIME: longest recommended wait, in units of 100 microseconds; 0 is no wait.
    pub time: u8,
    #[bits(16)]
    __: u16,
}

/// Interrupt Vector Configuration: whether one vector coalesces (Base 5.27.1.7).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptVector {
    /// IV: the vector.
    pub vector: u16,
    /// CD: completions of the vector do not gather.
    pub coalescing_disabled: bool,
    #[bits(15)]
    __: u16,
}

/// Write Atomicity Normal: whether AWUN is kept (NVM 4.1.3.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct WriteAtomicity {
    /// DN: writes beyond the power failure limit need not be atomic to other commands.
    pub disable_normal: bool,
    #[bits(31)]
    __: u32,
}

/// Host Controlled Thermal Management: temperatures at which to slow down (Base 5.27.1.13).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ThermalManagement {
    /// TMT2: the temperature of heavy management, in kelvins; 0 is off.
    pub heavy_kelvins: u16,
    /// TMT1: the temperature of light management, in kelvins; 0 is off.
    pub light_kelvins: u16,
}

/// Asynchronous Event Configuration: which events are reported (Base 5.27.1.8).
///
/// From bit 8 on the bits are those of OAES in Identify Controller, which says what there is to
/// enable; telemetry is the exception, for LPA tells of it.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AsyncEventConfig {
    /// Health warnings, at the bits of [`CriticalWarning`](super::log::CriticalWarning).
    pub critical_warnings: u8,
    /// A namespace came, went or changed.
    pub namespace_attributes: bool,
    /// Firmware is about to be activated, and commands will pause.
    pub firmware_activation: bool,
    /// The controller gathered telemetry.
    pub telemetry: bool,
    /// Access states of namespaces changed.
    pub asymmetric_access: bool,
    /// The predictable latency event log changed.
    pub predictable_latency: bool,
    /// LBAs may have become unreadable.
    pub lba_status: bool,
    /// The endurance group event log changed.
    pub endurance_group: bool,
    /// The subsystem was told to shut down.
    pub subsystem_shutdown: bool,
    #[bits(11)]
    __: u16,
    /// A zone changed by itself.
    pub zone_changed: bool,
    #[bits(3)]
    __: u8,
    /// The discovery log changed.
    pub discovery_changed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_counts_are_zero_based_with_submission_low() {
        let queues = NumberOfQueues::from_bits(0x0007_0003);
        assert_eq!((queues.submission_count(), queues.completion_count()), (4, 8));
        assert_eq!(NumberOfQueues::new().submission_count(), 1);
    }

    #[test]
    fn values_lie_at_the_bits_of_the_standard() {
        let weights = Arbitration::from_bits(0x0302_0107);
        assert_eq!(weights.burst(), Arbitration::BURST_UNLIMITED);
        assert_eq!(
            (weights.low_weight(), weights.medium_weight(), weights.high_weight()),
            (1, 2, 3)
        );
        let threshold = TemperatureThreshold::new()
            .with_kelvins(343)
            .with_sensor(TemperatureThreshold::ALL)
            .with_side(TemperatureThreshold::UNDER);
        assert_eq!(threshold.into_bits(), 0x001f_0157);
        assert_eq!(PowerManagement::from_bits(0x64).state(), 4);
        assert_eq!(PowerManagement::from_bits(0x64).workload(), 3);
        assert_eq!(InterruptCoalescing::from_bits(0x0a07).time(), 10);
        assert!(ErrorRecovery::from_bits(1 << 16).deallocated_error());
    }

    #[test]
    fn a_value_with_data_says_how_much() {
        assert_eq!(FeatureId::AUTONOMOUS_POWER_STATE.data_bytes(), 32 * 8);
        assert_eq!(FeatureId::ARBITRATION.data_bytes(), 0);
        assert_eq!(FeatureId(0xc0).data_bytes(), 0);
    }

    #[test]
    fn event_bits_pass_over_the_reserved_ones() {
        let bit = |config: AsyncEventConfig| config.into_bits().trailing_zeros();
        assert_eq!(bit(AsyncEventConfig::new().with_namespace_attributes(true)), 8);
        assert_eq!(bit(AsyncEventConfig::new().with_subsystem_shutdown(true)), 15);
        assert_eq!(bit(AsyncEventConfig::new().with_zone_changed(true)), 27);
        assert_eq!(bit(AsyncEventConfig::new().with_discovery_changed(true)), 31);
    }
}
