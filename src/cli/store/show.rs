//! What a store says of itself: `ls`, `stat`, `df`, `map`, `check`.
//!
//! Text and JSON are faces of the same values. Names are text as they are in JSON; for people what would move the
//! cursor is escaped.
#![forbid(unsafe_code)]

use core::fmt::Write;
use std::time::Duration;

use anyhow::anyhow;
use serde_json::{Value as Json, json};

use super::super::args::Style;
use super::super::failure::Failure;
use super::super::fields::{Field, bytes, lines, number, object as object_of, pretty, share, text};
use super::super::output::print;
use super::Ground;
use crate::open::open;
use crate::units::FileId;
use crate::volume::{ObjectInfo, Report, Segment, check};

/// How long each request of a check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// Lists the objects.
pub(super) fn list(ground: &Ground, long: bool, style: Style) -> Result<(), Failure> {
    let mut objects = ground.store.list();
    objects.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    match style {
        Style::Json => {
            let rows: Json =
                objects.iter().map(|info| Json::from(object_of(&fields(info)))).collect();
            let uuid = ground.store.info().uuid.to_string();
            print(&pretty(&json!({ "store": uuid, "objects": rows })))
        }
        Style::Normal if long => print(table(&objects).as_bytes()),
        Style::Normal => {
            let names = objects.iter().map(|info| shown(info) + "\n");
            print(names.collect::<String>().as_bytes())
        }
    }
}

/// Returns what an object is called: its name, or `#` and its number.
fn shown(info: &ObjectInfo) -> String {
    match &info.name {
        Some(name) => escaped(name),
        None => format!("#{}", info.id),
    }
}

/// Escapes what a terminal would act on.
pub(super) fn escaped(name: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    name.chars().map(escape).collect()
}

fn table(objects: &[ObjectInfo]) -> String {
    let mut out = format!(
        "{:>8} {:>16} {:>16} {:>8} {:<19} name\n",
        "number", "size", "allocated", "extents", "modified (UTC)"
    );
    for info in objects {
        let ObjectInfo { id, size, allocated, extents, modified, .. } = info;
        let (id, time) = (id.0, utc(*modified));
        let _ = writeln!(
            out,
            "{id:>8} {size:>16} {allocated:>16} {extents:>8} {time:<19} {}",
            shown(info)
        );
    }
    out
}

fn fields(info: &ObjectInfo) -> Vec<Field> {
    let name = info.name.iter().map(|name| text("name", name.clone()));
    let rest = [
        number("id", info.id.0),
        bytes("size_bytes", info.size),
        bytes("allocated_bytes", info.allocated),
        number("extents", info.extents),
        number("created_ns", info.created),
        number("modified_ns", info.modified),
    ];
    name.chain(rest).collect()
}

/// Shows what is known of an object.
pub(super) fn object(ground: &Ground, id: FileId, style: Style) -> Result<(), Failure> {
    let blame = |error| ground.blame(error);
    let info = ground.store.stat(id).map_err(blame)?;
    let attributes = ground.store.attributes(id).map_err(blame)?;
    if style == Style::Json {
        let mut document = object_of(&fields(&info));
        let attribute = |(key, value): &(String, Vec<u8>)| (key.clone(), Json::from(hex(value)));
        document.insert("attributes_hex".into(), attributes.iter().map(attribute).collect());
        return print(&pretty(&document.into()));
    }
    let mut out = lines(
        &[
            text("name", shown(&info)),
            number("number", info.id.0),
            bytes("size", info.size),
            bytes("allocated", info.allocated),
            number("extents", info.extents),
            text("created", utc(info.created) + " UTC"),
            text("modified", utc(info.modified) + " UTC"),
        ],
        10,
    );
    for (key, value) in &attributes {
        let _ = writeln!(out, "attribute : {} = \"{}\"", escaped(key), value.escape_ascii());
    }
    print(out.as_bytes())
}

