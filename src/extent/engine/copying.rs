//! Checkpoints: the map is copied piece by piece while operations go on, then a superblock names the copy.
//!
//! ```text
//!   (waiting for changes to end, if quiet) -> copying -> journal up to here -> flush -> superblock
//! ```
//!
//! The rounds are in the room above. Invariant: what a copy says is durable before a superblock names it, and neither
//! the older checkpoint nor the journal behind it is given up before that superblock is.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use super::super::checkpoint::{self, End};
use super::super::layout::Layout;
use super::super::seal::{Header, Kind};
use super::super::shared::Shared;
use super::super::superblock::{CheckpointAt, Head, Superblock};
use super::{BUFFER_BYTES, Engine, Purpose, Round, fill};
use crate::block::Operation;
use crate::units::{FileId, Lba};

/// Bytes of a checkpoint after which the device flushes: with all of it in the cache the last flush would take long, and
/// whatever else is asked of the device would wait behind it.
const FLUSH_BYTES: usize = 1 << 20;

/// How far a checkpoint is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Changes that are under way have to end first.
    Waiting,
    /// The map is being copied.
    Copying,
    /// The journal has to reach this operation.
    Syncing(u64),
    Flushing,
    /// The superblock is being written, in so many requests.
    Switching(usize),
    /// It is written, and is being flushed.
    Settling,
}

#[derive(Debug)]
pub(super) struct Checkpoint {
    stage: Stage,
    /// Whether changes are kept out.
    pub(super) quiet: bool,
    /// Where the journal goes on from it.
    head: Head,
    at: CheckpointAt,
    ids: Vec<FileId>,
    next: usize,
    /// The unit from which on the extents of the current object are still to be copied.
    resume: Option<u64>,
    /// What was copied and not sent.
    stream: Vec<u8>,
    end: End,
    ended: bool,
    pub(super) inflight: usize,
    /// Bytes that were sent since the device last flushed.
    pub(super) unflushed: usize,
}

impl Engine {
    pub(super) fn step_checkpoint(&mut self, shared: &Shared) {
        let (used, room) = (self.journal_used(), shared.layout.journal_blocks());
        let due = used * 2 > room || self.wanted || self.stuck;
        if self.stuck && self.checkpoint.as_ref().is_some_and(|run| !run.quiet) {
            // It cannot end, since the journal cannot grow any more.
            self.checkpoint =
                self.checkpoint.take().filter(|run| run.inflight > 0 || run.is_switching());
        }
        if due && self.checkpoint.is_none() {
            self.begin_checkpoint(shared);
        }
        let gated = self.stuck || (used * 8 > room * 7 && self.checkpoint.is_some());
        shared.gate.store(gated, Ordering::SeqCst);
        let Some(run) = &self.checkpoint else { return };
        match run.stage {
            Stage::Waiting => self.copy_when_quiet(shared),
            Stage::Copying => self.copy(shared),
            Stage::Syncing(lsn) if shared.durable.load(Ordering::Acquire) >= lsn => {
                self.flush_checkpoint(shared);
            }
            _ => {}
        }
    }

    fn begin_checkpoint(&mut self, shared: &Shared) {
        let before = self.superblock.checkpoint;
        let at = CheckpointAt {
            region: 1 - before.region,
            sequence: before.sequence + 1,
            blocks: 0,
            bytes: 0,
            crc: 0,
        };
        let quiet = self.stuck;
        // Read before the objects are: what is created from here on is in the journal behind it.
        let head = self.head;
        let mut run = Checkpoint {
            stage: if quiet { Stage::Waiting } else { Stage::Copying },
            quiet,
            head,
            at,
            ids: Vec::new(),
            next: 0,
            resume: None,
            stream: Vec::new(),
            end: End::default(),
            ended: false,
            inflight: 0,
            unflushed: 0,
        };
        if !quiet {
            run.ids = shared.ids();
        }
        self.wanted = false;
        self.checkpoint = Some(run);
    }

    /// Begins to copy when no change is under way and none can begin.
    fn copy_when_quiet(&mut self, shared: &Shared) {
        let between = matches!(self.round, Round::Idle | Round::Ready { .. });
        if !between || shared.changes.load(Ordering::SeqCst) > 0 {
            return;
        }
        let lsn = shared.log().next();
        let head = Head { lsn, ..self.head };
        let run = self.run();
        run.ids = shared.ids();
        run.head = head;
        run.stage = Stage::Copying;
    }

    /// Copies a piece of the map, and sends it.
    fn copy(&mut self, shared: &Shared) {
        let layout = &shared.layout;
        let piece = (BUFFER_BYTES / layout.block()) * layout.payload();
        let Some(run) = &mut self.checkpoint else { return };
        if run.ended && run.stream.is_empty() {
            if run.inflight == 0 {
                self.copied(shared);
            }
            return;
        }
        if self.has_cache && run.unflushed >= FLUSH_BYTES {
            if run.inflight == 0 {
                run.inflight = 1;
                self.submit(shared, Operation::Flush, Purpose::PieceFlush);
            }
            return;
        }
        while run.stream.len() < piece && !run.ended {
            run.copy_more(shared);
        }
        if run.inflight >= 2 {
            return;
        }
        let len = run.stream.len().min(piece);
        let blocks = len.div_ceil(layout.payload()) as u64;
        if run.at.blocks + blocks > layout.checkpoint_blocks {
            self.overflowed(shared);
            return;
        }
        self.send_piece(shared, len);
    }

