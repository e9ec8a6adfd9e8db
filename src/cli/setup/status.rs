//! `setup status`: who has which drive, and how many hugepages there are.
#![forbid(unsafe_code)]

use core::fmt::Write;

use anyhow::Context;
use serde_json::{Value as Json, json};

use super::super::args::Style;
use super::super::doctor::hugepages_json;
use super::super::failure::Failure;
use super::super::fields::pretty;
use super::super::output::print;
use crate::bench::human::Amount;
use crate::host::hugepages::{Pool, pools};
use crate::host::{Host, disk, uses, vfio};
use crate::pci::Function;

/// Shows drives and hugepages.
pub(super) fn show(host: &Host, style: Style) -> Result<(), Failure> {
    let functions = host.sysfs.functions().context("sysfs").map_err(Failure::device)?;
    let rows: Vec<Row> =
        functions.into_iter().filter(Function::is_nvme).map(|one| Row::of(host, one)).collect();
    let pools = pools(host);
    match style {
        Style::Normal => print(text(&rows, &pools).as_bytes()),
        Style::Json => print(&pretty(&json!({
            "devices": rows.iter().map(Row::to_json).collect::<Json>(),
            "hugepages": hugepages_json(&pools),
        }))),
    }
}

/// One drive.
pub(super) struct Row {
    function: Function,
    disks: Vec<String>,
    uses: Vec<String>,
    owner: Option<u32>,
}

impl Row {
    pub(super) fn of(host: &Host, function: Function) -> Self {
        let disks = disk::disks(host, function.address);
        let found = disks.iter().flat_map(|disk| uses::look(host, disk).uses);
        let mut uses: Vec<String> = found.map(|one| one.to_string()).collect();
        let file = function.group.and_then(|group| vfio::group_file(host, group));
        let holder = file.as_ref().and_then(|file| file.holder.as_ref());
        uses.extend(holder.map(|(process, name)| format!("process {process} ({name}) drives it")));
        Self { disks, uses, owner: file.map(|file| file.owner), function }
    }

    fn to_json(&self) -> Json {
        let Function { address, vendor, device, driver, group, numa_node, .. } = &self.function;
        json!({
            "address": address.to_string(),
            "vendor": vendor,
            "device": device,
            "driver": driver,
            "driver_override": self.function.driver_override,
            "iommu_group": group,
            "numa_node": numa_node,
            "disks": self.disks,
            "uses": self.uses,
            "group_owner": self.owner,
        })
    }
}

/// Writes drives and hugepages for people.
pub(super) fn text(rows: &[Row], pools: &[Pool]) -> String {
    let mut out = String::new();
    if rows.is_empty() {
        out += "no NVMe controller\n";
    } else {
        let _ = writeln!(
            out,
            "{:<13} {:<9} {:>4} {:>5} {:<16} what",
            "address", "id", "node", "group", "driver"
        );
    }
    for row in rows {
        let Function { address, vendor, device, driver, group, numa_node, .. } = &row.function;
        let or_dash = |number: Option<u32>| number.map_or("-".into(), |number| number.to_string());
        let mut what = row.disks.clone();
        what.extend(row.owner.map(|owner| format!("user {owner}")));
        what.extend(row.uses.iter().cloned());
        let line = format!(
            "{:<13} {:<9} {:>4} {:>5} {:<16} {}",
            address.to_string(),
            format!("{vendor:04x} {device:04x}"),
            or_dash(*numa_node),
            or_dash(*group),
            driver.as_deref().unwrap_or("-"),
            what.join(", "),
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    pools.iter().for_each(|pool| out = format!("{out}{}\n", pool_line(pool)));
    out
}

/// Writes the hugepages of a node.
pub(super) fn pool_line(pool: &Pool) -> String {
    let Pool { node, page_kib, total, free } = *pool;
    format!("hugepages of {} on node {node}: {total}, {free} free", Amount(page_kib << 10))
}
