//! The walk: from what is left of a request to commands, as far as there is room.
//!
//! ```text
//!  step   an error? stop             at the end? tail zeroes, close, done
//!    zeroes owed?  push them          answer used up?  ask the map
//!    a hole?  zero the memory         blocks?  join the command, or send it and begin another
//! ```
//!
//! One function holds the order ([`Walker::step`]); the others answer questions or do one thing. Nothing here
//! waits: where a slot or memory is missing the cursor is put away, and goes on at the next poll.
#![forbid(unsafe_code)]

use super::command::{Assembly, Kind};
use super::cursor::{Answer, Cursor, ZeroRun};
use super::record::Hold;
use super::request::Action;
use super::send::STREAM_BITS;
use super::walker::{Walker, is_durable, record_stop};
use crate::block::{
    BlockError, Cause, Extent, IoQueue, MapBlocks, Mapping, Operation, Request, Run,
};
use crate::dma::PAGE_BYTES;
use crate::units::{BlockCount, FileBlock, Lba};

/// Zeroes from this length on are a command of their own, where the device has it: below it, a transfer that
/// joins the data is cheaper than another command.
const WRITE_ZEROES_BYTES: u64 = 128 << 10;

/// Why a cursor stands still.
pub(super) struct Pause;

/// How far a step came.
pub(super) enum Step {
    /// On to the next one.
    Onward,
    /// The last command is out.
    Done,
}

impl<M: MapBlocks> Walker<M> {
    /// Lets cursors that wait go on, each as far as there is room.
    pub(super) fn go_on(&mut self, queue: &mut dyn IoQueue) {
        for _ in 0..self.paused.len() {
            let Some(cursor) = self.paused.pop_front() else { break };
            self.walk(queue, cursor);
        }
    }

    /// Walks until the last command is out or room is missing.
    pub(super) fn walk(&mut self, queue: &mut dyn IoQueue, mut cursor: Cursor) {
        loop {
            match self.step(queue, &mut cursor) {
                Ok(Step::Onward) => {}
                Ok(Step::Done) => {
                    self.records.get_mut(cursor.record).walking = false;
                    self.settle(cursor.record);
                    return;
                }
                Err(Pause) => {
                    self.statistics.pauses += 1;
                    self.paused.push_back(cursor);
                    return;
                }
            }
        }
    }

    fn step(&mut self, queue: &mut dyn IoQueue, cursor: &mut Cursor) -> Result<Step, Pause> {
        let record = self.records.get(cursor.record);
        if record.is_lost() {
            return Ok(Step::Done);
        }
        if let Some(zeroes) = cursor.zeroes {
            return self.push_zeroes(queue, cursor, zeroes);
        }
        if cursor.at == cursor.end {
            return self.finish(queue, cursor);
        }
        match cursor.answer {
            Answer::Spent => {
                // Rule 18 again: at a boundary there may have been no room to send.
                if self.open.as_ref().is_some_and(Assembly::is_closed) {
                    self.send(queue)?;
                    queue.ring();
                }
                self.ask(cursor)
            }
            Answer::Hole(blocks) => self.pass_hole(cursor, blocks),
            Answer::Mapped(extent) => self.take_extent(queue, cursor, extent),
        }
    }

    /// Ends a walk: zeroes after the end, the last command, a flush where one is owed.
    fn finish(&mut self, queue: &mut dyn IoQueue, cursor: &mut Cursor) -> Result<Step, Pause> {
        if !cursor.tail_done {
            cursor.tail_done = true;
            cursor.zeroes = self.tail(cursor);
            return Ok(Step::Onward);
        }
        if !self.merge {
            self.send(queue)?;
        }
        let record = self.records.get_mut(cursor.record);
        if record.flush_owed && record.inflight > 0 {
            // It covers what was completed before it; `settle` comes back here.
            return Ok(Step::Done);
        }
        if record.flush_owed && !record.is_lost() {
            let tag = u64::from(cursor.record) << STREAM_BITS;
            self.submit(queue, Request::new(Operation::Flush, tag))?;
            let record = self.records.get_mut(cursor.record);
            record.flush_owed = false;
            record.inflight += 1;
        }
        Ok(Step::Done)
    }

