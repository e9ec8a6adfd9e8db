//! A map for tests: files in units, allocation in every shape, answers that break the contract on demand.
//!
//! It keeps the whole contract of [`MapBlocks`], with the simplest means: one entry for each unit of each
//! file, under one lock. What it hands out is recorded, so that a test can ask what became of it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Begun, BlockError, Cause, Committed, Extent, Intent, MapBlocks, Mapping, Reach, UNIT_BLOCKS_MAX,
};
use crate::seed::Seed;
use crate::units::{BlockCount, FileBlock, FileId, Lba};

/// What a scripted map is made of.
#[derive(Clone, Debug)]
pub struct ScriptedOptions {
    /// Blocks of a unit, a power of two from 1 to 2048.
    pub unit: u64,
    /// The blocks that may be handed out, in whole units.
    pub space: Range<u64>,
    /// Where units are taken from.
    pub placement: Placement,
    /// How many units one answer covers at most, in turn; empty is no limit.
    pub answers: Vec<u64>,
    /// The size of a block in bytes, as a power of two.
    pub block_shift: u8,
}

/// Where units are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The lowest that is free, and those that follow it.
    Rising,
    /// The highest that is free first, so that a file lies backwards.
    Falling,
    /// Anywhere, from a seed.
    Scattered(u64),
}

/// What goes wrong with one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Twist {
    /// The call fails for want of space.
    NoSpace,
    /// The answer covers no block.
    Empty,
    /// The answer covers one unit more than was asked for.
    TooLong,
    /// The answer lies at this block, wherever that is.
    At(Lba),
    /// The answer is a hole, whatever was asked.
    Hole,
    /// The answer is right and has the boundary flag.
    Boundary,
}

/// What became of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A question was asked.
    Asked {
        /// First block.
        at: FileBlock,
        /// How many.
        blocks: BlockCount,
    },
    /// A request was published.
    Committed {
        /// Its file.
        file: FileId,
        /// Its first byte.
        offset: u64,
        /// Its bytes that count.
        bytes: u64,
        /// Units that were made for it.
        units: u64,
    },
    /// A guard was dropped unspent.
    Dropped {
        /// The file of its request.
        file: FileId,
        /// The first byte of its request.
        offset: u64,
        /// Units that were made for it and went back.
        units: u64,
    },
}

/// A map for tests; clones are the same map.
#[derive(Clone, Debug)]
pub struct ScriptedMap {
    state: Arc<Mutex<State>>,
    unit: u64,
}

#[derive(Debug)]
struct State {
    options: ScriptedOptions,
    files: BTreeMap<FileId, File>,
    /// First blocks of units that are free.
    free: BTreeSet<u64>,
    /// Units that were freed while requests were under way: free once those up to a serial are spent.
    leaving: Vec<(u64, u64)>,
    /// Requests that are under way, by serial.
    out: BTreeMap<u64, Reach>,
    next_serial: u64,
    random: Seed,
    calls: u64,
    answered: usize,
    twists: BTreeMap<u64, Twist>,
    events: Vec<Event>,
}

#[derive(Debug, Default)]
struct File {
    size: u64,
    units: BTreeMap<u64, Unit>,
}

/// One unit of a file.
#[derive(Clone, Copy, Debug)]
struct Unit {
    lba: u64,
    /// Whether it holds data; otherwise it is preallocated and reads as a hole.
    written: bool,
}

