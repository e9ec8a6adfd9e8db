//! Recovery: what happens to a controller that something is wrong with.
//!
//! ```text
//!   a queue or an admin command finds something wrong
//!     the device is not there ------------------------------------------------+
//!     reset(era): the era ends; every queue sees it at its next poll          |
//!       advance, by whoever polls or waits, one step at a time:               v
//!         too many in a row, nothing having succeeded ------------------> given up:
//!         disable -> CSTS.RDY = 0 -> bring-up as the first time           stopped and cut off from memory,
//!           it fails: the same again ------------------------------->     queues hand everything back
//!           it is another device ----------------------------------->
//!         live, in the next era: each queue joins again and sends its requests again
//! ```
//!
//! There is no thread for it and nobody is waited for: a step is taken under the control lock by who gets it, and a
//! queue that is not polled joins when it is polled next. Between two eras the controller is disabled, which is when
//! it lets go of all memory; who sees another era, or the end, may have buffers back.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};

use super::bell::ShadowBuffers;
use super::bringup::BringUp;
use super::connection::Session;
use super::controller::{Controller, ControllerParts};
use super::health::{Era, State};
use super::registers::Registers;
use super::wait::Pace;
use crate::block::{BlockError, Cause, ErrorKind};
use crate::spec::identify::IdentifyController;
use crate::units::{CommandId, QueueId};

/// What only one thread at a time may use.
pub(super) struct Control {
    link: Link,
    /// Resets since something succeeded.
    in_a_row: u32,
}

/// How a controller is held.
enum Link {
    /// It is ready, or its era has just ended.
    Up(Box<Session>),
    /// It is being brought up again.
    Resetting(Box<BringUp>),
    /// It is stopped and cut off from memory.
    Down,
}

impl Control {
    /// Takes a controller that has come up.
    pub(super) fn new(session: Box<Session>) -> Self {
        Self { link: Link::Up(session), in_a_row: 0 }
    }

    /// Returns what commands go through, unless the controller is disabled.
    pub(super) fn session(&mut self) -> Option<&mut Session> {
        if let Link::Up(session) = &mut self.link { Some(session) } else { None }
    }
}

/// What went wrong, and whether anything went well since.
#[derive(Default)]
pub(super) struct Troubles {
    /// Why the controller was given up.
    end: OnceLock<Reason>,
    /// Why the last era ended.
    last: Mutex<Sign>,
    /// Whether a command has succeeded since the last reset.
    success: AtomicBool,
}

/// What showed that something is wrong.
#[derive(Clone, Debug)]
struct Sign {
    why: Arc<str>,
    /// Registers, and the indices of the queue, as they were then.
    dump: Arc<str>,
}

impl Default for Sign {
    fn default() -> Self {
        Self { why: "no reason was given".into(), dump: "".into() }
    }
}

/// Why a controller was given up.
#[derive(Clone, Debug)]
pub(super) struct Reason {
    what: Arc<str>,
    /// Registers, and the indices of the queue, when it was found.
    dump: Arc<str>,
    /// Whether the device is not there any more, or is about to go.
    is_gone: bool,
}

impl Reason {
    /// Makes the reason of a queue that is of no use any more.
    pub(super) fn of(error: &BlockError) -> Self {
        let what = match error.cause() {
            Cause::Poisoned { what } => what.as_ref().into(),
            _ => error.to_string().into(),
        };
        Self { what, dump: "".into(), is_gone: false }
    }

    /// Returns what requests are told that were under way.
    pub(super) fn error(&self) -> BlockError {
        let what = self.what.to_string().into();
        let cause =
            if self.is_gone { Cause::DeviceGone { what } } else { Cause::Poisoned { what } };
        with_dump(cause, &self.dump)
    }
}

impl Troubles {
    /// Notes that a command has succeeded: resets are of use.
    pub(super) fn note_success(&self) {
        self.success.store(true, Ordering::Relaxed);
    }

    /// Makes the error of what was under way at a reset, and may or may not have been done.
    pub(super) fn uncertain(&self, what: &'static str) -> BlockError {
        let Sign { why, dump } = self.last();
        with_dump(Cause::Uncertain { what: what.into(), why: why.to_string().into() }, &dump)
    }