    /// Rule 14: what follows the end of a write within a new unit.
    fn tail(&self, cursor: &Cursor) -> Option<ZeroRun> {
        let action = self.records.get(cursor.record).action;
        let blocks = self.shape.unit_end(cursor.end) - cursor.end;
        match cursor.answer {
            Answer::Mapped(extent) if extent.new && blocks > 0 && is_write(action) => {
                Some(ZeroRun { lba: extent.lba.0, blocks, before_data: false })
            }
            _ => None,
        }
    }

    /// Rules 7, 8 and 13: asks the map from here to the end, in whole units.
    fn ask(&mut self, cursor: &mut Cursor) -> Result<Step, Pause> {
        let at = self.shape.unit_start(cursor.at);
        let asked = BlockCount(self.shape.unit_end(cursor.end) - at);
        let skip = cursor.at - at;
        let record = self.records.get_mut(cursor.record);
        let guard = record.guard.as_mut().expect("a request under way has its guard");
        self.statistics.mappings += 1;
        let answer = self.map.map(guard, FileBlock(at), asked);
        let write = is_write(self.records.get(cursor.record).action);
        match answer.and_then(|found| self.believe(FileBlock(at), asked, write, found)) {
            Ok(mapping) => {
                match mapping {
                    Mapping::Mapped(Extent { lba, new: true, .. }) if write && skip > 0 => {
                        let (lba, blocks) = (lba.0, skip);
                        cursor.zeroes = Some(ZeroRun { lba, blocks, before_data: true });
                    }
                    _ => {}
                }
                cursor.take(mapping, skip);
            }
            Err(error) => record_stop(&mut self.records, cursor.record, cursor.stream, error),
        }
        Ok(Step::Onward)
    }

    /// Holds an answer against the contract of the map.
    pub(super) fn believe(
        &self,
        at: FileBlock,
        asked: BlockCount,
        write: bool,
        mapping: Mapping,
    ) -> Result<Mapping, BlockError> {
        let (lba, blocks) = match mapping {
            Mapping::Mapped(extent) => (extent.lba.0, extent.blocks.0),
            Mapping::Hole(blocks) => (0, blocks.0),
        };
        let inside = lba.checked_add(blocks).is_some_and(|end| end <= self.shape.capacity);
        let is_hole = matches!(mapping, Mapping::Hole(_));
        let problem = if blocks == 0 {
            "it covers nothing"
        } else if blocks > asked.0 {
            "it covers more than was asked for"
        } else if !blocks.is_multiple_of(self.shape.unit) {
            "it ends inside an allocation unit"
        } else if !is_hole && !inside {
            "it does not lie within the device"
        } else if is_hole && write {
            "a write was told of a hole"
        } else {
            return Ok(mapping);
        };
        Err(distrust(at, asked, mapping, problem))
    }

    /// Rule 10: the whole hole at once, without a command.
    fn pass_hole(&mut self, cursor: &mut Cursor, blocks: u64) -> Result<Step, Pause> {
        let shift = self.shape.lba_size.shift();
        let blocks = blocks.min(cursor.end - cursor.at);
        let record = self.records.get(cursor.record);
        if record.action == Action::Read {
            let hold = &mut self.holds[usize::from(cursor.record)];
            let bytes = blocks << shift;
            self.statistics.bytes_of_holes += bytes;
            if record.bounced {
                hold.kept().zero(cursor.stream, bytes as usize);
            } else {
                cursor.place = zero_memory(hold, cursor.place, bytes);
            }
        }
        cursor.advance(blocks, shift);
        Ok(Step::Onward)
    }

