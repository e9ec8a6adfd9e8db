//! Who holds a disk, and what is on it.
//!
//! A disk is in use when it, a partition of it, or anything that was built upon them is mounted, swapped to, held, or
//! open in a process. The last question is put to the kernel itself: a disk that it lets nobody claim is in use,
//! whoever uses it. A claim that is given lasts as long as [`Found`] does, so that nobody mounts meanwhile.
#![forbid(unsafe_code)]

use core::fmt;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::Host;
use super::disk::{Block, blocks};
use super::signature::{Signature, find};
use super::vfio::Process;
use crate::transport::vfio::holder_in;

/// One use of a disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A file system on it is mounted.
    Mount {
        /// What is mounted.
        block: String,
        /// Where.
        at: String,
    },
    /// The kernel swaps to it.
    Swap {
        /// To what.
        block: String,
    },
    /// Another device is built upon it.
    Holder {
        /// Upon what.
        block: String,
        /// The other device.
        holder: String,
        /// What that is.
        what: String,
    },
    /// A process has it open.
    Open {
        /// Which.
        process: Process,
    },
    /// The kernel lets nobody claim it.
    Claimed,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { block, at } => write!(f, "{block} is mounted at {at}"),
            Self::Swap { block } => write!(f, "{block} is swap"),
            Self::Holder { block, holder, what } => write!(f, "{block} is held by {holder} ({what})"),
            Self::Open { process: (number, name) } => {
                write!(f, "it is open in process {number} ({name})")
            }
            Self::Claimed => f.write_str(
                "the kernel has it claimed (a zfs pool, a multi-device file system, or another mount namespace)",
            ),
        }
    }
}

impl Use {
    /// Returns what ends the use.
    pub fn fix(&self) -> String {
        match self {
            Self::Mount { at, .. } => format!("umount {at}"),
            Self::Swap { block } => format!("swapoff /dev/{block}"),
            Self::Holder { holder, what, .. } if what.starts_with("LVM") => {
                format!("vgchange -an, for the group of /dev/{holder}")
            }
            Self::Holder { holder, .. } if holder.starts_with("md") => {
                format!("mdadm --stop /dev/{holder}")
            }
            Self::Holder { holder, .. } if holder.starts_with("dm-") => {
                format!("dmsetup remove /dev/{holder}, or what made it")
            }
            Self::Holder { holder, .. } if holder.starts_with("loop") => {
                format!("losetup -d /dev/{holder}")
            }
            Self::Holder { holder, .. } => format!("stop /dev/{holder}"),
            Self::Open { process: (number, _) } => format!("end process {number}"),
            Self::Claimed => "zpool export, or unmount it where it is mounted".into(),
        }
    }
}

/// What is known of a disk.
#[derive(Debug, Default)]
pub struct Found {
    /// Who holds it.
    pub uses: Vec<Use>,
    /// What is on it: on which block device, and what.
    pub signatures: Vec<(String, Signature)>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
    /// While this is open nobody else can claim the disk.
    claim: Option<File>,
}

impl Found {
    /// Says whether the disk is ours alone for now.
    pub fn is_claimed(&self) -> bool {
        self.claim.is_some()
    }
}

/// Looks at a disk.
pub fn look(host: &Host, disk: &str) -> Found {
    let own = blocks(host, disk);
    let mut found = Found::default();
    let mut uses = BTreeSet::new();
    let family = climb(host, disk, &mut uses);
    uses.extend(mounts(host, &family));
    uses.extend(swaps(host, &family));
    uses.extend(open_in(host, disk, &family));
    let is_held = !uses.is_empty();
    match claim(&host.path(format!("dev/{disk}"))) {
        Ok(Claim::Ours(file)) => found.claim = Some(file),
        Ok(Claim::Refused) if !is_held => drop(uses.insert(Use::Claimed)),
        Ok(Claim::Refused) => {}
        Err(error) => found.unseen.push(format!("/dev/{disk} cannot be opened: {error}")),
    }
    found.uses = uses.into_iter().collect();
    read_signatures(host, disk, &own, &mut found);
    found
}

