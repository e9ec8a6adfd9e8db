//! A failure after which nobody can say what is durable: everyone is told, each time, until the store is reopened.

use std::ops::Range;
use std::sync::Arc;

use udirect::block::{Durability, ErrorKind};
use udirect::dio::{Action, Io};
use udirect::extent::{Exclusion, StoreError, check};
use udirect::soft::{Disk, FaultAction, FaultRule, Faults};
use udirect::spec::command::NvmOpcode;
use udirect::spec::status::Status;
use udirect::units::{FileId, Lba};

use crate::bed::{Bed, PATIENCE, alone, attach, attach_faulty, refusals, small_disk, sync};
use crate::by_hand::superblock;

/// Syncs that are tried after the failure.
const SYNCS: usize = 1000;

struct Scene {
    disk: Arc<Disk>,
    faults: Arc<Faults>,
    /// Two handles to one store.
    beds: [Bed; 2],
    file: FileId,
}

/// A store with an object that is durable: data, a name, an attribute.
fn scene() -> Scene {
    let disk = small_disk(64 << 10, 64 << 10);
    let faults = Faults::new(1);
    let mut bed = Bed::open(&attach_faulty(&disk, &faults));
    let file = bed.store.create(Some("durable")).expect("free");
    bed.store.set_attribute(file, "key", b"value").expect("an object");
    bed.write(file, 0, &[1; 8192], Durability::Full);
    sync(&bed.store);
    let other = Bed::over(bed.store.clone());
    Scene { disk, faults, beds: [bed, other], file }
}

fn blocks(first: u64, count: u64) -> Range<Lba> {
    Lba(first)..Lba(first + count)
}

fn failed_write(range: Range<Lba>) -> FaultRule {
    FaultRule::new(FaultAction::Fail(Status::WRITE_FAULT))
        .opcode(NvmOpcode::WRITE)
        .blocks(range)
        .once()
}

impl Scene {
    /// Does what is not durable yet, and meets a fault while it is made so.
    fn fail(&mut self, rule: FaultRule, make_durable: impl FnOnce(&mut Bed) -> Option<StoreError>) {
        let Self { faults, beds: [bed, _], file, .. } = self;
        bed.write(*file, 8192, &[2; 4096], Durability::Lazy);
        bed.store.create(Some("lost or not")).expect("free");
        let exclusion = alone(&bed.store, *file);
        let rule = faults.add(rule);
        let error = make_durable(bed).expect("it cannot be made durable");
        assert!(matches!(error, StoreError::Poisoned { .. }), "{error}");
        assert_eq!(faults.fired(rule), 1);
        self.is_refused(&exclusion);
        drop(exclusion);
        self.is_refused_everywhere();
    }

    /// Whoever had kept writes out cannot change anything either.
    fn is_refused(&self, exclusion: &Exclusion) {
        let results =
            [exclusion.set_len(0), exclusion.punch(0..8192), exclusion.preallocate(0..1 << 20)];
        for result in results {
            assert!(matches!(result, Err(StoreError::Poisoned { .. })), "{result:?}");
        }
        assert_eq!(self.beds[1].store.stat(self.file).expect("an object").size, 12_288);
    }

    fn is_refused_everywhere(&mut self) {
        for bed in &mut self.beds {
            assert!(bed.store.poisoned().is_some());
            for _ in 0..SYNCS {
                let result = bed.run(Io::bare(0, Action::Flush, 1).of(self.file)).result;
                assert_eq!(result.expect_err("poisoned").kind(), ErrorKind::Poisoned);
                assert!(matches!(bed.store.sync_all(), Err(StoreError::Poisoned { .. })));
            }
            for (what, kind, text) in refusals(bed, self.file) {
                assert_eq!(kind, ErrorKind::Poisoned, "{what}: {text}");
                assert!(text.contains("reopen"), "{what}: {text}");
            }
            // Reading is no change.
            assert_eq!(bed.read(self.file, 0, 8192), [1; 8192]);
        }
    }

