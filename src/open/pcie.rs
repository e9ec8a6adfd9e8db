//! `pcie:0000:04:00.0/1`: a namespace of a controller behind vfio-pci.
#![forbid(unsafe_code)]

use super::driven::{self, pairs};
use super::{OpenError, Opened, boolean};
use crate::nvme;
use crate::pci::PciAddress;
use crate::transport::vfio::Vfio;
use crate::units::NamespaceId;

/// What stands behind `pcie:`.
#[derive(Debug)]
struct Target {
    controller: PciAddress,
    namespace: NamespaceId,
    driver: nvme::Options,
}

/// Opens the namespace at `address`, whose scheme is taken off in `rest`.
pub(super) fn open(address: &str, rest: &str) -> Result<Opened, OpenError> {
    let target = Target::parse(rest)
        .map_err(|problem| OpenError::Address { address: address.into(), problem })?;
    let Target { controller, namespace, driver } = target;
    driven::open(address, format!("pcie:{controller}"), namespace, driver, || {
        Ok(Vfio::open(controller).map_err(OpenError::Vfio)?)
    })
}

impl Target {
    fn parse(rest: &str) -> Result<Self, String> {
        let (target, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (controller, namespace) = target.split_once('/').unwrap_or((target, "1"));
        let controller: PciAddress = controller.parse().map_err(|error| format!("{error}"))?;
        let namespace = driven::namespace(namespace)?;
        let mut driver = nvme::Options::default();
        for (key, value) in pairs(query) {
            set(&mut driver, key, value)?;
        }
        Ok(Self { controller, namespace, driver })
    }
}

fn set(driver: &mut nvme::Options, key: &str, value: &str) -> Result<(), String> {
    match key {
        "noiommu" if boolean(key, value)? => {
            Err("noiommu lets the device write all memory, and needs a kernel with \
                 CONFIG_VFIO_NOIOMMU, which this version does not drive"
                .into())
        }
        "noiommu" => Ok(()),
        _ => driven::set(driver, key, value)?
            .ok_or_else(|| format!("unknown option {key}, known are {} noiommu", driven::KEYS)),
    }
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
    fn an_address_says_how_much_patience_there_is() {
        let target = Target::parse("04:00.0?resets=0&resends=2").unwrap();
        assert_eq!((target.driver.resets_max, target.driver.resends_max), (0, 2));
        let error = Target::parse("04:00.0?resends=101").unwrap_err();
        assert_eq!(error, "resends=101 is not a number from 0 to 100");
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
                "pcie:04:00.0?lba=512: unknown option lba, known are queues max_transfer sgl shadow metadata apptag resets resends noiommu",
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
