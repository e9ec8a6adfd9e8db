//! The store as a map of blocks: what `get_block` is to a filesystem.
//!
//! ```text
//!   begin    read           pinned: what it is told of is not reused before it is done
//!            overwrite      pinned and counted: it only replaces data that is there
//!            change         entered: it makes blocks, or moves the end; those that meet take turns
//!   map      tree -> extent | hole | for a change, units taken from the space
//!   commit   change: units into the tree, operations into the log, the size moves
//!   drop     change: units back to the space; nothing was ever visible
//! ```
#![forbid(unsafe_code)]

use core::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::StoreError;
use super::object::{Change, Object, State};
use super::record::Op;
use super::shared::Shared;
use super::space::Run;
use super::store::Store;
use super::tree::{FILE_UNITS_MAX, Found, Mapped};
use crate::block::{
    Begun, BlockError, Cause, Committed, Durability, End, Extent, Intent, MapBlocks, Mapping, Mark,
    Reach,
};
use crate::units::{BlockCount, FileBlock, FileId};

/// What a request holds of a store while it is under way.
#[must_use = "a guard that is dropped gives its blocks back"]
pub struct Guard {
    object: Arc<Object>,
    phase: usize,
    reach: Reach,
    kind: Kind,
}

enum Kind {
    /// It reads.
    Read,
    /// It writes to, or zeroes, what holds data already.
    Overwrite,
    /// It makes blocks, or data out of blocks without, or moves the end.
    Change(Box<Made>),
}

/// What a change has made so far.
struct Made {
    shared: Arc<Shared>,
    serial: u64,
    /// Units that were taken for it.
    taken: Vec<Mapped>,
    /// Unwritten extents of the object that it writes.
    filled: Vec<Mapped>,
    /// Extents that the map may grow by when it is published; see [`Shared::promise`].
    promised: u64,
}

impl Guard {
    fn read(object: Arc<Object>, phase: usize, reach: Reach) -> Self {
        Self { object, phase, reach, kind: Kind::Read }
    }
}

impl Drop for Guard {
    /// Ends the request; what a change has made and not committed goes back.
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Read => {}
            Kind::Overwrite => {
                self.object.writes.fetch_sub(1, Ordering::Release);
            }
            Kind::Change(made) => {
                self.object.write().changes.retain(|change| change.serial != made.serial);
                made.shared.promised.fetch_sub(made.promised, Ordering::Relaxed);
                for extent in made.taken.drain(..) {
                    made.shared.space.give_back(Run { start: extent.device, units: extent.units });
                }
                self.object.writes.fetch_sub(1, Ordering::Release);
                made.shared.leave();
            }
        }
        self.object.unpin(self.phase);
    }
}

impl core::fmt::Debug for Guard {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Guard").field("reach", &self.reach).finish_non_exhaustive()
    }
}

/// Returns how many extents more there are at most when the first `most` units of an unwritten extent, which is all that
/// follows there, are written: what lies before and behind stays unwritten.
fn growth(state: &State, extent: &Mapped, most: u64) -> u64 {
    let before = extent.file.checked_sub(1).and_then(|at| state.tree.range(at..extent.file).next());
    let before = before.filter(|before| before.device_end() == extent.device);
    let rest = u64::from(extent.units > most);
    match before {
        Some(before) if before.written => 0,
        Some(_) => 1 + rest,
        None => rest,
    }
}

/// Encodes a point of the store's history: of its operations, or of the rounds that flush.
pub(super) fn mark_of_lsn(lsn: u64) -> Mark {
    Mark(lsn << 1)
}

pub(super) fn mark_of_round(round: u64) -> Mark {
    Mark(round << 1 | 1)
}

impl Store {
    fn shift(&self) -> u8 {
        self.shared.layout.unit_shift
    }

    /// Returns the units that a request touches.
    fn units_of(&self, reach: &Reach) -> Range<u64> {
        let end = reach.offset + reach.len;
        reach.offset >> self.shift()..((end - 1) >> self.shift()) + 1
    }

