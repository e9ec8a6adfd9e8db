//! `udirect error-log`: the last commands that failed, newest first, as `nvme error-log` shows them.
#![forbid(unsafe_code)]

use serde_json::{Value as Json, json};
use zerocopy::FromBytes;

use super::args::Style;
use super::failure::Failure;
use super::fields::pretty;
use super::output::print;
use crate::open::open;
use crate::spec::log::{ErrorLogEntry, LogPage};
use crate::units::NamespaceId;

/// Shows at most `most` entries of the error log of the device at `address`: as many as it keeps, if not told.
pub(super) fn run(address: &str, most: Option<u32>, style: Style) -> Result<(), Failure> {
    let opened = open(address)?;
    let kept = usize::from(opened.controller()?.identify().elpe) + 1;
    let count = most.map_or(kept, |most| kept.min(most as usize));
    let len = count * size_of::<ErrorLogEntry>();
    let page = opened.controller()?.log_page(LogPage::ERROR, NamespaceId::ALL, len);
    let page = page.map_err(|error| Failure::of_device(address, error))?;
    let entries = <[ErrorLogEntry]>::ref_from_bytes(&page).expect("it was read for its length");
    match style {
        Style::Normal => print(text(address, entries).as_bytes()),
        Style::Json => print(&pretty(&to_json(entries))),
    }
}

/// The line between entries.
const RULE: &str = ".................\n";

fn text(address: &str, entries: &[ErrorLogEntry]) -> String {
    let mut out = format!("Error Log Entries for device:{address} entries:{}\n", entries.len());
    out += RULE;
    for (index, entry) in entries.iter().enumerate() {
        out += &format!(" Entry[{index:2}]   \n{RULE}{}{RULE}", entry_text(entry));
    }
    out
}

fn entry_text(entry: &ErrorLogEntry) -> String {
    let (status, tag) = status(entry);
    let name = entry.status().code().name().unwrap_or("Unknown");
    let rows = [
        ("error_count\t", entry.error_count.to_string()),
        ("sqid\t\t", entry.sqid.to_string()),
        ("cmdid\t\t", hex(entry.cid)),
        ("status_field\t", format!("{} ({name})", hex(status))),
        ("phase_tag\t", hex(tag)),
        ("parm_err_loc\t", hex(entry.parameter_location)),
        ("lba\t\t", hex(entry.lba)),
        ("nsid\t\t", hex(entry.nsid)),
        ("vs\t\t", entry.vendor_page.to_string()),
        ("trtype\t\t", format!("{} ({})", hex(entry.trtype), transport(entry.trtype))),
        ("cs\t\t", hex(entry.command_specific)),
        ("trtype_spec_info", hex(entry.transport_specific)),
    ];
    rows.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
}

fn to_json(entries: &[ErrorLogEntry]) -> Json {
    json!({ "errors": entries.iter().map(entry_json).collect::<Json>() })
}

fn entry_json(entry: &ErrorLogEntry) -> Json {
    let (status, tag) = status(entry);
    json!({
        "error_count": entry.error_count.get(),
        "sqid": entry.sqid.get(),
        "cmdid": entry.cid.get(),
        "status_field": status,
        "phase_tag": tag,
        "parm_error_location": entry.parameter_location.get(),
        "lba": entry.lba.get(),
        "nsid": entry.nsid.get(),
        "vs": entry.vendor_page,
        "trtype": entry.trtype,
        "cs": entry.command_specific.get(),
        "trtype_spec_info": entry.transport_specific.get(),
    })
}

/// Takes the status field apart: status and phase tag.
fn status(entry: &ErrorLogEntry) -> (u16, u16) {
    (entry.status.get() >> 1, entry.status.get() & 1)
}

fn transport(trtype: u8) -> &'static str {
    match trtype {
        0 => "The transport type is not indicated or the error is not transport related",
        1 => "RDMA Transport error",
        2 => "Fibre Channel Transport error",
        3 => "TCP Transport error",
        254 => "Intra-host Transport error",
        _ => "Reserved",
    }
}

/// Writes a number as C's `%#x` has it, which leaves zero bare.
fn hex(number: impl Into<u64>) -> String {
    match number.into() {
        0 => "0".to_owned(),
        number => format!("{number:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn entry() -> ErrorLogEntry {
        let mut entry = ErrorLogEntry::new_zeroed();
        entry.error_count = 5.into();
        entry.sqid = 1.into();
        entry.cid = 0x1f.into();
        // LBA Out of Range, more, do not retry; the phase tag was set.
        entry.status = (0xc101_u16).into();
        entry.parameter_location = u16::MAX.into();
        entry.lba = 0x1_0000_0000.into();
        entry.nsid = 1.into();
        entry
    }

    #[test]
    fn an_entry_reads_as_from_nvme_cli() {
        let expected = "\
Error Log Entries for device:mem:1 entries:1
.................
 Entry[ 0]   
.................
error_count\t: 5
sqid\t\t: 1
cmdid\t\t: 0x1f
status_field\t: 0x6080 (LBA Out of Range)
phase_tag\t: 0x1
parm_err_loc\t: 0xffff
lba\t\t: 0x100000000
nsid\t\t: 0x1
vs\t\t: 0
trtype\t\t: 0 (The transport type is not indicated or the error is not transport related)
cs\t\t: 0
trtype_spec_info: 0
.................
";
        assert_eq!(text("mem:1", &[entry()]), expected);
    }

    #[test]
    fn the_keys_are_those_of_nvme_cli() {
        let json = to_json(&[entry()]).to_string();
        let expected = "{\"errors\":[{\"error_count\":5,\"sqid\":1,\"cmdid\":31,\"status_field\":24704,\
            \"phase_tag\":1,\"parm_error_location\":65535,\"lba\":4294967296,\"nsid\":1,\"vs\":0,\
            \"trtype\":0,\"cs\":0,\"trtype_spec_info\":0}]}";
        assert_eq!(json, expected);
    }
}
