//! Sanitize: everything is erased, a piece with each turn of the admin queue, while I/O is refused.
//!
//! [`Sanitize`] is in the core, since a reset does not end it (NVMe Base 2.0, 8.21). `admin` starts it and gives it
//! its turns, `detour` refuses I/O meanwhile, `logs` tells how far it is. Block erase zeroes and gives space back,
//! overwrite writes a pattern in passes; there are no keys, and so no crypto erase.
//! Invariant: once it was started no I/O command sees or changes a block until every block was erased, or until the
//! host has left a failure behind as the standard lets it.
#![forbid(unsafe_code)]

use zerocopy::FromZeros;

use super::disk::Horizon;
use super::engine::Core;
use super::events::Event;
use super::namespace::{Namespace, Range};
use crate::dma::SharedBytes;
use crate::spec::command::Command;
use crate::spec::erase::{
    SanitizeAction, SanitizeCapabilities, SanitizeDword10, SanitizeOutcome, SanitizeStatus,
    SanitizeStatusLog,
};
use crate::spec::status::Status;

/// What is on offer: block erase and overwrite, after which nothing is modified besides.
pub(super) const CAPABILITIES: SanitizeCapabilities =
    SanitizeCapabilities::new().with_block_erase(true).with_overwrite(true).with_modifies_after(1);

/// The least that is erased in one turn, a multiple of every block.
const PIECE_BYTES_MIN: u64 = 64 << 20;

/// Pieces of a pass over very much, so that its turns are not too many.
const PIECES: u64 = 64;

/// How much of a pattern is written at once.
const PATTERN_BYTES: usize = 1 << 20;

/// The last sanitize, and the one that goes on.
#[derive(Default)]
pub(super) struct Sanitize {
    state: State,
    dword10: SanitizeDword10,
    pattern: u32,
    passes_done: u8,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Never,
    /// Erasing: how many bytes of this pass are done.
    Running(u64),
    Done,
    Failed {
        /// The host has left the failure behind.
        left: bool,
    },
}

impl Sanitize {
    /// Returns why commands that need the media are refused, if they are.
    pub(super) fn refusal(&self) -> Option<Status> {
        match self.state {
            State::Running(_) => Some(Status::SANITIZE_IN_PROGRESS),
            State::Failed { left: false } => Some(Status::SANITIZE_FAILED),
            State::Never | State::Done | State::Failed { left: true } => None,
        }
    }

    /// Takes the command, and starts erasing or leaves a failure behind.
    pub(super) fn begin(&mut self, command: &Command) -> Result<(), Status> {
        let asked = SanitizeDword10::from(command.cdw10);
        check(command, asked)?;
        if matches!(self.state, State::Running(_)) {
            return Err(Status::SANITIZE_IN_PROGRESS);
        }
        let failed = self.state == State::Failed { left: false };
        // After a failure of the restricted kind only another of that kind leads out (NVMe Base 2.0, 8.21).
        let restricted = failed && !self.dword10.ause();
        let leaves = SanitizeAction(asked.sanact()) == SanitizeAction::EXIT_FAILURE;
        if restricted && (leaves || asked.ause()) {
            return Err(Status::SANITIZE_FAILED);
        }
        if leaves {
            if failed {
                self.state = State::Failed { left: true };
            }
            return Ok(());
        }
        let pattern = command.cdw11;
        *self = Self { state: State::Running(0), dword10: asked, pattern, passes_done: 0 };
        Ok(())
    }

    /// Erases the next piece and says whether that was the end.
    pub(super) fn step(&mut self, namespaces: &[Namespace]) -> bool {
        let State::Running(done) = self.state else { return false };
        let total: u64 = namespaces.iter().map(|one| one.media().bytes()).sum();
        let piece = (total / PIECES).max(PIECE_BYTES_MIN).next_multiple_of(PIECE_BYTES_MIN);
        let end = total.min(done + piece);
        let erased = self.erase(namespaces, done, end);
        self.state = match erased {
            Err(_) => State::Failed { left: false },
            Ok(()) if end < total => State::Running(end),
            Ok(()) => {
                self.passes_done += u8::from(self.overwrites());
                if self.overwrites() && self.passes_done < self.dword10.passes() {
                    State::Running(0)
                } else {
                    finish(namespaces)
                }
            }
        };
        !matches!(self.state, State::Running(_))
    }

    /// Returns what the log page says.
    pub(super) fn log(&self, namespaces: &[Namespace]) -> SanitizeStatusLog {
        let mut log = SanitizeStatusLog::new_zeroed();
        log.sprog = self.progress(namespaces).into();
        let status = SanitizeStatus::new().with_outcome(self.outcome().0);
        // Whether something was written since is not kept, so nothing is promised (GDE).
        log.sstat = u16::from(status.with_passes(self.passes_done)).into();
        log.scdw10 = u32::from(self.dword10).into();
        let times = [
            &mut log.eto,
            &mut log.etbe,
            &mut log.etce,
            &mut log.etond,
            &mut log.etbend,
            &mut log.etcend,
        ];
        times.into_iter().for_each(|time| *time = SanitizeStatusLog::TIME_UNKNOWN.into());
        log
    }

