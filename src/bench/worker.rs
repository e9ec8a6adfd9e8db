//! One worker of a job: a queue, a generator of I/O, buffers, and the loop between them.
//!
//! ```text
//!   until done:  fill   take buffers, submit up to a batch, ring once
//!                reap   poll, give buffers back, record latencies a run at a time
//!                tick   now and then: samples, live counters, the end of ramp and runtime
//! ```
//!
//! The loop allocates nothing. Everything it counts is its own until it ends, but for the live counters,
//! which it publishes a hundred times a second.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::batch::Batches;
use super::buffers::Buffers;
use super::clock::Clock;
use super::job::{Direction, Job, PerDirection, Region, Verify};
use super::lane::{Answer, Counted, Lane, Route, Turned};
use super::pace::Pace;
use super::pattern;
use super::result::JobResult;
use super::stats::WorkerStats;
use super::target::Target;
use super::usage::Usage;
use super::workload::{Generator, Io, ReadBack};
use crate::block::{BlockError, ErrorKind};
use crate::dma::DmaError;
use crate::units::LbaSize;
use crate::volume::OpenError;

/// What everybody may look at while a worker runs. A line of its own: two workers never meet in it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Live {
    /// I/Os by direction.
    pub(super) ios: [AtomicU64; 3],
    /// Bytes by direction.
    pub(super) bytes: [AtomicU64; 3],
    /// I/Os that failed.
    pub(super) errors: AtomicU64,
    /// How far it is, in thousandths of its data.
    pub(super) permille: AtomicU64,
}

/// A worker that is ready to run.
pub(super) struct Worker<'a> {
    job: &'a Job,
    lane: Lane,
    buffers: Buffers,
    source: Source,
    read_back: Option<ReadBack>,
    goal: Goal,
    pace: Pace,
    paced: bool,
    batches: Batches,
    runs: Vec<Run>,
    stats: WorkerStats,
    errors: Errors,
    lba_size: LbaSize,
    /// The I/O that was generated and could not be submitted yet.
    held: Option<Io>,
    /// When it was wanted, if the pace has admitted it already.
    admitted: Option<u64>,
    writes_since_flush: u32,
    /// Whether what was written is being read back.
    reading_back: bool,
    /// What this run writes into every block, so that a block of an earlier run is told from its own.
    stamp: u64,
    epoch: Instant,
    baseline: Counted,
}

/// Where I/O comes from.
enum Source {
    Generator(Generator),
    ReadBack(ReadBack),
}

impl Source {
    #[inline]
    fn next(&mut self, chosen: Option<Direction>) -> Io {
        match (self, chosen) {
            (Self::Generator(generator), None) => generator.next(),
            (Self::Generator(generator), Some(direction)) => generator.next_in(direction),
            (Self::ReadBack(read_back), _) => read_back.next(),
        }
    }
}

/// When a worker has done enough.
#[derive(Clone, Copy, Debug)]
struct Goal {
    /// Bytes left to submit.
    bytes: u64,
    /// I/Os left to submit.
    ios: u64,
    /// Bytes and I/Os in all, for progress.
    of_bytes: u64,
    of_ios: u64,
    /// Bytes that were written and are to be read back.
    written: u64,
}

/// Requests of one batch and kind that came back in one poll.
#[derive(Clone, Copy, Debug)]
struct Run {
    batch: u32,
    kind: Kind,
    count: u32,
    bytes: u64,
}

/// What a worker has to know of an I/O that comes back, in the 63 bits that lanes leave alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    /// The batch: one of at most 65537.
    batch: u32,
    direction: Option<Direction>,
    /// The first block, to check what was read: 2^43 of 512 bytes are 4 PiB.
    block: u64,
}

impl Tag {
    const BATCH_BITS: u32 = 17;
    const DIRECTION_BITS: u32 = 2;
    const BLOCK_BITS: u32 = 63 - Self::BATCH_BITS - Self::DIRECTION_BITS;

