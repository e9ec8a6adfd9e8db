//! Requests that take several commands: what is left to send, what is still out, what went wrong.
//!
//! The record owns the request, and with it the buffers, until the last command is back. One request at
//! a time waits for slots; while it does the queue takes no other, so that it cannot starve.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::limits::Piece;
use super::search::Search;
use crate::block::{BlockError, Request};
use crate::units::Lba;

/// The most split requests of one queue at once.
const SPLITS_MAX: usize = 256;

/// A request that takes several commands.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) request: Request,
    /// What has not been sent yet.
    pub(super) rest: Piece,
    /// Commands that are out.
    outstanding: u32,
    /// The first error; the others are awaited and forgotten.
    pub(super) error: Option<BlockError>,
    /// How often it was sent before.
    pub(super) trials: u8,
    /// How long to wait before it is sent again, as long as every error of it lets hope for that.
    pub(super) hope: Option<Duration>,
    /// Which of its blocks cannot be read, while that is looked for.
    pub(super) search: Option<Search>,
}

/// The split requests of one queue.
pub(super) struct Splits {
    table: Vec<Option<Split>>,
    free: Vec<u16>,
    /// The one that waits for slots.
    waiting: Option<u16>,
    /// Commands that are out, of all of them.
    parts: usize,
}

impl Split {
    fn new(request: Request, rest: Piece) -> Self {
        let hope = Some(Duration::ZERO);
        Self { request, rest, outstanding: 0, error: None, trials: 0, hope, search: None }
    }

    /// Makes the record of a request of one command that failed, to look for the block that did.
    pub(super) fn searched(request: Request, search: Search, trials: u8) -> Self {
        let rest = Piece { lba: Lba(0), blocks: 0, skipped: 0 };
        Self { search: Some(search), trials, ..Self::new(request, rest) }
    }
}

impl Splits {
    /// Makes room for as many as a queue of `depth` slots can use, up to a limit.
    pub(super) fn new(depth: usize) -> Self {
        Self::of_all(depth.min(SPLITS_MAX))
    }

    /// Makes room for `count`, each request of a queue for one.
    pub(super) fn of_all(count: usize) -> Self {
        let last = u16::try_from(count).expect("a queue has at most 65535 slots");
        Self {
            table: (0..count).map(|_| None).collect(),
            free: (0..last).rev().collect(),
            waiting: None,
            parts: 0,
        }
    }

    /// Takes a request, or gives it back if there is no room.
    pub(super) fn begin(&mut self, request: Request, rest: Piece) -> Result<(), Request> {
        assert!(self.waiting.is_none(), "one request at a time waits for slots");
        let Some(index) = self.free.pop() else { return Err(request) };
        self.table[usize::from(index)] = Some(Split::new(request, rest));
        self.waiting = Some(index);
        Ok(())
    }

    /// Returns the request that waits for slots.
    pub(super) fn waiting(&self) -> Option<(u16, &Split)> {
        let index = self.waiting?;
        self.table[usize::from(index)].as_ref().map(|split| (index, split))
    }

    /// Says whether a request waits for slots.
    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Notes that a command with `blocks` of the waiting request was sent.
    pub(super) fn sent(&mut self, index: u16, blocks: u64) {
        let split = self.table[usize::from(index)].as_mut().expect("it was just looked at");
        split.rest = Piece {
            lba: Lba(split.rest.lba.0 + blocks),
            blocks: split.rest.blocks - blocks,
            skipped: split.rest.skipped + blocks,
        };
        split.outstanding += 1;
        self.parts += 1;
        if let Some(search) = &mut split.search {
            // What it shows decides about the next.
            search.sent(blocks);
            split.rest.blocks = 0;
        }
        if split.rest.blocks == 0 {
            self.waiting = None;
        }
    }

    /// Notes that a command came back; the request comes out with the last one.
    ///
    /// After an error nothing more is sent, and what is out is awaited; `hope` is how long to wait before it is of use
    /// to send the request again.
    pub(super) fn part_done(
        &mut self,
        index: u16,
        hope: Option<Duration>,
        result: impl FnOnce(&Request) -> Result<(), BlockError>,
    ) -> Option<Split> {
        let entry = &mut self.table[usize::from(index)];
        let split = entry.as_mut().expect("a command of it was in flight");
        split.outstanding -= 1;
        self.parts -= 1;
        if let Err(error) = result(&split.request) {
            split.rest.blocks = 0;
            split.error.get_or_insert(error);
            split.hope = split.hope.zip(hope).map(|(one, other)| one.max(other));
            self.waiting = self.waiting.filter(|waiting| *waiting != index);
        }
        if split.outstanding > 0 || split.rest.blocks > 0 {
            return None;
        }
        self.free.push(index);
        entry.take()
    }

    /// Notes that a command will not come back: for a queue whose device can no longer touch memory.
    pub(super) fn part_abandoned(&mut self, index: u16) {
        let split = self.table[usize::from(index)].as_mut();
        split.expect("a command of it was in flight").outstanding -= 1;
        self.parts -= 1;
    }

    /// Returns any request: for a queue whose device can no longer touch memory.
    pub(super) fn any(&self) -> Option<u16> {
        self.all().next()
    }

    /// Returns every request.
    pub(super) fn all(&self) -> impl Iterator<Item = u16> {
        let numbered = (0..u16::MAX).zip(&self.table);
        numbered.filter(|(_, split)| split.is_some()).map(|(index, _)| index)
    }

    /// Returns a request.
    pub(super) fn get(&self, index: u16) -> Option<&Split> {
        self.table[usize::from(index)].as_ref()
    }

    /// Takes a request out, whatever is out of it: for a queue whose device can no longer touch memory, or a request of
    /// which nothing is.
    pub(super) fn take(&mut self, index: u16) -> Option<Split> {
        let split = self.table[usize::from(index)].take()?;
        self.waiting = self.waiting.filter(|waiting| *waiting != index);
        self.parts -= split.outstanding as usize;
        self.free.push(index);
        Some(split)
    }

    /// Says whether there is room for one more.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Puts a request in of which nothing is out, to be sent later; there is room.
    pub(super) fn shelve(&mut self, split: Split) -> u16 {
        let index = self.free.pop().expect("it has just come out, or there was room");
        self.table[usize::from(index)] = Some(split);
        index
    }

    /// Lets no request wait for slots: all begin anew, one after the other, and so does what was looked for.
    pub(super) fn hold(&mut self) {
        self.waiting = None;
        self.table.iter_mut().flatten().for_each(|split| split.search = None);
    }

    /// Begins a request anew, of which nothing is out. It waits for slots then; no other may.
    pub(super) fn restart(&mut self, index: u16, rest: Piece) {
        let split = self.resume(index, rest);
        split.trials = split.trials.saturating_add(1);
    }

    /// Begins a piece of a request of which nothing is out. It waits for slots then; no other may.
    pub(super) fn resume(&mut self, index: u16, rest: Piece) -> &mut Split {
        assert!(self.waiting.is_none(), "one request at a time waits for slots");
        self.waiting = Some(index);
        let split = self.table[usize::from(index)].as_mut().expect("it is to be sent again");
        assert_eq!(split.outstanding, 0, "a request is sent again while it is out");
        (split.rest, split.error, split.hope) = (rest, None, Some(Duration::ZERO));
        split
    }

    /// Returns the number of split requests.
    pub(super) fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// Returns the number of their commands that are out.
    pub(super) fn parts(&self) -> usize {
        self.parts
    }
}
