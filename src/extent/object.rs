//! One object: its size, its map, its attributes, and the requests that are under way in it.
//!
//! ```text
//!   state   under a lock that is never held across I/O: readers look blocks up side by side
//!   pins    requests under way, in two phases: space that was freed is reused when those are done that
//!           may have been told of it (see `reclaim`)
//!   writes  writes under way: who cuts the object off waits for them
//! ```
//!
//! Invariant: what is in the map holds data of this object, or is unwritten; what a request has been given and
//! has not committed is in no map.
#![forbid(unsafe_code)]

use core::ops::Range;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::space::{Run, Space};
use super::tree::{ExtentTree, Mapped};
use crate::units::FileId;

/// What is known of an object.
pub(super) struct Object {
    pub(super) id: FileId,
    state: RwLock<State>,
    /// Requests under way, by the phase in which they began.
    pins: [AtomicU32; 2],
    /// Writes under way.
    pub(super) writes: AtomicU32,
    /// Whether data was written since the time was last recorded.
    pub(super) touched: AtomicBool,
    /// Operations below this say where the data is and how long it is.
    pub(super) map_lsn: AtomicU64,
}

/// What changes, under the lock.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) name: Option<String>,
    pub(super) size: u64,
    pub(super) created: u64,
    pub(super) modified: u64,
    pub(super) tree: ExtentTree,
    pub(super) attributes: BTreeMap<String, Vec<u8>>,
    /// Writes under way that make blocks or move the end.
    pub(super) changes: Vec<Change>,
    /// Whether somebody keeps writes out, to cut the object off or to punch holes.
    pub(super) excluded: bool,
    pub(super) removed: bool,
    /// The phase in which requests begin now.
    pub(super) phase: usize,
    /// What was freed in this phase, and in the one before.
    pub(super) freed: Vec<Freed>,
    pub(super) draining: Vec<Freed>,
}

/// A write under way that makes blocks or moves the end.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) serial: u64,
    pub(super) units: Range<u64>,
    pub(super) extends: bool,
}

/// Space that is no object's any more, and not free yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freed {
    run: Run,
    /// It is free when operations below this are durable.
    lsn: u64,
}

impl Object {
    pub(super) fn new(id: FileId, state: State) -> Self {
        Self {
            id,
            state: RwLock::new(state),
            pins: Default::default(),
            writes: AtomicU32::new(0),
            touched: AtomicBool::new(false),
            map_lsn: AtomicU64::new(0),
        }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, State> {
        // Nothing that panics changes the state half-way: the trees check before they change.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request in; returns its phase, to be handed to [`unpin`](Self::unpin). The caller holds the lock,
    /// so that the phase does not change meanwhile.
    #[inline]
    pub(super) fn pin(&self, state: &State) -> usize {
        self.pins[state.phase].fetch_add(1, Ordering::Acquire);
        state.phase
    }

    /// Counts a request out.
    #[inline]
    pub(super) fn unpin(&self, phase: usize) {
        self.pins[phase].fetch_sub(1, Ordering::Release);
    }

    /// Gives back what was freed, as far as the operations that freed it are durable and no request that may use it
    /// is under way; returns how many units, and whether something is left.
    ///
    /// Requests that began before something was freed belong to the phase of then or the one before. When those of
    /// the phase before are done, the phases change places, and what was freed waits for those that are now the
    /// phase before: new requests cannot know of it.
    pub(super) fn reclaim(&self, durable: u64, space: &Space) -> (u64, bool) {
        let mut state = self.write();
        let mut units = 0;
        loop {
            let before = 1 - state.phase;
            if self.pins[before].load(Ordering::Acquire) == 0 {
                state.draining.retain(|freed| {
                    let stays = freed.lsn > durable;
                    if !stays {
                        space.give_back(freed.run);
                        units += freed.run.units;
                    }
                    stays
                });
                if state.draining.is_empty() && !state.freed.is_empty() {
                    state.draining = core::mem::take(&mut state.freed);
                    state.phase = before;
                    continue;
                }
            }
            return (units, !(state.draining.is_empty() && state.freed.is_empty()));
        }
    }
}

impl State {
    /// Takes space out of the object: it is free once operations below `lsn` are durable.
    pub(super) fn free(&mut self, extent: Mapped, lsn: u64) {
        let run = Run { start: extent.device, units: extent.units };
        self.freed.push(Freed { run, lsn });
    }

    /// Says whether all units of a range hold data.
    pub(super) fn is_written(&self, units: Range<u64>) -> bool {
        let mut at = units.start;
        while at < units.end {
            match self.tree.find(at) {
                super::tree::Found::Extent(found) if found.written => at = found.end(),
                _ => return false,
            }
        }
        true
    }

    /// Says whether a change would meet one that is under way.
    pub(super) fn is_in_the_way(&self, units: &Range<u64>, extends: bool) -> bool {
        let meets = |change: &Change| {
            (extends && change.extends)
                || (change.units.start < units.end && units.start < change.units.end)
        };
        self.excluded || self.changes.iter().any(meets)
    }

    /// Returns the bytes that the object takes in a checkpoint, beside its extents.
    pub(super) fn record_bytes(&self) -> u64 {
        let attributes = self.attributes.iter().map(|(key, value)| key.len() + value.len() + 4);
        (super::checkpoint::OBJECT_BYTES
            + self.name.as_ref().map_or(0, String::len)
            + attributes.sum::<usize>()) as u64
    }
}
