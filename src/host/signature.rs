//! What the first and last blocks of a disk say: partition tables, file systems, members of something larger.
//!
//! A small recogniser for what is common, by the magic numbers that each format documents. A disk without any may hold
//! data all the same: nothing here says that one is empty.
#![forbid(unsafe_code)]

/// How much of the beginning is looked at: the first label of ZFS, and everything else that stands in front.
const HEAD_BYTES: u64 = 256 << 10;

/// How much of the end is looked at, from a boundary of 256 KiB: the last two labels of ZFS, md, a second GPT.
const TAIL_BYTES: u64 = 512 << 10;

/// Where the ring of uberblocks begins in a label of ZFS, and how far its slots are apart at least.
const ZFS_RING: usize = 128 << 10;
const ZFS_SLOT: usize = 1 << 10;

/// Linux md, in the order of the machine that made it.
const MD: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();

/// What a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Its name.
    pub name: &'static str,
    /// Whether it is made and used by drivers in userspace: nothing of the kernel's is lost by taking it.
    pub is_userspace: bool,
}

impl Signature {
    const fn kernel(name: &'static str) -> Self {
        Self { name, is_userspace: false }
    }

    const fn userspace(name: &'static str) -> Self {
        Self { name, is_userspace: true }
    }
}

/// A magic number that stands at one place from the beginning.
const AT: &[(usize, &[u8], Signature)] = &[
    (0, b"XFSB", Signature::kernel("xfs")),
    (0, b"LUKS\xba\xbe", Signature::kernel("luks")),
    (0x4000, b"SKUL\xba\xbe", Signature::kernel("luks")),
    (64 << 10 | 0x40, b"_BHRfS_M", Signature::kernel("btrfs")),
    (4096 - 10, b"SWAPSPACE2", Signature::kernel("swap")),
    (4096 - 10, b"SWAP-SPACE", Signature::kernel("swap")),
    (1024, b"\x10\x20\xf5\xf2", Signature::kernel("f2fs")),
    (0, &MD, Signature::kernel("md")),
    (4096, &MD, Signature::kernel("md")),
    (
        4096 + 24,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        Signature::kernel("bcache"),
    ),
    (3, b"NTFS    ", Signature::kernel("ntfs")),
    (3, b"EXFAT   ", Signature::kernel("exfat")),
    (82, b"FAT32   ", Signature::kernel("fat")),
    (54, b"FAT16   ", Signature::kernel("fat")),
    (54, b"FAT12   ", Signature::kernel("fat")),
    (0, b"bluestore block device", Signature::kernel("ceph bluestore")),
    (0, b"UDSB", Signature::userspace("udirect store")),
    (64 << 10, b"UDSB", Signature::userspace("udirect store")),
    (0, b"SPDKBLOB", Signature::userspace("SPDK blobstore")),
];

/// Looks at a disk of `len` bytes; `read` fills a buffer from an offset, or fails.
///
/// # Errors
///
/// Those of `read`.
pub fn find<E>(
    len: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<Signature>, E> {
    let mut head = vec![0; len.min(HEAD_BYTES) as usize];
    read(0, &mut head)?;
    let from = (len & !(HEAD_BYTES - 1)).saturating_sub(TAIL_BYTES);
    let mut tail = vec![0; (len - from) as usize];
    read(from, &mut tail)?;
    Ok(recognise(&head, &tail))
}

fn recognise(head: &[u8], tail: &[u8]) -> Vec<Signature> {
    let mut found = Vec::new();
    let mut add = |one: Signature| {
        if !found.contains(&one) {
            found.push(one);
        }
    };
    if has_gpt(head, tail) {
        add(Signature::kernel("gpt"));
    }
    let plain = AT.iter().filter(|(at, magic, _)| has(head, *at, magic));
    plain.for_each(|(.., signature)| add(*signature));
    ext(head).into_iter().for_each(&mut add);
    if (0..4).any(|sector| has_lvm(head, sector * 512)) {
        add(Signature::kernel("lvm2"));
    }
    if is_zfs(head, tail) {
        add(Signature::kernel("zfs"));
    }
    if ends_with_md(tail) {
        add(Signature::kernel("md"));
    }
    // The first block of a FAT or of a GPT looks like an MBR as well.
    if found.is_empty() && has_mbr(head) {
        found.push(Signature::kernel("mbr"));
    }
    found
}

fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..at + magic.len()) == Some(magic)
}

