//! Media: what keeps the bytes of a namespace, or pretends to.
//!
//! [`Media`] is RAM, a sparse file, a disk whose power can be cut, or nothing. `io` and `namespace` call it
//! with byte ranges that they have checked.
//! Invariant: every range lies within [`Media::bytes`]; the file stays locked while the medium lives.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use super::disk::{Disk, Horizon};
use super::namespace::Range;
use super::options::{MediaOptions, SoftError};
use crate::dma::{SharedBytes, Span};

/// What keeps the bytes.
pub(super) enum Media {
    /// Memory.
    Ram(SharedBytes),
    /// A sparse file.
    File(FileMedia),
    /// A disk with a volatile write cache. It takes whole blocks only.
    Disk(Arc<Disk>),
    /// Nothing.
    Null {
        /// The capacity that it claims.
        bytes: u64,
    },
}

/// A locked file.
pub(super) struct FileMedia {
    file: File,
    bytes: u64,
}

/// How much is copied or compared at once where there is no memory to do it in place.
const BOUNCE_BYTES: usize = 64 << 10;

impl Media {
    /// Opens or makes the medium.
    pub(super) fn open(options: &MediaOptions) -> Result<Self, SoftError> {
        match options {
            MediaOptions::Ram { bytes } => ram(*bytes),
            MediaOptions::File { path, bytes } => FileMedia::open(path, *bytes).map(Self::File),
            MediaOptions::Disk(disk) => Ok(Self::Disk(Arc::clone(disk))),
            MediaOptions::Null { bytes } => Ok(Self::Null { bytes: *bytes }),
        }
    }

    /// Returns the capacity.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Ram(memory) => memory.len() as u64,
            Self::File(file) => file.bytes,
            Self::Disk(disk) => disk.bytes(),
            Self::Null { bytes } => *bytes,
        }
    }

    /// Says whether [`prefetch`](Self::prefetch) does anything.
    pub(super) fn is_ram(&self) -> bool {
        matches!(self, Self::Ram(_))
    }

    /// Returns the disk, if it is one.
    #[inline]
    pub(super) fn disk(&self) -> Option<&Disk> {
        if let Self::Disk(disk) = self { Some(disk) } else { None }
    }

    /// Reads the bytes at `offset`.
    // Always: with a second caller, the stage, it would be a call for every piece of every command.
    #[inline(always)]
    pub(super) fn read(&self, offset: u64, to: Span<'_>) -> io::Result<()> {
        match self {
            Self::Ram(memory) => {
                to.copy_from(piece(memory, offset, to.len() as u64)?);
                Ok(())
            }
            Self::File(media) => to.read_file(&media.file, offset),
            Self::Disk(disk) => read_disk(disk, offset, to),
            Self::Null { .. } => Ok(()),
        }
    }

    /// Writes bytes at `offset`.
    // Always: with a second caller, the stage, it would be a call for every piece of every command.
    #[inline(always)]
    pub(super) fn write(&self, offset: u64, from: Span<'_>) -> io::Result<()> {
        match self {
            Self::Ram(memory) => {
                piece(memory, offset, from.len() as u64)?.copy_from(from);
                Ok(())
            }
            Self::File(media) => from.write_file(&media.file, offset),
            Self::Disk(disk) => write_disk(disk, offset, from),
            Self::Null { .. } => Ok(()),
        }
    }

    /// Says whether the bytes at `offset` equal those of `with`. Nothing equals everything.
    pub(super) fn equals(&self, offset: u64, with: Span<'_>) -> io::Result<bool> {
        match self {
            Self::Ram(memory) => {
                let here = piece(memory, offset, with.len() as u64)?;
                Ok(here.first_difference(with).is_none())
            }
            Self::File(media) => media.equals(offset, with),
            Self::Disk(disk) => disk_equals(disk, offset, with),
            Self::Null { .. } => Ok(true),
        }
    }

    /// Zeroes a range, and gives its space back where that is possible.
    pub(super) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        match self {
            Self::Ram(memory) => {
                piece(memory, offset, len)?.fill(0);
                Ok(())
            }
            Self::File(media) => media.zero(offset, len),
            Self::Disk(disk) => disk.zero(offset, len),
            Self::Null { .. } => Ok(()),
        }
    }

    /// Copies a range to another place, which may overlap it.
    pub(super) fn copy(&self, from: u64, to: u64, len: u64) -> io::Result<()> {
        match self {
            Self::Ram(memory) => {
                piece(memory, to, len)?.copy_from(piece(memory, from, len)?);
                Ok(())
            }
            Self::File(media) => media.copy(from, to, len),
            Self::Disk(disk) => disk.copy(from, to, len),
            Self::Null { .. } => Ok(()),
        }
    }

    /// Makes everything durable that was written before a horizon; only a disk knows later writes apart.
    pub(super) fn flush(&self, horizon: Horizon) -> io::Result<()> {
        match self {
            Self::File(media) => media.file.sync_data(),
            Self::Disk(disk) => disk.flush(horizon),
            Self::Ram(_) | Self::Null { .. } => Ok(()),
        }
    }

    /// Makes ranges durable that were written, and where that cannot be told apart, everything.
    pub(super) fn persist(&self, mut ranges: impl Iterator<Item = Range>) -> io::Result<()> {
        match self {
            Self::File(media) => media.file.sync_data(),
            Self::Disk(disk) => ranges.try_for_each(|range| disk.persist(range.offset, range.len)),
            Self::Ram(_) | Self::Null { .. } => Ok(()),
        }
    }

    /// Reads a range as [`read`](Self::read) would, and lets the bytes go.
    pub(super) fn verify(&self, offset: u64, len: u64) -> io::Result<()> {
        match self {
            Self::File(media) => media.verify(offset, len),
            Self::Ram(_) | Self::Disk(_) | Self::Null { .. } => Ok(()),
        }
    }

    /// Asks for memory that will be read soon.
    #[inline]
    pub(super) fn prefetch(&self, offset: u64, len: u64) {
        if let Self::Ram(memory) = self
            && let Ok(span) = piece(memory, offset, len)
        {
            span.prefetch();
        }
    }
}

