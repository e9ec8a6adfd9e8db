//! Completion: commands come back, records count down, requests are answered.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::cursor::Cursor;
use super::memory::Memory;
use super::pipeline::{DIRECT, Tally, UNRECORDED};
use super::request::{Action, Done, Io};
use super::send::{MERGED, STREAM_BITS};
use super::walker::Walker;
use crate::block::{
    BlockError, Cause, Committed, Completion, MapBlocks, Mark, Operation, Payload, Request,
};
use crate::units::{BlockCount, Lba};

impl<M: MapBlocks> Walker<M> {
    /// Takes a command back, and hands what it finishes to `sink`, as far as there is room.
    #[inline(always)]
    pub(super) fn complete(
        &mut self,
        completion: Completion,
        tally: &mut Tally<'_>,
        sink: &mut impl FnMut(Done),
    ) {
        let Completion { request: Request { operation, tag }, result } = completion;
        if tag & DIRECT != 0 && tally.count() {
            match self.complete_plain(operation, tag, result) {
                (done, Committed::Now) => sink(done),
                (done, Committed::Later(mark)) => {
                    tally.uncount();
                    self.settle_later(mark, done);
                }
            }
            return;
        }
        self.take_in(Completion { request: Request { operation, tag }, result });
        self.deliver(tally, sink);
    }

    /// Hands over what is finished already, as far as there is room.
    pub(super) fn deliver(&mut self, tally: &mut Tally<'_>, sink: &mut impl FnMut(Done)) {
        while tally.has_room() {
            let Some(done) = self.ready.pop_front() else { break };
            tally.count();
            sink(done);
        }
    }

    /// Returns the tag of a plain request's command, and keeps what will be asked for with it.
    #[inline(always)]
    pub(super) fn direct_tag(&mut self, tag: u64, guard: M::Guard) -> u64 {
        if self.map.blank_guard().is_some() && tag < UNRECORDED {
            return DIRECT | UNRECORDED | tag;
        }
        let index = self.records.take().expect("there is one for every request");
        let record = self.records.get_mut(index);
        record.tag = tag;
        record.guard = Some(guard);
        DIRECT | u64::from(index)
    }

    /// Returns the caller's tag and the guard of a plain request whose command is back.
    #[inline(always)]
    pub(super) fn direct_end(&mut self, tag: u64) -> (u64, Option<M::Guard>) {
        if tag & UNRECORDED != 0 {
            return (tag & (UNRECORDED - 1), self.map.blank_guard());
        }
        let index = tag as u16;
        let record = self.records.get_mut(index);
        let kept = (record.tag, record.guard.take());
        self.records.give_back(index);
        kept
    }

    #[inline(always)]
    fn complete_plain(
        &mut self,
        operation: Operation,
        tag: u64,
        result: Result<(), BlockError>,
    ) -> (Done, Committed) {
        let (tag, guard) = self.direct_end(tag);
        let (payload, moved, first) = match operation {
            Operation::Read { payload, lba } => {
                (payload, &mut self.statistics.bytes_read, Some(lba))
            }
            Operation::Write { payload, .. } => (payload, &mut self.statistics.bytes_written, None),
            _ => unreachable!("a plain request reads or writes"),
        };
        let Payload::One(buffer) = payload else { unreachable!("and has one buffer") };
        if let Err(error) = result {
            // The guard goes here: what the map made for the request goes back.
            let bytes = self.good_bytes(first, &error);
            let done = Done { tag, memory: Memory::One(buffer), bytes, result: Err(error) };
            return (done, Committed::Now);
        }
        let bytes = buffer.len() as u64;
        *moved += bytes;
        let guard = guard.expect("a request under way has its guard");
        let (committed, result) = outcome(self.map.commit(guard, bytes));
        (Done { tag, memory: Memory::One(buffer), bytes, result }, committed)
    }

    /// Keeps the answer of a durable request until the map's own record of it is durable (rule 28).
    #[cold]
    pub(super) fn settle_later(&mut self, mark: Mark, done: Done) {
        self.settling.push_back(Settling { mark, done, since: Instant::now() });
    }

    /// Answers the requests whose marks are settled by now, or never will be.
    pub(super) fn look_for_settled(&mut self, timeout: Duration) {
        for _ in 0..self.settling.len() {
            let Some(Settling { mark, done, since }) = self.settling.pop_front() else { break };
            let result = match self.map.settled(mark) {
                Ok(true) => Ok(()),
                Ok(false) if since.elapsed() < timeout => {
                    self.settling.push_back(Settling { mark, done, since });
                    continue;
                }
                Ok(false) => {
                    let what = "the record of a durable request".into();
                    Err(Cause::Timeout { what, after: timeout }.into())
                }
                Err(error) => Err(error),
            };
            self.ready.push_back(Done { result, ..done });
        }
    }

    /// Answers a request whose commands are back.
    fn answered(&mut self, (done, committed): (Done, Committed)) {
        match committed {
            Committed::Now => self.ready.push_back(done),
            Committed::Later(mark) => self.settle_later(mark, done),
        }
    }

    /// Refuses a request that was taken already.
    #[cold]
    pub(super) fn refuse(&mut self, io: Io, error: BlockError) {
        let Io { tag, memory, .. } = io;
        self.ready.push_back(Done { tag, memory, bytes: 0, result: Err(error) });
    }