    /// More was copied than there is room for: possible where much was moved about meanwhile, and never while changes
    /// are kept out.
    #[cold]
    fn overflowed(&mut self, shared: &Shared) {
        let run = self.checkpoint.take().expect("it has just overflowed");
        if run.quiet {
            shared.poison_with("the map has outgrown its checkpoint".into());
        }
        if run.inflight > 0 {
            self.checkpoint = Some(run);
        }
        self.stuck = true;
    }

    fn send_piece(&mut self, shared: &Shared, len: usize) {
        let layout = &shared.layout;
        let mut buffer = self.buffer();
        let epoch = self.superblock.epoch;
        let run = self.checkpoint.as_mut().expect("the caller has one");
        let first = layout.checkpoints[run.at.region] + run.at.blocks;
        buffer.set_len(len.div_ceil(layout.payload()) * layout.block());
        let pieces = run.stream[..len].chunks(layout.payload());
        for (slot, piece) in buffer.chunks_exact_mut(layout.block()).zip(pieces) {
            run.at.crc = crc32c::crc32c_append(run.at.crc, piece);
            let header = Header {
                kind: Kind::Checkpoint,
                store: shared.uuid,
                place: Lba(layout.checkpoints[run.at.region] + run.at.blocks),
                epoch,
                sequence: run.at.sequence,
                index: run.at.blocks as u32,
                count: layout.checkpoint_blocks as u32,
                length: piece.len() as u32,
                whole: run.at.crc,
            };
            fill(slot, piece, &header);
            run.at.blocks += 1;
        }
        run.at.bytes += len as u64;
        run.stream.drain(..len);
        run.inflight += 1;
        run.unflushed += buffer.len();
        self.write(shared, Lba(first), buffer, false, Purpose::Piece);
    }

    /// The map is copied: what it says has to be in the journal, or nothing was done since.
    fn copied(&mut self, shared: &Shared) {
        if self.run().quiet {
            self.flush_checkpoint(shared);
            return;
        }
        let mut log = shared.log();
        let lsn = log.next();
        log.want(lsn);
        drop(log);
        self.run().stage = Stage::Syncing(lsn);
    }

    fn flush_checkpoint(&mut self, shared: &Shared) {
        self.run().stage = Stage::Flushing;
        if self.has_cache {
            self.submit(shared, Operation::Flush, Purpose::CheckpointFlush);
        } else {
            self.switch(shared);
        }
    }

    /// Writes the superblock that names the new checkpoint.
    pub(super) fn switch(&mut self, shared: &Shared) {
        let run = self.checkpoint.as_ref().expect("it was just flushed");
        let superblock = Superblock {
            version: self.superblock.version + 1,
            checkpoint: run.at,
            head: run.head,
            // Everything before it is durable: a journal that ends earlier has lost a record.
            epoch_record: self.head.record,
            ..self.superblock.clone()
        };
        let copies = superblock.copies();
        for copy in copies {
            let mut buffer = self.buffer();
            buffer.set_len(shared.layout.block());
            superblock.encode(copy, &mut buffer);
            let lba = Layout::copy(shared.layout.block_shift, copy);
            self.write(shared, lba, buffer, true, Purpose::Superblock);
        }
        self.run().stage = Stage::Switching(copies.len());
    }

    pub(super) fn superblock_written(&mut self, shared: &Shared) {
        let flushes = self.flushes_after();
        let run = self.run();
        match run.stage {
            Stage::Switching(1) if flushes => {
                run.stage = Stage::Settling;
                self.submit(shared, Operation::Flush, Purpose::SuperblockFlush);
            }
            Stage::Switching(1) => self.switched(shared),
            Stage::Switching(left) => run.stage = Stage::Switching(left - 1),
            _ => unreachable!("a superblock was in flight"),
        }
    }

    /// The new superblock is durable: what only the old one needed may be used again.
    pub(super) fn switched(&mut self, shared: &Shared) {
        let run = self.checkpoint.take().expect("its superblock was in flight");
        self.superblock.version += 1;
        self.superblock.checkpoint = run.at;
        self.superblock.head = run.head;
        self.counts.checkpoints += 1;
        if run.quiet {
            // Nothing was done since: the checkpoint has what the journal had no room for.
            shared.log().clear();
            shared.backlog.store(0, Ordering::Relaxed);
            self.head.lsn = run.head.lsn;
            self.flushed = run.head.lsn;
            shared.durable.store(run.head.lsn, Ordering::Release);
            self.counts.quiet_checkpoints += 1;
        }
        // There is room again; the next record says if it is not enough.
        self.stuck = false;
        shared.gate.store(false, Ordering::SeqCst);
    }
}

impl Checkpoint {
    fn is_switching(&self) -> bool {
        matches!(self.stage, Stage::Flushing | Stage::Switching(_) | Stage::Settling)
    }

    /// Copies an object, or some of its extents, to the stream.
    fn copy_more(&mut self, shared: &Shared) {
        let Some(id) = self.ids.get(self.next).copied() else {
            self.end.next = shared.next_id.load(Ordering::Acquire);
            checkpoint::encode_end(&mut self.stream, self.end);
            self.ended = true;
            return;
        };
        // An object that is gone was removed since the checkpoint began, and the journal says so.
        if let Some(object) = shared.find(id) {
            let state = object.read();
            if self.resume.is_none() {
                checkpoint::encode_object(&mut self.stream, id, &state);
                self.end.objects += 1;
            }
            let from = self.resume.unwrap_or(0);
            let (count, more) = checkpoint::encode_extents(&mut self.stream, id, &state.tree, from);
            self.end.extents += count;
            self.resume = more;
        } else {
            self.resume = None;
        }
        self.next += usize::from(self.resume.is_none());
    }
}
