//! What requests of a queue come to when something is wrong: with a command, with the queue, with the controller.
//!
//! ```text
//!   a failure that passes       the request keeps a slot, and is sent again when its delay is over
//!   a block that is bad         it is looked for by halves, and what lies before it is read
//!   a command is overdue        the controller is looked at, then asked to abort it; as long again, then a reset
//!   a completion that lies      a reset
//!   another era                 the rings begin anew, and what was in flight is sent again, or fails
//!   the controller is given up  everything fails
//! ```
//!
//! Nothing here runs while all is well. Invariant: a request leaves its slot only when the controller cannot touch its
//! memory, because it said that it was done or because an era has ended since.

use std::time::{Duration, Instant};

use super::{QueuePair, compose_part};
use crate::block::deadline::Stamp;
use crate::block::{BlockError, Cause, Completion, ErrorKind, Operation, Request};
use crate::nvme::compose::Composed;
use crate::nvme::health::{Era, State};
use crate::nvme::limits::{Limits, Piece};
use crate::nvme::recovery::Reason;
use crate::nvme::search::{Search, Shown};
use crate::nvme::slots::{Owner, SlotIndex};
use crate::nvme::split::Split;
use crate::nvme::{retry, search, status};
use crate::spec::completion::{Completion as Entry, StatusField};
use crate::spec::status::Status;
use crate::units::{BlockCount, CommandId, Lba};

/// A request that waits for something else than the controller.
pub(super) struct Errand {
    who: Who,
    what: What,
}

/// Where the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Slot(SlotIndex),
    Split(u16),
}

/// What is to be done with it.
enum What {
    /// It is to be sent again, and not before.
    Send(Instant),
    /// It is to be handed back.
    Fail(BlockError),
}

impl QueuePair {
    /// Refuses a completion that breaks a rule.
    #[cold]
    pub(super) fn refuse(&mut self, entry: Entry) {
        self.counters.violations += 1;
        let violation = self.explain(entry);
        self.end_era(&violation);
    }

    /// Says what a completion violates.
    fn explain(&self, entry: Entry) -> String {
        let id = self.place.id;
        if entry.sq_id != id.0 {
            return format!("completion for queue {} on queue {id}", entry.sq_id);
        }
        match self.slots.find(CommandId(entry.cid)) {
            Some(_) => self.sq.explain_head(entry.sq_head),
            None => self.slots.explain(CommandId(entry.cid)).to_string(),
        }
    }

    fn end_era(&mut self, what: &str) {
        self.note_success();
        let why = format!("queue {}: {what}", self.place.id);
        self.controller.reset_with(self.era, &why, &self.indices());
    }

    /// Lets the controller know whether commands have succeeded since the last reset.
    fn note_success(&mut self) {
        if self.counters.completions > self.seen {
            self.seen = self.counters.completions;
            self.controller.troubles.note_success();
        }
    }

    /// Writes down where the queue's rings are.
    fn indices(&self) -> String {
        let ((sq_head, tail), (cq_head, phase)) = (self.sq.state(), self.cq.state());
        let (id, busy) = (self.place.id, self.slots.busy());
        let phase = u8::from(phase);
        format!(
            ", queue {id}: submissions {sq_head} to {tail}, completions from {cq_head} in phase {phase}, {busy} in flight"
        )
    }

    // Commands.

    /// Ends a request whose command failed, or has it sent again; returns how many were handed back.
    #[cold]
    #[inline(never)]
    pub(super) fn end_failed(
        &mut self,
        request: Request,
        field: StatusField,
        stamp: Stamp,
        sink: &mut dyn FnMut(Completion),
    ) -> usize {
        let delay = self.hope(field).filter(|_| stamp.trials() < self.resends_max());
        if let Some(delay) = delay {
            let again = self.deadlines.start().with_trials(stamp.trials());
            let cid = self.slots.fill(Owner::Request(request), None, again);
            let slot = self.slots.find(cid).expect("it was filled just now");
            self.put_off(Who::Slot(slot), delay);
            return 0;
        }
        let (lba, blocks) = status::range(&request.operation, &self.limits);
        if search::is_bad_block(field)
            && is_read(&request)
            && blocks.0 > 1
            && self.splits.has_room()
        {
            tracing::debug!(queue = self.place.id.0, %lba, %blocks, "looking for the bad block");
            let search = Search::among(blocks.0, true);
            let index = self.splits.shelve(Split::searched(request, search, stamp.trials()));
            self.put_off(Who::Split(index), Duration::ZERO);
            return 0;
        }
        let result = match field.code() {
            Status::ABORT_REQUESTED if stamp.is_aborted() => {
                Err(self.too_late(&request.operation, stamp.trials()))
            }
            _ => status::result(field, &request, &self.limits),
        };
        sink(Completion { request, result });
        1
    }

