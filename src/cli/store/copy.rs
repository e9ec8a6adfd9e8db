//! Bytes into objects and out of them: several aligned requests in flight, nothing copied twice.
//!
//! What is put in is written under a name of its own first, and gets the name that was asked for when all of it is
//! there: whatever happens meanwhile, the name belongs to a whole object, the new one or the old.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use anyhow::{Context, anyhow};

use super::super::failure::Failure;
use super::super::output::print_piece;
use super::super::progress::CopyLine;
use super::super::signals;
use super::{Ground, existing, taken, typed};
use crate::block::BlockError;
use crate::dma::{Access, DmaBuf};
use crate::units::FileId;
use crate::volume::{Handle, Io, Options, Refused, Store, StoreError};

/// Bytes of one request, and how many are in flight.
const PIECE: u64 = 1 << 20;
const DEPTH: u64 = 8;

/// By how much an object is made longer at least while nobody knows how long it will be: writes that move its end
/// would wait for each other.
const STRIDE: u64 = 64 << 20;

/// How the names of objects begin that are not whole yet.
const UNFINISHED: &str = ".udirect-put-";

/// Copies a file into an object.
pub(super) fn put(
    address: &str,
    file: &Path,
    name: Option<&OsStr>,
    replace: bool,
) -> Result<(), Failure> {
    let name = match name {
        Some(name) => typed(name)?,
        None if is_stream(file) => {
            return Err(Failure::usage(anyhow!("standard input needs a NAME for its object")));
        }
        None => typed(file.file_name().unwrap_or(file.as_os_str()))?,
    };
    let mut source = Source::open(file)?;
    let stop = signals::stop_flag().context("signal handlers").map_err(Failure::device)?;
    let ground = Ground::to_write(address)?;
    if ground.store.lookup(name).is_ok() && !replace {
        return Err(taken(&ground, StoreError::NameTaken(name.into())));
    }
    let unfinished = format!("{UNFINISHED}{:016x}", fastrand::u64(..));
    let store = &ground.store;
    let id =
        ground.change(|| store.create(Some(&unfinished))).map_err(|error| ground.blame(error))?;
    let line = CopyLine::of(name, source.len);
    let filled = fill(&ground, id, &mut source, &stop, &line);
    drop(line);
    let named = filled.and_then(|()| {
        ground.change(|| store.rename(id, name, replace)).map_err(|error| taken(&ground, error))
    });
    if let Err(failure) = named {
        // Where this fails as well the store is read-only, and the first failure says why.
        let removed = ground.change(|| store.remove(id));
        let _ = removed.map_err(|error| ground.blame(error)).and_then(|()| ground.sync());
        return Err(failure);
    }
    ground.sync()
}

fn is_stream(file: &Path) -> bool {
    file == Path::new("-")
}

/// Where bytes come from.
struct Source {
    reader: Box<dyn Read>,
    name: String,
    /// How many there are, as far as anybody knows.
    len: Option<u64>,
}

impl Source {
    fn open(path: &Path) -> Result<Self, Failure> {
        if is_stream(path) {
            let (reader, name) = (Box::new(io::stdin()), "standard input".into());
            return Ok(Self { reader, name, len: None });
        }
        let name = path.display().to_string();
        let opened = File::open(path).and_then(|file| file.metadata().map(|data| (file, data)));
        let (file, data) = opened.with_context(|| name.clone()).map_err(Failure::usage)?;
        if data.is_dir() {
            return Err(Failure::usage(anyhow!("{name} is a directory")));
        }
        // Files of /proc say that they are empty.
        let len = Some(data.len()).filter(|len| data.is_file() && *len > 0);
        Ok(Self { reader: Box::new(file), name, len })
    }

    /// Reads until the buffer is full or nothing is left.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(Failure::io(anyhow::Error::from(error).context(self.name.clone())));
                }
            }
        }
        Ok(filled)
    }
}

