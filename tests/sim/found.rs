//! What the simulation has found, each as the shortest way there.

use std::sync::Arc;
use std::time::Duration;

use udirect::block::{BlockDevice, Durability, ErrorKind, MapBlocks, QueueOptions};
use udirect::dio::{Done, Io, Options, Pipeline};
use udirect::dma::Access;
use udirect::extent::{FormatOptions, OpenOptions, Store, StoreError};
use udirect::soft::Disk;
use udirect::units::{FileId, LbaSize};

use crate::world::image::{Bench, Drive, PATIENCE};

const DRIVE: Drive = Drive { cache: true, transfer: None };

type Formatted = (Arc<Disk>, Arc<dyn BlockDevice>, Bench);

fn formatted(journal: u64) -> Result<Formatted, StoreError> {
    let (bench, disk) = (Bench::default(), Disk::new(1 << 20, LbaSize::B512));
    let device = bench.device(&disk, DRIVE, None);
    let options = FormatOptions { journal: Some(journal), ..FormatOptions::default() };
    Store::format(&device, &options)?;
    Ok((disk, device, bench))
}

/// With a journal of 8 blocks a record had two, and an attribute of 1000 bytes fitted none. The round ended before it,
/// and the sync was answered as if it were durable.
#[test]
fn an_operation_that_is_as_long_as_can_be_is_durable_with_the_smallest_journal() {
    assert!(matches!(formatted(15 * 512), Err(StoreError::Option { .. })));
    let (disk, device, bench) = formatted(16 * 512).unwrap();
    let store = Store::open(&device, &OpenOptions::default()).unwrap();
    let (key, value) = ("k".repeat(64), vec![7; 1024]);
    let object = store.create(Some(&"n".repeat(255))).unwrap();
    store.set_attribute(object, &key, &value).unwrap();
    let mark = store.sync_all().unwrap();
    store.wait(mark, PATIENCE).unwrap();
    let image = disk.crash_by(&mut |_| false);
    let left = bench.open(&image, DRIVE).unwrap();
    assert_eq!(left.attribute(object, &key).unwrap(), Some(value));
}

/// Preallocating what has space already moved the time of the object, and no operation said so.
#[test]
fn a_time_that_is_seen_is_durable_after_a_sync() {
    let (disk, device, bench) = formatted(64 << 10).unwrap();
    let store = Store::open(&device, &OpenOptions::default()).unwrap();
    let object = store.create(None).unwrap();
    for _ in 0..2 {
        let exclusion = store.exclude(object).unwrap().unwrap();
        exclusion.preallocate(0..4096).unwrap();
    }
    let mark = store.sync_all().unwrap();
    store.wait(mark, PATIENCE).unwrap();
    let left = bench.open(&disk.crash_by(&mut |_| false), DRIVE).unwrap();
    assert_eq!(left.stat(object).unwrap(), store.stat(object).unwrap());
}

fn write(pipeline: &mut Pipeline<Store>, object: FileId, offset: u64, len: usize) {
    let buffer = pipeline.map().device().dma().buffer(len, Access::Both).expect("memory");
    pipeline.submit(Io::write(offset, buffer, 1).of(object)).expect("it is taken");
    pipeline.ring();
}

fn answer(pipeline: &mut Pipeline<Store>) -> Done {
    let mut answer = None;
    while answer.is_none() {
        pipeline.poll(1, &mut |done| answer = Some(done));
    }
    answer.expect("it was awaited")
}

/// An overwrite of several extents that was under way when its object was removed was told of a hole, which is the word
/// for a map that cannot be trusted.
#[test]
fn an_overwrite_whose_object_is_removed_is_told_so() {
    let (_disk, device, _bench) = formatted(64 << 10).unwrap();
    let store = Store::open(&device, &OpenOptions::default()).unwrap();
    let queue = QueueOptions { depth: 4, timeout: PATIENCE };
    let options = Options { queue, share: Some(1), ..Options::default() };
    let mut pipeline = Pipeline::open(&*device, store.clone(), &options).unwrap();
    let object = store.create(None).unwrap();
    // In this order no two units are neighbours on the device.
    for unit in [0, 2, 1] {
        write(&mut pipeline, object, unit * 4096, 4096);
        answer(&mut pipeline).result.unwrap();
    }
    write(&mut pipeline, object, 0, 3 * 4096);
    store.remove(object).unwrap();
    let error = answer(&mut pipeline).result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

/// What a durable overwrite promises of the object's time holds as well while changes are kept out, where the time has to
/// wait. The model took the wait for a broken promise.
#[test]
fn the_time_of_an_overwrite_is_durable_though_changes_are_kept_out() {
    let (disk, device, bench) = formatted(16 * 512).unwrap();
    let options = OpenOptions { commit_interval: Duration::MAX, ..OpenOptions::default() };
    let store = Store::open(&device, &options).unwrap();
    let queue = QueueOptions { depth: 4, timeout: PATIENCE };
    let options = Options { queue, ..Options::default() };
    let mut pipeline = Pipeline::open(&*device, store.clone(), &options).unwrap();
    let object = store.create(None).unwrap();
    write(&mut pipeline, object, 0, 4096);
    answer(&mut pipeline).result.unwrap();
    // Attributes until the journal is full, and a quiet checkpoint keeps changes out.
    let mut round = 0_u64;
    loop {
        match store.set_attribute(object, "key", &[round as u8; 1000]) {
            Ok(()) => drop(store.sync_all().unwrap()),
            Err(StoreError::NotYet) => break,
            Err(error) => panic!("{error}"),
        }
        store.turn();
        round += 1;
    }
    let before = store.stat(object).unwrap().modified;
    let buffer = device.dma().buffer(4096, Access::Both).expect("memory");
    let io = Io::write(0, buffer, 2).of(object).with(Durability::Full);
    pipeline.submit(io).expect("it is taken");
    pipeline.ring();
    assert_eq!(store.stat(object).unwrap().modified, before, "nothing may be said for the moment");
    answer(&mut pipeline).result.unwrap();
    let after = store.stat(object).unwrap().modified;
    assert!(after > before);
    let left = bench.open(&disk.crash_by(&mut |_| false), DRIVE).unwrap();
    assert_eq!(left.stat(object).unwrap().modified, after);
    assert!(store.statistics().counts.quiet_checkpoints > 0);
}