    /// Ends a command of a request that was split.
    #[cold]
    pub(super) fn finish_part(
        &mut self,
        index: u16,
        entry: Entry,
        slot: SlotIndex,
    ) -> Option<Completion> {
        let hope = self.hope(entry.status);
        let Self { splits, limits, tags, .. } = self;
        let ended = |request: &Request| {
            status::result(entry.status, request, limits)?;
            let operation = &request.operation;
            tags.as_mut().map_or(Ok(()), |tags| tags.verify(slot.number(), operation))
        };
        let split = splits.part_done(index, hope, ended)?;
        self.conclude(split, search::is_bad_block(entry.status))
    }

    /// Ends a request whose last command is back, unless there is something left to try.
    fn conclude(&mut self, mut split: Split, is_bad_block: bool) -> Option<Completion> {
        let error = split.error.take();
        let shown = match &mut split.search {
            // A probe that failed for another reason has shown nothing.
            Some(search) if error.is_none() || is_bad_block => Some(search.ended(error.is_none())),
            _ => None,
        };
        let error = match (error, shown) {
            (_, Some(Shown::Doubt)) => return self.shelve(split, Duration::ZERO),
            (None, _) | (_, Some(Shown::Good)) => None,
            (Some(error), Some(Shown::Bad(at))) => Some(self.bad_block(&split.request, at, &error)),
            (Some(error), None) => {
                if let Some(delay) = split.hope.filter(|_| split.trials < self.resends_max()) {
                    // What begins anew is counted when it does.
                    split.trials += u8::from(split.search.is_some());
                    return self.shelve(split, delay);
                }
                let is_media = error.kind() == ErrorKind::Media;
                if is_media && is_read(&split.request) && split.search.is_none() {
                    let (_, blocks) = status::range(&split.request.operation, &self.limits);
                    split.search = Some(Search::among(blocks.0, false));
                    return self.shelve(split, Duration::ZERO);
                }
                Some(error)
            }
        };
        let result = error.map_or(Ok(()), Err);
        Some(Completion { request: split.request, result })
    }

    /// Puts a request aside to be sent again, or on.
    fn shelve(&mut self, split: Split, delay: Duration) -> Option<Completion> {
        let index = self.splits.shelve(split);
        self.put_off(Who::Split(index), delay);
        None
    }

    /// Makes the error of a block that was found, out of that of its command.
    fn bad_block(&self, request: &Request, index: u64, error: &BlockError) -> BlockError {
        let (first, _) = status::range(&request.operation, &self.limits);
        let (lba, blocks) = (Lba(first.0 + index), BlockCount(1));
        let found = BlockError::new(Cause::Media { lba, blocks });
        match error.status() {
            Some(status) => found.with_status(status.clone()),
            None => found,
        }
    }

    /// Returns how long to wait before a command that ended so is sent again, if that is of use. A delay as long as a
    /// request may take is not waited for.
    fn hope(&self, field: StatusField) -> Option<Duration> {
        let delay = retry::delay(field, self.limits.retry_delays)?;
        (delay < self.deadlines.timeout()).then_some(delay)
    }

    fn resends_max(&self) -> u8 {
        self.controller.options.resends_max
    }

    fn put_off(&mut self, who: Who, delay: Duration) {
        self.errands.push(Errand { who, what: What::Send(Instant::now() + delay) });
    }

    #[cold]
    fn too_late(&self, operation: &Operation, trials: u8) -> BlockError {
        let what = match trials {
            0 => operation.name().into(),
            _ => format!("{}, sent {} times,", operation.name(), trials + 1).into(),
        };
        Cause::Timeout { what, after: self.deadlines.timeout() }.into()
    }

    // The controller.

    /// Looks at the controller, and at commands that are overdue.
    #[cold]
    #[inline(never)]
    pub(super) fn attend(&mut self) {
        let overdue = self.deadlines.take_overdue();
        self.note_success();
        self.controller.tend(self.era);
        if !self.controller.watch(self.era) {
            return;
        }
        let Some(tick) = overdue else { return };
        for slot in self.slots.submitted_in(tick) {
            let (stamp, _) = self.slots.marks(slot);
            let again = self.deadlines.restart(stamp);
            self.slots.set_stamp(slot, again);
            if self.has_errand(Who::Slot(slot)) {
                continue;
            }
            self.counters.timeouts += 1;
            if stamp.is_aborted() {
                return self.give_command_up(slot);
            }
            let cid = self.slots.cid(slot);
            tracing::warn!(queue = self.place.id.0, %cid, "a command is overdue: asking for its end");
            self.counters.aborts += 1;
            self.slots.set_stamp(slot, again.aborted());
            self.controller.abort(self.era, self.place.id, cid);
        }
    }

