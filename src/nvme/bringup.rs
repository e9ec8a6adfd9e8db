//! Bring-up: from registers to a controller that is ready for queues, without ever blocking.
//!
//! ```text
//!  Disabling -> Enabling -> IdentifyController -> [IdentifyNvm] -> [HostBehavior] -> NumberOfQueues -> [Shadow]
//!      -> Events -> ActiveNamespaces -> (Namespace -> [NamespaceFormats])(1..n) -> ready
//! ```
//!
//! Each state has a deadline; an error names the state and writes the registers down. Several controllers
//! are brought up side by side by stepping each in turn. Dropped half-way, the connection stops the
//! controller and unmaps its memory.
#![forbid(unsafe_code)]

use core::fmt;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::admin::{Admin, no_memory, violation};
use super::bell::ShadowBuffers;
use super::connection::{Connection, Session};
use super::controller::{Controller, ControllerParts};
use super::identity::{ControllerLimits, FoundNamespace};
use super::memory::PAGE;
use super::tagging::MetadataUse;
use super::{status, wait};
use crate::block::{BlockError, Cause};
use crate::dma::{Access, Domain, Window};
use crate::spec::command::{AdminOpcode, Cns, Command, IdentifyDword10, SetFeaturesDword10};
use crate::spec::completion::Completion;
use crate::spec::feature::{FeatureId, NumberOfQueues};
use crate::spec::identify::{
    ActiveNamespaceList, EntrySize, IdentifyController, IdentifyNamespace, IdentifyNvmController,
    IdentifyNvmNamespace,
};
use crate::spec::registers::{
    Configuration, IOCQES_NVM, IOSQES_NVM, Version, last_queue_with_doorbells,
};
use crate::transport::Transport;
use crate::units::{CommandId, NamespaceId};

/// What a controller is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// I/O queue pairs that are asked for; the controller may grant fewer.
    pub queues: u16,
    /// How long an admin command may take.
    pub admin_timeout: Duration,
    /// How often in a row a controller that misbehaves is reset, nothing having succeeded in between, before it is given
    /// up. With 0 it is given up at once.
    pub resets_max: u32,
    /// How often a request is sent again: after a reset, an abort, or a status that says that it may help.
    pub resends_max: u8,
    /// Whether shadow doorbells are used where the controller offers them.
    pub shadow_doorbells: bool,
    /// Whether SGLs are used where the controller offers them.
    pub sgl: bool,
    /// The most bytes of one command, where that is less than what the controller takes.
    pub transfer_max: Option<u64>,
    /// What is done with metadata that blocks have beside them.
    pub metadata: MetadataUse,
    /// The application tag of protection information that is written, and expected where it is checked here;
    /// not 0xffff, which turns every check off.
    pub application_tag: u16,
}

impl Default for Options {
    /// 64 queue pairs, 60 seconds, 5 resets, 3 times again, shadow doorbells and SGLs where offered.
    fn default() -> Self {
        Self {
            queues: 64,
            admin_timeout: Duration::from_secs(60),
            resets_max: 5,
            resends_max: 3,
            shadow_doorbells: true,
            sgl: true,
            transfer_max: None,
            metadata: MetadataUse::default(),
            application_tag: 0,
        }
    }
}

/// The state of a bring-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for CSTS.RDY = 0.
    Disabling,
    /// Waits for CSTS.RDY = 1.
    Enabling,
    IdentifyController,
    IdentifyNvm,
    HostBehavior,
    NumberOfQueues,
    Shadow,
    ActiveNamespaces,
    Namespace(NamespaceId),
    NamespaceFormats(NamespaceId),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabling => f.write_str("waiting for CSTS.RDY = 0"),
            Self::Enabling => f.write_str("waiting for CSTS.RDY = 1"),
            Self::IdentifyController => f.write_str("Identify Controller"),
            Self::IdentifyNvm => f.write_str("Identify I/O Command Set specific Controller"),
            Self::HostBehavior => f.write_str("Set Features Host Behavior Support"),
            Self::NumberOfQueues => f.write_str("Set Features Number of Queues"),
            Self::Shadow => f.write_str("Doorbell Buffer Config"),
            Self::ActiveNamespaces => f.write_str("Identify Active Namespaces"),
            Self::Namespace(nsid) => write!(f, "Identify Namespace {nsid}"),
            Self::NamespaceFormats(nsid) => {
                write!(f, "Identify I/O Command Set specific Namespace {nsid}")
            }
        }
    }
}

