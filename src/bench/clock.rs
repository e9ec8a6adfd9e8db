//! The hours of a worker: ramp, runtime, samples.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::job::{Job, PerDirection};
use super::stats::WorkerStats;

/// The hours of a worker. Times are nanoseconds since it began.
pub(super) struct Clock {
    /// When something is due next.
    due: u64,
    ramp_ns: u64,
    ramped: bool,
    /// When the measured part began.
    began: u64,
    /// How long it may take.
    runtime_ns: u64,
    /// When the work is over.
    over: u64,
    sampled: u64,
}

/// How often a worker looks up from its work.
const TICK_NS: u64 = 10_000_000;

/// How long an interval of bandwidth and IOPS samples is, as in fio.
const SAMPLE_NS: u64 = 500_000_000;

impl Clock {
    pub(super) fn new(job: &Job) -> Self {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let ramp_ns = ns(job.ramp_time);
        let runtime_ns = job.runtime.map_or(u64::MAX, ns);
        let over = ramp_ns.saturating_add(runtime_ns);
        Self { due: 0, ramp_ns, ramped: ramp_ns == 0, began: 0, runtime_ns, over, sampled: 0 }
    }

    pub(super) fn unlimited(now: u64) -> Self {
        let (runtime_ns, over) = (u64::MAX, u64::MAX);
        Self { due: now, ramp_ns: 0, ramped: true, began: now, runtime_ns, over, sampled: now }
    }

    #[inline]
    pub(super) fn is_due(&self, now: u64) -> bool {
        now >= self.due
    }

    /// Says once that the ramp is over.
    pub(super) fn ramp_ends(&mut self, now: u64) -> bool {
        let next = if self.ramped { self.over } else { self.ramp_ns };
        self.due = now.saturating_add(TICK_NS).min(next.max(now));
        if self.ramped || now < self.ramp_ns {
            return false;
        }
        self.begin_measuring(now);
        true
    }

    /// Says whether the work is over before anything was measured.
    pub(super) fn ends_in_ramp(&mut self, now: u64) -> bool {
        let in_ramp = !self.ramped;
        if in_ramp {
            self.begin_measuring(now);
        }
        in_ramp
    }

    fn begin_measuring(&mut self, now: u64) {
        (self.ramped, self.began, self.sampled) = (true, now, now);
        self.over = now.saturating_add(self.runtime_ns);
    }

    pub(super) fn sample_if_due(
        &mut self,
        stats: &mut WorkerStats,
        now: u64,
        used: PerDirection<bool>,
    ) {
        if now - self.sampled >= SAMPLE_NS {
            self.sample(stats, now, used);
        }
    }

    fn sample(&mut self, stats: &mut WorkerStats, now: u64, used: PerDirection<bool>) {
        // A rest shorter than half an interval would be a sample of noise.
        if now - self.sampled >= SAMPLE_NS / 2 || self.sampled == self.began {
            stats.sample(Duration::from_nanos(now - self.sampled), used);
            self.sampled = now;
        }
    }

    pub(super) fn is_over(&self, now: u64) -> bool {
        now >= self.over
    }

    /// Closes the last sample; returns how long was measured.
    pub(super) fn end(
        &mut self,
        stats: &mut WorkerStats,
        now: u64,
        used: PerDirection<bool>,
    ) -> u64 {
        self.sample(stats, now, used);
        now - self.began
    }
}
