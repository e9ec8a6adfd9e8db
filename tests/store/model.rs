//! The store against a naive model: random operations from a printed seed, every object compared after each step.

use std::collections::BTreeMap;
use std::sync::Arc;

use udirect::block::{Durability, ErrorKind, MapBlocks};
use udirect::dio::{Action, Io};
use udirect::extent::{FormatOptions, Store, StoreError, check};
use udirect::seed::Seed;
use udirect::soft::Disk;
use udirect::units::{FileId, LbaSize};

use crate::bed::{Bed, PATIENCE, alone, attach, patiently, sync};
use crate::by_hand;

const BLOCK: u64 = 512;

/// Where objects end, in bytes.
const REACH: u64 = 96 << 10;

const STEPS: u32 = 2500;

/// What an object should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    name: Option<String>,
    bytes: Vec<u8>,
    attributes: BTreeMap<String, Vec<u8>>,
}

struct Run {
    seed: Seed,
    disk: Arc<Disk>,
    bed: Bed,
    unit: u64,
    objects: BTreeMap<FileId, Model>,
    /// Steps that ended for want of space.
    full: u64,
}

/// How large a store is.
#[derive(Clone, Copy, Debug)]
struct Shape {
    bytes: u64,
    unit: u64,
    journal: u64,
    checkpoint: u64,
}

impl Run {
    fn new(seed: Seed, shape: Shape) -> Self {
        let Shape { bytes, unit, journal, checkpoint } = shape;
        let disk = Disk::new(bytes, LbaSize::B512);
        let (journal, checkpoint) = (Some(journal), Some(checkpoint));
        let options = FormatOptions { unit, journal, checkpoint, ..FormatOptions::default() };
        Store::format(&attach(&disk), &options).expect("a store");
        let bed = Bed::open(&attach(&disk));
        Self { seed, disk, bed, unit, objects: BTreeMap::new(), full: 0 }
    }

    fn step(&mut self) {
        match self.seed.below(40) {
            0..3 => self.create(),
            3..14 => self.write(),
            14..17 => self.zero(),
            17..20 => self.punch(),
            20..23 => self.cut(),
            23..25 => self.grow(),
            25..28 => self.preallocate(),
            28..30 => self.rename(),
            30 => self.remove(),
            31..34 => self.attribute(),
            34..37 => sync(&self.bed.store),
            37 => self.bed.store.checkpoint(PATIENCE).expect("a checkpoint"),
            38 => self.reopen(false),
            _ => self.reopen(true),
        }
    }

    fn any(&mut self) -> Option<FileId> {
        let count = self.objects.len();
        (count > 0).then(|| *self.objects.keys().nth(self.seed.usize(..count)).expect("in range"))
    }

