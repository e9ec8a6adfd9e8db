//! The engine: brings operations to the journal and the map to a checkpoint, a step with every poll.
//!
//! ```text
//!   round        flush, if data may be in the cache -> records, one after the other, through the cache -> told
//!   checkpoint   copy the map, a piece with each step -> journal up to here -> flush -> superblock -> room
//!   reclaim      what was freed durably, and nobody uses any more, is free
//! ```
//!
//! It owns a queue of its own and no thread: whoever polls lends it a moment, if nobody else does just then. One
//! record is in flight at a time, so that at a crash at most one is torn.
//!
//! Where the journal is full although a checkpoint was begun in time, changes are kept out, and a *quiet* checkpoint
//! takes everything that was done, also what is not in the journal: then the journal need not grow.
//!
//! Invariant: `durable` rises only after the device has said that the record is on the medium, and room in the
//! journal or a checkpoint's region is used again only after the superblock that gives it up is.
#![forbid(unsafe_code)]

mod copying;

use std::sync::atomic::Ordering;
use std::time::Duration;

use copying::Checkpoint;

use super::error::StoreError;
use super::io::memory;
use super::record::{PREAMBLE_BYTES, Preamble};
use super::seal::{self, HEADER_BYTES, Header, Kind};
use super::shared::Shared;
use super::superblock::{Head, Superblock};
use crate::block::{
    BlockDevice, BlockError, Completion, IoQueue, Operation, Payload, QueueOptions, Request,
};
use crate::dma::{Access, DmaBuf};
use crate::units::Lba;

/// Requests of the engine in flight at most.
const DEPTH: u32 = 8;

/// Bytes of a buffer: a piece of a checkpoint, or a record.
const BUFFER_BYTES: usize = 128 << 10;

/// Buffers: two pieces of a checkpoint, two for a record that goes round the end, two for the superblock.
const BUFFERS: usize = 6;

/// Objects that are looked at for freed space in one step.
const RECLAIM_AT_ONCE: usize = 64;

/// What a request of the engine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    RoundFlush = 0,
    Record = 1,
    RecordFlush = 2,
    Piece = 3,
    CheckpointFlush = 4,
    Superblock = 5,
    SuperblockFlush = 6,
    PieceFlush = 7,
}

impl Purpose {
    const ALL: [Self; 8] = [
        Self::RoundFlush,
        Self::Record,
        Self::RecordFlush,
        Self::Piece,
        Self::CheckpointFlush,
        Self::Superblock,
        Self::SuperblockFlush,
        Self::PieceFlush,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::RoundFlush => "the flush of data",
            Self::Record => "the write of a journal record",
            Self::RecordFlush => "the flush of a journal record",
            Self::Piece => "the write of a checkpoint",
            Self::CheckpointFlush | Self::PieceFlush => "the flush of a checkpoint",
            Self::Superblock => "the write of a superblock",
            Self::SuperblockFlush => "the flush of a superblock",
        }
    }
}

/// How far a round is: what was done before it began is durable when it ends.
#[derive(Debug)]
enum Round {
    Idle,
    /// The device flushes; then operations below `end` may go to the journal.
    Flushing {
        number: u64,
        end: u64,
    },
    /// The next record may be written.
    Ready {
        number: u64,
        end: u64,
    },
    /// A record is on its way, in `left` requests.
    Writing {
        number: u64,
        end: u64,
        left: usize,
        next: Head,
    },
    /// It is written, and is being flushed.
    Settling {
        number: u64,
        end: u64,
        next: Head,
    },
}

/// What the engine has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalCounts {
    /// Rounds.
    pub rounds: u64,
    /// Flushes of data before records.
    pub flushes: u64,
    /// Records.
    pub records: u64,
    /// Operations in them.
    pub operations: u64,
    /// Blocks of them.
    pub blocks: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Of those, such that had to keep changes out.
    pub quiet_checkpoints: u64,
}

