//! PCI as the kernel shows it: addresses, functions, their drivers and their IOMMU groups.
//!
//! ```text
//!   PciAddress   0000:04:00.0, as the field writes it
//!   Sysfs        /sys, or a copy of it in a test
//!    └ Function     class, ids, driver, IOMMU group, NUMA node; read once, by name
//! ```
//!
//! Nothing here writes, needs privileges or touches a device: these are files. The invariant: what a file does not say
//! is `None`, and never a guess.
#![forbid(unsafe_code)]

mod address;
mod sysfs;

pub use address::{NotAnAddress, PciAddress};
pub use sysfs::{Class, Function, Sysfs};