    /// Returns the largest size of an object: as a file's, below 2^63.
    pub fn size_max(&self) -> u64 {
        let units = u128::from(FILE_UNITS_MAX) << self.shift();
        u64::try_from(units).unwrap_or(u64::MAX).min(i64::MAX as u64)
    }

    fn begin_read(&self, reach: &Reach) -> Result<Option<Begun<Guard>>, BlockError> {
        let object = self.shared.object(reach.file)?;
        let state = object.read();
        if state.removed {
            return Err(StoreError::NoObject(reach.file).into());
        }
        let (phase, size) = (object.pin(&state), state.size);
        drop(state);
        Ok(Some(Begun { guard: Guard::read(object, phase, *reach), size }))
    }

    fn begin_write(&self, reach: &Reach) -> Result<Option<Begun<Guard>>, BlockError> {
        self.shared.may_write()?;
        let (end, most) = (reach.offset.saturating_add(reach.len), self.size_max());
        if reach.intent == Intent::Write && end > most {
            return Err(StoreError::TooLarge { size: end, most }.into());
        }
        let object = self.shared.object(reach.file)?;
        let state = object.read();
        if state.removed {
            return Err(StoreError::NoObject(reach.file).into());
        }
        if state.excluded {
            return Ok(None);
        }
        let changes = reach.intent == Intent::Write
            && (end > state.size || !state.is_written(self.units_of(reach)));
        if !changes {
            let (phase, size) = (object.pin(&state), state.size);
            object.writes.fetch_add(1, Ordering::Acquire);
            drop(state);
            let guard = Guard { object, phase, reach: *reach, kind: Kind::Overwrite };
            return Ok(Some(Begun { guard, size }));
        }
        drop(state);
        self.begin_change(object, reach)
    }

    fn begin_change(
        &self,
        object: Arc<Object>,
        reach: &Reach,
    ) -> Result<Option<Begun<Guard>>, BlockError> {
        let shared = &self.shared;
        let Some(entered) = shared.enter() else { return Ok(None) };
        let units = self.units_of(reach);
        if shared.space.free_units() < units.end - units.start && shared.leaving_units() > 0 {
            // What was freed will be free once the record of it is durable.
            let next = shared.log().next();
            shared.want(next);
            return Ok(None);
        }
        let mut state = object.write();
        if state.removed {
            return Err(StoreError::NoObject(reach.file).into());
        }
        let extends = reach.offset + reach.len > state.size;
        if state.is_in_the_way(&units, extends) {
            return Ok(None);
        }
        let serial = shared.serial.fetch_add(1, Ordering::Relaxed);
        state.changes.push(Change { serial, units, extends });
        let (phase, size) = (object.pin(&state), state.size);
        object.writes.fetch_add(1, Ordering::Acquire);
        drop(state);
        entered.keep();
        let (taken, filled) = (Vec::new(), Vec::new());
        let made = Made { shared: Arc::clone(shared), serial, taken, filled, promised: 0 };
        let kind = Kind::Change(Box::new(made));
        Ok(Some(Begun { guard: Guard { object, phase, reach: *reach, kind }, size }))
    }

    /// Takes units for a hole of a change, at the end of what lies before it where that is possible.
    fn take(
        &self,
        made: &mut Made,
        state: &State,
        at: u64,
        most: u64,
    ) -> Result<Mapped, BlockError> {
        let before = made.taken.last().copied().filter(|extent| extent.end() == at);
        let before = before.or_else(|| state.tree.before(at));
        let goal = before.map(|extent| extent.device_end());
        made.promised += 1;
        self.shared.promise(1, false)?;
        let Some(run) = self.shared.space.take(self.preferred, goal, most) else {
            let (units, all) = (self.shared.space.free_units(), self.shared.layout.units);
            let what = format!("{units} of {all} units are free, and {most} more are needed");
            return Err(Cause::NoSpace { what: what.into() }.into());
        };
        let extent = Mapped { file: at, device: run.start, units: run.units, written: false };
        made.taken.push(extent);
        Ok(extent)
    }

