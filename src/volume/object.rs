//! Objects of a store: named, sized, made where they are written.
//!
//! A volume over a store has objects in the place of one range of bytes. Its handles read and write them like any
//! volume's; [`Object`] is one of them at one handle, with calls that return when it is done. What changes the shape of
//! an object keeps its writes out for the moment, and the handle polls while those under way end.
#![forbid(unsafe_code)]

use core::ops::Range;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::time::Instant;

use super::edges::Turn;
use super::{Action, Handle, Io, IoVector, Volume};
use crate::block::{BlockDevice, BlockError, Cause, Durability, End, MapBlocks};
use crate::dma::{Access, DmaBuf};
use crate::extent::{Exclusion, ObjectInfo, OpenOptions, Store, StoreError};
use crate::units::FileId;

/// The longest memory that a blocking call takes at once.
const PIECE_BYTES: usize = 1 << 20;

impl Volume<Store> {
    /// Opens the store of a device.
    ///
    /// ```
    /// use udirect::extent::{FormatOptions, OpenOptions, Store};
    /// use udirect::volume::{Options, Volume};
    ///
    /// let device = udirect::open::open("mem:64MiB")?.device;
    /// Store::format(&device, &FormatOptions::default())?;
    /// let volume = Volume::open(device, &OpenOptions::default())?;
    /// let mut handle = volume.handle(&Options::default())?;
    ///
    /// let mut journal = handle.create(Some("journal"))?;
    /// journal.append(b"first")?;
    /// let at = journal.append(b", second")?;
    /// journal.sync()?;
    /// assert_eq!((at, journal.len()?), (5, 13));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Store::open`].
    pub fn open(device: Arc<dyn BlockDevice>, options: &OpenOptions) -> Result<Self, StoreError> {
        let store = Store::open(&device, options)?;
        Ok(Self::over(device, store))
    }

    /// Returns the store.
    pub fn store(&self) -> &Store {
        self.map()
    }
}

impl Handle<Store> {
    /// Makes an object.
    ///
    /// # Errors
    ///
    /// Those of [`Store::create`].
    pub fn create(&mut self, name: Option<&str>) -> Result<Object<'_>, StoreError> {
        let id = self.patiently(|store| store.create(name))?;
        Ok(self.object(id))
    }

    /// Finds an object by its name.
    ///
    /// # Errors
    ///
    /// `NoName`.
    pub fn open_object(&mut self, name: &str) -> Result<Object<'_>, StoreError> {
        let id = self.map().lookup(name)?;
        Ok(self.object(id))
    }

    /// Returns an object by its number, whether it is there or not.
    pub fn object(&mut self, id: FileId) -> Object<'_> {
        Object { handle: self, id, durability: Durability::Lazy }
    }

    /// Removes an object.
    ///
    /// # Errors
    ///
    /// Those of [`Store::remove`].
    pub fn remove(&mut self, id: FileId) -> Result<(), StoreError> {
        self.patiently(|store| store.remove(id))
    }

    /// Gives an object a name, which with `replace` may be another's.
    ///
    /// # Errors
    ///
    /// Those of [`Store::rename`].
    pub fn rename(&mut self, id: FileId, name: &str, replace: bool) -> Result<(), StoreError> {
        self.patiently(|store| store.rename(id, name, replace))
    }

    /// Makes everything durable that was done to the store.
    ///
    /// # Errors
    ///
    /// `Poisoned`, `Timeout`.
    pub fn sync_all(&mut self) -> Result<(), StoreError> {
        let mark = self.map().sync_all()?;
        let (since, mut idle) = (Instant::now(), 0);
        loop {
            match self.map().settled(mark) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(source) => {
                    return Err(match self.map().poisoned() {
                        Some(what) => StoreError::Poisoned { what: what.into() },
                        None => StoreError::Device { what: "making a store durable", source },
                    });
                }
            }
            self.wait_a_moment(since, "making a store durable", &mut idle)?;
        }
    }

    /// Tries again while the journal is full, and polls meanwhile: what keeps it full may be this handle's own.
    fn patiently<T>(
        &mut self,
        mut try_it: impl FnMut(&Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (since, mut idle) = (Instant::now(), 0);
        loop {
            match try_it(self.map()) {
                Err(StoreError::NotYet) => {
                    self.wait_a_moment(since, "the journal", &mut idle)?;
                }
                result => return result,
            }
        }
    }

    fn wait_a_moment(
        &mut self,
        since: Instant,
        what: &'static str,
        idle: &mut u32,
    ) -> Result<(), StoreError> {
        let timeout = self.timeout();
        if since.elapsed() >= timeout {
            return Err(StoreError::Timeout { what, millis: timeout.as_millis() as u64 });
        }
        self.ring();
        self.idle(idle);
        Ok(())
    }
}

/// An object at the handle of one core.
pub struct Object<'h> {
    handle: &'h mut Handle<Store>,
    id: FileId,
    durability: Durability,
}

