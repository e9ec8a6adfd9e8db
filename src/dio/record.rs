//! Completion records: what a request has in flight, what became of it, what it will answer.
//!
//! The submission cursor (`cursor.rs`) dies when the last command is out. The record lives until the last
//! one is back, and is all that completions touch.
#![forbid(unsafe_code)]

use super::memory::{Memory, Slice, Source};
use super::request::Action;
use crate::block::{BlockError, Run};
use crate::dma::{DmaBuf, Loan};

/// A request under way. The first line is all that a plain request touches.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Record<G> {
    /// Constant: the caller's number.
    pub(super) tag: u64,
    /// Constant: the bytes that success means.
    pub(super) bytes: u64,
    /// Submission counts up, completion counts down: commands that are out or being assembled.
    pub(super) inflight: u32,
    /// Submission only: whether it has had a command.
    pub(super) started: Started,
    /// Submission only: whether commands are still to come.
    pub(super) walking: bool,
    /// Constant: whether the memory's bytes go through bounce buffers.
    pub(super) bounced: bool,
    /// Constant: what it does.
    pub(super) action: Action,
    /// Constant: what the map gave for the request.
    pub(super) guard: Option<G>,
    /// Constant: the first byte of the file.
    pub(super) offset: u64,
    /// Completion only: the first byte of the request that is not known to be good.
    pub(super) failed_at: u64,
    /// Submission only: what stopped the walk.
    pub(super) stopped: Option<BlockError>,
    /// Completion only: the first command that failed.
    pub(super) failed: Option<BlockError>,
    /// Whether the data is out and a flush has to follow.
    pub(super) flush_owed: bool,
}

/// How many commands a request has had, as far as anybody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Started {
    Nothing,
    One,
    Several,
}

impl Started {
    /// Counts a command; says whether it is the second one.
    pub(super) fn count(&mut self) -> bool {
        let next = if *self == Self::Nothing { Self::One } else { Self::Several };
        let is_second = *self == Self::One;
        *self = next;
        is_second
    }
}

impl<G> Record<G> {
    fn idle() -> Self {
        Self {
            tag: 0,
            bytes: 0,
            inflight: 0,
            started: Started::Nothing,
            walking: false,
            bounced: false,
            action: Action::Flush,
            guard: None,
            offset: 0,
            failed_at: u64::MAX,
            stopped: None,
            failed: None,
            flush_owed: false,
        }
    }

    /// Notes that a command failed whose first byte is byte `at` of the request.
    #[cold]
    pub(super) fn fail(&mut self, at: u64, error: BlockError) {
        self.failed_at = self.failed_at.min(at);
        self.failed.get_or_insert(error);
    }

    /// Notes what stopped the walk at byte `at` of the request.
    #[cold]
    pub(super) fn stop(&mut self, at: u64, error: BlockError) {
        self.failed_at = self.failed_at.min(at);
        self.stopped.get_or_insert(error);
    }

    /// Says whether something has gone wrong.
    #[inline]
    pub(super) fn is_lost(&self) -> bool {
        self.stopped.is_some() || self.failed.is_some()
    }
}

/// The records of a pipeline.
#[derive(Debug)]
pub(super) struct Records<G> {
    table: Vec<Record<G>>,
    /// Free records; the last one freed is the first one taken, since it is warm.
    free: Vec<u16>,
}

impl<G> Records<G> {
    pub(super) fn new(count: u16) -> Self {
        Self {
            table: (0..count).map(|_| Record::idle()).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// Returns how many requests there can be.
    pub(super) fn capacity(&self) -> usize {
        self.table.len()
    }

    /// Takes a free record.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Gives a record back whose optional parts have been taken out.
    #[inline]
    pub(super) fn give_back(&mut self, index: u16) {
        self.free.push(index);
    }

    #[inline]
    pub(super) fn get(&self, index: u16) -> &Record<G> {
        &self.table[usize::from(index)]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u16) -> &mut Record<G> {
        &mut self.table[usize::from(index)]
    }
}

/// The memory of a request that is more than one command, or less plain.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// Buffers that commands use where they lie.
    loan: Loan,
    /// Whether the buffer in the loan is all the memory there is.
    one: Option<u32>,
    /// Everything else: slices, and all memory of a bounced request.
    memory: Memory,
}

impl Hold {
    pub(super) fn new() -> Self {
        Self { loan: Loan::new(), one: None, memory: Memory::Nothing }
    }