/// A controller on its way to being ready.
pub struct BringUp {
    /// First: the controller lets go of memory before any of it goes.
    session: Option<Box<Session>>,
    state: State,
    deadline: Instant,
    /// The admin command that the state waits for.
    pending: Option<CommandId>,
    found: Found,
    options: Options,
    domain: Arc<Domain>,
    scratch: Window,
    /// What the controller is told of the host.
    behavior: Option<Window>,
    /// Where shadow doorbells have been since the first bring-up, when this is another.
    shadow_at: Option<[u64; 2]>,
}

/// What has been learnt so far.
struct Found {
    controller: Box<IdentifyController>,
    nvm: Option<Box<IdentifyNvmController>>,
    limits: Option<ControllerLimits>,
    queues: u16,
    shadow: Option<ShadowBuffers>,
    to_identify: VecDeque<NamespaceId>,
    namespaces: Vec<FoundNamespace>,
}

/// Where a bring-up is.
pub enum Progress {
    /// Step again, a little later.
    Pending,
    /// The controller is ready.
    Ready(Arc<Controller>),
}

impl BringUp {
    /// Lets the controller see the domain's memory and begins to disable it.
    ///
    /// # Errors
    ///
    /// When there is no memory, or the controller is gone or cannot be driven at all.
    pub fn begin(
        transport: &Arc<dyn Transport>,
        domain: &Arc<Domain>,
        options: Options,
    ) -> Result<Self, BlockError> {
        let connection = Connection::open(Arc::clone(transport), domain)?;
        check_capabilities(&connection)?;
        let admin = Admin::new(&**transport, domain, connection.cap.dstrd())?;
        Self::disable(Box::new(Session { connection, admin }), domain, options, None)
    }

    /// Begins to bring a controller up that was up before, on the memory that it has; `shadow_at` is where its shadow
    /// doorbells are, if it has any. Whatever fails here is final: the controller is stopped.
    pub(super) fn again(
        session: Box<Session>,
        domain: &Arc<Domain>,
        options: &Options,
        shadow_at: Option<[u64; 2]>,
    ) -> Result<Self, BlockError> {
        let options = Options { shadow_doorbells: shadow_at.is_some(), ..options.clone() };
        Self::disable(session, domain, options, shadow_at)
    }

    /// Begins to disable a controller.
    fn disable(
        session: Box<Session>,
        domain: &Arc<Domain>,
        options: Options,
        shadow_at: Option<[u64; 2]>,
    ) -> Result<Self, BlockError> {
        let scratch =
            domain.window(PAGE as usize, PAGE as usize, Access::DeviceWrites).map_err(no_memory)?;
        let connection = &session.connection;
        let cc = connection.registers.configuration()?;
        connection.registers.configure(cc.with_en(false));
        Ok(Self {
            state: State::Disabling,
            deadline: Instant::now() + connection.ready_timeout,
            pending: None,
            found: Found {
                controller: Box::new(IdentifyController::new_zeroed()),
                nvm: None,
                limits: None,
                queues: 0,
                shadow: None,
                to_identify: VecDeque::new(),
                namespaces: Vec::new(),
            },
            options,
            domain: Arc::clone(domain),
            session: Some(session),
            scratch,
            behavior: None,
            shadow_at,
        })
    }

    /// Does what can be done now.
    ///
    /// # Errors
    ///
    /// `Timeout` when the state's deadline has passed, and whatever the controller says. The bring-up is
    /// over then; drop it.
    pub fn step(&mut self) -> Result<Progress, BlockError> {
        let parts = self.step_to_parts()?;
        Ok(parts.map_or(Progress::Pending, |parts| Progress::Ready(Controller::assemble(*parts))))
    }

