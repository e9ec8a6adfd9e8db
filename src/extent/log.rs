//! Operations that were done and are not in the journal yet, and what the waiters want of it.
//!
//! An operation gets its number (LSN) here, under the lock of the object that it changed, so that the journal has
//! the operations of an object in the order in which they were done. The `engine` takes groups of them away.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::record::{OP_HEADER_BYTES, Op};

/// What waits for the journal.
#[derive(Debug)]
pub(super) struct Log {
    /// Operations, encoded, in order.
    bytes: Vec<u8>,
    /// How many.
    count: u64,
    /// The number of the next.
    next: u64,
    /// Operations below this may stand for data that is in the device's cache only.
    unflushed: u64,
    /// Somebody waits for the operations below this.
    wanted: u64,
    /// The oldest operation is as old as this.
    since: Option<Instant>,
    /// Rounds of the engine: begun, and begun at least once someone asked for it.
    pub(super) begun: u64,
    pub(super) asked: u64,
}

/// Operations that go into one record.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) bytes: Vec<u8>,
    pub(super) count: u32,
    /// The number of the first.
    pub(super) lsn: u64,
}

impl Log {
    pub(super) fn new(next: u64) -> Self {
        Self {
            bytes: Vec::new(),
            count: 0,
            next,
            unflushed: 0,
            wanted: 0,
            since: None,
            begun: 0,
            asked: 0,
        }
    }

    /// Adds an operation; `flush` if it stands for data that may be in the device's cache only.
    pub(super) fn push(&mut self, op: &Op, flush: bool) -> u64 {
        op.encode(&mut self.bytes);
        self.count += 1;
        self.next += 1;
        if flush {
            self.unflushed = self.next;
        }
        self.since.get_or_insert_with(Instant::now);
        self.next
    }

    /// Returns the number of the next operation: operations below this were done.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Returns the number of the first operation that was not taken away.
    pub(super) fn first(&self) -> u64 {
        self.next - self.count
    }

    /// Asks for the operations below `lsn` to be made durable.
    pub(super) fn want(&mut self, lsn: u64) {
        self.wanted = self.wanted.max(lsn);
    }

    /// Says whether anybody waits for an operation that was not taken away.
    pub(super) fn is_wanted(&self) -> bool {
        self.count > 0 && self.wanted > self.next - self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn pending_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Returns below which number operations need a flush first.
    pub(super) fn unflushed(&self) -> u64 {
        self.unflushed
    }

    /// Returns the bytes of the next group: of operations below `end`, and of at most `most` bytes.
    pub(super) fn next_group_bytes(&self, most: usize, end: u64) -> usize {
        self.cut(most, end).0
    }

    /// Takes a group away: of operations below `end`, and of at most `most` bytes.
    pub(super) fn take(&mut self, most: usize, end: u64) -> Group {
        let (cut, count) = self.cut(most, end);
        let rest = self.bytes.split_off(cut);
        let bytes = core::mem::replace(&mut self.bytes, rest);
        let lsn = self.next - self.count;
        self.count -= u64::from(count);
        if self.count == 0 {
            self.since = None;
        }
        Group { bytes, count, lsn }
    }

    /// Lets all operations go, since a checkpoint has them.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
        self.since = None;
    }

    /// Returns how many bytes, and how many operations, at the front are below `end` and fit into `most` bytes.
    fn cut(&self, most: usize, end: u64) -> (usize, u32) {
        let (mut cut, mut count) = (0, 0);
        let allowed = end.saturating_sub(self.next - self.count);
        while u64::from(count) < allowed
            && let Some(header) = self.bytes[cut..].first_chunk::<OP_HEADER_BYTES>()
        {
            let len = OP_HEADER_BYTES + usize::from(u16::from_le_bytes([header[0], header[1]]));
            if cut + len > most {
                break;
            }
            (cut, count) = (cut + len, count + 1);
        }
        (cut, count)
    }
}