/// A table at the first block behind block 0, or its copy in the last block; blocks of 512 or 4096 bytes.
fn has_gpt(head: &[u8], tail: &[u8]) -> bool {
    [512, 4096].into_iter().any(|block| {
        let last = tail.len().checked_sub(block);
        has(head, block, b"EFI PART") || last.is_some_and(|last| has(tail, last, b"EFI PART"))
    })
}

/// Four entries, each active or not, at least one of a type.
fn has_mbr(head: &[u8]) -> bool {
    let Some(entries) = head.get(446..510) else { return false };
    let are_entries = entries.chunks(16).all(|entry| matches!(entry[0], 0 | 0x80));
    has(head, 510, &[0x55, 0xaa]) && are_entries && entries.chunks(16).any(|entry| entry[4] != 0)
}

/// The superblock at 1024: magic number at 56, what a kernel has to know at 92 and 96.
fn ext(head: &[u8]) -> Option<Signature> {
    const JOURNAL: u8 = 0x04;
    const EXTENTS_OR_64BIT: u8 = 0x40 | 0x80;
    if !has(head, 1024 + 56, &[0x53, 0xef]) {
        return None;
    }
    let (compatible, incompatible) = (*head.get(1024 + 92)?, *head.get(1024 + 96)?);
    Some(Signature::kernel(if incompatible & EXTENTS_OR_64BIT != 0 {
        "ext4"
    } else if compatible & JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    }))
}

fn has_lvm(head: &[u8], at: usize) -> bool {
    has(head, at, b"LABELONE") && has(head, at + 24, b"LVM2 001")
}

/// An uberblock in any label that was read: the first, or one of the last two.
fn is_zfs(head: &[u8], tail: &[u8]) -> bool {
    const UBERBLOCK: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();
    let mut other = UBERBLOCK;
    other.reverse();
    let label = HEAD_BYTES as usize;
    let labels = head.get(..label).into_iter().chain(tail.chunks_exact(label).take(2));
    let mut slots = labels.flat_map(|label| label[ZFS_RING..].chunks_exact(ZFS_SLOT));
    slots.any(|slot| slot.starts_with(&UBERBLOCK) || slot.starts_with(&other))
}

