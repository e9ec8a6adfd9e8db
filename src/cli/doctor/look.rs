//! The findings: of the machine, and of each drive.
#![forbid(unsafe_code)]

use std::io;

use crate::bench::human::Amount;
use crate::host::hugepages::{self, PAGE_KIB, Pool, WANTED};
use crate::host::iommu::{self, Iommu};
use crate::host::limits::{self, MEMLOCK_WANTED_BYTES};
use crate::host::modules::{self, Module};
use crate::host::{Host, disk, uses, vfio};
use crate::pci::{Function, PciAddress};
use crate::transport::vfio::{DRIVER, VfioError, admit};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// As it should be.
    Fine,
    /// Worth knowing; nothing fails for it.
    Note,
    /// In the way.
    Bad,
    /// It could not be looked at.
    Unseen,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// About what.
    pub(super) area: &'static str,
    /// How much it matters.
    pub(super) level: Level,
    /// What was found.
    pub(super) what: String,
    /// What helps.
    pub(super) fix: Option<String>,
}

impl Finding {
    fn new(area: &'static str, level: Level, what: impl Into<String>) -> Self {
        Self { area, level, what: what.into(), fix: None }
    }

    fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}

/// What is known of a drive.
#[derive(Clone, Debug)]
pub(super) struct Drive {
    /// Where it is.
    pub(super) address: PciAddress,
    /// What sysfs says of it; `None` if there is nothing.
    pub(super) function: Option<Function>,
    /// The disks that the kernel makes of it.
    pub(super) disks: Vec<String>,
    /// What was found.
    pub(super) findings: Vec<Finding>,
    /// Why it would not open; `None` if it would.
    pub(super) obstacle: Option<String>,
}

/// What is known of the machine and its drives.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// Its IOMMU.
    pub(super) iommu: Iommu,
    /// Its hugepages.
    pub(super) pools: Vec<Pool>,
    /// What this user may lock.
    pub(super) memlock: Option<u64>,
    /// What was found about the machine.
    pub(super) machine: Vec<Finding>,
    /// The drives that were asked for.
    pub(super) drives: Vec<Drive>,
}

/// Looks at the machine and at these drives, or at all.
pub(super) fn report(host: &Host, addresses: &[PciAddress]) -> io::Result<Report> {
    let mut addresses = addresses.to_vec();
    let all = host.sysfs.functions()?;
    if addresses.is_empty() {
        addresses.extend(all.iter().filter(|one| one.is_nvme()).map(|one| one.address));
    }
    let drives = addresses.into_iter().map(|address| drive(host, address));
    let drives = drives.collect::<io::Result<Vec<_>>>()?;
    let (iommu, pools) = (iommu::look(host), hugepages::pools(host));
    let memlock = limits::memlock(host);
    let mut machine = vec![of_iommu(&iommu)];
    machine.extend(["vfio-pci", "vfio_iommu_type1"].map(|name| of_module(host, name)));
    machine.extend(of_pages(host, &pools, &drives));
    machine.push(of_memlock(host, memlock));
    if !host.is_root() {
        let what = "disks and the processes of other users are seen by root only";
        machine.push(Finding::new("user", Level::Unseen, what).fix("sudo udirect doctor"));
    }
    if !all.iter().any(Function::is_nvme) {
        let what = "this machine shows no NVMe controller";
        machine.push(
            Finding::new("drives", Level::Note, what).fix("udirect bench mem:1GiB needs none"),
        );
    }
    Ok(Report { iommu, pools, memlock, machine, drives })
}

fn of_iommu(iommu: &Iommu) -> Finding {
    let words = if iommu.words.is_empty() {
        "the kernel command line does not speak of it".into()
    } else {
        format!("kernel command line: {}", iommu.words.join(" "))
    };
    match iommu.fix() {
        None => {
            let what = format!("on, {} groups ({words})", iommu.groups);
            Finding::new("iommu", Level::Fine, what)
        }
        Some(fix) => {
            let waived = if iommu.is_waived { "; vfio works without one, unprotected" } else { "" };
            Finding::new("iommu", Level::Bad, format!("off{waived} ({words})")).fix(fix)
        }
    }
}

fn of_module(host: &Host, name: &'static str) -> Finding {
    match modules::look(host, name) {
        Module::Loaded => Finding::new("module", Level::Fine, format!("{name} is loaded")),
        Module::Available => Finding::new("module", Level::Bad, format!("{name} is not loaded"))
            .fix(format!("modprobe {name} (udirect setup bind does it)")),
        Module::Missing => {
            let release = modules::release(host);
            let what = format!("{name} is not loaded, and kernel {release} lists no such module");
            Finding::new("module", Level::Bad, what).fix("install the kernel's full set of modules")
        }
    }
}

