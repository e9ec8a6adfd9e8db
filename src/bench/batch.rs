//! When requests were submitted: one record a batch, not one a request.
//!
//! The clock is read when a batch begins, when its doorbell has rung, and when a poll has found
//! completions. Requests of one batch share the first two readings, those of one poll the third, so
//! that the clock costs a few nanoseconds a batch. At depth 1 a batch is one request and every
//! latency is its own.
#![forbid(unsafe_code)]

/// A batch of requests that were submitted together. Times are nanoseconds since the worker began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Batch {
    /// When the first request of it was made.
    pub(super) begun: u64,
    /// When its doorbell had rung.
    pub(super) rung: u64,
    /// When a rate wanted it to begin.
    pub(super) intended: u64,
    /// Requests of it that are still out, and one for the submitter while it is filled.
    left: u32,
}

/// The batches of one worker that are not finished.
#[derive(Debug, Default)]
pub(super) struct Batches {
    table: Vec<Batch>,
    free: Vec<u32>,
}

impl Batches {
    /// Makes room for `depth` batches: every one that is out holds at least one request.
    pub(super) fn new(depth: u32) -> Self {
        let count = depth + 1;
        Self { table: vec![Batch::default(); count as usize], free: (0..count).rev().collect() }
    }

    /// Begins a batch.
    pub(super) fn begin(&mut self, begun: u64, intended: u64) -> u32 {
        let index = self.free.pop().expect("there are more batches than requests");
        self.table[index as usize] = Batch { begun, rung: begun, intended, left: 1 };
        index
    }

    /// Notes that a batch of `count` requests was rung.
    pub(super) fn rung(&mut self, index: u32, count: u32, now: u64) {
        let batch = &mut self.table[index as usize];
        batch.rung = now;
        batch.left += count;
        self.done(index, 1);
    }

    /// Returns a batch.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Batch {
        self.table[index as usize]
    }

    /// Notes that `count` requests of a batch came back.
    #[inline]
    pub(super) fn done(&mut self, index: u32, count: u32) {
        let batch = &mut self.table[index as usize];
        batch.left -= count;
        if batch.left == 0 {
            self.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_free_again_when_its_last_request_is_back() {
        let mut batches = Batches::new(2);
        let first = batches.begin(5, 5);
        batches.rung(first, 2, 9);
        assert_eq!((batches.get(first).begun, batches.get(first).rung), (5, 9));
        batches.done(first, 1);
        let second = batches.begin(10, 10);
        assert_ne!(second, first);
        batches.done(first, 1);
        assert_eq!(batches.begin(11, 11), first);
    }

    #[test]
    fn an_empty_batch_leaves_nothing_behind() {
        let mut batches = Batches::new(1);
        for now in 0..10 {
            let index = batches.begin(now, now);
            batches.rung(index, 0, now);
        }
    }
}