    /// Returns why the last era ended.
    fn last(&self) -> Sign {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Controller {
    /// Ends an era, since something is wrong; the first who says so is heard.
    #[cold]
    pub(super) fn reset(&self, era: Era, why: &str) {
        self.reset_with(era, why, "");
    }

    /// The same, with the indices of a queue.
    #[cold]
    pub(super) fn reset_with(&self, era: Era, why: &str, queue: &str) {
        // Under the lock, so that who sees the end of the era does not see the reason of an earlier one.
        let mut last = self.troubles.last.lock().unwrap_or_else(PoisonError::into_inner);
        if self.health.begin_reset(era) {
            let dump = format!("{}{queue}", self.registers().dump());
            tracing::warn!(why, dump, "the controller is to be reset");
            *last = Sign { why: why.into(), dump: dump.into() };
        }
    }

    /// Ends an era since a command is overdue; the controller is given up if it is not there at all.
    #[cold]
    pub(super) fn reset_overdue(&self, era: Era, why: &str, queue: &str) {
        let registers = self.registers();
        match (registers.absence(), registers.complaint()) {
            (Some(gone), _) => self.announce(&format!("{why}; {gone}"), true),
            (None, Some(complaint)) => self.reset_with(era, &format!("{why}; {complaint}"), queue),
            (None, None) => self.reset_with(era, why, queue),
        }
    }

    /// Looks at the controller itself; says whether nothing is wrong with it. Ends the era otherwise.
    pub(super) fn watch(&self, era: Era) -> bool {
        let registers = self.registers();
        let Some(complaint) = registers.complaint() else { return true };
        match registers.absence() {
            Some(gone) => self.announce(&gone, true),
            None => self.reset(era, &complaint),
        }
        false
    }

    /// Takes in what the admin queue has, unless somebody is at it; ends the era if that says so.
    pub(super) fn tend(&self, era: Era) {
        self.with_session(era, |session| self.take_in(session, era));
    }

    /// Takes in what the admin queue has; says whether the controller can go on.
    pub(super) fn take_in(&self, session: &mut Session, era: Era) -> Result<(), BlockError> {
        if let Err(error) = session.admin.poll() {
            self.reset(era, &error.to_string());
            return Err(error);
        }
        if session.admin.is_broken() {
            self.reset(era, "the controller reports a persistent internal error");
        }
        Ok(())
    }

    /// Asks the controller to end a command that is overdue, unless somebody is at the admin queue or enough is asked
    /// for already: whether it obeys shows at the command.
    pub(super) fn abort(&self, era: Era, queue: QueueId, cid: CommandId) {
        self.with_session(era, |session| {
            self.take_in(session, era)?;
            // ACL is the number of aborts less one (Base Figure 275).
            session.admin.abort(queue, cid, self.identify().acl.saturating_add(1))?;
            self.take_in(session, era)
        });
    }

    fn with_session(&self, era: Era, work: impl FnOnce(&mut Session) -> Result<(), BlockError>) {
        let mut control = match self.control.try_lock() {
            Ok(control) => control,
            Err(TryLockError::Poisoned(control)) => control.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let live = self.health.is(era);
        if let Some(Err(error)) = control.session().filter(|_| live).map(work) {
            tracing::debug!(%error, "the admin queue");
        }
    }

    /// Gives the controller up: stops it and cuts it off from memory.
    #[cold]
    pub(super) fn give_up(&self, why: &str, is_gone: bool) {
        self.announce(why, is_gone);
        self.settle();
    }

    /// Returns why the controller was given up.
    pub(super) fn reason(&self) -> Reason {
        let none = || {
            let Sign { why: what, dump } = Sign::default();
            Reason { what, dump, is_gone: false }
        };
        self.troubles.end.get().cloned().unwrap_or_else(none)
    }

    /// Says whether the device was removed, or has stopped answering: whoever finds another one in its place has to open
    /// that.
    pub fn is_gone(&self) -> bool {
        self.troubles.end.get().is_some_and(|reason| reason.is_gone)
    }

    /// Waits for a controller that can be used.
    ///
    /// # Errors
    ///
    /// Why it was given up.
    pub(super) fn await_live(&self) -> Result<Era, BlockError> {
        loop {
            match self.health.state() {
                State::Live(era) => return Ok(era),
                State::Stopped => return Err(self.reason().error()),
                State::Resetting | State::Failing => self.settle(),
            }
        }
    }

    /// Takes part in what is under way until the controller works or has let go of memory. This ends: every state of a
    /// bring-up has its deadline, and so has the number of them.
    pub(super) fn settle(&self) {
        let mut pace = Pace::default();
        while matches!(self.health.state(), State::Resetting | State::Failing) {
            self.advance();
            pace.pause();
        }
    }

    /// Takes a step of what is under way, unless somebody else does just now.
    pub(super) fn advance(&self) {
        let mut control = match self.control.try_lock() {
            Ok(control) => control,
            Err(TryLockError::Poisoned(control)) => control.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        match self.health.state() {
            State::Resetting => {
                let link = core::mem::replace(&mut control.link, Link::Down);
                control.link = self.step(link, &mut control.in_a_row);
            }
            State::Failing => {
                // The controller lets go of memory, then queues hear of it.
                control.link = Link::Down;
                self.health.stopped();
            }
            State::Live(_) | State::Stopped => {}
        }
    }

    /// Takes a step of a reset.
    fn step(&self, link: Link, in_a_row: &mut u32) -> Link {
        match link {
            Link::Down => Link::Down,
            Link::Up(session) => {
                if self.troubles.success.swap(false, Ordering::Relaxed) {
                    *in_a_row = 0;
                }
                self.begin(session, in_a_row, &self.troubles.last().why)
            }
            Link::Resetting(mut bringup) => match bringup.step_to_parts() {
                Ok(None) => Link::Resetting(bringup),
                Ok(Some(parts)) => self.take_back(*parts),
                Err(error) => {
                    tracing::warn!(%error, "the reset failed");
                    let why = format!("{}; {error}", self.troubles.last().why);
                    match bringup.into_session() {
                        Some(session) => self.begin(session, in_a_row, &why),
                        None => self.end(&why, false),
                    }
                }
            },
        }
    }

    /// Begins to bring the controller up again, if that can be hoped for.
    fn begin(&self, session: Box<Session>, in_a_row: &mut u32, why: &str) -> Link {
        let most = self.options.resets_max;
        if *in_a_row >= most {
            drop(session);
            return match most {
                0 => self.end(why, false),
                _ => self.end(&format!("{why}; {most} resets did not help"), false),
            };
        }
        *in_a_row += 1;
        tracing::info!(attempt = *in_a_row, "resetting the controller");
        let shadow_at = self.shadow.as_ref().map(ShadowBuffers::addresses);
        match BringUp::again(session, &self.domain, &self.options, shadow_at) {
            Ok(bringup) => Link::Resetting(Box::new(bringup)),
            Err(error) => {
                self.end(&format!("{why}; {error}"), error.kind() == ErrorKind::DeviceGone)
            }
        }
    }

    /// Takes a controller back that has come up again, if it is the one that it was.
    fn take_back(&self, parts: ControllerParts) -> Link {
        let ControllerParts { session, identify, limits, namespaces, queues, .. } = parts;
        let highest = self.highest_queue_id();
        let difference = if who(&identify) != who(&self.identify) {
            Some("another device answered the reset".to_owned())
        } else if limits != self.limits {
            Some("the device has other limits after the reset".to_owned())
        } else if queues < highest {
            Some(format!(
                "the device grants {queues} queues after the reset, and {highest} is open"
            ))
        } else {
            None
        };
        if let Some(difference) = difference {
            drop(session);
            return self.end(&difference, false);
        }
        self.take_over(namespaces);
        // Given up meanwhile, it is stopped by whoever comes next.
        if self.health.finish_reset() {
            tracing::info!("the controller works again");
        }
        Link::Up(session)
    }

    /// Says that the controller is of no use and has let go of memory, which it has.
    fn end(&self, why: &str, is_gone: bool) -> Link {
        self.announce(why, is_gone);
        self.health.stopped();
        Link::Down
    }

    /// Lets everybody who waits for the controller know that it is of no use.
    pub(super) fn announce(&self, why: &str, is_gone: bool) {
        let first = self.troubles.last().dump;
        // Of a controller that was reset, what was seen first says most.
        let dump = if first.is_empty() { self.registers().dump().into() } else { first };
        if self.troubles.end.set(Reason { what: why.into(), dump, is_gone }).is_ok() {
            tracing::error!(why, "the controller is given up");
        }
        self.health.fail();
    }

    fn registers(&self) -> Registers {
        Registers::new(Arc::clone(&self.transport))
    }
}

/// Makes an error that has what was seen as its source, where something was.
fn with_dump(cause: Cause, dump: &str) -> BlockError {
    let error = BlockError::new(cause);
    if dump.is_empty() { error } else { error.with_source(dump) }
}

/// Returns who a controller is.
fn who(id: &IdentifyController) -> (&[u8], &[u8]) {
    (&id.sn, &id.mn)
}
