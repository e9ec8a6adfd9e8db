//! The report, for people and for programs.
#![forbid(unsafe_code)]

use core::fmt::Write;

use serde_json::{Value as Json, json};

use super::look::{Drive, Finding, Level, Report};
use crate::host::hugepages::Pool;

impl Level {
    fn mark(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Bad => "bad",
            Self::Unseen => "?",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unseen => "unseen",
            other => other.mark(),
        }
    }
}

/// Writes the report as one screen.
pub(super) fn text(report: &Report) -> String {
    let mut out = String::from("machine\n");
    report.machine.iter().for_each(|finding| line(&mut out, finding));
    for drive in &report.drives {
        let _ = writeln!(out, "\n{}", heading(drive));
        drive.findings.iter().for_each(|finding| line(&mut out, finding));
        let _ = match &drive.obstacle {
            None => writeln!(out, "  it would open: udirect identify pcie:{}", drive.address),
            Some(obstacle) => writeln!(out, "  it would not open: {obstacle}"),
        };
    }
    out
}

fn heading(drive: &Drive) -> String {
    let Some(function) = &drive.function else { return drive.address.to_string() };
    let mut heading = format!("{} ({:04x} {:04x}", drive.address, function.vendor, function.device);
    if let Some(node) = function.numa_node {
        let _ = write!(heading, ", node {node}");
    }
    for disk in &drive.disks {
        let _ = write!(heading, ", {disk}");
    }
    heading + ")"
}

fn line(out: &mut String, finding: &Finding) {
    let Finding { area, level, what, fix } = finding;
    let _ = writeln!(out, "  {:<5}{area:<10} {what}", level.mark());
    if let Some(fix) = fix {
        let _ = writeln!(out, "       {:<10} -> {fix}", "");
    }
}

/// Writes the report for programs.
pub(super) fn json(report: &Report) -> Json {
    json!({
        "iommu": {
            "on": report.iommu.is_on(),
            "groups": report.iommu.groups,
            "virtual_machine": report.iommu.is_virtual,
            "kernel_command_line": report.iommu.words,
        },
        "hugepages": hugepages_json(&report.pools),
        "memlock_bytes": report.memlock.filter(|bytes| *bytes != u64::MAX),
        "findings": findings(&report.machine),
        "devices": report.drives.iter().map(of_drive).collect::<Json>(),
    })
}

fn of_drive(drive: &Drive) -> Json {
    let function = drive.function.as_ref();
    json!({
        "address": drive.address.to_string(),
        "vendor": function.map(|one| one.vendor),
        "device": function.map(|one| one.device),
        "driver": function.and_then(|one| one.driver.as_deref()),
        "iommu_group": function.and_then(|one| one.group),
        "numa_node": function.and_then(|one| one.numa_node),
        "disks": drive.disks,
        "would_open": drive.obstacle.is_none(),
        "obstacle": drive.obstacle,
        "findings": findings(&drive.findings),
    })
}

fn findings(findings: &[Finding]) -> Json {
    let of = |finding: &Finding| {
        json!({
            "area": finding.area,
            "level": finding.level.name(),
            "what": finding.what,
            "fix": finding.fix,
        })
    };
    findings.iter().map(of).collect()
}

/// Writes pools of hugepages for programs.
pub(in crate::cli) fn hugepages_json(pools: &[Pool]) -> Json {
    let of = |pool: &Pool| {
        json!({
            "node": pool.node,
            "page_bytes": pool.page_kib << 10,
            "total": pool.total,
            "free": pool.free,
        })
    };
    pools.iter().map(of).collect()
}
