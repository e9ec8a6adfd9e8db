//! Sending: the command under assembly, bounced commands, and taking finished ones in meanwhile.
#![forbid(unsafe_code)]

use super::command::{Assembly, Kind};
use super::cursor::Cursor;
use super::walk::Pause;
use super::walker::{Walker, record_stop};
use crate::block::{Completion, IoQueue, MapBlocks, Operation, Payload, Rejected, Request};
use crate::units::Lba;

/// Marks the tag of a command that several requests share.
pub(super) const MERGED: u64 = 1 << 62;

/// Bits of a tag below the record's: the first block within its request.
pub(super) const STREAM_BITS: u32 = 44;

impl<M: MapBlocks> Walker<M> {
    /// Sends the command under assembly, if there is one and room for it.
    pub(super) fn send_open(&mut self, queue: &mut dyn IoQueue) {
        // What does not go now goes at the next poll.
        let _ = self.send(queue);
    }

    /// Makes sure that the command under assembly goes on at `lba` for this request.
    pub(super) fn open_for(
        &mut self,
        queue: &mut dyn IoQueue,
        record: u16,
        stream: u64,
        kind: Kind,
        lba: u64,
    ) -> Result<(), Pause> {
        if let Some(open) = &self.open {
            let has_room = !kind.has_data() || self.shape.room(open.lba, open.blocks()) > 0;
            if open.continues(kind, lba) && has_room && self.joins(record, stream) {
                return Ok(());
            }
            self.send(queue)?;
        }
        if self.records.get(record).inflight >= self.share {
            return Err(Pause);
        }
        let (shift, rules) = (self.shape.lba_size.shift(), self.shape.rules);
        self.open = Some(Assembly::new(kind, lba, shift, rules, record, stream));
        self.count_command(record);
        Ok(())
    }

    /// Counts a command of a request.
    fn count_command(&mut self, index: u16) {
        let record = self.records.get_mut(index);
        record.inflight += 1;
        self.statistics.splits += u64::from(record.started.count());
    }

    /// Makes a request an owner of the command under assembly; says no where it cannot be.
    fn joins(&mut self, record: u16, stream: u64) -> bool {
        let Self { open, owners, owners_free, lists, records, statistics, .. } = self;
        let Some(open) = open else { return false };
        let last = open.merged.and_then(|list| owners[usize::from(list)].last().copied());
        if last.map_or(open.owner, |(owner, _)| owner) == record {
            return true;
        }
        if lists.is_empty() {
            return false;
        }
        if open.merged.is_none() {
            let Some(list) = owners_free.pop() else { return false };
            owners[usize::from(list)].push((open.owner, open.stream));
            open.merged = Some(list);
        }
        let list = open.merged.expect("it was just made");
        owners[usize::from(list)].push((record, stream));
        records.get_mut(record).inflight += 1;
        statistics.merges += 1;
        true
    }

    /// Lets nothing more join the command under assembly.
    pub(super) fn close(&mut self) {
        if let Some(open) = &mut self.open {
            open.close();
        }
    }

    /// Forgets a command under assembly that nothing has joined.
    pub(super) fn close_empty(&mut self) {
        if let Some(open) = self.open.take() {
            self.records.get_mut(open.owner).inflight -= 1;
        }
    }

