//! A controller that is ready: admin commands, queue pairs, and the one way down.
//!
//! Shared by all its queues and namespaces. Its health is one word that every queue looks at when it
//! polls; whoever finds the controller broken stops it, and every queue then hands its requests back.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use super::admin::{self, Admin, no_memory, violation};
use super::bell::{Bell, ShadowBuffers};
use super::connection::Connection;
use super::identity::{ControllerLimits, FoundNamespace, NamespaceIdentity};
use super::limits::Limits;
use super::lists::Lists;
use super::namespace::Namespace;
use super::queue::{Parts, QueuePair};
use super::registers::Registers;
use super::ring::{CompletionRing, SubmissionRing};
use super::slots::Slots;
use super::status;
use super::tags::Tags;
use super::wait::Wait;
use crate::block::deadline::Deadlines;
use crate::block::{BlockError, Cause, IoQueue, QueueOptions};
use crate::dma::Domain;
use crate::spec::command::{
    AdminOpcode, Command, CreateCompletionQueueDword11, CreateSubmissionQueueDword11,
    QueueSizeAndId,
};
use crate::spec::completion::Completion;
use crate::spec::event::AsyncEventResult;
use crate::spec::identify::{IdentifyController, IdentifyNamespace};
use crate::spec::registers::{Capabilities, doorbell_offset, offset};
use crate::transport::Transport;
use crate::units::{NamespaceId, QueueId};

/// Whether a controller can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Health {
    /// It works.
    Live = 0,
    /// It is being stopped; its queues wait.
    Failing = 1,
    /// It can no longer touch memory; its queues hand their requests back.
    Stopped = 2,
}

/// A namespace as it was identified, whether it can be driven or not.
struct Identified {
    nsid: NamespaceId,
    id: Arc<IdentifyNamespace>,
    identity: Result<NamespaceIdentity, BlockError>,
}

impl Identified {
    fn new(found: FoundNamespace, limits: &ControllerLimits) -> Self {
        let FoundNamespace { nsid, id, extended } = found;
        let identity = NamespaceIdentity::parse(nsid, &id, extended.as_deref(), limits);
        Self { nsid, id: id.into(), identity }
    }
}

/// What bring-up hands over.
pub(super) struct ControllerParts {
    pub(super) connection: Connection,
    pub(super) admin: Admin,
    pub(super) domain: Arc<Domain>,
    pub(super) identify: Box<IdentifyController>,
    pub(super) limits: ControllerLimits,
    pub(super) namespaces: Vec<FoundNamespace>,
    pub(super) queues: u16,
    pub(super) shadow: Option<ShadowBuffers>,
    pub(super) admin_timeout: Duration,
}

/// An NVMe controller that is ready for I/O.
pub struct Controller {
    health: AtomicU8,
    /// Why it is not live.
    reason: OnceLock<Reason>,
    transport: Arc<dyn Transport>,
    cap: Capabilities,
    domain: Arc<Domain>,
    identify: Box<IdentifyController>,
    limits: ControllerLimits,
    /// Changed by a format, while no queue is open.
    namespaces: RwLock<Vec<Identified>>,
    queue_ids: Mutex<QueueIds>,
    admin_timeout: Duration,
    control: Mutex<Control>,
    /// After `control`: the shadow doorbells are unmapped by the connection first.
    shadow: Option<ShadowBuffers>,
}

/// Why a controller is not live.
#[derive(Clone, Debug)]
pub(super) struct Reason {
    what: Arc<str>,
    /// Whether the device is not there any more, or is about to go.
    is_gone: bool,
}

impl Reason {
    /// Returns what requests are told that were under way.
    pub(super) fn cause(&self) -> Cause {
        let what = self.what.to_string().into();
        if self.is_gone { Cause::DeviceGone { what } } else { Cause::Poisoned { what } }
    }
}

/// Which queues there are.
pub(super) struct QueueIds {
    /// Identifiers 1 to n that are taken.
    pub(super) taken: Vec<bool>,
    /// The command that keeps queues from being opened.
    pub(super) kept_by: Option<&'static str>,
}

/// What only one thread at a time may do.
struct Control {
    /// First: the controller lets go of memory before the rings go.
    connection: Connection,
    admin: Admin,
}

