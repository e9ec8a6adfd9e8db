//! The store: objects by name and number, and what can be done with them but reading and writing.
//!
//! Nothing here waits for the device. What is done is visible at once and durable after a later sync, like a
//! write; [`Store::wait`] waits for a mark. Reads and writes go through a pipeline, which asks the store as
//! [`MapBlocks`](crate::block::MapBlocks).
#![forbid(unsafe_code)]

use core::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::engine::JournalCounts;
use super::error::StoreError;
use super::object::{Object, State};
use super::record::{KEY_BYTES_MAX, NAME_BYTES_MAX, Op, VALUE_BYTES_MAX};
use super::shape::Exclusion;
use super::shared::{Entered, Shared};
use super::space::Statistics as SpaceStatistics;
use super::tree::Mapped;
use super::uuid::Uuid;
use crate::block::{BlockError, MapBlocks, Mark};
use crate::units::{ByteLen, FileId};

/// A store that is open. Clones are handles to the same one; each prefers its own group of free space, so there is
/// one for each core.
pub struct Store {
    pub(super) shared: Arc<Shared>,
    /// The group that space is taken from.
    pub(super) preferred: usize,
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its number.
    pub id: FileId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// The bytes of the device that it has.
    pub allocated: u64,
    /// Its extents.
    pub extents: u64,
    /// When it was made, in nanoseconds since 1970.
    pub created: u64,
    /// When it was last changed.
    pub modified: u64,
}

/// A run of bytes of an object, and where on the device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte of the object.
    pub offset: u64,
    /// First byte of the device.
    pub device: u64,
    /// How many bytes.
    pub len: u64,
    /// Whether it holds data; if not, it was preallocated and reads as zeroes.
    pub written: bool,
}

/// What a store is, and how full.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreStatistics {
    /// Objects.
    pub objects: u64,
    /// Extents of all objects.
    pub extents: u64,
    /// Bytes of a unit.
    pub unit: u64,
    /// Units of data in all.
    pub units: u64,
    /// Units that were freed and are not free yet.
    pub leaving: u64,
    /// What is free.
    pub free: SpaceStatistics,
    /// Bytes of the journal, and those that a crash now would leave to be replayed.
    pub journal: (u64, u64),
    /// Bytes of the map in a checkpoint, and the most that fit.
    pub map: (u64, u64),
    /// What the journal has done since the store was opened.
    pub counts: JournalCounts,
}

/// Who a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// Its number.
    pub uuid: Uuid,
    /// How often it was opened for writing.
    pub epoch: u64,
    /// When it was made, in nanoseconds since 1970.
    pub created: u64,
    /// Bytes of the whole store.
    pub capacity: ByteLen,
    /// Bytes that objects can have.
    pub data: ByteLen,
    /// Bytes of a unit.
    pub unit: ByteLen,
}

impl Clone for Store {
    fn clone(&self) -> Self {
        Self::of(Arc::clone(&self.shared))
    }
}

impl Store {
    pub(super) fn of(shared: Arc<Shared>) -> Self {
        let preferred = shared.handles.fetch_add(1, Ordering::Relaxed) as usize;
        Self { shared, preferred }
    }

    // Names.

    /// Makes an object without a byte; its name is free.
    ///
    /// # Errors
    ///
    /// `Name`, `NameTaken`, `NoSpace` where the map has outgrown its checkpoint, and those of a store that cannot be
    /// written.
    pub fn create(&self, name: Option<&str>) -> Result<FileId, StoreError> {
        let shared = &self.shared;
        name.map_or(Ok(()), check_name)?;
        let _entered = self.enter()?;
        let mut names = shared.names();
        if let Some(name) = name.filter(|name| names.contains_key(*name)) {
            return Err(StoreError::NameTaken(name.into()));
        }
        let time = shared.now();
        let name = name.map(str::to_owned);
        let state = State { name: name.clone(), created: time, modified: time, ..State::default() };
        let bytes = state.record_bytes();
        shared.has_room_for(0, bytes, false)?;
        let id = FileId(shared.next_id.fetch_add(1, Ordering::AcqRel));
        let object = Arc::new(Object::new(id, state));
        names.extend(name.clone().map(|name| (name, id)));
        // In the log before others can find it: what they do comes behind.
        shared.record(&Op::Create { id, time, name }, false);
        shared.count_bytes(0, bytes);
        shared.insert(object);
        Ok(id)
    }

    /// Returns the object of a name.
    ///
    /// # Errors
    ///
    /// `NoName`.
    pub fn lookup(&self, name: &str) -> Result<FileId, StoreError> {
        let found = self.shared.names().get(name).copied();
        found.ok_or_else(|| StoreError::NoName(name.into()))
    }

