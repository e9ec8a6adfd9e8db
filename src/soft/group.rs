//! A completion queue and the submission queues that feed it: the unit of locking and of work.
//!
//! [`Group::serve`] is the hot loop: look at each tail once, execute up to a batch, post. It runs under
//! the group's lock, which nobody contends for while each core has a group of its own.
//! Neighbours: `queue` below, `io` for what commands mean, `engine` for whose turn it is.
//! Invariant: everything that a command touches on its way is in the group or never written.
#![forbid(unsafe_code)]

use super::counters::DeviceCounters;
use super::data::Dma;
use super::detour::Way;
use super::disk::Horizon;
use super::engine::Core;
use super::interposer::Lie;
use super::queue::{BadIndex, CompletionQueue, SubmissionQueue};
use super::{detour, io};
use crate::dma::{SharedBytes, Span};
use crate::spec::command::Command;
use crate::spec::completion::{Completion, StatusField};
use crate::spec::status::Status;

/// The most commands that one submission queue is served in one turn.
const BATCH: u32 = 64;

/// A completion queue and those who feed it.
#[repr(align(128))]
pub(super) struct Group {
    pub(super) cq: CompletionQueue,
    pub(super) sqs: Vec<SubmissionQueue>,
    pub(super) work: Work,
}

/// What executing commands needs and leaves behind, apart from the queues.
#[derive(Default)]
pub(super) struct Work {
    pub(super) dma: Dma,
    pub(super) counters: DeviceCounters,
    /// What a flush of this batch covers, by namespace; empty unless commands take the detour.
    pub(super) horizons: Vec<Horizon>,
    /// Commands that wait for being aborted, by submission queue and identifier.
    pub(super) stalled: Vec<(u16, u16)>,
    /// How the completion of the command lies that is executed now.
    pub(super) lie: Option<Lie>,
    /// Where bytes of a write wait that have to reach the medium together.
    stage: Option<SharedBytes>,
}

impl Work {
    /// Returns what a flush of a namespace covers.
    pub(super) fn horizon(&self, nsid: u32) -> Horizon {
        let at = (nsid as usize).wrapping_sub(1);
        self.horizons.get(at).copied().unwrap_or(Horizon::ALL)
    }

    /// Returns what reaches the host's memory, and a place for `len` bytes of it.
    pub(super) fn dma_and_stage(&mut self, len: u64) -> Option<(&mut Dma, Span<'_>)> {
        let len = usize::try_from(len).ok()?;
        if self.stage.as_ref().is_none_or(|stage| stage.len() < len) {
            self.stage = SharedBytes::anonymous(len.next_power_of_two()).ok();
        }
        Some((&mut self.dma, self.stage.as_ref()?.span().slice(0, len)?))
    }
}

/// What became of a command.
pub(super) enum Outcome {
    /// It is to be completed, with dword 0 or a status.
    Complete(Result<u32, Status>),
    /// It is not, or not yet.
    Silent,
}

impl Group {
    pub(super) fn new(cq: CompletionQueue) -> Box<Self> {
        Box::new(Self { cq, sqs: Vec::new(), work: Work::default() })
    }

    /// Gives each submission queue a turn and returns how many commands were executed.
    #[inline]
    pub(super) fn serve(&mut self, core: &Core) -> usize {
        let Self { cq, sqs, work } = self;
        sqs.iter_mut().map(|sq| turn(core, cq, sq, work)).sum()
    }

    /// Ends a command that stalls; says whether it did and there was room for saying so.
    pub(super) fn abort(&mut self, queue: u16, cid: u16) -> bool {
        let Some(at) = self.work.stalled.iter().position(|one| *one == (queue, cid)) else {
            return false;
        };
        let Some(sq) = self.sqs.iter().find(|sq| sq.id == queue) else { return false };
        if !matches!(self.cq.room(1), Ok(1..)) {
            return false;
        }
        self.work.stalled.remove(at);
        let status = StatusField::new().with_code(Status::ABORT_REQUESTED);
        let sq_head = sq.head();
        self.cq.post(Completion { dw0: 0, dw1: 0, sq_head, sq_id: queue, cid, status });
        true
    }