impl Controller {
    /// Assembles what bring-up has found.
    pub(super) fn assemble(parts: ControllerParts) -> Arc<Self> {
        let ControllerParts { connection, admin, domain, identify, limits, .. } = parts;
        let namespaces = parts.namespaces.into_iter();
        let namespaces = namespaces.map(|found| Identified::new(found, &limits)).collect();
        let taken = vec![false; usize::from(parts.queues)];
        let controller = Arc::new(Self {
            health: AtomicU8::new(Health::Live as u8),
            reason: OnceLock::new(),
            transport: Arc::clone(connection.registers.transport()),
            cap: connection.cap,
            domain,
            identify,
            limits,
            namespaces: RwLock::new(namespaces),
            queue_ids: Mutex::new(QueueIds { taken, kept_by: None }),
            admin_timeout: parts.admin_timeout,
            control: Mutex::new(Control { connection, admin }),
            shadow: parts.shadow,
        });
        let weak = Arc::downgrade(&controller);
        controller.transport.on_removal(Box::new(move |what| {
            // Whoever has let go of it needs not hear of it.
            if let Some(controller) = weak.upgrade() {
                controller.give_up(what, true);
            }
        }));
        controller
    }

    /// Returns what Identify Controller returned.
    pub fn identify(&self) -> &IdentifyController {
        &self.identify
    }

    /// Returns the active namespaces and what Identify Namespace returned of each.
    pub fn namespaces(&self) -> Vec<(NamespaceId, Arc<IdentifyNamespace>)> {
        self.identified(|all| all.iter().map(|one| (one.nsid, Arc::clone(&one.id))).collect())
    }

    /// Returns a namespace as a block device.
    ///
    /// # Errors
    ///
    /// `Invalid` if there is none of that number, `Unsupported` if its format cannot be driven.
    pub fn namespace(
        self: &Arc<Self>,
        nsid: NamespaceId,
        address: &str,
    ) -> Result<Namespace, BlockError> {
        self.identified(|all| {
            let Some(one) = all.iter().find(|one| one.nsid == nsid) else {
                return Err(Cause::NotFound { what: no_namespace(nsid, all).into() }.into());
            };
            match &one.identity {
                Ok(identity) => {
                    let (identity, id) = (identity.clone(), Arc::clone(&one.id));
                    Ok(Namespace::new(Arc::clone(self), identity, id, address))
                }
                Err(error) => Err(error.again()),
            }
        })
    }

    /// Identifies the namespaces again that `changed` picks. Who was handed one before whose blocks have become
    /// others has an outdated one then.
    pub(super) fn look_again(
        &self,
        changed: impl Fn(NamespaceId) -> bool,
    ) -> Result<(), BlockError> {
        let mut result = Ok(());
        for (nsid, old) in self.namespaces().into_iter().filter(|(nsid, _)| changed(*nsid)) {
            let fresh = match self.identify_namespace(nsid) {
                Ok(found) if has_same_blocks(&old, &found.id) => continue,
                Ok(found) => Identified::new(found, &self.limits),
                // Nobody knows its blocks: it is out of use, whoever has it.
                Err(error) => {
                    let identity = Err(error.again());
                    result = result.and(Err(error));
                    Identified { nsid, id: Arc::new((*old).clone()), identity }
                }
            };
            let mut all = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
            all.retain(|one| one.nsid != nsid);
            let at = all.partition_point(|one| one.nsid < nsid);
            all.insert(at, fresh);
        }
        result
    }