    /// Says whether a step was done; want of space is counted.
    fn was_done(&mut self, result: Result<(), StoreError>) -> bool {
        match result {
            Ok(()) => true,
            Err(StoreError::NoSpace { .. }) => {
                self.full += 1;
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn any_name(&mut self) -> String {
        format!("name {}", self.seed.below(12))
    }

    fn holder(&self, name: &str) -> Option<FileId> {
        let has = |model: &Model| model.name.as_deref() == Some(name);
        self.objects.iter().find(|(_, model)| has(model)).map(|(id, _)| *id)
    }

    fn create(&mut self) {
        let name = self.seed.bool().then(|| self.any_name());
        let taken = name.as_deref().and_then(|name| self.holder(name));
        let store = &self.bed.store;
        match patiently(store, || store.create(name.as_deref())) {
            Ok(id) => {
                assert_eq!(taken, None);
                assert!(self.objects.keys().all(|other| *other < id), "numbers rise");
                self.objects.insert(id, Model { name, ..Model::default() });
            }
            Err(StoreError::NameTaken(_)) => assert!(taken.is_some()),
            Err(error) => drop(self.was_done(Err(error))),
        }
    }

    fn any_range(&mut self) -> (u64, u64) {
        let blocks = if self.seed.chance(1, 4) { 64 } else { 12 };
        let len = (1 + self.seed.below(blocks)) * BLOCK;
        (self.seed.below((REACH - len) / BLOCK + 1) * BLOCK, len)
    }

    fn write(&mut self) {
        let Some(id) = self.any() else { return self.create() };
        let (offset, len) = self.any_range();
        let mut bytes = vec![0; len as usize];
        self.seed.fill(&mut bytes);
        let durability = match self.seed.below(8) {
            0 => Durability::Data,
            1 => Durability::Full,
            _ => Durability::Lazy,
        };
        let result = self.bed.try_write(id, offset, &bytes, durability);
        let range = offset as usize..(offset + len) as usize;
        let model = self.objects.get_mut(&id).expect("it was chosen");
        match result {
            Ok(done) => {
                assert_eq!(done, len);
                model.bytes.resize(model.bytes.len().max(range.end), 0);
                model.bytes[range].copy_from_slice(&bytes);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                self.full += 1;
                // What lay there already may have been replaced before space ran out; nothing else has changed.
                let found = self.bed.read(id, 0, REACH as usize + 4096);
                assert_eq!(found.len(), model.bytes.len());
                for (at, (byte, old)) in found.iter().zip(&model.bytes).enumerate() {
                    let is_new = range.contains(&at) && *byte == bytes[at - range.start];
                    assert!(byte == old || is_new, "byte {at} of {id}");
                }
                model.bytes = found;
                self.zero_behind_the_end(id);
            }
        }
    }

    fn zero(&mut self) {
        let Some(id) = self.any() else { return };
        let (offset, len) = self.any_range();
        self.zero_range(id, offset, len);
    }

    /// Zeroes what there is of a range, which changes no size.
    fn zero_range(&mut self, id: FileId, offset: u64, len: u64) {
        let action = Action::WriteZeroes { len, durability: Durability::Lazy };
        self.bed.run(Io::bare(offset, action, 1).of(id)).result.expect("zeroes need no space");
        let bytes = &mut self.objects.get_mut(&id).expect("it was chosen").bytes;
        let end = bytes.len().min((offset + len) as usize);
        bytes[end.min(offset as usize)..end].fill(0);
    }

    fn punch(&mut self) {
        let Some(id) = self.any() else { return };
        let (offset, len) = self.any_range();
        let exclusion = alone(&self.bed.store, id);
        let result = patiently(&self.bed.store, || exclusion.punch(offset..offset + len));
        drop(exclusion);
        if self.was_done(result) {
            let bytes = &mut self.objects.get_mut(&id).expect("it was chosen").bytes;
            let from = offset.next_multiple_of(self.unit) as usize;
            let to = ((offset + len) / self.unit * self.unit) as usize;
            let end = bytes.len().min(to);
            bytes[end.min(from)..end].fill(0);
        }
    }

    fn cut(&mut self) {
        let Some(id) = self.any() else { return };
        let blocks = self.objects[&id].bytes.len() as u64 / BLOCK;
        let size = self.seed.below(blocks + 1) * BLOCK;
        self.zero_from(id, size);
        self.set_len(id, size);
    }

    /// Zeroes from a block to the end of its unit, as whoever moves the end of an object there has to.
    fn zero_from(&mut self, id: FileId, from: u64) {
        let rest = from.next_multiple_of(self.unit) - from;
        if rest > 0 {
            self.zero_range(id, from, rest);
        }
    }

    /// Zeroes the rest of the last unit. A write across the end that failed has left bytes there, which a later move of
    /// the end would show.
    fn zero_behind_the_end(&mut self, id: FileId) {
        self.zero_from(id, self.objects[&id].bytes.len() as u64);
    }

    fn grow(&mut self) {
        let Some(id) = self.any() else { return };
        let size = self.seed.below(REACH + 1).max(self.objects[&id].bytes.len() as u64);
        self.set_len(id, size / BLOCK * BLOCK);
    }

    fn set_len(&mut self, id: FileId, size: u64) {
        let exclusion = alone(&self.bed.store, id);
        patiently(&self.bed.store, || exclusion.set_len(size)).expect("a size needs no space");
        assert_eq!(exclusion.size(), size);
        self.objects.get_mut(&id).expect("it was chosen").bytes.resize(size as usize, 0);
    }

    fn preallocate(&mut self) {
        let Some(id) = self.any() else { return };
        let (offset, len) = self.any_range();
        let before = self.bed.store.segments(id).expect("it is there");
        let exclusion = alone(&self.bed.store, id);
        let result = patiently(&self.bed.store, || exclusion.preallocate(offset..offset + len));
        drop(exclusion);
        if !self.was_done(result) {
            assert_eq!(self.bed.store.segments(id).expect("it is there"), before, "all or nothing");
        }
    }

    fn rename(&mut self) {
        let Some(id) = self.any() else { return };
        let (name, replace) = (self.any_name(), self.seed.bool());
        let other = self.holder(&name).filter(|other| *other != id);
        let store = &self.bed.store;
        match patiently(store, || store.rename(id, &name, replace)) {
            Err(StoreError::NameTaken(_)) => assert!(other.is_some() && !replace),
            result => {
                if self.was_done(result) {
                    other.map(|other| self.objects.remove(&other));
                    self.objects.get_mut(&id).expect("it was chosen").name = Some(name);
                }
            }
        }
    }

    fn remove(&mut self) {
        let Some(id) = self.any() else { return };
        let store = &self.bed.store;
        patiently(store, || store.remove(id)).expect("removal needs nothing");
        self.objects.remove(&id);
    }

    fn attribute(&mut self) {
        let Some(id) = self.any() else { return };
        let (key, len) = (format!("key {}", self.seed.below(4)), self.seed.usize(..300));
        let value = self.seed.chance(3, 4).then(|| vec![self.seed.u8(..); len]);
        let store = &self.bed.store;
        let result = patiently(store, || match &value {
            Some(value) => store.set_attribute(id, &key, value),
            None => store.remove_attribute(id, &key),
        });
        let has = self.objects[&id].attributes.contains_key(&key);
        if value.is_none() && !has {
            assert!(matches!(result, Err(StoreError::Attribute { .. })), "{result:?}");
        } else if self.was_done(result) {
            let attributes = &mut self.objects.get_mut(&id).expect("it was chosen").attributes;
            match value {
                Some(value) => drop(attributes.insert(key, value)),
                None => drop(attributes.remove(&key)),
            }
        }
    }

    fn reopen(&mut self, checkpoint: bool) {
        sync(&self.bed.store);
        if checkpoint {
            self.bed.store.checkpoint(PATIENCE).expect("a checkpoint");
        }
        let before = by_hand::objects_in(&self.bed.store);
        let found = by_hand::read(&self.disk).objects;
        assert!(found == before, "another reader sees the same");
        // Nothing else is left of the store but what is durable.
        self.disk = self.disk.crash_by(&mut |_| false);
        self.bed = Bed::open(&attach(&self.disk));
        assert!(by_hand::objects_in(&self.bed.store) == before, "opening changes nothing");
    }

    /// Compares everything.
    fn agree(&mut self) {
        let list = self.bed.store.list();
        assert!(list.iter().map(|info| &info.id).eq(self.objects.keys()));
        for info in list {
            let model = &self.objects[&info.id];
            assert_eq!((&info.name, info.size), (&model.name, model.bytes.len() as u64));
            let found = self.bed.read(info.id, 0, REACH as usize + 4096);
            let differs = found.iter().zip(&model.bytes).position(|(one, other)| one != other);
            assert_eq!((found.len(), differs), (model.bytes.len(), None), "{info:?}");
            let attributes = self.bed.store.attributes(info.id).expect("it is there");
            assert!(attributes.iter().map(|(key, value)| (key, value)).eq(&model.attributes));
            let name = info.name.as_deref();
            assert_eq!(
                name.map(|name| self.bed.store.lookup(name).ok()),
                name.map(|_| Some(info.id))
            );
        }
        let statistics = self.bed.store.statistics();
        let allocated: u64 = self.bed.store.list().iter().map(|info| info.allocated).sum();
        let used = allocated / self.unit + statistics.leaving + statistics.free.free_units;
        assert_eq!(used, statistics.units, "every unit is somebody's");
        let (map, most) = statistics.map;
        assert!(map <= most, "{map} of {most} bytes of a map");
    }

    fn finish(mut self) -> u64 {
        sync(&self.bed.store);
        while self.bed.store.statistics().leaving > 0 {
            self.bed.store.turn();
        }
        self.agree();
        let quiet = self.bed.store.statistics().counts;
        eprintln!("{} steps without space, at last {quiet:?}", self.full);
        let Self { disk, bed, full, .. } = self;
        drop(bed);
        let report = check(&attach(&disk), PATIENCE).expect("a check");
        assert!(report.is_sound(), "{report:?}");
        full
    }
}

fn run(purpose: &str, shape: Shape) -> u64 {
    let mut run = Run::new(Seed::from_env(purpose), shape);
    for _ in 0..STEPS {
        run.step();
        run.agree();
    }
    run.finish()
}

#[test]
fn random_operations_agree_with_a_model() {
    let shape = Shape { bytes: 8 << 20, unit: 4096, journal: 32 << 10, checkpoint: 256 << 10 };
    run("a store against a model", shape);
}

#[test]
fn random_operations_agree_with_a_model_in_small_units_and_a_small_journal() {
    let shape = Shape { bytes: 8 << 20, unit: 512, journal: 8 << 10, checkpoint: 256 << 10 };
    run("a store against a model, small units", shape);
}

#[test]
fn random_operations_agree_with_a_model_where_space_is_short() {
    let shape = Shape { bytes: 600 << 10, unit: 2048, journal: 8 << 10, checkpoint: 4 << 10 };
    let full = run("a store against a model, short of space", shape);
    assert!(full > 0, "it was never short of space");
}
