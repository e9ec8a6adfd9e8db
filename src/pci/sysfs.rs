//! What sysfs says of PCI functions: `bus/pci/devices/ADDRESS/*` and `kernel/iommu_groups/N/devices`.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::address::PciAddress;

/// The tree in which the kernel shows its devices.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    /// The tree of this machine.
    fn default() -> Self {
        Self::at("/sys")
    }
}

/// The class of a function: base class, sub-class, programming interface (PCI Code and ID Assignment, 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(pub u32);

impl Class {
    /// An NVM Express I/O controller.
    pub const NVME: Self = Self(0x01_08_02);

    /// Says whether it is a bridge: those may share a group with devices behind them, and have drivers of their own.
    pub fn is_bridge(self) -> bool {
        self.0 >> 16 == 0x06
    }
}

/// One PCI function, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub class: Class,
    /// Who made it.
    pub vendor: u16,
    /// Its number among those of its maker.
    pub device: u16,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// The only driver that may bind to it, if somebody has said so.
    pub driver_override: Option<String>,
    /// Its IOMMU group; `None` where no IOMMU translates for it.
    pub group: Option<u32>,
    /// The memory that is near to it; `None` on a machine without nodes.
    pub numa_node: Option<u32>,
}

impl Function {
    /// Says whether it is an NVMe controller.
    pub fn is_nvme(&self) -> bool {
        self.class == Class::NVME
    }
}

impl Sysfs {
    /// The tree below a folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the path of something in the tree.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// Returns the folder of a function.
    pub fn folder(&self, address: PciAddress) -> PathBuf {
        self.path(format!("bus/pci/devices/{address}"))
    }

    /// Looks at a function; `None` if there is none at that address.
    ///
    /// # Errors
    ///
    /// The kernel's; `InvalidData` for a file that does not hold what it should.
    pub fn function(&self, address: PciAddress) -> io::Result<Option<Function>> {
        let folder = self.folder(address);
        let Some(class) = number(&folder.join("class"))? else { return Ok(None) };
        let id = |name| number(&folder.join(name)).map(|id| id.unwrap_or(0) as u16);
        Ok(Some(Function {
            address,
            class: Class(class),
            vendor: id("vendor")?,
            device: id("device")?,
            driver: link_name(&folder.join("driver"))?,
            driver_override: text(&folder.join("driver_override"))?.filter(|name| name != "(null)"),
            group: link_name(&folder.join("iommu_group"))?.and_then(|name| name.parse().ok()),
            // The kernel says -1 where there are no nodes.
            numa_node: text(&folder.join("numa_node"))?.and_then(|node| node.parse().ok()),
        }))
    }

    /// Looks at all functions, in the order of their addresses.
    ///
    /// # Errors
    ///
    /// As [`function`](Self::function).
    pub fn functions(&self) -> io::Result<Vec<Function>> {
        self.all_in(&self.path("bus/pci/devices"))
    }

    /// Looks at all functions of an IOMMU group: none of them is safe while another is in the kernel's hands.
    ///
    /// # Errors
    ///
    /// As [`function`](Self::function).
    pub fn group(&self, group: u32) -> io::Result<Vec<Function>> {
        self.all_in(&self.path(format!("kernel/iommu_groups/{group}/devices")))
    }

    /// Says whether an IOMMU translates for any device of the machine.
    pub fn has_iommu(&self) -> bool {
        let entries = fs::read_dir(self.path("kernel/iommu_groups"));
        entries.is_ok_and(|mut entries| entries.next().is_some())
    }

    fn all_in(&self, folder: &Path) -> io::Result<Vec<Function>> {
        let Some(entries) = present(fs::read_dir(folder))? else { return Ok(Vec::new()) };
        let mut functions = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let address = name.to_str().and_then(|name| name.parse().ok());
            // A group may hold devices of other buses, and a device may go while we look.
            if let Some(address) = address {
                functions.extend(self.function(address)?);
            }
        }
        functions.sort_by_key(|function| function.address);
        Ok(functions)
    }
}

/// Turns "there is none" into a value. A function that is being removed answers `ENODEV`.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn text(path: &Path) -> io::Result<Option<String>> {
    Ok(present(fs::read_to_string(path))?.map(|text| text.trim().to_owned()))
}

/// Reads `0x010802`.
fn number(path: &Path) -> io::Result<Option<u32>> {
    let Some(text) = text(path)? else { return Ok(None) };
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    u32::from_str_radix(digits, 16).map(Some).map_err(|_| {
        let what = format!("{} holds {text:?} and not a number", path.display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

/// Returns the last part of what a link leads to.
fn link_name(path: &Path) -> io::Result<Option<String>> {
    let target = present(fs::read_link(path))?;
    Ok(target.as_deref().and_then(Path::file_name).and_then(OsStr::to_str).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A tree with two functions in one group and one without.
    fn tree() -> (tempfile::TempDir, Sysfs) {
        let root = tempfile::tempdir().unwrap();
        let functions = [
            ("0000:04:00.0", "0x010802", Some("nvme"), Some(7)),
            ("0000:04:00.1", "0x010802", Some("vfio-pci"), Some(7)),
            ("0000:00:1f.0", "0x060100", None, None),
        ];
        for (address, class, driver, group) in functions {
            let folder = root.path().join("bus/pci/devices").join(address);
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in [
                ("class", class),
                ("vendor", "0x1b36"),
                ("device", "0x0010"),
                ("driver_override", "(null)"),
                ("numa_node", "-1"),
            ] {
                fs::write(folder.join(name), format!("{text}\n")).unwrap();
            }
            if let Some(driver) = driver {
                symlink(format!("../../../bus/pci/drivers/{driver}"), folder.join("driver"))
                    .unwrap();
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

    #[test]
    fn a_function_is_what_its_files_say() {
        let (_root, sysfs) = tree();
        let address: PciAddress = "04:00.0".parse().unwrap();
        let function = sysfs.function(address).unwrap().unwrap();
        assert!(function.is_nvme());
        assert_eq!((function.vendor, function.device), (0x1b36, 0x10));
        assert_eq!(function.driver.as_deref(), Some("nvme"));
        assert_eq!(
            (function.driver_override, function.group, function.numa_node),
            (None, Some(7), None)
        );
        assert_eq!(sysfs.function("05:00.0".parse().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_group_names_its_members_and_the_machine_all_functions() {
        let (_root, sysfs) = tree();
        let names = |functions: Vec<Function>| -> Vec<String> {
            functions.iter().map(|function| function.address.to_string()).collect()
        };
        assert_eq!(names(sysfs.group(7).unwrap()), ["0000:04:00.0", "0000:04:00.1"]);
        assert_eq!(names(sysfs.group(8).unwrap()), [""; 0]);
        assert_eq!(
            names(sysfs.functions().unwrap()),
            ["0000:00:1f.0", "0000:04:00.0", "0000:04:00.1"]
        );
        assert!(sysfs.has_iommu());
        assert!(!Sysfs::at("/nonexistent").has_iommu());
    }

    #[test]
    fn a_file_with_something_else_in_it_is_an_error_with_its_name() {
        let (root, sysfs) = tree();
        let path = root.path().join("bus/pci/devices/0000:04:00.0/vendor");
        fs::write(&path, "red\n").unwrap();
        let error = sysfs.functions().unwrap_err().to_string();
        assert_eq!(error, format!("{} holds \"red\" and not a number", path.display()));
    }
}
