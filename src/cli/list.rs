//! `udirect list`: devices in a table with the columns and the keys of `nvme list`.
//!
//! A [`Row`] is read from an opened device; the table and the JSON are its faces. A device in
//! userspace has no node: its address stands in that place, and there is no generic one.
#![forbid(unsafe_code)]

use serde_json::{Value as Json, json};

use super::args::Style;
use super::failure::Failure;
use super::fields::pretty;
use super::identify::namespace_of;
use super::output::{print, tell};
use crate::open::{Opened, open, schemes};
use crate::units::{ByteLen, NamespaceId};

/// Lists the devices at `addresses`.
pub(super) fn run(addresses: &[String], style: Style) -> Result<(), Failure> {
    if addresses.is_empty() {
        explain_addresses();
    }
    let rows: Vec<Row> =
        addresses.iter().map(|address| Row::read(address)).collect::<Result<_, _>>()?;
    match style {
        Style::Normal => print(table(&rows).as_bytes()),
        Style::Json => {
            print(&pretty(&json!({ "Devices": rows.iter().map(Row::to_json).collect::<Json>() })))
        }
    }
}

fn explain_addresses() {
    tell("no device without an address; an address is one of");
    schemes().iter().for_each(|(form, help)| tell(&format!("  {form}  {help}")));
}

/// One device.
#[derive(Clone, Debug)]
struct Row {
    address: String,
    serial: String,
    model: String,
    firmware: String,
    namespace: NamespaceId,
    used: ByteLen,
    size: ByteLen,
    lba_bytes: u32,
    metadata_bytes: u16,
}

impl Row {
    fn read(address: &str) -> Result<Self, Failure> {
        let opened = open(address)?;
        Self::of(address, &opened)
    }

    fn of(address: &str, opened: &Opened) -> Result<Self, Failure> {
        let (id, geometry) = (namespace_of(opened)?, opened.device.geometry());
        let info = opened.device.info();
        Ok(Self {
            address: address.to_owned(),
            serial: info.serial.clone(),
            model: info.model.clone(),
            firmware: info.firmware.clone(),
            namespace: opened.namespace,
            used: ByteLen(id.nuse.get().saturating_mul(u64::from(geometry.lba_size.bytes()))),
            size: geometry.capacity(),
            lba_bytes: geometry.lba_size.bytes(),
            metadata_bytes: id.lba_format().ms.get(),
        })
    }

    fn columns(&self) -> [String; 8] {
        let usage = format!("{} / {}", decimal(self.used), decimal(self.size));
        let format = format!("{} + {:2} B", binary(self.lba_bytes), self.metadata_bytes);
        [
            self.address.clone(),
            "-".to_owned(),
            self.serial.clone(),
            self.model.clone(),
            self.namespace.to_string(),
            usage,
            format,
            self.firmware.clone(),
        ]
    }

    fn to_json(&self) -> Json {
        json!({
            "NameSpace": self.namespace.0,
            "DevicePath": self.address,
            "GenericPath": "-",
            "Firmware": self.firmware,
            "ModelNumber": self.model,
            "SerialNumber": self.serial,
            "UsedBytes": self.used.0,
            "MaximumLBA": self.size.0 / u64::from(self.lba_bytes),
            "PhysicalSize": self.size.0,
            "SectorSize": self.lba_bytes,
        })
    }
}

/// The columns and their widths, as nvme-cli 2 has them.
const COLUMNS: [(&str, usize); 8] = [
    ("Node", 21),
    ("Generic", 21),
    ("SN", 20),
    ("Model", 40),
    ("Namespace", 9),
    ("Usage", 26),
    ("Format", 16),
    ("FW Rev", 8),
];

fn table(rows: &[Row]) -> String {
    let mut out = line(&COLUMNS.map(|(name, _)| name.to_owned()));
    out += &line(&COLUMNS.map(|(_, width)| "-".repeat(width)));
    rows.iter().for_each(|row| out += &line(&row.columns()));
    out
}

/// Writes one line; an address that is too long for its column is not cut, since it can be copied.
fn line(cells: &[String; 8]) -> String {
    let padded = cells.iter().zip(COLUMNS).map(|(cell, (_, width))| format!("{cell:<width$}"));
    padded.collect::<Vec<_>>().join(" ") + "\n"
}

/// Writes a capacity with decimal units, as drives are sold.
fn decimal(length: ByteLen) -> String {
    let units = ["", "k", "M", "G", "T", "P"];
    let mut value = length.0 as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:6.2} {:>2}B", units[unit])
}

fn binary(bytes: u32) -> String {
    if bytes.is_multiple_of(1024) {
        return format!("{:3} KiB", bytes / 1024);
    }
    format!("{bytes:3}   B")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            address: "mem:1GiB".into(),
            serial: "0001".into(),
            model: "udirect memory".into(),
            firmware: "1.0".into(),
            namespace: NamespaceId(1),
            used: ByteLen(512 << 20),
            size: ByteLen(1 << 30),
            lba_bytes: 512,
            metadata_bytes: 0,
        }
    }

    #[test]
    fn the_columns_are_those_of_nvme_list() {
        let text = table(&[row(), Row { lba_bytes: 4096, ..row() }]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("Node                  Generic               SN  "));
        assert!(lines[1].starts_with("--------------------- --------------------- -----"));
        let middle = " 1         536.87  MB /   1.07  GB    512   B +  0 B   1.0     ";
        assert!(lines[2].ends_with(middle), "{:?}", lines[2]);
        assert!(lines[3].contains("   4 KiB +  0 B "), "{:?}", lines[3]);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()));
    }

    #[test]
    fn the_keys_are_those_of_nvme_list() {
        let json = row().to_json();
        assert_eq!(json["MaximumLBA"], 1 << 21);
        assert_eq!(json["SectorSize"], 512);
        assert_eq!(json["DevicePath"], "mem:1GiB");
    }

    #[test]
    fn capacities_carry_into_the_next_unit() {
        assert_eq!(decimal(ByteLen(999)), "999.00   B");
        assert_eq!(decimal(ByteLen(1000)), "  1.00  kB");
        assert_eq!(decimal(ByteLen(u64::MAX)), "18446.74  PB");
    }
}
