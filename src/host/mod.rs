//! What the machine is like: everything that decides whether a drive can be driven from here, read from its files.
//!
//! ```text
//!   Host        the root of all paths (/ or a copy of it in a test), and who asks
//!    ├ iommu      is there one, and why not        modules    loaded, available, missing
//!    ├ hugepages  pools of each node, room         limits     locked memory
//!    ├ disk       what a function offers the kernel as disks and interfaces
//!    │  ├ uses       who holds a disk: mounts, swap, device mapper, md, processes
//!    │  └ signature  what its first and last blocks say
//!    └ vfio       whose a group is, who has it open, SPDK's lock
//! ```
//!
//! Nothing here writes. The invariant: what could not be looked at is said (`unseen`), and never taken for absent.
#![forbid(unsafe_code)]

pub mod disk;
#[cfg(test)]
pub(crate) mod fake;
pub mod hugepages;
pub mod iommu;
pub mod limits;
pub mod modules;
pub mod signature;
pub mod uses;
pub mod vfio;

use std::path::{Path, PathBuf};

use crate::pci::Sysfs;

/// A machine, and the user who looks at it.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its devices.
    pub sysfs: Sysfs,
    /// The user who asks.
    pub user: u32,
    /// The groups of that user.
    pub groups: Vec<u32>,
    root: PathBuf,
}

impl Default for Host {
    /// This machine and this user.
    fn default() -> Self {
        let groups = rustix::process::getgroups().unwrap_or_default();
        let mut groups: Vec<u32> = groups.into_iter().map(rustix::fs::Gid::as_raw).collect();
        groups.push(rustix::process::getegid().as_raw());
        Self { groups, ..Self::at("/", rustix::process::geteuid().as_raw()) }
    }
}

impl Host {
    /// The machine below a folder, as a user sees it who is in no group.
    pub fn at(root: impl Into<PathBuf>, user: u32) -> Self {
        let root = root.into();
        Self { sysfs: Sysfs::at(root.join("sys")), user, groups: Vec::new(), root }
    }

    /// Says whether root asks.
    pub fn is_root(&self) -> bool {
        self.user == 0
    }

    /// Returns where a file of the machine is: `proc/swaps`.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// Returns the trimmed text of a file; `None` where it cannot be read.
    pub fn text(&self, below: impl AsRef<Path>) -> Option<String> {
        let bytes = std::fs::read(self.path(below)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Returns the number in a file; `None` where there is none.
    pub fn number(&self, below: impl AsRef<Path>) -> Option<u64> {
        self.text(below)?.parse().ok()
    }

    /// Returns the names in a folder, in their order; none where it cannot be read.
    pub fn names(&self, below: impl AsRef<Path>) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(below)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Returns the number of a user who is given by name or by number.
    pub fn user_named(&self, name: &str) -> Option<u32> {
        let listed = || {
            let users = self.text("etc/passwd")?;
            let mut rows = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
            rows.find(|row| row.first() == Some(&name))?.get(2)?.parse().ok()
        };
        name.parse().ok().or_else(listed)
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;

    #[test]
    fn a_user_has_a_name_or_a_number() {
        let fake = Fake::new();
        fake.file("etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1007:100::/home/ann:/bin/sh\n");
        let host = fake.host();
        assert_eq!(host.user_named("ann"), Some(1007));
        assert_eq!(host.user_named("65534"), Some(65534));
        assert_eq!(host.user_named("an"), None);
    }
}