    /// Does what can be done now; once there is nothing left to do, returns what a controller is made of.
    pub(super) fn step_to_parts(&mut self) -> Result<Option<Box<ControllerParts>>, BlockError> {
        match self.advance() {
            Ok(None) if Instant::now() >= self.deadline => Err(self.explain(self.timeout())),
            Ok(parts) => Ok(parts),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// Returns the session of a bring-up that failed.
    pub(super) fn into_session(mut self) -> Option<Box<Session>> {
        self.session.take()
    }

    /// Moves on if what the state waits for has happened.
    fn advance(&mut self) -> Result<Option<Box<ControllerParts>>, BlockError> {
        match self.state {
            State::Disabling => self.enable_when_disabled()?,
            State::Enabling => self.identify_when_ready()?,
            _ => {
                if let Some(completion) = self.reply()? {
                    return self.take_reply(completion);
                }
            }
        }
        Ok(None)
    }

    fn enable_when_disabled(&mut self) -> Result<(), BlockError> {
        let (connection, admin) = self.parts()?;
        if connection.registers.status()?.rdy() {
            return Ok(());
        }
        // Whatever it knew of the queues it has forgotten.
        admin.restart();
        let (asq, acq) = admin.addresses();
        connection.registers.set_admin_queues(admin.attributes(), asq, acq);
        let cc = Configuration::new().with_en(true).with_iosqes(IOSQES_NVM).with_iocqes(IOCQES_NVM);
        connection.registers.configure(cc);
        let patience = connection.ready_timeout;
        self.enter(State::Enabling, patience);
        Ok(())
    }

    fn identify_when_ready(&mut self) -> Result<(), BlockError> {
        let (connection, _) = self.parts()?;
        let status = connection.registers.status()?;
        if status.cfs() {
            return Err(violation("CSTS.CFS: the controller reports a fatal error".into()));
        }
        if status.rdy() {
            self.identify(State::IdentifyController, Cns::CONTROLLER, NamespaceId::NONE)?;
        }
        Ok(())
    }

    /// Returns the completion of the pending command, once it is there.
    fn reply(&mut self) -> Result<Option<Completion>, BlockError> {
        let Some(cid) = self.pending else { return Ok(None) };
        let (connection, admin) = self.parts()?;
        admin.poll()?;
        if let Some(completion) = admin.result(cid) {
            return Ok(Some(completion));
        }
        // The controller may have died meanwhile; its registers tell.
        if connection.registers.status()?.cfs() {
            return Err(violation("CSTS.CFS: the controller reports a fatal error".into()));
        }
        Ok(None)
    }

    fn take_reply(
        &mut self,
        completion: Completion,
    ) -> Result<Option<Box<ControllerParts>>, BlockError> {
        self.pending = None;
        let optional =
            matches!(self.state, State::IdentifyNvm | State::HostBehavior | State::Shadow);
        if !completion.status.is_success() && !optional {
            return Err(status::admin_error(completion.status, "bring-up"));
        }
        match self.state {
            State::IdentifyController => self.controller_identified()?,
            State::IdentifyNvm => self.nvm_identified(completion)?,
            State::HostBehavior => self.ask_for_queues()?,
            State::NumberOfQueues => self.queues_granted(completion)?,
            State::Shadow => {
                if !completion.status.is_success() {
                    self.shadow_refused()?;
                }
                self.list_namespaces(NamespaceId::NONE)?;
            }
            State::ActiveNamespaces => return self.namespaces_listed(),
            State::Namespace(nsid) => return self.namespace_identified(nsid),
            State::NamespaceFormats(_) => return self.formats_identified(),
            State::Disabling | State::Enabling => {}
        }
        Ok(None)
    }

    fn controller_identified(&mut self) -> Result<(), BlockError> {
        self.scratch.span().read_into(self.found.controller.as_mut_bytes());
        check_entries(&self.found.controller)?;
        let rtd3e = self.found.controller.rtd3e.get();
        let (connection, _) = self.parts()?;
        connection.set_shutdown_time(rtd3e);
        let version = connection.registers.version()?;
        if version >= Version::new().with_major(2) {
            let cns = Cns::COMMAND_SET_CONTROLLER;
            self.identify(State::IdentifyNvm, cns, NamespaceId::NONE)
        } else {
            self.tell_behavior()
        }
    }

    fn nvm_identified(&mut self, completion: Completion) -> Result<(), BlockError> {
        if completion.status.is_success() {
            let mut nvm = Box::new(IdentifyNvmController::new_zeroed());
            self.scratch.span().read_into(nvm.as_mut_bytes());
            self.found.nvm = Some(nvm);
        }
        self.tell_behavior()
    }

    /// Tells a controller that asks for delays before commands are sent again that they are heeded: it names none
    /// otherwise (Base 5.27.1.18, ACRE).
    fn tell_behavior(&mut self) -> Result<(), BlockError> {
        let id = &self.found.controller;
        if [id.crdt1, id.crdt2, id.crdt3].iter().all(|delay| delay.get() == 0) {
            return self.ask_for_queues();
        }
        // The data is the controller's to read, and the scratch page is not.
        let page = self.domain.window(PAGE as usize, PAGE as usize, Access::DeviceReads);
        let page = self.behavior.insert(page.map_err(no_memory)?);
        page.span().slice(0, 1).expect("a page has a first byte").fill(1);
        let at = page.iova().0;
        let feature = SetFeaturesDword10::new().with_fid(FeatureId::HOST_BEHAVIOR.0);
        let command = Command {
            opcode: AdminOpcode::SET_FEATURES.0,
            dptr: [at, 0],
            cdw10: feature.into_bits(),
            ..Command::default()
        };
        self.send(State::HostBehavior, command)
    }

    fn ask_for_queues(&mut self) -> Result<(), BlockError> {
        let found = &mut self.found;
        let mut limits = ControllerLimits::parse(&found.controller, found.nvm.as_deref());
        if !self.options.sgl {
            limits.use_prps();
        }
        if let Some(bytes) = self.options.transfer_max {
            limits.keep_below(bytes);
        }
        limits.use_metadata(self.options.metadata, self.options.application_tag);
        found.limits = Some(limits);
        let wanted = self.options.queues.max(1) - 1;
        let value = NumberOfQueues::new().with_submission(wanted).with_completion(wanted);
        let feature = SetFeaturesDword10::new().with_fid(FeatureId::NUMBER_OF_QUEUES.0);
        self.send(
            State::NumberOfQueues,
            Command {
                opcode: AdminOpcode::SET_FEATURES.0,
                cdw10: feature.into_bits(),
                cdw11: value.into_bits(),
                ..Command::default()
            },
        )
    }

    fn queues_granted(&mut self, completion: Completion) -> Result<(), BlockError> {
        let granted = NumberOfQueues::from_bits(completion.dw0);
        let count = granted.submission().min(granted.completion()).saturating_add(1);
        let dstrd = self.parts()?.0.cap.dstrd();
        let most = self.options.queues.max(1).min(last_queue_with_doorbells(dstrd));
        self.found.queues = count.min(most);
        let offered = self.found.controller.oacs().doorbell_buffer();
        if self.shadow_at.is_some() || (self.options.shadow_doorbells && offered) {
            self.offer_shadow_doorbells()
        } else {
            self.list_namespaces(NamespaceId::NONE)
        }
    }

    fn offer_shadow_doorbells(&mut self) -> Result<(), BlockError> {
        let dptr = match self.shadow_at {
            Some(at) => at,
            None => self.make_shadow_buffers()?,
        };
        let opcode = AdminOpcode::DOORBELL_BUFFER_CONFIG.0;
        self.send(State::Shadow, Command { opcode, dptr, ..Command::default() })
    }

    fn make_shadow_buffers(&mut self) -> Result<[u64; 2], BlockError> {
        let page = |access| self.domain.window(PAGE as usize, PAGE as usize, access);
        // By the standard the controller only reads these. QEMU's writes the admin queue's there, whose doorbell
        // drivers do not shadow, and would read stale entries if it could not.
        let doorbells = page(Access::Both).map_err(no_memory)?;
        let events = page(Access::DeviceWrites).map_err(no_memory)?;
        let buffers = ShadowBuffers { doorbells, events };
        let at = buffers.addresses();
        self.found.shadow = Some(buffers);
        Ok(at)
    }

    /// Does without shadow doorbells, unless queues have been using them.
    fn shadow_refused(&mut self) -> Result<(), BlockError> {
        self.found.shadow = None;
        match self.shadow_at {
            None => Ok(()),
            Some(_) => {
                Err(violation("shadow doorbells, taken before the reset, are refused".into()))
            }
        }
    }

    fn list_namespaces(&mut self, above: NamespaceId) -> Result<(), BlockError> {
        self.identify(State::ActiveNamespaces, Cns::ACTIVE_NAMESPACES, above)
    }

    fn namespaces_listed(&mut self) -> Result<Option<Box<ControllerParts>>, BlockError> {
        let mut list = Box::new(ActiveNamespaceList::new_zeroed());
        self.scratch.span().read_into(list.as_mut_bytes());
        let mut above = self.found.to_identify.back().copied().unwrap_or(NamespaceId::NONE);
        for nsid in list.iter() {
            if nsid <= above || nsid == NamespaceId::ALL {
                return Err(violation(format!("namespace {nsid} listed after {above}")));
            }
            above = nsid;
            self.found.to_identify.push_back(nsid);
        }
        if list.iter().count() == list.nsid.len() && self.found.to_identify.len() < NAMESPACES_MAX {
            self.list_namespaces(above)?;
            return Ok(None);
        }
        self.identify_next_namespace()
    }

    fn identify_next_namespace(&mut self) -> Result<Option<Box<ControllerParts>>, BlockError> {
        match self.found.to_identify.pop_front() {
            Some(nsid) => {
                self.identify(State::Namespace(nsid), Cns::NAMESPACE, nsid)?;
                Ok(None)
            }
            None => self.finish().map(Some),
        }
    }

    fn namespace_identified(
        &mut self,
        nsid: NamespaceId,
    ) -> Result<Option<Box<ControllerParts>>, BlockError> {
        let mut bytes = [0; PAGE as usize];
        self.scratch.span().read_into(&mut bytes);
        let id = IdentifyNamespace::read_from_bytes(&bytes).expect("a page holds the structure");
        let protected = id.dps().kind() != 0;
        self.found.namespaces.push(FoundNamespace { nsid, id: Box::new(id), extended: None });
        if protected && self.found.controller.has_extended_formats() {
            let cns = Cns::COMMAND_SET_NAMESPACE;
            self.identify(State::NamespaceFormats(nsid), cns, nsid)?;
            return Ok(None);
        }
        self.identify_next_namespace()
    }

    fn formats_identified(&mut self) -> Result<Option<Box<ControllerParts>>, BlockError> {
        let mut extended = Box::new(IdentifyNvmNamespace::new_zeroed());
        self.scratch.span().read_into(extended.as_mut_bytes());
        if let Some(last) = self.found.namespaces.last_mut() {
            last.extended = Some(extended);
        }
        self.identify_next_namespace()
    }

    /// Hands everything over to the controller.
    fn finish(&mut self) -> Result<Box<ControllerParts>, BlockError> {
        let gone = || violation("bring-up was stepped after its end".into());
        let limits = self.found.limits.take().ok_or_else(gone)?;
        let mut session = self.session.take().ok_or_else(gone)?;
        session.admin.request_event()?;
        let found = &mut self.found;
        Ok(Box::new(ControllerParts {
            session,
            domain: Arc::clone(&self.domain),
            identify: found.controller.clone(),
            limits,
            namespaces: core::mem::take(&mut found.namespaces),
            queues: found.queues,
            shadow: found.shadow.take(),
            options: self.options.clone(),
        }))
    }

    fn identify(&mut self, state: State, cns: Cns, nsid: NamespaceId) -> Result<(), BlockError> {
        self.scratch.span().fill(0);
        let command = Command {
            opcode: AdminOpcode::IDENTIFY.0,
            nsid: nsid.0,
            dptr: [self.scratch.iova().0, 0],
            cdw10: IdentifyDword10::new().with_cns(cns.0).into_bits(),
            ..Command::default()
        };
        self.send(state, command)
    }

    fn send(&mut self, state: State, command: Command) -> Result<(), BlockError> {
        let (_, admin) = self.parts()?;
        let cid = admin.submit(command)?;
        self.pending = Some(cid);
        self.enter(state, self.options.admin_timeout);
        Ok(())
    }

    fn enter(&mut self, state: State, patience: Duration) {
        tracing::trace!(from = %self.state, to = %state, "bring-up");
        self.state = state;
        self.deadline = wait::after(patience);
    }

    fn parts(&mut self) -> Result<(&mut Connection, &mut Admin), BlockError> {
        let gone = || violation("bring-up was stepped after its end".into());
        let Session { connection, admin } = self.session.as_deref_mut().ok_or_else(gone)?;
        Ok((connection, admin))
    }

    fn timeout(&self) -> BlockError {
        let after = match self.state {
            State::Disabling | State::Enabling => {
                self.session.as_ref().map_or(Duration::ZERO, |one| one.connection.ready_timeout)
            }
            _ => self.options.admin_timeout,
        };
        Cause::Timeout { what: "the state".into(), after }.into()
    }

    /// Adds the state and the registers to an error.
    fn explain(&self, error: BlockError) -> BlockError {
        let dump = self.session.as_ref().map(|session| session.connection.registers.dump());
        let registers = dump.unwrap_or_default();
        let what = format!("controller bring-up, {} ({registers})", self.state).into();
        BlockError::new(Cause::Device { what }).with_source(error)
    }
}

/// The most namespaces that are looked at; the standard's list command pages without an end.
const NAMESPACES_MAX: usize = 4096;

/// Checks that queue entries may be as short as ours.
fn check_entries(id: &IdentifyController) -> Result<(), BlockError> {
    let least = |sizes: u8| EntrySize::from_bits(sizes).min();
    let (sqes, cqes) = (least(id.sqes), least(id.cqes));
    if sqes <= IOSQES_NVM && cqes <= IOCQES_NVM {
        return Ok(());
    }
    let what = format!("queue entries of 64 and 16 bytes (SQES >= {sqes}, CQES >= {cqes})");
    Err(Cause::Unsupported { what: what.into() }.into())
}

/// Checks that the controller can be driven at all.
fn check_capabilities(connection: &Connection) -> Result<(), BlockError> {
    let cap = connection.cap;
    let refuse = |what: String| Err(Cause::Unsupported { what: what.into() }.into());
    if cap.mqes() == 0 {
        return Err(violation("CAP.MQES is 0: queues of one entry hold nothing".into()));
    }
    if cap.mpsmin() != 0 {
        return refuse(format!("4 KiB pages (CAP.MPSMIN = {})", cap.mpsmin()));
    }
    // CC.CSS is written as 0, which is the NVM command set and needs bit 0.
    if cap.css() & 1 == 0 {
        return refuse(format!("the NVM command set (CAP.CSS = {:#04x})", cap.css()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_entries_than_ours_are_refused_with_their_exponents() {
        let mut id = IdentifyController::new_zeroed();
        check_entries(&id).unwrap();
        id.sqes = EntrySize::new().with_min(7).with_max(7).into();
        let error = check_entries(&id).unwrap_err().to_string();
        assert_eq!(
            error,
            "the device does not support queue entries of 64 and 16 bytes (SQES >= 7, CQES >= 0)"
        );
    }
}