    #[inline]
    fn pack(self) -> u64 {
        let direction = self.direction.map_or(3, |direction| direction as u64);
        let block = self.block & ((1 << Self::BLOCK_BITS) - 1);
        (block << Self::DIRECTION_BITS | direction) << Self::BATCH_BITS | u64::from(self.batch)
    }

    #[inline]
    fn unpack(tag: u64) -> Self {
        let rest = tag >> Self::BATCH_BITS;
        Self {
            batch: (tag & ((1 << Self::BATCH_BITS) - 1)) as u32,
            direction: Direction::ALL.get((rest & 3) as usize).copied(),
            block: rest >> Self::DIRECTION_BITS,
        }
    }
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Done(Direction),
    Flushed,
    Failed,
}

/// What went wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Errors {
    pub(super) count: u64,
    pub(super) first: Option<String>,
    pub(super) errno: i32,
    /// Whether going on makes no sense.
    fatal: bool,
}

/// What a worker brings home.
pub(super) struct Outcome {
    pub(super) stats: WorkerStats,
    /// The measured part.
    pub(super) runtime: Duration,
    /// Reading back what was written.
    pub(super) verify_runtime: Duration,
    /// All of it, the ramp included.
    pub(super) elapsed: Duration,
    pub(super) usage: Usage,
    pub(super) errors: Errors,
}

