//! A request: an operation, its blocks, its memory, and a tag of the caller's.
//!
//! A request owns its buffers from submission to completion and comes back with them.
#![forbid(unsafe_code)]

use crate::dma::DmaBuf;
use crate::units::{BlockCount, Lba};

/// One request to a block device.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// The caller's own number; it is not looked at and comes back with the completion.
    pub tag: u64,
}

// A request fits one cache line together with eight bytes of whoever keeps it in flight.
const _: () = assert!(size_of::<Request>() <= 56);

impl Request {
    /// Makes a request.
    #[inline]
    pub fn new(operation: Operation, tag: u64) -> Self {
        Self { operation, tag }
    }

    /// Makes a read into one buffer; the buffer's length says how much.
    #[inline]
    pub fn read(lba: Lba, buffer: DmaBuf, tag: u64) -> Self {
        Self::new(Operation::Read { lba, payload: Payload::One(buffer) }, tag)
    }

    /// Makes a write from one buffer; the buffer's length says how much.
    #[inline]
    pub fn write(lba: Lba, buffer: DmaBuf, tag: u64) -> Self {
        Self::new(Operation::Write { lba, payload: Payload::One(buffer), fua: false }, tag)
    }

    /// Returns the memory of the request, where it has any.
    pub fn into_payload(self) -> Option<Payload> {
        match self.operation {
            Operation::Read { payload, .. }
            | Operation::Write { payload, .. }
            | Operation::Compare { payload, .. } => Some(payload),
            _ => None,
        }
    }
}

/// What a request asks of the device.
#[derive(Debug)]
#[non_exhaustive]
pub enum Operation {
    /// Reads blocks into memory.
    Read {
        /// First block.
        lba: Lba,
        /// Where they go; the length says how many.
        payload: Payload,
    },
    /// Writes blocks from memory.
    Write {
        /// First block.
        lba: Lba,
        /// Where they come from; the length says how many.
        payload: Payload,
        /// Completes only when the data is durable (force unit access).
        fua: bool,
    },
    /// Makes every write durable that completed before this was submitted.
    Flush,
    /// Gives blocks back to the device; what they read as afterwards is the device's choice.
    Deallocate {
        /// First block.
        lba: Lba,
        /// How many.
        blocks: BlockCount,
    },
    /// Makes blocks read as zeroes.
    WriteZeroes {
        /// First block.
        lba: Lba,
        /// How many.
        blocks: BlockCount,
        /// Completes only when they are durably zero.
        fua: bool,
    },
    /// Compares blocks with memory; a difference is `Miscompare`.
    Compare {
        /// First block.
        lba: Lba,
        /// What they should hold.
        payload: Payload,
    },
    /// Reads and checks blocks inside the device.
    Verify {
        /// First block.
        lba: Lba,
        /// How many.
        blocks: BlockCount,
    },
    /// Copies blocks within the device.
    Copy {
        /// First block read.
        source: Lba,
        /// First block written.
        target: Lba,
        /// How many.
        blocks: BlockCount,
    },
}

impl Operation {
    /// Returns the operation's name in the words of the field.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Deallocate { .. } => "deallocate",
            Self::WriteZeroes { .. } => "write zeroes",
            Self::Compare { .. } => "compare",
            Self::Verify { .. } => "verify",
            Self::Copy { .. } => "copy",
        }
    }
}

/// The memory of a request.
#[derive(Debug)]
pub enum Payload {
    /// One buffer, contiguous for the device.
    One(DmaBuf),
    /// Several buffers that form one stream of bytes.
    List(Vec<DmaBuf>),
}

impl Payload {
    /// Returns the buffers in order.
    pub fn segments(&self) -> &[DmaBuf] {
        match self {
            Self::One(buffer) => core::slice::from_ref(buffer),
            Self::List(buffers) => buffers,
        }
    }

    /// Returns the length in bytes of all segments.
    #[inline]
    pub fn len(&self) -> u64 {
        match self {
            Self::One(buffer) => buffer.len() as u64,
            Self::List(buffers) => buffers.iter().map(|buffer| buffer.len() as u64).sum(),
        }
    }

    /// Says whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the buffer of a payload that was made of one, and the list otherwise.
    pub fn into_one(self) -> Result<DmaBuf, Vec<DmaBuf>> {
        match self {
            Self::One(buffer) => Ok(buffer),
            Self::List(buffers) => Err(buffers),
        }
    }
}

impl From<DmaBuf> for Payload {
    fn from(buffer: DmaBuf) -> Self {
        Self::One(buffer)
    }
}

impl From<Vec<DmaBuf>> for Payload {
    fn from(buffers: Vec<DmaBuf>) -> Self {
        Self::List(buffers)
    }
}