    /// Rules 16 to 19: the blocks of an extent join the command under assembly as far as they can.
    fn take_extent(
        &mut self,
        queue: &mut dyn IoQueue,
        cursor: &mut Cursor,
        extent: Extent,
    ) -> Result<Step, Pause> {
        let record = self.records.get(cursor.record);
        let wanted = extent.blocks.0.min(cursor.end - cursor.at);
        let kind = self.kind_of(record.action);
        let taken = if record.bounced {
            self.send_bounced(queue, cursor, kind, extent.lba.0, wanted)?
        } else if kind.has_data() {
            self.join_data(queue, cursor, kind, extent.lba.0, wanted)?
        } else {
            self.open_for(queue, cursor.record, cursor.stream, kind, extent.lba.0)?;
            self.open.as_mut().expect("it was just opened").add_bare(wanted);
            wanted
        };
        cursor.advance(taken, self.shape.lba_size.shift());
        if extent.boundary && cursor.answer == Answer::Spent {
            // Rule 18: the data is on its way before the metadata is read.
            self.close();
            self.send(queue)?;
            queue.ring();
        }
        Ok(Step::Onward)
    }

    fn kind_of(&self, action: Action) -> Kind {
        let fua = is_durable(action) && !self.shape.flush_after;
        match action {
            Action::Read | Action::Flush => Kind::Read,
            Action::Write { .. } => Kind::Write { fua },
            Action::WriteZeroes { .. } => Kind::WriteZeroes { fua },
            Action::Deallocate { .. } => Kind::Deallocate,
        }
    }

    /// Lets data join the command under assembly, or the next one; returns how many blocks did. None only
    /// where the memory cannot be described, which stops the walk.
    fn join_data(
        &mut self,
        queue: &mut dyn IoQueue,
        cursor: &mut Cursor,
        kind: Kind,
        lba: u64,
        wanted: u64,
    ) -> Result<u64, Pause> {
        loop {
            self.open_for(queue, cursor.record, cursor.stream, kind, lba)?;
            let open = self.open.as_ref().expect("it was just opened");
            let shift = self.shape.lba_size.shift();
            let room = self.shape.room(open.lba, open.blocks()).min(wanted);
            let hold = &self.holds[usize::from(cursor.record)];
            let (is_new, single) = (open.blocks() == 0, self.lists.is_empty());
            let fits = open.measure(runs_from(hold, cursor.place), room << shift, single) >> shift;
            if fits > 0 {
                self.push_data(cursor, fits << shift);
                if fits < wanted {
                    // It takes no more: at the limit, the boundary, or the end of what a list can say.
                    self.close();
                }
                return Ok(fits);
            }
            if !is_new {
                self.send(queue)?;
                continue;
            }
            self.close_empty();
            if single {
                return Err(Pause);
            }
            let (what, alignment) = ("memory that was found to be aligned", self.shape.block());
            let error = Cause::Misaligned { what, value: cursor.stream, alignment }.into();
            record_stop(&mut self.records, cursor.record, cursor.stream, error);
            return Ok(0);
        }
    }

    /// Hands `bytes` of memory to the command under assembly.
    fn push_data(&mut self, cursor: &mut Cursor, bytes: u64) {
        let Self { open, holds, lists, .. } = self;
        let open = open.as_mut().expect("the caller opened it");
        let hold = &holds[usize::from(cursor.record)];
        let mut left = bytes;
        while left > 0 {
            let (index, skip) = cursor.place;
            let run = hold.run(index, skip).expect("the memory is as long as the request");
            let len = run.len.min(left);
            if len > 0 {
                // The coincidence that two loans lie side by side may ask for a list that is not there.
                open.push(hold.piece(index, skip, len), || lists.pop().unwrap_or_default());
            }
            left -= len;
            cursor.place = if len == run.len { (index + 1, 0) } else { (index, skip + len) };
        }
    }

