//! A namespace: a medium cut into logical blocks, and the blocks that are spoilt.
//!
//! [`Namespace::range`] turns blocks into bytes and is the one place where they are held against the
//! capacity. `io` reads and writes through it, `admin` formats it, `identify` describes it.
//! Invariant: a [`Range`] lies within the medium as it is formatted now.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, Horizon, PowerIsCut};
use super::interval::IntervalSet;
use super::media::Media;
use super::options::{MetadataOptions, NamespaceOptions, SoftError};
use crate::dma::Span;
use crate::spec::status::Status;
use crate::units::LbaSize;

/// A medium cut into logical blocks.
pub(super) struct Namespace {
    media: Media,
    /// Bytes of data; metadata, if there is any, comes after it on the medium.
    data_bytes: u64,
    metadata: Option<MetadataOptions>,
    /// Base-two logarithm of the block; changed by Format NVM while every queue is held.
    shift: AtomicU8,
    /// Whether `spoilt` has anything in it, so that a read need not lock to know.
    any_spoilt: AtomicBool,
    spoilt: Mutex<IntervalSet>,
    /// Whether it was said why the medium fails. Every command has its status; a disk that is full fails
    /// millions of them for one reason.
    complained: AtomicBool,
}

/// A range of bytes that lies within the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// First byte.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u64,
}

impl Namespace {
    /// Opens the medium.
    pub(super) fn open(options: &NamespaceOptions) -> Result<Self, SoftError> {
        let block = options.lba_size.bytes();
        let check = |bytes: u64| match bytes != 0 && options.lba_size.divides(bytes) {
            true => Ok(()),
            false => Err(SoftError::Capacity { bytes, block }),
        };
        // Before the medium is opened, since that may make a file.
        options.media.bytes().map_or(Ok(()), check)?;
        options.media.lba_size().map_or(Ok(()), |disk| same_block(disk, options.lba_size))?;
        let Some(metadata) = options.metadata else {
            let media = Media::open(&options.media)?;
            check(media.bytes())?;
            let data_bytes = media.bytes();
            return Ok(Self::of(media, data_bytes, options));
        };
        let (data, more) = (u64::from(block), u64::from(metadata.bytes));
        let media = Media::open(&options.media.with_metadata(data, more)?)?;
        let (bytes, whole) = (media.bytes(), data + more);
        if bytes == 0 || !bytes.is_multiple_of(whole) {
            return Err(SoftError::Capacity { bytes, block: block + u32::from(metadata.bytes) });
        }
        Ok(Self::of(media, bytes / whole * data, options))
    }

    fn of(media: Media, data_bytes: u64, options: &NamespaceOptions) -> Self {
        Self {
            media,
            data_bytes,
            metadata: options.metadata,
            shift: AtomicU8::new(options.lba_size.shift()),
            any_spoilt: AtomicBool::new(false),
            spoilt: Mutex::default(),
            complained: AtomicBool::new(false),
        }
    }

    /// Returns the base-two logarithm of the block.
    #[inline]
    pub(super) fn shift(&self) -> u8 {
        self.shift.load(Ordering::Relaxed)
    }

    /// Returns the capacity in blocks.
    #[inline]
    pub(super) fn blocks(&self) -> u64 {
        self.data_bytes >> self.shift()
    }

    /// Returns the capacity in bytes of data.
    pub(super) fn capacity(&self) -> u64 {
        self.data_bytes
    }

    /// Returns what is kept beside each block.
    #[inline]
    pub(super) fn metadata(&self) -> Option<MetadataOptions> {
        self.metadata
    }

    /// Returns where the metadata of a range is; an empty range where there is none.
    pub(super) fn metadata_range(&self, range: Range) -> Range {
        let bytes = self.metadata.map_or(0, |metadata| u64::from(metadata.bytes));
        let (first, count) = (range.offset >> self.shift(), range.len >> self.shift());
        Range { offset: self.data_bytes + first * bytes, len: count * bytes }
    }

    /// Returns the medium.
    #[inline]
    pub(super) fn media(&self) -> &Media {
        &self.media
    }

    /// Returns the disk with a volatile cache, if that is the medium.
    #[inline]
    pub(super) fn disk(&self) -> Option<&Disk> {
        self.media.disk()
    }

    /// Returns the bytes of `count` blocks from `first`.
    #[inline]
    pub(super) fn range(&self, first: u64, count: u64) -> Result<Range, Status> {
        match first.checked_add(count) {
            Some(end) if end <= self.blocks() => {
                let shift = self.shift();
                Ok(Range { offset: first << shift, len: count << shift })
            }
            _ => Err(Status::LBA_OUT_OF_RANGE),
        }
    }

    /// Reads part of a range.
    #[inline]
    pub(super) fn read(&self, offset: u64, to: Span<'_>) -> Result<(), Status> {
        self.media.read(offset, to).map_err(|error| self.unreadable(&error))
    }

    /// Writes part of a range.
    #[inline]
    pub(super) fn write(&self, offset: u64, from: Span<'_>) -> Result<(), Status> {
        self.media.write(offset, from).map_err(|error| self.unwritable(&error))
    }

    /// Says whether part of a range holds these bytes.
    pub(super) fn equals(&self, offset: u64, with: Span<'_>) -> Result<bool, Status> {
        self.media.equals(offset, with).map_err(|error| self.unreadable(&error))
    }