    /// Returns what was counted here.
    pub(super) fn counters(&self) -> DeviceCounters {
        let mut counters = self.work.counters.clone();
        counters.dma_faults += self.work.dma.tlb.faults;
        counters
    }
}

/// Executes a batch of one submission queue.
#[inline]
fn turn(core: &Core, cq: &mut CompletionQueue, sq: &mut SubmissionQueue, work: &mut Work) -> usize {
    let (batch, announced) = batch(core, cq, sq, work);
    if batch > 0 && core.detours() {
        detour::begin_batch(core, work);
    }
    for left in (0..batch).rev() {
        let command = sq.fetch();
        if left > 0 && core.prefetches {
            core.prefetch(sq.peek());
        }
        work.counters.io_commands.count(command.opcode);
        if let Outcome::Complete(result) = decide(core, sq.id, work, &command) {
            let completion = completion(core, sq, work, &command, result);
            match work.lie.take() {
                None => cq.post(completion),
                Some(lie) => cq.post_lie(completion, lie),
            }
        }
        if core.detours() && core.is_fatal() {
            break;
        }
    }
    if batch == announced {
        sq.rest();
    }
    batch as usize
}

/// Returns how many commands to execute now, and how many there are.
#[inline]
pub(super) fn batch(
    core: &Core,
    cq: &mut CompletionQueue,
    sq: &mut SubmissionQueue,
    work: &mut Work,
) -> (u32, u32) {
    let (announced, news) = match sq.announced() {
        Ok(found) => found,
        Err(BadIndex(tail)) => return core.bad_doorbell(sq.id, tail),
    };
    work.counters.doorbells += u64::from(news);
    if announced == 0 {
        return (0, 0);
    }
    let wanted = announced.min(BATCH);
    match cq.room(wanted) {
        Ok(room) => (wanted.min(room), announced),
        Err(BadIndex(head)) => core.bad_doorbell(cq.id, head),
    }
}

/// Executes a command, unless somebody decides otherwise.
#[inline]
fn decide(core: &Core, queue: u16, work: &mut Work, command: &Command) -> Outcome {
    let changed;
    let mut command = command;
    if core.detours() {
        match detour::decide(core, queue, work, command) {
            Way::Back(outcome) => return outcome,
            Way::On(instead) => {
                changed = instead;
                command = &changed;
            }
        }
    }
    // The only call, so that it becomes part of the loop.
    Outcome::Complete(io::execute(core, work, command).map(|()| 0))
}

/// Makes the completion of a command.
#[inline]
pub(super) fn completion(
    core: &Core,
    sq: &SubmissionQueue,
    work: &mut Work,
    command: &Command,
    result: Result<u32, Status>,
) -> Completion {
    let (dw0, status) = match result {
        Ok(dw0) => (dw0, StatusField::new()),
        Err(status) => (0, failure(core, sq, work, command, status)),
    };
    let (sq_head, sq_id, cid) = (sq.head(), sq.id, command.cid);
    Completion { dw0, dw1: 0, sq_head, sq_id, cid, status }
}

/// Counts and logs a failed command, and makes the status field that says so.
#[cold]
fn failure(
    core: &Core,
    sq: &SubmissionQueue,
    work: &mut Work,
    command: &Command,
    status: Status,
) -> StatusField {
    work.counters.failed += 1;
    let field = status_field(core, status);
    core.errors().record(sq.id, command, field);
    field
}

/// Says that the error log has more, and that trying again is of no use unless it is.
fn status_field(core: &Core, status: Status) -> StatusField {
    let transient = [
        Status::DATA_TRANSFER_ERROR,
        Status::WRITE_FAULT,
        Status::INTERRUPTED,
        Status::TRANSIENT_TRANSPORT_ERROR,
        Status::NAMESPACE_NOT_READY,
    ]
    .contains(&status);
    let crd = if transient { core.retry_delay() } else { 0 };
    StatusField::new().with_code(status).with_more(true).with_dnr(!transient).with_crd(crd)
}
