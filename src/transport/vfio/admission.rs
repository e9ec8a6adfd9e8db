//! What has to be true before a device is opened, as far as sysfs and the processes of the machine tell.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use super::error::VfioError;
use crate::pci::{PciAddress, Sysfs};

/// The driver that hands devices to processes.
pub const DRIVER: &str = "vfio-pci";

/// Says which group has to be opened for a device, if nothing speaks against it. Nothing is touched.
///
/// # Errors
///
/// The first thing that is in the way, in the order in which a person would put it right.
pub fn admit(sysfs: &Sysfs, address: PciAddress) -> Result<u32, VfioError> {
    let kernel = |source| VfioError::Kernel { address, what: "sysfs cannot be read", source };
    let Some(function) = sysfs.function(address).map_err(kernel)? else {
        let all = sysfs.functions().map_err(kernel)?;
        let nvme = all.iter().filter(|function| function.is_nvme());
        return Err(VfioError::NoDevice { address, others: nvme.map(|one| one.address).collect() });
    };
    if !function.is_nvme() {
        return Err(VfioError::NotNvme { address, class: function.class });
    }
    let Some(group) = function.group else { return Err(VfioError::NoIommu { address }) };
    if function.driver.as_deref() != Some(DRIVER) {
        return Err(VfioError::NotBound { address, driver: function.driver });
    }
    for other in sysfs.group(group).map_err(kernel)? {
        // A bridge with its own driver moves no data of its own accord.
        let driver = other.driver.filter(|driver| driver != DRIVER && !other.class.is_bridge());
        if let Some(driver) = driver {
            let blocker = other.address;
            return Err(VfioError::SharedGroup { address, group, blocker, driver });
        }
    }
    Ok(group)
}

/// Returns the process that has a file open, where this user can see it: its number and its name.
pub fn holder_of(path: &Path) -> Option<(u32, String)> {
    holder_in(Path::new("/proc"), |target| target == path)
}

/// Returns the process that has a file of some kind open, among those that a `/proc` shows: its number and its name.
pub fn holder_in(processes: &Path, is_it: impl Fn(&Path) -> bool) -> Option<(u32, String)> {
    for process in fs::read_dir(processes).ok()?.flatten() {
        let Some(number) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if number != std::process::id() && has_open(&process.path(), &is_it).unwrap_or(false) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((number, name.trim().to_owned()));
        }
    }
    None
}

fn has_open(process: &Path, is_it: &impl Fn(&Path) -> bool) -> io::Result<bool> {
    for descriptor in fs::read_dir(process.join("fd"))? {
        if fs::read_link(descriptor?.path()).is_ok_and(|target| is_it(&target)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine of functions: address, class, driver, group.
    fn machine(
        functions: &[(&str, &str, Option<&str>, Option<u32>)],
    ) -> (tempfile::TempDir, Sysfs) {
        let root = tempfile::tempdir().unwrap();
        for (address, class, driver, group) in functions {
            let folder = root.path().join("bus/pci/devices").join(address);
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in [("class", *class), ("vendor", "0x1b36"), ("device", "0x0010")] {
                fs::write(folder.join(name), text).unwrap();
            }
            if let Some(driver) = driver {
                symlink(format!("../drivers/{driver}"), folder.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let groups = root.path().join(format!("kernel/iommu_groups/{group}"));
                fs::create_dir_all(groups.join("devices")).unwrap();
                symlink(&groups, folder.join("iommu_group")).unwrap();
                symlink(&folder, groups.join("devices").join(address)).unwrap();
            }
        }
        let sysfs = Sysfs::at(root.path());
        (root, sysfs)
    }

    fn refusal(functions: &[(&str, &str, Option<&str>, Option<u32>)]) -> String {
        let (_root, sysfs) = machine(functions);
        admit(&sysfs, "04:00.0".parse().unwrap()).unwrap_err().to_string()
    }

    const NVME: &str = "0x010802";
    const AT: &str = "0000:04:00.0";

    #[test]
    fn a_device_alone_in_its_group_is_admitted_and_so_is_one_beside_a_bridge() {
        let (_root, sysfs) = machine(&[
            (AT, NVME, Some("vfio-pci"), Some(9)),
            ("0000:00:01.0", "0x060400", Some("pcieport"), Some(9)),
            ("0000:05:00.0", NVME, Some("vfio-pci"), Some(9)),
            ("0000:06:00.0", NVME, None, Some(9)),
        ]);
        assert_eq!(admit(&sysfs, AT.parse().unwrap()).unwrap(), 9);
    }

    #[test]
    fn what_is_in_the_way_is_named_with_what_helps() {
        assert_eq!(
            refusal(&[("0000:05:00.0", NVME, None, None)]),
            "there is no device at 0000:04:00.0; NVMe controllers are at 0000:05:00.0"
        );
        assert_eq!(
            refusal(&[]),
            "there is no device at 0000:04:00.0; this machine shows no NVMe controller at all"
        );
        assert_eq!(
            refusal(&[(AT, "0x020000", None, None)]),
            "0000:04:00.0 is no NVMe controller: its class is 0x020000 and not 0x010802"
        );
        assert!(
            refusal(&[(AT, NVME, Some("nvme"), None)])
                .starts_with("no IOMMU translates for 0000:04:00.0: ")
        );
        assert_eq!(
            refusal(&[(AT, NVME, Some("nvme"), Some(9))]),
            "0000:04:00.0 is bound to the driver nvme: udirect setup bind 0000:04:00.0"
        );
        assert_eq!(
            refusal(&[(AT, NVME, None, Some(9))]),
            "0000:04:00.0 is bound to no driver: udirect setup bind 0000:04:00.0"
        );
        let shared = [
            (AT, NVME, Some("vfio-pci"), Some(9)),
            ("0000:04:00.1", "0x020000", Some("e1000e"), Some(9)),
        ];
        assert_eq!(
            refusal(&shared),
            "0000:04:00.0 shares IOMMU group 9 with 0000:04:00.1, which is bound to e1000e: \
             udirect setup bind 0000:04:00.1 as well, or move one of them to another slot"
        );
    }

    #[test]
    fn the_process_that_has_a_file_open_is_found_if_it_is_another() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(holder_of(file.path()), None, "our own descriptor does not count");
        let stdin = fs::File::open(file.path()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").stdin(stdin).spawn().unwrap();
        let holder = holder_of(&file.path().canonicalize().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(holder.map(|(number, _)| number), Some(child.id()));
    }
}