    /// Reads a range and lets the bytes go.
    pub(super) fn verify(&self, range: Range) -> Result<(), Status> {
        self.refuse_spoilt(range)?;
        self.media.verify(range.offset, range.len).map_err(|error| self.unreadable(&error))
    }

    /// Zeroes a range, and takes away what was beside its blocks.
    pub(super) fn zero(&self, range: Range) -> Result<(), Status> {
        self.heal(range);
        self.clear(range)?;
        if self.metadata.is_some() { self.clear(self.metadata_range(range)) } else { Ok(()) }
    }

    fn clear(&self, range: Range) -> Result<(), Status> {
        self.media.zero(range.offset, range.len).map_err(|error| self.unwritable(&error))
    }

    /// Copies a range to another offset.
    pub(super) fn copy(&self, from: Range, to: u64) -> Result<(), Status> {
        self.media.copy(from.offset, to, from.len).map_err(|error| self.unwritable(&error))
    }

    /// Makes durable what was written before a horizon.
    pub(super) fn flush(&self, horizon: Horizon) -> Result<(), Status> {
        self.media.flush(horizon).map_err(|error| self.unwritable(&error))
    }

    /// Makes ranges durable that were written. Not inlined: what most writes need is the question before it.
    #[inline(never)]
    pub(super) fn persist(&self, ranges: impl Iterator<Item = Range>) -> Result<(), Status> {
        self.media.persist(ranges).map_err(|error| self.unwritable(&error))
    }

    /// Makes everything durable before the host goes. Without power there is nothing left to do.
    pub(super) fn shut_down(&self) -> Result<(), Status> {
        match self.flush(Horizon::ALL) {
            Err(Status::ABORTED_POWER_LOSS) => Ok(()),
            result => result,
        }
    }

    /// Fails if any block of the range was made unreadable.
    #[inline]
    pub(super) fn refuse_spoilt(&self, range: Range) -> Result<(), Status> {
        if self.any_spoilt.load(Ordering::Acquire) { self.look_for_spoilt(range) } else { Ok(()) }
    }

    #[cold]
    fn look_for_spoilt(&self, range: Range) -> Result<(), Status> {
        if self.lock_spoilt().meets(range.offset, range.offset + range.len) {
            Err(Status::UNRECOVERED_READ)
        } else {
            Ok(())
        }
    }

    /// Makes a range unreadable until it is written.
    pub(super) fn spoil(&self, range: Range) {
        let mut spoilt = self.lock_spoilt();
        spoilt.insert(range.offset, range.offset + range.len);
        self.any_spoilt.store(true, Ordering::Release);
    }

    /// Makes a range readable, since it is being written.
    #[inline]
    pub(super) fn heal(&self, range: Range) {
        if self.any_spoilt.load(Ordering::Acquire) {
            self.heal_spoilt(range);
        }
    }

    #[cold]
    fn heal_spoilt(&self, range: Range) {
        let mut spoilt = self.lock_spoilt();
        spoilt.remove(range.offset, range.offset + range.len);
        self.any_spoilt.store(!spoilt.is_empty(), Ordering::Release);
    }

    /// Erases everything and cuts the medium anew. The caller holds every queue.
    pub(super) fn format(&self, size: LbaSize) -> Result<(), Status> {
        if self.disk().is_some_and(|disk| disk.lba_size() != size) {
            return Err(Status::INVALID_FORMAT);
        }
        // Not one block would be left.
        if self.data_bytes < u64::from(size.bytes()) {
            return Err(Status::INVALID_FORMAT);
        }
        // Other blocks would have room for more or less metadata than there is.
        if self.metadata.is_some() && size.shift() != self.shift() {
            return Err(Status::INVALID_FORMAT);
        }
        self.zero(Range { offset: 0, len: self.data_bytes })?;
        self.shift.store(size.shift(), Ordering::Release);
        self.flush(Horizon::ALL)
    }

    #[cold]
    fn unreadable(&self, error: &io::Error) -> Status {
        self.failed("medium cannot be read", error, Status::UNRECOVERED_READ)
    }

    #[cold]
    fn unwritable(&self, error: &io::Error) -> Status {
        self.failed("medium cannot be written", error, Status::WRITE_FAULT)
    }

    fn failed(&self, what: &str, error: &io::Error, status: Status) -> Status {
        if matches!(error.get_ref(), Some(cause) if cause.is::<PowerIsCut>()) {
            return Status::ABORTED_POWER_LOSS;
        }
        self.complain(what, error);
        status
    }

    /// Says why the medium fails: aloud the first time.
    fn complain(&self, what: &str, error: &io::Error) {
        if self.complained.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, "{what}");
        } else {
            tracing::warn!(%error, "{what}; further failures are not told");
        }
    }

    fn lock_spoilt(&self) -> MutexGuard<'_, IntervalSet> {
        self.spoilt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk keeps its blocks whole, and so cannot be cut otherwise.
fn same_block(disk: LbaSize, namespace: LbaSize) -> Result<(), SoftError> {
    let (disk, block) = (disk.bytes(), namespace.bytes());
    if disk == block { Ok(()) } else { Err(SoftError::Blocks { disk, block }) }
}