/// Why a worker could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    #[error(transparent)]
    Device(#[from] BlockError),
    #[error(transparent)]
    Memory(#[from] DmaError),
    #[error(transparent)]
    Pipeline(#[from] OpenError),
    #[error(transparent)]
    Job(#[from] super::option::OptionError),
}

impl<'a> Worker<'a> {
    /// Opens the queue and takes the memory of worker number `number` of a job.
    pub(super) fn new(
        job: &'a Job,
        number: u32,
        target: &Target,
        route: Route,
        region: Region,
        stamp: u64,
    ) -> Result<Self, WorkerError> {
        let lba_size = target.geometry().lba_size;
        let generator = Generator::new(job, number, region, lba_size)?;
        let reads_back = job.reads_back();
        let read_back =
            reads_back.then(|| ReadBack::new(job, number, region, lba_size)).transpose()?;
        let pace = Pace::new(job);
        Ok(Self {
            job,
            lane: Lane::open(job, target, route)?,
            buffers: Buffers::new(job, reads_back, &**target.device())?,
            source: Source::Generator(generator),
            read_back,
            goal: Goal::of(job, region, target.capacity()),
            paced: !pace.is_free(),
            batches: Batches::new(job.iodepth),
            runs: Vec::with_capacity(job.iodepth as usize),
            stats: WorkerStats::new(pace.rated()),
            errors: Errors::default(),
            lba_size,
            pace,
            held: None,
            admitted: None,
            writes_since_flush: 0,
            reading_back: false,
            stamp,
            epoch: Instant::now(),
            baseline: Counted::default(),
        })
    }

    /// Runs to the end, or until `stop`.
    pub(super) fn run(mut self, stop: &AtomicBool, live: &Live) -> Outcome {
        self.epoch = Instant::now();
        let usage = Usage::of_this_thread();
        let mut clock = Clock::new(self.job);
        self.work(&mut clock, stop, live);
        if self.job.end_fsync {
            self.flush_and_wait();
        }
        let ended = self.now();
        if clock.ends_in_ramp(ended) {
            self.forget_the_ramp();
        }
        let used = self.directions_in_use();
        let runtime = clock.end(&mut self.stats, ended, used);
        let verify_runtime = match self.read_back.take() {
            Some(read_back) => self.check_what_was_written(read_back, stop, live),
            None => 0,
        };
        self.publish(live);
        self.stats.queue = self.lane.counted().since(&self.baseline);
        Outcome {
            runtime: Duration::from_nanos(runtime),
            verify_runtime: Duration::from_nanos(verify_runtime),
            elapsed: Duration::from_nanos(self.now()),
            usage: Usage::of_this_thread().since(&usage),
            stats: self.stats,
            errors: self.errors,
        }
    }

    /// Works until the goal, the runtime, a fatal error or `stop`, and waits for what is in flight.
    fn work(&mut self, clock: &mut Clock, stop: &AtomicBool, live: &Live) {
        loop {
            let now = self.now();
            if clock.is_due(now) && self.tick(clock, now, stop, live) {
                break;
            }
            let submitted = self.fill(now);
            let reaped = self.reap();
            if submitted + reaped == 0 && self.lane.inflight() == 0 && self.is_exhausted() {
                break;
            }
        }
        while self.lane.inflight() > 0 {
            self.reap();
        }
    }

    /// Does what is due now and then; says whether the work is over.
    #[cold]
    fn tick(&mut self, clock: &mut Clock, now: u64, stop: &AtomicBool, live: &Live) -> bool {
        if clock.ramp_ends(now) {
            self.forget_the_ramp();
        }
        let used = self.directions_in_use();
        clock.sample_if_due(&mut self.stats, now, used);
        self.publish(live);
        stop.load(Ordering::Relaxed) || self.errors.fatal || clock.is_over(now)
    }

    /// Forgets what was counted before anything is measured.
    fn forget_the_ramp(&mut self) {
        self.stats.clear();
        self.baseline = self.lane.counted();
    }

    /// Returns the directions of the phase that runs.
    fn directions_in_use(&self) -> PerDirection<bool> {
        PerDirection::from_fn(|direction| match self.reading_back {
            true => direction == Direction::Read,
            false => self.job.rw.uses(direction),
        })
    }

    /// Submits a batch; returns how many requests.
    #[inline]
    fn fill(&mut self, now: u64) -> usize {
        let room = self.lane.depth() - self.lane.inflight();
        let most = room.min(self.job.submit_batch() as usize);
        if most == 0 || self.errors.fatal {
            return 0;
        }
        if self.paced {
            return self.fill_paced(most, now);
        }
        let batch = self.batches.begin(now, now);
        let mut count = 0;
        while count < most && self.submit_next(batch) {
            count += 1;
        }
        self.ring(batch, count, now);
        count
    }

    /// Submits what the pace admits, each in a batch of its own, since each was wanted at its own time.
    #[cold]
    fn fill_paced(&mut self, most: usize, now: u64) -> usize {
        let mut count = 0;
        while count < most {
            let Some(wanted) = self.admit_next(now) else { break };
            let batch = self.batches.begin(now, wanted);
            let taken = self.submit_next(batch);
            self.ring(batch, usize::from(taken), now);
            if !taken {
                break;
            }
            if self.held.is_none() {
                // A flush may have gone first; the I/O still has its turn.
                self.admitted = None;
            }
            count += 1;
        }
        count
    }

    /// Returns when the next I/O was wanted, once it is.
    fn admit_next(&mut self, now: u64) -> Option<u64> {
        let chosen = self.pace.choose(now);
        let io = self.next_io(chosen)?;
        self.hold(io);
        if self.admitted.is_none() {
            self.admitted = self.pace.admit(io.direction, io.len, now);
        }
        self.admitted
    }

    #[inline]
    fn ring(&mut self, batch: u32, count: usize, began: u64) {
        if count == 0 {
            self.batches.rung(batch, 0, began);
            return;
        }
        self.lane.ring();
        let rung = self.now();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.batches.rung(batch, count, rung);
        self.stats.depth.mark_submit(count);
        let inflight = u32::try_from(self.lane.inflight()).unwrap_or(u32::MAX);
        self.stats.depth.mark_depth(inflight, u64::from(count));
    }

    /// Submits one request; says whether there was one and it was taken.
    #[inline]
    fn submit_next(&mut self, batch: u32) -> bool {
        if self.job.fsync > 0 && self.writes_since_flush >= self.job.fsync {
            return self.submit_flush(batch);
        }
        let Some(io) = self.next_io(None) else { return false };
        let (offset, block) = (io.offset, io.offset >> self.lba_size.shift());
        let tag = Tag { batch, direction: Some(io.direction), block }.pack();
        let taken = if io.direction == Direction::Trim {
            self.lane.deallocate(offset, u64::from(io.len), tag)
        } else {
            let Some(mut buffer) = self.buffers.take(io) else {
                self.hold(io);
                return false;
            };
            let write = io.direction == Direction::Write;
            if write && self.job.verify == Verify::Crc32c {
                let block = self.lba_size.bytes() as usize;
                pattern::fill(&mut buffer, offset, block, self.stamp);
            }
            self.lane.transfer(write, offset, buffer, tag)
        };
        match taken {
            Ok(()) => {
                if io.direction == Direction::Write {
                    self.writes_since_flush += 1;
                    self.goal.written += u64::from(io.len);
                }
                true
            }
            Err(turned) => self.not_taken(turned, io),
        }
    }

    #[cold]
    fn not_taken(&mut self, turned: Turned, io: Io) -> bool {
        let Turned { buffer, error } = turned;
        if let Some(buffer) = buffer {
            self.buffers.give_back(io.direction, buffer);
        }
        match error {
            None => self.hold(io),
            Some(error) => {
                self.stats.directions.get_mut(io.direction).errors += 1;
                self.errors.note(&error);
            }
        }
        false
    }

    #[cold]
    fn submit_flush(&mut self, batch: u32) -> bool {
        let tag = Tag { batch, direction: None, block: 0 }.pack();
        let taken = self.lane.flush(tag).is_ok();
        if taken {
            self.writes_since_flush = 0;
        }
        taken
    }

    /// Flushes once and waits for it.
    fn flush_and_wait(&mut self) {
        let now = self.now();
        let batch = self.batches.begin(now, now);
        let taken = self.submit_flush(batch);
        self.ring(batch, usize::from(taken), now);
        while self.lane.inflight() > 0 {
            self.reap();
        }
    }

    /// Returns the next I/O, in the direction that rates have chosen, unless the goal is reached.
    #[inline]
    fn next_io(&mut self, chosen: Option<Direction>) -> Option<Io> {
        if let Some(io) = self.held.take() {
            return Some(io);
        }
        if self.goal.bytes == 0 || self.goal.ios == 0 {
            return None;
        }
        let io = self.source.next(chosen);
        self.goal.ios -= 1;
        self.goal.bytes = self.goal.bytes.saturating_sub(u64::from(io.len));
        Some(io)
    }

    fn hold(&mut self, io: Io) {
        self.held = Some(io);
    }

    fn is_exhausted(&self) -> bool {
        let done = self.goal.bytes == 0 || self.goal.ios == 0;
        self.errors.fatal || (done && self.held.is_none())
    }

    /// Polls once and records what came back; returns how many requests.
    #[inline]
    fn reap(&mut self) -> usize {
        let most = self.job.complete_batch() as usize;
        let checked = self.checked();
        let Self { lane, runs, buffers, errors, stats, job, lba_size, .. } = self;
        let mut desk = Desk {
            runs,
            buffers,
            errors,
            stats,
            checked,
            verify_fatal: job.verify_fatal,
            lba_size: *lba_size,
        };
        let count = lane.poll(most, |answer| desk.receive(answer));
        if count > 0 {
            self.record(count);
        }
        count
    }

    /// Returns how data that was read is checked.
    ///
    /// Reads of a mix meet blocks that nobody has written yet, so only the read-back checks them.
    #[inline]
    fn checked(&self) -> Checked {
        match self.job.verify {
            Verify::None => Checked::Not,
            Verify::Crc32c if self.reading_back => Checked::Stamp(self.stamp),
            Verify::Crc32c if self.job.rw.uses(Direction::Write) => Checked::Not,
            Verify::Crc32c => Checked::Sound,
        }
    }

    #[inline]
    fn record(&mut self, count: usize) {
        let now = self.now();
        self.stats.depth.mark_complete(u32::try_from(count).unwrap_or(u32::MAX));
        for run in self.runs.drain(..) {
            let batch = self.batches.get(run.batch);
            let clat = now.saturating_sub(batch.rung);
            self.batches.done(run.batch, run.count);
            let direction = match run.kind {
                Kind::Done(direction) => direction,
                Kind::Flushed => {
                    self.stats.sync.record_n(clat, u64::from(run.count));
                    continue;
                }
                Kind::Failed => continue,
            };
            let slat = batch.rung - batch.begun;
            let stats = self.stats.directions.get_mut(direction);
            stats.complete_run(u64::from(run.count), run.bytes, slat, clat);
            if let Some(corrected) = stats.corrected.as_mut().filter(|_| !self.reading_back) {
                corrected.record_n(now.saturating_sub(batch.intended), u64::from(run.count));
            }
        }
    }

    /// Reads everything back that was written, and checks it; returns how long that took.
    fn check_what_was_written(
        &mut self,
        read_back: ReadBack,
        stop: &AtomicBool,
        live: &Live,
    ) -> u64 {
        self.source = Source::ReadBack(read_back);
        self.goal.bytes = core::mem::take(&mut self.goal.written);
        self.goal.ios = u64::MAX;
        (self.goal.of_bytes, self.goal.of_ios) = (self.goal.bytes, u64::MAX);
        (self.held, self.admitted) = (None, None);
        (self.reading_back, self.paced) = (true, false);
        let mut clock = Clock::unlimited(self.now());
        self.work(&mut clock, stop, live);
        let ended = self.now();
        let used = self.directions_in_use();
        clock.end(&mut self.stats, ended, used)
    }

    fn publish(&self, live: &Live) {
        let store = |cell: &AtomicU64, value| cell.store(value, Ordering::Relaxed);
        for direction in Direction::ALL {
            let stats = self.stats.directions.get(direction);
            store(&live.ios[direction as usize], stats.ios);
            store(&live.bytes[direction as usize], stats.bytes);
        }
        store(&live.errors, self.errors.count);
        let done = |left: u64, all: u64| 1000 - u128::from(left) * 1000 / u128::from(all.max(1));
        let bytes = done(self.goal.bytes, self.goal.of_bytes);
        let ios = done(self.goal.ios, self.goal.of_ios);
        store(&live.permille, u64::try_from(bytes.max(ios)).unwrap_or(1000));
    }

    /// Returns the nanoseconds since the worker began.
    #[inline]
    fn now(&self) -> u64 {
        // 584 years fit.
        self.epoch.elapsed().as_nanos() as u64
    }
}

/// Where completions are received: the parts of a worker that its queue is not.
struct Desk<'a> {
    runs: &'a mut Vec<Run>,
    buffers: &'a mut Buffers,
    errors: &'a mut Errors,
    stats: &'a mut WorkerStats,
    checked: Checked,
    verify_fatal: bool,
    lba_size: LbaSize,
}

/// How data that was read is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checked {
    /// It is not.
    Not,
    /// Every block is what some run wrote there.
    Sound,
    /// Every block is what this run wrote there.
    Stamp(u64),
}

impl Desk<'_> {
    #[inline(always)]
    fn receive(&mut self, answer: Answer) {
        let Answer { tag, buffer, bytes, result } = answer;
        let Tag { batch, direction, block } = Tag::unpack(tag);
        let sound = match result {
            Ok(()) => self.is_sound(direction, buffer.as_deref(), block),
            Err(error) => self.failed(&error),
        };
        if let (Some(direction), Some(buffer)) = (direction, buffer) {
            self.buffers.give_back(direction, buffer);
        }
        let kind = match (sound, direction) {
            (true, Some(direction)) => Kind::Done(direction),
            (true, None) => Kind::Flushed,
            (false, _) => self.count_failure(direction),
        };
        self.count(batch, kind, bytes);
    }

    #[cold]
    fn count_failure(&mut self, direction: Option<Direction>) -> Kind {
        if let Some(direction) = direction {
            self.stats.directions.get_mut(direction).errors += 1;
        }
        Kind::Failed
    }

    /// Adds the request to its run.
    #[inline]
    fn count(&mut self, batch: u32, kind: Kind, bytes: u64) {
        match self.runs.last_mut() {
            Some(run) if run.batch == batch && run.kind == kind => {
                run.count += 1;
                run.bytes += bytes;
            }
            _ => self.runs.push(Run { batch, kind, count: 1, bytes }),
        }
    }

    #[inline]
    fn is_sound(&mut self, direction: Option<Direction>, data: Option<&[u8]>, block: u64) -> bool {
        match (self.checked, direction, data) {
            (Checked::Not, ..) => true,
            (_, Some(Direction::Read), Some(data)) => self.check(data, block),
            _ => true,
        }
    }

    fn check(&mut self, data: &[u8], block: u64) -> bool {
        let offset = block << self.lba_size.shift();
        let stamp = match self.checked {
            Checked::Stamp(stamp) => Some(stamp),
            _ => None,
        };
        match pattern::check(data, offset, self.lba_size.bytes() as usize, stamp) {
            Ok(()) => true,
            Err(bad) => {
                self.errors.fatal |= self.verify_fatal;
                self.errors.note_text(bad.to_string(), libc::EILSEQ);
                false
            }
        }
    }

    #[cold]
    fn failed(&mut self, error: &BlockError) -> bool {
        self.errors.note(error);
        false
    }
}