/// Writes all of a source to an object.
fn fill(
    ground: &Ground,
    id: FileId,
    source: &mut Source,
    stop: &AtomicBool,
    line: &CopyLine,
) -> Result<(), Failure> {
    let mut lane = Lane::open(ground, source.len)?;
    let mut size = source.len.unwrap_or(0);
    if size > 0 {
        let taken = lane.handle.object(id).preallocate(0..size, false);
        taken.map_err(|error| ground.blame(error))?;
    }
    let mut at = 0;
    loop {
        let mut buffer = lane.buffer()?;
        let most = buffer.capacity();
        buffer.set_len(most);
        let count = source.read(&mut buffer)?;
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::io(anyhow!("ended by a signal: nothing was stored")));
        }
        if count == 0 {
            break;
        }
        if at + count as u64 > size {
            size = (at + count as u64).max(size + size.clamp(STRIDE, STRIDE << 4));
            lane.drain()?;
            lane.set_len(id, size)?;
        }
        lane.write(id, at, buffer, count)?;
        at += count as u64;
        line.show(at);
        if count < most {
            break;
        }
    }
    lane.drain()?;
    // A file may have changed while it was read.
    if at != size { lane.set_len(id, at) } else { Ok(()) }
}

/// Requests in flight, and the buffers for more.
struct Lane<'a> {
    ground: &'a Ground,
    handle: Handle<Store>,
    free: Vec<DmaBuf>,
    block: u64,
}

impl<'a> Lane<'a> {
    /// Opens a lane with as many buffers as `len` bytes need.
    fn open(ground: &'a Ground, len: Option<u64>) -> Result<Self, Failure> {
        let device = &ground.opened.device;
        let handle = ground.volume().handle(&Options::default()).map_err(Failure::device)?;
        let block = u64::from(device.geometry().lba_size.bytes());
        let depth = DEPTH.min(handle.capacity() as u64);
        let count = len.map_or(depth, |len| len.div_ceil(PIECE).clamp(1, depth));
        let bytes = len.map_or(PIECE, |len| len.next_multiple_of(block).clamp(block, PIECE));
        let buffer = |_| device.dma().buffer(bytes as usize, Access::Both);
        let free = (0..count).map(buffer).collect::<Result<_, _>>().map_err(Failure::device)?;
        Ok(Self { ground, handle, free, block })
    }

    /// Returns a buffer, once there is one.
    fn buffer(&mut self) -> Result<DmaBuf, Failure> {
        loop {
            if let Some(buffer) = self.free.pop() {
                return Ok(buffer);
            }
            self.reap()?;
        }
    }

    /// Writes the first `count` bytes of a buffer, which begin at a block.
    fn write(
        &mut self,
        id: FileId,
        at: u64,
        mut buffer: DmaBuf,
        count: usize,
    ) -> Result<(), Failure> {
        // The last block is filled up, not read: what follows the end is zero anyway.
        let whole = count.next_multiple_of(self.block as usize);
        buffer.set_len(whole);
        buffer[count..].fill(0);
        let excess = (whole - count) as u32;
        let mut io = Io { excess, ..Io::write(at, buffer, at) }.of(id);
        loop {
            match self.handle.submit(io) {
                Ok(()) => break,
                Err(Refused::Full(back)) => {
                    io = back;
                    self.reap()?;
                }
                Err(Refused::Invalid(_, error)) => return Err(self.failed(error)),
            }
        }
        self.handle.ring();
        Ok(())
    }

    /// Takes in what is finished.
    fn reap(&mut self) -> Result<(), Failure> {
        let (mut failed, free) = (None, &mut self.free);
        self.handle.poll(usize::MAX, &mut |done| {
            free.extend(done.memory.into_one());
            failed = failed.take().or(done.result.err());
        });
        failed.map_or(Ok(()), |error| Err(self.failed(error)))
    }

    /// Waits for everything in flight.
    fn drain(&mut self) -> Result<(), Failure> {
        while self.handle.inflight() > 0 {
            self.reap()?;
        }
        Ok(())
    }

    fn set_len(&mut self, id: FileId, size: u64) -> Result<(), Failure> {
        self.handle.object(id).set_len(size).map_err(|error| self.ground.blame(error))
    }

    fn failed(&self, error: BlockError) -> Failure {
        Failure::io(anyhow::Error::from(error).context(self.ground.address.clone()))
    }
}

/// Takes the bytes of an object, in order; says whether it wants more.
type Sink<'a> = dyn FnMut(&[u8]) -> Result<bool, Failure> + 'a;

