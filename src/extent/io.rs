//! Blocking I/O of metadata, for those who open, format and check a store: a queue, and somebody who waits.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::error::StoreError;
use crate::block::{
    BlockDevice, BlockError, Cause, Completion, IoQueue, Operation, Payload, QueueOptions,
    Rejected, Request,
};
use crate::dma::{Access, DmaBuf};
use crate::units::{BlockCount, Lba};

/// Requests in flight at once.
const DEPTH: u32 = 8;

/// Bytes of one request.
const PIECE_BYTES: u64 = 256 << 10;

/// What takes the blocks that were read, in order.
type Sink<'a> = dyn FnMut(Lba, &[u8]) -> Result<(), StoreError> + 'a;

/// A queue to wait at.
pub(super) struct MetadataIo {
    queue: Box<dyn IoQueue>,
    buffers: Vec<DmaBuf>,
    shift: u8,
    piece: u64,
    timeout: Duration,
    /// Whether writes have to be followed by a flush, since the device has a cache and cannot write through it.
    flush_after: bool,
    has_cache: bool,
}

impl MetadataIo {
    /// Opens a queue to a device.
    pub(super) fn open(device: &dyn BlockDevice, timeout: Duration) -> Result<Self, StoreError> {
        let options = QueueOptions { depth: DEPTH.min(device.max_depth()), timeout };
        let queue = device.open_queue(&options).map_err(StoreError::device("opening a queue"))?;
        let geometry = device.geometry();
        let block = u64::from(geometry.lba_size.bytes());
        let piece = PIECE_BYTES.min(geometry.max_transfer.0).max(block) / block * block;
        let buffer = |_| {
            let buffer = device.dma().buffer(piece as usize, Access::Both);
            buffer.map_err(|error| StoreError::device("taking memory")(memory(error)))
        };
        let buffers = (0..options.depth).map(buffer).collect::<Result<_, _>>()?;
        let has_cache = geometry.volatile_write_cache;
        let flush_after = has_cache && !geometry.operations.fua;
        let shift = geometry.lba_size.shift();
        Ok(Self { queue, buffers, shift, piece, timeout, flush_after, has_cache })
    }

    /// Reads blocks, and hands them to `sink` in order, in pieces of whole blocks.
    pub(super) fn read(
        &mut self,
        first: Lba,
        blocks: u64,
        sink: &mut Sink<'_>,
    ) -> Result<(), StoreError> {
        let (end, step) = (first.0 + blocks, self.piece >> self.shift);
        let (mut sent, mut due) = (first.0, first.0);
        let mut arrived: Vec<(u64, DmaBuf)> = Vec::new();
        let mut failed = None;
        let mut inflight = 0;
        while due < end && failed.is_none() || inflight > 0 {
            while sent < end && failed.is_none() {
                let Some(mut buffer) = self.buffers.pop() else { break };
                let count = step.min(end - sent);
                buffer.set_len((count << self.shift) as usize);
                self.submit(Request::read(Lba(sent), buffer, sent))?;
                (sent, inflight) = (sent + count, inflight + 1);
            }
            let completion = self.wait()?;
            inflight -= 1;
            let tag = completion.request.tag;
            let buffer =
                completion.request.into_payload().and_then(|payload| payload.into_one().ok());
            let buffer = buffer.expect("a read brings its buffer back");
            match completion.result {
                Ok(()) => arrived.push((tag, buffer)),
                Err(error) => {
                    failed = failed.or(Some(StoreError::device("reading metadata")(error)));
                    self.buffers.push(buffer);
                }
            }
            while let Some(at) = arrived.iter().position(|(tag, _)| *tag == due) {
                let (tag, buffer) = arrived.swap_remove(at);
                if failed.is_none() {
                    failed = sink(Lba(tag), &buffer).err();
                }
                due += buffer.len() as u64 >> self.shift;
                self.buffers.push(buffer);
            }
        }
        self.buffers.extend(arrived.into_iter().map(|(_, buffer)| buffer));
        failed.map_or(Ok(()), Err)
    }

