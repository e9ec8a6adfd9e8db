//! What requests and commands may be: the numbers of the device and of the map, and the checks on them.
#![forbid(unsafe_code)]

use super::memory::{IoVector, Memory, SEGMENTS_MAX, Slice, Source};
use super::request::{Action, Io};
use crate::block::{BlockError, Cause, Fit, Geometry, Operations, Run, SegmentRules};
use crate::dma::Access;
use crate::units::{BlockCount, Lba, LbaSize};

/// The numbers that every decision of the pipeline is made of.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) lba_size: LbaSize,
    pub(super) capacity: u64,
    /// Blocks of one command that moves data.
    pub(super) transfer_max: u64,
    /// Blocks that commands do not cross a multiple of; 0 is none.
    boundary: u64,
    pub(super) rules: SegmentRules,
    /// Blocks of an allocation unit, a power of two.
    pub(super) unit: u64,
    pub(super) operations: Operations,
    /// Whether durable writes need a flush, since the device has a cache and cannot write through it.
    pub(super) flush_after: bool,
}

/// A request that can go to the queue as one command, as far as its shape tells.
pub(super) struct Plain {
    /// First block of the file.
    pub(super) at: u64,
    /// How many.
    pub(super) blocks: u64,
}

/// Why a device does not reach memory where it lies.
#[derive(Clone, Copy, Debug)]
pub(super) enum OutOfReach {
    /// It is not mapped for any device.
    Unregistered,
    /// This segment of it can be described to none.
    Segment(Run),
}

impl Shape {
    pub(super) fn new(geometry: &Geometry, unit: u64) -> Self {
        let lba_size = geometry.lba_size;
        Self {
            lba_size,
            capacity: geometry.blocks.0,
            transfer_max: (geometry.max_transfer.0 >> lba_size.shift()).max(1),
            boundary: geometry.optimal_boundary.map_or(0, |blocks| blocks.0),
            rules: geometry.segments,
            unit,
            operations: geometry.operations,
            flush_after: geometry.volatile_write_cache && !geometry.operations.fua,
        }
    }

    /// Returns the size of a block in bytes.
    #[inline]
    pub(super) fn block(&self) -> u64 {
        u64::from(self.lba_size.bytes())
    }

    /// Rounds down to a unit.
    #[inline]
    pub(super) fn unit_start(&self, block: u64) -> u64 {
        block & !(self.unit - 1)
    }

    /// Rounds up to a unit.
    #[inline]
    pub(super) fn unit_end(&self, block: u64) -> u64 {
        block.next_multiple_of(self.unit)
    }

    /// Says whether a request is plain: one buffer, aligned to units, within one transfer, with nothing wrong.
    /// Nearly every request is.
    #[inline(always)]
    pub(super) fn plain(&self, io: &Io) -> Option<Plain> {
        let needed = match io.action {
            Action::Read => Access::DeviceWrites,
            Action::Write { durability } if !(durability.is_durable() && self.flush_after) => {
                Access::DeviceReads
            }
            _ => return None,
        };
        let Memory::One(buffer) = &io.memory else { return None };
        let (offset, len) = (io.offset, buffer.len() as u64);
        let odd = (self.unit << self.lba_size.shift()) - 1;
        let blocks = len >> self.lba_size.shift();
        let at = offset >> self.lba_size.shift();
        let plain = (offset | len) & odd == 0
            && blocks.wrapping_sub(1) < self.transfer_max
            && offset.checked_add(len).is_some()
            && buffer.iova().0 & (u64::from(self.rules.alignment) - 1) == 0
            && buffer.access() as u8 & needed as u8 != 0
            && io.excess == 0;
        plain.then_some(Plain { at, blocks })
    }

    /// Says whether one command may cover these blocks of the device.
    #[inline(always)]
    pub(super) fn is_one_command(&self, lba: u64, blocks: u64) -> bool {
        // `blocks` is at most a transfer, so the sum does not wrap below the capacity.
        lba < self.capacity
            && lba + blocks <= self.capacity
            && (self.boundary == 0 || lba % self.boundary + blocks <= self.boundary)
    }