impl ScriptedMap {
    /// Makes a map without files.
    ///
    /// # Panics
    ///
    /// If the unit is not a power of two from 1 to 2048, or the space is not made of units.
    pub fn new(options: ScriptedOptions) -> Self {
        let unit = options.unit;
        assert!(unit.is_power_of_two() && unit <= UNIT_BLOCKS_MAX, "a unit of {unit} blocks");
        let space = options.space.clone();
        assert!(space.start.is_multiple_of(unit) && space.end.is_multiple_of(unit), "{space:?}");
        let seed = match options.placement {
            Placement::Scattered(seed) => seed,
            Placement::Rising | Placement::Falling => 0,
        };
        let state = State {
            free: space.step_by(unit as usize).collect(),
            options,
            files: BTreeMap::new(),
            leaving: Vec::new(),
            out: BTreeMap::new(),
            next_serial: 0,
            random: Seed::from_u64(seed),
            calls: 0,
            answered: 0,
            twists: BTreeMap::new(),
            events: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), unit }
    }

    /// Makes a file of `size` bytes without a block.
    pub fn create(&self, file: FileId, size: u64) {
        let _ = self.lock().files.insert(file, File { size, ..File::default() });
    }

    /// Puts blocks with data into a file.
    ///
    /// # Panics
    ///
    /// If they are not whole units, or not free.
    pub fn place(&self, file: FileId, at: FileBlock, lba: Lba, blocks: BlockCount) {
        let mut state = self.lock();
        let unit = self.unit;
        let whole = [at.0, lba.0, blocks.0].iter().all(|value| value.is_multiple_of(unit));
        assert!(whole, "{blocks} blocks at {lba} for {at}, in units of {unit}");
        for step in 0..blocks.0 / unit {
            let lba = lba.0 + step * unit;
            assert!(state.free.remove(&lba), "block {lba} is not free");
            let entry = Unit { lba, written: true };
            state.file(file).units.insert(at.0 / unit + step, entry);
        }
    }

    /// Gives a range of a file blocks without data; those that it has already stay as they are.
    pub fn preallocate(&self, file: FileId, at: FileBlock, blocks: BlockCount) {
        let mut state = self.lock();
        for index in units_of(at.0..at.0 + blocks.0, self.unit) {
            if !state.file(file).units.contains_key(&index) {
                let lba = state.take_unit(None).expect("the test has made the space large enough");
                state.file(file).units.insert(index, Unit { lba, written: false });
            }
        }
    }

    /// Takes whole units out of a file; they are free once no request that may use them is under way.
    pub fn punch(&self, file: FileId, at: FileBlock, blocks: BlockCount) {
        let mut state = self.lock();
        let range = units_of(at.0..at.0.saturating_add(blocks.0), self.unit);
        let gone: Vec<u64> = state.file(file).units.range(range).map(|(index, _)| *index).collect();
        let serial = state.next_serial;
        for index in gone {
            let unit = state.file(file).units.remove(&index).expect("it was just found");
            state.leaving.push((serial, unit.lba));
        }
        state.release_leaving();
    }

    /// Sets the size of a file. One that becomes shorter loses the units beyond it; one that grows keeps what
    /// was preallocated there, and what a request under way is just making.
    pub fn set_len(&self, file: FileId, size: u64) {
        let bytes = self.unit << self.lock().options.block_shift;
        let first = size.div_ceil(bytes) * self.unit;
        let before = core::mem::replace(&mut self.lock().file(file).size, size);
        if size < before {
            self.punch(file, FileBlock(first), BlockCount(u64::MAX));
        }
    }

    /// Returns the size of a file in bytes.
    pub fn len(&self, file: FileId) -> u64 {
        self.lock().file(file).size
    }

    /// Says whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.lock().files.is_empty()
    }

    /// Returns the first blocks of the units with data that a file has, by index of the unit.
    pub fn units(&self, file: FileId) -> Vec<(u64, Lba)> {
        let mut state = self.lock();
        let written = state.file(file).units.iter().filter(|(_, unit)| unit.written);
        written.map(|(index, unit)| (*index, Lba(unit.lba))).collect()
    }

    /// Returns how many units are free.
    pub fn free_units(&self) -> u64 {
        self.lock().free.len() as u64
    }

    /// Returns how many requests are under way.
    pub fn under_way(&self) -> usize {
        self.lock().out.len()
    }

    /// Twists the answer to the call of `map` that comes `after` more calls.
    pub fn twist(&self, after: u64, twist: Twist) {
        let mut state = self.lock();
        let call = state.calls + after;
        state.twists.insert(call, twist);
    }

    /// Forgets the twists that no call has met.
    pub fn forget_twists(&self) {
        self.lock().twists.clear();
    }

    /// Takes what happened since the last time.
    pub fn take_events(&self) -> Vec<Event> {
        core::mem::take(&mut self.lock().events)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the indices of the units that blocks touch.
fn units_of(blocks: Range<u64>, unit: u64) -> Range<u64> {
    blocks.start / unit..blocks.end.div_ceil(unit)
}

impl State {
    fn file(&mut self, file: FileId) -> &mut File {
        self.files.entry(file).or_default()
    }

    /// Takes a free unit, the one at `wanted` if that is free.
    fn take_unit(&mut self, wanted: Option<u64>) -> Option<u64> {
        let taken = match (wanted, self.options.placement) {
            (Some(lba), _) => self.free.contains(&lba).then_some(lba),
            (None, Placement::Rising) => self.free.first().copied(),
            (None, Placement::Falling) => self.free.last().copied(),
            (None, Placement::Scattered(_)) => {
                let count = self.free.len() as u64;
                let at = if count == 0 { 0 } else { self.random.below(count) };
                self.free.iter().nth(at as usize).copied()
            }
        };
        taken.filter(|lba| self.free.remove(lba))
    }

    fn units_in(&self, reach: &Reach) -> Range<u64> {
        let bytes = self.options.unit << self.options.block_shift;
        units_of(reach.offset..reach.offset + reach.len, bytes)
    }

    /// Says whether a write makes blocks, or data out of blocks without, or moves the end of its file.
    fn changes_the_map(&self, reach: &Reach) -> bool {
        let Some(file) = self.files.get(&reach.file) else { return true };
        let has_data = |index| file.units.get(&index).is_some_and(|unit| unit.written);
        reach.intent == Intent::Write
            && (reach.offset + reach.len > file.size || !self.units_in(reach).all(has_data))
    }

    /// Says whether a request has to wait for one that is under way.
    fn is_in_the_way(&self, other: &Reach, reach: &Reach) -> bool {
        if other.file != reach.file
            || reach.intent != Intent::Write
            || other.intent != Intent::Write
        {
            return false;
        }
        let (changes, other_changes) = (self.changes_the_map(reach), self.changes_the_map(other));
        let size = self.files.get(&reach.file).map_or(0, |file| file.size);
        let extends = |reach: &Reach| reach.offset + reach.len > size;
        let (mine, theirs) = (self.units_in(reach), self.units_in(other));
        let meet = mine.start < theirs.end && theirs.start < mine.end;
        (extends(reach) && extends(other)) || (meet && (changes || other_changes))
    }

    fn release_leaving(&mut self) {
        let oldest = self.out.keys().next().copied().unwrap_or(u64::MAX);
        let (stay, go): (Vec<_>, Vec<_>) =
            self.leaving.drain(..).partition(|(serial, _)| oldest < *serial);
        self.leaving = stay;
        self.free.extend(go.into_iter().map(|(_, lba)| lba));
    }

    /// Returns how many units the next answer covers at most.
    fn next_answer(&mut self) -> u64 {
        let answers = &self.options.answers;
        if answers.is_empty() {
            return u64::MAX;
        }
        self.answered += 1;
        answers[(self.answered - 1) % answers.len()].max(1)
    }

    /// Says what lies at unit `index`, for at most `most` units.
    fn look(&mut self, guard: &mut Made, index: u64, most: u64) -> Result<Mapping, BlockError> {
        let unit = self.options.unit;
        let file = guard.reach.file;
        let most = most.min(self.next_answer());
        let writes = guard.reach.intent == Intent::Write;
        let found = self.file(file).units.get(&index).copied();
        let entry = match found {
            Some(entry) if entry.written || writes => entry,
            _ if !writes => {
                return Ok(Mapping::Hole(BlockCount(self.hole(file, index, most) * unit)));
            }
            _ => guard.make(self, index, None)?,
        };
        let mut units = 1;
        while units < most {
            let (next, follows) = (index + units, entry.lba + units * unit);
            match self.file(file).units.get(&next) {
                Some(other) if other.lba == follows && other.written == entry.written => {}
                // What is made goes on where it began, as long as the space there is free.
                None if found.is_none() => {
                    if guard.make(self, next, Some(follows)).is_err() {
                        break;
                    }
                }
                _ => break,
            }
            units += 1;
        }
        let (lba, blocks) = (Lba(entry.lba), BlockCount(units * unit));
        Ok(Mapping::Mapped(Extent { lba, blocks, new: !entry.written, boundary: false }))
    }

    /// Returns how many units from `index` on have no data.
    fn hole(&mut self, file: FileId, index: u64, most: u64) -> u64 {
        let data = self.file(file).units.range(index..).find(|(_, unit)| unit.written);
        data.map_or(most, |(next, _)| (next - index).min(most))
    }

    fn twisted(
        &self,
        twist: Option<Twist>,
        asked: BlockCount,
        answer: Mapping,
    ) -> Result<Mapping, BlockError> {
        let Some(twist) = twist else { return Ok(answer) };
        let extent = match answer {
            Mapping::Mapped(extent) => extent,
            Mapping::Hole(blocks) => Extent { lba: Lba(0), blocks, new: false, boundary: false },
        };
        Ok(match twist {
            Twist::NoSpace => {
                return Err(Cause::NoSpace { what: "the script says so".into() }.into());
            }
            Twist::Empty => Mapping::Mapped(Extent { blocks: BlockCount(0), ..extent }),
            Twist::TooLong => {
                let blocks = BlockCount(asked.0 + self.options.unit);
                Mapping::Mapped(Extent { blocks, ..extent })
            }
            Twist::At(lba) => Mapping::Mapped(Extent { lba, ..extent }),
            Twist::Hole => Mapping::Hole(extent.blocks),
            // Nothing has to be on its way before a hole.
            Twist::Boundary if matches!(answer, Mapping::Hole(_)) => answer,
            Twist::Boundary => Mapping::Mapped(Extent { boundary: true, ..extent }),
        })
    }

    fn publish(&mut self, made: &Made, bytes: u64) {
        let done = Reach { len: bytes, ..made.reach };
        let units = self.units_in(&done);
        let file = self.file(done.file);
        for (_, unit) in file.units.range_mut(units) {
            unit.written = true;
        }
        file.size = file.size.max(done.offset + bytes);
    }
}

/// What a request holds of a [`ScriptedMap`].
#[derive(Debug)]
#[must_use = "a guard that is dropped gives its blocks back"]
pub struct ScriptedGuard {
    state: Arc<Mutex<State>>,
    made: Made,
    spent: bool,
}

/// What was made for a request.
#[derive(Debug)]
struct Made {
    serial: u64,
    reach: Reach,
    /// Indices of the units that were made, in the file already but without data.
    units: Vec<u64>,
}

impl Made {
    fn make(
        &mut self,
        state: &mut State,
        index: u64,
        wanted: Option<u64>,
    ) -> Result<Unit, BlockError> {
        let taken = state.take_unit(wanted);
        let lba = taken.ok_or_else(|| {
            let what = format!("{} units are free, none for file unit {index}", state.free.len());
            BlockError::from(Cause::NoSpace { what: what.into() })
        })?;
        let unit = Unit { lba, written: false };
        state.file(self.reach.file).units.insert(index, unit);
        self.units.push(index);
        Ok(unit)
    }
}

impl MapBlocks for ScriptedMap {
    type Guard = ScriptedGuard;

    fn unit(&self) -> BlockCount {
        BlockCount(self.unit)
    }

    fn begin(&self, reach: &Reach) -> Result<Option<Begun<ScriptedGuard>>, BlockError> {
        let mut state = self.lock();
        if state.out.values().any(|other| state.is_in_the_way(other, reach)) {
            return Ok(None);
        }
        let serial = state.next_serial;
        state.next_serial += 1;
        state.out.insert(serial, *reach);
        let size = state.file(reach.file).size;
        let made = Made { serial, reach: *reach, units: Vec::new() };
        let guard = ScriptedGuard { state: Arc::clone(&self.state), made, spent: false };
        Ok(Some(Begun { guard, size }))
    }

    fn map(
        &self,
        guard: &mut ScriptedGuard,
        at: FileBlock,
        blocks: BlockCount,
    ) -> Result<Mapping, BlockError> {
        let mut state = self.lock();
        let unit = self.unit;
        assert!(at.0.is_multiple_of(unit) && blocks.0.is_multiple_of(unit), "{at}+{blocks}");
        state.events.push(Event::Asked { at, blocks });
        let call = state.calls;
        state.calls += 1;
        let twist = state.twists.remove(&call);
        let answer = state.look(&mut guard.made, at.0 / unit, blocks.0 / unit)?;
        state.twisted(twist, blocks, answer)
    }

    fn commit(&self, mut guard: ScriptedGuard, bytes: u64) -> Result<Committed, BlockError> {
        let mut state = self.lock();
        guard.spent = true;
        let Made { serial, reach, ref units } = guard.made;
        if reach.intent == Intent::Write {
            state.publish(&guard.made, bytes);
        }
        let (file, offset, units) = (reach.file, reach.offset, units.len() as u64);
        state.events.push(Event::Committed { file, offset, bytes, units });
        state.out.remove(&serial);
        state.release_leaving();
        Ok(Committed::Now)
    }
}

impl Drop for ScriptedGuard {
    fn drop(&mut self) {
        if self.spent {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Made { serial, reach, ref units } = self.made;
        for index in units {
            if let Some(unit) = state.file(reach.file).units.remove(index) {
                state.free.insert(unit.lba);
            }
        }
        let (file, offset, units) = (reach.file, reach.offset, units.len() as u64);
        state.events.push(Event::Dropped { file, offset, units });
        state.out.remove(&serial);
        state.release_leaving();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Durability;

    fn map(placement: Placement) -> ScriptedMap {
        let map = ScriptedMap::new(ScriptedOptions {
            unit: 8,
            space: 0..800,
            placement,
            answers: Vec::new(),
            block_shift: 9,
        });
        map.create(FileId(1), 0);
        map
    }

    fn reach(offset: u64, len: u64, intent: Intent) -> Reach {
        Reach { file: FileId(1), offset, len, intent, durability: Durability::Lazy }
    }

    fn extent(mapping: Mapping) -> Extent {
        match mapping {
            Mapping::Mapped(extent) => extent,
            Mapping::Hole(blocks) => panic!("a hole of {blocks}"),
        }
    }

    #[test]
    fn what_is_made_is_seen_only_after_the_commit() {
        let map = map(Placement::Rising);
        let mut writing =
            map.begin(&reach(0, 8192, Intent::Write)).unwrap().expect("nobody is in the way");
        let made = extent(map.map(&mut writing.guard, FileBlock(0), BlockCount(16)).unwrap());
        assert_eq!((made.lba, made.blocks, made.new), (Lba(0), BlockCount(16), true));
        let mut reading =
            map.begin(&reach(0, 8192, Intent::Read)).unwrap().expect("readers never wait");
        assert_eq!(reading.size, 0);
        let seen = map.map(&mut reading.guard, FileBlock(0), BlockCount(16)).unwrap();
        assert_eq!(seen, Mapping::Hole(BlockCount(16)));
        map.commit(writing.guard, 8192).unwrap();
        let seen = extent(map.map(&mut reading.guard, FileBlock(0), BlockCount(16)).unwrap());
        assert_eq!((seen.lba, seen.new), (Lba(0), false));
        assert_eq!(map.len(FileId(1)), 8192);
        drop(reading);
    }

    #[test]
    fn a_guard_that_is_dropped_gives_everything_back() {
        let map = map(Placement::Scattered(7));
        let mut writing = map.begin(&reach(0, 40_960, Intent::Write)).unwrap().expect("free");
        map.map(&mut writing.guard, FileBlock(0), BlockCount(80)).unwrap();
        assert!(map.free_units() < 100);
        drop(writing);
        assert_eq!((map.free_units(), map.len(FileId(1))), (100, 0));
        assert!(map.units(FileId(1)).is_empty());
    }

    #[test]
    fn two_that_move_the_end_take_turns() {
        let map = map(Placement::Rising);
        let first = map.begin(&reach(0, 512, Intent::Write)).unwrap().expect("free");
        assert!(map.begin(&reach(51_200, 512, Intent::Write)).unwrap().is_none());
        map.commit(first.guard, 512).unwrap();
        let second = map.begin(&reach(51_200, 512, Intent::Write)).unwrap().expect("free");
        drop(second);
    }

    #[test]
    fn a_file_that_grows_keeps_what_is_being_written_beyond_its_end() {
        let map = map(Placement::Rising);
        let mut writing = map.begin(&reach(4096, 4096, Intent::Write)).unwrap().expect("free");
        map.map(&mut writing.guard, FileBlock(8), BlockCount(8)).unwrap();
        map.set_len(FileId(1), 4096);
        map.commit(writing.guard, 4096).unwrap();
        assert_eq!((map.len(FileId(1)), map.units(FileId(1))), (8192, vec![(1, Lba(0))]));
    }

    #[test]
    fn freed_units_wait_for_those_who_may_use_them() {
        let map = map(Placement::Rising);
        map.place(FileId(1), FileBlock(0), Lba(0), BlockCount(8));
        let reading = map.begin(&reach(0, 512, Intent::Read)).unwrap().expect("free");
        map.punch(FileId(1), FileBlock(0), BlockCount(8));
        assert_eq!(map.free_units(), 99);
        drop(reading);
        assert_eq!(map.free_units(), 100);
    }
}
