//! Why a controller cannot be reached over VFIO: one sentence that names it, and what helps.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use crate::pci::{Class, PciAddress};

/// Why a controller cannot be reached over VFIO. Nothing was touched, and nothing stays open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// There is nothing at the address.
    #[error("there is no device at {address}; {}", known(others))]
    NoDevice {
        /// The address.
        address: PciAddress,
        /// Where NVMe controllers are.
        others: Vec<PciAddress>,
    },
    /// What is at the address is something else.
    #[error("{address} is no NVMe controller: its class is {:#08x} and not 0x010802", class.0)]
    NotNvme {
        /// The address.
        address: PciAddress,
        /// What it is.
        class: Class,
    },
    /// No IOMMU stands between the device and memory.
    #[error(
        "no IOMMU translates for {address}: turn VT-d or AMD-Vi on in the firmware and boot with intel_iommu=on \
         (udirect doctor says what is missing)"
    )]
    NoIommu {
        /// The address.
        address: PciAddress,
    },
    /// The device has another driver than vfio-pci, or none.
    #[error("{address} is bound to {}: udirect setup bind {address}", driver_text(driver.as_deref()))]
    NotBound {
        /// The address.
        address: PciAddress,
        /// The driver, if it has one.
        driver: Option<String>,
    },
    /// Another device of the IOMMU group is in the kernel's hands.
    #[error(
        "{address} shares IOMMU group {group} with {blocker}, which is bound to {driver}: \
         udirect setup bind {blocker} as well, or move one of them to another slot"
    )]
    SharedGroup {
        /// The address.
        address: PciAddress,
        /// The group.
        group: u32,
        /// Who is in the way.
        blocker: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// The kernel offers no VFIO.
    #[error("{} is not there: modprobe vfio-pci vfio_iommu_type1", path.display())]
    NoVfio {
        /// What was looked for.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The group belongs to somebody else.
    #[error(
        "{} belongs to user {owner} and this is user {user}: udirect setup bind {address} --user {user}, as root",
        path.display()
    )]
    NotOurs {
        /// The device.
        address: PciAddress,
        /// The group's file.
        path: PathBuf,
        /// Who owns it, by number.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// Another process has the group open, or SPDK's lock on the device.
    #[error("{address} is in use by {}: end it first", holder_text(holder.as_ref()))]
    InUse {
        /// The device.
        address: PciAddress,
        /// The process, where it could be seen.
        holder: Option<(u32, String)>,
    },
    /// Whether SPDK drives the device cannot be seen.
    #[error("SPDK's lock {} cannot be taken: remove it if nothing drives {address}", path.display())]
    Unclaimed {
        /// The device.
        address: PciAddress,
        /// The lock.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The IOMMU would let a device raise any interrupt.
    #[error(
        "the IOMMU of {address} does not remap interrupts: turn interrupt remapping on in the firmware, or load \
         vfio_iommu_type1 with allow_unsafe_interrupts=1 if every device here is trusted"
    )]
    NoInterruptRemapping {
        /// The device.
        address: PciAddress,
    },
    /// The device's registers cannot be mapped.
    #[error("{address} cannot be driven: {what}")]
    Unusable {
        /// The device.
        address: PciAddress,
        /// What is missing, with numbers.
        what: String,
    },
    /// The kernel refused a step.
    #[error("{address}: {what}")]
    Kernel {
        /// The device.
        address: PciAddress,
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn known(others: &[PciAddress]) -> String {
    if others.is_empty() {
        return "this machine shows no NVMe controller at all".into();
    }
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    format!("NVMe controllers are at {}", others.join(", "))
}

fn driver_text(driver: Option<&str>) -> String {
    driver.map_or("no driver".into(), |driver| format!("the driver {driver}"))
}

fn holder_text(holder: Option<&(u32, String)>) -> String {
    match holder {
        Some((process, name)) => format!("process {process} ({name})"),
        None => "another process".into(),
    }
}
