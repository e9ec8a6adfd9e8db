//! Which drives are meant: addresses that were typed, and the environment as SPDK's setup.sh reads it.
#![forbid(unsafe_code)]

use anyhow::{Context, anyhow};

use super::super::doctor::address_of;
use super::super::failure::Failure;
use crate::host::Host;
use crate::pci::{Function, PciAddress};
use crate::transport::vfio::{DRIVER, VfioError};

/// What the environment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Environment {
    /// The only drives that may be touched; `None` is any.
    pub(super) allowed: Option<Vec<PciAddress>>,
    /// Drives that are never touched.
    pub(super) blocked: Vec<PciAddress>,
    /// The driver to bind to.
    pub(super) driver: String,
    /// Who gets the drives.
    pub(super) user: Option<String>,
    /// How many hugepages there should be.
    pub(super) pages: Option<u64>,
    /// On which nodes.
    pub(super) nodes: Option<String>,
}

impl Environment {
    /// Reads it. An empty variable is one that is not there.
    pub(super) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let get = |name| get(name).filter(|value| !value.trim().is_empty());
        let addresses = |name: &'static str| {
            let Some(text) = get(name) else { return Ok(None) };
            if text.trim() == "none" {
                return Ok(Some(Vec::new()));
            }
            let parsed = text.split_whitespace().map(str::parse).collect::<Result<Vec<_>, _>>();
            parsed.map(Some).context(name).map_err(Failure::usage)
        };
        let driver = get("DRIVER_OVERRIDE").unwrap_or_else(|| DRIVER.into());
        if driver.contains('/') {
            return Err(Failure::usage(anyhow!(
                "DRIVER_OVERRIDE={driver}: a driver's name is wanted, not a path: load the module first"
            )));
        }
        let number = |text: String| {
            let number = text.trim().parse().with_context(|| format!("NRHUGE={text}"));
            number.map_err(Failure::usage)
        };
        Ok(Self {
            allowed: addresses("PCI_ALLOWED")?,
            blocked: addresses("PCI_BLOCKED")?.unwrap_or_default(),
            driver,
            user: get("TARGET_USER"),
            pages: get("NRHUGE").map(number).transpose()?,
            nodes: get("HUGENODE"),
        })
    }

    /// Returns the functions that are meant: those that were typed, or else those that are allowed.
    pub(super) fn choose(&self, host: &Host, typed: &[String]) -> Result<Vec<Function>, Failure> {
        let mut addresses =
            typed.iter().map(|text| address_of(text)).collect::<Result<Vec<_>, _>>()?;
        for address in &addresses {
            self.refuse_forbidden(*address)?;
        }
        if typed.is_empty() {
            let Some(allowed) = &self.allowed else { return Err(nothing_named(host)) };
            addresses = allowed.iter().copied().filter(|one| !self.blocked.contains(one)).collect();
        }
        addresses.sort_unstable();
        addresses.dedup();
        addresses.into_iter().map(|address| function_at(host, address)).collect()
    }

    fn refuse_forbidden(&self, address: PciAddress) -> Result<(), Failure> {
        if self.blocked.contains(&address) {
            return Err(Failure::usage(anyhow!("{address} is blocked by PCI_BLOCKED")));
        }
        if self.allowed.as_ref().is_some_and(|allowed| !allowed.contains(&address)) {
            return Err(Failure::usage(anyhow!("{address} is not among those of PCI_ALLOWED")));
        }
        Ok(())
    }
}

fn nvme_of(host: &Host) -> Vec<PciAddress> {
    let functions = host.sysfs.functions().unwrap_or_default();
    functions.iter().filter(|one| one.is_nvme()).map(|one| one.address).collect()
}

fn nothing_named(host: &Host) -> Failure {
    let known: Vec<String> = nvme_of(host).iter().map(ToString::to_string).collect();
    let known = if known.is_empty() {
        "this machine shows no NVMe controller".into()
    } else {
        format!("NVMe controllers are at {}", known.join(", "))
    };
    Failure::usage(anyhow!("no drive is named: give addresses, or PCI_ALLOWED; {known}"))
}

fn function_at(host: &Host, address: PciAddress) -> Result<Function, Failure> {
    let function = host.sysfs.function(address).context("sysfs").map_err(Failure::usage)?;
    function.ok_or_else(|| Failure::usage(VfioError::NoDevice { address, others: nvme_of(host) }))
}