    /// Returns all objects, by number.
    pub fn list(&self) -> Vec<ObjectInfo> {
        let ids = self.shared.ids();
        ids.into_iter().filter_map(|id| self.stat(id).ok()).collect()
    }

    /// Returns what is known of an object.
    ///
    /// # Errors
    ///
    /// `NoObject`.
    pub fn stat(&self, id: FileId) -> Result<ObjectInfo, StoreError> {
        let object = self.shared.object(id)?;
        let state = object.read();
        Ok(ObjectInfo {
            id,
            name: state.name.clone(),
            size: state.size,
            allocated: state.tree.units() << self.shared.layout.unit_shift,
            extents: state.tree.len() as u64,
            created: state.created,
            modified: state.modified,
        })
    }

    /// Returns where on the device an object's bytes are, in order.
    ///
    /// # Errors
    ///
    /// `NoObject`.
    pub fn segments(&self, id: FileId) -> Result<Vec<Segment>, StoreError> {
        let object = self.shared.object(id)?;
        let state = object.read();
        let layout = &self.shared.layout;
        let segment = |Mapped { file, device, units, written }| Segment {
            offset: file << layout.unit_shift,
            device: layout.lba_of_unit(device).0 << layout.block_shift,
            len: units << layout.unit_shift,
            written,
        };
        Ok(state.tree.iter().map(segment).collect())
    }

    /// Says whether an object has data at a byte, and not a hole or space without data.
    ///
    /// # Errors
    ///
    /// `NoObject`.
    pub fn has_data(&self, id: FileId, offset: u64) -> Result<bool, StoreError> {
        let object = self.shared.object(id)?;
        let unit = offset >> self.shared.layout.unit_shift;
        let state = object.read();
        Ok(state.is_written(unit..unit + 1))
    }

    /// Gives an object a name, in place of the one it has; an object that has the name already is removed with it, at
    /// once: after a crash the name belongs to one of the two.
    ///
    /// # Errors
    ///
    /// `NoObject`, `Name`, `NameTaken` where somebody has the name and `replace` is not set.
    pub fn rename(&self, id: FileId, name: &str, replace: bool) -> Result<(), StoreError> {
        let shared = &self.shared;
        check_name(name)?;
        let _entered = self.enter()?;
        let mut names = shared.names();
        let object = shared.object(id)?;
        let other = names.get(name).copied();
        if other == Some(id) {
            return Ok(());
        }
        if other.is_some() && !replace {
            return Err(StoreError::NameTaken(name.into()));
        }
        let other = other.map(|other| shared.object(other)).transpose()?;
        let mut state = object.write();
        if state.removed {
            return Err(StoreError::NoObject(id));
        }
        let before = state.record_bytes();
        let old = state.name.replace(name.to_owned());
        let after = state.record_bytes();
        shared.has_room_for(0, after.saturating_sub(before), true).inspect_err(|_| {
            state.name.clone_from(&old);
        })?;
        old.map(|old| names.remove(&old));
        names.insert(name.to_owned(), id);
        let replaced = other.as_ref().map(|other| other.id);
        let op = Op::Rename { id, replaced, name: Some(name.to_owned()) };
        shared.count_bytes(before, after);
        // Whoever locks two objects holds the names. A write that ends in the other one meanwhile comes before this
        // operation, or finds its object removed.
        let mut replaced = other.as_ref().map(|other| other.write());
        let lsn = shared.record(&op, false);
        if let (Some(other), Some(state)) = (&other, replaced.as_deref_mut()) {
            self.empty(other, state, lsn);
        }
        Ok(())
    }

    /// Removes an object. Requests under way in it end first, and its space is free when that is durable.
    ///
    /// # Errors
    ///
    /// `NoObject`.
    pub fn remove(&self, id: FileId) -> Result<(), StoreError> {
        let shared = &self.shared;
        let _entered = self.enter()?;
        let mut names = shared.names();
        let object = shared.object(id)?;
        let mut state = object.write();
        if let Some(name) = &state.name {
            names.remove(name);
        }
        let lsn = shared.record(&Op::Remove { id }, false);
        self.empty(&object, &mut state, lsn);
        Ok(())
    }

    /// Takes an object out of the table, and its space out of the object. The caller holds the names, so that nobody
    /// else removes it meanwhile.
    fn empty(&self, object: &Arc<Object>, state: &mut State, lsn: u64) {
        let shared = &self.shared;
        state.removed = true;
        let (entries, bytes) = (state.tree.len(), state.record_bytes());
        let tree = core::mem::take(&mut state.tree);
        let mut units = 0;
        for extent in &tree {
            units += extent.units;
            state.free(extent, lsn);
        }
        shared.take_out(object.id);
        shared.count_extents(entries, 0);
        shared.count_bytes(bytes, 0);
        shared.leaves(object, lsn, units);
    }

