//! A queue pair: requests in, commands out, completions checked, requests back.
//!
//! ```text
//!  submit: check -> cut? -> slot + PRP/SGL + SQE      (the buffer moves into the slot; no doorbell)
//!  ring:   one doorbell for everything since the last
//!  poll:   CQE copied once -> phase, queue, slot, generation, SQ head -> slot freed -> caller
//! ```
//!
//! The queue belongs to one core. It allocates when it is opened and never again while requests succeed.
//! A completion that breaks the rules ends the era of the whole controller: nothing it says is believed until it has
//! been reset. What requests come to then is in [`trouble`].
#![forbid(unsafe_code)]

mod trouble;

use std::sync::Arc;

use self::trouble::Errand;
use super::compose::{Composed, compose};
use super::controller::Controller;
use super::health::Era;
use super::limits::{Limits, Piece};
use super::lists::Lists;
use super::queues::Place;
use super::recovery::Reason;
use super::ring::{CompletionRing, SubmissionRing};
use super::slots::{ListPage, Owner, SlotIndex, Slots};
use super::split::{Split, Splits};
use super::tags::Tags;
use crate::block::deadline::Deadlines;
use crate::block::{BlockError, Completion, Counters, IoQueue, Operation, Rejected, Request};
use crate::spec::command::Command;
use crate::spec::completion::Completion as Entry;
use crate::spec::identify::IdentifyNamespace;
use crate::transport::Pump;
use crate::units::CommandId;

/// One I/O queue pair to one namespace.
///
/// Fields are in the order they are used, so that the hot ones share lines.
pub(super) struct QueuePair {
    cq: CompletionRing,
    sq: SubmissionRing,
    slots: Slots<Owner>,
    limits: Limits,
    counters: Counters,
    deadlines: Deadlines,
    pump: Option<Box<dyn Pump>>,
    lists: Lists,
    splits: Splits,
    /// Metadata on its way, where it travels.
    tags: Option<Box<Tags>>,
    place: Place,
    /// When the controller learnt of the queue.
    era: Era,
    /// Requests that wait for something else than the controller.
    errands: Vec<Errand>,
    /// Completions up to the last time that the controller was told of success.
    seen: u64,
    /// What the namespace was identified as.
    identified: Arc<IdentifyNamespace>,
    /// Why the queue is no longer used, once it is not.
    failed: Option<Reason>,
    /// Last: rings and list pages are unmapped only after the controller has let go of them (`drop`).
    controller: Arc<Controller>,
}

/// What a queue pair is made of.
pub(super) struct Parts {
    pub(super) place: Place,
    pub(super) identified: Arc<IdentifyNamespace>,
    pub(super) sq: SubmissionRing,
    pub(super) cq: CompletionRing,
    pub(super) slots: Slots<Owner>,
    pub(super) lists: Lists,
    pub(super) limits: Limits,
    pub(super) tags: Option<Box<Tags>>,
    pub(super) deadlines: Deadlines,
    pub(super) pump: Option<Box<dyn Pump>>,
}

impl QueuePair {
    pub(super) fn new(parts: Parts, controller: Arc<Controller>) -> Self {
        let Parts { place, identified, sq, cq, slots, lists, limits, tags, deadlines, pump } =
            parts;
        let all = tags.as_ref().is_some_and(|tags| tags.are_looked_at());
        let splits = if all { Splits::of_all(slots.len()) } else { Splits::new(slots.len()) };
        Self {
            cq,
            sq,
            slots,
            limits,
            counters: Counters::default(),
            deadlines,
            pump,
            lists,
            splits,
            tags,
            place,
            era: Era::NONE,
            errands: Vec::new(),
            seen: 0,
            identified,
            failed: None,
            controller,
        }
    }

    /// Lets the controller know of the queue, from an empty ring on. To be called in each era.
    ///
    /// # Errors
    ///
    /// The controller's, and `Uncertain` if the era is over before it knows.
    pub(super) fn join(&mut self, era: Era) -> Result<(), BlockError> {
        self.sq.restart();
        self.cq.restart();
        self.controller.create_queue_pair(era, self.place)?;
        self.era = era;
        Ok(())
    }

    #[inline(always)]
    fn send(&mut self, mut command: Command, list: Option<ListPage>, owner: Owner) {
        let stamp = self.deadlines.start();
        command.cid = self.slots.fill(owner, list, stamp).0;
        self.sq.push(command);
        self.counters.submissions += 1;
    }