pub(super) struct Engine {
    queue: Box<dyn IoQueue>,
    buffers: Vec<DmaBuf>,
    inflight: usize,
    /// What came back and was not looked at yet.
    returned: Vec<Completion>,
    has_cache: bool,
    has_fua: bool,
    superblock: Superblock,
    head: Head,
    round: Round,
    /// The data of operations below this is on the medium.
    flushed: u64,
    checkpoint: Option<Checkpoint>,
    wanted: bool,
    /// Whether the next record does not fit the journal.
    stuck: bool,
    counts: JournalCounts,
}

impl Engine {
    pub(super) fn open(
        device: &dyn BlockDevice,
        superblock: Superblock,
        head: Head,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let options = QueueOptions { depth: DEPTH.min(device.max_depth()), timeout };
        let queue = device.open_queue(&options).map_err(StoreError::device("opening a queue"))?;
        let buffer = |_| {
            let buffer = device.dma().buffer(BUFFER_BYTES, Access::Both);
            buffer.map_err(|error| StoreError::device("taking memory")(memory(error)))
        };
        let geometry = device.geometry();
        Ok(Self {
            queue,
            buffers: (0..BUFFERS).map(buffer).collect::<Result<_, _>>()?,
            inflight: 0,
            returned: Vec::with_capacity(DEPTH as usize),
            has_cache: geometry.volatile_write_cache,
            has_fua: geometry.operations.fua,
            superblock,
            head,
            round: Round::Idle,
            flushed: 0,
            checkpoint: None,
            wanted: false,
            stuck: false,
            counts: JournalCounts::default(),
        })
    }

    pub(super) fn counts(&self) -> JournalCounts {
        self.counts
    }

    pub(super) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Returns the blocks of the journal that a crash now would leave to be replayed.
    pub(super) fn journal_used(&self) -> u64 {
        self.head.position - self.superblock.head.position
    }

    /// Asks for a checkpoint.
    pub(super) fn want_checkpoint(&mut self) {
        self.wanted = true;
    }

    /// Says whether a checkpoint is under way.
    pub(super) fn is_copying(&self) -> bool {
        self.checkpoint.is_some()
    }

    /// Returns the sequence of the newest checkpoint.
    pub(super) fn checkpoints(&self) -> u64 {
        self.superblock.checkpoint.sequence
    }

    /// Takes one step of everything.
    pub(super) fn step(&mut self, shared: &Shared) {
        self.take_in(shared);
        if shared.poison().is_none() {
            self.step_round(shared);
            self.step_checkpoint(shared);
        }
        self.queue.ring();
        self.take_in(shared);
        self.reclaim(shared);
        self.rest(shared);
    }

    /// Says whether there is anything left to do, so that polls need not ask.
    fn rest(&mut self, shared: &Shared) {
        let log = shared.log();
        let idle = self.inflight == 0
            && (matches!(self.round, Round::Idle) && self.checkpoint.is_none() && !self.wanted
                || shared.poison().is_some());
        let quiet = idle && log.is_empty() && log.asked <= log.begun && shared.leaving_units() == 0;
        shared.work.store(!quiet, Ordering::Release);
    }

    fn take_in(&mut self, shared: &Shared) {
        if self.inflight == 0 {
            return;
        }
        let Self { queue, returned, .. } = self;
        self.inflight -= queue.poll(usize::MAX, &mut |completion| returned.push(completion));
        while let Some(Completion { request, result }) = self.returned.pop() {
            let purpose = Purpose::ALL[request.tag as usize];
            let buffer = request.into_payload().and_then(|payload| payload.into_one().ok());
            self.buffers.extend(buffer);
            match result {
                Ok(()) => self.done(shared, purpose),
                Err(error) => self.failed(shared, purpose, &error),
            }
        }
    }

