//! A request: an operation, its blocks, its memory, and a tag of the caller's.
//!
//! A request owns its buffers from submission to completion and comes back with them.
#![forbid(unsafe_code)]

use super::Run;
use crate::dma::{Access, DmaBuf, DmaPiece};
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
    /// Makes blocks unreadable until they are written again: a read of one is `Media`.
    WriteUncorrectable {
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
            Self::WriteUncorrectable { .. } => "write uncorrectable",
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
    /// A piece of memory that others may be using at the same time, contiguous for the device.
    Part(DmaPiece),
    /// Several such pieces that form one stream of bytes.
    Parts(Vec<DmaPiece>),
}

impl Payload {
    /// Returns the buffers in order; none where the request has only shares in them.
    pub fn segments(&self) -> &[DmaBuf] {
        match self {
            Self::One(buffer) => core::slice::from_ref(buffer),
            Self::List(buffers) => buffers,
            Self::Part(_) | Self::Parts(_) => &[],
        }
    }

    /// Returns how many segments there are.
    #[inline]
    pub fn count(&self) -> usize {
        match self {
            Self::One(_) | Self::Part(_) => 1,
            Self::List(buffers) => buffers.len(),
            Self::Parts(pieces) => pieces.len(),
        }
    }

    /// Returns where a device sees segment `index`, which is below [`count`](Self::count).
    #[inline]
    pub fn run(&self, index: usize) -> Run {
        let of_buffer = |buffer: &DmaBuf| Run { iova: buffer.iova().0, len: buffer.len() as u64 };
        let of_piece = |piece: &DmaPiece| Run { iova: piece.iova().0, len: u64::from(piece.len()) };
        match self {
            Self::One(buffer) => of_buffer(buffer),
            Self::List(buffers) => of_buffer(&buffers[index]),
            Self::Part(piece) => of_piece(piece),
            Self::Parts(pieces) => of_piece(&pieces[index]),
        }
    }

    /// Returns what a device may do with segment `index`, which is below [`count`](Self::count).
    #[inline]
    pub fn access(&self, index: usize) -> Access {
        match self {
            Self::One(buffer) => buffer.access(),
            Self::List(buffers) => buffers[index].access(),
            Self::Part(piece) => piece.access(),
            Self::Parts(pieces) => pieces[index].access(),
        }
    }

    /// Returns the length in bytes of all segments.
    #[inline]
    pub fn len(&self) -> u64 {
        match self {
            Self::One(buffer) => buffer.len() as u64,
            Self::Part(piece) => u64::from(piece.len()),
            _ => self.len_of_all(),
        }
    }

    fn len_of_all(&self) -> u64 {
        (0..self.count()).map(|index| self.run(index).len).sum()
    }

    /// Copies the bytes from `offset` on out: for whoever looks at what a device has written.
    ///
    /// # Panics
    ///
    /// If they do not lie within the payload.
    pub fn copy_out(&self, offset: u64, to: &mut [u8]) {
        let (mut skip, mut rest) = (offset, to);
        for index in 0..self.count() {
            let len = self.run(index).len;
            let skipped = skip.min(len);
            skip -= skipped;
            let here = (len - skipped).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(here);
            if here > 0 {
                self.copy_out_of(index, skipped as usize, now);
            }
            rest = later;
        }
        assert!(rest.is_empty(), "{} bytes past the end of a payload", rest.len());
    }

    fn copy_out_of(&self, index: usize, at: usize, to: &mut [u8]) {
        let of_buffer =
            |buffer: &DmaBuf, to: &mut [u8]| to.copy_from_slice(&buffer[at..][..to.len()]);
        match self {
            Self::One(buffer) => of_buffer(buffer, to),
            Self::List(buffers) => of_buffer(&buffers[index], to),
            Self::Part(piece) => piece.copy_out(at, to),
            Self::Parts(pieces) => pieces[index].copy_out(at, to),
        }
    }

    /// Says whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the buffer of a payload that was made of one, and the payload otherwise.
    ///
    /// # Errors
    ///
    /// The payload, if it is a list or has only shares in its memory.
    pub fn into_one(self) -> Result<DmaBuf, Self> {
        match self {
            Self::One(buffer) => Ok(buffer),
            other => Err(other),
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
