//! The queue pairs of a controller: which there are, and how it learns of them.
//!
//! A [`Place`] is what the controller has to be told of a queue, after each reset again. The identifier belongs to the
//! queue pair for its life; `queue` asks for the rest.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::admin::{self, no_memory, violation};
use super::bell::Bell;
use super::controller::{Controller, Identified};
use super::health::Era;
use super::limits::Limits;
use super::lists::Lists;
use super::queue::{Parts, QueuePair};
use super::ring::{CompletionRing, SubmissionRing};
use super::slots::Slots;
use super::tags::Tags;
use crate::block::deadline::Deadlines;
use crate::block::{BlockError, Cause, ErrorKind, IoQueue, QueueOptions};
use crate::spec::command::{
    AdminOpcode, Command, CreateCompletionQueueDword11, CreateSubmissionQueueDword11,
    QueueSizeAndId,
};
use crate::spec::identify::IdentifyNamespace;
use crate::spec::registers::{doorbell_offset, offset};
use crate::units::{Iova, NamespaceId, QueueId};

/// What a controller has to know of a queue pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) id: QueueId,
    /// Entries of both rings.
    entries: u32,
    submissions: Iova,
    completions: Iova,
}

impl Controller {
    /// Opens a queue pair to a namespace that was identified as `id`.
    pub(super) fn open_queue(
        self: &Arc<Self>,
        limits: &Limits,
        id: &Arc<IdentifyNamespace>,
        options: &QueueOptions,
    ) -> Result<Box<dyn IoQueue>, BlockError> {
        let most = self.max_depth();
        let depth = options.depth;
        if !(1..=most).contains(&depth) {
            let (value, most) = (u64::from(depth), u64::from(most));
            return Err(Cause::Invalid { what: "queue depth", value, least: 1, most }.into());
        }
        let queue = self.take_queue_id()?;
        // Once the id is taken nothing can be formatted any more.
        let built = self
            .check_current(limits.nsid, id)
            .and_then(|()| self.build_queue(queue, limits, id, options));
        let mut pair = match built {
            Ok(pair) => pair,
            Err(error) => {
                self.release_queue_id(queue);
                return Err(error);
            }
        };
        loop {
            match pair.join(self.await_live()?) {
                Ok(()) => return Ok(pair),
                // A reset came in between, and the controller has forgotten what it was told.
                Err(error) if error.kind() == ErrorKind::Uncertain => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Refuses a namespace that was formatted since it was identified: its blocks may have another size.
    pub(super) fn check_current(
        &self,
        nsid: NamespaceId,
        id: &Arc<IdentifyNamespace>,
    ) -> Result<(), BlockError> {
        let current = |one: &Identified| one.nsid == nsid && Arc::ptr_eq(&one.id, id);
        if self.identified(|all| all.iter().any(current)) {
            return Ok(());
        }
        let what = format!("namespace {nsid} was formatted since it was opened").into();
        Err(Cause::Poisoned { what }.into())
    }

    fn build_queue(
        self: &Arc<Self>,
        id: QueueId,
        limits: &Limits,
        identified: &Arc<IdentifyNamespace>,
        options: &QueueOptions,
    ) -> Result<Box<QueuePair>, BlockError> {
        let slots = u16::try_from(options.depth).expect("the depth is at most CAP.MQES");
        // One entry stays empty, so that a full ring is told from an empty one.
        let entries = options.depth + 1;
        let ((sq, sq_at), (cq, cq_at)) = admin::rings(&self.domain, entries).map_err(no_memory)?;
        let lists = Lists::new(&self.domain, slots).map_err(no_memory)?;
        let tags = Tags::new(&self.domain, limits, slots).map_err(no_memory)?;
        let bells = (self.bell(id, false)?, self.bell(id, true)?);
        let parts = Parts {
            place: Place { id, entries, submissions: sq_at, completions: cq_at },
            identified: Arc::clone(identified),
            sq: SubmissionRing::new(sq, bells.0),
            cq: CompletionRing::new(cq, bells.1),
            slots: Slots::new(slots),
            lists,
            limits: limits.clone(),
            tags,
            deadlines: Deadlines::new(options.timeout),
            pump: self.transport.pump(id),
        };
        Ok(Box::new(QueuePair::new(parts, Arc::clone(self))))
    }

    /// Tells the controller of a queue pair whose rings are empty.
    ///
    /// # Errors
    ///
    /// As [`execute_in`](Self::execute_in).
    pub(super) fn create_queue_pair(&self, era: Era, place: Place) -> Result<(), BlockError> {
        self.create_completion_queue(era, place)?;
        let created = self.create_submission_queue(era, place);
        if created.is_err() {
            self.delete_queue(era, AdminOpcode::DELETE_COMPLETION_QUEUE, place.id);
        }
        created
    }

    fn bell(&self, id: QueueId, completion: bool) -> Result<Bell, BlockError> {
        let dstrd = self.cap.dstrd();
        let register = admin::register_bell(&*self.transport, id, completion, dstrd)?;
        let (Some(buffers), Bell::Register(doorbell)) = (&self.shadow, register) else {
            return admin::register_bell(&*self.transport, id, completion, dstrd);
        };
        let at = doorbell_offset(id, completion, dstrd) - offset::DOORBELLS;
        Bell::shadow(buffers, at as usize, doorbell)
            .ok_or_else(|| violation(format!("no shadow doorbell for queue {id} in one page")))
    }

    fn create_completion_queue(&self, era: Era, place: Place) -> Result<(), BlockError> {
        let command = Command {
            opcode: AdminOpcode::CREATE_COMPLETION_QUEUE.0,
            dptr: [place.completions.0, 0],
            cdw10: size_and_id(place),
            cdw11: CreateCompletionQueueDword11::new().with_pc(true).into_bits(),
            ..Command::default()
        };
        self.execute_in(era, command, "Create I/O Completion Queue").map(drop)
    }

    fn create_submission_queue(&self, era: Era, place: Place) -> Result<(), BlockError> {
        let dword11 = CreateSubmissionQueueDword11::new().with_pc(true).with_cqid(place.id.0);
        let command = Command {
            opcode: AdminOpcode::CREATE_SUBMISSION_QUEUE.0,
            dptr: [place.submissions.0, 0],
            cdw10: size_and_id(place),
            cdw11: dword11.into_bits(),
            ..Command::default()
        };
        self.execute_in(era, command, "Create I/O Submission Queue").map(drop)
    }

    /// Takes a queue pair away from the controller, which ends what is in flight on it.
    ///
    /// If the controller does not obey it is reset: the queue's memory is about to go.
    pub(super) fn delete_queue_pair(&self, era: Era, id: QueueId) {
        self.delete_queue(era, AdminOpcode::DELETE_SUBMISSION_QUEUE, id);
        self.delete_queue(era, AdminOpcode::DELETE_COMPLETION_QUEUE, id);
    }

    fn delete_queue(&self, era: Era, opcode: AdminOpcode, id: QueueId) {
        let cdw10 = u32::from(id.0);
        let command = Command { opcode: opcode.0, cdw10, ..Command::default() };
        if let Err(error) = self.execute_in(era, command, "Delete I/O Queue") {
            self.reset(era, &format!("queue {id} could not be deleted: {error}"));
        }
    }

    fn take_queue_id(&self) -> Result<QueueId, BlockError> {
        let mut ids = self.lock_ids();
        if let Some(command) = ids.kept_by {
            return Err(Cause::Busy { what: format!("the controller, by {command}").into() }.into());
        }
        let Some(index) = ids.taken.iter().position(|taken| !taken) else {
            let what = format!("all {} I/O queue pairs of the controller", ids.taken.len()).into();
            return Err(Cause::Busy { what }.into());
        };
        ids.taken[index] = true;
        Ok(QueueId(u16::try_from(index + 1).expect("the controller granted 16 bits of them")))
    }

    pub(super) fn release_queue_id(&self, id: QueueId) {
        self.lock_ids().taken[usize::from(id.0) - 1] = false;
    }

    /// Returns the highest identifier that a queue pair has.
    pub(super) fn highest_queue_id(&self) -> u16 {
        let ids = self.lock_ids();
        let highest = ids.taken.iter().rposition(|taken| *taken).map_or(0, |index| index + 1);
        u16::try_from(highest).expect("the controller granted 16 bits of them")
    }
}

fn size_and_id(place: Place) -> u32 {
    let qsize = u16::try_from(place.entries - 1).expect("a ring has at most 65536 entries");
    QueueSizeAndId::new().with_qid(place.id.0).with_qsize(qsize).into_bits()
}