    // Attributes.

    /// Gives an object an attribute: a key of 1 to 64 bytes, a value of at most 1024.
    ///
    /// # Errors
    ///
    /// `Attribute`, `NoObject`, `NoSpace` where the map has outgrown its checkpoint.
    pub fn set_attribute(&self, id: FileId, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check_attribute(key, value)?;
        self.change_attribute(id, key, Some(value))
    }

    /// Takes an attribute from an object.
    ///
    /// # Errors
    ///
    /// `Attribute` where it has none of the key, `NoObject`.
    pub fn remove_attribute(&self, id: FileId, key: &str) -> Result<(), StoreError> {
        self.change_attribute(id, key, None)
    }

    fn change_attribute(
        &self,
        id: FileId,
        key: &str,
        value: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let shared = &self.shared;
        let _entered = self.enter()?;
        let object = shared.object(id)?;
        let mut state = object.write();
        if state.removed {
            return Err(StoreError::NoObject(id));
        }
        let before = state.record_bytes();
        match value {
            Some(value) => {
                shared.has_room_for(0, (key.len() + value.len() + 4) as u64, false)?;
                if state.attributes.len() >= ATTRIBUTES_MAX && !state.attributes.contains_key(key) {
                    return Err(attribute(key, "the object has as many as it can have"));
                }
                state.attributes.insert(key.into(), value.into());
            }
            None => {
                let found = state.attributes.remove(key);
                found.ok_or_else(|| attribute(key, "the object does not have it"))?;
            }
        }
        shared.count_bytes(before, state.record_bytes());
        let value = value.map(<[u8]>::to_vec);
        shared.record(&Op::Attribute { id, key: key.into(), value }, false);
        Ok(())
    }

