//! Admin commands: queues, identify, logs, features, events, format, sanitize.
//!
//! [`Admin`] is what they change, apart from queues; [`Admin::serve`] takes turns like `group` does and tells
//! waiting events. Rare and never hot: clarity first.
//! Invariant: a command either completes once, or waits in `requests` as an Asynchronous Event Request.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::engine::Core;
use super::events::{Event, Kind};
use super::features::Features;
use super::group::{Group, Outcome, Work, batch, completion};
use super::identify::{self, EVENT_REQUESTS_MAX, FORMATS};
use super::iommu::Purpose;
use super::logs;
use super::options::Options;
use super::queue::{CompletionQueue, SubmissionQueue};
use crate::spec::command::{
    AbortDword10, AdminOpcode, Cns, Command, CreateCompletionQueueDword11,
    CreateSubmissionQueueDword11, GetFeaturesDword10, GetLogPageDword10, GetLogPageDword11,
    IdentifyDword10, IdentifyDword11, QueueSizeAndId, SetFeaturesDword10,
};
use crate::spec::completion::{Completion, StatusField};
use crate::spec::feature::{FeatureId, Select};
use crate::spec::log::{CriticalWarning, LogPage};
use crate::spec::status::Status;
use crate::units::{Iova, NamespaceId, QueueId, ZeroBased16};

/// What admin commands change.
pub(super) struct Admin {
    features: Features,
    /// Command ids of the Asynchronous Event Requests that wait, oldest first.
    requests: VecDeque<u16>,
    /// Requests that were aborted and whose completion has not been posted.
    aborted: Vec<u16>,
    /// Kinds of event that were told and whose log page has not been read since.
    masked: [bool; 4],
}