/// Version 1.0: 8 KiB before the end, at a boundary of 4 KiB. Version 0.90: 64 KiB before, at one of 64 KiB.
fn ends_with_md(tail: &[u8]) -> bool {
    // The tail begins at a boundary of 256 KiB, so its own offsets have the disk's boundaries.
    let at = |back: usize, boundary: usize| {
        let end = tail.len() & !(boundary - 1);
        end.checked_sub(back)
    };
    let newer = tail.len().checked_sub(8 << 10).map(|at| at & !0xfff);
    let older = at(64 << 10, 64 << 10);
    [newer, older].into_iter().flatten().any(|at| {
        let mut other = MD;
        other.reverse();
        has(tail, at, &MD) || has(tail, at, &other)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds what is on a disk of `len` bytes with these pieces.
    fn names(len: usize, pieces: &[(usize, &[u8])]) -> Vec<&'static str> {
        let mut disk = vec![0; len];
        pieces.iter().for_each(|(at, bytes)| disk[*at..at + bytes.len()].copy_from_slice(bytes));
        let found = find(len as u64, |at, buffer| {
            let at = at as usize;
            buffer.copy_from_slice(disk.get(at..at + buffer.len()).ok_or(())?);
            Ok::<(), ()>(())
        });
        found.unwrap().iter().map(|one| one.name).collect()
    }

    const LEN: usize = (4 << 20) + 12 * 512;

    #[test]
    fn every_magic_number_is_found_at_its_place() {
        for (at, magic, signature) in AT {
            assert_eq!(names(LEN, &[(*at, magic)]), [signature.name]);
            assert!(names(LEN, &[(at + 1, magic)]).is_empty(), "{}", signature.name);
        }
    }

    #[test]
    fn tables_are_found_at_both_ends() {
        for block in [512, 4096] {
            assert_eq!(names(LEN, &[(block, b"EFI PART")]), ["gpt"]);
            assert_eq!(names(LEN, &[(LEN - block, b"EFI PART")]), ["gpt"]);
        }
        let boot = [0x55, 0xaa];
        assert_eq!(names(LEN, &[(446 + 4, &[0x83]), (510, &boot)]), ["mbr"]);
        assert_eq!(names(LEN, &[(510, &boot)]), [""; 0], "no partition");
        assert_eq!(names(LEN, &[(446, &[1]), (446 + 4, &[0x83]), (510, &boot)]), [""; 0]);
        let protective = (446 + 4, &[0xee][..]);
        assert_eq!(names(LEN, &[protective, (510, &boot), (512, b"EFI PART")]), ["gpt"]);
    }

    #[test]
    fn the_generations_of_ext_are_told_apart() {
        let magic = (1024 + 56, &[0x53, 0xef][..]);
        assert_eq!(names(LEN, &[magic]), ["ext2"]);
        assert_eq!(names(LEN, &[magic, (1024 + 92, &[0x3c])]), ["ext3"]);
        assert_eq!(names(LEN, &[magic, (1024 + 92, &[0x3c]), (1024 + 96, &[0xc2])]), ["ext4"]);
    }

    #[test]
    fn members_of_something_larger_are_found() {
        assert_eq!(names(LEN, &[(512, b"LABELONE"), (512 + 24, b"LVM2 001")]), ["lvm2"]);
        assert_eq!(names(LEN, &[(512, b"LABELONE")]), [""; 0]);
        // md 1.0, then 0.90 of a machine with the other order of bytes.
        let newer = (LEN - (8 << 10)) & !0xfff;
        assert_eq!(names(LEN, &[(newer, &MD)]), ["md"]);
        let older = (LEN & !0xffff) - (64 << 10);
        assert_eq!(names(LEN, &[(older, &[0xa9, 0x2b, 0x4e, 0xfc])]), ["md"]);
    }

    #[test]
    fn an_uberblock_in_any_label_is_zfs() {
        let uberblock = 0x00ba_b10c_u64.to_le_bytes();
        let last = LEN & !(HEAD_BYTES as usize - 1);
        for label in [0, last - (512 << 10), last - (256 << 10)] {
            for slot in [0, 4, 127] {
                let at = label + ZFS_RING + slot * ZFS_SLOT;
                assert_eq!(names(LEN, &[(at, &uberblock)]), ["zfs"], "label at {label}");
            }
        }
    }

    #[test]
    fn a_tiny_disk_is_no_trouble() {
        for len in [0, 1, 511, 512, 4096, 70_000] {
            assert_eq!(names(len, &[]), [""; 0]);
        }
    }

    /// Runs a tool on an image of 512 MiB; `None` where there is no such tool.
    fn made_by(tool: &str, args: &[&str], input: &str) -> Option<Vec<&'static str>> {
        use std::io::Write;
        use std::os::unix::fs::FileExt;
        use std::process::{Command, Stdio};
        let image = tempfile::NamedTempFile::new().unwrap();
        let len = 512 << 20;
        image.as_file().set_len(len).unwrap();
        let mut command = Command::new(tool);
        command.args(args).arg(image.path()).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{tool} {args:?}");
        let found = find(len, |at, buffer| image.as_file().read_exact_at(buffer, at)).unwrap();
        Some(found.iter().map(|one| one.name).collect())
    }

    #[test]
    fn what_the_tools_of_the_field_make_is_recognised() {
        let rows: [(&str, &[&str], &str, &str); 11] = [
            ("mkfs.ext4", &["-q", "-F"], "", "ext4"),
            ("mkfs.ext3", &["-q", "-F"], "", "ext3"),
            ("mkfs.ext2", &["-q", "-F"], "", "ext2"),
            ("mkfs.xfs", &["-q"], "", "xfs"),
            ("mkfs.btrfs", &["-q"], "", "btrfs"),
            ("mkfs.vfat", &["-F", "32"], "", "fat"),
            ("mkswap", &[], "", "swap"),
            ("sfdisk", &["-q", "--label", "gpt"], "size=64M\n", "gpt"),
            ("sfdisk", &["-q", "--label", "dos"], "size=64M\n", "mbr"),
            (
                "cryptsetup",
                &["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
                "secret",
                "luks",
            ),
            ("make-bcache", &["-B"], "", "bcache"),
        ];
        for (tool, args, input, name) in rows {
            match made_by(tool, args, input) {
                Some(found) => assert_eq!(found, [name], "{tool}"),
                None => eprintln!("skipped: {name}: there is no {tool}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        assert_eq!(find(1 << 20, |_, _| Err("no")), Err("no"));
    }
}