/// Returns a disk with all that is built upon it, and notes each step.
fn climb(host: &Host, disk: &str, uses: &mut BTreeSet<Use>) -> Vec<Block> {
    let mut family: Vec<Block> = blocks(host, disk);
    let mut at = 0;
    while let Some(block) = family.get(at).cloned() {
        at += 1;
        let holders = host.names(format!("{}/holders", block.folder)).into_iter();
        for holder in holders.chain(loops_on(host, &block)) {
            let what = what_is(host, &holder);
            let is_known = family.iter().any(|other| other.name == holder);
            uses.insert(Use::Holder { block: block.name.clone(), holder: holder.clone(), what });
            if !is_known {
                family.extend(blocks(host, &holder));
            }
        }
    }
    family
}

/// Returns the loop devices on a block device: neither a holder nor a claim tells of them.
fn loops_on(host: &Host, block: &Block) -> Vec<String> {
    let mut names = host.names("sys/block");
    names.retain(|name| {
        let file = host.text(format!("sys/block/{name}/loop/backing_file"));
        file.and_then(|file| name_of(host, &file)).as_ref() == Some(&block.name)
    });
    names
}

/// Says what a device above a disk is.
fn what_is(host: &Host, holder: &str) -> String {
    let folder = format!("sys/block/{holder}");
    if let Some(name) = host.text(format!("{folder}/dm/name")) {
        let uuid = host.text(format!("{folder}/dm/uuid")).unwrap_or_default();
        let kind = match uuid.split('-').next() {
            Some("LVM") => "LVM volume",
            Some("CRYPT") => "dm-crypt",
            Some("mpath") => "multipath",
            _ => "device mapper",
        };
        return format!("{kind} {name}");
    }
    if let Some(level) = host.text(format!("{folder}/md/level")) {
        return format!("md array, {level}");
    }
    let kinds = [("bcache", "bcache"), ("loop", "loop device")];
    let kind = kinds.iter().find(|(prefix, _)| holder.starts_with(prefix));
    kind.map_or("another block device", |(_, kind)| kind).into()
}

fn mounts(host: &Host, family: &[Block]) -> Vec<Use> {
    let mut uses = Vec::new();
    // Process 1 may live in another mount namespace, and its mounts count as well.
    for table in ["proc/self/mountinfo", "proc/1/mountinfo"] {
        for line in host.text(table).unwrap_or_default().lines() {
            // `36 35 259:1 / /mnt rw,noatime shared:1 - ext4 /dev/nvme0n1p1 rw`
            let words: Vec<&str> = line.split(' ').collect();
            let source =
                words.iter().position(|word| *word == "-").and_then(|at| words.get(at + 2));
            let (Some(number), Some(at)) = (words.get(2), words.get(4)) else { continue };
            // btrfs has numbers of its own, and only its source leads to a disk.
            let source = source.and_then(|source| name_of(host, source));
            let is_it = |block: &&Block| {
                block.number == *number || source.as_deref() == Some(block.name.as_str())
            };
            if let Some(block) = family.iter().find(is_it) {
                uses.push(Use::Mount { block: block.name.clone(), at: plain(at) });
            }
        }
    }
    uses
}

fn swaps(host: &Host, family: &[Block]) -> Vec<Use> {
    let table = host.text("proc/swaps").unwrap_or_default();
    let names = table.lines().skip(1).filter_map(|line| {
        let path = line.split_whitespace().next()?;
        name_of(host, path)
    });
    let ours = names.filter(|name| family.iter().any(|block| block.name == *name));
    ours.map(|block| Use::Swap { block }).collect()
}

/// Returns the process that has any of a family open, or the controller of the disk.
fn open_in(host: &Host, disk: &str, family: &[Block]) -> Option<Use> {
    let mut files: BTreeSet<_> =
        family.iter().map(|block| host.path(format!("dev/{}", block.name))).collect();
    // `/dev/ng0n1` is the same namespace without the block layer.
    if let Some(rest) = disk.strip_prefix("nvme") {
        files.insert(host.path(format!("dev/ng{rest}")));
    }
    let process = holder_in(&host.path("proc"), |target| files.contains(target))?;
    Some(Use::Open { process })
}