    /// Ends the era since a command is overdue that has been asked to end.
    fn give_command_up(&mut self, slot: SlotIndex) {
        let (cid, timeout) = (self.slots.cid(slot), self.deadlines.timeout());
        let what = format!(
            "command {cid} was not completed within {} ms, nor aborted within as many",
            timeout.as_millis()
        );
        let why = format!("queue {}: {what}", self.place.id);
        self.controller.reset_overdue(self.era, &why, &self.indices());
    }

    /// Polls a queue that the controller does not know, or not any more.
    #[cold]
    pub(super) fn poll_apart(&mut self, max: usize, sink: &mut dyn FnMut(Completion)) -> usize {
        if self.failed.is_some() {
            return self.drain(max, sink);
        }
        // Another queue may have found what is wrong, and know of no success.
        self.note_success();
        match self.controller.health.state() {
            State::Live(era) => self.rejoin(era),
            State::Resetting | State::Failing => self.controller.advance(),
            State::Stopped => self.failed = Some(self.controller.reason()),
        }
        0
    }

    /// Joins the controller again after a reset. It has let go of all memory since; what was in flight is sent again
    /// at the next polls, or handed back.
    fn rejoin(&mut self, era: Era) {
        if let Err(error) = self.controller.check_current(self.limits.nsid, &self.identified) {
            self.failed = Some(Reason::of(&error));
            return;
        }
        // The rings are about to forget it.
        let unsent: Vec<CommandId> = self.sq.unannounced().collect();
        self.recall(&unsent);
        match self.join(era) {
            Ok(()) => {
                self.counters.resets += 1;
                tracing::info!(
                    queue = self.place.id.0,
                    errands = self.errands.len(),
                    "joined again"
                );
            }
            // The next era has begun: once more.
            Err(error) if error.kind() == ErrorKind::Uncertain => {}
            Err(error) => {
                let why = format!("queue {} was not taken back: {error}", self.place.id);
                self.controller.reset(era, &why);
            }
        }
    }

    /// Makes errands of all that was in flight.
    fn recall(&mut self, unsent: &[CommandId]) {
        let now = Instant::now();
        let in_flight: Vec<SlotIndex> = self.slots.in_flight().collect();
        for slot in in_flight {
            let (stamp, list) = self.slots.marks(slot);
            if let Owner::Split(split) = *self.slots.owner(slot) {
                self.deadlines.stop(stamp);
                list.into_iter().for_each(|list| self.lists.give_back(list));
                self.slots.empty(slot);
                self.splits.part_abandoned(split);
            } else if !self.has_errand(Who::Slot(slot)) {
                let what = match unsent.contains(&self.slots.cid(slot)) {
                    true => What::Send(now),
                    false => self.fate_of_slot(slot, stamp, now),
                };
                self.errands.push(Errand { who: Who::Slot(slot), what });
            }
        }
        self.splits.hold();
        let splits: Vec<u16> = self.splits.all().collect();
        for split in splits {
            if !self.has_errand(Who::Split(split)) {
                let what = self.fate_of_split(split, now);
                self.errands.push(Errand { who: Who::Split(split), what });
            }
        }
    }

    fn has_errand(&self, who: Who) -> bool {
        self.errands.iter().any(|errand| errand.who == who)
    }

    /// Decides what becomes of a request whose command the controller may have carried out.
    fn fate_of_slot(&self, slot: SlotIndex, stamp: Stamp, now: Instant) -> What {
        let Owner::Request(request) = self.slots.owner(slot) else { return What::Send(now) };
        let operation = &request.operation;
        if can_be_repeated(operation) && stamp.trials() < self.resends_max() {
            What::Send(now)
        } else if stamp.is_aborted() {
            What::Fail(self.too_late(operation, stamp.trials()))
        } else {
            What::Fail(self.controller.troubles.uncertain(operation.name()))
        }
    }

    fn fate_of_split(&self, split: u16, now: Instant) -> What {
        let Some(split) = self.splits.get(split) else { return What::Send(now) };
        let operation = &split.request.operation;
        match can_be_repeated(operation) && split.trials < self.resends_max() {
            true => What::Send(now),
            false => What::Fail(self.controller.troubles.uncertain(operation.name())),
        }
    }

    // Errands.

