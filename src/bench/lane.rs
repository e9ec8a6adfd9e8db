//! What a worker sends its I/O through: the direct-I/O pipeline, or a bare queue of the device.
//!
//! Both take one buffer at a place and give it back. The difference between the two, in one run after the
//! other, is what the pipeline costs.
#![forbid(unsafe_code)]

use super::job::{Direction, Job};
use super::result::QueueCounters;
use super::worker::WorkerError;
use crate::block::{
    BlockError, Completion, Counters, Identity, IoQueue, Operation, Payload, QueueOptions,
    Rejected, Request,
};
use crate::dma::DmaBuf;
use crate::units::{BlockCount, ByteLen, FileId, Lba, LbaSize};
use crate::volume::{self, Action, Done, Handle, Io, Memory, Refused, Statistics, Volume};

/// Which way I/O takes, for all jobs of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Straight to the queue, past the pipeline.
    pub raw_queue: bool,
    /// Neighbouring I/Os of one batch may share a command.
    pub merge: bool,
}

/// What a worker sends its I/O through.
pub(super) enum Lane {
    /// A queue of the device.
    Raw { queue: Box<dyn IoQueue>, lba_size: LbaSize },
    /// The pipeline over one.
    Pipeline { handle: Box<Handle<Identity>>, depth: usize },
}

/// What has been counted so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    queue: Counters,
    pipeline: Statistics,
}

/// What an I/O asks for. A flush has no direction.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) direction: Option<Direction>,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Memory of a read or write.
    pub(super) buffer: Option<DmaBuf>,
    pub(super) tag: u64,
}

/// An I/O that came back.
pub(super) struct Answer {
    pub(super) tag: u64,
    pub(super) buffer: Option<DmaBuf>,
    pub(super) bytes: u64,
    pub(super) result: Result<(), BlockError>,
}

/// An I/O that was not taken: its memory, and why it never will be; no reason where there is no room.
pub(super) struct Turned {
    pub(super) buffer: Option<DmaBuf>,
    pub(super) error: Option<BlockError>,
}

impl Lane {
    pub(super) fn open(job: &Job, device: &Volume, route: Route) -> Result<Self, WorkerError> {
        let geometry = device.geometry();
        let options = QueueOptions { depth: job.iodepth, ..QueueOptions::default() };
        if route.raw_queue {
            let queue = device.device().open_queue(&options)?;
            return Ok(Self::Raw { queue, lba_size: geometry.lba_size });
        }
        // An I/O that takes several commands has all of them in flight, as on the kernel's path.
        let share = commands(u64::from(job.max_block_size()), geometry.max_transfer);
        let depth = job.iodepth.saturating_mul(share).min(device.device().max_depth());
        let options = volume::Options {
            queue: QueueOptions { depth, ..options },
            requests: Some(job.iodepth),
            share: Some(share),
            merge: route.merge,
            ..volume::Options::default()
        };
        let handle = Box::new(device.handle(&options)?);
        Ok(Self::Pipeline { handle, depth: job.iodepth as usize })
    }

    /// Takes an I/O, without telling the device yet.
    #[inline]
    pub(super) fn submit(&mut self, ask: Ask) -> Result<(), Turned> {
        match self {
            Self::Raw { queue, lba_size } => submit_raw(&mut **queue, *lba_size, ask),
            Self::Pipeline { handle, .. } => submit_pipeline(handle, ask),
        }
    }

    #[inline]
    pub(super) fn ring(&mut self) {
        match self {
            Self::Raw { queue, .. } => queue.ring(),
            Self::Pipeline { handle, .. } => handle.ring(),
        }
    }

    /// Hands at most `most` I/Os that came back to `sink`, and returns how many.
    #[inline]
    pub(super) fn poll(&mut self, most: usize, mut sink: impl FnMut(Answer)) -> usize {
        match self {
            Self::Raw { queue, lba_size } => {
                queue.poll(most, &mut |completion| sink(answer_raw(completion, *lba_size)))
            }
            Self::Pipeline { handle, .. } => handle.poll(most, &mut |done| {
                let Done { tag, memory, bytes, result } = done;
                sink(Answer { tag, buffer: memory.into_one(), bytes, result });
            }),
        }
    }

    #[inline]
    pub(super) fn inflight(&self) -> usize {
        match self {
            Self::Raw { queue, .. } => queue.inflight(),
            Self::Pipeline { handle, .. } => handle.inflight(),
        }
    }