    /// Returns an attribute of an object.
    ///
    /// # Errors
    ///
    /// `NoObject`.
    pub fn attribute(&self, id: FileId, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.shared.object(id)?.read().attributes.get(key).cloned())
    }

    /// Returns all attributes of an object.
    ///
    /// # Errors
    ///
    /// `NoObject`.
    pub fn attributes(&self, id: FileId) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let object = self.shared.object(id)?;
        let state = object.read();
        Ok(state.attributes.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    // The shape of objects.

    /// Begins to keep writes out of an object, to change its shape; `None` while somebody else does.
    ///
    /// # Errors
    ///
    /// `NoObject`, and those of a store that cannot be written.
    pub fn exclude(&self, id: FileId) -> Result<Option<Exclusion>, StoreError> {
        self.shared.may_write()?;
        let object = self.shared.object(id)?;
        let mut state = object.write();
        if state.removed {
            return Err(StoreError::NoObject(id));
        }
        if core::mem::replace(&mut state.excluded, true) {
            return Ok(None);
        }
        drop(state);
        Ok(Some(Exclusion { store: self.clone_here(), object }))
    }

    fn clone_here(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), preferred: self.preferred }
    }

    pub(super) fn enter(&self) -> Result<Entered<'_>, StoreError> {
        self.shared.may_write()?;
        self.shared.enter().ok_or(StoreError::NotYet)
    }

    // Durability.

    /// Makes a mark of everything that was done: it is durable when the mark is settled.
    ///
    /// # Errors
    ///
    /// `Poisoned`, `ReadOnly`.
    pub fn sync_all(&self) -> Result<Mark, StoreError> {
        self.shared.may_write()?;
        Ok(self.mark_everything())
    }

    /// Asks for a checkpoint; the next opening begins with it when the mark is settled.
    ///
    /// # Errors
    ///
    /// `Poisoned`, `ReadOnly`, `Timeout`.
    pub fn checkpoint(&self, timeout: Duration) -> Result<(), StoreError> {
        self.shared.may_write()?;
        let goal = {
            let mut engine = self.shared.engine();
            engine.want_checkpoint();
            // One that is under way began before what was done last.
            engine.checkpoints() + 1 + u64::from(engine.is_copying())
        };
        self.shared.work.store(true, Ordering::Release);
        self.wait_until("a checkpoint", timeout, || Ok(self.shared.engine().checkpoints() >= goal))
    }

    /// Asks for a checkpoint without waiting for it.
    ///
    /// # Errors
    ///
    /// `Poisoned`, `ReadOnly`.
    pub fn ask_for_checkpoint(&self) -> Result<(), StoreError> {
        self.shared.may_write()?;
        self.shared.engine().want_checkpoint();
        self.shared.work.store(true, Ordering::Release);
        Ok(())
    }

    /// Waits for a mark, and lends the store's engine the time.
    ///
    /// # Errors
    ///
    /// `Poisoned` if it will never be settled, `Timeout`.
    pub fn wait(&self, mark: Mark, timeout: Duration) -> Result<(), StoreError> {
        self.wait_until("making a store durable", timeout, || {
            self.settled(mark).map_err(|error| match self.shared.poison() {
                Some(what) => StoreError::Poisoned { what: what.into() },
                None => StoreError::Device { what: "making a store durable", source: error },
            })
        })
    }

    fn wait_until(
        &self,
        what: &'static str,
        timeout: Duration,
        mut is_so: impl FnMut() -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let since = Instant::now();
        while !is_so()? {
            self.shared.may_write()?;
            self.turn();
            if since.elapsed() >= timeout {
                return Err(StoreError::Timeout { what, millis: timeout.as_millis() as u64 });
            }
            core::hint::spin_loop();
        }
        Ok(())
    }

    /// Makes the store read-only because of a failure that makes it impossible to say what is durable.
    pub fn poison(&self, error: &BlockError) {
        self.shared.poison_with(error.to_string());
    }

    /// Says what failed, if the store is read-only because of it.
    pub fn poisoned(&self) -> Option<&str> {
        self.shared.poison()
    }

    // What it is.

    /// Returns who the store is.
    pub fn info(&self) -> StoreInfo {
        let shared = &self.shared;
        let layout = &shared.layout;
        StoreInfo {
            uuid: shared.uuid,
            epoch: shared.engine().superblock().epoch,
            created: shared.created,
            capacity: ByteLen(layout.blocks << layout.block_shift),
            data: ByteLen(layout.units << layout.unit_shift),
            unit: ByteLen(1 << layout.unit_shift),
        }
    }

    /// Returns what the journal has done since the store was opened.
    pub fn counts(&self) -> JournalCounts {
        self.shared.engine().counts()
    }

    /// Returns the bytes of the journal, and those that a crash now would leave to be replayed.
    pub fn journal(&self) -> (u64, u64) {
        let layout = &self.shared.layout;
        let used = self.shared.engine().journal_used();
        (layout.journal_blocks() << layout.block_shift, used << layout.block_shift)
    }

    /// Returns how full the store is, and what it has done. Walks the free space.
    pub fn statistics(&self) -> StoreStatistics {
        let shared = &self.shared;
        let layout = &shared.layout;
        StoreStatistics {
            objects: shared.objects(),
            extents: shared.extents(),
            unit: 1 << layout.unit_shift,
            units: layout.units,
            leaving: shared.leaving_units(),
            free: shared.space.statistics(),
            journal: self.journal(),
            map: shared.map_bytes(),
            counts: self.counts(),
        }
    }

    /// Returns what opening had to pass over: damaged copies of what was there whole elsewhere.
    pub fn warnings(&self) -> &[StoreError] {
        &self.shared.warnings
    }

    /// Returns the device.
    pub fn device(&self) -> &Arc<dyn crate::block::BlockDevice> {
        &self.shared.device
    }

    /// Returns the bytes of memory that the maps of all objects and the free space take.
    pub fn heap_bytes(&self) -> (usize, usize) {
        let of = |id| self.shared.find(id).map_or(0, |object| object.read().tree.heap_bytes());
        (self.shared.ids().into_iter().map(of).sum(), self.shared.space.heap_bytes())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("uuid", &self.shared.uuid).finish_non_exhaustive()
    }
}

/// The most attributes of an object.
const ATTRIBUTES_MAX: usize = 64;

fn check_name(name: &str) -> Result<(), StoreError> {
    let problem = match name.len() {
        0 => "a name has at least one byte",
        len if len > NAME_BYTES_MAX => "a name has at most 255 bytes",
        _ if name.contains('\0') => "a name has no zero byte",
        _ => return Ok(()),
    };
    Err(StoreError::Name { len: name.len(), problem })
}

/// Returns the name that bytes are, as they come from a command line or from C.
///
/// # Errors
///
/// `Name`, also where they are not UTF-8.
pub fn name_of(bytes: &[u8]) -> Result<&str, StoreError> {
    let problem = "a name is UTF-8";
    let name =
        core::str::from_utf8(bytes).map_err(|_| StoreError::Name { len: bytes.len(), problem })?;
    check_name(name)?;
    Ok(name)
}

fn check_attribute(key: &str, value: &[u8]) -> Result<(), StoreError> {
    match (key.len(), value.len()) {
        (0, _) => Err(attribute(key, "a key has at least one byte")),
        (len, _) if len > KEY_BYTES_MAX => Err(attribute(key, "a key has at most 64 bytes")),
        (_, len) if len > VALUE_BYTES_MAX => Err(attribute(key, "a value has at most 1024 bytes")),
        _ => Ok(()),
    }
}

fn attribute(key: &str, problem: &'static str) -> StoreError {
    StoreError::Attribute { key: key.into(), problem }
}
