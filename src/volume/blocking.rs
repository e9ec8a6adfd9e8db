//! The blocking face: calls that return when the bytes are there, on the caller's thread.
//!
//! A blocking call polls for its own answer and keeps the answers to other requests for the next `poll`. It
//! waits as long as the queue lets a command take, never longer.
#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};

use super::handle::{BLOCKING, Handle};
use super::{Action, Done, Io, Memory, Refused};
use crate::block::{BlockError, Durability, MapBlocks};
use crate::units::FileId;

/// How many polls find nothing before the thread gives its core away for a moment.
const IDLE_POLLS: u32 = 1000;

impl<M: MapBlocks> Handle<M> {
    /// Carries out one request and waits for it. The caller's tag comes back.
    pub fn run(&mut self, io: Io) -> Done {
        self.run_by(io, Self::submit_tagged)
    }

    /// Carries out one request, submitted in a way of its own, and waits for it.
    pub(super) fn run_by(
        &mut self,
        io: Io,
        submit: fn(&mut Self, Io) -> Result<(), Refused>,
    ) -> Done {
        let tag = io.tag;
        let mut io = Io { tag: BLOCKING, ..io };
        let mut idle = 0;
        loop {
            match submit(self, io) {
                Ok(()) => break,
                Err(Refused::Full(back)) => {
                    io = back;
                    self.ring();
                    self.idle(&mut idle);
                }
                Err(Refused::Invalid(Io { memory, .. }, error)) => {
                    return Done { tag, memory, bytes: 0, result: Err(error) };
                }
            }
        }
        self.ring();
        loop {
            if let Some(done) = self.answer.take() {
                return Done { tag, ..done };
            }
            self.idle(&mut idle);
        }
    }

    /// Reads the bytes from `offset` on of the only file; returns how many there were.
    ///
    /// # Errors
    ///
    /// The device's. What was read before it is not told.
    pub fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<usize, BlockError> {
        self.read_vectored_at(&mut [IoSliceMut::new(buffer)], offset)
    }

    /// Writes all bytes to `offset` and on of the only file.
    ///
    /// # Errors
    ///
    /// `OutOfRange` where they do not fit, and the device's. Some may have been written.
    pub fn write_at(&mut self, buffer: &[u8], offset: u64) -> Result<(), BlockError> {
        self.write_vectored_at(&[IoSlice::new(buffer)], offset)
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
        self.read_file_at(FileId(0), buffers, offset)
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
        self.write_file_at(FileId(0), buffers, offset)
    }

    /// Reads the bytes from `offset` on of a file into several slices; returns how many there were.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Self::read_at).
    pub fn read_file_at(
        &mut self,
        file: FileId,
        buffers: &mut [IoSliceMut<'_>],
        offset: u64,
    ) -> Result<usize, BlockError> {
        let block = self.block();
        let mut done = 0;
        for buffer in buffers {
            let mut filled = 0;
            while filled < buffer.len() {
                // Whole blocks around what is wanted: the copy picks it out.
                let at = offset + done as u64;
                let skip = (at % block) as usize;
                let wanted = buffer.len() - filled;
                let (found, memory) = self.read_through(file, at - skip as u64, skip + wanted)?;
                let here = found.saturating_sub(skip).min(wanted);
                memory.read(skip as u64, &mut buffer[filled..filled + here]);
                self.staging = memory.into_one();
                (filled, done) = (filled + here, done + here);
                if here == 0 {
                    return Ok(done);
                }
            }
        }
        Ok(done)
    }

    /// Writes several slices, one after the other, to `offset` and on of a file.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Self::write_at).
    pub fn write_file_at(
        &mut self,
        file: FileId,
        buffers: &[IoSlice<'_>],
        offset: u64,
    ) -> Result<(), BlockError> {
        self.write_durably_at(file, buffers, offset, Durability::Lazy)
    }

    /// Writes several slices as [`write_file_at`](Self::write_file_at) does; returns when they are as durable as
    /// that.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Self::write_at).
    pub fn write_durably_at(
        &mut self,
        file: FileId,
        buffers: &[IoSlice<'_>],
        offset: u64,
        durability: Durability,
    ) -> Result<(), BlockError> {
        let total = buffers.iter().map(|buffer| buffer.len()).sum::<usize>();
        let (mut at, mut left) = (offset, total);
        let mut rest = buffers.iter().flat_map(|buffer| buffer.chunks(CHUNK));
        let mut current: &[u8] = &[];
        while left > 0 {
            let mut staging = self.staging.take().expect("a blocking call gives it back");
            // Pieces end at blocks, so that only the two ends of the whole write are rewritten.
            let most = staging.capacity() - (at % self.block()) as usize;
            let len = left.min(most);
            staging.set_len(len);
            let mut filled = 0;
            while filled < len {
                if current.is_empty() {
                    current = rest.next().expect("as many bytes as were counted");
                }
                let here = current.len().min(len - filled);
                staging[filled..filled + here].copy_from_slice(&current[..here]);
                (current, filled) = (&current[here..], filled + here);
            }
            let done = self.run(Io::write(at, staging, 0).of(file).with(durability));
            self.staging = done.memory.into_one();
            done.result?;
            (at, left) = (at + len as u64, left - len);
        }
        Ok(())
    }

    /// Makes everything durable that has been written.
    ///
    /// # Errors
    ///
    /// The device's.
    pub fn flush(&mut self) -> Result<(), BlockError> {
        self.run(Io::bare(0, Action::Flush, 0)).result
    }

    /// Gives whole blocks back to the device; what they read as afterwards is its choice.
    ///
    /// # Errors
    ///
    /// `Misaligned` where the ends are not at blocks, `OutOfRange`, `Unsupported`, and the device's.
    pub fn deallocate(&mut self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.run(Io::bare(offset, Action::Deallocate { len }, 0)).result
    }

    /// Makes whole blocks read as zeroes.
    ///
    /// # Errors
    ///
    /// As [`deallocate`](Self::deallocate).
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.run(Io::bare(offset, Action::WriteZeroes { len, durability: Durability::Lazy }, 0))
            .result
    }

    /// Reads up to `len` bytes, rounded up to blocks, from a block on through the staging buffer.
    fn read_through(
        &mut self,
        file: FileId,
        offset: u64,
        len: usize,
    ) -> Result<(usize, Memory), BlockError> {
        let mut staging = self.staging.take().expect("a blocking call gives it back");
        let len = len.next_multiple_of(self.block() as usize).min(staging.capacity());
        staging.set_len(len);
        let done = self.run(Io::read(offset, staging, 0).of(file));
        match done.result {
            Ok(()) => Ok((done.bytes as usize, done.memory)),
            Err(error) => {
                self.staging = done.memory.into_one();
                Err(error)
            }
        }
    }

    /// Polls once for other requests' sake too: their answers are kept.
    pub(super) fn idle(&mut self, idle: &mut u32) {
        if self.poll_inside() > 0 {
            *idle = 0;
            return;
        }
        *idle += 1;
        if *idle > IDLE_POLLS {
            std::thread::yield_now();
        } else {
            core::hint::spin_loop();
        }
    }

    pub(super) fn block(&self) -> u64 {
        u64::from(self.lba_size().bytes())
    }
}

/// What a slice is looked at by.
const CHUNK: usize = 1 << 20;
