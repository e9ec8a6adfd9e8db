//! The admin queue: rare commands, each with a deadline, and the events that the controller reports.
//!
//! The queue itself never waits; [`Controller::execute`](super::Controller) and bring-up do, each in its way.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::bell::Bell;
use super::ring::{CompletionRing, SubmissionRing};
use super::slots::{Occupant, Slots};
use crate::block::deadline::Stamp;
use crate::block::{BlockError, Cause};
use crate::dma::{Access, DmaError, Domain, Ring, Window};
use crate::spec::command::{AbortDword10, AdminOpcode, Command};
use crate::spec::completion::Completion;
use crate::spec::event::{AsyncEventResult, AsyncEventType, ErrorEvent};
use crate::spec::registers::{AdminQueueAttributes, doorbell_offset};
use crate::transport::{Pump, Transport};
use crate::units::{CommandId, Iova, QueueId};

/// Entries of both admin rings: the same, since some devices mix them up.
const ENTRIES: u16 = 64;

/// Commands in flight at most; one entry of a ring always stays empty.
const SLOTS: u16 = ENTRIES - 1;

/// Events that wait for somebody to look at them. A device that reports without end does not fill memory.
const EVENTS_MAX: usize = 64;

/// Why an admin command was sent.
#[derive(Debug, Default)]
enum Purpose {
    /// It was not: the slot is free.
    #[default]
    None,
    /// Somebody waits for its result.
    Command,
    /// It waits for an event.
    Event,
    /// It is to end a command that is overdue; nobody waits for it.
    Abort,
}

