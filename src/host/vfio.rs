//! Whose an IOMMU group is, who has it open, and whether SPDK holds a device.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::Host;
use crate::pci::PciAddress;
use crate::transport::vfio::holder_in;

/// A process: its number and its name.
pub type Process = (u32, String);

/// The file by which a group is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupFile {
    /// Who owns it.
    pub owner: u32,
    /// Whether the user who asks may open it.
    pub is_ours: bool,
    /// Who has it open, where that could be seen.
    pub holder: Option<Process>,
}

/// Returns the name of a group's file.
pub fn group_name(group: u32) -> String {
    format!("dev/vfio/{group}")
}

/// Looks at the file of a group; `None` if there is none, as where nothing of the group is bound to vfio-pci.
pub fn group_file(host: &Host, group: u32) -> Option<GroupFile> {
    let path = host.path(group_name(group));
    let metadata = fs::metadata(&path).ok()?;
    let (owner, mode) = (metadata.uid(), metadata.mode());
    let may = |shift: u32| mode >> shift & 0o6 == 0o6;
    let is_ours = host.is_root()
        || if owner == host.user {
            may(6)
        } else if host.groups.contains(&metadata.gid()) {
            may(3)
        } else {
            may(0)
        };
    let holder = holder_in(&host.path("proc"), |target| target == path);
    Some(GroupFile { owner, is_ours, holder })
}

/// Says whether somebody has a group open, by asking for it: the kernel gives it to one at a time. A process that kept
/// only the device, and whose group no list of open files shows, is noticed too.
pub fn is_group_busy(host: &Host, group: u32) -> bool {
    let opened = fs::OpenOptions::new().read(true).write(true).open(host.path(group_name(group)));
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// Returns the process that holds SPDK's lock on a device. SPDK takes it for as long as it drives one.
///
/// The kernel's list of locks is asked, so that nothing has to be opened: `1: POSIX ADVISORY WRITE 4242 fd:01:131 0 EOF`.
pub fn spdk_lock(host: &Host, address: PciAddress) -> Option<Process> {
    let file = fs::metadata(host.path(format!("var/tmp/spdk_pci_lock_{address}"))).ok()?;
    let inode = file.ino().to_string();
    for line in host.text("proc/locks")?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, _, process, place, ..] = words[..] else { continue };
        // Some file systems show another device number here than to a process: the inode has to do.
        if place.rsplit(':').next() == Some(&inode) {
            let number = process.parse().unwrap_or(0);
            let name = host.text(format!("proc/{number}/comm")).unwrap_or_default();
            return Some((number, name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn a_group_belongs_to_its_owner_and_to_root() {
        let fake = Fake::new();
        assert_eq!(group_file(&fake.host(), 7), None);
        fake.file("dev/vfio/7", "");
        let owner = fs::metadata(fake.host().path("dev/vfio/7")).unwrap().uid();
        let is_ours = |user| group_file(&fake.host_of(user), 7).unwrap().is_ours;
        assert!(is_ours(0) && is_ours(owner) && !is_ours(owner + 1));
        assert!(!is_group_busy(&fake.host(), 7), "a file can be opened by many");
        assert!(!is_group_busy(&fake.host(), 8), "what is not there is not busy");
    }

    #[test]
    fn the_process_that_has_a_group_open_is_named() {
        let fake = Fake::new();
        fake.file("dev/vfio/7", "");
        fake.file("dev/vfio/17", "");
        fake.process(4242, "nvmf_tgt", &["dev/vfio/17"]);
        assert_eq!(group_file(&fake.host(), 7).unwrap().holder, None);
        assert_eq!(group_file(&fake.host(), 17).unwrap().holder, Some((4242, "nvmf_tgt".into())));
    }

    #[test]
    fn a_lock_file_alone_is_no_lock() {
        let fake = Fake::new();
        let address = "0000:04:00.0".parse().unwrap();
        assert_eq!(spdk_lock(&fake.host(), address), None);
        fake.file("var/tmp/spdk_pci_lock_0000:04:00.0", "");
        fake.file("proc/locks", "1: FLOCK  ADVISORY  WRITE 1 fd:01:1 0 EOF\n");
        assert_eq!(spdk_lock(&fake.host(), address), None);
        fake.spdk_lock("0000:04:00.0", 4242, "nvmf_tgt");
        assert_eq!(spdk_lock(&fake.host(), address), Some((4242, "nvmf_tgt".into())));
    }
}
