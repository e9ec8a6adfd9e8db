//! `pcie:0000:04:00.0/1`: a namespace of a controller behind vfio-pci.
//!
//! A process opens a controller once, and its namespaces share it: VFIO hands a group to one holder only. The options of
//! whoever comes first count. The invariant: a controller in the table below is open, or about to be closed.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{OpenError, Opened, application_tag, boolean, metadata_use, number, parse_size};
use crate::dma::{Domain, DomainOptions};
use crate::nvme::{self, Controller};
use crate::pci::PciAddress;
use crate::transport::Transport;
use crate::transport::vfio::Vfio;
use crate::units::NamespaceId;

/// The controllers of this process.
static OPEN: Mutex<Option<HashMap<PciAddress, Weak<Controller>>>> = Mutex::new(None);

/// What stands behind `pcie:`.
#[derive(Debug)]
struct Target {
    controller: PciAddress,
    namespace: NamespaceId,
    driver: nvme::Options,
}

/// The keys that an address may have.
const KEYS: &str = "queues max_transfer sgl shadow metadata apptag noiommu";

/// Opens the namespace at `address`, whose scheme is taken off in `rest`.
pub(super) fn open(address: &str, rest: &str) -> Result<Opened, OpenError> {
    let target = Target::parse(rest)
        .map_err(|problem| OpenError::Address { address: address.into(), problem })?;
    let failed = |source| OpenError::Device { address: address.into(), source };
    let namespace = target.namespace;
    // Held until the controller is in the table: who comes second waits and shares it.
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    let controller = match open.get(&target.controller).and_then(Weak::upgrade) {
        Some(controller) => controller,
        None => {
            let transport: Arc<dyn Transport> =
                Vfio::open(target.controller).map_err(OpenError::Vfio)?;
            let domain = Domain::new(DomainOptions::default());
            let controller = nvme::connect(&transport, &domain, target.driver).map_err(failed)?;
            open.insert(target.controller, Arc::downgrade(&controller));
            controller
        }
    };
    let device = Arc::new(controller.namespace(namespace, address).map_err(failed)?);
    Ok(Opened { device, controller: Some(controller), namespace, made: None })
}

impl Target {
    fn parse(rest: &str) -> Result<Self, String> {
        let (target, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (controller, namespace) = target.split_once('/').unwrap_or((target, "1"));
        let controller: PciAddress = controller.parse().map_err(|error| format!("{error}"))?;
        let namespace = number("namespace", namespace, 1, u32::MAX - 1)?;
        let mut driver = nvme::Options::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            set(&mut driver, key, value)?;
        }
        Ok(Self { controller, namespace: NamespaceId(namespace), driver })
    }
}

fn set(driver: &mut nvme::Options, key: &str, value: &str) -> Result<(), String> {
    match key {
        "queues" => {
            let count = number(key, value, 1, 65_535)?;
            driver.queues = u16::try_from(count).expect("the bound is 16 bits wide");
        }
        "max_transfer" => {
            let bytes = parse_size(value)?;
            if bytes < 4096 {
                return Err(format!("max_transfer={value} is below 4096, a page at least"));
            }
            driver.transfer_max = Some(bytes);
        }
        "sgl" => driver.sgl = boolean(key, value)?,
        "metadata" => driver.metadata = metadata_use(value)?,
        "apptag" => driver.application_tag = application_tag(value)?,
        "shadow" => driver.shadow_doorbells = boolean(key, value)?,
        "noiommu" if boolean(key, value)? => {
            return Err("noiommu lets the device write all memory, and needs a kernel with \
                        CONFIG_VFIO_NOIOMMU, which this version does not drive"
                .into());
        }
        "noiommu" => {}
        other => return Err(format!("unknown option {other}, known are {KEYS}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;
    use crate::transport::vfio::VfioError;

    #[test]
    fn an_address_names_controller_namespace_and_options() {
        let target = Target::parse("04:00.0/3?queues=2&max_transfer=64k&sgl=0&noiommu=0").unwrap();
        assert_eq!(target.controller.to_string(), "0000:04:00.0");
        assert_eq!(target.namespace, NamespaceId(3));
        assert_eq!((target.driver.queues, target.driver.transfer_max), (2, Some(65_536)));
        assert!(!target.driver.sgl && target.driver.shadow_doorbells);
        assert_eq!(Target::parse("0000:04:00.0").unwrap().namespace, NamespaceId(1));
    }

    #[test]
    fn every_mistake_is_named_before_anything_is_touched() {
        let cases = [
            (
                "pcie:nvme0",
                "pcie:nvme0: \"nvme0\" is not a PCI address: write DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, \
                 as in 0000:04:00.0",
            ),
            ("pcie:04:00.0/0", "pcie:04:00.0/0: namespace=0 is not a number from 1 to 4294967294"),
            (
                "pcie:04:00.0?lba=512",
                "pcie:04:00.0?lba=512: unknown option lba, known are queues max_transfer sgl shadow metadata apptag noiommu",
            ),
            (
                "pcie:04:00.0?max_transfer=1k",
                "pcie:04:00.0?max_transfer=1k: max_transfer=1k is below 4096, a page at least",
            ),
        ];
        for (address, expected) in cases {
            let error = open(address).unwrap_err();
            assert!(error.is_usage());
            assert_eq!(error.to_string(), expected);
        }
        let error = open("pcie:04:00.0?noiommu").unwrap_err().to_string();
        assert!(error.contains("lets the device write all memory"), "{error}");
    }

    #[test]
    fn an_address_without_a_device_is_a_mistake_of_whoever_typed_it() {
        // A domain that no machine has.
        let error = open("pcie:ffffffff:ff:1f.7").unwrap_err();
        assert!(error.is_usage());
        assert!(
            error.to_string().starts_with("there is no device at ffffffff:ff:1f.7; "),
            "{error}"
        );
        assert!(matches!(error, OpenError::Vfio(VfioError::NoDevice { .. })));
    }
}
