//! `udirect smart`: health and life of a device, in the words and units of `nvme smart-log`.
//!
//! Temperatures are kelvins in JSON and degrees for people; counters of 128 bits lose nothing.
#![forbid(unsafe_code)]

use serde_json::{Map, Value as Json, json};
use zerocopy::FromBytes;

use super::args::Style;
use super::failure::Failure;
use super::fields::pretty;
use super::output::print;
use crate::open::open;
use crate::spec::log::{LogPage, SmartLog};
use crate::units::NamespaceId;

/// Shows the health of the device at `address`.
pub(super) fn run(address: &str, style: Style) -> Result<(), Failure> {
    let opened = open(address)?;
    let len = size_of::<SmartLog>();
    let page = opened.controller()?.log_page(LogPage::SMART, NamespaceId::ALL, len);
    let page = page.map_err(|error| Failure::of_device(address, error))?;
    let log = SmartLog::read_from_bytes(&page).expect("it was read for its length");
    match style {
        Style::Normal => print(text(address, &log).as_bytes()),
        Style::Json => print(&pretty(&to_json(&log))),
    }
}

/// Where values begin, in columns of a tab.
const COLUMN: usize = 40;
const TAB: usize = 8;

/// Writes a line whose value begins where nvme-cli has it: tabs fill up to column 40.
fn line(key: &str, value: &str) -> String {
    let tabs = COLUMN.saturating_sub(key.len()).div_ceil(TAB);
    format!("{key}{}: {value}\n", "\t".repeat(tabs))
}

fn text(address: &str, log: &SmartLog) -> String {
    let all = NamespaceId::ALL.0;
    let mut out = format!("Smart Log for NVME device:{address} namespace-id:{all:x}\n");
    let mut add = |key: &str, value: String| out += &line(key, &value);
    add("critical_warning", flags(log.critical_warning));
    add("temperature", degrees(log.composite_temperature.get()));
    add("available_spare", format!("{}%", log.available_spare));
    add("available_spare_threshold", format!("{}%", log.available_spare_threshold));
    add("percentage_used", format!("{}%", log.percentage_used));
    add("endurance group critical warning summary", flags(log.endurance_group_warnings));
    add("Data Units Read", data_units(log.data_units_read.get()));
    add("Data Units Written", data_units(log.data_units_written.get()));
    for (key, count) in counters(log) {
        add(key, count.to_string());
    }
    add("Warning Temperature Time", log.warning_temperature_time.to_string());
    add("Critical Composite Temperature Time", log.critical_temperature_time.to_string());
    for (number, kelvins) in sensors(log) {
        add(&format!("Temperature Sensor {number}"), degrees(kelvins));
    }
    add("Thermal Management T1 Trans Count", log.thermal_1_transitions.to_string());
    add("Thermal Management T2 Trans Count", log.thermal_2_transitions.to_string());
    add("Thermal Management T1 Total Time", log.thermal_1_time.to_string());
    add("Thermal Management T2 Total Time", log.thermal_2_time.to_string());
    out
}

