//! The seam where faults come in: somebody who sees each I/O command before it is executed.
//!
//! An [`Interposer`] is part of the options; `detour` asks it once for each I/O command and obeys.
//! Absent, it costs one branch that is always predicted.
#![forbid(unsafe_code)]

use crate::spec::command::Command;
use crate::spec::status::Status;
use crate::units::QueueId;

/// A command on its way to being executed.
#[derive(Debug)]
#[non_exhaustive]
pub struct CommandContext<'a> {
    /// The submission queue it came from.
    pub queue: QueueId,
    /// The command as it was fetched.
    pub command: &'a Command,
}

/// What is to become of a command.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// It is executed.
    Execute,
    /// It is not executed and completes with this status.
    Fail(Status),
    /// It is not executed and never completes.
    Drop,
}

/// Somebody who decides what becomes of each I/O command.
pub trait Interposer: Send + Sync {
    /// Decides about one command. Called on whatever thread serves the queue.
    fn on_command(&self, context: &CommandContext<'_>) -> Verdict;
}