fn hex(value: &[u8]) -> String {
    value.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Shows how full the store is.
pub(super) fn fill(ground: &Ground, style: Style) -> Result<(), Failure> {
    let (info, now) = (ground.store.info(), ground.store.statistics());
    let free = now.free.free_units * now.unit;
    let leaving = now.leaving * now.unit;
    let fields = [
        text("uuid", info.uuid.to_string()),
        bytes("capacity_bytes", info.capacity.0),
        bytes("data_bytes", info.data.0),
        bytes("used_bytes", info.data.0 - free - leaving),
        bytes("leaving_bytes", leaving),
        bytes("free_bytes", free),
        bytes("unit_bytes", now.unit),
        number("objects", now.objects),
        number("extents", now.extents),
        number("free_runs", now.free.runs),
        bytes("largest_free_run_bytes", now.free.largest_run * now.unit),
        share("fragmentation", now.free.fragmentation),
        bytes("journal_bytes", now.journal.0),
        bytes("journal_used_bytes", now.journal.1),
        bytes("map_bytes_max", now.map.1),
        bytes("map_bytes", now.map.0),
    ];
    match style {
        Style::Json => print(&pretty(&object_of(&fields).into())),
        Style::Normal => print(lines(&fields, 23).as_bytes()),
    }
}

/// Shows where an object's bytes are.
pub(super) fn map(ground: &Ground, id: FileId, style: Style) -> Result<(), Failure> {
    let blame = |error| ground.blame(error);
    let segments = ground.store.segments(id).map_err(blame)?;
    let info = ground.store.stat(id).map_err(blame)?;
    match style {
        Style::Json => {
            let extents: Json = segments.iter().map(segment_json).collect();
            let name = info.name.as_deref();
            print(&pretty(
                &json!({ "name": name, "id": id.0, "size_bytes": info.size, "extents": extents }),
            ))
        }
        Style::Normal => print(map_table(&segments).as_bytes()),
    }
}

fn segment_json(segment: &Segment) -> Json {
    json!({
        "offset_bytes": segment.offset,
        "device_bytes": segment.device,
        "length_bytes": segment.len,
        "written": segment.written,
    })
}

fn map_table(segments: &[Segment]) -> String {
    let mut out = format!("{:>16} {:>16} {:>16} state\n", "offset", "device", "length");
    for Segment { offset, device, len, written } in segments {
        let state = if *written { "written" } else { "unwritten" };
        let _ = writeln!(out, "{offset:>16} {device:>16} {len:>16} {state}");
    }
    out
}

/// Checks the store at an address. What is wrong is a result, and fails.
pub(super) fn check_at(address: &str, style: Style) -> Result<(), Failure> {
    let opened = open(address)?;
    let checked = check(&opened.device, CHECK_TIMEOUT);
    // Without a store there is nothing to keep: an image that looking for it has made goes.
    match &checked {
        Ok(Report { store: Some(_), .. }) => drop(opened),
        _ => opened.discard(),
    }
    let report = checked.map_err(|error| Failure::of_store(address, error))?;
    match style {
        Style::Json => print(&pretty(&report_json(&report)))?,
        Style::Normal => print(report_text(&report).as_bytes())?,
    }
    match report.findings.len() {
        0 => Ok(()),
        1 => Err(Failure::io(anyhow!("{address}: 1 finding"))),
        count => Err(Failure::io(anyhow!("{address}: {count} findings"))),
    }
}

fn report_text(report: &Report) -> String {
    if !report.is_sound() {
        return report.findings.iter().map(|finding| format!("{finding}\n")).collect();
    }
    let Report { blocks, objects, extents, used, free, replayed: (records, operations), .. } =
        report;
    format!(
        "sound: {blocks} blocks of metadata, {objects} objects, {extents} extents, {used} units used, \
         {free} free, {operations} operations in {records} records behind the checkpoint\n"
    )
}

fn report_json(report: &Report) -> Json {
    let finding =
        |finding: &crate::volume::Finding| json!({ "name": finding.name, "text": finding.text });
    json!({
        "store": report.store.map(|uuid| uuid.to_string()),
        "sound": report.is_sound(),
        "findings": report.findings.iter().map(finding).collect::<Json>(),
        "blocks": report.blocks,
        "objects": report.objects,
        "extents": report.extents,
        "used_units": report.used,
        "free_units": report.free,
        "records_replayed": report.replayed.0,
        "operations_replayed": report.replayed.1,
    })
}

/// Writes a time as `2026-01-31 12:34:56`.
fn utc(nanos: u64) -> String {
    let seconds = nanos / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// Returns year, month and day of a day since 1970, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Years that begin in March have their odd day at the end: after 400 of them it all repeats.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |seconds: u64| utc(seconds * 1_000_000_000);
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_709_251_200), "2024-03-01 00:00:00");
        assert_eq!(at(4_102_444_800), "2100-01-01 00:00:00");
    }

    #[test]
    fn names_do_not_move_the_cursor() {
        assert_eq!(escaped("a\nb\u{1b}[1m"), "a\\nb\\u{1b}[1m");
        assert_eq!(escaped("größe !"), "größe !");
    }
}