/// Every node with a drive should have some hugepages. Without any, ordinary pages serve.
fn of_pages(host: &Host, pools: &[Pool], drives: &[Drive]) -> Vec<Finding> {
    let mut nodes: Vec<u32> = drives
        .iter()
        .filter_map(|drive| drive.function.as_ref())
        .map(|function| function.numa_node.unwrap_or(0))
        .collect();
    nodes.extend(pools.iter().filter(|pool| pool.total > 0).map(|pool| pool.node));
    if nodes.is_empty() {
        nodes.push(0);
    }
    nodes.sort_unstable();
    nodes.dedup();
    let of_node = |node: u32| {
        let mut found: Vec<Finding> = Vec::new();
        let large = pools.iter().filter(|pool| pool.node == node && pool.page_kib != PAGE_KIB);
        found.extend(large.filter(|pool| pool.total > 0).map(|pool| {
            let (total, free) = (pool.total, pool.free);
            let what =
                format!("node {node}: {total} of {}, {free} free", Amount(pool.page_kib << 10));
            Finding::new("hugepages", Level::Note, what)
        }));
        found.push(
            match pools.iter().find(|pool| pool.node == node && pool.page_kib == PAGE_KIB) {
                Some(pool) => of_pool(host, pool),
                None => {
                    let what = format!("node {node}: the kernel has none of 2 MiB");
                    Finding::new("hugepages", Level::Note, what)
                }
            },
        );
        found
    };
    nodes.into_iter().flat_map(of_node).collect()
}

fn of_pool(host: &Host, pool: &Pool) -> Finding {
    let Pool { node, total, free, .. } = *pool;
    let what = format!("node {node}: {total} of 2 MiB, {free} free, {WANTED} wanted");
    if free >= WANTED {
        return Finding::new("hugepages", Level::Fine, what);
    }
    let wanted = total + WANTED - free;
    let fix = format!(
        "udirect setup hugepages {wanted} --node {node}; without them ordinary pages serve"
    );
    let missing = WANTED - free;
    match hugepages::room(host, node) {
        Some(room) if room.pages < missing && room.units >= missing => {
            let pages = room.pages;
            let what = format!(
                "{what}; memory is fragmented: {pages} more can be had, although {} is free",
                Amount(room.units << 21)
            );
            let fix =
                format!("{fix}; hugepages={wanted} on the kernel command line takes them at boot");
            Finding::new("hugepages", Level::Note, what).fix(fix)
        }
        Some(room) if room.units < missing => {
            let what = format!("{what}; only {} of memory is free", Amount(room.units << 21));
            Finding::new("hugepages", Level::Note, what).fix(fix)
        }
        _ => Finding::new("hugepages", Level::Note, what).fix(fix),
    }
}

fn of_memlock(host: &Host, memlock: Option<u64>) -> Finding {
    let fix = "ulimit -l unlimited, or a line `USER - memlock unlimited` in /etc/security/limits.d, or \
               LimitMEMLOCK=infinity in the service";
    match memlock {
        None => {
            let what = "the limit of locked memory cannot be read from /proc/self/limits";
            Finding::new("memlock", Level::Unseen, what)
        }
        Some(u64::MAX) => Finding::new("memlock", Level::Fine, "unlimited"),
        Some(bytes) if host.is_root() => Finding::new(
            "memlock",
            Level::Fine,
            format!("{}, which root may exceed", Amount(bytes)),
        ),
        Some(bytes) if bytes >= MEMLOCK_WANTED_BYTES => {
            Finding::new("memlock", Level::Fine, Amount(bytes).to_string())
        }
        Some(bytes) => {
            let what = format!("{}: a drive wants {}", Amount(bytes), Amount(MEMLOCK_WANTED_BYTES));
            let level = if bytes < limits::memlock_min(host) { Level::Bad } else { Level::Note };
            Finding::new("memlock", level, what).fix(fix)
        }
    }
}

fn drive(host: &Host, address: PciAddress) -> io::Result<Drive> {
    let function = host.sysfs.function(address)?;
    let obstacle = open_obstacle(host, address);
    let Some(function) = function else {
        return Ok(Drive { address, function, disks: Vec::new(), findings: Vec::new(), obstacle });
    };
    let disks = disk::disks(host, address);
    let mut findings = vec![of_driver(&function)];
    findings.extend(of_group(host, &function)?);
    findings.extend(disks.iter().flat_map(|disk| of_disk(host, address, disk)));
    findings.extend(of_group_file(host, &function));
    if let Some((process, name)) = vfio::spdk_lock(host, address) {
        let what = format!("process {process} ({name}) holds SPDK's lock on it");
        findings.push(Finding::new("lock", Level::Bad, what).fix(format!("end process {process}")));
    }
    Ok(Drive { address, function: Some(function), disks, findings, obstacle })
}

fn of_driver(function: &Function) -> Finding {
    let address = function.address;
    match function.driver.as_deref() {
        Some(DRIVER) => Finding::new("driver", Level::Fine, DRIVER),
        Some(driver) => Finding::new("driver", Level::Note, format!("{driver} has it"))
            .fix(format!("udirect setup bind {address}")),
        None => Finding::new("driver", Level::Note, "no driver has it")
            .fix(format!("udirect setup bind {address}")),
    }
}

