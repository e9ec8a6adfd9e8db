//! Everything of a pipeline but its queue: what it is made of, and how a request comes in.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::command::Assembly;
use super::cursor::Cursor;
use super::memory::Memory;
use super::pipeline::{MemoryPolicy, OpenError, Options};
use super::record::{Hold, Records, Started, Zeroes};
use super::request::{Action, Done, Io, Statistics};
use super::settle::Settling;
use super::shape::Shape;
use super::walk::is_write;
use crate::block::{
    Begun, BlockDevice, BlockError, Cause, IoQueue, MapBlocks, Mapping, UNIT_BLOCKS_MAX,
};
use crate::dma::{Access, DmaBuf, DmaPiece};
use crate::units::{BlockCount, FileBlock};

/// The most requests of one pipeline, as many as the deepest queue has commands: their index has 16 bits in the
/// tag of a command.
const REQUESTS_MAX: usize = u16::MAX as usize;

/// The most lists of pieces at once; commands of one piece need none.
const LISTS_MAX: usize = 32;

/// One buffer of zeroes, and one bounce buffer, are as long as this where the device takes so much.
const ZEROES_BYTES: usize = 64 << 10;
const BOUNCE_BYTES: u64 = 128 << 10;

/// Everything of a pipeline but its queue.
pub(super) struct Walker<M: MapBlocks> {
    pub(super) records: Records<M::Guard>,
    pub(super) map: M,
    pub(super) shape: Shape,
    pub(super) merge: bool,
    /// Plain requests that were taken, which the statistics leave out.
    pub(super) direct: u64,
    pub(super) statistics: Statistics,
    /// Requests that are finished and were not handed over yet.
    pub(super) ready: VecDeque<Done>,
    /// Answers that wait until the map's record of them is durable.
    pub(super) settling: VecDeque<Settling>,
    /// By record: the memory of requests that are not plain.
    pub(super) holds: Vec<Hold>,
    /// Cursors that wait for room, and what goes on first.
    pub(super) paused: VecDeque<Cursor>,
    /// The command under assembly.
    pub(super) open: Option<Assembly>,
    /// Lists of pieces at rest.
    pub(super) lists: Vec<Vec<DmaPiece>>,
    /// Owners of commands that requests share, and which entries are free.
    pub(super) owners: Vec<Vec<(u16, u64)>>,
    pub(super) owners_free: Vec<u16>,
    pub(super) bounce: Vec<DmaBuf>,
    policy: MemoryPolicy,
    pub(super) zeroes: Zeroes,
    pub(super) share: u32,
    pub(super) reap_every: u32,
    pub(super) since_reap: u32,
    /// Indices of segments, to be sorted.
    scratch: Vec<u32>,
}

impl<M: MapBlocks> Walker<M> {
    pub(super) fn new(
        device: &dyn BlockDevice,
        depth: usize,
        map: M,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let unit = map.unit().0;
        let right = unit.is_power_of_two() && unit <= UNIT_BLOCKS_MAX;
        if !right {
            let (what, value) = ("blocks of an allocation unit, a power of two:", unit);
            let cause = Cause::Invalid { what, value, least: 1, most: UNIT_BLOCKS_MAX };
            return Err(BlockError::from(cause).into());
        }
        let shape = Shape::new(device.geometry(), unit);
        let requests = checked("requests", options.requests, depth, REQUESTS_MAX)?;
        let share = checked("share", options.share, (depth / 4).max(1), usize::MAX)?;
        let count = u16::try_from(requests).expect("it was checked");
        let zeroes = device.dma().buffer(zeroes_bytes(&shape), Access::DeviceReads)?;
        let pieces = shape.rules.max_segments as usize;
        let owners = if options.merge { depth } else { 0 };
        Ok(Self {
            records: Records::new(count),
            map,
            merge: options.merge,
            direct: 0,
            statistics: Statistics::default(),
            ready: VecDeque::with_capacity(requests),
            settling: VecDeque::with_capacity(requests),
            holds: (0..requests).map(|_| Hold::new()).collect(),
            paused: VecDeque::with_capacity(requests),
            open: None,
            lists: (0..depth.min(LISTS_MAX)).map(|_| Vec::with_capacity(pieces)).collect(),
            owners: (0..owners).map(|_| Vec::with_capacity(requests)).collect(),
            owners_free: (0..u16::try_from(owners).unwrap_or(u16::MAX)).collect(),
            bounce: bounce_buffers(device, &shape, options)?,
            policy: options.memory,
            zeroes: Zeroes::new(zeroes),
            share: u32::try_from(share).unwrap_or(u32::MAX),
            reap_every: options.reap_every.max(1),
            since_reap: 0,
            scratch: Vec::with_capacity(super::SEGMENTS_MAX),
            shape,
        })
    }

