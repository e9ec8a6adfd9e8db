//! The pipeline of one core: takes requests, keeps them going, hands them back.
//!
//! A plain request (one buffer, one extent, one command) moves straight into the queue and its record is one
//! line. Everything else gets a cursor and walks (`walk.rs`): in `submit` as far as slots go, and on from
//! there at every `poll`.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::memory::Memory;
use super::request::{Action, Done, Io, Refused, Statistics};
use super::shape::Plain;
use super::walker::Walker;
use crate::block::{
    Begun, BlockDevice, BlockError, Cause, Counters, Durability, Extent, Intent, IoQueue,
    MapBlocks, Mapping, Operation, Payload, QueueOptions, Reach, Rejected, Request,
};
use crate::dma::DmaError;
use crate::units::{BlockCount, FileBlock};

/// What to do with memory that a device cannot reach where it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryPolicy {
    /// Copy its bytes through bounce buffers, and count it.
    #[default]
    Bounce,
    /// Refuse the request, with the numbers.
    Strict,
}

/// What a pipeline should be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// What its queue should be like.
    pub queue: QueueOptions,
    /// Requests under way at most, 1 to 65535; as many as the queue is deep by default.
    pub requests: Option<u32>,
    /// Commands of one request in flight at most; a quarter of the queue by default, so that a large request
    /// leaves room for small ones.
    pub share: Option<u32>,
    /// How many commands are sent before finished ones are looked for during submission.
    pub reap_every: u32,
    /// What to do with memory that the device cannot reach.
    pub memory: MemoryPolicy,
    /// Memory for bounce buffers, in bytes.
    pub bounce_bytes: usize,
    /// Whether neighbouring requests between two calls of `ring` may share a command.
    pub merge: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue: QueueOptions::default(),
            requests: None,
            share: None,
            reap_every: 64,
            memory: MemoryPolicy::Bounce,
            bounce_bytes: 1 << 20,
            merge: false,
        }
    }
}