impl Errors {
    /// Adds up the errors of two entries of a report.
    pub(super) fn of(first: &JobResult, second: &JobResult) -> Self {
        let earlier = if first.first_error.is_some() { first } else { second };
        Self {
            count: first.error_count + second.error_count,
            first: earlier.first_error.clone(),
            errno: earlier.first_errno,
            fatal: false,
        }
    }

    /// One error.
    pub(super) fn one(text: String, errno: i32) -> Self {
        Self { count: 1, first: Some(text), errno, fatal: true }
    }

    #[cold]
    fn note(&mut self, error: &BlockError) {
        use ErrorKind::{DeviceGone, Poisoned, Protocol, Timeout};
        self.fatal |= matches!(error.kind(), DeviceGone | Poisoned | Protocol | Timeout);
        self.note_text(error.to_string(), error.errno());
    }

    fn note_text(&mut self, text: String, errno: i32) {
        self.count += 1;
        if self.first.is_none() {
            self.first = Some(text);
            self.errno = errno;
        }
    }
}

impl Goal {
    /// `io_size` or the size of the region, as often as `loops` says; no end under `time_based`.
    fn of(job: &Job, region: Region, capacity: u64) -> Self {
        let unit = u64::from(job.max_block_size());
        let once = job.io_size.map_or(region.bytes, |size| size.resolve(capacity, unit));
        // What does not fill a block at the end of the region is never touched.
        let whole = once - once % job.common_block_size().map_or(1, u64::from);
        let all = whole.saturating_mul(u64::from(job.loops));
        let bytes = if job.time_based { u64::MAX } else { all };
        let ios = job.number_ios.unwrap_or(u64::MAX);
        Self { bytes, ios, of_bytes: bytes, of_ios: ios, written: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_what_is_in_them_and_stay_below_the_lanes_own() {
        let directions = Direction::ALL.into_iter().map(Some).chain([None]);
        for (batch, direction) in [0, 1, 65_536].into_iter().zip(directions) {
            for block in [0, 1, (1 << Tag::BLOCK_BITS) - 1] {
                let tag = Tag { batch, direction, block };
                assert_eq!(Tag::unpack(tag.pack()), tag);
                assert!(tag.pack() < 1 << 63);
            }
        }
        let flush = Tag { batch: 5, direction: None, block: 0 };
        assert_eq!(Tag::unpack(flush.pack()), flush);
    }
}
