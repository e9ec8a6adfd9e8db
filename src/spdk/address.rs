//! What stands behind `spdk:`, as text and as SPDK's own configuration.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

/// A block device of SPDK's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One that a configuration makes, by name.
    Named(String),
    /// One in memory, made for as long as it is open.
    Malloc {
        /// Its name.
        name: String,
        /// Its size in bytes.
        bytes: u64,
        /// The size of a block.
        block: u32,
    },
    /// One that moves no data, made for as long as it is open.
    Null {
        /// Its name.
        name: String,
        /// Its size in bytes.
        bytes: u64,
        /// The size of a block.
        block: u32,
    },
    /// A namespace of a controller that SPDK's driver attaches to, for as long as it is open.
    Nvme {
        /// What SPDK calls the controller.
        name: String,
        /// `trtype`, `traddr` and the others, in SPDK's words.
        transport: Vec<(String, String)>,
        /// The namespace.
        namespace: u32,
    },
}

/// Why a text is not a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseTargetError(String);

/// The parts of a transport id that name a controller.
const PARTS: &[&str] =
    &["trtype", "adrfam", "traddr", "trsvcid", "subnqn", "hostnqn", "hostaddr", "hostsvcid"];

/// The transports that an NVMe bdev can be reached by.
const TRANSPORTS: &[&str] = &["PCIe", "TCP", "RDMA", "VFIOUSER"];

impl Target {
    /// Reads a transport id: `trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:nqn… ns:1`, the controller to be
    /// called `name`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn transport(text: &str, name: &str) -> Result<Self, ParseTargetError> {
        let wrong = |problem: String| Err(ParseTargetError(problem));
        let (mut transport, mut namespace) = (Vec::new(), 1);
        for part in text.split_whitespace() {
            let Some((key, value)) =
                part.split_once([':', '=']).filter(|(_, value)| !value.is_empty())
            else {
                return wrong(format!("{part:?} is not KEY:VALUE, as in traddr:0000:04:00.0"));
            };
            let key = key.to_ascii_lowercase();
            if key == "ns" {
                match value.parse() {
                    Ok(number @ 1..) => namespace = number,
                    _ => return wrong(format!("ns:{value} is not a number from 1 on")),
                }
            } else if !PARTS.contains(&key.as_str()) {
                return wrong(format!(
                    "unknown part {key}: of a transport id, known are {} ns",
                    PARTS.join(" ")
                ));
            } else if transport.iter().any(|(other, _)| *other == key) {
                return wrong(format!("{key}: stands twice"));
            } else {
                transport.push((key, value.to_owned()));
            }
        }
        let part = |name: &str| {
            transport.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
        };
        let Some(kind) = part("trtype") else {
            return wrong("a transport id needs trtype:".into());
        };
        if !TRANSPORTS.iter().any(|known| known.eq_ignore_ascii_case(kind)) {
            return wrong(format!("trtype:{kind} is none of {}", TRANSPORTS.join(" ")));
        }
        if part("traddr").is_none() {
            return wrong("a transport id needs traddr:, where the controller is".into());
        }
        // A path is compared as an address if it has a family.
        let is_path = kind.eq_ignore_ascii_case("VFIOUSER");
        transport.retain(|(key, _)| !(is_path && key == "adrfam"));
        Ok(Self::Nvme { name: name.into(), transport, namespace })
    }

    /// Returns the name of the block device.
    pub fn bdev(&self) -> String {
        match self {
            Self::Named(name) | Self::Malloc { name, .. } | Self::Null { name, .. } => name.clone(),
            Self::Nvme { name, namespace, .. } => format!("{name}n{namespace}"),
        }
    }

    /// Says whether the device is a PCI function, for which SPDK has to look at the bus.
    pub fn is_pci(&self) -> bool {
        let Self::Nvme { transport, .. } = self else { return false };
        transport.iter().any(|(key, value)| key == "trtype" && value.eq_ignore_ascii_case("PCIe"))
    }

    /// Returns the call that makes the device, if it is to be made.
    pub(super) fn making(&self) -> Option<(&'static str, Value)> {
        Some(match self {
            Self::Named(_) => return None,
            Self::Malloc { name, bytes, block } => {
                let blocks = bytes / u64::from(*block);
                (
                    "bdev_malloc_create",
                    json!({ "name": name, "num_blocks": blocks, "block_size": block }),
                )
            }
            Self::Null { name, bytes, block } => {
                let blocks = bytes / u64::from(*block);
                (
                    "bdev_null_create",
                    json!({ "name": name, "num_blocks": blocks, "block_size": block }),
                )
            }
            Self::Nvme { name, transport, .. } => {
                let mut parts: serde_json::Map<_, _> = transport
                    .iter()
                    .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
                    .collect();
                parts.insert("name".into(), name.as_str().into());
                ("bdev_nvme_attach_controller", parts.into())
            }
        })
    }

    /// Returns the call that takes away what [`making`](Self::making) has made.
    pub(super) fn unmaking(&self) -> Option<(&'static str, Value)> {
        let (name, method) = match self {
            Self::Named(_) => return None,
            Self::Malloc { name, .. } => (name, "bdev_malloc_delete"),
            Self::Null { name, .. } => (name, "bdev_null_delete"),
            Self::Nvme { name, .. } => (name, "bdev_nvme_detach_controller"),
        };
        Some((method, json!({ "name": name })))
    }
}

