//! The handle of one core: requests of any offset and length, in flight side by side.
//!
//! Aligned requests go to the pipeline at once. The others are kept here ([`Ragged`]) and sent in steps,
//! whenever the caller polls.
#![forbid(unsafe_code)]

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;

use super::edges::{Edges, Turn};
use super::extend::{APPEND, EXTENDING_MAX, Extending, Stage as EndStage, gone};
use super::ragged::{Part, Ragged, Stage};
use super::{Action, Done, Io, Memory, OpenError, Options, Refused, SEGMENTS_MAX, Statistics};
use crate::block::{BlockDevice, BlockError, Cause, Counters, MapBlocks};
use crate::dio::Pipeline;
use crate::dma::{Access, DmaBuf, Domain};
use crate::units::{BlockCount, FileId, Lba, LbaSize};

/// Marks the tags of the handle's own requests; callers' tags stay below.
pub(super) const OWN: u64 = 1 << 63;

/// The tag of a blocking call's request.
pub(super) const BLOCKING: u64 = OWN | 1 << 62;

/// Marks the tags of writes that move the end of a file: the slot follows, and whether it is the write itself or the
/// zeroes before it.
const EXTENDING: u64 = OWN | 1 << 61;

/// Requests off the grid at once; each has up to two edge buffers.
const RAGGED_MAX: usize = 32;

/// Segments that a request off the grid may have, so that its edges fit too.
const RAGGED_SEGMENTS_MAX: usize = SEGMENTS_MAX - 2;

/// What blocking calls copy through.
const STAGING_BYTES: usize = 256 << 10;

/// What a handle has counted of requests off the grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeCounts {
    /// Requests that did not begin and end at blocks.
    pub requests: u64,
    /// Blocks that were read to be rewritten.
    pub reads: u64,
    /// Writes that had to wait for another one at the same block.
    pub waits: u64,
}

/// A volume's handle for one core.
pub struct Handle<M: MapBlocks> {
    pipeline: Pipeline<M>,
    lba_size: LbaSize,
    capacity: BlockCount,
    edges: Arc<Edges>,
    /// Requests off the grid, by the index in their tags; and the indices that are free.
    ragged: Vec<Option<Ragged>>,
    free: Vec<u16>,
    edge_buffers: Vec<DmaBuf>,
    /// Writes that move the end of a file, by the slot in their tags; and how many there are.
    extending: Vec<Option<Extending>>,
    extending_count: usize,
    domain: Arc<Domain>,
    /// Where the last append of a blocking call began.
    pub(super) appended: u64,
    /// Answers to the handle's own requests.
    answers: VecDeque<Done>,
    /// Requests that are finished and were not handed over yet.
    ready: VecDeque<Done>,
    /// The answer that a blocking call waits for.
    pub(super) answer: Option<Done>,
    pub(super) staging: Option<DmaBuf>,
    timeout: Duration,
    counts: EdgeCounts,
}

impl<M: MapBlocks> Handle<M> {
    pub(super) fn open(
        device: &dyn BlockDevice,
        map: M,
        edges: Arc<Edges>,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let pipeline = Pipeline::open(device, map, options)?;
        let geometry = device.geometry();
        let block = geometry.lba_size.bytes() as usize;
        let buffer = |bytes| device.dma().buffer(bytes, Access::Both);
        let edge_buffers: Result<_, _> = (0..2 * RAGGED_MAX).map(|_| buffer(block)).collect();
        Ok(Self {
            lba_size: geometry.lba_size,
            capacity: geometry.blocks,
            edges,
            ragged: (0..RAGGED_MAX).map(|_| None).collect(),
            free: (0..RAGGED_MAX as u16).rev().collect(),
            edge_buffers: edge_buffers?,
            extending: (0..EXTENDING_MAX).map(|_| None).collect(),
            extending_count: 0,
            domain: Arc::clone(device.dma()),
            appended: 0,
            answers: VecDeque::with_capacity(pipeline.capacity()),
            ready: VecDeque::with_capacity(RAGGED_MAX + pipeline.capacity()),
            answer: None,
            staging: Some(buffer(STAGING_BYTES)?),
            timeout: options.queue.timeout,
            counts: EdgeCounts::default(),
            pipeline,
        })
    }

