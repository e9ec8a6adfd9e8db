//! Writes that move the end of a file, one after the other.
//!
//! ```text
//!   wait for the turn at the end ── zero what lies between the end and the write, in the last unit ── write
//! ```
//!
//! Those that move one end take turns, in the order in which they came, whichever handles they came through. So an
//! append knows where it begins, and a reader never sees zeroes where an earlier write is still under way (rules 33
//! and 35). What lies behind the end of a file within its last unit may be anything: a cut-off part, a write that
//! failed. Whoever moves the end past it writes zeroes there first.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::edges::{Turn, Wanted};
use crate::block::{BlockError, End};
use crate::dio::{Io, Memory};
use crate::units::FileId;

/// Writes at the ends of files at once.
pub(super) const EXTENDING_MAX: usize = 64;

/// The offset of an append: wherever the end is by then.
pub(super) const APPEND: u64 = u64::MAX;

/// A write that moves the end of a file, on its way.
#[derive(Debug)]
pub(super) struct Extending {
    pub(super) file: FileId,
    /// The caller's tag.
    pub(super) tag: u64,
    /// The request, while it is here.
    io: Option<Io>,
    turn: Turn,
    pub(super) since: Instant,
    pub(super) stage: Stage,
    /// Where it begins, once that is known.
    pub(super) placed: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits for its turn.
    Waiting,
    /// The zeroes before it are out.
    Filling,
    /// It is to be sent.
    Placed,
    /// It is out.
    Moving,
}

impl Extending {
    pub(super) fn new(io: Io, turn: Turn) -> Self {
        let (file, tag, placed) = (io.file, io.tag, io.offset);
        let since = Instant::now();
        Self { file, tag, io: Some(io), turn, since, stage: Stage::Waiting, placed }
    }

    /// Returns what a write at the end of a file has to itself.
    pub(super) fn wanted(file: FileId) -> Wanted {
        Wanted::end_of(file)
    }

    pub(super) fn may_go(&self) -> bool {
        self.turn.has_come()
    }

    /// Says whether a request of it is under way.
    pub(super) fn is_out(&self) -> bool {
        matches!(self.stage, Stage::Filling | Stage::Moving)
    }

    /// Learns where the end is; returns the bytes that have to be zeroed first, if any have.
    pub(super) fn place(&mut self, end: End) -> Option<core::ops::Range<u64>> {
        if self.placed == APPEND {
            self.placed = end.size;
        }
        let fill = end.size..end.loose.min(self.placed);
        (fill.start < fill.end).then_some(fill)
    }

    /// Returns the request, at its place.
    pub(super) fn take(&mut self, tag: u64) -> Io {
        let io = self.io.take().expect("it is put back where it is not sent");
        Io { offset: self.placed, tag, ..io }
    }

    pub(super) fn put_back(&mut self, io: Io) {
        self.io = Some(io);
    }

    /// Takes the memory of a request that will not be sent.
    pub(super) fn into_memory(self) -> Memory {
        self.io.map_or(Memory::Nothing, |io| io.memory)
    }
}

/// Makes the error of a file that is gone by the time its turn has come.
pub(super) fn gone(file: FileId) -> BlockError {
    crate::block::Cause::NotFound { what: format!("object {file}").into() }.into()
}