/// Returns a configuration of calls to one subsystem.
pub(super) fn configuration(subsystem: &str, calls: &[(&str, Value)]) -> String {
    let calls: Vec<Value> = calls
        .iter()
        .map(|(method, params)| json!({ "method": method, "params": params }))
        .collect();
    json!({ "subsystems": [{ "subsystem": subsystem, "config": calls }] }).to_string()
}

/// What the subsystems are told before they start: bounce buffers for as many queues as one device may have, and not the
/// 200 MiB that they would take.
pub(super) fn startup() -> String {
    let subsystem = |name: &str, method: &str, params: Value| json!({ "subsystem": name, "config": [{ "method": method, "params": params }] });
    let caches = json!({ "small_cache_size": 16, "large_cache_size": 1 });
    json!({ "subsystems": [
        subsystem("iobuf", "iobuf_set_options", json!({ "small_pool_count": 4096, "large_pool_count": 256 })),
        subsystem("accel", "accel_set_options", caches),
        subsystem("bdev", "bdev_set_options", json!({
            "bdev_io_pool_size": 32_768,
            "bdev_io_cache_size": 128,
            "bdev_auto_examine": false,
            "iobuf_small_cache_size": 16,
            "iobuf_large_cache_size": 1,
        })),
    ] })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_id_is_taken_apart() {
        let target = Target::transport("trtype:PCIe traddr:0000:04:00.0 ns:3", "Nvme0").unwrap();
        assert_eq!(target.bdev(), "Nvme0n3");
        assert!(target.is_pci());
        let (method, params) = target.making().unwrap();
        assert_eq!(method, "bdev_nvme_attach_controller");
        assert_eq!(params, json!({ "name": "Nvme0", "trtype": "PCIe", "traddr": "0000:04:00.0" }));
        assert_eq!(target.unmaking().unwrap().1, json!({ "name": "Nvme0" }));
    }

    #[test]
    fn a_path_has_no_address_family() {
        let target =
            Target::transport("trtype=vfiouser adrfam=IPv4 traddr=/run/target", "N").unwrap();
        let Target::Nvme { transport, .. } = target else { panic!("another kind") };
        assert_eq!(
            transport.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
            ["trtype", "traddr"]
        );
    }

    #[test]
    fn every_mistake_in_a_transport_id_is_named() {
        let cases = [
            ("traddr:x", "a transport id needs trtype:"),
            ("trtype:TCP", "a transport id needs traddr:, where the controller is"),
            ("trtype:FC traddr:x", "trtype:FC is none of PCIe TCP RDMA VFIOUSER"),
            ("trtype:TCP traddr", "\"traddr\" is not KEY:VALUE, as in traddr:0000:04:00.0"),
            ("trtype:TCP traddr:", "\"traddr:\" is not KEY:VALUE, as in traddr:0000:04:00.0"),
            ("trtype:TCP traddr:x traddr:y", "traddr: stands twice"),
            ("trtype:TCP traddr:x ns:0", "ns:0 is not a number from 1 on"),
            (
                "trtype:TCP traddr:x port:1",
                "unknown part port: of a transport id, known are trtype adrfam traddr trsvcid subnqn hostnqn hostaddr hostsvcid ns",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(Target::transport(text, "N").unwrap_err().to_string(), expected);
        }
    }
}