/// Why a pipeline could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The device gave no queue.
    #[error("cannot open a queue")]
    Device(#[from] BlockError),
    /// There is no memory for zeroes and bounce buffers.
    #[error("cannot take the memory of a pipeline")]
    Memory(#[from] DmaError),
}

/// Marks the tag of a command that is a whole, plain request. Its record follows, or, with the second mark,
/// the caller's own tag: a request that holds nothing of the map needs no record.
pub(super) const DIRECT: u64 = 1 << 63;
pub(super) const UNRECORDED: u64 = 1 << 62;

/// The direct-I/O pipeline of one core, over one queue and one map.
pub struct Pipeline<M: MapBlocks> {
    /// First: the device has let go of all memory before the rest drops.
    queue: Box<dyn IoQueue>,
    /// Requests that were taken and not handed over yet.
    under_way: usize,
    walker: Walker<M>,
    /// Requests that the map has told to wait, and since when.
    parked: VecDeque<(Io, Instant)>,
    timeout: Duration,
}

impl<M: MapBlocks> Pipeline<M> {
    /// Opens a queue to the device and takes all memory that the pipeline will need.
    ///
    /// # Errors
    ///
    /// The device's, and those of the memory.
    pub fn open(device: &dyn BlockDevice, map: M, options: &Options) -> Result<Self, OpenError> {
        let queue = device.open_queue(&options.queue)?;
        Self::over(queue, device, map, options)
    }

    /// Makes a pipeline over a queue that was opened already.
    ///
    /// # Errors
    ///
    /// Those of the memory, and `Invalid` options.
    pub fn over(
        queue: Box<dyn IoQueue>,
        device: &dyn BlockDevice,
        map: M,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let walker = Walker::new(device, queue.depth(), map, options)?;
        let parked = VecDeque::with_capacity(walker.records.capacity());
        Ok(Self { queue, under_way: 0, walker, parked, timeout: options.queue.timeout })
    }

    /// Takes a request. As much of it as there is room for is given to the queue; the device is told by
    /// [`ring`](Self::ring).
    ///
    /// # Errors
    ///
    /// The request comes back at once, with its memory, if as many are under way as may be, or if it can
    /// never be carried out. Whatever goes wrong later comes with its completion.
    #[inline]
    pub fn submit(&mut self, io: Io) -> Result<(), Refused> {
        // Written so that a plain request's buffer moves once, from here into the queue's request: whatever takes
        // the whole request by value copies it, and is kept out of the way.
        let is_full = self.is_full();
        let walker = &mut self.walker;
        let Some(Plain { at, blocks }) = walker.shape.plain(&io) else {
            return self.submit_any(io);
        };
        if is_full || walker.merge {
            return self.submit_any(io);
        }
        let reach = reach_of(&io);
        let Begun { mut guard, size } = match walker.map.begin(&reach) {
            Ok(Some(begun)) => begun,
            other => return self.submit_late(io, other),
        };
        let ends_early =
            reach.intent == Intent::Read && size.saturating_sub(reach.offset) < reach.len;
        if ends_early {
            return self.submit_begun(io, Begun { guard, size }, None);
        }
        let lba = match walker.map.map(&mut guard, FileBlock(at), BlockCount(blocks)) {
            Ok(Mapping::Mapped(Extent { lba, blocks: found, boundary: false, .. }))
                if found.0 == blocks && walker.shape.is_one_command(lba.0, blocks) =>
            {
                lba
            }
            answer => {
                walker.statistics.mappings += 1;
                return self.submit_begun(io, Begun { guard, size }, Some(answer));
            }
        };
        let tag = walker.direct_tag(io.tag, guard);
        let Memory::One(buffer) = io.memory else { unreachable!("a plain request has one") };
        let payload = Payload::One(buffer);
        let operation = match io.action {
            Action::Write { durability } => {
                Operation::Write { lba, payload, fua: durability.is_durable() }
            }
            _ => Operation::Read { lba, payload },
        };
        match self.queue.submit(Request::new(operation, tag)) {
            Ok(()) => {
                self.walker.direct += 1;
                self.under_way += 1;
                Ok(())
            }
            Err(rejected) => self.undo_plain(rejected, &reach),
        }
    }

    /// Checks the memory of a request: segments, their buffers, what the device may do with them.
    ///
    /// # Errors
    ///
    /// What `submit` would refuse the request for.
    pub fn check_memory(&mut self, io: &Io) -> Result<(), BlockError> {
        self.walker.check_memory(io)
    }

    /// Tells the device of everything that was submitted since the last call.
    #[inline]
    pub fn ring(&mut self) {
        if self.walker.merge {
            self.walker.send_open(&mut *self.queue);
        }
        self.queue.ring();
    }

    /// Hands finished requests to `sink`, at most `max`, and returns how many. Requests that were waiting for
    /// room go on.
    #[inline]
    pub fn poll(&mut self, max: usize, sink: &mut impl FnMut(Done)) -> usize {
        let Self { queue, walker, under_way, .. } = self;
        walker.map.turn();
        let mut tally = Tally { left: max, before: max, under_way };
        if !walker.ready.is_empty() {
            walker.deliver(&mut tally, sink);
        }
        if tally.left > 0 {
            queue.poll(tally.left, &mut |completion| walker.complete(completion, &mut tally, sink));
        }
        let mut left = tally.left;
        drop(tally);
        if !self.walker.is_idle() || !self.parked.is_empty() {
            self.go_on();
            let under_way = &mut self.under_way;
            let mut tally = Tally { left, before: left, under_way };
            self.walker.deliver(&mut tally, sink);
            left = tally.left;
        }
        max - left
    }

    /// Returns the number of requests that were taken and have not come back.
    #[inline]
    pub fn inflight(&self) -> usize {
        self.under_way
    }

    /// Returns the most requests that may be under way.
    pub fn capacity(&self) -> usize {
        self.walker.records.capacity()
    }

    /// Returns the map.
    pub fn map(&self) -> &M {
        &self.walker.map
    }

    /// Returns what the pipeline has counted.
    pub fn statistics(&self) -> Statistics {
        let Walker { direct, statistics, .. } = &self.walker;
        // A plain request is one of each.
        Statistics {
            requests: statistics.requests + direct,
            direct: *direct,
            commands: statistics.commands + direct,
            mappings: statistics.mappings + direct,
            ..*statistics
        }
    }

    /// Returns what its queue has counted.
    pub fn counters(&self) -> Counters {
        self.queue.counters()
    }

    /// Takes back a plain request that the queue would not have, or had no room for because others are many
    /// commands: then it waits like one of those.
    #[cold]
    fn undo_plain(&mut self, rejected: Rejected, reach: &Reach) -> Result<(), Refused> {
        let (request, error) = match rejected {
            Rejected::QueueFull(request) => (request, None),
            Rejected::Invalid(request, error) => (request, Some(error)),
        };
        let (tag, guard) = self.walker.direct_end(request.tag);
        drop(guard);
        let action = match request.operation {
            Operation::Write { .. } => Action::Write { durability: reach.durability },
            _ => Action::Read,
        };
        let memory = match request.into_payload() {
            Some(Payload::One(buffer)) => Memory::One(buffer),
            _ => unreachable!("the queue gives back what it was given"),
        };
        let (file, offset) = (reach.file, reach.offset);
        let io = Io { file, offset, action, memory, excess: 0, tag };
        match error {
            Some(error) => Err(Refused::Invalid(io, error)),
            None => self.submit_any(io),
        }
    }

    /// Says whether as many requests are under way as may be. Each has at most one record.
    #[inline]
    fn is_full(&self) -> bool {
        self.under_way >= self.walker.records.capacity()
    }

    /// Counts a request that is not plain.
    fn count_in(&mut self) {
        self.under_way += 1;
        self.walker.statistics.requests += 1;
    }

    #[cold]
    fn turn_away(&mut self, io: Io) -> Refused {
        self.walker.statistics.full += 1;
        Refused::Full(io)
    }

    /// Takes a request that is not plain: checks it, and begins it.
    #[inline(never)]
    fn submit_any(&mut self, io: Io) -> Result<(), Refused> {
        if let Err(error) = self.walker.check(&io) {
            return Err(Refused::Invalid(io, error));
        }
        if self.is_full() {
            return Err(self.turn_away(io));
        }
        if io.action != Action::Flush && !io.is_empty() {
            let begun = self.walker.map.begin(&reach_of(&io));
            return match begun {
                Ok(Some(begun)) => self.submit_begun(io, begun, None),
                other => self.submit_late(io, other),
            };
        }
        if io.action == Action::Flush {
            return self.submit_flush(io);
        }
        self.count_in();
        // Rule 3: nothing to do is done at once.
        let Io { tag, memory, .. } = io;
        self.walker.ready.push_back(Done { tag, memory, bytes: 0, result: Ok(()) });
        Ok(())
    }

    /// Takes a flush: the map's affair, if it keeps anything of its own on the device.
    fn submit_flush(&mut self, io: Io) -> Result<(), Refused> {
        let mark = match self.walker.map.sync(io.file) {
            Ok(mark) => mark,
            Err(error) => return Err(Refused::Invalid(io, error)),
        };
        self.count_in();
        match mark {
            None => {
                self.walker.admit_flush(io.tag);
                self.walker.go_on(&mut *self.queue);
            }
            Some(mark) => {
                let Io { tag, memory, .. } = io;
                self.walker.settle_later(mark, Done { tag, memory, bytes: 0, result: Ok(()) });
            }
        }
        Ok(())
    }

    /// Parks a request that the map has told to wait, or refuses one that it will not have.
    #[cold]
    fn submit_late(
        &mut self,
        io: Io,
        begun: Result<Option<Begun<M::Guard>>, BlockError>,
    ) -> Result<(), Refused> {
        match begun {
            Ok(_) => {
                self.count_in();
                self.walker.statistics.waits += 1;
                self.parked.push_back((io, Instant::now()));
                Ok(())
            }
            Err(error) => Err(Refused::Invalid(io, error)),
        }
    }

    /// Walks a request that the map has begun, and whose first answer may be there already.
    #[inline(never)]
    fn submit_begun(
        &mut self,
        io: Io,
        begun: Begun<M::Guard>,
        answer: Option<Result<Mapping, BlockError>>,
    ) -> Result<(), Refused> {
        self.count_in();
        self.walker.admit(&mut *self.queue, io, begun, answer);
        Ok(())
    }

    /// Lets waiting requests go on, and tells the device of what they sent.
    #[cold]
    fn go_on(&mut self) {
        self.walker.look_for_settled(self.timeout);
        for _ in 0..self.parked.len() {
            let Some((io, since)) = self.parked.pop_front() else { break };
            match self.walker.map.begin(&reach_of(&io)) {
                Ok(Some(begun)) => self.walker.admit(&mut *self.queue, io, begun, None),
                Ok(None) if since.elapsed() < self.timeout => self.parked.push_back((io, since)),
                Ok(None) => {
                    let what = "what is in the way of a request in the map".into();
                    let error = Cause::Timeout { what, after: self.timeout };
                    self.walker.refuse(io, error.into());
                }
                Err(error) => self.walker.refuse(io, error),
            }
        }
        self.walker.go_on(&mut *self.queue);
        self.walker.send_open(&mut *self.queue);
        self.queue.ring();
    }
}

/// How many more requests a poll may hand over. What it has handed over is taken off the count of those under
/// way at its end, also where a sink panics.
pub(super) struct Tally<'a> {
    left: usize,
    before: usize,
    under_way: &'a mut usize,
}

impl Tally<'_> {
    /// Counts a request that is about to be handed over; says no where there is no more room.
    #[inline(always)]
    pub(super) fn count(&mut self) -> bool {
        let has_room = self.left > 0;
        self.left -= usize::from(has_room);
        has_room
    }

    /// Takes the last count back: it was not handed over.
    #[cold]
    pub(super) fn uncount(&mut self) {
        self.left += 1;
    }

    /// Says whether one more may be handed over.
    #[inline(always)]
    pub(super) fn has_room(&self) -> bool {
        self.left > 0
    }
}

impl Drop for Tally<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        *self.under_way -= self.before - self.left;
    }
}

/// Returns what a request reaches.
#[inline]
fn reach_of(io: &Io) -> Reach {
    let (intent, durability) = match io.action {
        Action::Read | Action::Flush => (Intent::Read, Durability::Lazy),
        Action::Write { durability } => (Intent::Write, durability),
        Action::WriteZeroes { durability, .. } => (Intent::Clear, durability),
        Action::Deallocate { .. } => (Intent::Clear, Durability::Lazy),
    };
    let len = io.len() - u64::from(io.excess);
    Reach { file: io.file, offset: io.offset, len, intent, durability }
}