    fn identified<T>(&self, look: impl FnOnce(&[Identified]) -> T) -> T {
        look(&self.namespaces.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the memory that the controller can reach.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// Returns the number of I/O queue pairs that the controller granted.
    pub fn queues(&self) -> u16 {
        u16::try_from(self.lock_ids().taken.len()).unwrap_or(u16::MAX)
    }

    /// Returns the most requests that one queue can have in flight: one entry always stays empty.
    pub fn max_depth(&self) -> u32 {
        u32::from(self.cap.mqes())
    }

    /// Sends an admin command and waits for it.
    ///
    /// # Errors
    ///
    /// The controller's status, `Timeout`, or `Poisoned` after an earlier failure.
    pub fn execute(&self, command: Command, what: &'static str) -> Result<Completion, BlockError> {
        self.execute_within(command, what, self.admin_timeout)
    }

    /// Sends an admin command and waits for it, `patience` at most.
    pub(super) fn execute_within(
        &self,
        command: Command,
        what: &'static str,
        patience: Duration,
    ) -> Result<Completion, BlockError> {
        self.check_live()?;
        let mut control = self.lock();
        let cid = control.admin.submit(command)?;
        let mut wait = Wait::for_at_most(patience);
        loop {
            if let Err(error) = control.admin.poll() {
                self.stop(&mut control, &error.to_string());
                return Err(error);
            }
            if let Some(completion) = control.admin.result(cid) {
                return match completion.status.is_success() {
                    true => Ok(completion),
                    false => Err(status::admin_error(completion.status, what)),
                };
            }
            if let Err(error) = self.check_live() {
                // Whoever gave the controller up waits for the lock that is held here. The command may
                // still touch its memory, so the caller must not have it back before the stop.
                self.stop(&mut control, &self.reason().what);
                return Err(error);
            }
            if wait.is_over() {
                let after = patience;
                let gone = control.connection.registers.absence();
                self.announce(
                    gone.as_deref().unwrap_or(&format!("{what} took longer than {after:?}")),
                    gone.is_some(),
                );
                self.stop(&mut control, what);
                return Err(match gone {
                    Some(what) => Cause::DeviceGone { what: what.into() }.into(),
                    None => Cause::Timeout { what: what.into(), after }.into(),
                });
            }
            wait.pause();
        }
    }

    /// Returns the events that the controller has reported since the last call.
    ///
    /// # Errors
    ///
    /// `Poisoned` after an earlier failure, `Protocol` if this finds one.
    pub fn events(&self) -> Result<Vec<AsyncEventResult>, BlockError> {
        self.check_live()?;
        let mut control = self.lock();
        if let Err(error) = control.admin.poll() {
            self.stop(&mut control, &error.to_string());
            return Err(error);
        }
        Ok(core::iter::from_fn(|| control.admin.next_event()).collect())
    }

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
        let opened = self
            .check_current(limits.nsid, id)
            .and_then(|()| self.build_queue(queue, limits, options));
        if opened.is_err() {
            self.release_queue_id(queue);
        }
        opened
    }

    /// Refuses a namespace that was formatted since it was identified: its blocks may have another size.
    fn check_current(
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
        options: &QueueOptions,
    ) -> Result<Box<dyn IoQueue>, BlockError> {
        let slots = u16::try_from(options.depth).expect("the depth is at most CAP.MQES");
        // One entry stays empty, so that a full ring is told from an empty one.
        let entries = options.depth + 1;
        let ((sq, sq_at), (cq, cq_at)) = admin::rings(&self.domain, entries).map_err(no_memory)?;
        let lists = Lists::new(&self.domain, slots).map_err(no_memory)?;
        let tags = Tags::new(&self.domain, limits, slots).map_err(no_memory)?;
        let bells = (self.bell(id, false)?, self.bell(id, true)?);
        self.create_completion_queue(id, entries, cq_at.0)?;
        if let Err(error) = self.create_submission_queue(id, entries, sq_at.0) {
            self.delete_queue(AdminOpcode::DELETE_COMPLETION_QUEUE, id);
            return Err(error);
        }
        let parts = Parts {
            id,
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

    fn create_completion_queue(
        &self,
        id: QueueId,
        entries: u32,
        at: u64,
    ) -> Result<(), BlockError> {
        let command = Command {
            opcode: AdminOpcode::CREATE_COMPLETION_QUEUE.0,
            dptr: [at, 0],
            cdw10: size_and_id(id, entries),
            cdw11: CreateCompletionQueueDword11::new().with_pc(true).into_bits(),
            ..Command::default()
        };
        self.execute(command, "Create I/O Completion Queue").map(drop)
    }

    fn create_submission_queue(
        &self,
        id: QueueId,
        entries: u32,
        at: u64,
    ) -> Result<(), BlockError> {
        let dword11 = CreateSubmissionQueueDword11::new().with_pc(true).with_cqid(id.0);
        let command = Command {
            opcode: AdminOpcode::CREATE_SUBMISSION_QUEUE.0,
            dptr: [at, 0],
            cdw10: size_and_id(id, entries),
            cdw11: dword11.into_bits(),
            ..Command::default()
        };
        self.execute(command, "Create I/O Submission Queue").map(drop)
    }

    /// Takes a queue pair away from the controller, which ends what is in flight on it.
    ///
    /// If the controller does not obey it is stopped: the queue's memory is about to go.
    pub(super) fn delete_queue_pair(&self, id: QueueId) {
        self.delete_queue(AdminOpcode::DELETE_SUBMISSION_QUEUE, id);
        self.delete_queue(AdminOpcode::DELETE_COMPLETION_QUEUE, id);
    }

    fn delete_queue(&self, opcode: AdminOpcode, id: QueueId) {
        let cdw10 = u32::from(id.0);
        let command = Command { opcode: opcode.0, cdw10, ..Command::default() };
        if let Err(error) = self.execute(command, "Delete I/O Queue") {
            self.fail(&format!("queue {id} could not be deleted: {error}"));
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

    /// Says whether the controller can be used. Looked at by every poll: one comparison.
    #[inline]
    pub(super) fn is_live(&self) -> bool {
        self.health.load(Ordering::Acquire) == Health::Live as u8
    }

    /// Says how the controller is.
    pub(super) fn health(&self) -> Health {
        // Acquire: who sees `Stopped` also sees that the device was cut off from memory before.
        match self.health.load(Ordering::Acquire) {
            0 => Health::Live,
            1 => Health::Failing,
            _ => Health::Stopped,
        }
    }

    /// Returns why the controller is not live.
    pub(super) fn reason(&self) -> Reason {
        let none = || Reason { what: "no reason was given".into(), is_gone: false };
        self.reason.get().cloned().unwrap_or_else(none)
    }

    /// Gives the controller up: stops it and cuts it off from memory.
    #[cold]
    pub(super) fn fail(&self, reason: &str) {
        self.give_up(reason, false);
    }

    /// Gives the controller up since a command is overdue, and says so if the device is not there at all.
    #[cold]
    pub(super) fn fail_overdue(&self, reason: &str) {
        let registers = Registers::new(Arc::clone(&self.transport));
        match (registers.absence(), registers.complaint()) {
            (Some(gone), _) => self.give_up(&format!("{reason}; {gone}"), true),
            (None, Some(complaint)) => self.give_up(&format!("{reason}; {complaint}"), false),
            (None, None) => self.give_up(reason, false),
        }
    }

    fn give_up(&self, reason: &str, is_gone: bool) {
        self.announce(reason, is_gone);
        let mut control = self.lock();
        self.stop(&mut control, reason);
    }

    /// Makes sure that a controller that was given up can no longer touch memory.
    pub(super) fn ensure_stopped(&self) {
        let mut control = self.lock();
        self.stop(&mut control, &self.reason().what);
    }

    fn stop(&self, control: &mut Control, reason: &str) {
        self.announce(reason, false);
        control.connection.stop();
        // Release: the device is cut off before anybody reads `Stopped`.
        self.health.store(Health::Stopped as u8, Ordering::Release);
    }

    /// Lets everybody who waits for the controller know that it is of no use.
    fn announce(&self, reason: &str, is_gone: bool) {
        let first = self.reason.set(Reason { what: reason.into(), is_gone }).is_ok();
        if first {
            tracing::error!(reason, "the controller is given up");
        }
        let (live, failing) = (Health::Live as u8, Health::Failing as u8);
        let order = (Ordering::AcqRel, Ordering::Acquire);
        // Already failing or stopped is as good.
        let _ = self.health.compare_exchange(live, failing, order.0, order.1);
    }

    fn check_live(&self) -> Result<(), BlockError> {
        match self.health() {
            Health::Live => Ok(()),
            _ => Err(self.reason().cause().into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        // A panic under this lock is a bug of ours; the way down must work all the same.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_ids(&self) -> MutexGuard<'_, QueueIds> {
        self.queue_ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Controller {
    /// Shuts the controller down in order; the connection then stops it and unmaps our memory.
    fn drop(&mut self) {
        let control = self.control.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !control.connection.is_attached() {
            return;
        }
        if let Err(error) = control.connection.shut_down() {
            tracing::warn!(%error, "the controller was not shut down in order");
        }
        control.connection.stop();
    }
}

/// Says whether a namespace is still cut as it was.
fn has_same_blocks(old: &IdentifyNamespace, new: &IdentifyNamespace) -> bool {
    let shape = |id: &IdentifyNamespace| (id.nsze, id.flbas, id.dps, *id.lba_format());
    shape(old) == shape(new)
}

fn no_namespace(nsid: NamespaceId, all: &[Identified]) -> String {
    let ids: Vec<String> = all.iter().map(|one| one.nsid.to_string()).collect();
    match ids.is_empty() {
        true => format!("namespace {nsid}: no namespace is attached to the controller"),
        false => format!("namespace {nsid}: attached to the controller are {}", ids.join(", ")),
    }
}

fn size_and_id(id: QueueId, entries: u32) -> u32 {
    let qsize = u16::try_from(entries - 1).expect("a ring has at most 65536 entries");
    QueueSizeAndId::new().with_qid(id.0).with_qsize(qsize).into_bits()
}
