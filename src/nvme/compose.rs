//! From a piece of a request to the command that carries it out.
#![forbid(unsafe_code)]

use super::limits::{Limits, Piece};
use super::lists::Lists;
use super::memory::{self, Rules};
use super::slots::ListPage;
use crate::block::{Operation, Payload, Run, runs};
use crate::spec::command::{
    Command, CommandFlags, CopyDword12, CopyRange, DsmDword10, DsmDword11, DsmRange, IoDword12,
    NvmOpcode, PSDT_SGL,
};
use crate::spec::sgl::{SglDescriptor, SglType};

/// A command without its identifier, and the list page that it points to.
#[derive(Clone, Copy)]
pub(super) struct Composed {
    pub(super) command: Command,
    pub(super) list: Option<ListPage>,
}

impl Composed {
    #[inline]
    fn alone(command: Command) -> Self {
        Self { command, list: None }
    }
}

/// Makes the command of a piece; `None` when it needs a list page and none is left.
///
/// `TAGGED` says whether blocks have metadata, so that those without do not pay for it; `metadata` is where the device
/// finds or leaves that of the piece, 0 where none travels.
#[inline(always)]
pub(super) fn compose<const TAGGED: bool>(
    limits: &Limits,
    lists: &mut Lists,
    operation: &Operation,
    piece: Piece,
    metadata: u64,
) -> Option<Composed> {
    let with_data = |mut command: Command, lists: &mut Lists, payload: &Payload| {
        if TAGGED && limits.rules == Rules::Interleaved {
            return with_metadata_inline(command, limits, lists, (payload, piece), metadata);
        }
        command.mptr = metadata;
        with_data(command, limits, lists, payload, piece)
    };
    let command = |opcode: NvmOpcode, fua: bool| {
        let command = io_command(limits, opcode, piece, fua);
        if TAGGED { tagged(limits, command) } else { command }
    };
    match operation {
        Operation::Read { payload, .. } => {
            with_data(command(NvmOpcode::READ, false), lists, payload)
        }
        Operation::Write { payload, fua, .. } => {
            with_data(command(NvmOpcode::WRITE, *fua), lists, payload)
        }
        Operation::Compare { payload, .. } => {
            with_data(command(NvmOpcode::COMPARE, false), lists, payload)
        }
        Operation::WriteZeroes { fua, .. } => {
            Some(Composed::alone(command(NvmOpcode::WRITE_ZEROES, *fua)))
        }
        Operation::Verify { .. } => Some(Composed::alone(command(NvmOpcode::VERIFY, false))),
        Operation::WriteUncorrectable { .. } => {
            Some(Composed::alone(command(NvmOpcode::WRITE_UNCORRECTABLE, false)))
        }
        Operation::Flush => {
            let (opcode, nsid) = (NvmOpcode::FLUSH.0, limits.nsid.0);
            Some(Composed::alone(Command { opcode, nsid, ..Command::default() }))
        }
        Operation::Deallocate { .. } => deallocate(limits, lists, piece),
        Operation::Copy { source, .. } => copy(limits, lists, source.0, piece),
    }
}

#[inline]
fn io_command(limits: &Limits, opcode: NvmOpcode, piece: Piece, fua: bool) -> Command {
    let dword12 = IoDword12::new().with_nlb(zero_based(piece.blocks)).with_fua(fua);
    let command = Command {
        opcode: opcode.0,
        nsid: limits.nsid.0,
        cdw12: dword12.into_bits(),
        ..Command::default()
    };
    command.with_slba(piece.lba.0)
}

/// Adds what is said of metadata.
fn tagged(limits: &Limits, command: Command) -> Command {
    limits.tagging.map_or(command, |tagging| tagging.dress(command))
}

/// The wire form of a count that `Limits::cut` has kept between 1 and 65536.
#[inline]
fn zero_based(blocks: u64) -> u16 {
    blocks.wrapping_sub(1) as u16
}

/// Adds the data pointer.
#[inline(always)]
fn with_data(
    command: Command,
    limits: &Limits,
    lists: &mut Lists,
    payload: &Payload,
    piece: Piece,
) -> Option<Composed> {
    let shift = limits.lba_size.shift();
    let (offset, len) = (piece.skipped << shift, piece.blocks << shift);
    let iova = match payload {
        Payload::One(buffer) => buffer.iova().0,
        Payload::Part(piece) => piece.iova().0,
        _ => return with_list(command, limits.rules, lists, payload, offset, len),
    };
    with_run(command, limits.rules, lists, Run { iova: iova + offset, len })
}

/// Points to memory in several pieces.
#[inline(never)]
fn with_list(
    command: Command,
    rules: Rules,
    lists: &mut Lists,
    payload: &Payload,
    offset: u64,
    len: u64,
) -> Option<Composed> {
    match rules {
        Rules::Prp => with_prps(command, lists, runs(payload, offset, len)),
        Rules::Sgl | Rules::Interleaved => with_sgl(command, lists, runs(payload, offset, len)),
    }
}

