//! Every bit of 64 KiB of metadata that is in use, flipped in turn: all four superblocks, the journal records behind the
//! checkpoint, and the checkpoint.
//!
//! What is shown: each of the 524,288 flips gives `check`, which reads a store by the functions that open it, exactly one
//! finding; and the reader refuses the store, or, where the flip is in a superblock, finds the same objects. One bit of
//! each byte, in turn, goes through `Store::open` as well: it names the block, as its error or as a warning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use udirect::block::BlockDevice;
use udirect::extent::{FormatOptions, Store, StoreError, check};
use udirect::soft::Disk;
use udirect::units::{Lba, LbaSize};

use crate::bed::{PATIENCE, attach, attach_for_small_transfers, open, open_to_read, sync};
use crate::by_hand::{self, place_of_copy, superblock};

type Objects = BTreeMap<u64, by_hand::Object>;

const BLOCK: usize = 512;

/// Blocks that are flipped: 64 KiB.
const BLOCKS: usize = (64 << 10) / BLOCK;

/// A store with at least so much metadata in use, and not much that is not.
fn store_disk() -> Arc<Disk> {
    let disk = Disk::new(1 << 20, LbaSize::B512);
    let (journal, checkpoint) = (Some(40 << 10), Some(72 << 10));
    let options = FormatOptions { journal, checkpoint, ..FormatOptions::default() };
    Store::format(&attach(&disk), &options).expect("a store");
    let store = open(&attach(&disk)).expect("a store");
    for n in 0..42 {
        let id = store.create(Some(&format!("object {n}"))).expect("free");
        store.set_attribute(id, "long", &[n; 1000]).expect("an attribute");
        sync(&store);
    }
    store.checkpoint(PATIENCE).expect("a checkpoint");
    for info in store.list().into_iter().take(13) {
        store.set_attribute(info.id, "longer", &[7; 1024]).expect("an attribute");
        sync(&store);
    }
    drop(store);
    disk
}

/// Returns the blocks that are in use: superblocks, records, checkpoint, 64 KiB of them.
fn in_use(disk: &Disk) -> Vec<u64> {
    let (superblock, found) = (superblock(disk), by_hand::read(disk));
    let records = superblock.head.position..found.end.position;
    let first = superblock.checkpoint_block();
    let mut blocks: Vec<u64> = (0..4).map(|copy| place_of_copy(disk, copy)).collect();
    blocks.extend(records.map(|position| superblock.journal_block(position)));
    assert!(blocks.len() > 36, "{} blocks of superblocks and records", blocks.len());
    blocks.extend(first..first + superblock.checkpoint[1]);
    assert!(blocks.len() >= BLOCKS, "{} blocks in use", blocks.len());
    blocks.truncate(BLOCKS);
    blocks
}

/// Flips every bit of a block in turn; returns how many flips were noticed as they should be.
fn flip_all(disk: &Arc<Disk>, lba: u64) -> usize {
    let device = attach_for_small_transfers(disk);
    let sound = check(&device, PATIENCE).expect("a check");
    let objects = by_hand::objects_in(&open_to_read(&device).expect("nothing is damaged yet"));
    let (mut block, is_superblock) = (by_hand::block(disk, lba), lba * (BLOCK as u64) < 256 << 10);
    let mut noticed = 0;
    for bit in 0..BLOCK * 8 {
        block[bit / 8] ^= 1 << (bit % 8);
        disk.overwrite(Lba(lba), &block);
        let report = check(&device, PATIENCE).expect("a check");
        assert_eq!(report.findings.len(), 1, "bit {bit} of {lba}: {report:?}");
        // Objects are counted when all of the store could be read: with a copy of the superblock less it is all
        // there, and with a block of anything else less nothing is believed.
        let wanted = if is_superblock { sound.objects } else { 0 };
        assert_eq!(report.objects, wanted, "bit {bit} of {lba}: {report:?}");
        if bit % 8 == bit / 8 % 8 {
            opens_as_it_should(&device, lba, is_superblock.then_some(&objects));
        }
        noticed += 1;
        block[bit / 8] ^= 1 << (bit % 8);
    }
    disk.overwrite(Lba(lba), &block);
    assert_eq!(check(&device, PATIENCE).expect("a check"), sound, "it is as it was");
    noticed
}

/// Opens a store with one damaged block: it has these objects, and the block is a warning; or none, and it is the error.
fn opens_as_it_should(device: &Arc<dyn BlockDevice>, lba: u64, wanted: Option<&Objects>) {
    let names_it = |error: &StoreError| matches!(error, StoreError::Damaged { lba: Lba(at), .. } if *at == lba);
    match (open_to_read(device), wanted) {
        (Err(error), None) => assert!(names_it(&error), "{lba}: {error}"),
        (Ok(store), Some(wanted)) => {
            assert!(store.warnings().iter().any(names_it), "{lba}: {:?}", store.warnings());
            assert!(by_hand::objects_in(&store) == *wanted, "{lba}");
        }
        (result, _) => panic!("block {lba}: {result:?}"),
    }
}

#[test]
fn every_flipped_bit_of_64_kib_of_metadata_is_noticed() {
    let disk = store_disk();
    let blocks = in_use(&disk);
    let noticed: usize = thread::scope(|scope| {
        let halves = blocks.chunks(BLOCKS / 2).map(|half| {
            let disk = disk.fork();
            scope.spawn(move || half.iter().map(|lba| flip_all(&disk, *lba)).sum::<usize>())
        });
        let halves: Vec<_> = halves.collect();
        halves.into_iter().map(|half| half.join().expect("every flip is noticed")).sum()
    });
    assert_eq!(noticed, 524_288);
}
