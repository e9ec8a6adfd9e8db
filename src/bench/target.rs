//! What jobs are about: a device, or an object of the store on one.
//!
//! ```text
//!   filename ── ADDRESS          -> Ground without a store ─┐
//!           └── ADDRESS!OBJECT   -> Ground with a store ────┴-> Target of a worker
//! ```
//!
//! Every device is opened once, and every store, whatever the number of jobs. An object that is missing or too short
//! is laid out before anything is measured: its space is taken in one go and written from front to back, as fio does
//! with files. Nothing is written before all jobs have been checked.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::job::{Job, Size};
use super::runner::RunError;
use crate::block::{BlockDevice, BlockError, Geometry};
use crate::dma::{Access, DmaError};
use crate::open::{Opened, open, split_object};
use crate::units::FileId;
use crate::volume::{
    FormatOptions, Handle, Io, OpenError, OpenOptions, Options, Refused, Store, StoreError, Volume,
    name_of,
};

/// Bytes of one write of the layout, and how many are in flight.
const PIECE: u64 = 1 << 20;
const DEPTH: u64 = 8;

/// What the I/O of a worker goes to.
pub(super) enum Target {
    /// A whole device.
    Device(Volume),
    /// An object, and the bytes of it that jobs may touch.
    Object { volume: Volume<Store>, file: FileId, bytes: u64 },
}

impl Target {
    pub(super) fn device(&self) -> &Arc<dyn BlockDevice> {
        match self {
            Self::Device(volume) => volume.device(),
            Self::Object { volume, .. } => volume.device(),
        }
    }

    pub(super) fn geometry(&self) -> &Geometry {
        self.device().geometry()
    }

    /// Returns the bytes that there are.
    pub(super) fn capacity(&self) -> u64 {
        match self {
            Self::Device(volume) => volume.geometry().capacity().0,
            Self::Object { bytes, .. } => *bytes,
        }
    }
}

/// The devices of a run and what its jobs call them.
pub(super) struct Devices {
    /// What each `filename` is, in words of the grounds.
    subjects: BTreeMap<String, Subject>,
    grounds: BTreeMap<Place, Ground>,
}

/// Where a device is, and whether it is opened as a store. Memory is another one every time it is opened, so both may
/// be there.
type Place = (String, bool);

/// A device that is open.
struct Ground {
    /// Before the device that it is on.
    store: Option<Volume<Store>>,
    writable: bool,
    opened: Opened,
}

struct Subject {
    place: Place,
    object: Option<Object>,
}

/// An object of a job.
struct Object {
    name: String,
    /// Its number and size, once it is there.
    found: Option<(FileId, u64)>,
    /// The size that the jobs need.
    bytes: u64,
}

impl Devices {
    /// Opens everything that jobs name.
    pub(super) fn open(jobs: &[Job]) -> Result<Self, RunError> {
        check_names(jobs)?;
        let mut devices = Self { subjects: BTreeMap::new(), grounds: BTreeMap::new() };
        match jobs.iter().try_for_each(|job| devices.add(job, jobs)) {
            Ok(()) => Ok(devices),
            Err(error) => {
                devices.discard();
                Err(error)
            }
        }
    }

    fn add(&mut self, job: &Job, jobs: &[Job]) -> Result<(), RunError> {
        let filename = &job.filename;
        if self.subjects.contains_key(filename) {
            return Ok(());
        }
        let (address, object) = split_object(filename);
        let place = (address.to_owned(), object.is_some());
        if !self.grounds.contains_key(&place) {
            let opened = open(address)?;
            let ground = Ground { store: None, writable: false, opened };
            let ground = self.grounds.entry(place.clone()).or_insert(ground);
            if object.is_some() {
                ground.open_store(address, writes(address, jobs))?;
            }
        }
        let object = match (object, self.grounds[&place].store.as_ref()) {
            (Some(name), Some(volume)) => Some(Object::plan(name, filename, volume, jobs)?),
            _ => None,
        };
        self.subjects.insert(filename.clone(), Subject { place, object });
        Ok(())
    }

    /// Closes what was not used after all, and takes away what opening it has made.
    pub(super) fn discard(self) {
        for Ground { store, opened, .. } in self.grounds.into_values() {
            drop(store);
            opened.discard();
        }
    }

    /// Returns what jobs call the devices.
    pub(super) fn filenames(&self) -> impl Iterator<Item = &String> {
        self.subjects.keys()
    }

    fn ground(&self, filename: &str) -> &Ground {
        &self.grounds[&self.subjects[filename].place]
    }

    pub(super) fn device(&self, filename: &str) -> &Arc<dyn BlockDevice> {
        &self.ground(filename).opened.device
    }

    /// Says whether two jobs share a device.
    pub(super) fn are_one(&self, one: &str, other: &str) -> bool {
        self.subjects[one].place == self.subjects[other].place
    }

