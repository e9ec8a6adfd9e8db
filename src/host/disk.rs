//! What a PCI function gives to the kernel: disks with their partitions, and network interfaces.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::Host;
use crate::pci::PciAddress;

/// What the kernel counts the size of disks in.
const SECTOR_BYTES: u64 = 512;

/// A block device: a disk or a partition of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its name: `nvme0n1p2`.
    pub name: String,
    /// Its numbers: `259:2`.
    pub number: String,
    /// Where it begins on its disk, in bytes.
    pub start: u64,
    /// Its size in bytes.
    pub len: u64,
    /// Where sysfs shows it, below the root: `sys/block/nvme0n1/nvme0n1p2`.
    pub folder: String,
}

/// Returns the disks behind a function, by name. Every device below it counts: the disks of a SATA controller are
/// several steps further down.
pub fn disks(host: &Host, address: PciAddress) -> Vec<String> {
    let mut disks = below(host, address, "sys/block");
    // The paths of a namespace with several controllers are hidden; the disk that they lead to is its own device.
    disks.iter_mut().filter_map(|name| head_of(name).map(|head| (name, head))).for_each(
        |(name, head)| {
            if host.path(format!("sys/block/{head}")).exists() {
                *name = head;
            }
        },
    );
    disks.sort();
    disks.dedup();
    disks
}

/// Returns the network interfaces behind a function that are up.
pub fn interfaces_up(host: &Host, address: PciAddress) -> Vec<String> {
    const UP: u32 = 1;
    let flags = |name: &String| {
        let text = host.text(format!("sys/class/net/{name}/flags")).unwrap_or_default();
        u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
    };
    let mut interfaces = below(host, address, "sys/class/net");
    interfaces.retain(|name| flags(name) & UP != 0);
    interfaces
}

/// Returns the names in a folder of links that lead to devices of a function.
fn below(host: &Host, address: PciAddress, folder: &str) -> Vec<String> {
    let resolved = |path: PathBuf| path.canonicalize().ok();
    let Some(function) = resolved(host.sysfs.folder(address)) else { return Vec::new() };
    let leads_there = |name: &String| {
        let target = resolved(host.path(format!("{folder}/{name}")));
        target.is_some_and(|target| target.starts_with(&function))
    };
    host.names(folder).into_iter().filter(leads_there).collect()
}

/// Returns `nvme0n1` for the path `nvme0c1n1`.
fn head_of(name: &str) -> Option<String> {
    let rest = name.strip_prefix("nvme")?;
    let (subsystem, rest) = rest.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    [subsystem, controller, namespace]
        .into_iter()
        .all(is_number)
        .then(|| format!("nvme{subsystem}n{namespace}"))
}

/// Returns a disk and its partitions, the disk first.
pub fn blocks(host: &Host, disk: &str) -> Vec<Block> {
    let whole = format!("sys/block/{disk}");
    let parts = host.names(&whole).into_iter();
    let parts = parts.filter(|name| host.path(format!("{whole}/{name}/partition")).exists());
    let parts = parts.map(|name| (format!("{whole}/{name}"), name));
    let blocks = std::iter::once((whole.clone(), disk.to_owned())).chain(parts);
    blocks
        .map(|(folder, name)| {
            let bytes = |file: &str| {
                host.number(format!("{folder}/{file}")).unwrap_or(0).saturating_mul(SECTOR_BYTES)
            };
            let number = host.text(format!("{folder}/dev")).unwrap_or_default();
            Block { name, number, start: bytes("start"), len: bytes("size"), folder }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn disks_are_found_however_deep_and_paths_lead_to_their_disk() {
        let fake = Fake::new();
        let ahci = fake.function("0000:00:1f.2", "0x010601", Some("ahci"), Some(1));
        fake.device(&format!("{ahci}/ata1/host0/target0/block/sda"), "sys/block/sda");
        let nvme = fake.nvme("0000:04:00.0", Some("nvme"), Some(2));
        fake.device(&format!("{nvme}/nvme/nvme3/nvme3c3n1"), "sys/block/nvme3c3n1");
        fake.device("sys/devices/virtual/nvme-subsystem/nvme-subsys3/nvme3n1", "sys/block/nvme3n1");
        let host = fake.host();
        let disks = |address: &str| disks(&host, address.parse().unwrap());
        assert_eq!(disks("0000:00:1f.2"), ["sda"]);
        assert_eq!(disks("0000:04:00.0"), ["nvme3n1"]);
        assert_eq!(disks("0000:05:00.0"), [""; 0]);
    }

    #[test]
    fn partitions_have_their_place() {
        let fake = Fake::new();
        fake.nvme("0000:04:00.0", Some("nvme"), Some(2));
        fake.disk("0000:04:00.0", "nvme0n1", "259:0", &[0; 1 << 20]);
        fake.partition("nvme0n1", "nvme0n1p1", "259:1", 2048, 4096);
        let blocks = blocks(&fake.host(), "nvme0n1");
        let row =
            |block: &Block| (block.name.clone(), block.number.clone(), block.start, block.len);
        assert_eq!(
            blocks.iter().map(row).collect::<Vec<_>>(),
            [
                ("nvme0n1".into(), "259:0".into(), 0, 1 << 20),
                ("nvme0n1p1".into(), "259:1".into(), 1 << 20, 2 << 20)
            ]
        );
    }

    #[test]
    fn only_interfaces_that_are_up_count() {
        let fake = Fake::new();
        let nic = fake.function("0000:05:00.0", "0x020000", Some("e1000e"), Some(1));
        for (name, flags) in [("eth0", "0x1003"), ("eth1", "0x1002")] {
            fake.device(&format!("{nic}/net/{name}"), &format!("sys/class/net/{name}"));
            fake.file(&format!("{nic}/net/{name}/flags"), flags);
        }
        assert_eq!(interfaces_up(&fake.host(), "05:00.0".parse().unwrap()), ["eth0"]);
    }
}
