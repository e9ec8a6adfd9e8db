//! A controller that is ready: admin commands, namespaces, events.
//!
//! Shared by all its queues and namespaces. Its `health` is one word that every queue looks at when it polls; what
//! happens when somebody finds it broken is `recovery`.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::bell::ShadowBuffers;
use super::bringup::Options;
use super::connection::Session;
use super::health::{Era, Health};
use super::identity::{ControllerLimits, FoundNamespace, NamespaceIdentity};
use super::namespace::Namespace;
use super::recovery::{Control, Troubles};
use super::status;
use super::wait::Wait;
use crate::block::{BlockError, Cause};
use crate::dma::Domain;
use crate::spec::command::{AdminOpcode, Command};
use crate::spec::completion::Completion;
use crate::spec::event::AsyncEventResult;
use crate::spec::identify::{IdentifyController, IdentifyNamespace};
use crate::spec::registers::Capabilities;
use crate::transport::Transport;
use crate::units::NamespaceId;

/// A namespace as it was identified, whether it can be driven or not.
pub(super) struct Identified {
    pub(super) nsid: NamespaceId,
    pub(super) id: Arc<IdentifyNamespace>,
    identity: Result<NamespaceIdentity, BlockError>,
}

impl Identified {
    fn new(found: FoundNamespace, limits: &ControllerLimits) -> Self {
        let FoundNamespace { nsid, id, extended } = found;
        let identity = NamespaceIdentity::parse(nsid, &id, extended.as_deref(), limits);
        Self { nsid, id: id.into(), identity }
    }

    /// Says whether another is of the same namespace, and that as it was.
    fn is_as(&self, other: &Self) -> bool {
        let drivable = self.identity.is_ok() && other.identity.is_ok();
        drivable && self.nsid == other.nsid && has_same_blocks(&self.id, &other.id)
    }
}

/// What bring-up hands over.
pub(super) struct ControllerParts {
    pub(super) session: Box<Session>,
    pub(super) domain: Arc<Domain>,
    pub(super) identify: Box<IdentifyController>,
    pub(super) limits: ControllerLimits,
    pub(super) namespaces: Vec<FoundNamespace>,
    pub(super) queues: u16,
    pub(super) shadow: Option<ShadowBuffers>,
    pub(super) options: Options,
}

/// An NVMe controller that is ready for I/O.
pub struct Controller {
    pub(super) health: Health,
    pub(super) troubles: Troubles,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) cap: Capabilities,
    pub(super) domain: Arc<Domain>,
    pub(super) identify: Box<IdentifyController>,
    pub(super) limits: ControllerLimits,
    /// Changed by a format, while no queue is open, and by a reset.
    namespaces: RwLock<Vec<Identified>>,
    queue_ids: Mutex<QueueIds>,
    pub(super) options: Options,
    /// What only one thread at a time may use.
    pub(super) control: Mutex<Control>,
    /// After `control`: the shadow doorbells are unmapped by the connection first.
    pub(super) shadow: Option<ShadowBuffers>,
}

/// What a command has come to.
enum Ended {
    Completed(Completion),
    /// The controller ended, or its era did, before the command.
    Interrupted,
    /// It never was sent, or the controller is to be reset because of it.
    Failed(BlockError),
}

/// Which queues there are.
pub(super) struct QueueIds {
    /// Identifiers 1 to n that are taken.
    pub(super) taken: Vec<bool>,
    /// The command that keeps queues from being opened.
    pub(super) kept_by: Option<&'static str>,
}

