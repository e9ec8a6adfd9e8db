//! What addresses of real controllers have in common: a namespace, options for the driver, one controller for all.
//!
//! A process opens a controller once, and its namespaces share it: it has one holder only, whichever way it is reached. The
//! options of whoever comes first count. The invariant: a controller in the table below is open, or about to be closed.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{OpenError, Opened, application_tag, boolean, metadata_use, number, parse_size, small};
use crate::dma::{Domain, DomainOptions};
use crate::nvme::{self, Controller};
use crate::transport::Transport;
use crate::units::NamespaceId;

/// The controllers of this process, by what names each.
static OPEN: Mutex<Option<HashMap<String, Weak<Controller>>>> = Mutex::new(None);

/// Opens a namespace of the controller that `name` names in this process, which `reach` gets at if nobody has it yet.
pub(super) fn open(
    address: &str,
    name: String,
    namespace: NamespaceId,
    driver: nvme::Options,
    reach: impl FnOnce() -> Result<Arc<dyn Transport>, OpenError>,
) -> Result<Opened, OpenError> {
    let failed = |source| OpenError::Device { address: address.into(), source };
    // Held until the controller is in the table: who comes second waits and shares it.
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    let controller = match open.get(&name).and_then(Weak::upgrade) {
        // In the place of one that is gone there may be another, though somebody still holds the old one.
        Some(controller) if !controller.is_gone() => controller,
        _ => {
            let (transport, domain) = (reach()?, Domain::new(DomainOptions::default()));
            let controller = nvme::connect(&transport, &domain, driver).map_err(failed)?;
            open.insert(name, Arc::downgrade(&controller));
            controller
        }
    };
    let device = Arc::new(controller.namespace(namespace, address).map_err(failed)?);
    Ok(Opened { device, controller: Some(controller), namespace, made: None })
}

/// The options that the driver has, whichever way it reaches a controller.
pub(super) const KEYS: &str = "queues max_transfer sgl shadow metadata apptag resets resends";

/// Sets an option of the driver; `None` if it has none of that name.
pub(super) fn set(
    driver: &mut nvme::Options,
    key: &str,
    value: &str,
) -> Result<Option<()>, String> {
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
        "resets" => driver.resets_max = small(key, value, 1000)?,
        "resends" => driver.resends_max = small(key, value, 100)?,
        "shadow" => driver.shadow_doorbells = boolean(key, value)?,
        _ => return Ok(None),
    }
    Ok(Some(()))
}

/// Takes options apart: `a=1&b`.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Reads the number of a namespace.
pub(super) fn namespace(value: &str) -> Result<NamespaceId, String> {
    number("namespace", value, 1, u32::MAX - 1).map(NamespaceId)
}
