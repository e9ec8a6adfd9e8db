//! The disk against a naive model: a flat log, and a block at a time.
#![forbid(unsafe_code)]

use super::*;
use crate::units::BlockCount;

const BLOCKS: u64 = 40;
const BLOCK: usize = 512;

/// What a block holds, told apart by its first bytes.
type Tag = u64;

fn bytes_of(tag: Tag) -> Vec<u8> {
    tag.to_le_bytes().repeat(BLOCK / 8)
}

fn tagged(lba: Lba, bytes: &mut [u8]) {
    bytes.copy_from_slice(&bytes_of(1_000_000 + lba.0));
}

/// Reads a block, and sees that it is whole: a block is never torn.
fn tag_at(disk: &Disk, lba: u64) -> Tag {
    let mut bytes = [0; BLOCK];
    disk.read_now(Lba(lba), &mut bytes);
    let tag = Tag::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(bytes, *bytes_of(tag), "block {lba} is torn");
    tag
}

/// A disk, one block and one log entry at a time.
#[derive(Clone)]
struct Model {
    durable: Vec<Tag>,
    /// Serial, block, content.
    log: Vec<(u64, u64, Tag)>,
    next: u64,
}

impl Model {
    fn live(&self, lba: u64) -> Tag {
        let last = self.log.iter().rev().find(|entry| entry.1 == lba);
        last.map_or(self.durable[lba as usize], |entry| entry.2)
    }

    fn write(&mut self, first: u64, tags: impl IntoIterator<Item = Tag>) {
        let entries = (first..).zip(tags).map(|(lba, tag)| (self.next, lba, tag));
        self.log.extend(entries);
        self.next += 1;
    }

    fn persist(&mut self, range: Range<u64>) {
        for lba in range {
            self.durable[lba as usize] = self.live(lba);
            self.log.retain(|entry| entry.1 != lba);
        }
    }

    fn flush(&mut self, horizon: u64) {
        let covered = self.log.iter().filter(|entry| entry.0 < horizon);
        covered.for_each(|(_, lba, tag)| self.durable[*lba as usize] = *tag);
        self.log.retain(|entry| entry.0 >= horizon);
    }

    fn explains(&self, lba: u64, tag: Tag) -> bool {
        let mut logged = self.log.iter().filter(|entry| entry.1 == lba);
        self.durable[lba as usize] == tag || logged.any(|entry| entry.2 == tag)
    }
}

/// A disk and what it should be.
struct Bed {
    disk: Arc<Disk>,
    model: Model,
    seed: Seed,
    tags: Tag,
}

impl Bed {
    fn new(mut seed: Seed) -> Self {
        let (bytes, filled) = (BLOCKS * BLOCK as u64, seed.chance(1, 2));
        let disk = match filled {
            true => Disk::filled(bytes, LbaSize::B512, tagged),
            false => Disk::new(bytes, LbaSize::B512),
        };
        let durable = (0..BLOCKS).map(|lba| if filled { 1_000_000 + lba } else { 0 }).collect();
        Self { disk, model: Model { durable, log: Vec::new(), next: 0 }, seed, tags: 0 }
    }

    fn range(&mut self) -> (u64, u64) {
        let first = self.seed.below(BLOCKS);
        (first, 1 + self.seed.below((BLOCKS - first).min(6)))
    }