    /// Returns the queues that workers can have: a store has one of its own.
    pub(super) fn queues(&self, filename: &str) -> u32 {
        let ground = self.ground(filename);
        ground.opened.device.max_queues().saturating_sub(u32::from(ground.store.is_some()))
    }

    /// Returns the bytes that a job may touch, once its object is laid out.
    pub(super) fn capacity(&self, filename: &str) -> u64 {
        let geometry = self.device(filename).geometry();
        match &self.subjects[filename].object {
            // What it will be grown to is whole blocks, or is refused.
            Some(object) if object.is_short() => object.bytes,
            // What does not fill a block at the end is never touched.
            Some(object) => object.bytes & !(u64::from(geometry.lba_size.bytes()) - 1),
            None => geometry.capacity().0,
        }
    }

    /// Returns what a worker of a job works on.
    pub(super) fn target(&self, filename: &str) -> Target {
        let ground = self.ground(filename);
        let object = self.subjects[filename].object.as_ref();
        match (object.and_then(|object| object.found), &ground.store) {
            (Some((file, _)), Some(volume)) => {
                Target::Object { volume: volume.clone(), file, bytes: self.capacity(filename) }
            }
            _ => Target::Device(Volume::raw(Arc::clone(&ground.opened.device))),
        }
    }

    /// Makes every object as long as its jobs need it, and fills what that adds.
    pub(super) fn lay_out(
        &mut self,
        stop: &AtomicBool,
        announce: &mut dyn FnMut(&str, u64),
    ) -> Result<(), RunError> {
        let Self { subjects, grounds } = self;
        for subject in subjects.values_mut() {
            let Some(object) = subject.object.as_mut().filter(|object| object.is_short()) else {
                continue;
            };
            let address = &subject.place.0;
            let ground = grounds.get_mut(&subject.place).expect("it was opened");
            if !ground.writable {
                ground.open_store(address, true)?;
            }
            let volume = ground.store.as_ref().expect("it was opened as a store");
            let failed = |source| RunError::Store { address: address.clone(), source };
            object.lay_out(volume, stop, announce).map_err(failed)?;
        }
        Ok(())
    }
}

impl Ground {
    /// Opens the store. Memory gets one first, since nobody else could have made it; anything else is left alone.
    fn open_store(&mut self, address: &str, write: bool) -> Result<(), RunError> {
        let failed = |source| RunError::Store { address: address.to_owned(), source };
        let device = &self.opened.device;
        // Nobody opens a store twice.
        self.store = None;
        if address.starts_with("mem:") {
            Store::format(device, &FormatOptions::default()).map_err(failed)?;
        }
        let read_only = !write && !address.starts_with("mem:");
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        let store = Store::open(device, &options).map_err(failed)?;
        self.store = Some(Volume::over(Arc::clone(device), store));
        self.writable = !read_only;
        Ok(())
    }
}

/// Says whether any job writes to an object of the store at an address.
fn writes(address: &str, jobs: &[Job]) -> bool {
    let on_it = |job: &&Job| matches!(split_object(&job.filename), (at, Some(_)) if at == address);
    jobs.iter().filter(on_it).any(|job| job.rw.is_destructive())
}

/// Checks what can be checked of names before a device is opened.
fn check_names(jobs: &[Job]) -> Result<(), RunError> {
    for job in jobs {
        let problem = |problem: String| Err(RunError::Job { job: job.name.clone(), problem });
        let (address, Some(name)) = split_object(&job.filename) else { continue };
        if let Err(error) = name_of(name.as_bytes()) {
            return problem(error.to_string());
        }
        let whole = jobs.iter().any(|other| other.filename == address);
        if whole && !address.starts_with("mem:") {
            return problem(format!("{address} is a store here and a whole device in another job"));
        }
    }
    Ok(())
}

impl Object {
    /// Looks an object up, and works out how long it has to be.
    fn plan(
        name: &str,
        filename: &str,
        volume: &Volume<Store>,
        jobs: &[Job],
    ) -> Result<Self, RunError> {
        let store = volume.map();
        let found = store.lookup(name).and_then(|id| store.stat(id)).ok();
        let size = found.as_ref().map(|info| info.size);
        let mut bytes = size.unwrap_or(0);
        for job in jobs.iter().filter(|job| job.filename == filename) {
            match needed(job, size) {
                Some(end) => bytes = bytes.max(end),
                None => {
                    let problem = format!(
                        "there is no object {name:?}: size= in bytes says how large to make it"
                    );
                    return Err(RunError::Job { job: job.name.clone(), problem });
                }
            }
        }
        let found = found.map(|info| (info.id, info.size));
        Ok(Self { name: name.to_owned(), found, bytes })
    }

    fn is_short(&self) -> bool {
        self.found.is_none_or(|(_, size)| size < self.bytes)
    }

