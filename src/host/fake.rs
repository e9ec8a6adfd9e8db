//! A machine in a temporary folder, for tests: files and links where a kernel has them.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use super::Host;

/// A machine in a temporary folder.
pub(crate) struct Fake(tempfile::TempDir);

impl Fake {
    /// Makes a machine without anything.
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("there is a place for temporary files"))
    }

    /// Returns the machine as root sees it.
    pub(crate) fn host(&self) -> Host {
        self.host_of(0)
    }

    /// Returns the machine as a user sees it.
    pub(crate) fn host_of(&self, user: u32) -> Host {
        Host::at(self.root(), user)
    }

    /// Returns where it is.
    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file.
    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("it is below the root")).expect("a folder");
        fs::write(path, content).expect("a file");
    }

    /// Makes a link to a place of the machine.
    pub(crate) fn link(&self, path: &str, target: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("it is below the root")).expect("a folder");
        symlink(self.root().join(target), path).expect("a link");
    }

    /// Makes the folder of a device and the link by which its class lists it.
    pub(crate) fn device(&self, folder: &str, listed: &str) {
        fs::create_dir_all(self.root().join(folder)).expect("a folder");
        self.link(listed, folder);
    }

    /// Makes a PCI function and returns its folder.
    pub(crate) fn function(
        &self,
        address: &str,
        class: &str,
        driver: Option<&str>,
        group: Option<u32>,
    ) -> String {
        let folder = format!("sys/devices/pci0000:00/{address}");
        let files = [
            ("class", class),
            ("vendor", "0x1b36"),
            ("device", "0x0010"),
            ("driver_override", "(null)"),
            ("numa_node", "0"),
        ];
        files.iter().for_each(|(name, text)| {
            self.file(&format!("{folder}/{name}"), format!("{text}\n"));
        });
        self.link(&format!("sys/bus/pci/devices/{address}"), &folder);
        self.file("sys/bus/pci/drivers_probe", "");
        if let Some(driver) = driver {
            self.file(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
            self.link(&format!("{folder}/driver"), &format!("sys/bus/pci/drivers/{driver}"));
        }
        if let Some(group) = group {
            let groups = format!("sys/kernel/iommu_groups/{group}");
            self.link(&format!("{groups}/devices/{address}"), &folder);
            self.link(&format!("{folder}/iommu_group"), &groups);
        }
        folder
    }

    /// Makes an NVMe controller and returns its folder.
    pub(crate) fn nvme(&self, address: &str, driver: Option<&str>, group: Option<u32>) -> String {
        self.function(address, "0x010802", driver, group)
    }

    /// Gives a controller a disk with these bytes.
    pub(crate) fn disk(&self, address: &str, name: &str, number: &str, content: &[u8]) {
        let folder = format!("sys/devices/pci0000:00/{address}/nvme/nvme0/{name}");
        self.device(&folder, &format!("sys/block/{name}"));
        self.file(&format!("{folder}/dev"), number);
        self.file(&format!("{folder}/size"), (content.len() / 512).to_string());
        self.file(&format!("dev/{name}"), content);
    }

    /// Gives a disk a partition, in sectors of 512 bytes.
    pub(crate) fn partition(&self, disk: &str, name: &str, number: &str, start: u64, len: u64) {
        let folder = format!("sys/block/{disk}/{name}");
        let files = [("partition", "1".to_owned()), ("dev", number.to_owned())];
        let places = [("start", start.to_string()), ("size", len.to_string())];
        files.iter().chain(&places).for_each(|(file, text)| {
            self.file(&format!("{folder}/{file}"), text);
        });
        self.file(&format!("dev/{name}"), "");
    }

    /// Puts a device above another, as LVM and md do.
    pub(crate) fn holder(&self, block: &str, holder: &str, number: &str) {
        let folder = format!("sys/devices/virtual/block/{holder}");
        self.device(&folder, &format!("sys/block/{holder}"));
        self.file(&format!("{folder}/dev"), number);
        self.link(&format!("sys/block/{block}/holders/{holder}"), &folder);
        self.file(&format!("dev/{holder}"), "");
    }

    /// Starts a process that has files open.
    pub(crate) fn process(&self, number: u32, name: &str, open: &[&str]) {
        self.file(&format!("proc/{number}/comm"), format!("{name}\n"));
        for (descriptor, file) in open.iter().enumerate() {
            self.link(&format!("proc/{number}/fd/{descriptor}"), file);
        }
    }

    /// Has a process hold SPDK's lock on a device.
    pub(crate) fn spdk_lock(&self, address: &str, process: u32, name: &str) {
        let file = format!("var/tmp/spdk_pci_lock_{address}");
        self.file(&file, "");
        let inode = fs::metadata(self.root().join(&file)).expect("a file").ino();
        self.file(
            "proc/locks",
            format!("1: POSIX  ADVISORY  WRITE {process} fd:01:{inode} 0 EOF\n"),
        );
        self.process(process, name, &[]);
    }

    /// Gives a node hugepages of one size.
    pub(crate) fn hugepages(&self, node: u32, page_kib: u64, total: u64, free: u64) {
        let folder = format!("sys/devices/system/node/node{node}/hugepages/hugepages-{page_kib}kB");
        self.file(&format!("{folder}/nr_hugepages"), format!("{total}\n"));
        self.file(&format!("{folder}/free_hugepages"), format!("{free}\n"));
    }

    /// Returns everything that is there: names, links and content.
    pub(crate) fn snapshot(&self) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        let mut unread = vec![self.root().to_owned()];
        while let Some(folder) = unread.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                let kind = fs::symlink_metadata(&path).expect("it is there").file_type();
                let content = if kind.is_symlink() {
                    fs::read_link(&path).expect("a link").to_string_lossy().into_owned().into()
                } else if kind.is_dir() {
                    unread.push(path.clone());
                    Vec::new()
                } else {
                    fs::read(&path).expect("a file")
                };
                found.push((path.to_string_lossy().into_owned(), content));
            }
        }
        found.sort();
        found
    }
}
