//! What a worker sends its I/O through: the direct-I/O pipeline, or a bare queue of the device.
//!
//! The pipeline runs over a whole device or over an object of a store. All take one buffer at a place and give it back. The difference between the two, in one run
//! after the other, is what the pipeline costs.
#![forbid(unsafe_code)]

use super::job::Job;
use super::result::QueueCounters;
use super::target::Target;
use super::worker::WorkerError;
use crate::block::{
    BlockError, Completion, Counters, Durability, Identity, IoQueue, MapBlocks, Operation, Payload,
    QueueOptions, Rejected, Request,
};
use crate::dma::DmaBuf;
use crate::units::{BlockCount, ByteLen, FileId, Lba, LbaSize};
use crate::volume::{
    self, Action, Done, Handle, Io, Memory, OpenError, Refused, Statistics, Store, Volume,
};

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
    /// The same over an object of a store.
    Object { handle: Box<Handle<Store>>, file: FileId, depth: usize },
}

/// What has been counted so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    queue: Counters,
    pipeline: Statistics,
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
    pub(super) fn open(job: &Job, target: &Target, route: Route) -> Result<Self, WorkerError> {
        let depth = job.iodepth as usize;
        match target {
            Target::Device(volume) if route.raw_queue => {
                let options = QueueOptions { depth: job.iodepth, ..QueueOptions::default() };
                let queue = volume.device().open_queue(&options)?;
                Ok(Self::Raw { queue, lba_size: volume.geometry().lba_size })
            }
            Target::Device(volume) => {
                Ok(Self::Pipeline { handle: Box::new(pipeline(job, volume, route)?), depth })
            }
            Target::Object { volume, file, .. } => {
                let handle = Box::new(pipeline(job, volume, route)?);
                Ok(Self::Object { handle, file: *file, depth })
            }
        }
    }

    /// Takes a read or a write of all of `buffer`, without telling the device yet.
    #[inline(always)]
    pub(super) fn transfer(
        &mut self,
        write: bool,
        offset: u64,
        buffer: DmaBuf,
        tag: u64,
    ) -> Result<(), Turned> {
        match self {
            Self::Raw { queue, lba_size } => {
                let (lba, payload) = (Lba(offset >> lba_size.shift()), Payload::One(buffer));
                let operation = if write {
                    Operation::Write { lba, payload, fua: false }
                } else {
                    Operation::Read { lba, payload }
                };
                queue.submit(Request::new(operation, tag)).map_err(turned_raw)
            }
            Self::Pipeline { handle, .. } => {
                transfer_through(handle, FileId(0), write, offset, buffer, tag)
            }
            Self::Object { handle, file, .. } => {
                transfer_through(handle, *file, write, offset, buffer, tag)
            }
        }
    }

    /// Takes a request to give blocks back.
    pub(super) fn deallocate(&mut self, offset: u64, len: u64, tag: u64) -> Result<(), Turned> {
        match self {
            Self::Raw { queue, lba_size } => {
                let (lba, blocks) = (offset >> lba_size.shift(), len >> lba_size.shift());
                let (lba, blocks) = (Lba(lba), BlockCount(blocks));
                let request = Request::new(Operation::Deallocate { lba, blocks }, tag);
                queue.submit(request).map_err(turned_raw)
            }
            Self::Pipeline { handle, .. } => {
                let io = Io::bare(offset, Action::Deallocate { len }, tag);
                handle.submit(io).map_err(turned_pipeline)
            }
            Self::Object { handle, file, .. } => {
                let io = Io::bare(offset, Action::Deallocate { len }, tag).of(*file);
                handle.submit(io).map_err(turned_pipeline)
            }
        }
    }

    /// Takes a flush.
    pub(super) fn flush(&mut self, tag: u64) -> Result<(), Turned> {
        match self {
            Self::Raw { queue, .. } => {
                queue.submit(Request::new(Operation::Flush, tag)).map_err(turned_raw)
            }
            Self::Pipeline { handle, .. } => {
                handle.submit(Io::bare(0, Action::Flush, tag)).map_err(turned_pipeline)
            }
            Self::Object { handle, file, .. } => {
                let io = Io::bare(0, Action::Flush, tag).of(*file);
                handle.submit(io).map_err(turned_pipeline)
            }
        }
    }

    #[inline]
    pub(super) fn ring(&mut self) {
        match self {
            Self::Raw { queue, .. } => queue.ring(),
            Self::Pipeline { handle, .. } => handle.ring(),
            Self::Object { handle, .. } => handle.ring(),
        }
    }

    /// Hands at most `most` I/Os that came back to `sink`, and returns how many.
    #[inline(always)]
    pub(super) fn poll(&mut self, most: usize, mut sink: impl FnMut(Answer)) -> usize {
        match self {
            Self::Raw { queue, lba_size } => {
                queue.poll(most, &mut |completion| sink(answer_raw(completion, *lba_size)))
            }
            Self::Pipeline { handle, .. } => {
                handle.poll(most, &mut |done| sink(answer_pipeline(done)))
            }
            Self::Object { handle, .. } => {
                handle.poll(most, &mut |done| sink(answer_pipeline(done)))
            }
        }
    }

    #[inline]
    pub(super) fn inflight(&self) -> usize {
        match self {
            Self::Raw { queue, .. } => queue.inflight(),
            Self::Pipeline { handle, .. } => handle.inflight(),
            Self::Object { handle, .. } => handle.inflight(),
        }
    }

    #[inline]
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::Raw { queue, .. } => queue.depth(),
            Self::Pipeline { depth, .. } | Self::Object { depth, .. } => *depth,
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
            Self::Object { handle, .. } => {
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

/// Opens a handle as deep as the job wants it.
fn pipeline<M: MapBlocks + Clone>(
    job: &Job,
    volume: &Volume<M>,
    route: Route,
) -> Result<Handle<M>, OpenError> {
    // An I/O that takes several commands has all of them in flight, as on the kernel's path.
    let transfer = volume.geometry().max_transfer;
    let share = commands(u64::from(job.max_block_size()), transfer);
    let depth = job.iodepth.saturating_mul(share).min(volume.device().max_depth());
    let options = volume::Options {
        queue: QueueOptions { depth, ..QueueOptions::default() },
        requests: Some(job.iodepth),
        share: Some(share),
        merge: route.merge,
        ..volume::Options::default()
    };
    volume.handle(&options)
}

#[inline(always)]
fn transfer_through<M: MapBlocks>(
    handle: &mut Handle<M>,
    file: FileId,
    write: bool,
    offset: u64,
    buffer: DmaBuf,
    tag: u64,
) -> Result<(), Turned> {
    let action = if write { Action::Write { durability: Durability::Lazy } } else { Action::Read };
    let io = Io { file, offset, action, memory: Memory::One(buffer), excess: 0, tag };
    handle.submit(io).map_err(turned_pipeline)
}

#[inline(always)]
fn answer_pipeline(done: Done) -> Answer {
    let Done { tag, memory, bytes, result } = done;
    Answer { tag, buffer: memory.into_one(), bytes, result }
}

/// Returns how many commands an I/O of `bytes` takes at most, wherever it begins.
fn commands(bytes: u64, transfer: ByteLen) -> u32 {
    u32::try_from(bytes.div_ceil(transfer.0.max(1)).max(1)).unwrap_or(u32::MAX)
}

#[cold]
fn turned_raw(rejected: Rejected) -> Turned {
    let (request, error) = match rejected {
        Rejected::QueueFull(request) => (request, None),
        Rejected::Invalid(request, error) => (request, Some(error)),
    };
    let buffer = request.into_payload().and_then(|payload| payload.into_one().ok());
    Turned { buffer, error }
}

#[inline(always)]
fn answer_raw(completion: Completion, lba_size: LbaSize) -> Answer {
    let Completion { request: Request { operation, tag }, result } = completion;
    match operation {
        Operation::Read { payload: Payload::One(buffer), .. }
        | Operation::Write { payload: Payload::One(buffer), .. } => {
            let bytes = buffer.len() as u64;
            Answer { tag, buffer: Some(buffer), bytes, result }
        }
        Operation::Deallocate { blocks, .. } => {
            Answer { tag, buffer: None, bytes: blocks.0 << lba_size.shift(), result }
        }
        _ => Answer { tag, buffer: None, bytes: 0, result },
    }
}

#[cold]
fn turned_pipeline(refused: Refused) -> Turned {
    let (io, error) = match refused {
        Refused::Full(io) => (io, None),
        Refused::Invalid(io, error) => (io, Some(error)),
    };
    Turned { buffer: io.memory.into_one(), error }
}