    /// Returns how many blocks a data command from `lba` on, which has `blocks` already, may still take.
    #[inline]
    pub(super) fn room(&self, lba: u64, blocks: u64) -> u64 {
        let before_boundary = match self.boundary {
            0 => u64::MAX,
            boundary => boundary - lba % boundary,
        };
        before_boundary.min(self.transfer_max).saturating_sub(blocks)
    }

    /// Checks everything about a request that needs neither map nor device.
    pub(super) fn check(&self, io: &Io, scratch: &mut Vec<u32>) -> Result<(), BlockError> {
        match io.action {
            Action::Flush => return Ok(()),
            Action::Read | Action::Write { .. } => Self::check_memory(io, scratch)?,
            Action::WriteZeroes { .. } => offered("write zeroes", self.operations.write_zeroes)?,
            Action::Deallocate { .. } => offered("deallocate", self.operations.deallocate)?,
        }
        self.check_range(io)
    }

    /// Checks the memory of a read or write.
    pub(super) fn check_memory(io: &Io, scratch: &mut Vec<u32>) -> Result<(), BlockError> {
        let needed = match io.action {
            Action::Read => Access::DeviceWrites,
            _ => Access::DeviceReads,
        };
        check_memory(&io.memory, needed, scratch)
    }

    fn check_range(&self, io: &Io) -> Result<(), BlockError> {
        let (offset, len) = (io.offset, io.len());
        for (what, value) in [("offset", offset), ("length", len)] {
            if !self.lba_size.divides(value) {
                return Err(misaligned(what, value, self.block()));
            }
        }
        let most =
            if matches!(io.action, Action::Write { .. }) && len > 0 { self.block() } else { 1 };
        if u64::from(io.excess) >= most {
            return Err(invalid("bytes that fill the last block", io.excess.into(), 0, most - 1));
        }
        if offset.checked_add(len).is_none() {
            return Err(self.out_of_range(offset, len));
        }
        Ok(())
    }

    /// Makes the error of bytes that the device does not have.
    #[cold]
    pub(super) fn out_of_range(&self, offset: u64, len: u64) -> BlockError {
        let shift = self.lba_size.shift();
        Cause::OutOfRange {
            lba: Lba(offset >> shift),
            blocks: BlockCount(len >> shift),
            capacity: BlockCount(self.capacity),
        }
        .into()
    }

    /// Says whether every block of a vector can be described to the device where it lies, and if not, what is
    /// in the way. That is no error yet: most pipelines bounce, and making one takes memory.
    ///
    /// That depends on no cut before the block, so one walk answers for every way to make commands of it.
    pub(super) fn reaches(&self, vector: &IoVector) -> Result<(), OutOfReach> {
        let block = self.block();
        let (mut index, mut skip) = (0, 0);
        while index < vector.slices.len() {
            let mut fit = Fit::new(self.rules);
            let (mut next, mut from) = (index, skip);
            while let Some(slice) = vector.slices.get(next) {
                let run = direct_run(vector, *slice, from)?;
                if fit.add(run) < run.len {
                    break;
                }
                (next, from) = (next + 1, 0);
            }
            if next == vector.slices.len() {
                return Ok(());
            }
            let whole = fit.bytes() - fit.bytes() % block;
            if whole == 0 {
                let slice = vector.slices[next];
                return Err(OutOfReach::Segment(direct_run(vector, slice, 0)?));
            }
            (index, skip) = forward(&vector.slices, (index, skip), whole);
        }
        Ok(())
    }

    /// Makes the error of memory that the device does not reach.
    #[cold]
    pub(super) fn explain(&self, reason: OutOfReach) -> BlockError {
        let OutOfReach::Segment(run) = reason else {
            let what = "memory that is not registered with it (strict)";
            return Cause::Unsupported { what: what.into() }.into();
        };
        let alignment = u64::from(self.rules.alignment);
        if !run.iova.is_multiple_of(alignment) {
            return misaligned("memory address", run.iova, alignment);
        }
        if !run.len.is_multiple_of(alignment) {
            return misaligned("length of a memory segment", run.len, alignment);
        }
        let needed = self.rules.page.map_or(alignment, u64::from);
        misaligned("length of a memory segment between others", run.len, needed)
    }
}