/// Returns the name of the device that a path below `/dev` leads to.
fn name_of(host: &Host, path: &str) -> Option<String> {
    let below = path.strip_prefix("/dev/")?;
    let path = host.path("dev").join(below);
    let path = path.canonicalize().unwrap_or(path);
    Some(path.file_name()?.to_str()?.to_owned())
}

/// Takes the escapes out of a path of `/proc`: `\040` is a blank.
fn plain(path: &str) -> String {
    let mut plain = String::new();
    let mut rest = path;
    while let Some(at) = rest.find('\\') {
        plain += &rest[..at];
        let code = rest.get(at + 1..at + 4).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => plain.push(char::from(code)),
            None => plain.push('\\'),
        }
        rest = &rest[if code.is_some() { at + 4 } else { at + 1 }..];
    }
    plain + rest
}

enum Claim {
    Ours(File),
    Refused,
}

/// Opens a disk so that nobody else can claim it. What is mounted or held is claimed already.
fn claim(path: &Path) -> io::Result<Claim> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(Claim::Ours(file.into())),
        Err(rustix::io::Errno::BUSY) => Ok(Claim::Refused),
        Err(error) => Err(error.into()),
    }
}

fn read_signatures(host: &Host, disk: &str, own: &[Block], found: &mut Found) {
    let opened;
    let file = match &found.claim {
        Some(file) => file,
        None => match File::open(host.path(format!("dev/{disk}"))) {
            Ok(file) => {
                opened = file;
                &opened
            }
            // That it cannot be opened was said already, unless it is in use.
            Err(_) => return,
        },
    };
    for block in own {
        match find(block.len, |at, buffer| file.read_exact_at(buffer, block.start + at)) {
            Ok(signatures) => {
                let named = signatures.into_iter().map(|one| (block.name.clone(), one));
                found.signatures.extend(named);
            }
            Err(error) => found.unseen.push(format!("/dev/{} cannot be read: {error}", block.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    const AT: &str = "0000:04:00.0";

    fn machine() -> Fake {
        let fake = Fake::new();
        fake.nvme(AT, Some("nvme"), Some(2));
        fake.disk(AT, "nvme0n1", "259:0", &[0; 4 << 20]);
        fake.partition("nvme0n1", "nvme0n1p1", "259:1", 2048, 2048);
        fake
    }

    fn said(fake: &Fake) -> Vec<String> {
        look(&fake.host(), "nvme0n1").uses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_disk_that_nobody_uses_is_claimed_while_it_is_looked_at() {
        let fake = machine();
        let before = fake.snapshot();
        let found = look(&fake.host(), "nvme0n1");
        assert_eq!(fake.snapshot(), before, "looking changes nothing");
        assert!(found.is_claimed() && found.uses.is_empty() && found.unseen.is_empty());
        assert!(found.signatures.is_empty());
    }

    #[test]
    fn mounts_are_found_by_number_and_by_source() {
        let fake = machine();
        fake.file(
            "proc/self/mountinfo",
            "22 27 0:21 / /proc rw - proc proc rw\n\
             36 27 259:1 / /mnt/my\\040disk rw,noatime shared:1 - ext4 /dev/nvme0n1p1 rw\n",
        );
        assert_eq!(said(&fake), ["nvme0n1p1 is mounted at /mnt/my disk"]);
        fake.file("proc/self/mountinfo", "36 27 0:44 /sub /b rw - btrfs /dev/nvme0n1 rw\n");
        assert_eq!(said(&fake), ["nvme0n1 is mounted at /b"]);
        fake.file("proc/self/mountinfo", "36 27 0:44 / /b rw - btrfs /dev/nvme0n11 rw\n");
        assert_eq!(said(&fake), [""; 0]);
    }

    #[test]
    fn mounts_of_the_first_process_count_too() {
        let fake = machine();
        fake.file("proc/1/mountinfo", "36 27 259:0 / / rw - xfs /dev/root rw\n");
        assert_eq!(said(&fake), ["nvme0n1 is mounted at /"]);
    }

    /// A disk below LVM that was mounted could be taken away elsewhere, because only its own mounts were looked for.
    #[test]
    fn what_is_built_upon_a_disk_is_followed_to_its_mounts_and_swap() {
        let fake = machine();
        fake.holder("nvme0n1/nvme0n1p1", "md127", "9:127");
        fake.file("sys/block/md127/md/level", "raid1\n");
        fake.holder("md127", "dm-3", "253:3");
        fake.file("sys/block/dm-3/dm/name", "vg-data\n");
        fake.file("sys/block/dm-3/dm/uuid", "LVM-ab12\n");
        fake.link("dev/mapper/vg-data", "dev/dm-3");
        fake.file("proc/self/mountinfo", "36 27 253:3 / /srv rw - ext4 /dev/mapper/vg-data rw\n");
        fake.file(
            "proc/swaps",
            "Filename Type Size Used Priority\n/dev/mapper/vg-data partition 1 0 -2\n",
        );
        assert_eq!(
            said(&fake),
            [
                "dm-3 is mounted at /srv",
                "dm-3 is swap",
                "md127 is held by dm-3 (LVM volume vg-data)",
                "nvme0n1p1 is held by md127 (md array, raid1)"
            ]
        );
        let fixes: Vec<String> = look(&fake.host(), "nvme0n1").uses.iter().map(Use::fix).collect();
        assert_eq!(
            fixes,
            [
                "umount /srv",
                "swapoff /dev/dm-3",
                "vgchange -an, for the group of /dev/dm-3",
                "mdadm --stop /dev/md127"
            ]
        );
    }

    #[test]
    fn a_loop_device_on_a_disk_is_followed_too() {
        let fake = machine();
        fake.device("sys/devices/virtual/block/loop0", "sys/block/loop0");
        fake.file("sys/block/loop0/dev", "7:0");
        fake.file("sys/block/loop0/loop/backing_file", "/dev/nvme0n1p1\n");
        fake.file("proc/self/mountinfo", "36 27 7:0 / /srv rw - ext4 /dev/loop0 rw\n");
        let held = "nvme0n1p1 is held by loop0 (loop device)";
        assert_eq!(said(&fake), ["loop0 is mounted at /srv", held]);
        assert_eq!(look(&fake.host(), "nvme0n1").uses[1].fix(), "losetup -d /dev/loop0");
        fake.file("sys/block/loop0/loop/backing_file", "/srv/nvme0n1\n");
        assert_eq!(said(&fake), [""; 0]);
    }

    #[test]
    fn a_process_with_the_disk_open_is_named() {
        for file in ["dev/nvme0n1", "dev/nvme0n1p1", "dev/ng0n1"] {
            let fake = machine();
            fake.process(77, "fio", &["dev/null", file]);
            assert_eq!(said(&fake), ["it is open in process 77 (fio)"]);
        }
    }

    #[test]
    fn signatures_are_found_on_the_disk_and_in_its_partitions() {
        let fake = machine();
        let mut content = vec![0; 4 << 20];
        content[512..520].copy_from_slice(b"EFI PART");
        content[1 << 20..(1 << 20) + 4].copy_from_slice(b"XFSB");
        fake.file("dev/nvme0n1", content);
        let found = look(&fake.host(), "nvme0n1").signatures;
        let found: Vec<_> = found.iter().map(|(block, one)| (block.as_str(), one.name)).collect();
        assert_eq!(found, [("nvme0n1", "gpt"), ("nvme0n1p1", "xfs")]);
    }

    #[test]
    fn what_cannot_be_looked_at_is_said() {
        let fake = machine();
        std::fs::remove_file(fake.root().join("dev/nvme0n1")).unwrap();
        let found = look(&fake.host(), "nvme0n1");
        assert!(!found.is_claimed());
        assert!(
            found.unseen[0].starts_with("/dev/nvme0n1 cannot be opened: "),
            "{:?}",
            found.unseen
        );
        // A disk that says it is larger than it is.
        fake.file("dev/nvme0n1", "short");
        let found = look(&fake.host(), "nvme0n1");
        assert!(found.unseen[0].starts_with("/dev/nvme0n1 cannot be read: "), "{:?}", found.unseen);
    }

    #[test]
    fn escapes_of_proc_are_undone() {
        assert_eq!(plain("/a\\040b\\134c\\"), "/a b\\c\\");
    }
}
