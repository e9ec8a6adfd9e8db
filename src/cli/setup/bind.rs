//! `setup bind` and `setup unbind`: `driver_override`, `unbind`, `drivers_probe`.
//!
//! Everything that is named is looked at before anything is touched. While disks are being taken they stay claimed, so
//! that nobody mounts one between the look and the taking.
#![forbid(unsafe_code)]

use anyhow::anyhow;

use super::super::doctor::open_obstacle;
use super::super::failure::Failure;
use super::act::Act;
use super::choice::Environment;
use crate::host::modules::{self, Module};
use crate::host::uses::{self, Found};
use crate::host::{Host, disk, iommu, vfio};
use crate::pci::Function;
use crate::transport::vfio::{DRIVER, VfioError};

/// Drivers that hand a device to a process.
const USERSPACE: [&str; 4] = [DRIVER, "uio_pci_generic", "igb_uio", "pci-stub"];

/// What was asked of `bind`.
pub(super) struct Wish<'a> {
    /// The drives.
    pub(super) addresses: &'a [String],
    /// Who gets them.
    pub(super) user: Option<&'a str>,
    /// Whether what a disk holds may be lost sight of.
    pub(super) force: bool,
}

/// Takes drives from the kernel: all of them, or none.
pub(super) fn bind(
    act: &mut Act<'_>,
    environment: &Environment,
    wish: &Wish<'_>,
) -> Result<(), Failure> {
    let (host, driver) = (act.host(), environment.driver.as_str());
    let functions = environment.choose(host, wish.addresses)?;
    let user = user_of(host, wish.user.or(environment.user.as_deref()))?;
    let mut claims: Vec<Found> = Vec::new();
    for function in &functions {
        if function.driver.as_deref() != Some(driver) {
            claims.extend(may_take(host, function, driver, wish.force)?);
        }
    }
    if functions.is_empty() {
        return Ok(());
    }
    act.load(driver)?;
    if driver == DRIVER {
        act.load("vfio_iommu_type1")?;
    }
    let mut taken: Vec<&Function> = Vec::new();
    for function in functions.iter().filter(|one| one.driver.as_deref() != Some(driver)) {
        if let Err(failure) = take(act, function, driver) {
            taken.iter().for_each(|earlier| take_no_more(act, earlier));
            return Err(failure);
        }
        taken.push(function);
    }
    if let Some(user) = user {
        for group in functions.iter().filter_map(|function| function.group) {
            give(act, group, user)?;
        }
    }
    drop(claims);
    let bound = functions.iter().filter(|function| function.is_nvme() && driver == DRIVER);
    let blocked: Vec<String> = bound.filter_map(|one| blocked_by_group(act, one)).collect();
    blocked.into_iter().for_each(|obstacle| act.note(obstacle));
    Ok(())
}

/// A device that was bound can still be kept from opening by another of its group.
fn blocked_by_group(act: &Act<'_>, function: &Function) -> Option<String> {
    if act.is_dry() {
        return None;
    }
    let admitted = crate::transport::vfio::admit(&act.host().sysfs, function.address);
    matches!(admitted, Err(VfioError::SharedGroup { .. }))
        .then(|| open_obstacle(act.host(), function.address))?
}

fn user_of(host: &Host, name: Option<&str>) -> Result<Option<u32>, Failure> {
    let Some(name) = name else { return Ok(None) };
    let user = host.user_named(name);
    let user = user.ok_or_else(|| anyhow!("user {name:?} is neither in /etc/passwd nor a number"));
    user.map(Some).map_err(Failure::usage)
}

/// Says whether a device may be taken from its driver; returns the claims on its disks.
fn may_take(
    host: &Host,
    function: &Function,
    driver: &str,
    force: bool,
) -> Result<Vec<Found>, Failure> {
    let address = function.address;
    let refuse = |what: String| Err(Failure::usage(anyhow!("{address} {what}")));
    if function.class.is_bridge() {
        return refuse("is a bridge, and what is behind it would go with it".into());
    }
    if driver == DRIVER && function.group.is_none() && !iommu::look(host).is_waived {
        return Err(Failure::usage(VfioError::NoIommu { address }));
    }
    refuse_if_driven(host, function)?;
    let up = disk::interfaces_up(host, address);
    if !up.is_empty() {
        return refuse(format!("is in use: the network interface {} is up", up.join(", ")));
    }
    let disks = disk::disks(host, address);
    let found: Vec<Found> = disks.iter().map(|disk| uses::look(host, disk)).collect();
    let used: Vec<_> = found.iter().flat_map(|found| &found.uses).collect();
    if let Some(first) = used.first() {
        let all: Vec<String> = used.iter().map(ToString::to_string).collect();
        return refuse(format!("is in use: {} ({} first)", all.join(", "), first.fix()));
    }
    if force {
        return Ok(found);
    }
    if !function.is_nvme() {
        let (class, driver) = (function.class.0, function.driver.as_deref().unwrap_or("none"));
        return refuse(format!(
            "is no NVMe controller (class {class:#08x}, driver {driver}): --force takes it all the same"
        ));
    }
    if let Some(unseen) = found.iter().flat_map(|found| &found.unseen).next() {
        return refuse(format!("may be in use: {unseen}; --force takes it all the same"));
    }
    let signatures = found.iter().flat_map(|found| &found.signatures);
    let theirs = signatures.filter(|(_, signature)| !signature.is_userspace);
    let theirs: Vec<String> =
        theirs.map(|(block, signature)| format!("{block} holds {}", signature.name)).collect();
    if !theirs.is_empty() {
        return refuse(format!(
            "is not blank: {}; --force takes it all the same",
            theirs.join(", ")
        ));
    }
    Ok(found)
}

