//! I/O commands: what each opcode of the NVM command set does to a namespace.
//!
//! [`execute`] checks a command as a whole, then moves its data. Reads and writes come first and straight;
//! the others are out of line. Neighbours: `namespace` for blocks, `data` for memory.
//! Invariant: nothing is moved before namespace, range, length and reserved fields were checked.
#![forbid(unsafe_code)]

use zerocopy::IntoBytes;

use super::engine::Core;
use super::group::Work;
use super::iommu::Purpose;
use super::namespace::{Namespace, Range};
use crate::dma::Span;
use crate::spec::command::{Command, CopyRange, DsmRange, NvmOpcode};
use crate::spec::status::Status;
use crate::units::NamespaceId;

/// The most ranges of one Copy (MSRC + 1): as many as fit a page.
pub(super) const COPY_RANGES_MAX: usize = 128;

/// The most blocks of one Copy range (MSSRL).
pub(super) const COPY_RANGE_BLOCKS_MAX: u16 = 2048;

/// The most blocks of one Copy (MCL).
pub(super) const COPY_BLOCKS_MAX: u32 = 65_536;

/// Dataset Management: the ranges are to be deallocated (CDW11 bit 2).
const DEALLOCATE: u32 = 1 << 2;

/// Force unit access (CDW12 bit 30).
pub(super) const FUA: u32 = 1 << 30;

/// Bits of CDW12 that a read or write may set: NLB, FUA, limited retry.
const TRANSFER_BITS: u32 = 0xffff | FUA | 1 << 31;

/// Bits of CDW12 that Write Zeroes may set: those and deallocate (bit 25).
const ZEROES_BITS: u32 = TRANSFER_BITS | 1 << 25;

/// Bits of CDW13 that are hints: dataset management.
pub(super) const HINT_BITS: u32 = 0xff;

/// Executes one I/O command.
#[inline]
pub(super) fn execute(core: &Core, work: &mut Work, command: &Command) -> Result<(), Status> {
    if u8::from(command.flags) != 0 {
        check_flags(core, command)?;
    }
    match NvmOpcode(command.opcode) {
        NvmOpcode::READ => read(core, work, command),
        NvmOpcode::WRITE => write(core, work, command),
        opcode => execute_rare(core, work, command, opcode),
    }
}

fn execute_rare(
    core: &Core,
    work: &mut Work,
    command: &Command,
    opcode: NvmOpcode,
) -> Result<(), Status> {
    match opcode {
        NvmOpcode::FLUSH => flush(core, work, command),
        NvmOpcode::WRITE_UNCORRECTABLE => write_uncorrectable(core, command),
        NvmOpcode::COMPARE => compare(core, work, command),
        NvmOpcode::WRITE_ZEROES => write_zeroes(core, command),
        NvmOpcode::DATASET_MANAGEMENT => dataset_management(core, work, command),
        NvmOpcode::VERIFY => verify(core, command),
        NvmOpcode::COPY => copy(core, work, command),
        _ => Err(Status::INVALID_OPCODE),
    }
}

/// Refuses fused commands and descriptions of memory that are not on offer.
#[cold]
pub(super) fn check_flags(core: &Core, command: &Command) -> Result<(), Status> {
    let flags = command.flags;
    let known = u8::from(flags) & 0b0011_1100 == 0;
    if known && flags.fuse() == 0 && flags.psdt() <= u8::from(core.options.sgl) {
        Ok(())
    } else {
        Err(Status::INVALID_FIELD)
    }
}

#[inline]
fn read(core: &Core, work: &mut Work, command: &Command) -> Result<(), Status> {
    let (namespace, range) = transfer(core, command)?;
    namespace.refuse_spoilt(range)?;
    work.dma.data(&core.iommu, command, range.len, Purpose::ToHost, |at, span| {
        namespace.read(range.offset + at, span)
    })?;
    work.counters.bytes_read += range.len;
    Ok(())
}

#[inline]
fn write(core: &Core, work: &mut Work, command: &Command) -> Result<(), Status> {
    let (namespace, range) = transfer(core, command)?;
    work.dma.data(&core.iommu, command, range.len, Purpose::FromHost, |at, span| {
        namespace.write(range.offset + at, span)
    })?;
    namespace.heal(range);
    work.counters.bytes_written += range.len;
    persist(core, namespace, command, [range])
}

