//! What all handles to a store share: the objects, the free space, the log, the engine.
//!
//! Locks, in the order in which they are taken: names, a table of objects, an object, the log; the engine before
//! all of them, and only ever tried. None is held across I/O.
#![forbid(unsafe_code)]

use core::hash::{BuildHasherDefault, Hasher};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use super::checkpoint::{END_BYTES, EXTENT_BYTES};
use super::claim::Claim;
use super::engine::Engine;
use super::error::StoreError;
use super::layout::Layout;
use super::log::Log;
use super::object::{Object, State};
use super::record::Op;
use super::space::Space;
use super::tree::Mapped;
use super::uuid::Uuid;
use crate::block::BlockDevice;
use crate::units::FileId;

/// Tells the time: nanoseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Tables of objects: one would be a lock that all cores meet at.
const TABLES: usize = 16;

/// Bytes that may wait for the journal before changes have to wait too: some 80,000 operations.
const BACKLOG_BYTES_MAX: usize = 4 << 20;

/// The part of a checkpoint's region, as a divisor, that is kept for what makes room: punching holes makes more
/// extents of fewer units.
const RESERVE: u64 = 16;

/// Numbers of objects rise by one: their low bits are as good as any hash of them.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a number of an object is one word")
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type Table = HashMap<FileId, Arc<Object>, BuildHasherDefault<IdHasher>>;

pub(super) struct Shared {
    /// First, so that nothing of it is in flight when the rest goes.
    engine: Mutex<Engine>,
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) layout: Layout,
    pub(super) uuid: Uuid,
    pub(super) created: u64,
    tables: [RwLock<Table>; TABLES],
    names: Mutex<BTreeMap<String, FileId>>,
    /// The number of the next object.
    pub(super) next_id: AtomicU64,
    pub(super) space: Space,
    log: Mutex<Log>,
    /// Operations below this are durable.
    pub(super) durable: AtomicU64,
    /// Rounds of the engine that have ended.
    pub(super) rounds: AtomicU64,
    /// Whether data may be in the device's cache only that no operation stands for.
    pub(super) dirty: AtomicBool,
    /// Whether the engine has anything to do.
    pub(super) work: AtomicBool,
    /// Whether changes are kept out, for want of room in the journal.
    pub(super) gate: AtomicBool,
    /// Changes under way.
    pub(super) changes: AtomicU64,
    /// Bytes of the log, so that nobody who changes things runs away from the journal.
    pub(super) backlog: AtomicUsize,
    poisoned: OnceLock<String>,
    /// Objects of which something was freed, with the operation that has to be durable first.
    leaving: Mutex<VecDeque<(u64, Arc<Object>)>>,
    leaving_units: AtomicU64,
    /// Objects whose time is to be recorded once changes are let in again.
    deferred: Mutex<Vec<Arc<Object>>>,
    any_deferred: AtomicBool,
    /// Numbers for changes.
    pub(super) serial: AtomicU64,
    /// Numbers for handles, which prefer different groups.
    pub(super) handles: AtomicU64,
    /// What the map takes in a checkpoint: objects in bytes, extents in number.
    object_bytes: AtomicU64,
    extents: AtomicU64,
    /// Extents that writes under way may add.
    pub(super) promised: AtomicU64,
    pub(super) clock: Clock,
    pub(super) commit_interval: Duration,
    pub(super) read_only: bool,
    /// What opening had to pass over.
    pub(super) warnings: Vec<StoreError>,
    /// Last: nobody opens the store before all of it is gone.
    _claim: Claim,
}

/// What a store is made of when it has been read.
pub(super) struct Parts {
    pub(super) engine: Engine,
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) layout: Layout,
    pub(super) uuid: Uuid,
    pub(super) created: u64,
    pub(super) objects: BTreeMap<FileId, State>,
    pub(super) next_id: u64,
    pub(super) space: Space,
    pub(super) lsn: u64,
    pub(super) clock: Clock,
    pub(super) commit_interval: Duration,
    pub(super) read_only: bool,
    pub(super) warnings: Vec<StoreError>,
    pub(super) claim: Claim,
}

/// A change under way; see [`Shared::enter`].
#[must_use = "a change ends when this drops"]
pub(super) struct Entered<'a>(&'a Shared);

