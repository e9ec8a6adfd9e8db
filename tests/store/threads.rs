//! Two threads with handles of their own to one store: objects of their own, and one that they share.

use std::sync::Arc;
use std::thread;

use udirect::block::{Durability, MapBlocks};
use udirect::dio::{Action, Io};
use udirect::extent::check;
use udirect::seed::Seed;
use udirect::units::FileId;

use crate::bed::{Bed, PATIENCE, alone, attach, open, patiently, small_disk, sync};

const UNIT: u64 = 4096;

/// Units of the object that is shared; every other one is a thread's own.
const SHARED_UNITS: u64 = 96;

const STEPS: u32 = 1500;

/// What a thread knows of its units of the shared object, and of its own objects.
#[derive(Default)]
struct Known {
    shared: Vec<(u64, u8)>,
    own: Vec<(FileId, Vec<u8>)>,
}

struct Worker {
    bed: Bed,
    seed: Seed,
    index: u64,
    shared: FileId,
    units: Vec<u8>,
    own: Vec<(FileId, Vec<u8>)>,
}

impl Worker {
    fn run(mut self) -> Known {
        for step in 0..STEPS {
            let byte = (step % 255) as u8 + 1;
            match self.seed.below(16) {
                0..6 => self.write_shared(byte),
                6 => self.punch_shared(),
                7 => self.preallocate_shared(),
                8 => self.read_shared(),
                9..12 => self.write_own(byte),
                12 => self.make_own(),
                13 => self.remove_own(),
                14 => self.cut_own(),
                _ => self.flush(),
            }
        }
        let units = self.units.iter().enumerate();
        let place = |n: usize| 2 * n as u64 + self.index;
        let shared = units.map(|(n, byte)| (place(n), *byte)).collect();
        Known { shared, own: self.own }
    }

    fn any_unit(&mut self) -> (usize, u64) {
        let n = self.seed.usize(..self.units.len());
        (n, (2 * n as u64 + self.index) * UNIT)
    }

    fn write_shared(&mut self, byte: u8) {
        let (n, offset) = self.any_unit();
        let durability = if self.seed.chance(1, 8) { Durability::Data } else { Durability::Lazy };
        self.bed.write(self.shared, offset, &[byte; UNIT as usize], durability);
        self.units[n] = byte;
    }

    fn punch_shared(&mut self) {
        let (n, offset) = self.any_unit();
        let exclusion = alone(&self.bed.store, self.shared);
        patiently(&self.bed.store, || exclusion.punch(offset..offset + UNIT)).expect("a hole");
        self.units[n] = 0;
    }

    fn preallocate_shared(&mut self) {
        let (_, offset) = self.any_unit();
        let exclusion = alone(&self.bed.store, self.shared);
        patiently(&self.bed.store, || exclusion.preallocate(offset..offset + UNIT)).expect("space");
    }

    fn read_shared(&mut self) {
        let (n, offset) = self.any_unit();
        let found = self.bed.read(self.shared, offset, UNIT as usize);
        // The end may not have come so far.
        assert!(found.iter().all(|byte| *byte == self.units[n]), "unit {n} of {}", self.index);
        assert!(found.len() == UNIT as usize || self.units[n] == 0);
    }

    fn make_own(&mut self) {
        if self.own.len() < 8 {
            let name = format!("{} {}", self.index, self.seed.u64(..));
            let store = &self.bed.store;
            let id = patiently(store, || store.create(Some(&name))).expect("free");
            assert_eq!(store.lookup(&name).expect("its name"), id);
            self.own.push((id, Vec::new()));
        }
    }

    fn write_own(&mut self, byte: u8) {
        if self.own.is_empty() {
            return self.make_own();
        }
        let which = self.seed.usize(..self.own.len());
        let offset = self.seed.usize(..12) * UNIT as usize;
        let len = (1 + self.seed.usize(..4)) * UNIT as usize;
        let (id, bytes) = &mut self.own[which];
        self.bed.write(*id, offset as u64, &vec![byte; len], Durability::Lazy);
        bytes.resize(bytes.len().max(offset + len), 0);
        bytes[offset..offset + len].fill(byte);
    }

    fn cut_own(&mut self) {
        let Some((id, bytes)) = self.own.last_mut() else { return };
        let len = bytes.len() / 2 / UNIT as usize * UNIT as usize;
        let exclusion = alone(&self.bed.store, *id);
        patiently(&self.bed.store, || exclusion.set_len(len as u64)).expect("less");
        bytes.truncate(len);
    }

    fn remove_own(&mut self) {
        if !self.own.is_empty() {
            let (id, bytes) = self.own.swap_remove(0);
            assert_eq!(self.bed.read(id, 0, 1 << 16), bytes);
            let store = &self.bed.store;
            patiently(store, || store.remove(id)).expect("it is there");
        }
    }

    fn flush(&mut self) {
        let done = self.bed.run(Io::bare(0, Action::Flush, 1).of(self.shared));
        done.result.expect("a flush");
    }
}

#[test]
fn two_threads_with_handles_of_their_own_agree_in_the_end() {
    let mut seed = Seed::from_env("two threads in one store");
    // A small journal, so that checkpoints are made, and writes are kept out, while the threads are at work.
    let disk = small_disk(16 << 10, 64 << 10);
    let store = open(&attach(&disk)).expect("a store");
    let shared = store.create(Some("shared")).expect("free");
    let seeds = [seed.u64(..), seed.u64(..)];
    let known: Vec<Known> = thread::scope(|scope| {
        let work = |(index, seed): (usize, u64)| {
            let (store, units) = (store.clone(), vec![0; SHARED_UNITS as usize / 2]);
            scope.spawn(move || {
                let (bed, seed) = (Bed::over(store), Seed::from_u64(seed));
                Worker { bed, seed, index: index as u64, shared, units, own: Vec::new() }.run()
            })
        };
        let workers: Vec<_> = seeds.into_iter().enumerate().map(work).collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    sync(&store);
    while store.statistics().leaving > 0 {
        store.turn();
    }
    let statistics = store.statistics();
    let allocated: u64 = store.list().iter().map(|info| info.allocated / UNIT).sum();
    assert_eq!(statistics.free.free_units + allocated, statistics.units);
    assert!(statistics.counts.checkpoints > 0, "{statistics:?}");
    agrees(&mut Bed::over(store), shared, &known);
    let report = check(&attach(&disk), PATIENCE).expect("a check");
    assert!(report.is_sound(), "{report:?}");
    agrees(&mut Bed::open(&attach(&Arc::clone(&disk))), shared, &known);
}

fn agrees(bed: &mut Bed, shared: FileId, known: &[Known]) {
    for Known { shared: units, own } in known {
        for (unit, byte) in units {
            let found = bed.read(shared, unit * UNIT, UNIT as usize);
            assert!(found.iter().all(|found| found == byte), "unit {unit}");
        }
        for (id, bytes) in own {
            assert!(bed.read(*id, 0, 1 << 16) == *bytes, "object {id}");
        }
    }
    let objects: usize = known.iter().map(|known| known.own.len()).sum();
    assert_eq!(bed.store.list().len(), objects + 1);
}
