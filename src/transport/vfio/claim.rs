//! SPDK's lock on a device: a file of an agreed name that whoever drives the device keeps locked.
//!
//! VFIO hands a device to one holder, but SPDK drives devices through other kernel drivers too, and looks at this file
//! first; so it is taken for as long as a device is open, and honoured where somebody else has it.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock};

use super::VfioError;
use crate::pci::PciAddress;

/// Where SPDK keeps its locks.
const FOLDER: &str = "/var/tmp";

/// How often a file is looked for that others take away at the same time.
const TRIES: u32 = 16;

/// The lock on one device; it goes with this.
pub(super) struct Claim {
    path: PathBuf,
    /// `None` where there is no folder for locks: then nobody else has one either.
    file: Option<File>,
}

impl Claim {
    /// Takes the lock.
    ///
    /// # Errors
    ///
    /// `InUse` if somebody else has it, `Unclaimed` if it cannot be asked for.
    pub(super) fn take(address: PciAddress) -> Result<Self, VfioError> {
        Self::take_in(Path::new(FOLDER), address)
    }

    fn take_in(folder: &Path, address: PciAddress) -> Result<Self, VfioError> {
        let path = folder.join(format!("spdk_pci_lock_{address}"));
        for _ in 0..TRIES {
            let mut file = match open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Self { path, file: None });
                }
                Err(source) => {
                    return Err(VfioError::Unclaimed { address, path, source });
                }
            };
            if fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(VfioError::InUse { address, holder: holder(&path) });
            }
            // Whoever had it may have taken the file away in between, and the lock is on a name that is gone.
            if is_still_there(&path, &file) {
                // SPDK reads who it is from there; without it, it only says less.
                let _ = file.write_all(&std::process::id().to_ne_bytes());
                return Ok(Self { path, file: Some(file) });
            }
        }
        Err(VfioError::InUse { address, holder: None })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.file.is_some() {
            // While it is locked, as whoever waits for it looks whether it is still there.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    // The folder is everybody's.
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

fn is_still_there(path: &Path, file: &File) -> bool {
    let there = fs::symlink_metadata(path).and_then(|there| Ok((there, file.metadata()?)));
    there.is_ok_and(|(there, ours)| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
}

/// Returns the process that wrote its number into a lock, with its name.
fn holder(path: &Path) -> Option<(u32, String)> {
    let bytes = fs::read(path).ok()?;
    let process = u32::from_ne_bytes(*bytes.first_chunk()?);
    let name = fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    Some((process, name.trim().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> PciAddress {
        "0000:04:00.0".parse().unwrap()
    }

    #[test]
    fn a_claim_is_a_file_with_our_number_for_as_long_as_it_lives() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::take_in(folder.path(), address()).unwrap();
        let path = folder.path().join("spdk_pci_lock_0000:04:00.0");
        assert_eq!(holder(&path).map(|(process, _)| process), Some(std::process::id()));
        drop(claim);
        assert!(!path.exists());
    }

    #[test]
    fn without_a_folder_nobody_has_a_lock() {
        let claim = Claim::take_in(Path::new("/no/such/folder"), address()).unwrap();
        assert!(claim.file.is_none());
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spdk_pci_lock_0000:04:00.0");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        let error = Claim::take_in(folder.path(), address()).err().unwrap().to_string();
        assert!(error.contains("spdk_pci_lock_0000:04:00.0 cannot be taken"), "{error}");
    }
}