    /// Says what lies at a unit, for at most `most`; for a change, takes what is missing.
    fn look(&self, guard: &mut Guard, at: u64, most: u64) -> Result<(Found, bool), BlockError> {
        let state = guard.object.read();
        if state.removed && !matches!(guard.kind, Kind::Read) {
            // A read finds nothing; whoever writes is told why.
            return Err(StoreError::NoObject(guard.object.id).into());
        }
        let found = state.tree.find(at);
        Ok(match (found, &mut guard.kind) {
            (Found::Extent(extent), _) if extent.written => (found, false),
            (Found::Extent(mut extent), Kind::Change(made)) => {
                let more = growth(&state, &extent, most);
                made.promised += more;
                self.shared.promise(more, true)?;
                extent.units = extent.units.min(most);
                made.filled.push(extent);
                (Found::Extent(extent), true)
            }
            (Found::Extent(extent), _) => (Found::Hole(Some(extent.units)), false),
            (Found::Hole(until), Kind::Change(made)) => {
                let most = until.map_or(most, |units| units.min(most));
                (Found::Extent(self.take(made, &state, at, most)?), true)
            }
            (Found::Hole(_), _) => (found, false),
        })
    }

    /// Publishes a change: the map, the size, and what the journal will say of them.
    fn publish(&self, guard: &mut Guard, bytes: u64) -> Result<u64, BlockError> {
        let shared = &self.shared;
        let Kind::Change(made) = &mut guard.kind else { unreachable!("the caller has looked") };
        let mut state = guard.object.write();
        if state.removed {
            return Err(StoreError::NoObject(guard.object.id).into());
        }
        let before = state.tree.len();
        let mut parts: Vec<Mapped> = Vec::with_capacity(made.taken.len() + made.filled.len());
        for extent in made.taken.drain(..) {
            let extent = Mapped { written: true, ..extent };
            state.tree.insert(extent);
            parts.push(extent);
        }
        for extent in made.filled.drain(..) {
            state.tree.set_written(extent.file..extent.end());
            parts.push(Mapped { written: true, ..extent });
        }
        shared.count_extents(before, state.tree.len());
        let time = shared.now();
        let (id, old) = (guard.object.id, state.size);
        let size = old.max(guard.reach.offset + bytes);
        (state.size, state.modified) = (size, time);
        guard.object.touched.store(false, Ordering::Relaxed);
        // Data that went through the cache needs no flush before its record.
        let flush = !guard.reach.durability.is_durable();
        let last = parts.len().saturating_sub(1);
        let mut lsn = 0;
        for (index, extent) in parts.iter().copied().enumerate() {
            // The size comes with the last: it never precedes the data.
            let size = if index == last { size } else { old };
            lsn = shared.record(&Op::Map { id, extent, size, time }, flush);
        }
        if parts.is_empty() {
            lsn = shared.record(&Op::Size { id, size, time }, flush);
        }
        guard.object.map_lsn.store(lsn, Ordering::Release);
        Ok(lsn)
    }

    /// Ends a request that replaced data.
    fn replaced(&self, guard: &Guard) -> Result<Committed, BlockError> {
        let (object, shared) = (&guard.object, &self.shared);
        if !object.touched.load(Ordering::Relaxed) {
            object.touched.store(true, Ordering::Relaxed);
        }
        let mut lsn = object.map_lsn.load(Ordering::Acquire);
        match guard.reach.durability {
            Durability::Lazy => {
                if !shared.dirty.load(Ordering::SeqCst) {
                    shared.dirty.store(true, Ordering::SeqCst);
                }
                return Ok(Committed::Now);
            }
            Durability::Data => {}
            Durability::Full => match shared.record_time(object) {
                Some(time) => lsn = time,
                // It waits for the round that records it.
                None if object.touched.load(Ordering::Acquire) => {
                    return Ok(Committed::Later(self.mark_everything()));
                }
                None => {}
            },
        }
        Ok(self.when_durable(lsn))
    }