    /// Takes memory in that commands will use where it lies.
    pub(super) fn lend(&mut self, memory: Memory) {
        match memory {
            Memory::Nothing => {}
            Memory::One(buffer) => {
                self.one = Some(buffer.len() as u32);
                self.loan.put(buffer);
            }
            Memory::Vector(mut vector) => {
                self.loan.exchange(&mut vector.dma);
                self.memory = Memory::Vector(vector);
            }
        }
    }

    /// Takes memory in whose bytes will be copied.
    pub(super) fn keep(&mut self, memory: Memory) {
        self.memory = memory;
    }

    /// Gives the memory back.
    pub(super) fn give_back(&mut self) -> Memory {
        if self.one.take().is_some() {
            return self.loan.take().map_or(Memory::Nothing, Memory::One);
        }
        let mut memory = core::mem::take(&mut self.memory);
        match &mut memory {
            // A vector that was kept has its buffers.
            Memory::Vector(vector) if vector.dma.is_empty() => {
                self.loan.exchange(&mut vector.dma);
            }
            _ => {}
        }
        memory
    }

    /// Returns the memory of a bounced request.
    pub(super) fn kept(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Returns segment `index` of what was lent.
    #[inline]
    fn slice(&self, index: usize) -> Option<Slice> {
        match (self.one, &self.memory) {
            (Some(len), _) if index == 0 => Some(Slice { source: Source::Dma(0), offset: 0, len }),
            (None, Memory::Vector(vector)) => vector.slices.get(index).copied(),
            _ => None,
        }
    }

    /// Returns where the device sees segment `index` from byte `skip` on; `None` past the last one.
    #[inline]
    pub(super) fn run(&self, index: usize, skip: u64) -> Option<Run> {
        let slice = self.slice(index)?;
        let len = u64::from(slice.len) - skip;
        if len == 0 {
            return Some(Run { iova: 0, len });
        }
        let Source::Dma(buffer) = slice.source else { return None };
        let offset = u64::from(slice.offset) + skip;
        Some(Run { iova: self.loan.iova(usize::from(buffer), offset as usize).0, len })
    }

    /// Lends `len` bytes of segment `index` from byte `skip` on.
    #[inline]
    pub(super) fn piece(&self, index: usize, skip: u64, len: u64) -> crate::dma::DmaPiece {
        let slice = self.slice(index).expect("the cursor is within the memory");
        let Source::Dma(buffer) = slice.source else { unreachable!("what is plain is bounced") };
        let offset = u64::from(slice.offset) + skip;
        self.loan.piece(usize::from(buffer), offset as usize, len as usize)
    }

    /// Fills `len` bytes of segment `index` from byte `skip` on with zeroes.
    pub(super) fn zero(&self, index: usize, skip: u64, len: u64) {
        let slice = self.slice(index).expect("the cursor is within the memory");
        let Source::Dma(buffer) = slice.source else { unreachable!("what is plain is bounced") };
        let offset = u64::from(slice.offset) + skip;
        self.loan.zero(usize::from(buffer), offset as usize, len as usize);
    }
}

/// The zeroes that edges are written from: one buffer, lent as often as needed.
#[derive(Debug)]
pub(super) struct Zeroes {
    loan: Loan,
    len: u64,
}

impl Zeroes {
    pub(super) fn new(mut buffer: DmaBuf) -> Self {
        buffer.fill(0);
        let (mut loan, len) = (Loan::new(), buffer.len() as u64);
        loan.put(buffer);
        Self { loan, len }
    }

    /// Returns where the device sees zeroes from byte `skip` on, and how many there are.
    pub(super) fn run(&self, skip: u64) -> Run {
        Run { iova: self.loan.iova(0, skip as usize).0, len: self.len - skip }
    }

    /// Lends `len` zeroes from byte `skip` on.
    pub(super) fn piece(&self, skip: u64, len: u64) -> crate::dma::DmaPiece {
        self.loan.piece(0, skip as usize, len as usize)
    }
}