/// Lists the counters whose key is the same for people and programs.
fn counters(log: &SmartLog) -> [(&'static str, u128); 8] {
    [
        ("host_read_commands", log.host_read_commands.get()),
        ("host_write_commands", log.host_write_commands.get()),
        ("controller_busy_time", log.controller_busy_time.get()),
        ("power_cycles", log.power_cycles.get()),
        ("power_on_hours", log.power_on_hours.get()),
        ("unsafe_shutdowns", log.unsafe_shutdowns.get()),
        ("media_errors", log.media_errors.get()),
        ("num_err_log_entries", log.error_log_entries.get()),
    ]
}

/// Iterates over the temperature sensors that there are, counted from 1.
fn sensors(log: &SmartLog) -> impl Iterator<Item = (usize, u16)> {
    let all = log.temperature_sensors.iter().map(|kelvins| kelvins.get());
    (1..).zip(all).filter(|(_, kelvins)| *kelvins != 0)
}

fn to_json(log: &SmartLog) -> Json {
    let mut all = Map::new();
    let mut add = |key: &str, value: Json| drop(all.insert(key.to_owned(), value));
    add("critical_warning", json!(log.critical_warning));
    add("temperature", json!(log.composite_temperature.get()));
    add("avail_spare", json!(log.available_spare));
    add("spare_thresh", json!(log.available_spare_threshold));
    add("percent_used", json!(log.percentage_used));
    add("endurance_grp_critical_warning_summary", json!(log.endurance_group_warnings));
    add("data_units_read", json!(log.data_units_read.get()));
    add("data_units_written", json!(log.data_units_written.get()));
    for (key, count) in counters(log) {
        add(key, json!(count));
    }
    add("warning_temp_time", json!(log.warning_temperature_time.get()));
    add("critical_comp_time", json!(log.critical_temperature_time.get()));
    for (number, kelvins) in sensors(log) {
        add(&format!("temperature_sensor_{number}"), json!(kelvins));
    }
    add("thm_temp1_trans_count", json!(log.thermal_1_transitions.get()));
    add("thm_temp2_trans_count", json!(log.thermal_2_transitions.get()));
    add("thm_temp1_total_time", json!(log.thermal_1_time.get()));
    add("thm_temp2_total_time", json!(log.thermal_2_time.get()));
    all.into()
}

/// Writes flags as C's `%#x` has them, which leaves zero bare.
fn flags(bits: u8) -> String {
    if bits == 0 { "0".into() } else { format!("{bits:#x}") }
}

const FREEZING_POINT_KELVINS: i32 = 273;

/// Writes a temperature in whole degrees.
pub(super) fn celsius(kelvins: u16) -> String {
    format!("{} °C", i32::from(kelvins) - FREEZING_POINT_KELVINS)
}

/// Writes a temperature in the three units that there are.
pub(super) fn degrees(kelvins: u16) -> String {
    let fahrenheit = (i32::from(kelvins) - FREEZING_POINT_KELVINS) * 9 / 5 + 32;
    format!("{} ({kelvins} K, {fahrenheit} °F)", celsius(kelvins))
}

/// Writes a count of data units and what that is in bytes, with decimal units.
fn data_units(units: u128) -> String {
    const NAMES: [&str; 11] = ["", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q"];
    let mut bytes = units as f64 * f64::from(SmartLog::DATA_UNIT_BYTES);
    let mut name = 0;
    while bytes >= 1000.0 && name + 1 < NAMES.len() {
        bytes /= 1000.0;
        name += 1;
    }
    format!("{units} ({bytes:.2} {}B)", NAMES[name])
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn log() -> SmartLog {
        let mut log = SmartLog::new_zeroed();
        log.critical_warning = 2;
        log.composite_temperature = 310.into();
        log.available_spare = 100;
        log.available_spare_threshold = 10;
        log.percentage_used = 3;
        log.data_units_read = 1.into();
        log.data_units_written = (1_u128 << 64).into();
        log.host_read_commands = 7.into();
        log.temperature_sensors[1] = 263.into();
        log.thermal_2_time = 9.into();
        log
    }

    #[test]
    fn people_read_what_nvme_cli_prints() {
        let expected = "\
Smart Log for NVME device:mem:1 namespace-id:ffffffff
critical_warning\t\t\t: 0x2
temperature\t\t\t\t: 37 °C (310 K, 98 °F)
available_spare\t\t\t\t: 100%
available_spare_threshold\t\t: 10%
percentage_used\t\t\t\t: 3%
endurance group critical warning summary: 0
Data Units Read\t\t\t\t: 1 (512.00 kB)
Data Units Written\t\t\t: 18446744073709551616 (9.44 YB)
host_read_commands\t\t\t: 7
host_write_commands\t\t\t: 0
controller_busy_time\t\t\t: 0
power_cycles\t\t\t\t: 0
power_on_hours\t\t\t\t: 0
unsafe_shutdowns\t\t\t: 0
media_errors\t\t\t\t: 0
num_err_log_entries\t\t\t: 0
Warning Temperature Time\t\t: 0
Critical Composite Temperature Time\t: 0
Temperature Sensor 2\t\t\t: -10 °C (263 K, 14 °F)
Thermal Management T1 Trans Count\t: 0
Thermal Management T2 Trans Count\t: 0
Thermal Management T1 Total Time\t: 0
Thermal Management T2 Total Time\t: 9
";
        assert_eq!(text("mem:1", &log()), expected);
    }

    #[test]
    fn programs_read_the_keys_of_nvme_cli_in_its_order() {
        let json = to_json(&log());
        let keys: Vec<_> = json.as_object().expect("it is one").keys().cloned().collect();
        let expected = "critical_warning temperature avail_spare spare_thresh percent_used \
            endurance_grp_critical_warning_summary data_units_read data_units_written \
            host_read_commands host_write_commands controller_busy_time power_cycles \
            power_on_hours unsafe_shutdowns media_errors num_err_log_entries warning_temp_time \
            critical_comp_time temperature_sensor_2 thm_temp1_trans_count thm_temp2_trans_count \
            thm_temp1_total_time thm_temp2_total_time";
        assert_eq!(keys.join(" "), expected);
        assert_eq!(
            (&json["temperature"], &json["temperature_sensor_2"]),
            (&310.into(), &263.into())
        );
        assert_eq!(json["data_units_written"].to_string(), "18446744073709551616");
    }
}
