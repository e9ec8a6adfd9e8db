//! The seam where faults come in: somebody who sees each I/O command before it is executed.
//!
//! An [`Interposer`] is part of the options; `detour` asks it once for each I/O command and obeys.
//! Absent, it costs one branch that is always predicted.
#![forbid(unsafe_code)]

use crate::spec::command::{Command, NvmOpcode};
use crate::spec::status::Status;
use crate::units::{BlockCount, Lba, QueueId};

/// A command on its way to being executed.
#[derive(Debug)]
#[non_exhaustive]
pub struct CommandContext<'a> {
    /// The submission queue it came from.
    pub queue: QueueId,
    /// The command as it was fetched.
    pub command: &'a Command,
}

impl CommandContext<'_> {
    /// Returns the blocks that the command names itself: first and count.
    ///
    /// `None` for Flush, and for Dataset Management and Copy, whose ranges are in memory.
    pub fn blocks(&self) -> Option<(Lba, BlockCount)> {
        named_blocks(self.command)
    }
}

/// Returns the blocks that a command names itself.
pub(super) fn named_blocks(command: &Command) -> Option<(Lba, BlockCount)> {
    let count = u64::from(command.cdw12 & 0xffff) + 1;
    match NvmOpcode(command.opcode) {
        NvmOpcode::READ
        | NvmOpcode::WRITE
        | NvmOpcode::COMPARE
        | NvmOpcode::VERIFY
        | NvmOpcode::WRITE_ZEROES
        | NvmOpcode::WRITE_UNCORRECTABLE => Some((Lba(command.slba()), BlockCount(count))),
        _ => None,
    }
}

/// What is to become of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It is executed.
    Execute,
    /// It is not executed and completes with this status.
    Fail(Status),
    /// It is not executed and never completes.
    Drop,
    /// It is not executed and completes with success: a write that was lost, a flush that did nothing, a
    /// read that left the buffer as it was.
    Lose,
    /// It is executed on as many blocks from here, and completes as if it had not been: the last ones of
    /// the namespace where it would pass its end. Commands that name no blocks are executed as they are.
    Misdirect(Lba),
    /// A read delivers, or a write stores, a byte with these bits flipped. Other commands are executed as
    /// they are.
    Corrupt {
        /// Which byte, from the first of the transfer and modulo its length.
        byte: u64,
        /// The bits.
        mask: u8,
    },
    /// It is executed as if it did not ask for force unit access.
    StripFua,
    /// It is not executed, and completes only when the host aborts it.
    Stall,
    /// It is executed, and its completion says something else.
    Lie(Lie),
    /// It is not executed, and the controller stops with CSTS.CFS.
    Fatal,
    /// It is not executed, and the controller is not there any more: its registers read as all ones.
    Vanish,
}

/// How a completion lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lie {
    /// It is posted twice.
    Twice,
    /// Its command identifier has these bits flipped: another slot, another generation, or no slot at all.
    Identifier(u16),
    /// It names another submission queue, so many further on.
    Queue(u16),
    /// It reports a submission queue head so many entries further on.
    Head(u16),
    /// Its phase tag is that of an old entry: it is where the next one will be, and nobody sees it.
    Phase,
}

/// Somebody who decides what becomes of each I/O command.
pub trait Interposer: Send + Sync {
    /// Decides about one command. Called on whatever thread serves the queue.
    fn on_command(&self, context: &CommandContext<'_>) -> Verdict;
}