impl Controller {
    /// Assembles what bring-up has found.
    pub(super) fn assemble(parts: ControllerParts) -> Arc<Self> {
        let ControllerParts { session, domain, identify, limits, .. } = parts;
        let connection = &session.connection;
        let (transport, cap) = (Arc::clone(connection.registers.transport()), connection.cap);
        let namespaces = parts.namespaces.into_iter();
        let namespaces = namespaces.map(|found| Identified::new(found, &limits)).collect();
        let taken = vec![false; usize::from(parts.queues)];
        let controller = Arc::new(Self {
            health: Health::new(),
            troubles: Troubles::default(),
            transport,
            cap,
            domain,
            identify,
            limits,
            namespaces: RwLock::new(namespaces),
            queue_ids: Mutex::new(QueueIds { taken, kept_by: None }),
            options: parts.options,
            control: Mutex::new(Control::new(session)),
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

    /// Takes over what namespaces are like after a reset. Who has one that is as it was keeps it.
    pub(super) fn take_over(&self, found: Vec<FoundNamespace>) {
        let mut all = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        let old = core::mem::take(&mut *all);
        *all = found.into_iter().map(|found| Identified::new(found, &self.limits)).collect();
        for one in &mut *all {
            if let Some(same) = old.iter().find(|old| old.is_as(one)) {
                one.id = Arc::clone(&same.id);
            }
        }
    }

    pub(super) fn identified<T>(&self, look: impl FnOnce(&[Identified]) -> T) -> T {
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
    /// A reset that comes in between ends the command; one that changes nothing is then sent again.
    ///
    /// # Errors
    ///
    /// The controller's status, `Timeout`, `Uncertain` after a reset, or `Poisoned` once the controller was given up.
    pub fn execute(&self, command: Command, what: &'static str) -> Result<Completion, BlockError> {
        self.execute_within(command, what, self.options.admin_timeout)
    }

    /// Sends an admin command and waits for it, `patience` at most.
    pub(super) fn execute_within(
        &self,
        command: Command,
        what: &'static str,
        patience: Duration,
    ) -> Result<Completion, BlockError> {
        let mut wait = Wait::for_at_most(patience);
        loop {
            let era = self.await_live()?;
            match self.attempt(era, command, (what, patience), &mut wait) {
                Ended::Completed(completion) => {
                    self.troubles.note_success();
                    return outcome(completion, what);
                }
                Ended::Interrupted if changes_nothing(command) => {}
                Ended::Interrupted => return Err(self.troubles.uncertain(what)),
                Ended::Failed(error) => return Err(error),
            }
        }
    }

    /// Sends an admin command in one era of the controller and waits for it.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute); `Uncertain` also where the era is over before the command is sent.
    pub(super) fn execute_in(
        &self,
        era: Era,
        command: Command,
        what: &'static str,
    ) -> Result<Completion, BlockError> {
        let patience = self.options.admin_timeout;
        match self.attempt(era, command, (what, patience), &mut Wait::for_at_most(patience)) {
            Ended::Completed(completion) => outcome(completion, what),
            Ended::Interrupted => Err(self.troubles.uncertain(what)),
            Ended::Failed(error) => Err(error),
        }
    }

    /// Sends a command and waits. When this returns the controller is done with the command's memory.
    fn attempt(
        &self,
        era: Era,
        command: Command,
        what: (&'static str, Duration),
        wait: &mut Wait,
    ) -> Ended {
        let mut control = self.lock();
        let ended = match control.session() {
            Some(session) if self.health.is(era) => self.run(session, era, command, what, wait),
            _ => Ended::Interrupted,
        };
        drop(control);
        if !matches!(ended, Ended::Completed(_)) {
            self.settle();
        }
        ended
    }

    fn run(
        &self,
        session: &mut Session,
        era: Era,
        command: Command,
        (what, patience): (&'static str, Duration),
        wait: &mut Wait,
    ) -> Ended {
        let cid = match session.admin.submit(command) {
            Ok(cid) => cid,
            Err(error) => return Ended::Failed(error),
        };
        loop {
            if let Err(error) = self.take_in(session, era) {
                return Ended::Failed(error);
            }
            if let Some(completion) = session.admin.result(cid) {
                return Ended::Completed(completion);
            }
            // Whoever is behind this waits for the lock that is held here.
            if !self.health.is(era) || !self.watch(era) {
                return Ended::Interrupted;
            }
            if wait.is_over() {
                self.reset_overdue(era, &format!("{what} took longer than {patience:?}"), "");
                return Ended::Failed(Cause::Timeout { what: what.into(), after: patience }.into());
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
        let era = self.await_live()?;
        let mut control = self.lock();
        let Some(session) = control.session() else { return Ok(Vec::new()) };
        let taken = self.take_in(session, era);
        let events = core::iter::from_fn(|| session.admin.next_event()).collect();
        drop(control);
        self.settle();
        taken.map(|()| events)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Control> {
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
        // In a reset it is disabled already.
        let Some(session) = control.session() else { return };
        if let Err(error) = session.connection.shut_down() {
            tracing::warn!(%error, "the controller was not shut down in order");
        }
        session.connection.stop();
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

fn outcome(completion: Completion, what: &'static str) -> Result<Completion, BlockError> {
    match completion.status.is_success() {
        true => Ok(completion),
        false => Err(status::admin_error(completion.status, what)),
    }
}

/// Says whether a command may be sent twice without anybody noticing.
fn changes_nothing(command: Command) -> bool {
    let reads = [AdminOpcode::IDENTIFY, AdminOpcode::GET_LOG_PAGE, AdminOpcode::GET_FEATURES];
    reads.contains(&AdminOpcode(command.opcode))
}