    /// Rules 13 to 15: zeroes go through the same machinery as data, and join it.
    fn push_zeroes(
        &mut self,
        queue: &mut dyn IoQueue,
        cursor: &mut Cursor,
        zeroes: ZeroRun,
    ) -> Result<Step, Pause> {
        let shift = self.shape.lba_size.shift();
        let fua = matches!(
            self.kind_of(self.records.get(cursor.record).action),
            Kind::Write { fua: true }
        );
        let bytes = zeroes.blocks << shift;
        let taken = if bytes >= WRITE_ZEROES_BYTES && self.shape.operations.write_zeroes {
            let kind = Kind::WriteZeroes { fua };
            self.open_for(queue, cursor.record, cursor.stream, kind, zeroes.lba)?;
            self.open.as_mut().expect("it was just opened").add_bare(zeroes.blocks);
            zeroes.blocks
        } else {
            let kind = Kind::Write { fua };
            self.open_for(queue, cursor.record, cursor.stream, kind, zeroes.lba)?;
            self.push_zero_piece(queue, zeroes)?
        };
        self.statistics.bytes_zeroed += taken << shift;
        let left = ZeroRun { lba: zeroes.lba + taken, blocks: zeroes.blocks - taken, ..zeroes };
        cursor.zeroes = (left.blocks > 0).then_some(left);
        Ok(Step::Onward)
    }

    /// Lets one piece of zeroes join the command under assembly; returns its blocks, 0 if there was no room.
    fn push_zero_piece(&mut self, queue: &mut dyn IoQueue, zeroes: ZeroRun) -> Result<u64, Pause> {
        let shift = self.shape.lba_size.shift();
        let open = self.open.as_ref().expect("the caller opened it");
        let room = self.shape.room(open.lba, open.blocks()).min(zeroes.blocks) << shift;
        // So that the last zero before the data lies at the end of a page.
        let page = PAGE_BYTES as u64;
        let skip =
            if zeroes.before_data { (page - (zeroes.blocks << shift) % page) % page } else { 0 };
        let run = self.zeroes.run(skip);
        let (is_new, single) = (open.blocks() == 0, self.lists.is_empty());
        let fits = open.measure(core::iter::once(run), room.min(run.len), single);
        if fits > 0 {
            let Self { open, lists, zeroes, .. } = self;
            let open = open.as_mut().expect("it is open");
            open.push(zeroes.piece(skip, fits), || lists.pop().unwrap_or_default());
            return Ok(fits >> shift);
        }
        if is_new {
            self.close_empty();
            return Err(Pause);
        }
        self.send(queue)?;
        Ok(0)
    }
}

/// Fills `bytes` of lent memory with zeroes; returns the place after them.
fn zero_memory(hold: &Hold, from: (usize, u64), bytes: u64) -> (usize, u64) {
    let (mut place, mut left) = (from, bytes);
    while left > 0 {
        let (index, skip) = place;
        let run = hold.run(index, skip).expect("the memory is as long as the request");
        let len = run.len.min(left);
        if len > 0 {
            hold.zero(index, skip, len);
        }
        left -= len;
        place = if len == run.len { (index + 1, 0) } else { (index, skip + len) };
    }
    place
}

/// Returns the runs of lent memory from a place on.
fn runs_from(hold: &Hold, place: (usize, u64)) -> impl Iterator<Item = Run> {
    let (mut index, mut skip) = place;
    core::iter::from_fn(move || {
        let run = hold.run(index, skip)?;
        (index, skip) = (index + 1, 0);
        Some(run)
    })
    .filter(|run| run.len > 0)
}

#[cold]
fn distrust(
    at: FileBlock,
    asked: BlockCount,
    mapping: Mapping,
    problem: &'static str,
) -> BlockError {
    let (lba, blocks) = match mapping {
        Mapping::Mapped(extent) => (extent.lba, extent.blocks),
        Mapping::Hole(blocks) => (Lba(0), blocks),
    };
    Cause::Mapping { at, asked, lba, blocks, problem }.into()
}

pub(super) fn is_write(action: Action) -> bool {
    matches!(action, Action::Write { .. })
}