    /// Makes the object as long as it has to be. One that was not there before is gone if that fails.
    fn lay_out(
        &mut self,
        volume: &Volume<Store>,
        stop: &AtomicBool,
        announce: &mut dyn FnMut(&str, u64),
    ) -> Result<(), StoreError> {
        let memory = |error: OpenError| StoreError::NoSpace { what: error.to_string() };
        let mut handle = volume.handle(&Options::default()).map_err(memory)?;
        let (id, size) = match self.found {
            Some(found) => found,
            None => (handle.create(Some(&self.name))?.id(), 0),
        };
        let range = size..self.bytes;
        let laid = handle
            .object(id)
            .preallocate(range.clone(), false)
            .and_then(|()| {
                announce(&self.name, range.end - range.start);
                fill(volume, &mut handle, id, range, stop)
            })
            .and_then(|()| handle.sync_all());
        if laid.is_err() && self.found.is_none() {
            // Where this fails as well, the first failure says why.
            let _ = handle.remove(id).and_then(|()| handle.sync_all());
        }
        self.found = Some((id, self.bytes));
        laid
    }
}

/// Returns where the last worker of a job ends; nothing if only an object that is there could say so.
fn needed(job: &Job, size: Option<u64>) -> Option<u64> {
    let place = |offset: Size| match offset {
        Size::Bytes(bytes) => Some(bytes),
        Size::Percent(0) => Some(0),
        Size::Percent(_) => None,
    };
    let end = || {
        let Some(Size::Bytes(bytes)) = job.size.filter(|size| !size.is_zero()) else { return None };
        let step = place(job.offset_increment)?.checked_mul(u64::from(job.numjobs) - 1)?;
        place(job.offset)?.checked_add(step)?.checked_add(bytes)
    };
    // A part of what is there needs no more.
    end().or(size)
}

/// Writes a range from front to back: several requests in flight, none of them zeroes, which drives keep for nothing.
fn fill(
    volume: &Volume<Store>,
    handle: &mut Handle<Store>,
    file: FileId,
    range: core::ops::Range<u64>,
    stop: &AtomicBool,
) -> Result<(), StoreError> {
    let failed = |source: BlockError| StoreError::Device { what: "laying out an object", source };
    let memory = |error: DmaError| StoreError::NoSpace { what: error.to_string() };
    let block = u64::from(volume.geometry().lba_size.bytes());
    let mut at = range.start.next_multiple_of(block);
    let mut random = fastrand::Rng::with_seed(range.end);
    let mut free = Vec::new();
    for _ in 0..DEPTH.min(handle.capacity() as u64) {
        let buffer = volume.device().dma().buffer(PIECE as usize, Access::DeviceReads);
        let mut buffer = buffer.map_err(memory)?;
        random.fill(&mut buffer);
        free.push(buffer);
    }
    let mut result = Ok(());
    while at < range.end && result.is_ok() && !stop.load(Ordering::Relaxed) || handle.inflight() > 0
    {
        while at < range.end && result.is_ok() {
            let Some(mut buffer) = free.pop() else { break };
            let len = PIECE.min(range.end - at);
            buffer.set_len(len as usize);
            match handle.submit(Io::write(at, buffer, 0).of(file)) {
                Ok(()) => at += len,
                Err(Refused::Full(io)) => {
                    free.extend(io.memory.into_one());
                    break;
                }
                Err(Refused::Invalid(_, error)) => result = Err(failed(error)),
            }
        }
        handle.ring();
        handle.poll(usize::MAX, &mut |done| {
            free.extend(done.memory.into_one());
            if let Err(error) = done.result {
                result = Err(failed(error));
            }
        });
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(size: Option<Size>, offset: Size, numjobs: u32) -> Job {
        let offset_increment = Size::Bytes(if numjobs > 1 { 1000 } else { 0 });
        Job { size, offset, offset_increment, numjobs, ..Job::default() }
    }

    #[test]
    fn an_object_has_to_reach_where_the_last_worker_ends() {
        let bytes = |size| Some(Size::Bytes(size));
        assert_eq!(needed(&job(bytes(500), Size::Bytes(0), 1), None), Some(500));
        assert_eq!(needed(&job(bytes(500), Size::Bytes(70), 3), None), Some(2570));
        assert_eq!(needed(&job(bytes(500), Size::Bytes(70), 3), Some(9000)), Some(2570));
    }

    #[test]
    fn without_bytes_only_what_is_there_can_say_how_much() {
        let half = Some(Size::Percent(50));
        for size in [None, Some(Size::Bytes(0)), half] {
            assert_eq!(needed(&job(size, Size::Bytes(0), 1), None), None);
            assert_eq!(needed(&job(size, Size::Bytes(0), 1), Some(4096)), Some(4096));
        }
        let behind = job(Some(Size::Bytes(500)), Size::Percent(50), 1);
        assert_eq!(needed(&behind, None), None);
        assert_eq!(needed(&behind, Some(4096)), Some(4096));
    }
}
