//! What goes into the pipeline and what comes out of it.
#![forbid(unsafe_code)]

use super::Memory;
use crate::block::{BlockError, Durability};
use crate::units::FileId;

/// One request: bytes of a file, and the memory that they go to or come from.
#[derive(Debug)]
pub struct Io {
    /// Which file; a raw volume has but one.
    pub file: FileId,
    /// First byte.
    pub offset: u64,
    /// What to do.
    pub action: Action,
    /// Where the bytes go to or come from; its length is the request's.
    pub memory: Memory,
    /// Bytes at the end of a write's memory that only fill its last block: they are written, and neither
    /// counted nor part of the file's size. Less than a block.
    pub excess: u32,
    /// The caller's own number; it is not looked at and comes back.
    pub tag: u64,
}

/// What a request does.
///
/// Its tag is a whole word: with a byte there, requests are copied in words that begin at the second byte, and
/// whoever loads a field waits for two stores (a tenth of the time of a submission).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Action {
    /// Reads into memory; ends early at the end of the file.
    Read,
    /// Writes from memory.
    Write {
        /// What has to be durable before it completes.
        durability: Durability,
    },
    /// Makes bytes read as zeroes.
    WriteZeroes {
        /// How many.
        len: u64,
        /// What has to be durable before it completes.
        durability: Durability,
    },
    /// Gives the blocks of bytes back to the device; what they read as afterwards is its choice.
    Deallocate {
        /// How many.
        len: u64,
    },
    /// Makes every write to the file durable that completed before this was submitted.
    Flush,
}

impl Io {
    /// Makes a read of the only file.
    #[inline]
    pub fn read(offset: u64, memory: impl Into<Memory>, tag: u64) -> Self {
        let (file, action, memory) = (FileId(0), Action::Read, memory.into());
        Self { file, offset, action, memory, excess: 0, tag }
    }

    /// Makes a write of the only file.
    #[inline]
    pub fn write(offset: u64, memory: impl Into<Memory>, tag: u64) -> Self {
        let action = Action::Write { durability: Durability::Lazy };
        Self { file: FileId(0), offset, action, memory: memory.into(), excess: 0, tag }
    }

    /// Makes a request without memory.
    pub fn bare(offset: u64, action: Action, tag: u64) -> Self {
        Self { file: FileId(0), offset, action, memory: Memory::Nothing, excess: 0, tag }
    }

    /// Says which file it is about.
    #[must_use]
    pub fn of(mut self, file: FileId) -> Self {
        self.file = file;
        self
    }

    /// Asks for the data to be durable when the request completes.
    #[must_use]
    pub fn durable(self) -> Self {
        self.with(Durability::Data)
    }

    /// Says what has to be durable when a write completes.
    #[must_use]
    pub fn with(mut self, wanted: Durability) -> Self {
        if let Action::Write { durability } | Action::WriteZeroes { durability, .. } =
            &mut self.action
        {
            *durability = wanted;
        }
        self
    }

    /// Returns the length in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
        match self.action {
            Action::Read | Action::Write { .. } => self.memory.len(),
            Action::WriteZeroes { len, .. } | Action::Deallocate { len } => len,
            Action::Flush => 0,
        }
    }

    /// Says whether it reaches no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A finished request.
#[derive(Debug)]
pub struct Done {
    /// The caller's number.
    pub tag: u64,
    /// The memory of the request.
    pub memory: Memory,
    /// How many bytes from the start were transferred. After an error these are the ones before the first
    /// that failed: a read has them in memory, a write on the device where the blocks were there already.
    pub bytes: u64,
    /// How it ended. An error hides the count, as the kernel's does.
    pub result: Result<(), BlockError>,
}

impl Done {
    /// Returns the bytes that were transferred, or the error.
    ///
    /// # Errors
    ///
    /// The request's.
    pub fn into_bytes(self) -> Result<u64, BlockError> {
        self.result.map(|()| self.bytes)
    }
}

/// A request that was not taken.
#[derive(Debug)]
pub enum Refused {
    /// As many requests are under way as may be: poll, then submit it again.
    Full(Io),
    /// It can never be carried out.
    Invalid(Io, BlockError),
}

impl Refused {
    /// Returns the request.
    pub fn into_io(self) -> Io {
        match self {
            Self::Full(io) | Self::Invalid(io, _) => io,
        }
    }
}

/// What a pipeline has counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Requests that were taken.
    pub requests: u64,
    /// Requests that went to the queue as they came, as one command.
    pub direct: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// Requests handed to the queue.
    pub commands: u64,
    /// Requests that became more than one command.
    pub splits: u64,
    /// Requests that joined the command of another one.
    pub merges: u64,
    /// Requests whose memory was bounced.
    pub bounces: u64,
    /// Bytes that were copied for that.
    pub bytes_bounced: u64,
    /// Bytes of holes that were read without a command.
    pub bytes_of_holes: u64,
    /// Bytes around writes that were zeroed on the device.
    pub bytes_zeroed: u64,
    /// Questions put to the map.
    pub mappings: u64,
    /// Times that a request had to stop for want of a slot or of bounce memory, and went on later.
    pub pauses: u64,
    /// Requests that were taken while something of the map was in their way.
    pub waits: u64,
    /// Requests turned away because as many were under way as may be.
    pub full: u64,
}

impl Statistics {
    /// Returns what was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests - earlier.requests,
            direct: self.direct - earlier.direct,
            bytes_read: self.bytes_read - earlier.bytes_read,
            bytes_written: self.bytes_written - earlier.bytes_written,
            commands: self.commands - earlier.commands,
            splits: self.splits - earlier.splits,
            merges: self.merges - earlier.merges,
            bounces: self.bounces - earlier.bounces,
            bytes_bounced: self.bytes_bounced - earlier.bytes_bounced,
            bytes_of_holes: self.bytes_of_holes - earlier.bytes_of_holes,
            bytes_zeroed: self.bytes_zeroed - earlier.bytes_zeroed,
            mappings: self.mappings - earlier.mappings,
            pauses: self.pauses - earlier.pauses,
            waits: self.waits - earlier.waits,
            full: self.full - earlier.full,
        }
    }
}