    /// Says whether no cursor waits and no command is under assembly.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.paused.is_empty() && self.settling.is_empty() && (self.open.is_none() || self.merge)
    }

    /// Checks everything about a request that needs neither map nor device.
    pub(super) fn check(&mut self, io: &Io) -> Result<(), BlockError> {
        self.shape.check(io, &mut self.scratch)?;
        match &io.memory {
            Memory::Vector(vector) if self.policy == MemoryPolicy::Strict => {
                self.shape.reaches(vector).map_err(|reason| self.shape.explain(reason))
            }
            Memory::One(buffer) if self.policy == MemoryPolicy::Strict => {
                let (value, alignment) = (buffer.iova().0, u64::from(self.shape.rules.alignment));
                let what = "memory address";
                let fits = value.is_multiple_of(alignment);
                if fits { Ok(()) } else { Err(Cause::Misaligned { what, value, alignment }.into()) }
            }
            _ => Ok(()),
        }
    }

    /// Checks the memory of a request, whatever its range.
    pub(super) fn check_memory(&mut self, io: &Io) -> Result<(), BlockError> {
        Shape::check_memory(io, &mut self.scratch)
    }

    /// Takes a request that was begun, and walks it as far as there is room.
    pub(super) fn admit(
        &mut self,
        queue: &mut dyn IoQueue,
        io: Io,
        begun: Begun<M::Guard>,
        answer: Option<Result<Mapping, BlockError>>,
    ) {
        let Io { offset, action, memory, excess, tag, .. } = io;
        let len = match action {
            Action::WriteZeroes { len, .. } | Action::Deallocate { len } => len,
            _ => memory.len(),
        };
        let bytes = match action {
            // Rules 11 and 26: a read ends with the file as it is now.
            Action::Read => len.min(begun.size.saturating_sub(offset)),
            _ => len - u64::from(excess),
        };
        let bounced = action_has_data(action) && !self.is_reached(&memory);
        let index = self.records.take().expect("the caller found a free one");
        let record = self.records.get_mut(index);
        record.tag = tag;
        record.bytes = bytes;
        record.guard = Some(begun.guard);
        record.action = action;
        record.offset = offset;
        record.bounced = bounced;
        record.walking = true;
        record.started = Started::Nothing;
        record.flush_owed = self.shape.flush_after && is_durable(action);
        let hold = &mut self.holds[usize::from(index)];
        if bounced {
            self.statistics.bounces += 1;
            hold.keep(memory);
        } else {
            hold.lend(memory);
        }
        let shift = self.shape.lba_size.shift();
        let (at, end) = (offset >> shift, (offset + bytes).div_ceil(self.shape.block()));
        let mut cursor = Cursor::new(index, at, end);
        if let Some(answer) = answer {
            // The map has been asked for a request that starts and ends at units.
            let asked = BlockCount(end - at);
            let write = is_write(action);
            match answer.and_then(|found| self.believe(FileBlock(at), asked, write, found)) {
                Ok(mapping) => cursor.take(mapping, 0),
                Err(error) => record_stop(&mut self.records, index, 0, error),
            }
        }
        self.walk(queue, cursor);
    }

    /// Takes a flush.
    pub(super) fn admit_flush(&mut self, tag: u64) {
        let index = self.records.take().expect("the caller found a free one");
        let record = self.records.get_mut(index);
        record.tag = tag;
        record.bytes = 0;
        record.action = Action::Flush;
        record.walking = true;
        record.flush_owed = true;
        self.paused.push_back(Cursor::new(index, 0, 0));
    }

    /// Says whether the device reaches all of a memory where it lies.
    fn is_reached(&self, memory: &Memory) -> bool {
        match memory {
            Memory::Nothing => true,
            Memory::One(buffer) => {
                buffer.iova().0.is_multiple_of(u64::from(self.shape.rules.alignment))
            }
            Memory::Vector(vector) => self.shape.reaches(vector).is_ok(),
        }
    }
}

fn action_has_data(action: Action) -> bool {
    matches!(action, Action::Read | Action::Write { .. })
}

pub(super) fn is_durable(action: Action) -> bool {
    match action {
        Action::Write { durability } | Action::WriteZeroes { durability, .. } => {
            durability.is_durable()
        }
        _ => false,
    }
}

fn zeroes_bytes(shape: &Shape) -> usize {
    ZEROES_BYTES.max(shape.block() as usize)
}

/// Takes the memory for bounce buffers: as many as the budget buys, and one at least.
fn bounce_buffers(
    device: &dyn BlockDevice,
    shape: &Shape,
    options: &Options,
) -> Result<Vec<DmaBuf>, OpenError> {
    if options.memory == MemoryPolicy::Strict {
        return Ok(Vec::new());
    }
    let transfer = shape.transfer_max.saturating_mul(shape.block());
    let bytes = (BOUNCE_BYTES.min(transfer) as usize).min(options.bounce_bytes);
    let bytes = (bytes - bytes % shape.block() as usize).max(shape.block() as usize);
    let count = (options.bounce_bytes / bytes).max(1);
    (0..count).map(|_| Ok(device.dma().buffer(bytes, Access::Both)?)).collect()
}

fn checked(
    what: &'static str,
    wanted: Option<u32>,
    default: usize,
    most: usize,
) -> Result<usize, OpenError> {
    let value = wanted.map_or(default.min(most), |value| value as usize);
    if value == 0 || value > most {
        let (value, most) = (value as u64, most as u64);
        return Err(BlockError::from(Cause::Invalid { what, value, least: 1, most }).into());
    }
    Ok(value)
}
pub(super) fn record_stop<G>(records: &mut Records<G>, index: u16, at: u64, error: BlockError) {
    records.get_mut(index).stop(at, error);
}