/// Reads all of an object.
fn pour(ground: &Ground, id: FileId, name: &str, sink: &mut Sink<'_>) -> Result<(), Failure> {
    let size = ground.store.stat(id).map_err(|error| ground.blame(error))?.size;
    let line = CopyLine::of(name, Some(size));
    let mut lane = Lane::open(ground, Some(size))?;
    let mut arrived: BTreeMap<u64, DmaBuf> = BTreeMap::new();
    let (mut next, mut due) = (0, 0);
    while due < size {
        next = lane.read_ahead(id, next, size)?;
        lane.take(size, &mut arrived)?;
        while let Some(buffer) = arrived.remove(&due) {
            due += buffer.len() as u64;
            let more = sink(&buffer)?;
            lane.free.push(buffer);
            line.show(due);
            if !more {
                return Ok(());
            }
        }
    }
    Ok(())
}

impl Lane<'_> {
    /// Asks for as much as there are buffers, from `next` on; returns where it stopped.
    fn read_ahead(&mut self, id: FileId, mut next: u64, size: u64) -> Result<u64, Failure> {
        while next < size {
            let Some(mut buffer) = self.free.pop() else { break };
            let len = PIECE.min((size - next).next_multiple_of(self.block));
            buffer.set_len(len as usize);
            match self.handle.submit(Io::read(next, buffer, next).of(id)) {
                Ok(()) => next += len,
                Err(Refused::Full(io)) => {
                    self.free.extend(io.memory.into_one());
                    break;
                }
                Err(Refused::Invalid(_, error)) => return Err(self.failed(error)),
            }
        }
        self.handle.ring();
        Ok(next)
    }

    /// Takes in what was read, cut to what there is.
    fn take(&mut self, size: u64, arrived: &mut BTreeMap<u64, DmaBuf>) -> Result<(), Failure> {
        let mut failed = None;
        let mut short = None;
        self.handle.poll(usize::MAX, &mut |done| {
            failed = failed.take().or(done.result.err());
            let Some(mut buffer) = done.memory.into_one() else { return };
            let wanted = (buffer.len() as u64).min(size - done.tag);
            if done.bytes < wanted {
                short = Some(done.tag + done.bytes);
            }
            buffer.set_len(wanted as usize);
            arrived.insert(done.tag, buffer);
        });
        match (failed, short) {
            (Some(error), _) => Err(self.failed(error)),
            (None, Some(at)) => {
                Err(Failure::io(anyhow!("the object ended at byte {at} of {size}")))
            }
            (None, None) => Ok(()),
        }
    }
}

/// Writes an object to stdout. A reader that has seen enough ends it, and that is no failure.
pub(super) fn cat(address: &str, name: &OsStr) -> Result<(), Failure> {
    let (ground, id) = existing(address, name)?;
    pour(&ground, id, &name.to_string_lossy(), &mut print_piece)
}

/// Copies an object into a file.
pub(super) fn get(address: &str, name: &OsStr, path: &Path, force: bool) -> Result<(), Failure> {
    if is_stream(path) {
        return cat(address, name);
    }
    if !force && fs::symlink_metadata(path).is_ok() {
        return Err(exists(path));
    }
    let (ground, id) = existing(address, name)?;
    let (mut file, new) = make(path, force)?;
    let copied = pour(&ground, id, &name.to_string_lossy(), &mut |bytes| {
        file.write_all(bytes).map_err(|error| unwritten(path, error))?;
        Ok(true)
    });
    let copied = copied.and_then(|()| match file.sync_all() {
        // A pipe or a terminal keeps nothing.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced.map_err(|error| unwritten(path, error)),
    });
    if copied.is_err() && new {
        // A part of an object is not what was asked for; one that stays is named by the failure.
        let _ = fs::remove_file(path);
    }
    copied
}

/// Opens the file to write to; says whether it was not there before.
fn make(path: &Path, force: bool) -> Result<(File, bool), Failure> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && force => {
            let file = OpenOptions::new().write(true).truncate(true).open(path);
            let file = file.with_context(|| path.display().to_string()).map_err(Failure::usage)?;
            Ok((file, false))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(exists(path)),
        Err(error) => {
            Err(Failure::usage(anyhow::Error::from(error).context(path.display().to_string())))
        }
    }
}

fn exists(path: &Path) -> Failure {
    Failure::usage(anyhow!("{} exists (--force overwrites it)", path.display()))
}

fn unwritten(path: &Path, error: io::Error) -> Failure {
    Failure::device(anyhow::Error::from(error).context(path.display().to_string()))
}
