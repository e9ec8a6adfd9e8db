//! `spdk:Malloc0`, `spdk:trtype:TCP traddr:…`: a block device of an installed SPDK.
#![forbid(unsafe_code)]

use super::{OpenError, Opened};

/// Opens the device at `address`, whose scheme is taken off in `rest`.
#[cfg(not(feature = "spdk"))]
pub(super) fn open(address: &str, _: &str) -> Result<Opened, OpenError> {
    let problem =
        "this udirect was built without SPDK: cargo build --features spdk, with SPDK installed";
    Err(OpenError::Address { address: address.into(), problem: problem.into() })
}

#[cfg(feature = "spdk")]
pub(super) use with_spdk::open;

#[cfg(feature = "spdk")]
mod with_spdk {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::{boolean, number, parse_size};
    use super::{OpenError, Opened};
    use crate::spdk::{Bdev, EnvironmentOptions, Hugepages, Target};
    use crate::units::{LbaSize, NamespaceId};

    /// The keys that an address may have.
    const KEYS: &str = "malloc null lba config huge memory";

    pub(in super::super) fn open(address: &str, rest: &str) -> Result<Opened, OpenError> {
        let (target, options) = parse(rest)
            .map_err(|problem| OpenError::Address { address: address.into(), problem })?;
        let device = Bdev::open(target, address, &options)
            .map_err(|source| OpenError::Device { address: address.into(), source })?;
        let namespace = NamespaceId(1);
        Ok(Opened { device: Arc::new(device), controller: None, namespace, made: None })
    }

    fn parse(rest: &str) -> Result<(Target, EnvironmentOptions), String> {
        let (name, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut options = EnvironmentOptions::default();
        let (mut malloc, mut null, mut lba) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "malloc" => malloc = Some(parse_size(value)?),
                "null" => null = Some(parse_size(value)?),
                "lba" => {
                    let size = LbaSize::from_bytes(parse_size(value)?);
                    let size =
                        size.ok_or(format!("lba={value} is not a power of two from 512 to 65536"))?;
                    lba = Some(size.bytes());
                }
                "config" if value.is_empty() => {
                    return Err("config= needs the path of a file".into());
                }
                "config" => options.config = Some(PathBuf::from(value)),
                "huge" if value.starts_with('/') => {
                    options.hugepages = Hugepages::At(PathBuf::from(value));
                }
                "huge" if boolean(key, value)? => options.hugepages = Hugepages::Prefer,
                "huge" => options.hugepages = Hugepages::Never,
                "memory" => options.megabytes = number("memory", &mib(value)?, 64, 1 << 20)?,
                other => return Err(format!("unknown option {other}, known are {KEYS}")),
            }
        }
        let block = lba.unwrap_or(4096);
        let name = name.to_owned();
        if name.is_empty() {
            return Err("spdk: needs the name of a block device, as in spdk:Malloc0?malloc=64MiB, or a transport id".into());
        }
        let whole = |bytes: u64| {
            if bytes.is_multiple_of(u64::from(block)) {
                Ok(bytes)
            } else {
                Err(format!("{bytes} bytes are no whole blocks of {block}"))
            }
        };
        let target = match (malloc, null) {
            (Some(_), Some(_)) => return Err("malloc= and null= are two devices".into()),
            (Some(bytes), None) => Target::Malloc { name, bytes: whole(bytes)?, block },
            (None, Some(bytes)) => Target::Null { name, bytes: whole(bytes)?, block },
            (None, None) if lba.is_some() => {
                return Err("lba= is for devices that are made: malloc=SIZE or null=SIZE".into());
            }
            (None, None) if name.contains([':', '=']) => transport(&name)?,
            (None, None) => Target::Named(name),
        };
        Ok((target, options))
    }

    /// A controller of its own for each address that is opened.
    fn transport(text: &str) -> Result<Target, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("udirect{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Target::transport(text, &name).map_err(|error| error.to_string())
    }

    fn mib(value: &str) -> Result<String, String> {
        Ok((parse_size(value)? >> 20).to_string())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn problem(rest: &str) -> String {
            parse(rest).unwrap_err()
        }

        #[test]
        fn an_address_says_what_is_made_and_how_spdk_starts() {
            let (target, options) =
                parse("Malloc0?malloc=64MiB&lba=512&huge=0&memory=512MiB").unwrap();
            assert_eq!(
                target,
                Target::Malloc { name: "Malloc0".into(), bytes: 64 << 20, block: 512 }
            );
            assert_eq!((options.hugepages, options.megabytes), (Hugepages::Never, 512));
            let (target, options) = parse("Raid?config=/etc/spdk.json&huge=/mnt/huge").unwrap();
            assert_eq!(target, Target::Named("Raid".into()));
            assert_eq!(options.config, Some("/etc/spdk.json".into()));
            assert_eq!(options.hugepages, Hugepages::At("/mnt/huge".into()));
            let (target, _) = parse("trtype:TCP traddr:127.0.0.1 trsvcid:4420 ns:2").unwrap();
            assert!(matches!(target, Target::Nvme { namespace: 2, .. }), "{target:?}");
        }

        #[test]
        fn every_mistake_in_an_address_is_named() {
            let cases = [
                (
                    "",
                    "spdk: needs the name of a block device, as in spdk:Malloc0?malloc=64MiB, or a transport id",
                ),
                ("M?malloc=64MiB&null=1GiB", "malloc= and null= are two devices"),
                ("M?malloc=1000", "1000 bytes are no whole blocks of 4096"),
                ("M?lba=512", "lba= is for devices that are made: malloc=SIZE or null=SIZE"),
                ("M?lba=520&malloc=1M", "lba=520 is not a power of two from 512 to 65536"),
                ("M?depth=4", "unknown option depth, known are malloc null lba config huge memory"),
                ("M?memory=1MiB", "memory=1 is not a number from 64 to 1048576"),
                ("M?config", "config= needs the path of a file"),
                ("trtype:FC traddr:x", "trtype:FC is none of PCIe TCP RDMA VFIOUSER"),
            ];
            for (rest, expected) in cases {
                assert_eq!(problem(rest), expected, "{rest}");
            }
        }
    }
}
