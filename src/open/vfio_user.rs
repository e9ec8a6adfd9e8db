//! `vfio-user:/run/target`: a namespace of a controller in another process, behind a vfio-user socket.
//!
//! The path is that of the socket, or of the folder that holds one named `cntrl`; it may hold anything but a `?`, and so the
//! namespace is an option.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::driven::{self, pairs};
use super::{OpenError, Opened};
use crate::nvme;
use crate::transport::vfio_user::{VfioUser, VfioUserOptions};
use crate::units::NamespaceId;

/// What stands behind `vfio-user:`.
#[derive(Debug)]
struct Target {
    path: PathBuf,
    namespace: NamespaceId,
    driver: nvme::Options,
    transport: VfioUserOptions,
}

/// Opens the namespace at `address`, whose scheme is taken off in `rest`.
pub(super) fn open(address: &str, rest: &str) -> Result<Opened, OpenError> {
    let Target { path, namespace, driver, transport } = Target::parse(rest)
        .map_err(|problem| OpenError::Address { address: address.into(), problem })?;
    // One name for one socket, whichever way it was written; one that is not there has none.
    let place = path.canonicalize().unwrap_or_else(|_| path.clone());
    let name = format!("vfio-user:{}", place.display());
    driven::open(address, name, namespace, driver, || {
        Ok(VfioUser::open(&path, transport).map_err(OpenError::VfioUser)?)
    })
}

impl Target {
    fn parse(rest: &str) -> Result<Self, String> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.is_empty() {
            return Err("vfio-user: needs the path of a socket, as in vfio-user:/run/target".into());
        }
        let (path, namespace) = (path.into(), NamespaceId(1));
        let (driver, transport) = (nvme::Options::default(), VfioUserOptions::default());
        let mut target = Self { path, namespace, driver, transport };
        pairs(query).try_for_each(|(key, value)| target.set(key, value))?;
        Ok(target)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match (key, value) {
            ("ns", _) => self.namespace = driven::namespace(value)?,
            ("rights", "strict") => self.transport.strict_rights = true,
            ("rights", "full") => self.transport.strict_rights = false,
            ("rights", _) => return Err(format!("rights={value} is neither full nor strict")),
            _ => driven::set(&mut self.driver, key, value)?.ok_or_else(|| {
                format!("unknown option {key}, known are ns rights {}", driven::KEYS)
            })?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

    #[test]
    fn an_address_names_socket_namespace_and_options() {
        let target = Target::parse("/run/a b/1?ns=3&queues=2&rights=strict&sgl=0").unwrap();
        assert_eq!(target.path, PathBuf::from("/run/a b/1"));
        assert_eq!((target.namespace, target.driver.queues), (NamespaceId(3), 2));
        assert!(target.transport.strict_rights && !target.driver.sgl);
        let target = Target::parse("relative").unwrap();
        assert_eq!((target.namespace, target.transport.strict_rights), (NamespaceId(1), false));
    }

    #[test]
    fn every_mistake_is_named_before_anything_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let (empty, none) = (folder.path().display(), folder.path().join("none"));
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let cases = [
            (
                "vfio-user:".into(),
                "vfio-user:: vfio-user: needs the path of a socket, as in vfio-user:/run/target".into(),
            ),
            (
                "vfio-user:/a?rights=none".into(),
                "vfio-user:/a?rights=none: rights=none is neither full nor strict".into(),
            ),
            (
                "vfio-user:/a?lba=512".into(),
                "vfio-user:/a?lba=512: unknown option lba, known are ns rights queues max_transfer sgl shadow \
                 metadata apptag resets resends"
                    .into(),
            ),
            (
                format!("vfio-user:{}", none.display()),
                format!(
                    "there is nothing at {}: start the target first, or look where its socket is",
                    none.display()
                ),
            ),
            (
                format!("vfio-user:{empty}"),
                format!(
                    "there is nothing at {empty}/cntrl: start the target first, or look where its socket is"
                ),
            ),
            (
                format!("vfio-user:{}", file.display()),
                format!(
                    "{} is neither a socket nor a folder with a socket named cntrl in it",
                    file.display()
                ),
            ),
        ];
        for (address, expected) in cases {
            let error = open(&address).unwrap_err();
            assert!(error.is_usage(), "{address}");
            assert_eq!(error.to_string(), expected);
        }
    }
}