    fn step(&mut self) {
        let (first, count) = self.range();
        let (offset, len) = (first * 512, count * 512);
        match self.seed.below(16) {
            0 => {
                self.disk.flush(Horizon::ALL).unwrap();
                self.model.flush(u64::MAX);
            }
            1 => {
                let covered = self.seed.below(self.model.next + 1);
                self.disk.flush(Horizon(covered)).unwrap();
                self.model.flush(covered);
            }
            2 | 3 => {
                self.disk.zero(offset, len).unwrap();
                self.model.write(first, vec![0; count as usize]);
            }
            4 => {
                let from = self.seed.below(BLOCKS - count + 1);
                self.disk.copy(from * 512, offset, len).unwrap();
                let tags: Vec<_> = (from..from + count).map(|lba| self.model.live(lba)).collect();
                self.model.write(first, tags);
            }
            5 | 6 => {
                self.disk.persist(offset, len).unwrap();
                self.model.persist(first..first + count);
            }
            7 => {
                self.tags += 1;
                self.disk.overwrite(Lba(first), &bytes_of(self.tags));
                self.model.write(first, [self.tags]);
                self.model.next -= 1;
                self.model.persist(first..first + 1);
            }
            _ => {
                let tags: Vec<_> = (self.tags + 1..=self.tags + count).collect();
                let bytes: Vec<_> = tags.iter().flat_map(|tag| bytes_of(*tag)).collect();
                self.tags += count;
                self.disk.write(offset, &bytes).unwrap();
                self.model.write(first, tags);
            }
        }
    }

    /// Holds what is seen, and what an exact power cut leaves, against the model.
    fn check(&mut self) {
        assert_eq!(self.disk.crash_by(&mut |_| true).tags(), self.disk.tags());
        assert_eq!(self.disk.fork().tags(), self.disk.tags());
        let live: Vec<_> = (0..BLOCKS).map(|lba| self.model.live(lba)).collect();
        assert_eq!(self.disk.tags(), live);
        let (mut durable, mut asked) = (self.model.durable.clone(), Vec::new());
        let left = self.disk.crash_by(&mut |block| {
            asked.push((block.serial, block.lba.0, self.seed.chance(1, 2)));
            asked.last().unwrap().2
        });
        let places: Vec<_> = asked.iter().map(|(serial, lba, _)| (*serial, *lba)).collect();
        let logged: Vec<_> =
            self.model.log.iter().map(|(serial, lba, _)| (*serial, *lba)).collect();
        assert_eq!(places, logged, "each block of each pending write, in order");
        for ((_, lba, tag), (_, _, kept)) in self.model.log.iter().zip(&asked) {
            if *kept {
                durable[*lba as usize] = *tag;
            }
        }
        assert_eq!(left.tags(), durable);
        assert_eq!(left.pending(), []);
    }
}

impl Disk {
    fn tags(&self) -> Vec<Tag> {
        (0..BLOCKS).map(|lba| tag_at(self, lba)).collect()
    }
}

#[test]
fn random_operations_agree_with_a_log_of_single_blocks() {
    let mut seed = Seed::from_env("disk against a log of single blocks");
    for _ in 0..20 {
        let mut bed = Bed::new(Seed::from_u64(seed.u64(..)));
        for _ in 0..100 {
            bed.step();
            bed.check();
        }
    }
}

#[test]
fn every_crash_image_is_explained_and_every_outcome_appears() {
    let mut seed = Seed::from_env("crash images");
    let mut bed = Bed::new(Seed::from_u64(seed.u64(..)));
    let (mut old, mut new, mut both) = (0, 0, 0);
    for _ in 0..100 {
        bed.step();
        for _ in 0..20 {
            let left = bed.disk.crash(&mut seed).tags();
            let (mut kept, mut lost) = (0, 0);
            for (lba, tag) in (0..).zip(&left) {
                assert!(bed.model.explains(lba, *tag), "block {lba} holds {tag}");
                kept += usize::from(*tag == bed.model.live(lba));
                lost += usize::from(*tag != bed.model.live(lba));
            }
            match (kept, lost) {
                (_, 0) => new += 1,
                _ if left == bed.model.durable => old += 1,
                _ => both += 1,
            }
        }
    }
    assert!(old > 20 && new > 20 && both > 20, "nothing {old}, all {new}, some {both}");
}

#[test]
fn the_same_seed_leaves_the_same_image() {
    let mut seed = Seed::from_env("the same image");
    let mut bed = Bed::new(Seed::from_u64(seed.u64(..)));
    (0..60).for_each(|_| bed.step());
    for _ in 0..50 {
        let number = seed.u64(..);
        let image = || bed.disk.crash(&mut Seed::from_u64(number)).tags();
        assert_eq!(image(), image());
    }
}