/// Executes a read or a write by way of a stage: all bytes are there, and `change` has them, before any
/// reaches the host or the medium.
pub(super) fn execute_staged(
    core: &Core,
    work: &mut Work,
    command: &Command,
    change: impl FnOnce(Span<'_>),
) -> Result<(), Status> {
    check_flags(core, command)?;
    let (namespace, range) = transfer(core, command)?;
    if NvmOpcode(command.opcode) == NvmOpcode::READ {
        read_staged(core, work, command, (namespace, range), change)
    } else {
        write_staged(core, work, command, (namespace, range), change)
    }
}

fn read_staged(
    core: &Core,
    work: &mut Work,
    command: &Command,
    (namespace, range): (&Namespace, Range),
    change: impl FnOnce(Span<'_>),
) -> Result<(), Status> {
    namespace.refuse_spoilt(range)?;
    let (dma, stage) = work.dma_and_stage(range.len).ok_or(Status::INTERNAL_ERROR)?;
    // A medium that keeps nothing leaves what is there, and that was another command's.
    stage.fill(0);
    namespace.read(range.offset, stage)?;
    change(stage);
    dma.data(&core.iommu, command, range.len, Purpose::ToHost, |at, piece| {
        piece.copy_from(part(stage, at, piece.len())?);
        Ok(())
    })?;
    work.counters.bytes_read += range.len;
    Ok(())
}

fn write_staged(
    core: &Core,
    work: &mut Work,
    command: &Command,
    (namespace, range): (&Namespace, Range),
    change: impl FnOnce(Span<'_>),
) -> Result<(), Status> {
    let (dma, stage) = work.dma_and_stage(range.len).ok_or(Status::INTERNAL_ERROR)?;
    dma.data(&core.iommu, command, range.len, Purpose::FromHost, |at, piece| {
        part(stage, at, piece.len())?.copy_from(piece);
        Ok(())
    })?;
    change(stage);
    namespace.write(range.offset, stage)?;
    namespace.heal(range);
    work.counters.bytes_written += range.len;
    persist(core, namespace, command, [range])
}

/// Returns the piece of a stage that a piece of memory stands for.
fn part(stage: Span<'_>, at: u64, len: usize) -> Result<Span<'_>, Status> {
    stage.slice(at as usize, len).ok_or(Status::INTERNAL_ERROR)
}

fn compare(core: &Core, work: &mut Work, command: &Command) -> Result<(), Status> {
    let (namespace, range) = transfer(core, command)?;
    namespace.refuse_spoilt(range)?;
    work.dma.data(&core.iommu, command, range.len, Purpose::FromHost, |at, span| {
        match namespace.equals(range.offset + at, span)? {
            true => Ok(()),
            false => Err(Status::COMPARE_FAILURE),
        }
    })
}

fn flush(core: &Core, work: &Work, command: &Command) -> Result<(), Status> {
    let unused = [command.cdw10, command.cdw11, command.cdw12, command.cdw13];
    if unused != [0; 4] || has_reserved(command) {
        return Err(Status::INVALID_FIELD);
    }
    if command.nsid == NamespaceId::ALL.0 {
        let all = (1..).zip(&core.namespaces);
        return all.into_iter().try_for_each(|(id, one)| one.flush(work.horizon(id)));
    }
    core.namespace(command.nsid)?.flush(work.horizon(command.nsid))
}

fn write_zeroes(core: &Core, command: &Command) -> Result<(), Status> {
    let (namespace, range) = blocks(core, command, ZEROES_BITS)?;
    namespace.zero(range)?;
    persist(core, namespace, command, [range])
}

fn write_uncorrectable(core: &Core, command: &Command) -> Result<(), Status> {
    let (namespace, range) = blocks(core, command, 0xffff)?;
    namespace.spoil(range);
    Ok(())
}

fn verify(core: &Core, command: &Command) -> Result<(), Status> {
    let (namespace, range) = blocks(core, command, TRANSFER_BITS)?;
    namespace.verify(range)
}

fn dataset_management(core: &Core, work: &mut Work, command: &Command) -> Result<(), Status> {
    let namespace = core.namespace(command.nsid)?;
    let unused = command.cdw10 & !0xff | command.cdw11 & !0b111 | command.cdw12 | command.cdw13;
    if unused != 0 || has_reserved(command) {
        return Err(Status::INVALID_FIELD);
    }
    let mut ranges = [DsmRange::default(); 256];
    let ranges = &mut ranges[..(command.cdw10 & 0xff) as usize + 1];
    work.dma.read(&core.iommu, command, ranges.as_mut_bytes())?;
    let block_range = |r: &DsmRange| namespace.range(r.slba, u64::from(r.blocks));
    // All are checked before the first is given back.
    ranges.iter().try_for_each(|range| block_range(range).map(drop))?;
    if command.cdw11 & DEALLOCATE == 0 {
        return Ok(());
    }
    ranges.iter().try_for_each(|range| namespace.zero(block_range(range)?))?;
    persist(core, namespace, command, ranges.iter().flat_map(block_range))?;
    let metadata = ranges.iter().flat_map(block_range).map(|range| namespace.metadata_range(range));
    match namespace.metadata() {
        Some(_) => persist(core, namespace, command, metadata),
        None => Ok(()),
    }
}

fn copy(core: &Core, work: &mut Work, command: &Command) -> Result<(), Status> {
    let namespace = core.namespace(command.nsid)?;
    // Format 0, no protection information, no directives.
    if command.cdw12 & !(0xff | FUA | 1 << 31) != 0 || command.cdw13 != 0 || has_reserved(command) {
        return Err(Status::INVALID_FIELD);
    }
    let count = (command.cdw12 & 0xff) as usize + 1;
    if count > COPY_RANGES_MAX {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
    }
    let mut ranges = [CopyRange::default(); COPY_RANGES_MAX];
    let ranges = &mut ranges[..count];
    work.dma.read(&core.iommu, command, ranges.as_mut_bytes())?;
    let target = copy_ranges(namespace, ranges, command.slba())?;
    persist(core, namespace, command, [target])
}

/// Checks the ranges of a copy and returns where they go.
pub(super) fn check_copy(
    namespace: &Namespace,
    ranges: &[CopyRange],
    to: u64,
) -> Result<Range, Status> {
    let blocks = |range: &CopyRange| u64::from(range.nlb) + 1;
    let total: u64 = ranges.iter().map(blocks).sum();
    let longest = ranges.iter().map(blocks).max().unwrap_or(0);
    if longest > u64::from(COPY_RANGE_BLOCKS_MAX) || total > u64::from(COPY_BLOCKS_MAX) {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
    }
    let target = namespace.range(to, total)?;
    for range in ranges {
        namespace.refuse_spoilt(namespace.range(range.slba, blocks(range))?)?;
    }
    Ok(target)
}

/// Copies ranges one after the other, once all of them were checked, and returns where they went.
fn copy_ranges(namespace: &Namespace, ranges: &[CopyRange], to: u64) -> Result<Range, Status> {
    let target = check_copy(namespace, ranges, to)?;
    let mut offset = target.offset;
    for range in ranges {
        let from = namespace.range(range.slba, u64::from(range.nlb) + 1)?;
        namespace.copy(from, offset)?;
        offset += from.len;
    }
    namespace.heal(target);
    Ok(target)
}

/// Checks a command that moves data.
#[inline]
fn transfer<'a>(core: &'a Core, command: &Command) -> Result<(&'a Namespace, Range), Status> {
    let (namespace, range) = blocks(core, command, TRANSFER_BITS)?;
    if range.len > core.transfer_max {
        return Err(Status::INVALID_FIELD);
    }
    Ok((namespace, range))
}

/// Checks a command that names a range of blocks; `allowed` are the bits of CDW12 that may be set.
#[inline]
fn blocks<'a>(
    core: &'a Core,
    command: &Command,
    allowed: u32,
) -> Result<(&'a Namespace, Range), Status> {
    let namespace = core.namespace(command.nsid)?;
    let reserved = command.cdw12 & !allowed | command.cdw13 & !HINT_BITS;
    if reserved != 0 || has_reserved(command) {
        return Err(Status::INVALID_FIELD);
    }
    let count = u64::from(command.cdw12 & 0xffff) + 1;
    Ok((namespace, namespace.range(command.slba(), count)?))
}

/// Says whether a field is set that means nothing here: there is neither metadata nor protection
/// information.
#[inline]
fn has_reserved(command: &Command) -> bool {
    let words = command.cdw2 | command.cdw3 | command.cdw14 | command.cdw15;
    u64::from(words) | command.mptr != 0
}

/// Makes a write durable where the command, or the lack of a cache, asks for it. Always inlined: for most
/// writes it is two questions.
#[inline(always)]
pub(super) fn persist(
    core: &Core,
    namespace: &Namespace,
    command: &Command,
    written: impl IntoIterator<Item = Range>,
) -> Result<(), Status> {
    if command.cdw12 & FUA != 0 || core.writes_through() {
        namespace.persist(written.into_iter())
    } else {
        Ok(())
    }
}