    /// Says when operations below `lsn` are durable, and asks for it.
    fn when_durable(&self, lsn: u64) -> Committed {
        if self.shared.durable.load(Ordering::Acquire) >= lsn {
            return Committed::Now;
        }
        self.shared.want(lsn);
        Committed::Later(mark_of_lsn(lsn))
    }

    /// Makes a mark of everything that was done.
    pub(super) fn mark_everything(&self) -> Mark {
        let shared = &self.shared;
        let mut log = shared.log();
        let clean =
            log.is_empty() && !shared.dirty.load(Ordering::SeqCst) && !shared.has_deferred();
        if clean && shared.durable.load(Ordering::Acquire) >= log.next() {
            // What a round has under way was asked for by others, who came after the last write.
            return mark_of_round(log.begun);
        }
        log.asked = log.asked.max(log.begun + 1);
        shared.work.store(true, Ordering::Release);
        mark_of_round(log.begun + 1)
    }
}

impl MapBlocks for Store {
    type Guard = Guard;

    #[inline]
    fn unit(&self) -> BlockCount {
        self.shared.layout.unit_blocks()
    }

    fn begin(&self, reach: &Reach) -> Result<Option<Begun<Guard>>, BlockError> {
        match reach.intent {
            Intent::Read => self.begin_read(reach),
            Intent::Write | Intent::Clear => self.begin_write(reach),
        }
    }

    fn map(
        &self,
        guard: &mut Guard,
        at: FileBlock,
        blocks: BlockCount,
    ) -> Result<Mapping, BlockError> {
        let layout = &self.shared.layout;
        let per_unit = layout.unit_shift - layout.block_shift;
        let most = blocks.0 >> per_unit;
        let (found, new) = self.look(guard, at.0 >> per_unit, most)?;
        Ok(match found {
            Found::Extent(extent) => Mapping::Mapped(Extent {
                lba: layout.lba_of_unit(extent.device),
                blocks: BlockCount(extent.units.min(most) << per_unit),
                new,
                boundary: false,
            }),
            Found::Hole(until) => {
                let units = until.map_or(most, |units| units.min(most));
                Mapping::Hole(BlockCount(units << per_unit))
            }
        })
    }

    fn commit(&self, mut guard: Guard, bytes: u64) -> Result<Committed, BlockError> {
        match &guard.kind {
            Kind::Read => Ok(Committed::Now),
            Kind::Overwrite => self.replaced(&guard),
            Kind::Change(_) => {
                let lsn = self.publish(&mut guard, bytes)?;
                if guard.reach.durability.is_durable() {
                    Ok(self.when_durable(lsn))
                } else {
                    Ok(Committed::Now)
                }
            }
        }
    }

    fn sync(&self, file: FileId) -> Result<Option<Mark>, BlockError> {
        self.shared.may_write()?;
        let object = self.shared.object(file)?;
        self.shared.record_time(&object);
        Ok(Some(self.mark_everything()))
    }

    fn settled(&self, mark: Mark) -> Result<bool, BlockError> {
        let shared = &self.shared;
        let (kind, number) = (mark.0 & 1, mark.0 >> 1);
        let reached = if kind == 0 { &shared.durable } else { &shared.rounds };
        if reached.load(Ordering::Acquire) >= number {
            return Ok(true);
        }
        match shared.poison() {
            Some(what) => Err(StoreError::Poisoned { what: what.into() }.into()),
            None => Ok(false),
        }
    }

    fn end(&self, file: FileId) -> Option<End> {
        let object = self.shared.find(file)?;
        let state = object.read();
        let size = state.size;
        let within = size & ((1 << self.shift()) - 1) != 0;
        let loose = if within && matches!(state.tree.find(size >> self.shift()), Found::Extent(_)) {
            size.next_multiple_of(1 << self.shift())
        } else {
            size
        };
        (!state.removed).then_some(End { size, loose })
    }

    #[inline]
    fn turn(&self) {
        self.shared.turn();
    }
}