/// Refuses a device that a process drives.
fn refuse_if_driven(host: &Host, function: &Function) -> Result<(), Failure> {
    let address = function.address;
    let of_group = function.group.and_then(|group| vfio::group_file(host, group)?.holder);
    if let Some(holder) = of_group.or_else(|| vfio::spdk_lock(host, address)) {
        return Err(Failure::usage(VfioError::InUse { address, holder: Some(holder) }));
    }
    if function.group.is_some_and(|group| vfio::is_group_busy(host, group)) {
        return Err(Failure::usage(VfioError::InUse { address, holder: None }));
    }
    Ok(())
}

/// Writes how a device changed hands, as setup.sh does.
fn moved(function: &Function, to: Option<&str>) -> String {
    let Function { address, vendor, device, driver, .. } = function;
    let from = driver.as_deref().unwrap_or("no driver");
    let to = to.unwrap_or("no driver");
    format!("{address} ({vendor:04x} {device:04x}): {from} -> {to}")
}

/// Takes a device from its driver. If the other does not take it, the first gets it back.
fn take(act: &mut Act<'_>, function: &Function, driver: &str) -> Result<(), Failure> {
    let address = function.address;
    let taken = hand_over(act, function, driver);
    if act.is_dry() {
        act.say_changed(&moved(function, Some(driver)));
        return taken;
    }
    let now = act.await_driver(address, |now| taken.is_err() || now == Some(driver));
    if now.as_deref() == Some(driver) {
        act.say_changed(&moved(function, Some(driver)));
        return Ok(());
    }
    // Each of these may fail as well; what counts is the driver at the end.
    let before = function.driver_override.as_deref().unwrap_or("");
    let _ = act.write(&file_of(function, "driver_override"), &format!("{before}\n"));
    let _ = act.write("sys/bus/pci/drivers_probe", &address.to_string());
    let wanted = function.driver.as_deref();
    let back = act.await_driver(address, |now| now == wanted);
    let back = back.unwrap_or_else(|| "no driver".into());
    let why = taken.err().map_or("dmesg says why".into(), |failure| failure.line());
    Err(Failure::device(anyhow!("{address} was not taken by {driver} and is with {back}: {why}")))
}

/// Gives back what was taken, because another that was named could not be. What fails here is a note.
fn take_no_more(act: &mut Act<'_>, function: &Function) {
    let address = function.address;
    let Ok(Some(now)) = act.host().sysfs.function(address) else { return };
    if let Err(failure) = give_back(act, &now, true) {
        act.note(format!("{address} stays where it is: {}", failure.line()));
    }
}

fn hand_over(act: &Act<'_>, function: &Function, driver: &str) -> Result<(), Failure> {
    let address = function.address.to_string();
    act.write(&file_of(function, "driver_override"), driver)?;
    if function.driver.is_some() {
        act.write(&file_of(function, "driver/unbind"), &address)?;
    }
    act.write("sys/bus/pci/drivers_probe", &address)
}

fn file_of(function: &Function, name: &str) -> String {
    format!("sys/bus/pci/devices/{}/{name}", function.address)
}

fn give(act: &mut Act<'_>, group: u32, user: u32) -> Result<(), Failure> {
    let name = vfio::group_name(group);
    let owner = vfio::group_file(act.host(), group).map(|file| file.owner);
    if owner != Some(user) {
        act.give(&name, user)?;
        act.say_changed(&format!("/{name}: user {} -> {user}", owner.unwrap_or(0)));
    }
    Ok(())
}

/// Gives drives back to the kernel: all of them, or none.
pub(super) fn unbind(
    act: &mut Act<'_>,
    environment: &Environment,
    addresses: &[String],
) -> Result<(), Failure> {
    let host = act.host();
    let functions = environment.choose(host, addresses)?;
    let is_userspace = |driver: Option<&str>| {
        driver.is_some_and(|one| USERSPACE.contains(&one) || one == environment.driver)
    };
    for function in functions.iter().filter(|one| is_userspace(one.driver.as_deref())) {
        refuse_if_driven(host, function)?;
    }
    for function in &functions {
        let is_bound = is_userspace(function.driver.as_deref());
        if is_bound || function.driver.is_none() {
            give_back(act, function, is_bound)?;
        } else if function.driver_override.is_some() {
            act.write(&file_of(function, "driver_override"), "\n")?;
            act.say_changed(&format!("{}: driver_override emptied", function.address));
        }
    }
    Ok(())
}

fn give_back(act: &mut Act<'_>, function: &Function, is_bound: bool) -> Result<(), Failure> {
    let address = function.address;
    if function.is_nvme() && modules::look(act.host(), "nvme") == Module::Available {
        act.load("nvme")?;
    }
    act.write(&file_of(function, "driver_override"), "\n")?;
    if is_bound {
        act.write(&file_of(function, "driver/unbind"), &address.to_string())?;
    }
    act.write("sys/bus/pci/drivers_probe", &address.to_string())?;
    if act.is_dry() {
        let kernel = if function.is_nvme() { "nvme" } else { "the kernel's driver" };
        act.say_changed(&moved(function, Some(kernel)));
        return Ok(());
    }
    let old = function.driver.as_deref();
    let now = act.await_driver(address, |now| now.is_some() && now != old);
    if now.as_deref() == Some("nvme") {
        act.await_disk(address);
    }
    if now.is_none() {
        act.note(format!("no driver of the kernel wants {address}: modprobe nvme, or see dmesg"));
    }
    if now.as_deref() == old && old.is_some() {
        return Err(Failure::device(anyhow!("{address} is still with {}", moved(function, old))));
    }
    if now.as_deref() != old || function.driver_override.is_some() {
        act.say_changed(&moved(function, now.as_deref()));
    }
    Ok(())
}