impl Object<'_> {
    /// Says how durable writes are when they return; nothing is, until said.
    #[must_use]
    pub fn with(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Returns its number, for requests of one's own: `Io::read(…).of(id)`.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Returns what is known of it.
    ///
    /// # Errors
    ///
    /// `NoObject`.
    pub fn info(&self) -> Result<ObjectInfo, StoreError> {
        self.handle.map().stat(self.id)
    }

    /// Returns its size in bytes.
    ///
    /// # Errors
    ///
    /// `NoObject`.
    pub fn len(&self) -> Result<u64, StoreError> {
        self.end().map(|end| end.size)
    }

    /// Says whether it has no byte.
    ///
    /// # Errors
    ///
    /// `NoObject`.
    pub fn is_empty(&self) -> Result<bool, StoreError> {
        self.len().map(|len| len == 0)
    }

    /// Reads the bytes from `offset` on; returns how many there were.
    ///
    /// # Errors
    ///
    /// `NotFound`, and the device's.
    pub fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<usize, BlockError> {
        self.read_vectored_at(&mut [IoSliceMut::new(buffer)], offset)
    }

    /// Reads the bytes from `offset` on into several slices, one after the other; returns how many there were.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Self::read_at).
    pub fn read_vectored_at(
        &mut self,
        buffers: &mut [IoSliceMut<'_>],
        offset: u64,
    ) -> Result<usize, BlockError> {
        self.handle.read_file_at(self.id, buffers, offset)
    }

    /// Writes all bytes to `offset` and on, beyond the end as well: what lies between reads as zeroes.
    ///
    /// # Errors
    ///
    /// `NoSpace`, `NotFound`, `Invalid` beyond the largest size, `Poisoned`, and the device's. Some may have been
    /// written.
    pub fn write_at(&mut self, buffer: &[u8], offset: u64) -> Result<(), BlockError> {
        self.write_vectored_at(&[IoSlice::new(buffer)], offset)
    }

    /// Writes several slices, one after the other, to `offset` and on.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Self::write_at).
    pub fn write_vectored_at(
        &mut self,
        buffers: &[IoSlice<'_>],
        offset: u64,
    ) -> Result<(), BlockError> {
        let total = buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        let (end, most) = (offset.saturating_add(total), self.handle.map().size_max());
        if end > most {
            // Before the first byte of a write that would fail at its last.
            return Err(StoreError::TooLarge { size: end, most }.into());
        }
        self.handle.write_durably_at(self.id, buffers, offset, self.durability)
    }

    /// Writes bytes where the object ends, in one piece however many handles append; returns where they begin.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Self::write_at); nothing of them is part of the object then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64, BlockError> {
        let End { size, .. } = self.end()?;
        if bytes.is_empty() {
            return Ok(size);
        }
        let buffers: Result<Vec<DmaBuf>, BlockError> =
            bytes.chunks(PIECE_BYTES).map(|piece| self.filled(piece)).collect();
        let vector = buffers?.into_iter().fold(IoVector::new(), IoVector::with);
        let io = Io::write(0, vector, 0).of(self.id).with(self.durability);
        let done = self.handle.run_by(io, Handle::append_tagged);
        done.result.map(|()| self.handle.appended)
    }

    fn filled(&self, bytes: &[u8]) -> Result<DmaBuf, BlockError> {
        let memory = self.handle.domain().buffer(bytes.len(), Access::Both);
        let mut buffer = memory.map_err(|error| {
            let cause = Cause::Busy { what: error.to_string().into() };
            BlockError::from(cause).with_source(error)
        })?;
        buffer.copy_from_slice(bytes);
        Ok(buffer)
    }

    /// Sets the size. A smaller one cuts the object off, a larger one adds zeroes.
    ///
    /// # Errors
    ///
    /// `TooLarge`, `NoObject`, `NoSpace`, `Timeout` while writes that are under way do not end, and those of a store
    /// that cannot be written.
    pub fn set_len(&mut self, size: u64) -> Result<(), StoreError> {
        let most = self.handle.map().size_max();
        if size > most {
            return Err(StoreError::TooLarge { size, most });
        }
        let _turn = self.turn()?;
        self.zero_behind_the_end(size)?;
        self.reshape(|exclusion| exclusion.set_len(size))
    }

    /// Gives a range of bytes space of its own, so that writes to it do not run out of it; what is new reads as zeroes.
    /// All of it, or nothing. The object grows to the end of the range, unless `keep_size`.
    ///
    /// # Errors
    ///
    /// As [`set_len`](Self::set_len).
    pub fn preallocate(&mut self, bytes: Range<u64>, keep_size: bool) -> Result<(), StoreError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let _turn = self.turn()?;
        self.reshape(|exclusion| exclusion.preallocate(bytes.clone()))?;
        if keep_size || bytes.end <= self.len()? {
            return Ok(());
        }
        self.zero_behind_the_end(bytes.end)?;
        self.reshape(|exclusion| exclusion.set_len(bytes.end))
    }

    /// Makes a range of bytes read as zeroes, and frees the whole units in it. The size stays.
    ///
    /// # Errors
    ///
    /// As [`set_len`](Self::set_len).
    pub fn punch(&mut self, bytes: Range<u64>) -> Result<(), StoreError> {
        let unit = self.handle.map().info().unit.0;
        let end = bytes.end.min(self.len()?);
        let (first, last) = (bytes.start.next_multiple_of(unit), end - end % unit);
        // The parts of units at the ends are zeroed, where there is anything.
        if first > last {
            self.zero(bytes.start..end)?;
        } else {
            self.zero(bytes.start..first)?;
            self.zero(last..end)?;
        }
        let _turn = self.turn()?;
        // Beyond the end there may be preallocated units.
        self.reshape(|exclusion| exclusion.punch(bytes.clone()))
    }

    /// Makes everything that was done to the object durable, with its times.
    ///
    /// # Errors
    ///
    /// `Poisoned` after a failure, until the store is reopened; `NotFound`, `Timeout`.
    pub fn sync(&mut self) -> Result<(), BlockError> {
        self.handle.run(Io::bare(0, Action::Flush, 0).of(self.id)).result
    }

    /// Gives it an attribute.
    ///
    /// # Errors
    ///
    /// Those of [`Store::set_attribute`].
    pub fn set_attribute(&mut self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let id = self.id;
        self.handle.patiently(|store| store.set_attribute(id, key, value))
    }

    /// Returns one of its attributes.
    ///
    /// # Errors
    ///
    /// `NoObject`.
    pub fn attribute(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.handle.map().attribute(self.id, key)
    }

    fn end(&self) -> Result<End, StoreError> {
        self.handle.map().end(self.id).ok_or(StoreError::NoObject(self.id))
    }

    /// Waits for the turn at the end of the object.
    fn turn(&mut self) -> Result<Turn, StoreError> {
        let turn = self.handle.turn_at_end(self.id);
        let (since, mut idle) = (Instant::now(), 0);
        while !turn.has_come() {
            self.handle.wait_a_moment(since, "a write at the end of the object", &mut idle)?;
        }
        Ok(turn)
    }

    /// Zeroes what follows the end in its unit, as far as the end is going to move over it. The caller has the turn.
    fn zero_behind_the_end(&mut self, size: u64) -> Result<(), StoreError> {
        let End { size: old, loose } = self.end()?;
        let end = loose.min(size);
        if old >= end {
            return Ok(());
        }
        let zeroes = self.filled(&vec![0; (end - old) as usize]);
        let zeroes = zeroes.map_err(failed("zeroing behind the end"))?;
        let io = Io::write(old, zeroes, 0).of(self.id);
        let done = self.handle.run_by(io, Handle::submit_with_turn);
        done.result.map_err(failed("zeroing behind the end"))
    }

    /// Zeroes less than a unit within the object, where it has anything.
    fn zero(&mut self, bytes: Range<u64>) -> Result<(), StoreError> {
        if bytes.is_empty() || !self.handle.map().has_data(self.id, bytes.start)? {
            return Ok(());
        }
        let zeroes = vec![0; (bytes.end - bytes.start) as usize];
        let result = self.handle.write_file_at(self.id, &[IoSlice::new(&zeroes)], bytes.start);
        result.map_err(failed("zeroing a part of a unit"))
    }

    /// Changes the shape of the object once every write that is under way has ended.
    fn reshape(
        &mut self,
        change: impl Fn(&Exclusion) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let (since, mut idle) = (Instant::now(), 0);
        loop {
            // The journal may be full until writes of this handle end, which the exclusion must not keep out.
            let result = match self.handle.map().exclude(self.id)? {
                Some(exclusion) if exclusion.is_alone() => change(&exclusion),
                Some(exclusion) => {
                    self.await_writes(&exclusion, since, &mut idle)?;
                    change(&exclusion)
                }
                None => Err(StoreError::NotYet),
            };
            match result {
                Err(StoreError::NotYet) => {
                    self.handle.wait_a_moment(since, "a change of an object's shape", &mut idle)?;
                }
                result => return result,
            }
        }
    }

    fn await_writes(
        &mut self,
        exclusion: &Exclusion,
        since: Instant,
        idle: &mut u32,
    ) -> Result<(), StoreError> {
        while !exclusion.is_alone() {
            self.handle.wait_a_moment(since, "writes of an object", idle)?;
        }
        Ok(())
    }
}

fn failed(what: &'static str) -> impl FnOnce(BlockError) -> StoreError {
    move |source| match source.kind() {
        crate::block::ErrorKind::NoSpace => StoreError::NoSpace { what: source.to_string() },
        _ => StoreError::Device { what, source },
    }
}