impl Admin {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            features: Features::new(options),
            requests: VecDeque::new(),
            aborted: Vec::new(),
            masked: [false; 4],
        }
    }

    /// Gives the admin queue a turn, and tells what happened.
    pub(super) fn serve(&mut self, core: &Core, group: &mut Group) -> usize {
        let Group { cq, sqs, work } = group;
        let Some(sq) = sqs.first_mut() else { return 0 };
        let (batch, announced) = batch(core, cq, sq, work);
        for _ in 0..batch {
            let command = sq.fetch();
            work.counters.admin_commands.count(command.opcode);
            if let Outcome::Complete(result) = self.execute(core, work, &command) {
                cq.post(completion(core, sq, work, &command, result));
            }
        }
        if batch == announced {
            sq.rest();
        }
        core.step_sanitize();
        self.tell(core, cq, sq);
        batch as usize
    }

    /// Completes waiting requests: the aborted ones, and those that an event has come for.
    fn tell(&mut self, core: &Core, cq: &mut CompletionQueue, sq: &SubmissionQueue) {
        let mut has_room = || cq.room(1).is_ok_and(|room| room > 0);
        let mut told = Vec::new();
        if (self.aborted.is_empty() && self.requests.is_empty()) || !has_room() {
            return;
        }
        if let Some(cid) = self.aborted.pop() {
            let field = StatusField::new().with_code(Status::ABORT_REQUESTED);
            told.push((cid, 0, field));
        } else if let Some(event) =
            core.events.take(self.features.events(), |kind| self.masks(kind))
            && let Some(cid) = self.requests.pop_front()
        {
            self.masked[event.kind() as usize] = true;
            told.push((cid, event.dword0(), StatusField::new()));
        }
        let more = !told.is_empty();
        for (cid, dw0, status) in told {
            let (sq_head, sq_id) = (sq.head(), sq.id);
            cq.post(Completion { dw0, dw1: 0, sq_head, sq_id, cid, status });
        }
        if more {
            self.tell(core, cq, sq);
        }
    }

    fn masks(&self, kind: Kind) -> bool {
        self.masked[kind as usize]
    }

    fn execute(&mut self, core: &Core, work: &mut Work, command: &Command) -> Outcome {
        if let Err(status) = check(command) {
            return Outcome::Complete(Err(status));
        }
        if self.requests.contains(&command.cid) {
            return Outcome::Complete(Err(Status::COMMAND_ID_CONFLICT));
        }
        match AdminOpcode(command.opcode) {
            AdminOpcode::ASYNC_EVENT_REQUEST => self.request_event(command),
            opcode => Outcome::Complete(self.dispatch(core, work, command, opcode)),
        }
    }

    fn dispatch(
        &mut self,
        core: &Core,
        work: &mut Work,
        command: &Command,
        opcode: AdminOpcode,
    ) -> Result<u32, Status> {
        match opcode {
            AdminOpcode::CREATE_COMPLETION_QUEUE => self.create_completion_queue(core, command),
            AdminOpcode::CREATE_SUBMISSION_QUEUE => self.create_submission_queue(core, command),
            AdminOpcode::DELETE_COMPLETION_QUEUE => delete_completion_queue(core, command),
            AdminOpcode::DELETE_SUBMISSION_QUEUE => delete_submission_queue(core, command),
            AdminOpcode::IDENTIFY => identify(core, work, command),
            AdminOpcode::GET_LOG_PAGE => self.get_log_page(core, work, command),
            AdminOpcode::SET_FEATURES => self.set_features(core, command),
            AdminOpcode::GET_FEATURES => self.get_features(command),
            AdminOpcode::ABORT => Ok(self.abort(core, command)),
            AdminOpcode::KEEP_ALIVE => Ok(0),
            AdminOpcode::FORMAT_NVM => format(core, command),
            AdminOpcode::SANITIZE => core.begin_sanitize(command),
            AdminOpcode::DOORBELL_BUFFER_CONFIG if core.options.shadow_doorbells => {
                core.shadow_doorbells(command.dptr[0], command.dptr[1])
            }
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    fn create_completion_queue(&self, core: &Core, command: &Command) -> Result<u32, Status> {
        let asked = QueueRequest::parse(core, command, self.features.queues().1)?;
        if core.group(asked.id).is_some() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let shape = CreateCompletionQueueDword11::from(command.cdw11);
        if !shape.pc() || command.cdw11 & 0xfffc != 0 || command.cdw12 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if shape.iv() > core.options.max_queues {
            return Err(Status::INVALID_INTERRUPT_VECTOR);
        }
        let vector = shape.ien().then_some(shape.iv());
        let made = core.make_completion_queue(asked.id, asked.entries, asked.iova, vector);
        made.map(|()| 0).ok_or(Status::DATA_TRANSFER_ERROR)
    }

    fn create_submission_queue(&self, core: &Core, command: &Command) -> Result<u32, Status> {
        let asked = QueueRequest::parse(core, command, self.features.queues().0)?;
        if core.group_of(asked.id).is_some() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let shape = CreateSubmissionQueueDword11::from(command.cdw11);
        // Dword 12 names an NVM set, of which there is none.
        if !shape.pc() || command.cdw11 & 0xfff8 != 0 || command.cdw12 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let completions = shape.cqid();
        if completions == 0 || completions > core.options.max_queues {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let mut slot = core.group(completions);
        let group = slot.as_deref_mut().ok_or(Status::INVALID_COMPLETION_QUEUE)?;
        let made = core.make_submission_queue(group, asked.id, asked.entries, asked.iova);
        made.map(|()| 0).ok_or(Status::DATA_TRANSFER_ERROR)
    }

    fn get_log_page(
        &mut self,
        core: &Core,
        work: &mut Work,
        command: &Command,
    ) -> Result<u32, Status> {
        let low = GetLogPageDword10::from(command.cdw10);
        let high = GetLogPageDword11::from(command.cdw11);
        let (page, retain) = (LogPage(low.lid()), low.rae());
        let dwords = (u64::from(low.numdl()) | u64::from(high.numdu()) << 16) + 1;
        let offset = u64::from(command.cdw12) | u64::from(command.cdw13) << 32;
        let (len, all) = (dwords * 4, [NamespaceId::NONE.0, NamespaceId::ALL.0]);
        if !all.contains(&command.nsid) || !offset.is_multiple_of(4) || len > core.transfer_max {
            return Err(Status::INVALID_FIELD);
        }
        // LSP, LSI and the offset type mean nothing to these pages.
        if low.lsp() != 0 || high.lsi() != 0 || command.cdw14 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let bytes = logs::page(core, page, !retain).ok_or(Status::INVALID_LOG_PAGE)?;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = bytes.get(offset..).ok_or(Status::INVALID_FIELD)?;
        send(core, work, command, rest, len)?;
        if let (Some(kind), false) = (Kind::of_page(page), retain) {
            self.masked[kind as usize] = false;
        }
        Ok(0)
    }

    fn set_features(&mut self, core: &Core, command: &Command) -> Result<u32, Status> {
        let asked = SetFeaturesDword10::from(command.cdw10);
        if asked.sv() {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        let id = FeatureId(asked.fid());
        check_feature_scope(command)?;
        if command.cdw10 & !0xff != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if id == FeatureId::NUMBER_OF_QUEUES && !core.io_groups().is_empty() {
            return Err(Status::COMMAND_SEQUENCE_ERROR);
        }
        if id == FeatureId::HOST_BEHAVIOR {
            return set_host_behavior(core, command);
        }
        let vector = command.cdw11 & 0xffff;
        if id == FeatureId::INTERRUPT_VECTOR && vector > u32::from(core.options.max_queues) {
            return Err(Status::INVALID_FIELD);
        }
        let dword0 = self.features.set(id, command.cdw11)?;
        core.set_write_through(!self.features.caches_writes());
        if id == FeatureId::TEMPERATURE_THRESHOLD {
            self.look_at_temperature(core);
        }
        Ok(dword0)
    }

    /// Warns if the temperature is beyond a threshold.
    pub(super) fn look_at_temperature(&self, core: &Core) {
        let mut errors = core.errors();
        if self.features.is_extreme(errors.temperature()) {
            errors.warn_of_temperature();
            core.raise(Event::CriticalWarning(
                CriticalWarning::new().with_temperature(true).into(),
            ));
        }
    }

    fn get_features(&self, command: &Command) -> Result<u32, Status> {
        check_feature_scope(command)?;
        let asked = GetFeaturesDword10::from(command.cdw10);
        if command.cdw10 & !0x7ff != 0 {
            return Err(Status::INVALID_FIELD);
        }
        self.features.get(FeatureId(asked.fid()), Select(asked.sel()), command.cdw11)
    }

    fn request_event(&mut self, command: &Command) -> Outcome {
        if self.requests.len() == EVENT_REQUESTS_MAX {
            return Outcome::Complete(Err(Status::EVENT_REQUEST_LIMIT_EXCEEDED));
        }
        self.requests.push_back(command.cid);
        Outcome::Silent
    }

    /// Aborts a waiting event request, or a command that stalls; every other is over before an Abort is fetched.
    fn abort(&mut self, core: &Core, command: &Command) -> u32 {
        const NOT_ABORTED: u32 = 1;
        let asked = AbortDword10::from(command.cdw10);
        if let Some(group) = core.group_of(asked.sqid()).filter(|group| *group != QueueId::ADMIN.0)
        {
            let mut group = core.group(group);
            let aborted =
                group.as_deref_mut().is_some_and(|one| one.abort(asked.sqid(), asked.cid()));
            return if aborted { 0 } else { NOT_ABORTED };
        }
        match self.requests.iter().position(|waiting| *waiting == asked.cid()) {
            Some(at) if asked.sqid() == QueueId::ADMIN.0 => {
                self.requests.remove(at);
                self.aborted.push(asked.cid());
                0
            }
            _ => NOT_ABORTED,
        }
    }
}

/// Takes over what the host says of itself: 512 bytes, of which the first says whether it heeds delays (Base 5.27.1.18).
fn set_host_behavior(core: &Core, command: &Command) -> Result<u32, Status> {
    let len = FeatureId::HOST_BEHAVIOR.data_bytes();
    let share = core.iommu.share(Iova(command.dptr[0]), len, Purpose::FromHost);
    let mut heeds_delays = [0];
    let first = share.as_ref().and_then(|share| share.span().slice(0, 1));
    first.ok_or(Status::DATA_TRANSFER_ERROR)?.read_into(&mut heeds_delays);
    if heeds_delays[0] > 1 {
        return Err(Status::INVALID_FIELD);
    }
    core.set_heeds_delays(heeds_delays[0] == 1);
    Ok(0)
}

/// A queue that the host wants made.
struct QueueRequest {
    id: u16,
    entries: u32,
    iova: u64,
}

impl QueueRequest {
    /// Checks what both kinds of queue have in common (NVMe Base 2.0, 5.4 and 5.5).
    fn parse(core: &Core, command: &Command, granted: u32) -> Result<Self, Status> {
        let asked = QueueSizeAndId::from(command.cdw10);
        let (id, entries) = (asked.qid(), ZeroBased16::from_wire(asked.qsize()).count());
        let [iova, reserved] = command.dptr;
        if id == 0 || u32::from(id) > granted.min(core.options.max_queues.into()) {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if entries < 2 || entries > core.options.max_queue_entries {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        if !iova.is_multiple_of(4096) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        // CC has to say how large entries are before the first queue is made.
        if reserved != 0 || !core.entries_are_sized() {
            return Err(Status::INVALID_FIELD);
        }
        Ok(Self { id, entries, iova })
    }
}

fn delete_submission_queue(core: &Core, command: &Command) -> Result<u32, Status> {
    let id = deleted(command)?;
    let group = core.group_of(id).ok_or(Status::INVALID_QUEUE_ID)?;
    let mut slot = core.group(group);
    let group = slot.as_deref_mut().ok_or(Status::INVALID_QUEUE_ID)?;
    core.drop_submission_queue(group, id);
    Ok(0)
}

fn delete_completion_queue(core: &Core, command: &Command) -> Result<u32, Status> {
    let id = deleted(command)?;
    if id > core.options.max_queues {
        return Err(Status::INVALID_QUEUE_ID);
    }
    let mut slot = core.group(id);
    match slot.as_deref() {
        None => Err(Status::INVALID_QUEUE_ID),
        Some(group) if !group.sqs.is_empty() => Err(Status::INVALID_QUEUE_DELETION),
        Some(_) => {
            core.drop_group(&mut slot);
            Ok(0)
        }
    }
}

/// Returns the I/O queue that is to be deleted.
fn deleted(command: &Command) -> Result<u16, Status> {
    match command.cdw10 {
        0 => Err(Status::INVALID_QUEUE_ID),
        id => u16::try_from(id).map_err(|_| Status::INVALID_FIELD),
    }
}

fn identify(core: &Core, work: &mut Work, command: &Command) -> Result<u32, Status> {
    let (cns, csi) = (
        Cns(IdentifyDword10::from(command.cdw10).cns()),
        IdentifyDword11::from(command.cdw11).csi(),
    );
    // CNTID and CNSSID select nothing in these structures.
    if command.cdw10 & !0xff != 0 || command.cdw11 & 0xff_ffff != 0 || command.cdw14 != 0 {
        return Err(Status::INVALID_FIELD);
    }
    let page = identify::page(core, cns, csi, command.nsid)?;
    work.dma.write(&core.iommu, command, &page).map(|()| 0)
}

fn format(core: &Core, command: &Command) -> Result<u32, Status> {
    let (index, protection) = ((command.cdw10 & 0xf) as usize, command.cdw10 & 0x1f0);
    let (erase, reserved) = (command.cdw10 >> 9 & 7, command.cdw10 >> 12);
    let size = *FORMATS.get(index).ok_or(Status::INVALID_FORMAT)?;
    if protection != 0 {
        return Err(Status::INVALID_FORMAT);
    }
    let words = command.cdw11 | command.cdw12 | command.cdw13 | command.cdw14;
    // No erase, or user data erase, which is what happens in any case.
    if erase > 1 || reserved | words != 0 {
        return Err(Status::INVALID_FIELD);
    }
    let _held = core.io_groups();
    core.sanitize().refusal().map_or(Ok(()), Err)?;
    if u64::from(size.bytes()) > core.transfer_max {
        return Err(Status::INVALID_FORMAT);
    }
    if command.nsid == NamespaceId::ALL.0 {
        core.namespaces.iter().try_for_each(|namespace| namespace.format(size))?;
    } else {
        core.namespace(command.nsid)?.format(size)?;
    }
    Ok(0)
}

/// Copies `len` bytes to the host: `bytes`, and zeroes after their end.
fn send(
    core: &Core,
    work: &mut Work,
    command: &Command,
    bytes: &[u8],
    len: u64,
) -> Result<(), Status> {
    work.dma.data(&core.iommu, command, len, Purpose::ToHost, |at, span| {
        let rest = bytes.get(at as usize..).unwrap_or_default();
        let real = rest.len().min(span.len());
        let halves = (span.slice(0, real), span.slice(real, span.len() - real));
        if let (Some(text), Some(padding)) = halves {
            text.write_from(&rest[..real]);
            padding.fill(0);
        }
        Ok(())
    })
}

/// Refuses what no admin command may carry: SGLs, fused halves, metadata, reserved words.
fn check(command: &Command) -> Result<(), Status> {
    let words = command.cdw2 | command.cdw3 | command.cdw15;
    if u8::from(command.flags) != 0 || u64::from(words) | command.mptr != 0 {
        return Err(Status::INVALID_FIELD);
    }
    Ok(())
}

/// No feature here belongs to a namespace (NVMe Base 2.0, 5.27.1).
fn check_feature_scope(command: &Command) -> Result<(), Status> {
    match command.nsid {
        0 | u32::MAX => Ok(()),
        _ => Err(Status::FEATURE_NOT_PER_NAMESPACE),
    }
}