impl Entered<'_> {
    /// Leaves the change open; whoever ends it calls [`Shared::leave`].
    pub(super) fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Shared {
    pub(super) fn new(parts: Parts) -> Self {
        let mut names = BTreeMap::new();
        let mut tables: [Table; TABLES] = Default::default();
        let (mut object_bytes, mut extents) = (0, 0);
        for (id, state) in parts.objects {
            names.extend(state.name.clone().map(|name| (name, id)));
            object_bytes += state.record_bytes();
            extents += state.tree.len() as u64;
            tables[table_of(id)].insert(id, Arc::new(Object::new(id, state)));
        }
        Self {
            engine: Mutex::new(parts.engine),
            device: parts.device,
            layout: parts.layout,
            uuid: parts.uuid,
            created: parts.created,
            tables: tables.map(RwLock::new),
            names: Mutex::new(names),
            next_id: AtomicU64::new(parts.next_id),
            space: parts.space,
            log: Mutex::new(Log::new(parts.lsn)),
            durable: AtomicU64::new(parts.lsn),
            rounds: AtomicU64::new(0),
            dirty: AtomicBool::new(false),
            work: AtomicBool::new(false),
            gate: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            backlog: AtomicUsize::new(0),
            poisoned: OnceLock::new(),
            leaving: Mutex::default(),
            leaving_units: AtomicU64::new(0),
            deferred: Mutex::default(),
            any_deferred: AtomicBool::new(false),
            serial: AtomicU64::new(0),
            handles: AtomicU64::new(0),
            object_bytes: AtomicU64::new(object_bytes),
            extents: AtomicU64::new(extents),
            promised: AtomicU64::new(0),
            clock: parts.clock,
            commit_interval: parts.commit_interval,
            read_only: parts.read_only,
            warnings: parts.warnings,
            _claim: parts.claim,
        }
    }

    // Locks.

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn names(&self) -> MutexGuard<'_, BTreeMap<String, FileId>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a step of the engine, if there is anything to do and nobody else does it.
    #[inline]
    pub(super) fn turn(&self) {
        if self.work.load(Ordering::Acquire) {
            self.step();
        }
    }

    #[cold]
    fn step(&self) {
        if let Ok(mut engine) = self.engine.try_lock() {
            engine.step(self);
        }
    }

    // Objects.

    /// Returns an object that is there.
    #[inline]
    pub(super) fn find(&self, id: FileId) -> Option<Arc<Object>> {
        let table = self.tables[table_of(id)].read().unwrap_or_else(PoisonError::into_inner);
        table.get(&id).map(Arc::clone)
    }

    pub(super) fn object(&self, id: FileId) -> Result<Arc<Object>, StoreError> {
        self.find(id).ok_or(StoreError::NoObject(id))
    }

    pub(super) fn insert(&self, object: Arc<Object>) {
        let mut table =
            self.tables[table_of(object.id)].write().unwrap_or_else(PoisonError::into_inner);
        table.insert(object.id, object);
    }

    pub(super) fn take_out(&self, id: FileId) {
        let mut table = self.tables[table_of(id)].write().unwrap_or_else(PoisonError::into_inner);
        table.remove(&id);
    }

    /// Returns the numbers of all objects, rising.
    pub(super) fn ids(&self) -> Vec<FileId> {
        let mut ids = Vec::new();
        for table in &self.tables {
            let table = table.read().unwrap_or_else(PoisonError::into_inner);
            ids.extend(table.keys().copied());
        }
        ids.sort_unstable();
        ids
    }

    // Changes.

    /// Begins a change; `None` while changes are kept out.
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        // Counted first and asked then: the engine closes the gate first and counts then.
        self.changes.fetch_add(1, Ordering::SeqCst);
        let entered = Entered(self);
        let full = self.backlog.load(Ordering::Relaxed) > BACKLOG_BYTES_MAX;
        (!full && !self.gate.load(Ordering::SeqCst)).then_some(entered)
    }

    /// Ends a change.
    pub(super) fn leave(&self) {
        self.changes.fetch_sub(1, Ordering::SeqCst);
    }

    /// Says why nothing can be changed, if nothing can.
    pub(super) fn may_write(&self) -> Result<(), StoreError> {
        if self.read_only {
            return Err(StoreError::ReadOnly);
        }
        match self.poison() {
            Some(what) => Err(StoreError::Poisoned { what: what.into() }),
            None => Ok(()),
        }
    }

    /// Writes an operation down. The caller has entered a change, and holds the lock of the object.
    pub(super) fn record(&self, op: &Op, flush: bool) -> u64 {
        let mut log = self.log();
        let lsn = log.push(op, flush);
        self.backlog.store(log.pending_bytes(), Ordering::Relaxed);
        drop(log);
        self.work.store(true, Ordering::Release);
        lsn
    }

    /// Asks for operations below `lsn` to be made durable.
    pub(super) fn want(&self, lsn: u64) {
        self.log().want(lsn);
        self.work.store(true, Ordering::Release);
    }

    /// Writes down that an object's data has changed, if it was not said since; `None` if there was nothing to say, or
    /// nothing may be said for the moment: then the next round says it before it begins.
    pub(super) fn record_time(&self, object: &Arc<Object>) -> Option<u64> {
        if !object.touched.load(Ordering::Acquire) {
            return None;
        }
        let Some(_entered) = self.enter() else {
            self.deferred().push(Arc::clone(object));
            self.any_deferred.store(true, Ordering::Release);
            return None;
        };
        self.record_time_now(object)
    }

    fn record_time_now(&self, object: &Object) -> Option<u64> {
        let mut state = object.write();
        if state.removed || !object.touched.swap(false, Ordering::AcqRel) {
            return None;
        }
        state.modified = self.now();
        let op = Op::Size { id: object.id, size: state.size, time: state.modified };
        Some(self.record(&op, false))
    }

    /// Says whether times wait to be recorded.
    pub(super) fn has_deferred(&self) -> bool {
        self.any_deferred.load(Ordering::Acquire)
    }

    /// Records the times that had to wait. The engine calls it where changes are let in.
    pub(super) fn record_deferred(&self) {
        self.any_deferred.store(false, Ordering::Release);
        let deferred = core::mem::take(&mut *self.deferred());
        for object in deferred {
            self.record_time_now(&object);
        }
    }

    fn deferred(&self) -> MutexGuard<'_, Vec<Arc<Object>>> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Failure.

    #[inline]
    pub(super) fn poison(&self) -> Option<&str> {
        self.poisoned.get().map(String::as_str)
    }

    /// Makes the store read-only: nobody can say any more what is durable.
    #[cold]
    pub(super) fn poison_with(&self, what: String) {
        tracing::error!(store = %self.uuid, what, "the store is read-only until it is reopened");
        // The first failure is the cause.
        let _ = self.poisoned.set(what);
    }

    // Space.

    /// Says that an object has freed space, by an operation below `lsn`.
    pub(super) fn leaves(&self, object: &Arc<Object>, lsn: u64, units: u64) {
        if units > 0 {
            self.leaving_units.fetch_add(units, Ordering::AcqRel);
            self.leaving().push_back((lsn, Arc::clone(object)));
            self.work.store(true, Ordering::Release);
        }
    }

    pub(super) fn leaving_units(&self) -> u64 {
        self.leaving_units.load(Ordering::Acquire)
    }

    fn leaving(&self) -> MutexGuard<'_, VecDeque<(u64, Arc<Object>)>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back what was freed by at most `most` objects.
    pub(super) fn reclaim(&self, most: usize) {
        let durable = self.durable.load(Ordering::Acquire);
        for _ in 0..most {
            let mut leaving = self.leaving();
            if leaving.front().is_none_or(|(lsn, _)| *lsn > durable) {
                return;
            }
            let Some((_, object)) = leaving.pop_front() else { return };
            drop(leaving);
            let (units, left) = object.reclaim(durable, &self.space);
            self.leaving_units.fetch_sub(units, Ordering::AcqRel);
            if left {
                self.leaving().push_back((durable, object));
            }
        }
    }

    // What the map takes.

    /// Says whether the map may have `more` extents and `bytes` of objects.
    pub(super) fn has_room_for(
        &self,
        more: u64,
        bytes: u64,
        reserve: bool,
    ) -> Result<(), StoreError> {
        let extents = self.extents() + self.promised.load(Ordering::Relaxed) + more;
        let objects = self.object_bytes.load(Ordering::Relaxed) + bytes;
        let limit = self.layout.checkpoint_bytes_max() - END_BYTES as u64;
        let most = if reserve { limit } else { limit - limit / RESERVE };
        // Each run of extents has a header of its own; a 24th of an extent is more than it takes.
        let needed = objects + extents * (EXTENT_BYTES as u64 + 1);
        if needed <= most {
            return Ok(());
        }
        let what = format!(
            "{extents} extents and {objects} bytes of objects need {needed} of {most} bytes of a checkpoint"
        );
        Err(StoreError::NoSpace { what })
    }

    /// Counts extents that a write may add before it is known whether it does, and says whether the map may have them;
    /// they count until the write ends, also if it may not.
    pub(super) fn promise(&self, more: u64, reserve: bool) -> Result<(), StoreError> {
        if more == 0 {
            return Ok(());
        }
        self.promised.fetch_add(more, Ordering::Relaxed);
        self.has_room_for(0, 0, reserve)
    }

    pub(super) fn count_extents(&self, before: usize, after: usize) {
        self.extents.fetch_add((after as u64).wrapping_sub(before as u64), Ordering::Relaxed);
    }

    pub(super) fn count_bytes(&self, before: u64, after: u64) {
        self.object_bytes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    pub(super) fn extents(&self) -> u64 {
        self.extents.load(Ordering::Relaxed)
    }

    pub(super) fn map_bytes(&self) -> (u64, u64) {
        let used = self.object_bytes.load(Ordering::Relaxed) + self.extents() * EXTENT_BYTES as u64;
        (used, self.layout.checkpoint_bytes_max())
    }

    /// Returns how many objects there are.
    pub(super) fn objects(&self) -> u64 {
        let len =
            |table: &RwLock<Table>| table.read().unwrap_or_else(PoisonError::into_inner).len();
        self.tables.iter().map(len).sum::<usize>() as u64
    }

    pub(super) fn now(&self) -> u64 {
        (self.clock)()
    }
}

fn table_of(id: FileId) -> usize {
    id.0 as usize % TABLES
}

/// Counts the units of what was unmapped.
pub(super) fn units_of(removed: &[Mapped]) -> u64 {
    removed.iter().map(|extent| extent.units).sum()
}