    /// A request of the engine has failed: nobody can say what is durable any more.
    #[cold]
    fn failed(&mut self, shared: &Shared, purpose: Purpose, error: &BlockError) {
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.inflight = checkpoint.inflight.saturating_sub(1);
        }
        shared.poison_with(format!("{} failed: {error}", purpose.text()));
    }

    fn done(&mut self, shared: &Shared, purpose: Purpose) {
        match purpose {
            Purpose::RoundFlush => self.data_flushed(),
            Purpose::Record => self.record_written(shared),
            Purpose::RecordFlush => self.record_durable(shared),
            Purpose::Piece => self.run().inflight -= 1,
            Purpose::PieceFlush => {
                let run = self.run();
                (run.inflight, run.unflushed) = (run.inflight - 1, 0);
            }
            Purpose::CheckpointFlush => self.switch(shared),
            Purpose::Superblock => self.superblock_written(shared),
            Purpose::SuperblockFlush => self.switched(shared),
        }
    }

    fn run(&mut self) -> &mut Checkpoint {
        self.checkpoint.as_mut().expect("a request of it was in flight")
    }

    fn submit(&mut self, shared: &Shared, operation: Operation, purpose: Purpose) {
        match self.queue.submit(Request::new(operation, purpose as u64)) {
            Ok(()) => self.inflight += 1,
            Err(rejected) => {
                let text = match rejected {
                    crate::block::Rejected::QueueFull(_) => "the engine's queue is full".to_owned(),
                    crate::block::Rejected::Invalid(_, error) => error.to_string(),
                };
                shared.poison_with(format!("{} cannot be sent: {text}", purpose.text()));
            }
        }
    }

    fn write(&mut self, shared: &Shared, lba: Lba, buffer: DmaBuf, fua: bool, purpose: Purpose) {
        let fua = fua && self.has_cache && self.has_fua;
        let payload = Payload::One(buffer);
        self.submit(shared, Operation::Write { lba, payload, fua }, purpose);
    }

    /// Whether what was written has to be flushed for want of a way through the cache.
    fn flushes_after(&self) -> bool {
        self.has_cache && !self.has_fua
    }

    fn buffer(&mut self) -> DmaBuf {
        self.buffers.pop().expect("there is one for everything that may be in flight")
    }

    // Rounds.

    fn step_round(&mut self, shared: &Shared) {
        if self.checkpoint.as_ref().is_some_and(|run| run.quiet) {
            // What waits is in the checkpoint, and the journal stays as that has found it.
            return;
        }
        if matches!(self.round, Round::Idle) {
            self.begin_round(shared);
        }
        if let Round::Ready { number, end } = self.round {
            self.write_record(shared, number, end);
        }
    }

    fn begin_round(&mut self, shared: &Shared) {
        let mut log = shared.log();
        // Looked at under the lock: whoever defers a time asks for a round after that, and gets this one or the next.
        while shared.has_deferred() {
            drop(log);
            shared.record_deferred();
            log = shared.log();
        }
        let asked = log.asked > log.begun;
        let full = log.pending_bytes() >= self.record_payload_max(shared) / 2;
        let old = || log.since().is_some_and(|since| since.elapsed() >= shared.commit_interval);
        if !(asked || log.is_wanted() || full || old()) {
            return;
        }
        log.begun += 1;
        let (number, end) = (log.begun, log.next());
        let unflushed = log.unflushed() > self.flushed;
        drop(log);
        self.counts.rounds += 1;
        // What was written before somebody asked was completed before this flush is sent.
        let dirty = asked && shared.dirty.swap(false, Ordering::SeqCst);
        if self.has_cache && (dirty || unflushed) {
            self.round = Round::Flushing { number, end };
            self.counts.flushes += 1;
            self.submit(shared, Operation::Flush, Purpose::RoundFlush);
        } else {
            self.flushed = end;
            self.round = Round::Ready { number, end };
        }
    }

    fn data_flushed(&mut self) {
        let Round::Flushing { number, end } = self.round else {
            unreachable!("a flush was in flight")
        };
        self.flushed = end;
        self.round = Round::Ready { number, end };
    }

    fn record_payload_max(&self, shared: &Shared) -> usize {
        let layout = &shared.layout;
        layout.payload() * layout.record_blocks_max() as usize - PREAMBLE_BYTES
    }

    /// Writes the next record of a round, or ends the round.
    fn write_record(&mut self, shared: &Shared, number: u64, end: u64) {
        let most = self.record_payload_max(shared);
        let layout = &shared.layout;
        let mut log = shared.log();
        let bytes = log.next_group_bytes(most, end);
        if bytes == 0 {
            // A round that ended before an operation that fits no record would be told as durable without it.
            assert!(log.first() >= end, "a record holds any one operation");
            drop(log);
            self.round = Round::Idle;
            shared.rounds.fetch_max(number, Ordering::AcqRel);
            return;
        }
        let blocks = (bytes + PREAMBLE_BYTES).div_ceil(layout.payload()) as u64;
        if self.journal_used() + blocks > layout.journal_blocks() {
            self.stuck = true;
            return;
        }
        let group = log.take(most, end);
        shared.backlog.store(log.pending_bytes(), Ordering::Relaxed);
        drop(log);
        assert_eq!(group.lsn, self.head.lsn, "operations go to the journal in order");
        let preamble = Preamble { chain: self.head.chain, count: group.count, lsn: group.lsn };
        let payload = [&preamble.encode()[..], &group.bytes].concat();
        let whole = crc32c::crc32c(&payload);
        let next = Head {
            position: self.head.position + blocks,
            record: self.head.record + 1,
            lsn: group.lsn + u64::from(group.count),
            chain: whole,
        };
        self.counts.records += 1;
        self.counts.operations += u64::from(group.count);
        self.counts.blocks += blocks;
        let left = self.send_record(shared, &payload, whole, blocks);
        self.round = Round::Writing { number, end, left, next };
    }

    /// Sends the blocks of a record, in two requests if it goes round the end; returns how many.
    fn send_record(&mut self, shared: &Shared, payload: &[u8], whole: u32, blocks: u64) -> usize {
        let layout = &shared.layout;
        let block = layout.block();
        let before_end = layout.journal_blocks() - self.head.position % layout.journal_blocks();
        let parts = [(0, blocks.min(before_end)), (blocks.min(before_end), blocks)];
        let mut requests = 0;
        for (from, to) in parts.into_iter().filter(|(from, to)| from < to) {
            let mut buffer = self.buffer();
            buffer.set_len((to - from) as usize * block);
            for (slot, index) in buffer.chunks_exact_mut(block).zip(from..to) {
                let start = index as usize * layout.payload();
                let piece = &payload[start..payload.len().min(start + layout.payload())];
                let header = Header {
                    kind: Kind::Journal,
                    store: shared.uuid,
                    place: layout.journal_lba(self.head.position + index),
                    epoch: self.superblock.epoch,
                    sequence: self.head.record,
                    index: index as u32,
                    count: blocks as u32,
                    length: piece.len() as u32,
                    whole,
                };
                fill(slot, piece, &header);
            }
            let lba = layout.journal_lba(self.head.position + from);
            self.write(shared, lba, buffer, true, Purpose::Record);
            requests += 1;
        }
        requests
    }

    fn record_written(&mut self, shared: &Shared) {
        let Round::Writing { number, end, left, next } = self.round else {
            unreachable!("a record was in flight")
        };
        if left > 1 {
            self.round = Round::Writing { number, end, left: left - 1, next };
            return;
        }
        self.round = Round::Settling { number, end, next };
        if self.flushes_after() {
            self.submit(shared, Operation::Flush, Purpose::RecordFlush);
        } else {
            self.record_durable(shared);
        }
    }

    fn record_durable(&mut self, shared: &Shared) {
        let Round::Settling { number, end, next } = self.round else {
            unreachable!("a record was being settled")
        };
        self.head = next;
        shared.durable.store(next.lsn, Ordering::Release);
        self.round = Round::Ready { number, end };
        // What is left of the round need not wait for the next step.
        if shared.poison().is_none() {
            self.write_record(shared, number, end);
        }
    }

    // Space.

    fn reclaim(&mut self, shared: &Shared) {
        if shared.leaving_units() > 0 {
            shared.reclaim(RECLAIM_AT_ONCE);
        }
    }
}

/// Fills a block with a piece of payload, and seals it.
fn fill(block: &mut [u8], piece: &[u8], header: &Header) {
    let (payload, rest) = block[HEADER_BYTES..].split_at_mut(piece.len());
    payload.copy_from_slice(piece);
    rest.fill(0);
    seal::seal(block, header);
}
