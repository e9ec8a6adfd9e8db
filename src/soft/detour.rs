//! The detour: the way of a command that a fault or a power cut may meet.
//!
//! `group` sends commands here if there is an interposer or a disk with a volatile cache, so that all others
//! pay one branch for both. [`decide`] counts for the disk, asks the interposer and carries its verdict out.
//! Neighbours: `io` executes, `interposer` judges, `disk` has the power.
//! Invariant: a write to a disk reaches it whole or not at all, however many pieces of memory it is in.
#![forbid(unsafe_code)]

use super::disk::{Disk, Horizon, PowerIsCut};
use super::engine::Core;
use super::group::{Outcome, Work};
use super::interposer::{CommandContext, Verdict, named_blocks};
use super::io;
use super::iommu::Purpose;
use super::namespace::Namespace;
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

/// Decides what becomes of a command, and lets it.
#[cold]
pub(super) fn decide(core: &Core, queue: u16, work: &mut Work, command: &Command) -> Outcome {
    if let Err(status) = admit(core, command) {
        return Outcome::Complete(Err(status));
    }
    let context = CommandContext { queue: QueueId(queue), command };
    let interposer = core.options.interposer.as_ref();
    let result = match interposer.map_or(Verdict::Execute, |who| who.on_command(&context)) {
        Verdict::Execute => execute(core, work, command),
        Verdict::Fail(status) => Err(status),
        Verdict::Drop => return Outcome::Silent,
        Verdict::Lose => Ok(()),
        Verdict::StripFua => execute(core, work, &without_fua(command)),
        Verdict::Misdirect(to) => execute(core, work, &misdirected(core, command, to)),
        Verdict::Corrupt { byte, mask } => corrupt(core, work, command, byte, mask),
    };
    Outcome::Complete(result.map(|()| 0))
}

/// Lets a command in where there is power.
fn admit(core: &Core, command: &Command) -> Result<(), Status> {
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

fn execute(core: &Core, work: &mut Work, command: &Command) -> Result<(), Status> {
    let disk = core.namespace(command.nsid).is_ok_and(|namespace| namespace.disk().is_some());
    if disk && NvmOpcode(command.opcode) == NvmOpcode::WRITE {
        io::write_whole(core, work, command, |_| ())
    } else {
        io::execute(core, work, command)
    }
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

/// Executes a command and flips bits on the way.
fn corrupt(
    core: &Core,
    work: &mut Work,
    command: &Command,
    byte: u64,
    mask: u8,
) -> Result<(), Status> {
    match NvmOpcode(command.opcode) {
        NvmOpcode::WRITE => io::write_whole(core, work, command, |bytes| {
            flip(bytes, byte % bytes.len() as u64, mask);
        }),
        NvmOpcode::READ => {
            execute(core, work, command)?;
            let (_, range) = io::transfer(core, command)?;
            let byte = byte % range.len;
            work.dma.data(&core.iommu, command, range.len, Purpose::ToHost, |at, piece| {
                byte.checked_sub(at).inspect(|byte| flip(piece, *byte, mask));
                Ok(())
            })
        }
        _ => execute(core, work, command),
    }
}

/// Flips bits of one byte, if the byte lies in the span.
fn flip(span: Span<'_>, byte: u64, mask: u8) {
    let Some(cell) = usize::try_from(byte).ok().and_then(|byte| span.slice(byte, 1)) else {
        return;
    };
    let mut value = [0];
    cell.read_into(&mut value);
    cell.write_from(&[value[0] ^ mask]);
}