    fn outcome(&self) -> SanitizeOutcome {
        match self.state {
            State::Never => SanitizeOutcome::NEVER,
            State::Running(_) => SanitizeOutcome::RUNNING,
            State::Failed { .. } => SanitizeOutcome::FAILED,
            State::Done if self.dword10.ndas() => SanitizeOutcome::DONE_ALLOCATED,
            State::Done => SanitizeOutcome::DONE,
        }
    }

    fn progress(&self, namespaces: &[Namespace]) -> u16 {
        let State::Running(done) = self.state else { return SanitizeStatusLog::IDLE };
        let total: u128 = namespaces.iter().map(|one| u128::from(one.media().bytes())).sum();
        let passes = if self.overwrites() { u128::from(self.dword10.passes()) } else { 1 };
        let done = u128::from(self.passes_done) * total + u128::from(done);
        (done * 65_536 / (total * passes)).min(65_534) as u16
    }

    fn overwrites(&self) -> bool {
        SanitizeAction(self.dword10.sanact()) == SanitizeAction::OVERWRITE
    }

    /// Erases bytes `from` to `to`, counted through all namespaces.
    fn erase(&self, namespaces: &[Namespace], from: u64, to: u64) -> Result<(), Status> {
        let pattern = self.overwrites().then(|| self.stage()).transpose()?;
        let mut base = 0;
        for namespace in namespaces {
            let bytes = namespace.media().bytes();
            let (first, last) = (from.clamp(base, base + bytes), to.clamp(base, base + bytes));
            let range = Range { offset: first - base, len: last - first };
            match &pattern {
                _ if range.len == 0 => {}
                None if self.dword10.ndas() => fill(namespace, range, &self.stage()?)?,
                None => namespace.zero(range)?,
                Some(pattern) => fill(namespace, range, pattern)?,
            }
            base += bytes;
        }
        Ok(())
    }

    /// Makes a piece of what is written: the pattern, inverted in every other pass if that was asked for.
    fn stage(&self) -> Result<SharedBytes, Status> {
        let inverted = self.dword10.oipbp() && self.passes_done % 2 == 1;
        let dword = if inverted { !self.pattern } else { self.pattern };
        let stage = SharedBytes::anonymous(PATTERN_BYTES).map_err(|_| Status::INTERNAL_ERROR)?;
        stage.span().write_from(&dword.to_le_bytes().repeat(PATTERN_BYTES / 4));
        Ok(stage)
    }
}

/// Refuses what is reserved, what is not on offer, and what only an overwrite has, elsewhere.
fn check(command: &Command, asked: SanitizeDword10) -> Result<(), Status> {
    let words = command.cdw12 | command.cdw13 | command.cdw14;
    let action = SanitizeAction(asked.sanact());
    let passes = (asked.owpass(), asked.oipbp(), command.cdw11);
    let is_plain = action == SanitizeAction::OVERWRITE || passes == (0, false, 0);
    let known = command.nsid == 0 && words == 0 && command.cdw10 >> 10 == 0;
    if known && is_plain && CAPABILITIES.offers(action) {
        Ok(())
    } else {
        Err(Status::INVALID_FIELD)
    }
}

fn fill(namespace: &Namespace, range: Range, with: &SharedBytes) -> Result<(), Status> {
    let mut at = 0;
    while at < range.len {
        let len = (range.len - at).min(PATTERN_BYTES as u64);
        let piece = with.span().slice(0, len as usize).ok_or(Status::INTERNAL_ERROR)?;
        namespace.write(range.offset + at, piece)?;
        at += len;
    }
    namespace.heal(range);
    Ok(())
}

/// Makes the erasure durable.
fn finish(namespaces: &[Namespace]) -> State {
    match namespaces.iter().try_for_each(|one| one.flush(Horizon::ALL)) {
        Ok(()) => State::Done,
        Err(_) => State::Failed { left: false },
    }
}

impl Core {
    /// Starts a sanitize. No queue is in the middle of a batch then, and none goes on as before.
    pub(super) fn begin_sanitize(&self, command: &Command) -> Result<u32, Status> {
        let _held = self.io_groups();
        let mut sanitize = self.sanitize();
        sanitize.begin(command)?;
        self.refuse_io(sanitize.refusal().is_some());
        Ok(0)
    }

    /// Gives a sanitize that goes on a turn.
    pub(super) fn step_sanitize(&self) {
        if !self.refuses_io() {
            return;
        }
        let mut sanitize = self.sanitize();
        if sanitize.step(&self.namespaces) {
            self.refuse_io(sanitize.refusal().is_some());
            self.raise(Event::SanitizeCompleted);
        }
    }
}