    /// Takes in a command; what it finishes is ready.
    #[inline(never)]
    pub(super) fn take_in(&mut self, completion: Completion) {
        if completion.request.tag & DIRECT != 0 {
            let Completion { request: Request { operation, tag }, result } = completion;
            let answer = self.complete_plain(operation, tag, result);
            self.answered(answer);
        } else {
            self.complete_part(completion);
        }
    }

    /// Takes in a command that was part of a request, or of several.
    pub(super) fn complete_part(&mut self, completion: Completion) {
        let Completion { request: Request { operation, tag }, result } = completion;
        let (payload, read_from) = match operation {
            Operation::Read { payload, lba } => (Some(payload), Some(lba)),
            Operation::Write { payload, .. } => (Some(payload), None),
            _ => (None, None),
        };
        let good = match &result {
            Ok(()) => 0,
            Err(error) => self.good_bytes(read_from, error),
        };
        let (record, first) = ((tag >> STREAM_BITS) as u16, tag & ((1 << STREAM_BITS) - 1));
        let stream = first << self.shape.lba_size.shift();
        match payload {
            Some(Payload::One(buffer)) => {
                if read_from.is_some() {
                    let read = if result.is_ok() { buffer.len() } else { good as usize };
                    self.holds[usize::from(record)].kept().write(stream, &buffer[..read]);
                }
                self.bounce.push(buffer);
            }
            Some(Payload::Parts(mut list)) => {
                list.clear();
                self.lists.push(list);
            }
            // The piece goes back before its loan is asked for the buffers.
            other => drop(other),
        }
        if tag & MERGED == 0 {
            self.part_done(record, stream + good, result.err());
        } else {
            self.merged_done(tag as u16, result.as_ref().err());
        }
    }

    /// Returns how many bytes of a read have come although it failed: those before the block that the device could not
    /// read, where it is known.
    #[cold]
    fn good_bytes(&self, first: Option<Lba>, error: &BlockError) -> u64 {
        match (first, error.cause()) {
            (Some(first), Cause::Media { lba, blocks: BlockCount(1) }) => {
                lba.0.saturating_sub(first.0) << self.shape.lba_size.shift()
            }
            _ => 0,
        }
    }

    fn part_done(&mut self, index: u16, stream: u64, error: Option<BlockError>) {
        let record = self.records.get_mut(index);
        record.inflight -= 1;
        if let Some(error) = error {
            record.fail(stream, error);
        }
        self.settle(index);
    }

    fn merged_done(&mut self, list: u16, error: Option<&BlockError>) {
        let count = self.owners[usize::from(list)].len();
        for at in 0..count {
            let (record, stream) = self.owners[usize::from(list)][at];
            // One error, told to each of them.
            let error = error.map(BlockError::again);
            self.part_done(record, stream, error);
        }
        self.owners[usize::from(list)].clear();
        self.owners_free.push(list);
    }

    /// Finishes a request whose last command is back (rules 22 to 27).
    pub(super) fn settle(&mut self, index: u16) {
        let record = self.records.get_mut(index);
        if record.walking || record.inflight > 0 {
            return;
        }
        if record.flush_owed && !record.is_lost() {
            // The data is on the device; now it is made durable.
            record.walking = true;
            let mut cursor = Cursor::new(index, 0, 0);
            cursor.tail_done = true;
            self.paused.push_back(cursor);
            return;
        }
        let answer = self.answer(index);
        self.records.give_back(index);
        self.answered(answer);
    }

    /// Makes the answer of a request (rule 24: the walk's error, else a command's, else the bytes).
    fn answer(&mut self, index: u16) -> (Done, Committed) {
        let record = self.records.get_mut(index);
        let (stopped, failed) = (record.stopped.take(), record.failed.take());
        let failed_at = core::mem::replace(&mut record.failed_at, u64::MAX);
        let (tag, bytes, action) = (record.tag, record.bytes, record.action);
        let guard = record.guard.take();
        record.flush_owed = false;
        let mut memory = self.holds[usize::from(index)].give_back();
        if let Some(error) = stopped.or(failed) {
            // The guard goes here: what the map made for the request goes back.
            let bytes = failed_at.min(bytes);
            return (Done { tag, memory, bytes, result: Err(error) }, Committed::Now);
        }
        match action {
            Action::Read => {
                self.statistics.bytes_read += bytes;
                zero_past_the_end(&mut memory, bytes, self.shape.block());
            }
            Action::Write { .. } => self.statistics.bytes_written += bytes,
            _ => {}
        }
        let committed = guard.map_or(Ok(Committed::Now), |guard| self.map.commit(guard, bytes));
        let (committed, result) = outcome(committed);
        (Done { tag, memory, bytes, result }, committed)
    }
}

/// The answer of a durable request, on its way to being true.
pub(super) struct Settling {
    mark: Mark,
    done: Done,
    since: Instant,
}

/// Takes the answer of a commit apart; one that failed will not become durable.
#[inline(always)]
fn outcome(committed: Result<Committed, BlockError>) -> (Committed, Result<(), BlockError>) {
    match committed {
        Ok(committed) => (committed, Ok(())),
        Err(error) => (Committed::Now, Err(error)),
    }
}

/// What lies between the end of a file and the end of its last block is the map's affair, not the reader's.
fn zero_past_the_end(memory: &mut Memory, bytes: u64, block: u64) {
    let read = bytes.next_multiple_of(block).min(memory.len());
    memory.zero(bytes, (read - bytes) as usize);
}
