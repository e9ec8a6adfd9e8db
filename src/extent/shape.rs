//! The shape of an object: its size, its holes, space that it has without data. Writes are kept out meanwhile.
//!
//! Key type is [`Exclusion`], which `Store::exclude` hands out: one at a time for an object. Invariant: a shape changes
//! only while no write of the object is under way, and what is freed waits for the record and for readers.
#![forbid(unsafe_code)]

use core::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLockWriteGuard};

use super::error::StoreError;
use super::object::{Object, State};
use super::record::Op;
use super::shared::{Entered, units_of};
use super::space::Run;
use super::store::Store;
use super::tree::{FILE_UNITS_MAX, Mapped};

/// Keeps writes out of an object while its shape is changed; see [`Store::exclude`].
#[must_use = "writes are let in again when this drops"]
pub struct Exclusion {
    pub(super) store: Store,
    pub(super) object: Arc<Object>,
}

impl Exclusion {
    /// Says whether every write that was under way is done: before that nothing can be changed.
    pub fn is_alone(&self) -> bool {
        self.object.writes.load(Ordering::Acquire) == 0
    }

    /// Returns the size of the object.
    pub fn size(&self) -> u64 {
        self.object.read().size
    }

    /// Sets the size. What lies beyond a smaller one is freed, in whole units; what a larger one adds reads as zeroes,
    /// if whoever moves the end has zeroed what follows it in its unit.
    ///
    /// # Errors
    ///
    /// `TooLarge`, `NoObject`, `NotYet` and those of a store that cannot be written.
    ///
    /// # Panics
    ///
    /// If writes are under way.
    pub fn set_len(&self, size: u64) -> Result<(), StoreError> {
        let most = self.store.size_max();
        if size > most {
            return Err(StoreError::TooLarge { size, most });
        }
        let (_entered, mut state) = self.begin()?;
        let shared = &self.store.shared;
        let time = shared.now();
        let first = size.div_ceil(1 << shared.layout.unit_shift);
        let (id, shrinks) = (self.object.id, size < state.size);
        (state.size, state.modified) = (size, time);
        if shrinks && first < state.tree.end() {
            self.unmap(&mut state, first..FILE_UNITS_MAX);
        } else {
            let lsn = shared.record(&Op::Size { id, size, time }, false);
            self.object.map_lsn.store(lsn, Ordering::Release);
        }
        Ok(())
    }

    /// Frees the units of a range of bytes, which is cut to whole units; they read as zeroes.
    ///
    /// # Errors
    ///
    /// As [`set_len`](Self::set_len), and `NoSpace` where the map has outgrown its checkpoint.
    ///
    /// # Panics
    ///
    /// If writes are under way.
    pub fn punch(&self, bytes: Range<u64>) -> Result<(), StoreError> {
        let (_entered, mut state) = self.begin()?;
        let shared = &self.store.shared;
        let shift = shared.layout.unit_shift;
        let units = bytes.start.div_ceil(1 << shift)..(bytes.end >> shift).min(FILE_UNITS_MAX);
        if units.start >= units.end || state.tree.range(units.clone()).next().is_none() {
            return Ok(());
        }
        shared.has_room_for(1, 0, true)?;
        state.modified = shared.now();
        self.unmap(&mut state, units);
        Ok(())
    }

    fn unmap(&self, state: &mut State, units: Range<u64>) {
        let shared = &self.store.shared;
        let (id, file) = (self.object.id, units.start);
        let (size, time) = (state.size, state.modified);
        let before = state.tree.len();
        let mut removed = Vec::new();
        state.tree.remove(units.clone(), &mut |extent| removed.push(extent));
        let op = Op::Unmap { id, file, units: units.end - units.start, size, time };
        let lsn = shared.record(&op, false);
        for extent in &removed {
            state.free(*extent, lsn);
        }
        self.object.map_lsn.store(lsn, Ordering::Release);
        shared.count_extents(before, state.tree.len());
        shared.leaves(&self.object, lsn, units_of(&removed));
    }

