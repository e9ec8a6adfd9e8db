//! What the value of a feature means, in the words of nvme-cli.
#![forbid(unsafe_code)]

use core::fmt;

use serde_json::json;

use super::super::smart::{celsius, degrees};
use crate::nvme::FeatureValue;
use crate::spec::feature::{
    Arbitration, AsyncEventConfig, ErrorRecovery, FeatureId, InterruptCoalescing, InterruptVector,
    NumberOfQueues, PowerManagement, TemperatureThreshold, ThermalManagement, VolatileWriteCache,
    WriteAtomicity,
};

/// A part of a value.
#[derive(Debug, PartialEq)]
pub(super) enum Word {
    /// A number.
    Number(u64),
    /// Anything else.
    Text(String),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Word {
    /// Returns the part as programs read it.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Number(number) => json!(number),
            Self::Text(text) => json!(text),
        }
    }
}

type Words = Vec<(&'static str, Word)>;

/// Takes a value apart.
pub(super) fn of(id: FeatureId, value: &FeatureValue) -> Words {
    let FeatureValue { dword0, data } = value;
    let dword0 = *dword0;
    match id {
        FeatureId::ARBITRATION => arbitration(dword0.into()),
        FeatureId::POWER_MANAGEMENT => power(dword0.into()),
        FeatureId::TEMPERATURE_THRESHOLD => threshold(dword0.into()),
        FeatureId::ERROR_RECOVERY => recovery(dword0.into()),
        FeatureId::VOLATILE_WRITE_CACHE => {
            let on = VolatileWriteCache::from(dword0).enabled();
            vec![("Volatile Write Cache Enable (WCE)", enabled(on))]
        }
        FeatureId::NUMBER_OF_QUEUES => queues(dword0.into()),
        FeatureId::INTERRUPT_COALESCING => coalescing(dword0.into()),
        FeatureId::INTERRUPT_VECTOR => vector(dword0.into()),
        FeatureId::WRITE_ATOMICITY => {
            let off = WriteAtomicity::from(dword0).disable_normal();
            vec![("Disable Normal (DN)", truth(off))]
        }
        FeatureId::ASYNC_EVENT_CONFIG => events(dword0.into()),
        FeatureId::AUTONOMOUS_POWER_STATE => transitions(dword0 & 1 == 1, data),
        FeatureId::HOST_MEMORY_BUFFER => host_memory(dword0 & 1 == 1, data),
        FeatureId::TIMESTAMP => vec![("timestamp", number(integer(data, 0, 6)))],
        FeatureId::KEEP_ALIVE => {
            vec![("Keep Alive Timeout (KATO) in milliseconds", number(dword0))]
        }
        FeatureId::THERMAL_MANAGEMENT => thermal(dword0.into()),
        FeatureId::NON_OPERATIONAL_POWER => vec![(
            "Non-Operational Power State Permissive Mode Enable (NOPPME)",
            truth(dword0 & 1 == 1),
        )],
        FeatureId::READ_RECOVERY_LEVEL => {
            vec![("Read Recovery Level (RRL)", number(dword0 & 0xf))]
        }
        FeatureId::HOST_BEHAVIOR => behavior(data),
        FeatureId::SANITIZE_CONFIG => {
            vec![("No-Deallocate Response Mode (NODRM)", number(dword0 & 1))]
        }
        FeatureId::SOFTWARE_PROGRESS => {
            vec![("Pre-boot Software Load Count (PBSLC)", number(dword0 & 0xff))]
        }
        FeatureId::HOST_IDENTIFIER => vec![("Host Identifier (HOSTID)", digits(data))],
        FeatureId::WRITE_PROTECTION => vec![("Namespace Write Protect", protection(dword0))],
        _ if !data.is_empty() => vec![("Data", digits(data))],
        _ => Vec::new(),
    }
}

fn arbitration(value: Arbitration) -> Words {
    let burst = match value.burst() {
        Arbitration::BURST_UNLIMITED => text("No limit"),
        burst => text((1_u32 << burst).to_string()),
    };
    let weight = |zero_based: u8| number(u32::from(zero_based) + 1);
    vec![
        ("High Priority Weight (HPW)", weight(value.high_weight())),
        ("Medium Priority Weight (MPW)", weight(value.medium_weight())),
        ("Low Priority Weight (LPW)", weight(value.low_weight())),
        ("Arbitration Burst (AB)", burst),
    ]
}

fn power(value: PowerManagement) -> Words {
    let hint = match value.workload() {
        0 => "No Workload",
        1 => "Extended Idle Period with a Burst of Random Writes",
        2 => "Heavy Sequential Writes",
        _ => "Reserved",
    };
    vec![
        ("Workload Hint (WH)", number(value.workload())),
        ("WH description", text(hint)),
        ("Power State (PS)", number(value.state())),
    ]
}

fn threshold(value: TemperatureThreshold) -> Words {
    let side = match value.side() {
        TemperatureThreshold::OVER => "Over Temperature Threshold",
        TemperatureThreshold::UNDER => "Under Temperature Threshold",
        _ => "Reserved",
    };
    let sensor = match value.sensor() {
        TemperatureThreshold::COMPOSITE => "Composite Temperature".to_owned(),
        number @ 1..=8 => format!("Temperature Sensor {number}"),
        _ => "Reserved".to_owned(),
    };
    vec![
        ("Threshold Type Select (THSEL)", number(value.side())),
        ("THSEL description", text(side)),
        ("Threshold Temperature Select (TMPSEL)", number(value.sensor())),
        ("TMPSEL description", text(sensor)),
        ("Temperature Threshold (TMPTH)", text(degrees(value.kelvins()))),
    ]
}

fn recovery(value: ErrorRecovery) -> Words {
    const DULBE: &str = "Deallocated or Unwritten Logical Block Error Enable (DULBE)";
    let limit = format!("{} ms", u32::from(value.time_limit()) * 100);
    vec![
        (DULBE, enabled(value.deallocated_error())),
        ("Time Limited Error Recovery (TLER)", text(limit)),
    ]
}

fn queues(value: NumberOfQueues) -> Words {
    vec![
        ("Number of IO Completion Queues Allocated (NCQA)", number(value.completion_count())),
        ("Number of IO Submission Queues Allocated (NSQA)", number(value.submission_count())),
    ]
}

fn coalescing(value: InterruptCoalescing) -> Words {
    let time = format!("{} usec", u32::from(value.time()) * 100);
    let threshold = number(u32::from(value.threshold()) + 1);
    vec![("Aggregation Time (TIME)", text(time)), ("Aggregation Threshold (THR)", threshold)]
}

fn vector(value: InterruptVector) -> Words {
    vec![
        ("Coalescing Disable (CD)", truth(value.coalescing_disabled())),
        ("Interrupt Vector (IV)", number(value.vector())),
    ]
}

fn events(value: AsyncEventConfig) -> Words {
    const PREDICTABLE: &str = "Predictable Latency Event Aggregate Log Change Notices";
    let sent = |on| text(if on { "Send async event" } else { "Do not send async event" });
    let rows = [
        ("Discovery Log Page Change Notices", value.discovery_changed()),
        ("Zone Descriptor Changed Notices", value.zone_changed()),
        ("Normal NVM Subsystem Shutdown", value.subsystem_shutdown()),
        ("Endurance Group Event Aggregate Log Change Notices", value.endurance_group()),
        ("LBA Status Information Notices", value.lba_status()),
        (PREDICTABLE, value.predictable_latency()),
        ("Asymmetric Namespace Access Change Notices", value.asymmetric_access()),
        ("Telemetry Log Notices", value.telemetry()),
        ("Firmware Activation Notices", value.firmware_activation()),
        ("Attached Namespace Attribute Notices", value.namespace_attributes()),
        ("SMART / Health Critical Warnings", value.critical_warnings() != 0),
    ];
    rows.into_iter().map(|(label, on)| (label, sent(on))).collect()
}

/// Reads the table of autonomous transitions: for each power state, where to go after which idle time
/// (Base 5.27.1.9).
fn transitions(on: bool, data: &[u8]) -> Words {
    let mut said = vec![("Autonomous Power State Transition Enable (APSTE)", enabled(on))];
    let entries = data.chunks_exact(8).map(|entry| integer(entry, 0, 8)).enumerate();
    let table: Vec<String> = entries
        .filter(|(_, entry)| *entry != 0)
        .map(|(from, entry)| {
            let (to, idle_ms) = (entry >> 3 & 0x1f, entry >> 8 & 0xff_ffff);
            format!("{from} to {to} after {idle_ms} ms")
        })
        .collect();
    if !table.is_empty() {
        said.push(("Auto PST Entries", text(table.join(", "))));
    }
    said
}

/// Reads the attributes of the host memory buffer (Base 5.27.1.10).
fn host_memory(on: bool, data: &[u8]) -> Words {
    let address = format!("{:#x}", integer(data, 4, 12));
    vec![
        ("Enable Host Memory (EHM)", enabled(on)),
        ("Host Memory Buffer Size (HSIZE)", number(integer(data, 0, 4))),
        ("Host Memory Descriptor List Address (HMDLA)", text(address)),
        ("Host Memory Descriptor List Entry Count (HMDLEC)", number(integer(data, 12, 16))),
    ]
}

fn thermal(value: ThermalManagement) -> Words {
    let (light, heavy) = (value.light_kelvins(), value.heavy_kelvins());
    vec![
        ("Thermal Management Temperature 1 (TMT1)", text(format!("{light} K"))),
        ("TMT1 celsius", text(celsius(light))),
        ("Thermal Management Temperature 2 (TMT2)", text(format!("{heavy} K"))),
        ("TMT2 celsius", text(celsius(heavy))),
    ]
}

/// Reads what the host has said that it understands (Base 5.27.1.18).
fn behavior(data: &[u8]) -> Words {
    let is_set = |at: usize| truth(data.get(at).is_some_and(|byte| *byte == 1));
    vec![
        ("Advanced Command Retry Enable (ACRE)", is_set(0)),
        ("Extended Telemetry Data Area 4 Supported (ETDAS)", is_set(1)),
        ("LBA Format Extension Enable (LBAFEE)", is_set(2)),
    ]
}

fn protection(state: u32) -> Word {
    text(match state & 0b111 {
        0 => "No Write Protect",
        1 => "Write Protect",
        2 => "Write Protect Until Power Cycle",
        3 => "Permanent Write Protect",
        _ => "Reserved",
    })
}

/// Reads bytes `from` to `to`, at most eight, as a number; bytes that are not there are 0.
fn integer(data: &[u8], from: usize, to: usize) -> u64 {
    let bytes = data.get(from..to.min(data.len())).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Writes bytes as hexadecimal digits, without the zeroes at the end.
fn digits(data: &[u8]) -> Word {
    let len = data.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
    text(data.iter().take(len).map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn number(number: impl Into<u64>) -> Word {
    Word::Number(number.into())
}

fn text(text: impl Into<String>) -> Word {
    Word::Text(text.into())
}

fn enabled(on: bool) -> Word {
    text(if on { "Enabled" } else { "Disabled" })
}

fn truth(on: bool) -> Word {
    text(if on { "True" } else { "False" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(id: FeatureId, dword0: u32, data: &[u8]) -> String {
        let words = of(id, &FeatureValue { dword0, data: data.to_vec() });
        words.iter().map(|(label, word)| format!("{label}: {word}\n")).collect()
    }

    #[test]
    fn values_of_a_dword_are_taken_apart() {
        let expected = "High Priority Weight (HPW): 4\nMedium Priority Weight (MPW): 3\n\
            Low Priority Weight (LPW): 2\nArbitration Burst (AB): 64\n";
        assert_eq!(said(FeatureId::ARBITRATION, 0x0302_0106, &[]), expected);
        let unlimited = said(FeatureId::ARBITRATION, 7, &[]);
        assert!(unlimited.ends_with("(AB): No limit\n"), "{unlimited}");
        let expected = "Threshold Type Select (THSEL): 1\n\
            THSEL description: Under Temperature Threshold\n\
            Threshold Temperature Select (TMPSEL): 2\nTMPSEL description: Temperature Sensor 2\n\
            Temperature Threshold (TMPTH): 70 °C (343 K, 158 °F)\n";
        assert_eq!(said(FeatureId::TEMPERATURE_THRESHOLD, 0x12_0157, &[]), expected);
        let expected = "Aggregation Time (TIME): 1000 usec\nAggregation Threshold (THR): 8\n";
        assert_eq!(said(FeatureId::INTERRUPT_COALESCING, 0x0a07, &[]), expected);
    }

    #[test]
    fn values_with_data_are_taken_apart() {
        let mut table = [0; 256];
        table[8..16].copy_from_slice(&(4_u64 << 3 | 100 << 8).to_le_bytes());
        let expected = "Autonomous Power State Transition Enable (APSTE): Enabled\n\
            Auto PST Entries: 1 to 4 after 100 ms\n";
        assert_eq!(said(FeatureId::AUTONOMOUS_POWER_STATE, 1, &table), expected);
        assert_eq!(said(FeatureId::TIMESTAMP, 0, &[1, 2, 0, 0, 0, 0, 9, 9]), "timestamp: 513\n");
        assert_eq!(said(FeatureId::CONTROLLER_METADATA, 0, &[1, 0xab, 0, 0]), "Data: 01ab\n");
        assert_eq!(said(FeatureId::CONTROLLER_METADATA, 0, &[0; 4]), "Data: 00\n");
    }

    #[test]
    fn a_value_that_is_cut_short_is_read_as_far_as_it_goes() {
        for id in (0..=u8::MAX).map(FeatureId) {
            said(id, u32::MAX, &[0xff; 3]);
        }
    }
}