impl FileMedia {
    fn open(path: &Path, bytes: Option<u64>) -> Result<Self, SoftError> {
        let at = || path.to_path_buf();
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).create(bytes.is_some()).truncate(false).open(path);
        let file = file.map_err(|source| SoftError::Open { path: at(), source })?;
        lock(&file, path)?;
        let prepare = |source| SoftError::Prepare { path: at(), source };
        let metadata = file.metadata().map_err(prepare)?;
        if !metadata.is_file() {
            return Err(SoftError::NotAFile { path: at() });
        }
        let have = metadata.len();
        let bytes = bytes.unwrap_or(have);
        match have {
            // A new file, or one that was made empty on purpose, takes the size that was asked for.
            0 => file.set_len(bytes).map_err(prepare)?,
            have if have < bytes => {
                return Err(SoftError::TooSmall { path: at(), have, want: bytes });
            }
            _ => {}
        }
        Ok(Self { file, bytes })
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, hole, offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let zeroes = bounce()?;
                self.each_piece(len, |at, n| cut(&zeroes, n)?.write_file(&self.file, offset + at))
            }
            result => Ok(result?),
        }
    }

    fn copy(&self, from: u64, to: u64, len: u64) -> io::Result<()> {
        let memory = SharedBytes::anonymous(usize::try_from(len).map_err(io::Error::other)?)?;
        memory.span().read_file(&self.file, from)?;
        memory.span().write_file(&self.file, to)
    }

    fn verify(&self, offset: u64, len: u64) -> io::Result<()> {
        let memory = bounce()?;
        self.each_piece(len, |at, n| cut(&memory, n)?.read_file(&self.file, offset + at))
    }

    fn equals(&self, offset: u64, with: Span<'_>) -> io::Result<bool> {
        let memory = bounce()?;
        let mut equal = true;
        self.each_piece(with.len() as u64, |at, n| {
            let here = cut(&memory, n)?;
            here.read_file(&self.file, offset + at)?;
            let there = with.slice(at as usize, n).ok_or(io::ErrorKind::InvalidInput)?;
            equal &= here.first_difference(there).is_none();
            Ok(())
        })?;
        Ok(equal)
    }

    /// Calls `each` with the offset and length of pieces that fit a bounce buffer.
    fn each_piece(
        &self,
        len: u64,
        mut each: impl FnMut(u64, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = 0;
        while at < len {
            let n = (len - at).min(BOUNCE_BYTES as u64);
            each(at, n as usize)?;
            at += n;
        }
        Ok(())
    }
}

#[cold]
fn read_disk(disk: &Disk, offset: u64, to: Span<'_>) -> io::Result<()> {
    disk.visit(offset, to.len() as u64, |at, bytes| {
        let piece = to.slice(at, bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        piece.write_from(bytes);
        Ok(())
    })
}

#[cold]
fn write_disk(disk: &Disk, offset: u64, from: Span<'_>) -> io::Result<()> {
    let mut bytes = vec![0; from.len()];
    from.read_into(&mut bytes);
    disk.write(offset, &bytes)
}

fn disk_equals(disk: &Disk, offset: u64, with: Span<'_>) -> io::Result<bool> {
    let mut theirs = vec![0; with.len()];
    with.read_into(&mut theirs);
    let mut equal = true;
    disk.visit(offset, with.len() as u64, |at, bytes| {
        equal &= *bytes == theirs[at..at + bytes.len()];
        Ok(())
    })?;
    Ok(equal)
}

fn ram(bytes: u64) -> Result<Media, SoftError> {
    let memory = |source| SoftError::Memory { bytes, source };
    let len = usize::try_from(bytes).map_err(|_| memory(io::ErrorKind::OutOfMemory.into()))?;
    SharedBytes::anonymous(len).map(Media::Ram).map_err(memory)
}

fn lock(file: &File, path: &Path) -> Result<(), SoftError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => SoftError::Locked { path: path.into() },
        TryLockError::Error(source) => SoftError::Prepare { path: path.into(), source },
    })
}

fn bounce() -> io::Result<SharedBytes> {
    SharedBytes::anonymous(BOUNCE_BYTES)
}

fn cut(memory: &SharedBytes, len: usize) -> io::Result<Span<'_>> {
    memory.span().slice(0, len).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[inline]
fn piece(memory: &SharedBytes, offset: u64, len: u64) -> io::Result<Span<'_>> {
    // Addresses are 64 bits wide wherever this runs, and the slice is checked.
    let span = memory.span().slice(offset as usize, len as usize);
    span.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