#[test]
fn an_image_is_a_disk_of_its_own() {
    let disk = Disk::filled(BLOCKS * 512, LbaSize::B512, tagged);
    disk.write(0, &bytes_of(1)).unwrap();
    let copy = disk.fork();
    copy.write(0, &bytes_of(2)).unwrap();
    disk.write(512, &bytes_of(3)).unwrap();
    assert_eq!((tag_at(&disk, 0), tag_at(&disk, 1)), (1, 3));
    assert_eq!((tag_at(&copy, 0), tag_at(&copy, 1)), (2, 1_000_001));
    assert_eq!(copy.counters(), DiskCounters { writes: 1, ..DiskCounters::default() });
}

#[test]
fn pending_writes_are_told_with_their_places() {
    let disk = Disk::new(BLOCKS * 512, LbaSize::B512);
    disk.write(5 * 512, &[1; 3 * 512]).unwrap();
    disk.zero(0, 512).unwrap();
    let write = |serial, first, blocks| PendingWrite {
        serial,
        first: Lba(first),
        blocks: BlockCount(blocks),
    };
    assert_eq!(disk.pending(), [write(0, 5, 3), write(1, 0, 1)]);
    disk.persist(5 * 512, 2 * 512).unwrap();
    let mut asked = Vec::new();
    disk.crash_by(&mut |block| {
        asked.push(block);
        false
    });
    let block = |serial, lba, blocks, index| Pending {
        serial,
        lba: Lba(lba),
        blocks: BlockCount(blocks),
        index,
    };
    assert_eq!(asked, [block(0, 7, 3, 2), block(1, 0, 1, 0)]);
    disk.persist(7 * 512, 512).unwrap();
    assert_eq!(disk.pending(), [write(1, 0, 1)]);
}

#[test]
fn a_large_disk_is_given_back_at_once() {
    let disk = Disk::new(1 << 50, LbaSize::B4096);
    disk.write(1 << 49, &[7; 8192]).unwrap();
    disk.flush(Horizon::ALL).unwrap();
    disk.zero(0, 1 << 50).unwrap();
    disk.flush(Horizon::ALL).unwrap();
    let mut bytes = [1; 4096];
    disk.read_now(Lba(1 << 37), &mut bytes);
    assert_eq!(bytes, [0; 4096]);
    assert_eq!(disk.pending(), []);
}

#[test]
fn nothing_changes_without_power() {
    let mut seed = Seed::from_env("nothing changes without power");
    let disk = Disk::new(BLOCKS * 512, LbaSize::B512);
    disk.write(0, &[1; 4096]).unwrap();
    assert!(disk.after_cut().is_none());
    disk.cut_power(&mut seed);
    let (left, pending) = (disk.after_cut().unwrap().tags(), disk.pending());
    assert!(disk.power_is_cut());
    assert!(disk.write(0, &[2; 4096]).is_err() && disk.zero(0, 512).is_err());
    assert!(disk.copy(0, 512, 512).is_err() && disk.persist(0, 512).is_err());
    assert!(disk.flush(Horizon::ALL).is_err() && disk.admit(NvmOpcode::READ).is_err());
    disk.cut_power(&mut seed);
    disk.cut_power_after(0, 1);
    assert_eq!((disk.after_cut().unwrap().tags(), disk.pending()), (left.clone(), pending));
    disk.after_cut().unwrap().overwrite(Lba(0), &[9; 512]);
    assert_eq!(disk.after_cut().unwrap().tags(), left, "each image is a copy");
}

#[test]
#[should_panic(expected = "1000 bytes in blocks of 512 B")]
fn a_disk_of_broken_blocks_is_a_bug_that_shouts() {
    Disk::new(1000, LbaSize::B512);
}