    /// Reopens the store: what was durable is there, what was not is there as a whole or not at all.
    fn reopen(self) {
        let Self { disk, faults, beds, file } = self;
        drop(beds);
        faults.clear();
        let report = check(&attach(&disk), PATIENCE).expect("a check");
        assert!(report.is_sound(), "{report:?}");
        let mut bed = Bed::open(&attach_faulty(&disk, &faults));
        assert_eq!(bed.store.poisoned(), None);
        assert_eq!(bed.store.lookup("durable").expect("durable"), file);
        assert_eq!(bed.store.attribute(file, "key").expect("durable"), Some(b"value".to_vec()));
        assert_eq!(bed.read(file, 0, 8192), [1; 8192]);
        let more = bed.read(file, 8192, 4096);
        assert!(more.is_empty() || more == [2; 4096]);
        bed.write(file, 0, &[3; 4096], Durability::Full);
        bed.store.create(Some("new")).expect("free");
        sync(&bed.store);
        bed.store.checkpoint(PATIENCE).expect("a checkpoint");
        drop(bed);
        let report = check(&attach(&disk), PATIENCE).expect("a check");
        assert!(report.is_sound(), "{report:?}");
    }
}

fn sync_by_store(bed: &mut Bed) -> Option<StoreError> {
    let mark = bed.store.sync_all().expect("nothing has failed yet");
    bed.store.wait(mark, PATIENCE).err()
}

#[test]
fn a_failed_flush_is_told_to_everyone_until_the_store_is_reopened() {
    let mut scene = scene();
    let rule = FaultRule::new(FaultAction::Fail(Status::INTERNAL_ERROR)).opcode(NvmOpcode::FLUSH);
    scene.fail(rule.once(), sync_by_store);
    assert!(scene.beds[0].store.poisoned().is_some_and(|what| what.contains("flush of data")));
    scene.reopen();
}

#[test]
fn a_failed_record_is_told_to_everyone_until_the_store_is_reopened() {
    let mut scene = scene();
    let [first, count] = superblock(&scene.disk).journal;
    scene.fail(failed_write(blocks(first, count)), sync_by_store);
    assert!(scene.beds[0].store.poisoned().is_some_and(|what| what.contains("journal record")));
    scene.reopen();
}

#[test]
fn a_failed_checkpoint_is_told_to_everyone_until_the_store_is_reopened() {
    let mut scene = scene();
    let superblock = superblock(&scene.disk);
    let next = superblock.checkpoints[1 - superblock.region as usize];
    let rule = failed_write(blocks(next, superblock.checkpoints[2]));
    scene.fail(rule, |bed| bed.store.checkpoint(PATIENCE).err());
    scene.reopen();
}

#[test]
fn a_failed_superblock_is_told_to_everyone_until_the_store_is_reopened() {
    for copy in 0..4 {
        let mut scene = scene();
        let place = copy * 128;
        let is_next = (superblock(&scene.disk).version + 1) % 2 == u64::from(copy > 1);
        if is_next {
            scene.fail(failed_write(blocks(place, 1)), |bed| bed.store.checkpoint(PATIENCE).err());
            scene.reopen();
        }
    }
}

#[test]
fn those_who_wait_when_it_fails_are_told_as_well() {
    let Scene { disk, faults, mut beds, file } = scene();
    for bed in &mut beds {
        bed.write(file, 0, &[1; 4096], Durability::Lazy);
    }
    faults.add(FaultRule::new(FaultAction::Fail(Status::INTERNAL_ERROR)).opcode(NvmOpcode::FLUSH));
    let flush = || Io::bare(0, Action::Flush, 1).of(file);
    for bed in &mut beds {
        bed.pipeline.submit(flush()).expect("it is taken");
        bed.pipeline.ring();
    }
    for bed in &mut beds {
        let mut found = None;
        while found.is_none() {
            bed.pipeline.poll(1, &mut |done| found = Some(done.result));
        }
        let error = found.expect("it was awaited").expect_err("it cannot be made durable");
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    }
    Scene { disk, faults, beds, file }.reopen();
}