    /// Takes a request, of any offset and length. The device is told by [`ring`](Self::ring).
    ///
    /// # Errors
    ///
    /// The request comes back at once, with its memory, if as many are under way as may be, or if it can
    /// never be carried out: tags are below 2^63, requests off the grid read or write and have at most 1022
    /// segments.
    #[inline]
    pub fn submit(&mut self, io: Io) -> Result<(), Refused> {
        if io.tag >= OWN {
            return Err(invalid(io, "tag", OWN - 1));
        }
        self.submit_tagged(io)
    }

    /// Takes a write that begins where its file ends by the time its turn comes; the request's own offset does not
    /// count. Appends of all handles to one file follow each other, without gaps and in one piece each.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn submit_append(&mut self, io: Io) -> Result<(), Refused> {
        self.submit(Io { offset: APPEND, ..io })
    }

    /// Tells the device of everything that was submitted since the last call.
    #[inline]
    pub fn ring(&mut self) {
        self.pipeline.ring();
    }

    /// Hands finished requests to `sink`, at most `max`, and returns how many. Requests that were waiting for
    /// room, or for their turn at a block, go on.
    #[inline]
    pub fn poll(&mut self, max: usize, sink: &mut impl FnMut(Done)) -> usize {
        let mut delivered = if self.ready.is_empty() { 0 } else { self.deliver(max, sink) };
        let Self { pipeline, answers, .. } = self;
        let mut own = 0;
        let count = pipeline.poll(max - delivered, &mut |done| {
            if done.tag < OWN {
                sink(done);
            } else {
                own += 1;
                answers.push_back(done);
            }
        });
        delivered += count - own;
        if own > 0 || self.free.len() < RAGGED_MAX || self.extending_count > 0 {
            self.go_on();
            delivered += self.deliver(max - delivered, sink);
        }
        delivered
    }

    /// Returns the number of requests that were taken and have not come back.
    #[inline]
    pub fn inflight(&self) -> usize {
        let out = self.ragged.iter().flatten().map(Ragged::requests_out).sum::<usize>();
        let moving = self.extending.iter().flatten().filter(|one| one.is_out()).count();
        self.pipeline.inflight() - out + (RAGGED_MAX - self.free.len()) + self.ready.len() - moving
            + self.extending_count
    }

    /// Returns the most requests that may be under way.
    pub fn capacity(&self) -> usize {
        self.pipeline.capacity()
    }

    /// Returns what the pipeline has counted, with the handle's own requests.
    pub fn statistics(&self) -> Statistics {
        self.pipeline.statistics()
    }

    /// Returns what was counted of requests off the grid.
    pub fn edge_counts(&self) -> EdgeCounts {
        self.counts
    }

    /// Returns what the queue has counted.
    pub fn counters(&self) -> Counters {
        self.pipeline.counters()
    }

    /// Takes the turn at the end of a file.
    pub(super) fn turn_at_end(&self, file: FileId) -> Turn {
        self.edges.queue_up(Extending::wanted(file))
    }

    /// Takes a write where its file ends, whose tag may be the handle's own.
    pub(super) fn append_tagged(&mut self, io: Io) -> Result<(), Refused> {
        self.submit_tagged(Io { offset: APPEND, ..io })
    }

    /// Sends a request that does not wait for the turn at an end: the caller has it.
    pub(super) fn submit_with_turn(&mut self, io: Io) -> Result<(), Refused> {
        self.submit_inside(io)
    }

    /// Returns how long a request may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the memory that the device can reach.
    pub(super) fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// Returns the map.
    pub fn map(&self) -> &M {
        self.pipeline.map()
    }

    /// Returns the size of a block.
    pub fn lba_size(&self) -> LbaSize {
        self.lba_size
    }

    /// Takes a request whose tag may be the handle's own.
    #[inline]
    pub(super) fn submit_tagged(&mut self, io: Io) -> Result<(), Refused> {
        if matches!(io.action, Action::Write { .. })
            && let Some(end) = self.pipeline.map().end(io.file)
            && io.offset.saturating_add(io.len()) > end.size
            && !io.is_empty()
        {
            return self.submit_extending(io);
        }
        self.submit_inside(io)
    }

    /// Takes a request that does not move an end, or whose turn to do so has come.
    #[inline]
    fn submit_inside(&mut self, io: Io) -> Result<(), Refused> {
        // A wrong length of a request that is not ragged is found further down.
        let odd = u64::from(self.lba_size.bytes()) - 1;
        let moves = matches!(io.action, Action::Read | Action::Write { .. });
        if moves && (io.offset | io.len()) & odd != 0 && !io.is_empty() {
            return self.submit_ragged(io);
        }
        self.pipeline.submit(io)
    }

    #[cold]
    fn submit_ragged(&mut self, io: Io) -> Result<(), Refused> {
        let block = u64::from(self.lba_size.bytes());
        if let Err(error) = self.check_ragged(&io) {
            return Err(Refused::Invalid(io, error));
        }
        let (head, tail) = Ragged::edges(&io, block);
        let needed = usize::from(head) + usize::from(tail);
        if self.edge_buffers.len() < needed || self.free.is_empty() {
            return Err(Refused::Full(io));
        }
        let index = self.free.pop().expect("one is free");
        let mut take = |wanted: bool| if wanted { self.edge_buffers.pop() } else { None };
        let (head, tail) = (take(head), take(tail));
        let mut ragged = Ragged::new(io, block, head, tail);
        if ragged.stage == Stage::Waiting {
            let turn = self.edges.queue_up(ragged.wanted());
            if !turn.has_come() {
                self.counts.waits += 1;
            }
            ragged.queued(turn);
        }
        self.counts.requests += 1;
        self.ragged[usize::from(index)] = Some(ragged);
        self.advance(index);
        Ok(())
    }

    #[cold]
    fn submit_extending(&mut self, io: Io) -> Result<(), Refused> {
        if self.extending_count == EXTENDING_MAX {
            return Err(Refused::Full(io));
        }
        if let Err(error) = self.pipeline.check_memory(&io) {
            return Err(Refused::Invalid(io, error));
        }
        let slot = self.extending.iter().position(Option::is_none).expect("one is free");
        let turn = self.edges.queue_up(Extending::wanted(io.file));
        self.extending[slot] = Some(Extending::new(io, turn));
        self.extending_count += 1;
        self.extend(slot);
        Ok(())
    }

    /// Takes the next steps of a write that moves an end, as far as there is room.
    fn extend(&mut self, slot: usize) {
        while let Some(one) = &mut self.extending[slot] {
            match one.stage {
                EndStage::Waiting if one.may_go() => {
                    let file = one.file;
                    let Some(end) = self.pipeline.map().end(file) else {
                        self.end_extending(slot, gone(file));
                        return;
                    };
                    match one.place(end) {
                        None => one.stage = EndStage::Placed,
                        Some(fill) => {
                            if !self.fill_before(slot, file, fill) {
                                return;
                            }
                        }
                    }
                }
                EndStage::Waiting if one.since.elapsed() >= self.timeout => {
                    let what = "another write at the end of the file".into();
                    self.end_extending(slot, Cause::Timeout { what, after: self.timeout }.into());
                }
                EndStage::Placed => {
                    let io = one.take(EXTENDING | (slot as u64) << 1 | 1);
                    let refused = self.submit_inside(io).err();
                    let one = self.extending[slot].as_mut().expect("it is under way");
                    match refused {
                        None => one.stage = EndStage::Moving,
                        Some(Refused::Full(io)) => {
                            one.put_back(io);
                            return;
                        }
                        Some(Refused::Invalid(io, error)) => {
                            one.put_back(io);
                            self.end_extending(slot, error);
                        }
                    }
                }
                EndStage::Waiting | EndStage::Filling | EndStage::Moving => return,
            }
        }
    }

    /// Sends the zeroes between the end and a write behind it; says whether they are on their way, or why not is
    /// told already.
    fn fill_before(&mut self, slot: usize, file: FileId, bytes: core::ops::Range<u64>) -> bool {
        let len = (bytes.end - bytes.start) as usize;
        let mut zeroes = match self.domain.buffer(len, Access::Both) {
            Ok(zeroes) => zeroes,
            Err(error) => {
                let cause = Cause::Busy { what: error.to_string().into() };
                self.end_extending(slot, BlockError::from(cause).with_source(error));
                return true;
            }
        };
        zeroes.fill(0);
        let io = Io::write(bytes.start, zeroes, EXTENDING | (slot as u64) << 1).of(file);
        let refused = self.submit_inside(io).err();
        match refused {
            None => {
                let one = self.extending[slot].as_mut().expect("it is under way");
                one.stage = EndStage::Filling;
                true
            }
            Some(Refused::Full(_)) => false,
            Some(Refused::Invalid(_, error)) => {
                self.end_extending(slot, error);
                true
            }
        }
    }

    /// Ends a write at an end before it was sent.
    #[cold]
    fn end_extending(&mut self, slot: usize, error: BlockError) {
        let one = self.extending[slot].take().expect("it is under way");
        self.extending_count -= 1;
        let tag = one.tag;
        let memory = one.into_memory();
        self.hand_over(Done { tag, memory, bytes: 0, result: Err(error) });
    }

    /// Takes in the answer to a request of a write at an end.
    fn extended(&mut self, done: Done) {
        let slot = (done.tag & !EXTENDING) as usize >> 1;
        let one = self.extending[slot].as_mut().expect("a request of it was in flight");
        if done.tag & 1 == 0 {
            one.stage = EndStage::Placed;
            if let Err(error) = done.result {
                self.end_extending(slot, error);
            }
            return;
        }
        self.appended = one.placed;
        let tag = one.tag;
        self.extending[slot] = None;
        self.extending_count -= 1;
        self.hand_over(Done { tag, ..done });
    }

    fn check_ragged(&mut self, io: &Io) -> Result<(), BlockError> {
        let segments = match &io.memory {
            Memory::Vector(vector) => vector.slices.len(),
            _ => 1,
        };
        if segments > RAGGED_SEGMENTS_MAX {
            let (what, value) = ("segments of a request off the grid", segments as u64);
            let (least, most) = (1, RAGGED_SEGMENTS_MAX as u64);
            return Err(Cause::Invalid { what, value, least, most }.into());
        }
        let shift = self.lba_size.shift();
        let end = io.offset.checked_add(io.len());
        if end.is_none_or(|end| end > u64::MAX - u64::from(self.lba_size.bytes())) {
            let (lba, blocks) = (Lba(io.offset >> shift), BlockCount(io.len() >> shift));
            return Err(Cause::OutOfRange { lba, blocks, capacity: self.capacity }.into());
        }
        self.pipeline.check_memory(io)
    }

    /// Takes in the answers to the handle's own requests, and lets those off the grid go on.
    #[cold]
    fn go_on(&mut self) {
        while let Some(done) = self.answers.pop_front() {
            self.take_in(done);
        }
        for index in 0..self.ragged.len() as u16 {
            self.advance(index);
        }
        if self.extending_count > 0 {
            (0..EXTENDING_MAX).for_each(|slot| self.extend(slot));
        }
        self.pipeline.ring();
    }

    fn take_in(&mut self, done: Done) {
        if done.tag == BLOCKING || done.tag & EXTENDING == EXTENDING {
            self.hand_over(done);
            return;
        }
        let (index, part) = untag(done.tag);
        let slot = &mut self.ragged[usize::from(index)];
        let ragged = slot.as_mut().expect("a request of it was in flight");
        if part != Part::Covering {
            let Done { memory, result, .. } = done;
            ragged.edge_back(part, memory);
            let Stage::Reading { out, .. } = &mut ragged.stage else {
                unreachable!("an edge was being read")
            };
            *out -= 1;
            if let Err(error) = result {
                ragged.fail(error);
            }
            return;
        }
        ragged.uncover(done.memory);
        self.finish(index, Done { memory: Memory::Nothing, ..done });
    }

    fn finish(&mut self, index: u16, done: Done) {
        let ragged = self.ragged[usize::from(index)].take().expect("it is under way");
        let (done, edges) = ragged.finish(done);
        self.edge_buffers.extend(edges.into_iter().flatten());
        self.free.push(index);
        self.hand_over(done);
    }

    /// Puts a finished request where its caller looks for it.
    fn hand_over(&mut self, done: Done) {
        if done.tag == BLOCKING {
            self.answer = Some(done);
        } else if done.tag & EXTENDING == EXTENDING {
            self.extended(done);
        } else {
            self.ready.push_back(done);
        }
    }

    /// Takes the next steps of a request off the grid, as far as there is room.
    fn advance(&mut self, index: u16) {
        while let Some(ragged) = &mut self.ragged[usize::from(index)] {
            match ragged.stage {
                Stage::Waiting if ragged.may_go() => ragged.read_edges(),
                Stage::Waiting if ragged.since.elapsed() >= self.timeout => {
                    let what = "another write of the same block".into();
                    let error = Cause::Timeout { what, after: self.timeout };
                    ragged.fail(error.into());
                    self.give_up(index);
                }
                Stage::Reading { head: false, tail: false, out: 0 } => {
                    if ragged.has_failed() {
                        self.give_up(index);
                    } else {
                        ragged.fill_edges();
                        ragged.stage = Stage::Moving;
                    }
                }
                Stage::Reading { head, tail, out } if head || tail => {
                    let part = if head { Part::Head } else { Part::Tail };
                    let io = ragged.edge_read(part, tag(index, part));
                    match self.pipeline.submit(io) {
                        Ok(()) => {
                            self.counts.reads += 1;
                            let (head, tail) = (false, tail && head);
                            ragged.stage = Stage::Reading { head, tail, out: out + 1 };
                        }
                        Err(refused) => {
                            let (memory, error) = taken_apart(refused);
                            ragged.edge_back(part, memory);
                            let Some(error) = error else { return };
                            ragged.fail(error);
                            ragged.stage = Stage::Reading { head: false, tail: false, out };
                        }
                    }
                }
                Stage::Moving => {
                    let io = ragged.covering(tag(index, Part::Covering));
                    match self.pipeline.submit(io) {
                        Ok(()) => ragged.stage = Stage::Moved,
                        Err(refused) => {
                            let (memory, error) = taken_apart(refused);
                            ragged.uncover(memory);
                            let Some(error) = error else { return };
                            ragged.fail(error);
                            self.give_up(index);
                        }
                    }
                }
                Stage::Waiting | Stage::Reading { .. } | Stage::Moved => return,
            }
        }
    }

    /// Ends a request off the grid before its covering request was sent.
    #[cold]
    fn give_up(&mut self, index: u16) {
        let ragged = self.ragged[usize::from(index)].as_mut().expect("it is under way");
        let error = ragged.take_error().expect("there is a reason");
        let (tag, memory) = (0, Memory::Nothing);
        self.finish(index, Done { tag, memory, bytes: 0, result: Err(error) });
    }

    /// Polls for a blocking call: what others are waiting for is kept. Returns how much there was.
    pub(super) fn poll_inside(&mut self) -> usize {
        let Self { pipeline, answers, ready, .. } = self;
        let count = pipeline.poll(usize::MAX, &mut |done| {
            if done.tag < OWN { ready.push_back(done) } else { answers.push_back(done) }
        });
        self.go_on();
        count
    }

    /// Hands over what is finished already.
    #[inline]
    fn deliver(&mut self, max: usize, sink: &mut impl FnMut(Done)) -> usize {
        let mut delivered = 0;
        while delivered < max {
            let Some(done) = self.ready.pop_front() else { break };
            sink(done);
            delivered += 1;
        }
        delivered
    }
}

fn tag(index: u16, part: Part) -> u64 {
    let part = match part {
        Part::Head => 0,
        Part::Tail => 1,
        Part::Covering => 2,
    };
    OWN | u64::from(index) << 2 | part
}

fn untag(tag: u64) -> (u16, Part) {
    let part = match tag & 3 {
        0 => Part::Head,
        1 => Part::Tail,
        _ => Part::Covering,
    };
    ((tag >> 2) as u16, part)
}

/// Returns the memory of a request that was not taken, and why it never will be.
fn taken_apart(refused: Refused) -> (Memory, Option<BlockError>) {
    match refused {
        Refused::Full(io) => (io.memory, None),
        Refused::Invalid(io, error) => (io.memory, Some(error)),
    }
}

#[cold]
fn invalid(io: Io, what: &'static str, most: u64) -> Refused {
    let cause = Cause::Invalid { what, value: io.tag, least: 0, most };
    Refused::Invalid(io, cause.into())
}