    /// Sends the command under assembly.
    pub(super) fn send(&mut self, queue: &mut dyn IoQueue) -> Result<(), Pause> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let tag = match open.merged {
            Some(list) => MERGED | u64::from(list),
            None => self.tag(open.owner, open.stream),
        };
        match self.try_submit(queue, Request::new(open.operation(), tag)) {
            Ok(()) => {
                self.reap_if_due(queue);
                Ok(())
            }
            Err(Rejected::QueueFull(request)) => {
                open.take_back(request.into_payload());
                self.open = Some(open);
                Err(Pause)
            }
            Err(Rejected::Invalid(request, error)) => {
                self.complete_part(Completion { request, result: Err(error) });
                Ok(())
            }
        }
    }

    /// Submits a command that was not assembled.
    pub(super) fn submit(
        &mut self,
        queue: &mut dyn IoQueue,
        request: Request,
    ) -> Result<(), Pause> {
        match self.try_submit(queue, request) {
            Ok(()) => Ok(()),
            Err(Rejected::QueueFull(_)) => Err(Pause),
            Err(Rejected::Invalid(request, error)) => {
                let record = (request.tag >> STREAM_BITS) as u16;
                self.records.get_mut(record).inflight += 1;
                self.complete_part(Completion { request, result: Err(error) });
                Ok(())
            }
        }
    }

    /// Submits, and looks once for finished commands where the queue is full (rule 20).
    fn try_submit(&mut self, queue: &mut dyn IoQueue, request: Request) -> Result<(), Rejected> {
        let request = match queue.submit(request) {
            Err(Rejected::QueueFull(request)) => {
                self.reap(queue);
                request
            }
            other => return other.inspect(|()| self.statistics.commands += 1),
        };
        queue.submit(request).inspect(|()| self.statistics.commands += 1)
    }

    pub(super) fn tag(&self, record: u16, stream: u64) -> u64 {
        let first = stream >> self.shape.lba_size.shift();
        u64::from(record) << STREAM_BITS | first.min((1 << STREAM_BITS) - 1)
    }

    /// Sends one command through a bounce buffer; returns its blocks.
    pub(super) fn send_bounced(
        &mut self,
        queue: &mut dyn IoQueue,
        cursor: &Cursor,
        kind: Kind,
        lba: u64,
        wanted: u64,
    ) -> Result<u64, Pause> {
        self.send(queue)?;
        if self.records.get(cursor.record).inflight >= self.share {
            return Err(Pause);
        }
        let Some(mut buffer) = self.bounce.pop() else { return Err(Pause) };
        let shift = self.shape.lba_size.shift();
        let most = buffer.capacity() as u64 >> shift;
        let blocks = wanted.min(most).min(self.shape.room(lba, 0));
        buffer.set_len((blocks << shift) as usize);
        let hold = &mut self.holds[usize::from(cursor.record)];
        let lba = Lba(lba);
        let operation = match kind {
            Kind::Write { fua } => {
                hold.kept().read(cursor.stream, &mut buffer);
                Operation::Write { lba, payload: Payload::One(buffer), fua }
            }
            _ => Operation::Read { lba, payload: Payload::One(buffer) },
        };
        let tag = self.tag(cursor.record, cursor.stream);
        match self.try_submit(queue, Request::new(operation, tag)) {
            Ok(()) => {
                self.count_command(cursor.record);
                self.statistics.bytes_bounced += blocks << shift;
                self.reap_if_due(queue);
                Ok(blocks)
            }
            Err(Rejected::QueueFull(request)) => {
                self.take_bounce_back(request.into_payload());
                Err(Pause)
            }
            Err(Rejected::Invalid(request, error)) => {
                self.take_bounce_back(request.into_payload());
                record_stop(&mut self.records, cursor.record, cursor.stream, error);
                Ok(blocks)
            }
        }
    }

    fn take_bounce_back(&mut self, payload: Option<Payload>) {
        if let Some(Payload::One(buffer)) = payload {
            self.bounce.push(buffer);
        }
    }

    /// Rule 20: every so often, what is finished is taken in while more is being sent.
    fn reap_if_due(&mut self, queue: &mut dyn IoQueue) {
        self.since_reap += 1;
        if self.since_reap >= self.reap_every {
            self.reap(queue);
        }
    }

    pub(super) fn reap(&mut self, queue: &mut dyn IoQueue) {
        self.since_reap = 0;
        queue.ring();
        queue.poll(usize::MAX, &mut |completion| self.take_in(completion));
    }
}