    /// Takes a request that is not plain: wrong, split, of another kind, or on many pages.
    #[inline(never)]
    fn submit_any(&mut self, request: Request) -> Result<(), Rejected> {
        let piece = match self.limits.check(&request.operation) {
            Ok(piece) => piece,
            Err(error) => return Err(Rejected::Invalid(request, error)),
        };
        if !self.has_room() {
            return Err(self.turn_away(request));
        }
        if self.limits.cut(&request.operation, piece) != piece.blocks {
            return self.submit_split(request, piece);
        }
        if self.limits.tagging.is_some() {
            return self.submit_tagged(request, piece);
        }
        match compose::<false>(&self.limits, &mut self.lists, &request.operation, piece, 0) {
            Some(Composed { command, list }) => {
                self.send(command, list, Owner::Request(request));
                Ok(())
            }
            None => Err(self.turn_away(request)),
        }
    }

    /// Takes a request that is one command on blocks with metadata.
    ///
    /// A read whose metadata is looked at here goes the way of split requests, of one part: there, what has
    /// come back is looked at before it is handed over, and all others need not ask.
    #[cold]
    fn submit_tagged(&mut self, request: Request, piece: Piece) -> Result<(), Rejected> {
        let is_read = matches!(request.operation, Operation::Read { .. });
        if is_read && self.tags.as_ref().is_some_and(|tags| tags.are_looked_at()) {
            return self.submit_in_parts(request, piece);
        }
        let Self { limits, lists, slots, tags, .. } = self;
        match assemble(limits, lists, slots.next(), tags, &request.operation, piece) {
            Some(Composed { command, list }) => {
                self.send(command, list, Owner::Request(request));
                Ok(())
            }
            None => Err(self.turn_away(request)),
        }
    }

    /// Says whether a request can be taken: a slot is free, and nobody waits for one.
    #[inline(always)]
    fn has_room(&self) -> bool {
        !self.slots.is_full() && !self.splits.is_waiting()
    }

    #[cold]
    fn turn_away(&mut self, request: Request) -> Rejected {
        self.counters.queue_full += 1;
        Rejected::QueueFull(request)
    }

    /// Takes a request that needs several commands and sends as many as there are slots.
    #[cold]
    fn submit_split(&mut self, request: Request, piece: Piece) -> Result<(), Rejected> {
        self.submit_in_parts(request, piece)?;
        self.counters.splits += 1;
        Ok(())
    }

    fn submit_in_parts(&mut self, request: Request, piece: Piece) -> Result<(), Rejected> {
        if let Err(request) = self.splits.begin(request, piece) {
            return Err(self.turn_away(request));
        }
        self.continue_split();
        Ok(())
    }

    /// Sends more commands of the request that waits for slots, if one does.
    fn continue_split(&mut self) {
        while !self.slots.is_full() {
            let Some((index, split)) = self.splits.waiting() else { return };
            let piece = next_piece(&self.limits, split);
            let operation = &split.request.operation;
            let Self { limits, lists, slots, tags, .. } = self;
            let composed = compose_part(limits, lists, slots.next(), tags, operation, piece);
            let Some(Composed { command, list }) = composed else { return };
            self.splits.sent(index, piece.blocks);
            self.send(command, list, Owner::Split(index));
        }
    }

    /// Checks a completion: queue, SQ head, slot, generation. `None` is a violation.
    #[inline(always)]
    fn check(&mut self, entry: Entry) -> Option<SlotIndex> {
        if entry.sq_id != self.place.id.0 || !self.sq.accept_head(entry.sq_head) {
            return None;
        }
        self.slots.find(CommandId(entry.cid))
    }

    /// Takes in completions of a live queue.
    #[inline(always)]
    fn reap(&mut self, max: usize, sink: &mut dyn FnMut(Completion)) -> usize {
        let (mut seen, mut delivered) = (0, 0);
        while delivered < max {
            let Some(entry) = self.cq.peek() else { break };
            let Some(index) = self.check(entry) else {
                self.refuse(entry);
                break;
            };
            self.cq.advance();
            seen += 1;
            let (stamp, list) = self.slots.marks(index);
            self.deadlines.stop(stamp);
            if let Some(list) = list {
                self.lists.give_back(list);
            }
            // The slot is free before the caller hears of it, and so is warm when it submits again.
            match self.slots.empty(index) {
                Owner::Request(request) => {
                    if entry.status.is_success() {
                        delivered += 1;
                        deliver(request, sink);
                    } else {
                        delivered += self.end_failed(request, entry.status, stamp, sink);
                    }
                }
                Owner::Split(split) => {
                    if let Some(completion) = self.finish_part(split, entry, index) {
                        delivered += 1;
                        sink(completion);
                    }
                }
                Owner::Nobody => {}
            }
        }
        self.account(seen);
        delivered
    }

