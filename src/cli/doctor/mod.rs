//! `udirect doctor`: what stands between this program and NVMe drives, and what helps.
//!
//! ```text
//!   Host -> look (findings of the machine and of each drive) -> show (one screen, or JSON)
//!                └ verdict: would it open? ───────────────────> exit code
//! ```
//!
//! Nothing is touched, and nothing needs root: what this user cannot see is a finding of its own.
#![forbid(unsafe_code)]

mod look;
mod show;
#[cfg(test)]
mod tests;

use anyhow::{Error, anyhow};

use super::args::Style;
use super::failure::Failure;
use super::fields::pretty;
use super::output::print;
use crate::host::Host;
use crate::pci::PciAddress;

pub(super) use look::open_obstacle;
pub(super) use show::hugepages_json;

/// Looks at the machine, and at the drives that are named or at all of them.
pub(super) fn run(addresses: &[String], style: Style) -> Result<(), Failure> {
    let addresses = addresses.iter().map(|text| address_of(text));
    let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
    let report = look::report(&Host::default(), &addresses).map_err(Failure::device)?;
    match style {
        Style::Normal => print(show::text(&report).as_bytes())?,
        Style::Json => print(&pretty(&show::json(&report)))?,
    }
    let named = report.drives.iter().filter(|drive| addresses.contains(&drive.address));
    match named.filter_map(|drive| drive.obstacle.as_ref()).next() {
        Some(obstacle) => Err(Failure::usage(anyhow!("{obstacle}"))),
        None => Ok(()),
    }
}

/// Reads an address: `0000:04:00.0`, `04:00.0`, or as a device is opened, `pcie:0000:04:00.0/1`.
pub(super) fn address_of(text: &str) -> Result<PciAddress, Failure> {
    let bare = text.strip_prefix("pcie:").unwrap_or(text);
    let bare = bare.split(['/', '?']).next().unwrap_or(bare);
    bare.parse().map_err(|error| Failure::usage(Error::new(error)))
}