    /// Reads one block.
    pub(super) fn read_block(&mut self, lba: Lba) -> Result<Vec<u8>, StoreError> {
        let mut found = Vec::new();
        self.read(lba, 1, &mut |_, bytes| {
            found.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(found)
    }

    /// Writes blocks, durably.
    pub(super) fn write_durably(&mut self, lba: Lba, bytes: &[u8]) -> Result<(), StoreError> {
        for (index, piece) in bytes.chunks(self.piece as usize).enumerate() {
            let mut buffer = self.buffers.pop().expect("nothing is in flight");
            buffer.set_len(piece.len());
            buffer.copy_from_slice(piece);
            let lba = Lba(lba.0 + ((index as u64 * self.piece) >> self.shift));
            let fua = self.has_cache && !self.flush_after;
            let payload = Payload::One(buffer);
            self.run(Operation::Write { lba, payload, fua })?;
        }
        if self.flush_after { self.flush() } else { Ok(()) }
    }

    /// Makes blocks read as zeroes; durable after the next flush.
    pub(super) fn zero(
        &mut self,
        first: Lba,
        blocks: u64,
        offered: bool,
    ) -> Result<(), StoreError> {
        if offered {
            // One request for each piece that a count of 32 bits can name.
            let (mut lba, end) = (first.0, first.0 + blocks);
            while lba < end {
                let count = (end - lba).min(1 << 24);
                let blocks = BlockCount(count);
                self.run(Operation::WriteZeroes { lba: Lba(lba), blocks, fua: false })?;
                lba += count;
            }
            return Ok(());
        }
        let step = self.piece >> self.shift;
        let mut lba = first.0;
        while lba < first.0 + blocks {
            let count = step.min(first.0 + blocks - lba);
            let mut buffer = self.buffers.pop().expect("nothing is in flight");
            buffer.set_len((count << self.shift) as usize);
            buffer.fill(0);
            let payload = Payload::One(buffer);
            self.run(Operation::Write { lba: Lba(lba), payload, fua: false })?;
            lba += count;
        }
        Ok(())
    }

    /// Makes everything durable that was written.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        if self.has_cache { self.run(Operation::Flush) } else { Ok(()) }
    }

    fn run(&mut self, operation: Operation) -> Result<(), StoreError> {
        self.submit(Request::new(operation, 0))?;
        let Completion { request, result } = self.wait()?;
        let buffer = request.into_payload().and_then(|payload| payload.into_one().ok());
        self.buffers.extend(buffer);
        result.map_err(StoreError::device("writing metadata"))
    }

    fn submit(&mut self, request: Request) -> Result<(), StoreError> {
        self.queue.submit(request).map_err(|rejected| {
            let error = match rejected {
                Rejected::Invalid(_, error) => error,
                Rejected::QueueFull(_) => Cause::Busy { what: "a queue of its own".into() }.into(),
            };
            StoreError::device("sending metadata")(error)
        })
    }

    fn wait(&mut self) -> Result<Completion, StoreError> {
        self.queue.ring();
        let since = Instant::now();
        let mut found = None;
        while self.queue.poll(1, &mut |completion| found = Some(completion)) == 0 {
            // The queue has a deadline for each request; this one is for a queue that breaks its promise.
            if since.elapsed() > self.timeout * 2 {
                let millis = self.timeout.as_millis() as u64 * 2;
                return Err(StoreError::Timeout { what: "a request of metadata", millis });
            }
            core::hint::spin_loop();
        }
        Ok(found.expect("it was just counted"))
    }
}

/// Puts a want of memory into the words of the waist.
pub(super) fn memory(error: crate::dma::DmaError) -> BlockError {
    BlockError::from(Cause::Busy { what: error.to_string().into() }).with_source(error)
}