fn of_group(host: &Host, function: &Function) -> io::Result<Vec<Finding>> {
    let Some(group) = function.group else {
        let what = "it is in no IOMMU group: see iommu above";
        return Ok(vec![Finding::new("group", Level::Bad, what)]);
    };
    let others = host.sysfs.group(group)?.into_iter();
    let others = others.filter(|one| one.address != function.address && !one.class.is_bridge());
    let mut found: Vec<Finding> = others
        .map(|other| {
            let driver = other.driver.as_deref();
            let shared = format!("IOMMU group {group} is shared with {}", other.address);
            match driver {
                None | Some(DRIVER) => {
                    let what = format!("{shared} ({})", driver.unwrap_or("no driver"));
                    Finding::new("group", Level::Note, what)
                }
                Some(driver) => {
                    let what = format!("{shared}, which {driver} has: both, or neither");
                    let fix =
                        format!("udirect setup bind {} as well, or another slot", other.address);
                    Finding::new("group", Level::Bad, what).fix(fix)
                }
            }
        })
        .collect();
    if found.is_empty() {
        found.push(Finding::new("group", Level::Fine, format!("alone in IOMMU group {group}")));
    }
    Ok(found)
}

fn of_disk(host: &Host, address: PciAddress, disk: &str) -> Vec<Finding> {
    let seen = uses::look(host, disk);
    let mut found: Vec<Finding> = seen
        .uses
        .iter()
        .map(|one| Finding::new("in use", Level::Note, format!("{disk}: {one}")).fix(one.fix()))
        .collect();
    found.extend(seen.signatures.iter().map(|(block, signature)| {
        let finding =
            Finding::new("content", Level::Note, format!("{block} holds {}", signature.name));
        if signature.is_userspace || !seen.uses.is_empty() {
            return finding;
        }
        finding.fix(format!("udirect setup bind {address} --force, if that is not needed any more"))
    }));
    let unseen = seen.unseen.iter();
    found.extend(unseen.map(|what| Finding::new("in use", Level::Unseen, what.clone())));
    if found.is_empty() {
        found.push(Finding::new(
            "in use",
            Level::Fine,
            format!("{disk}: by nobody, and blank to us"),
        ));
    }
    found
}

fn of_group_file(host: &Host, function: &Function) -> Option<Finding> {
    let group = function.group?;
    let file = vfio::group_file(host, group)?;
    let name = vfio::group_name(group);
    Some(match file.holder {
        Some((process, program)) => {
            let what = format!("/{name} is open in process {process} ({program})");
            Finding::new("vfio", Level::Bad, what).fix(format!("end process {process}"))
        }
        None if file.is_ours => {
            Finding::new("vfio", Level::Fine, format!("/{name} belongs to user {}", file.owner))
        }
        None => {
            let what =
                format!("/{name} belongs to user {}, and this is user {}", file.owner, host.user);
            let fix =
                format!("udirect setup bind {} --user {}, as root", function.address, host.user);
            Finding::new("vfio", Level::Bad, what).fix(fix)
        }
    })
}

/// Says why a drive would not open; `None` if nothing that can be seen speaks against it.
pub(in crate::cli) fn open_obstacle(host: &Host, address: PciAddress) -> Option<String> {
    obstacle(host, address).err()
}

fn obstacle(host: &Host, address: PciAddress) -> Result<(), String> {
    let group = admit(&host.sysfs, address).map_err(|error| error.to_string())?;
    let container = host.path("dev/vfio/vfio");
    if !container.exists() {
        let (path, source) = ("/dev/vfio/vfio".into(), io::ErrorKind::NotFound.into());
        return Err(VfioError::NoVfio { path, source }.to_string());
    }
    if modules::look(host, "vfio_iommu_type1") != Module::Loaded {
        return Err(format!(
            "{address} needs a module that is not loaded: modprobe vfio_iommu_type1"
        ));
    }
    if let Some((process, name)) = vfio::spdk_lock(host, address) {
        return Err(format!(
            "{address} is locked by SPDK in process {process} ({name}): end it first"
        ));
    }
    let name = vfio::group_name(group);
    let Some(file) = vfio::group_file(host, group) else {
        return Err(format!(
            "/{name} of {address} is not there: is /dev complete (devtmpfs, a container)?"
        ));
    };
    if !file.is_ours {
        let (path, owner) = (format!("/{name}").into(), file.owner);
        return Err(VfioError::NotOurs { address, path, owner, user: host.user }.to_string());
    }
    if file.holder.is_some() {
        return Err(VfioError::InUse { address, holder: file.holder }.to_string());
    }
    let (limit, least) = (limits::memlock(host).unwrap_or(u64::MAX), limits::memlock_min(host));
    if !host.is_root() && limit < least {
        let (limit, least) = (Amount(limit), Amount(least));
        return Err(format!(
            "{address} needs {least} of locked memory and the limit is {limit}: ulimit -l unlimited"
        ));
    }
    Ok(())
}