impl Occupant for Purpose {
    fn is_nobody(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// The admin queue pair.
pub(super) struct Admin {
    sq: SubmissionRing,
    cq: CompletionRing,
    slots: Slots<Purpose>,
    pump: Option<Box<dyn Pump>>,
    finished: Vec<(CommandId, Completion)>,
    events: VecDeque<AsyncEventResult>,
    /// Aborts that are under way.
    aborts: u8,
    /// Whether the controller has reported an error that only a reset ends.
    is_broken: bool,
    addresses: (Iova, Iova),
}

impl Admin {
    /// Makes the rings; the controller learns of them by [`Admin::attributes`] and [`Admin::addresses`].
    pub(super) fn new(
        transport: &dyn Transport,
        domain: &Domain,
        dstrd: u8,
    ) -> Result<Self, BlockError> {
        let (sq, cq) = rings(domain, u32::from(ENTRIES)).map_err(no_memory)?;
        let addresses = (sq.1, cq.1);
        let bell = |completion| register_bell(transport, QueueId::ADMIN, completion, dstrd);
        Ok(Self {
            sq: SubmissionRing::new(sq.0, bell(false)?),
            cq: CompletionRing::new(cq.0, bell(true)?),
            slots: Slots::new(SLOTS),
            pump: transport.pump(QueueId::ADMIN),
            finished: Vec::new(),
            events: VecDeque::new(),
            aborts: 0,
            is_broken: false,
            addresses,
        })
    }

    /// Begins anew, for a controller that is disabled: what was under way is over.
    pub(super) fn restart(&mut self) {
        self.sq.restart();
        self.cq.restart();
        while let Some(index) = self.slots.any() {
            self.slots.empty(index);
        }
        self.finished.clear();
        (self.aborts, self.is_broken) = (0, false);
    }

    /// Returns what AQA says.
    pub(super) fn attributes(&self) -> AdminQueueAttributes {
        AdminQueueAttributes::new().with_asqs(ENTRIES - 1).with_acqs(ENTRIES - 1)
    }

    /// Returns what ASQ and ACQ say.
    pub(super) fn addresses(&self) -> (Iova, Iova) {
        self.addresses
    }

    /// Sends a command.
    pub(super) fn submit(&mut self, command: Command) -> Result<CommandId, BlockError> {
        self.send(command, Purpose::Command)
    }

    /// Asks to be told of the next event.
    pub(super) fn request_event(&mut self) -> Result<(), BlockError> {
        let opcode = AdminOpcode::ASYNC_EVENT_REQUEST.0;
        self.send(Command { opcode, ..Command::default() }, Purpose::Event).map(drop)
    }

    /// Asks for the end of a command of `queue`, unless as many as `most` are under way already (ACL).
    pub(super) fn abort(
        &mut self,
        queue: QueueId,
        cid: CommandId,
        most: u8,
    ) -> Result<(), BlockError> {
        if self.aborts >= most {
            return Ok(());
        }
        let cdw10 = AbortDword10::new().with_sqid(queue.0).with_cid(cid.0).into_bits();
        let command = Command { opcode: AdminOpcode::ABORT.0, cdw10, ..Command::default() };
        self.send(command, Purpose::Abort)?;
        self.aborts += 1;
        Ok(())
    }

    /// Says whether the controller has reported an error that only a reset ends.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    fn send(&mut self, mut command: Command, purpose: Purpose) -> Result<CommandId, BlockError> {
        if self.slots.is_full() {
            let what = format!("all {SLOTS} slots of the admin queue").into();
            return Err(Cause::Busy { what }.into());
        }
        let cid = self.slots.fill(purpose, None, Stamp::default());
        command.cid = cid.0;
        self.sq.push(command);
        self.sq.ring();
        Ok(cid)
    }

    /// Takes in what the controller has finished.
    ///
    /// # Errors
    ///
    /// `Protocol`, after which the queue must not be used.
    pub(super) fn poll(&mut self) -> Result<(), BlockError> {
        if let Some(pump) = &mut self.pump {
            pump.pump();
        }
        // A ring's worth at a time: a controller that keeps writing entries does not keep us here.
        for _ in 0..ENTRIES {
            let Some(entry) = self.cq.peek() else { break };
            self.take(entry)?;
            self.cq.advance();
        }
        self.cq.acknowledge();
        Ok(())
    }

    /// Returns the completion of a command that has finished.
    pub(super) fn result(&mut self, cid: CommandId) -> Option<Completion> {
        let at = self.finished.iter().position(|(other, _)| *other == cid)?;
        Some(self.finished.swap_remove(at).1)
    }

    /// Returns the oldest event that nobody has looked at.
    pub(super) fn next_event(&mut self) -> Option<AsyncEventResult> {
        self.events.pop_front()
    }

    fn take(&mut self, entry: Completion) -> Result<(), BlockError> {
        if entry.sq_id != QueueId::ADMIN.0 {
            return Err(violation(format!("queue {} in the admin completion queue", entry.sq_id)));
        }
        if !self.sq.accept_head(entry.sq_head) {
            return Err(violation(self.sq.explain_head(entry.sq_head)));
        }
        let cid = CommandId(entry.cid);
        let Some(index) = self.slots.find(cid) else {
            return Err(violation(self.slots.explain(cid).to_string()));
        };
        match self.slots.empty(index) {
            Purpose::None => {}
            Purpose::Command => self.finished.push((cid, entry)),
            Purpose::Event if entry.status.is_success() => {
                let event = AsyncEventResult::from_bits(entry.dw0);
                let persistent = ErrorEvent::PERSISTENT_INTERNAL.0;
                self.is_broken |=
                    event.kind() == AsyncEventType::ERROR && event.info() == persistent;
                match self.events.len() {
                    EVENTS_MAX.. => tracing::warn!(?event, "nobody looks at events: one is lost"),
                    _ => self.events.push_back(event),
                }
                self.request_event()?;
            }
            // Whether it was of use shows at the command that it was for.
            Purpose::Abort => self.aborts -= 1,
            // The controller takes fewer requests than it said: one less is outstanding, and no harm is done.
            Purpose::Event => tracing::warn!(status = ?entry.status.code(), "no more events"),
        }
        Ok(())
    }
}

/// A submission and a completion ring in memory with the rights that each needs, and their addresses.
pub(super) type Rings = ((Ring<8>, Iova), (Ring<2>, Iova));

/// Makes the rings of a queue pair.
pub(super) fn rings(domain: &Domain, entries: u32) -> Result<Rings, DmaError> {
    let sq = ring_window(domain, entries as usize * Ring::<8>::ENTRY_BYTES, Access::DeviceReads)?;
    let cq = ring_window(domain, entries as usize * Ring::<2>::ENTRY_BYTES, Access::DeviceWrites)?;
    let (sq_at, cq_at) = (sq.iova(), cq.iova());
    let sq = Ring::over(sq.bytes().clone(), entries).expect("the window was made for it");
    let cq = Ring::over(cq.bytes().clone(), entries).expect("the window was made for it");
    Ok(((sq, sq_at), (cq, cq_at)))
}

fn ring_window(domain: &Domain, bytes: usize, access: Access) -> Result<Window, DmaError> {
    domain.window(bytes, crate::dma::PAGE_BYTES, access)
}

/// Returns the doorbell register of a queue.
pub(super) fn register_bell(
    transport: &dyn Transport,
    queue: QueueId,
    completion: bool,
    dstrd: u8,
) -> Result<Bell, BlockError> {
    let offset = doorbell_offset(queue, completion, dstrd);
    let doorbell = transport
        .doorbell(offset)
        .map_err(|error| violation(format!("no doorbell at {offset:#x}")).with_source(error))?;
    Ok(Bell::Register(doorbell))
}

/// Makes the error of a controller that breaks the rules.
#[cold]
pub(super) fn violation(what: String) -> BlockError {
    Cause::Protocol { what: what.into() }.into()
}

/// Makes the error of memory that is not to be had.
#[cold]
pub(super) fn no_memory(error: DmaError) -> BlockError {
    BlockError::new(Cause::NoSpace { what: "DMA memory".into() }).with_source(error)
}