    /// Goes on with what waits for slots, for its time or for the caller.
    #[cold]
    #[inline(never)]
    pub(super) fn go_on(&mut self, max: usize, sink: &mut dyn FnMut(Completion)) -> usize {
        self.continue_split();
        let (mut at, mut delivered, now) = (0, 0, Instant::now());
        while let Some(errand) = self.errands.get(at) {
            let who = errand.who;
            let sent = match &errand.what {
                What::Send(when) => now >= *when && self.send_again(who),
                What::Fail(_) => false,
            };
            let fails = matches!(self.errands[at].what, What::Fail(_)) && delivered < max;
            if !sent && !fails {
                at += 1;
                continue;
            }
            // Taken off the list first: the sink may not come back.
            if let What::Fail(error) = self.errands.remove(at).what {
                let request = self.take_out(who).expect("a request waits to be handed back");
                delivered += 1;
                sink(Completion { request, result: Err(error) });
            }
        }
        crate::block::IoQueue::ring(self);
        delivered
    }

    /// Sends a request again; says whether there was room.
    fn send_again(&mut self, who: Who) -> bool {
        match who {
            Who::Slot(slot) => self.send_slot_again(slot),
            Who::Split(split) => self.send_split_again(split),
        }
    }

    fn send_slot_again(&mut self, slot: SlotIndex) -> bool {
        let old = self.slots.take_list(slot);
        old.into_iter().for_each(|list| self.lists.give_back(list));
        let Self { slots, limits, lists, tags, .. } = self;
        let Owner::Request(request) = slots.owner(slot) else { return true };
        let operation = &request.operation;
        let piece = whole(operation, limits);
        let composed = compose_part(limits, lists, Some(slot.number()), tags, operation, piece);
        let Some(Composed { mut command, list }) = composed else { return false };
        let (stamp, _) = self.slots.marks(slot);
        let again = self.deadlines.restart(stamp).sent_again();
        command.cid = self.slots.renew(slot, list, again).0;
        self.sq.push(command);
        self.counters.submissions += 1;
        self.counters.resends += 1;
        true
    }

    fn send_split_again(&mut self, index: u16) -> bool {
        if self.splits.is_waiting() {
            return false;
        }
        let Some(split) = self.splits.get(index) else { return true };
        let piece = whole(&split.request.operation, &self.limits);
        match &split.search {
            None => {
                self.splits.restart(index, piece);
                self.counters.resends += 1;
            }
            Some(search) => {
                let (skipped, blocks) = search.next();
                let probe = Piece { lba: Lba(piece.lba.0 + skipped), blocks, skipped };
                self.splits.resume(index, probe);
            }
        }
        self.continue_split();
        true
    }

    // The end.

    /// Hands every request back with an error: the controller can no longer reach their memory.
    fn drain(&mut self, max: usize, sink: &mut dyn FnMut(Completion)) -> usize {
        self.errands.clear();
        let reason = self.failed.clone().unwrap_or_else(|| self.controller.reason());
        let mut delivered = 0;
        while delivered < max {
            let Some(request) = self.next_abandoned() else { break };
            sink(Completion { request, result: Err(reason.error()) });
            delivered += 1;
        }
        delivered
    }

    fn next_abandoned(&mut self) -> Option<Request> {
        while let Some(slot) = self.slots.any() {
            match *self.slots.owner(slot) {
                Owner::Split(split) => {
                    self.take_out(Who::Slot(slot));
                    self.splits.part_abandoned(split);
                }
                _ => return self.take_out(Who::Slot(slot)),
            }
        }
        let split = self.splits.any()?;
        self.take_out(Who::Split(split))
    }

    /// Takes a request out that the controller does not have.
    fn take_out(&mut self, who: Who) -> Option<Request> {
        let slot = match who {
            Who::Slot(slot) => slot,
            Who::Split(split) => return self.splits.take(split).map(|split| split.request),
        };
        let (stamp, list) = self.slots.marks(slot);
        self.deadlines.stop(stamp);
        list.into_iter().for_each(|list| self.lists.give_back(list));
        match self.slots.empty(slot) {
            Owner::Request(request) => Some(request),
            Owner::Split(_) | Owner::Nobody => None,
        }
    }
}

/// Says whether a request that may have been carried out can be carried out again: nobody can have seen that it was,
/// since it was not completed, and doing it twice does what doing it once does. A copy may have changed what it
/// copies from.
fn can_be_repeated(operation: &Operation) -> bool {
    !matches!(operation, Operation::Copy { .. })
}

fn is_read(request: &Request) -> bool {
    matches!(request.operation, Operation::Read { .. })
}

/// Returns all of a request that was taken before.
fn whole(operation: &Operation, limits: &Limits) -> Piece {
    let (lba, blocks) = status::range(operation, limits);
    Piece { lba, blocks: blocks.0, skipped: 0 }
}