    #[inline]
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::Raw { queue, .. } => queue.depth(),
            Self::Pipeline { depth, .. } => *depth,
        }
    }

    pub(super) fn counted(&self) -> Counted {
        match self {
            Self::Raw { queue, .. } => {
                Counted { queue: queue.counters(), pipeline: Statistics::default() }
            }
            Self::Pipeline { handle, .. } => {
                Counted { queue: handle.counters(), pipeline: handle.statistics() }
            }
        }
    }
}

impl Counted {
    /// Returns what was counted since `earlier`, for the result.
    pub(super) fn since(&self, earlier: &Self) -> QueueCounters {
        let queue = self.queue.since(&earlier.queue);
        let pipeline = self.pipeline.since(&earlier.pipeline);
        QueueCounters {
            polls: queue.polls,
            idle_polls: queue.idle_polls,
            completions: queue.completions,
            submissions: queue.submissions,
            sq_doorbells: queue.sq_doorbells,
            cq_doorbells: queue.cq_doorbells,
            queue_full: queue.queue_full + pipeline.full,
            splits: queue.splits + pipeline.splits,
            merges: pipeline.merges,
            bounces: pipeline.bounces,
        }
    }
}

/// Returns how many commands an I/O of `bytes` takes at most, wherever it begins.
fn commands(bytes: u64, transfer: ByteLen) -> u32 {
    u32::try_from(bytes.div_ceil(transfer.0.max(1)).max(1)).unwrap_or(u32::MAX)
}

#[inline]
fn submit_raw(queue: &mut dyn IoQueue, lba_size: LbaSize, ask: Ask) -> Result<(), Turned> {
    let lba = Lba(ask.offset >> lba_size.shift());
    let operation = match (ask.direction, ask.buffer) {
        (Some(Direction::Read), Some(buffer)) => {
            Operation::Read { lba, payload: Payload::One(buffer) }
        }
        (Some(Direction::Write), Some(buffer)) => {
            Operation::Write { lba, payload: Payload::One(buffer), fua: false }
        }
        (Some(_), _) => {
            Operation::Deallocate { lba, blocks: BlockCount(ask.len >> lba_size.shift()) }
        }
        (None, _) => Operation::Flush,
    };
    queue.submit(Request::new(operation, ask.tag)).map_err(turned_raw)
}

#[cold]
fn turned_raw(rejected: Rejected) -> Turned {
    let (request, error) = match rejected {
        Rejected::QueueFull(request) => (request, None),
        Rejected::Invalid(request, error) => (request, Some(error)),
    };
    Turned { buffer: buffer_of(request.operation).0, error }
}

#[inline]
fn answer_raw(completion: Completion, lba_size: LbaSize) -> Answer {
    let Completion { request: Request { operation, tag }, result } = completion;
    let (buffer, blocks) = buffer_of(operation);
    let bytes = match &buffer {
        Some(buffer) => buffer.len() as u64,
        None => blocks.0 << lba_size.shift(),
    };
    Answer { tag, buffer, bytes, result }
}

#[inline]
fn buffer_of(operation: Operation) -> (Option<DmaBuf>, BlockCount) {
    match operation {
        Operation::Read { payload, .. } | Operation::Write { payload, .. } => {
            (payload.into_one().ok(), BlockCount(0))
        }
        Operation::Deallocate { blocks, .. } => (None, blocks),
        _ => (None, BlockCount(0)),
    }
}

#[inline]
fn submit_pipeline(handle: &mut Handle<Identity>, ask: Ask) -> Result<(), Turned> {
    let Ask { direction, offset, len, buffer, tag } = ask;
    let action = match direction {
        Some(Direction::Read) => Action::Read,
        Some(Direction::Write) => Action::Write { durable: false },
        Some(Direction::Trim) => Action::Deallocate { len },
        None => Action::Flush,
    };
    let memory = buffer.map_or(Memory::Nothing, Memory::One);
    let io = Io { file: FileId(0), offset, action, memory, excess: 0, tag };
    handle.submit(io).map_err(turned_pipeline)
}

#[cold]
fn turned_pipeline(refused: Refused) -> Turned {
    let (io, error) = match refused {
        Refused::Full(io) => (io, None),
        Refused::Invalid(io, error) => (io, Some(error)),
    };
    Turned { buffer: io.memory.into_one(), error }
}