/// Points to one run: by two PRPs where they are enough, whatever else the controller offers, then by one
/// descriptor where it takes them, and by a PRP list where not.
#[inline]
fn with_run(mut command: Command, rules: Rules, lists: &mut Lists, run: Run) -> Option<Composed> {
    let pages = memory::pages(run);
    let second = (run.iova & !(memory::PAGE - 1)) + memory::PAGE;
    if pages <= 2 {
        command.dptr = [run.iova, if pages == 2 { second } else { 0 }];
        return Some(Composed::alone(command));
    }
    if rules == Rules::Sgl {
        let len = u32::try_from(run.len).expect("a command transfers less than 4 GiB");
        let descriptor = SglDescriptor::new(SglType::DATA_BLOCK, run.iova, len);
        command.flags = CommandFlags::new().with_psdt(PSDT_SGL);
        command.dptr = zerocopy::transmute!(descriptor);
        return Some(Composed::alone(command));
    }
    let (list, page) = lists.take()?;
    page.store_steps(pages as usize - 1, second, memory::PAGE);
    command.dptr = [run.iova, page.iova()];
    Some(Composed { command, list: Some(list) })
}

fn with_prps(
    mut command: Command,
    lists: &mut Lists,
    runs: impl Iterator<Item = Run>,
) -> Option<Composed> {
    let (list, page) = lists.take()?;
    let entries = memory::prp_entries(runs);
    command.dptr = memory::lay_prps(entries, page.iova(), |index, entry| page.store(index, entry));
    Some(Composed { command, list: Some(list) })
}

fn with_sgl(
    mut command: Command,
    lists: &mut Lists,
    runs: impl Iterator<Item = Run>,
) -> Option<Composed> {
    command.flags = CommandFlags::new().with_psdt(PSDT_SGL);
    let mut runs = runs.peekable();
    let first = runs.next()?;
    if runs.peek().is_none() {
        let descriptor = memory::lay_sgl(core::iter::once(first), 0, |_, _| ());
        command.dptr = zerocopy::transmute!(descriptor);
        return Some(Composed::alone(command));
    }
    let (list, page) = lists.take()?;
    let all = core::iter::once(first).chain(runs);
    let descriptor = memory::lay_sgl(all, page.iova(), |index, descriptor: SglDescriptor| {
        let words: [u64; 2] = zerocopy::transmute!(descriptor);
        page.store(2 * index, words[0]);
        page.store(2 * index + 1, words[1]);
    });
    command.dptr = zerocopy::transmute!(descriptor);
    Some(Composed { command, list: Some(list) })
}

/// Points to data and metadata in turn, block by block.
#[inline(never)]
fn with_metadata_inline(
    command: Command,
    limits: &Limits,
    lists: &mut Lists,
    (payload, piece): (&Payload, Piece),
    metadata: u64,
) -> Option<Composed> {
    let block = u64::from(limits.lba_size.bytes());
    let bytes = limits.tagging.map_or(0, |tagging| u64::from(tagging.metadata.bytes));
    let each = |index: u64| {
        let data = runs(payload, (piece.skipped + index) * block, block);
        data.chain(core::iter::once(Run { iova: metadata + index * bytes, len: bytes }))
    };
    with_sgl(command, lists, (0..piece.blocks).flat_map(each))
}

/// Dataset Management with one range, which lies in the list page.
fn deallocate(limits: &Limits, lists: &mut Lists, piece: Piece) -> Option<Composed> {
    let blocks = u32::try_from(piece.blocks).expect("a range was cut to 32 bits");
    let (list, page) = lists.take()?;
    let range = DsmRange { attributes: 0, blocks, slba: piece.lba.0 };
    let words: [u64; 2] = zerocopy::transmute!(range);
    words.into_iter().enumerate().for_each(|(index, word)| page.store(index, word));
    let command = Command {
        opcode: NvmOpcode::DATASET_MANAGEMENT.0,
        nsid: limits.nsid.0,
        dptr: [page.iova(), 0],
        cdw10: DsmDword10::new().with_nr(0).into_bits(),
        cdw11: DsmDword11::new().with_ad(true).into_bits(),
        ..Command::default()
    };
    Some(Composed { command, list: Some(list) })
}

/// Copy with one source range, which lies in the list page.
fn copy(limits: &Limits, lists: &mut Lists, source: u64, piece: Piece) -> Option<Composed> {
    let (list, page) = lists.take()?;
    let slba = source + piece.skipped;
    let mut range = CopyRange { slba, nlb: zero_based(piece.blocks), ..CopyRange::default() };
    let mut command = Command {
        opcode: NvmOpcode::COPY.0,
        nsid: limits.nsid.0,
        dptr: [page.iova(), 0],
        cdw12: CopyDword12::new().with_nr(0).into_bits(),
        ..Command::default()
    }
    .with_slba(piece.lba.0);
    if let Some(tagging) = &limits.tagging {
        (command, range) = tagging.dress_copy(command, range);
    }
    let words: [u64; 4] = zerocopy::transmute!(range);
    words.into_iter().enumerate().for_each(|(index, word)| page.store(index, word));
    Some(Composed { command, list: Some(list) })
}