fn offered(what: &'static str, offered: bool) -> Result<(), BlockError> {
    if offered { Ok(()) } else { Err(Cause::Unsupported { what: what.into() }.into()) }
}

/// Returns where a device sees a slice from byte `skip` on.
fn direct_run(vector: &IoVector, slice: Slice, skip: u64) -> Result<Run, OutOfReach> {
    match slice.source {
        Source::Dma(index) => {
            let start = vector.dma[usize::from(index)].iova().0 + u64::from(slice.offset);
            Ok(Run { iova: start + skip, len: u64::from(slice.len) - skip })
        }
        Source::Plain(_) => Err(OutOfReach::Unregistered),
    }
}

/// Moves a place in a vector (segment, byte of it) forward by `len` bytes.
pub(super) fn forward(slices: &[Slice], from: (usize, u64), len: u64) -> (usize, u64) {
    let (mut index, mut skip) = from;
    let mut left = len;
    while let Some(slice) = slices.get(index) {
        let here = u64::from(slice.len) - skip;
        if left < here {
            return (index, skip + left);
        }
        left -= here;
        (index, skip) = (index + 1, 0);
    }
    (index, 0)
}

#[cold]
fn misaligned(what: &'static str, value: u64, alignment: u64) -> BlockError {
    Cause::Misaligned { what, value, alignment }.into()
}

fn check_memory(memory: &Memory, needed: Access, scratch: &mut Vec<u32>) -> Result<(), BlockError> {
    let vector = match memory {
        Memory::Nothing => return Err(invalid("segments", 0, 1, SEGMENTS_MAX as u64)),
        Memory::One(buffer) => return check_rights(buffer, needed),
        Memory::Vector(vector) => vector,
    };
    let count = vector.slices.len();
    if count == 0 || count > SEGMENTS_MAX {
        return Err(invalid("segments", count as u64, 1, SEGMENTS_MAX as u64));
    }
    for slice in &vector.slices {
        let Some(len) = vector.source_len(slice.source) else {
            let (Source::Dma(index) | Source::Plain(index)) = slice.source;
            let most = vector.dma.len().max(vector.plain.len()).saturating_sub(1);
            return Err(invalid("buffer of a segment", u64::from(index), 0, most as u64));
        };
        let end = u64::from(slice.offset) + u64::from(slice.len);
        if end > len as u64 {
            return Err(invalid("end of a segment in its buffer", end, 0, len as u64));
        }
        if let Source::Dma(index) = slice.source {
            check_rights(&vector.dma[usize::from(index)], needed)?;
        }
    }
    // What a device reads may be read twice.
    if needed.device_writes() { check_overlap(&vector.slices, scratch) } else { Ok(()) }
}

fn check_rights(buffer: &crate::dma::DmaBuf, needed: Access) -> Result<(), BlockError> {
    if buffer.access() as u8 & needed as u8 != 0 {
        return Ok(());
    }
    let verb = if needed.device_reads() { "read" } else { "write" };
    Err(Cause::Rights { iova: buffer.iova().0, verb }.into())
}

/// Refuses segments that lie over each other, by looking at neighbours in the order of memory.
fn check_overlap(slices: &[Slice], scratch: &mut Vec<u32>) -> Result<(), BlockError> {
    scratch.clear();
    scratch.extend((0u32..).zip(slices).filter(|(_, slice)| slice.len > 0).map(|(at, _)| at));
    let slice = |index: u32| slices[index as usize];
    scratch.sort_unstable_by_key(|&index| (slice(index).source, slice(index).offset, index));
    for pair in scratch.windows(2) {
        let (low, high) = (slice(pair[0]), slice(pair[1]));
        let low_end = u64::from(low.offset) + u64::from(low.len);
        let high_end = u64::from(high.offset) + u64::from(high.len);
        if low.source == high.source && u64::from(high.offset) < low_end {
            let bytes = low_end.min(high_end) - u64::from(high.offset);
            let (first, second) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
            return Err(Cause::Overlap { first, second, bytes }.into());
        }
    }
    Ok(())
}

#[cold]
fn invalid(what: &'static str, value: u64, least: u64, most: u64) -> BlockError {
    Cause::Invalid { what, value, least, most }.into()
}
