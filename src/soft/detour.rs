//! The detour: the way of a command that a fault or a power cut may meet, or that moves metadata.
//!
//! `group` sends commands here if there is an interposer, a disk with a volatile cache or a namespace with
//! metadata, and while a sanitize keeps I/O out, so that all others pay one branch for all. [`decide`] counts for the
//! disk, asks the interposer and carries its verdict out;
//! most commands come back from it, changed or not, to be executed like any other.
//! Neighbours: `io` executes, `interposer` judges, `disk` has the power.
//! Invariant: a write to a disk reaches it whole or not at all, however many pieces of memory it is in.
#![forbid(unsafe_code)]

use super::disk::{Disk, Horizon, PowerIsCut};
use super::engine::Core;
use super::group::{Outcome, Work};
use super::interposer::{CommandContext, Verdict, named_blocks};
use super::namespace::Namespace;
use super::{io, tagged};
use crate::dma::Span;
use crate::spec::command::{Command, NvmOpcode};
use crate::spec::status::Status;
use crate::units::{Lba, NamespaceId, QueueId};

/// Remembers what a flush of this batch covers. The batch's tail has been loaded, so that whatever the host
/// knew to be complete when it sent the flush has been executed.
#[cold]
pub(super) fn begin_batch(core: &Core, work: &mut Work) {
    let horizon = |one: &Namespace| one.disk().map_or(Horizon::ALL, Disk::horizon);
    work.horizons.clear();
    work.horizons.extend(core.namespaces.iter().map(horizon));
}

/// Where a command goes from here.
pub(super) enum Way {
    /// To be executed like any other: the command as it is, or another one.
    On(Command),
    /// Back: it has met its end.
    Back(Outcome),
}

/// Decides what becomes of a command.
#[cold]
pub(super) fn decide(core: &Core, queue: u16, work: &mut Work, command: &Command) -> Way {
    let back = |result: Result<(), Status>| Way::Back(Outcome::Complete(result.map(|()| 0)));
    if let Err(status) = admit(core, command) {
        return back(Err(status));
    }
    let context = CommandContext { queue: QueueId(queue), command };
    let interposer = core.options.interposer.as_ref();
    let changed = match interposer.map_or(Verdict::Execute, |who| who.on_command(&context)) {
        Verdict::Fail(status) => return back(Err(status)),
        Verdict::Drop => return Way::Back(Outcome::Silent),
        Verdict::Lose => return back(Ok(())),
        Verdict::Stall => {
            work.stalled.push((queue, command.cid));
            return Way::Back(Outcome::Silent);
        }
        Verdict::Fatal => {
            core.fail("a fault asks for it");
            return Way::Back(Outcome::Silent);
        }
        Verdict::Vanish => {
            core.vanish();
            return Way::Back(Outcome::Silent);
        }
        Verdict::Lie(lie) => {
            work.lie = Some(lie);
            *command
        }
        Verdict::StripFua => without_fua(command),
        Verdict::Misdirect(to) => misdirected(core, command, to),
        Verdict::Corrupt { byte, mask } if moves_data(command) => {
            if has_metadata(core, command) {
                let flip = Some((byte, mask));
                return back(tagged::execute(core, work, command, command.slba(), flip));
            }
            let change = |bytes: Span<'_>| flip(bytes, byte, mask);
            return back(io::execute_staged(core, work, command, change));
        }
        Verdict::Execute | Verdict::Corrupt { .. } => *command,
    };
    if has_metadata(core, command) {
        return back(tagged::execute(core, work, &changed, command.slba(), None));
    }
    if writes_to_disk(core, &changed) {
        return back(io::execute_staged(core, work, &changed, |_| ()));
    }
    Way::On(changed)
}

/// Lets a command in where there is power and nothing is being erased.
fn admit(core: &Core, command: &Command) -> Result<(), Status> {
    if core.refuses_io()
        && let Some(status) = core.sanitize().refusal()
    {
        return Err(status);
    }
    let opcode = NvmOpcode(command.opcode);
    let admit = |namespace: &Namespace| match namespace.disk() {
        Some(disk) => disk.admit(opcode).map_err(|PowerIsCut| Status::ABORTED_POWER_LOSS),
        None => Ok(()),
    };
    if command.nsid == NamespaceId::ALL.0 {
        return core.namespaces.iter().try_for_each(admit);
    }
    // That there is no such namespace is said when the command is executed.
    core.namespace(command.nsid).map_or(Ok(()), admit)
}

fn moves_data(command: &Command) -> bool {
    [NvmOpcode::READ, NvmOpcode::WRITE].contains(&NvmOpcode(command.opcode))
}

fn has_metadata(core: &Core, command: &Command) -> bool {
    core.namespace(command.nsid).is_ok_and(|namespace| namespace.metadata().is_some())
}

fn writes_to_disk(core: &Core, command: &Command) -> bool {
    let disk = core.namespace(command.nsid).is_ok_and(|namespace| namespace.disk().is_some());
    disk && NvmOpcode(command.opcode) == NvmOpcode::WRITE
}

fn without_fua(command: &Command) -> Command {
    match NvmOpcode(command.opcode) {
        NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES | NvmOpcode::COPY => {
            Command { cdw12: command.cdw12 & !io::FUA, ..*command }
        }
        // Elsewhere the bit is something else, or concerns no write.
        _ => *command,
    }
}

/// Sends a command to other blocks: at the end of the namespace, to the last that there are.
fn misdirected(core: &Core, command: &Command, to: Lba) -> Command {
    let Some((first, count)) = named_blocks(command) else { return *command };
    let namespace = core.namespace(command.nsid);
    match namespace.and_then(|one| one.range(first.0, count.0).map(|_| one.blocks())) {
        Ok(blocks) => command.with_slba(to.0.min(blocks - count.0)),
        // What is wrong with it must not be hidden by sending it elsewhere.
        Err(_) => *command,
    }
}

/// Flips bits of one byte, counted modulo the length.
fn flip(bytes: Span<'_>, byte: u64, mask: u8) {
    let at = byte.checked_rem(bytes.len() as u64).unwrap_or(0) as usize;
    let Some(cell) = bytes.slice(at, 1) else { return };
    let mut value = [0];
    cell.read_into(&mut value);
    cell.write_from(&[value[0] ^ mask]);
}