    #[inline(always)]
    fn account(&mut self, seen: u64) {
        self.counters.completions += seen;
        if seen == 0 {
            self.counters.idle_polls += 1;
        } else if self.cq.acknowledge() {
            self.counters.cq_doorbells += 1;
        }
    }
}

impl IoQueue for QueuePair {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        match self.limits.plain(&request.operation) {
            Some(command) if self.has_room() => {
                self.send(command, None, Owner::Request(request));
                Ok(())
            }
            _ => self.submit_any(request),
        }
    }

    fn ring(&mut self) {
        // A controller that does not know the queue would report a doorbell that is none.
        if self.controller.health.is(self.era) && self.sq.ring() {
            self.counters.sq_doorbells += 1;
        }
    }

    fn poll(&mut self, max: usize, sink: &mut dyn FnMut(Completion)) -> usize {
        self.counters.polls += 1;
        if !self.controller.health.is(self.era) {
            return self.poll_apart(max, sink);
        }
        if let Some(pump) = &mut self.pump {
            pump.pump();
        }
        let mut delivered = self.reap(max, sink);
        if self.splits.is_waiting() || !self.errands.is_empty() {
            delivered += self.go_on(max - delivered, sink);
        }
        // What is completed and waits to be taken is the caller's delay, not the controller's.
        if delivered < max && self.deadlines.is_time() && self.slots.busy() > 0 {
            self.attend();
        }
        delivered
    }

    fn inflight(&self) -> usize {
        self.slots.busy() - self.splits.parts() + self.splits.len()
    }

    fn depth(&self) -> usize {
        self.slots.len()
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Drop for QueuePair {
    /// Takes the queue away from the controller before its memory and its buffers go.
    fn drop(&mut self) {
        let id = self.place.id;
        if self.controller.health.is(self.era) {
            self.controller.delete_queue_pair(self.era, id);
        }
        // Deleting may have failed, and another thread may be about to reset or to stop the controller: rings and
        // buffers go home only after that has happened. In any other era the controller knows nothing of them.
        self.controller.settle();
        self.controller.release_queue_id(id);
    }
}

/// Hands a request that was one command to the caller.
///
/// Not inlined: the request then goes from slot to completion in whole vectors. Inlined, it is taken
/// apart into its fields on the way, and the caller's loads wait for the narrower stores (a third of
/// the time of a poll).
#[inline(never)]
fn deliver(request: Request, sink: &mut dyn FnMut(Completion)) {
    sink(Completion { request, result: Ok(()) });
}

/// Makes the command of a piece for a slot: of a request that was split, or that is sent again.
#[inline(never)]
fn compose_part(
    limits: &Limits,
    lists: &mut Lists,
    slot: Option<u16>,
    tags: &mut Option<Box<Tags>>,
    operation: &Operation,
    piece: Piece,
) -> Option<Composed> {
    match limits.tagging {
        None => compose::<false>(limits, lists, operation, piece, 0),
        Some(_) => assemble(limits, lists, slot, tags, operation, piece),
    }
}

/// Makes the command of a piece, and its metadata, for a slot.
#[cold]
fn assemble(
    limits: &Limits,
    lists: &mut Lists,
    slot: Option<u16>,
    tags: &mut Option<Box<Tags>>,
    operation: &Operation,
    piece: Piece,
) -> Option<Composed> {
    let Some(tags) = tags else { return compose::<true>(limits, lists, operation, piece, 0) };
    let slot = slot?;
    let metadata = tags.iova(slot, operation);
    let composed = compose::<true>(limits, lists, operation, piece, metadata)?;
    tags.prepare(slot, operation, piece);
    Some(composed)
}

/// Returns what the next command of a split request takes.
fn next_piece(limits: &Limits, split: &Split) -> Piece {
    let blocks = limits.cut(&split.request.operation, split.rest);
    assert!(blocks > 0, "a request was taken that cannot be sent: {:?}", split.rest);
    Piece { blocks, ..split.rest }
}