    /// Gives the units that a range of bytes touches space of their own, where they have none; they read as zeroes until
    /// they are written, and a write to them does not run out of space. All of it, or nothing.
    ///
    /// # Errors
    ///
    /// `NoSpace`, and as [`set_len`](Self::set_len).
    ///
    /// # Panics
    ///
    /// If writes are under way.
    pub fn preallocate(&self, bytes: Range<u64>) -> Result<(), StoreError> {
        let most = self.store.size_max();
        if bytes.end > most {
            return Err(StoreError::TooLarge { size: bytes.end, most });
        }
        let (_entered, mut state) = self.begin()?;
        let shared = &self.store.shared;
        let shift = shared.layout.unit_shift;
        let units = bytes.start >> shift..bytes.end.div_ceil(1 << shift);
        let taken = self.take_all(&state, units)?;
        if taken.is_empty() {
            // A time that no operation carries would not be there after a crash, whoever syncs.
            return Ok(());
        }
        let before = state.tree.len();
        let (id, size, time) = (self.object.id, state.size, shared.now());
        state.modified = time;
        for extent in taken {
            state.tree.insert(extent);
            let lsn = shared.record(&Op::Map { id, extent, size, time }, false);
            self.object.map_lsn.store(lsn, Ordering::Release);
        }
        shared.count_extents(before, state.tree.len());
        Ok(())
    }

    /// Takes space for every hole of a range, or gives back what it took.
    fn take_all(&self, state: &State, units: Range<u64>) -> Result<Vec<Mapped>, StoreError> {
        let shared = &self.store.shared;
        let mut taken: Vec<Mapped> = Vec::new();
        let result = holes(state, units).try_for_each(|hole| {
            let mut at = hole.start;
            while at < hole.end {
                let before = taken.last().copied().filter(|extent| extent.end() == at);
                let goal =
                    before.or_else(|| state.tree.before(at)).map(|extent| extent.device_end());
                shared.has_room_for(taken.len() as u64 + 2, 0, false)?;
                let run = shared.space.take(self.store.preferred, goal, hole.end - at);
                let Run { start, units } = run.ok_or_else(|| self.no_space(hole.end - at))?;
                taken.push(Mapped { file: at, device: start, units, written: false });
                at += units;
            }
            Ok(())
        });
        if result.is_err() {
            for extent in &taken {
                shared.space.give_back(Run { start: extent.device, units: extent.units });
            }
        }
        result.map(|()| taken)
    }

    /// Says that units are missing: for good, or until the record that freed others is durable.
    fn no_space(&self, missing: u64) -> StoreError {
        let shared = &self.store.shared;
        if shared.leaving_units() > 0 {
            let next = shared.log().next();
            shared.want(next);
            return StoreError::NotYet;
        }
        StoreError::NoSpace { what: format!("{missing} units are missing, and none is free") }
    }

    fn begin(&self) -> Result<(Entered<'_>, RwLockWriteGuard<'_, State>), StoreError> {
        assert!(
            self.is_alone(),
            "object {} changes shape while writes are under way",
            self.object.id
        );
        let entered = self.store.enter()?;
        let state = self.object.write();
        if state.removed {
            return Err(StoreError::NoObject(self.object.id));
        }
        Ok((entered, state))
    }
}

impl Drop for Exclusion {
    fn drop(&mut self) {
        self.object.write().excluded = false;
    }
}

/// Returns the holes of a range of units, in order.
fn holes(state: &State, units: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = units.start;
    let ends = core::iter::once(units.end..units.end);
    let mapped = state.tree.range(units).map(|extent| extent.file..extent.end()).chain(ends);
    mapped.filter_map(move |next| {
        let hole = at..next.start;
        at = next.end;
        (hole.start < hole.end).then_some(hole)
    })
}
