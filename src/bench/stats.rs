//! What a worker counts while it runs, and how workers are added up.
//!
//! [`WorkerStats`] belongs to one worker and is merged after it ends, so nothing here is shared.
//! All memory is taken at the start; recording is a few additions. [`LatencyHistogram`] holds exact
//! extremes and moments beside the buckets, so that only percentiles carry the bucket error of 0.1
//! percent.
#![forbid(unsafe_code)]

use core::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{
    job::{Direction, PerDirection},
    result::QueueCounters,
};

/// The longest latency told apart, in nanoseconds: one hour. Longer ones count as this.
pub const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// The significant digits of a latency bucket.
const DIGITS: u8 = 3;

/// A distribution of latencies in nanoseconds.
#[derive(Clone, Debug)]
pub struct LatencyHistogram {
    counts: Histogram<u64>,
    min: u64,
    max: u64,
    sum: u128,
    /// The sum of the squares: 2^41 squared leaves room for 2^46 samples of an hour each.
    squares: u128,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl LatencyHistogram {
    /// Makes an empty distribution; its memory is never extended.
    pub fn new() -> Self {
        let counts = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS)
            .expect("the bounds are constants that the histogram accepts");
        Self { counts, min: u64::MAX, max: 0, sum: 0, squares: 0 }
    }

    /// Counts one latency.
    #[inline]
    pub fn record(&mut self, nanos: u64) {
        self.record_n(nanos, 1);
    }

    /// Counts one latency `count` times.
    #[inline]
    pub fn record_n(&mut self, nanos: u64, count: u64) {
        if count == 0 {
            return;
        }
        let nanos = nanos.min(LATENCY_NS_MAX);
        self.counts.saturating_record_n(nanos, count);
        self.min = self.min.min(nanos);
        self.max = self.max.max(nanos);
        let total = u128::from(nanos) * u128::from(count);
        self.sum += total;
        self.squares += total * u128::from(nanos);
    }

    /// Adds what `other` counted.
    pub fn merge(&mut self, other: &Self) {
        self.counts.add(&other.counts).expect("all histograms have the same bounds");
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// Forgets everything, as at the end of the ramp; keeps the memory.
    pub fn clear(&mut self) {
        self.counts.clear();
        (self.min, self.max, self.sum, self.squares) = (u64::MAX, 0, 0, 0);
    }

    /// Returns how many latencies were counted.
    pub fn count(&self) -> u64 {
        self.counts.len()
    }

    /// Returns the shortest latency, or 0 if there is none.
    pub fn min(&self) -> u64 {
        if self.count() == 0 { 0 } else { self.min }
    }

    /// Returns the longest latency.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Returns the mean, or 0 if there is none.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count().max(1) as f64
    }

    /// Returns the standard deviation of the sample, or 0 for less than two.
    pub fn stddev(&self) -> f64 {
        let count = self.count() as f64;
        if count < 2.0 {
            return 0.0;
        }
        let spread = self.squares as f64 - self.mean() * self.sum as f64;
        (spread.max(0.0) / (count - 1.0)).sqrt()
    }

    /// Returns the latency that `percent` of the samples do not exceed.
    pub fn percentile(&self, percent: f64) -> u64 {
        self.counts.value_at_quantile(percent / 100.0).min(self.max)
    }

    /// Iterates over the buckets that hold something: their upper end and their count.
    pub fn bins(&self) -> impl Iterator<Item = (u64, u64)> {
        let recorded = self.counts.iter_recorded();
        recorded.map(|bin| (bin.value_iterated_to().min(self.max), bin.count_at_value()))
    }
}

/// How a rate varied from one interval to the next: fio's `bw_*` and `iops_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Samples {
    count: u64,
    min: f64,
    max: f64,
    mean: f64,
    /// The sum of squared deviations from the mean (Welford).
    deviations: f64,
}

impl Samples {
    /// Adds the rate of one more interval.
    pub fn add(&mut self, rate: f64) {
        self.min = if self.count == 0 { rate } else { self.min.min(rate) };
        self.max = self.max.max(rate);
        self.count += 1;
        let before = rate - self.mean;
        self.mean += before / self.count as f64;
        self.deviations += before * (rate - self.mean);
    }

    /// Adds a worker that ran beside this one: rates and variances add up, as fio assumes for a
    /// group.
    pub fn add_parallel(&mut self, other: &Self) {
        let variance = self.variance() + other.variance();
        self.count += other.count;
        self.min += other.min;
        self.max += other.max;
        self.mean += other.mean;
        self.deviations = variance * self.count.saturating_sub(1) as f64;
    }

    /// Returns how many intervals were sampled.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the lowest rate.
    pub fn min(&self) -> f64 {
        self.min
    }

    /// Returns the highest rate.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// Returns the mean rate.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Returns the standard deviation of the rate.
    pub fn stddev(&self) -> f64 {
        self.variance().sqrt()
    }

    fn variance(&self) -> f64 {
        if self.count < 2 { 0.0 } else { self.deviations / (self.count - 1) as f64 }
    }
}

/// What one worker did in one direction.
#[derive(Clone, Debug, Default)]
pub struct DirectionStats {
    /// I/Os that completed.
    pub ios: u64,
    /// Bytes that were moved.
    pub bytes: u64,
    /// I/Os that moved less than was asked for.
    pub short: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// From the call to the queue having it.
    pub slat: LatencyHistogram,
    /// From the queue having it to its completion.
    pub clat: LatencyHistogram,
    /// From the call to its completion.
    pub lat: LatencyHistogram,
    /// From the time at which a rate wanted the I/O to begin to its completion; only under a rate.
    ///
    /// Without it a stall hides the I/Os that it held back (coordinated omission).
    pub corrected: Option<LatencyHistogram>,
    /// Bandwidth per interval in KiB/s.
    pub bw: Samples,
    /// I/Os per second per interval.
    pub iops: Samples,
    sampled_bytes: u64,
    sampled_ios: u64,
}

impl DirectionStats {
    /// Counts one completed I/O of `bytes` bytes.
    #[inline]
    pub fn complete(&mut self, bytes: u32, slat_ns: u64, clat_ns: u64) {
        self.complete_run(1, u64::from(bytes), slat_ns, clat_ns);
    }

    /// Counts `ios` I/Os of `bytes` bytes in all that were submitted together and reaped together.
    #[inline]
    pub fn complete_run(&mut self, ios: u64, bytes: u64, slat_ns: u64, clat_ns: u64) {
        self.ios += ios;
        self.bytes += bytes;
        self.slat.record_n(slat_ns, ios);
        self.clat.record_n(clat_ns, ios);
        self.lat.record_n(slat_ns.saturating_add(clat_ns), ios);
    }

    /// Closes an interval that lasted `elapsed`, usually 500 ms.
    pub fn sample(&mut self, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if seconds > 0.0 {
            self.bw.add((self.bytes - self.sampled_bytes) as f64 / 1024.0 / seconds);
            self.iops.add((self.ios - self.sampled_ios) as f64 / seconds);
        }
        (self.sampled_bytes, self.sampled_ios) = (self.bytes, self.ios);
    }

    /// Adds a worker that ran beside this one.
    pub fn merge(&mut self, other: &Self) {
        self.ios += other.ios;
        self.bytes += other.bytes;
        self.short += other.short;
        self.errors += other.errors;
        self.slat.merge(&other.slat);
        self.clat.merge(&other.clat);
        self.lat.merge(&other.lat);
        if let Some(theirs) = &other.corrected {
            self.corrected.get_or_insert_default().merge(theirs);
        }
        self.bw.add_parallel(&other.bw);
        self.iops.add_parallel(&other.iops);
    }

    /// Forgets everything, as at the end of the ramp; keeps the memory.
    pub fn clear(&mut self) {
        (self.ios, self.bytes, self.short, self.errors) = (0, 0, 0, 0);
        (self.sampled_bytes, self.sampled_ios) = (0, 0);
        (self.bw, self.iops) = (Samples::default(), Samples::default());
        let own = [&mut self.slat, &mut self.clat, &mut self.lat];
        own.into_iter().chain(&mut self.corrected).for_each(LatencyHistogram::clear);
    }
}

/// How many I/Os were in flight, submitted and reaped at a time, in fio's classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepthCounters {
    /// I/Os by the number in flight: 1, 2, 4, 8, 16, 32 and more, 64 and more.
    pub level: [u64; 7],
    /// Submissions by their number of I/Os: 0, up to 4, 8, 16, 32, 64, and more.
    pub submit: [u64; 7],
    /// Polls by their number of completions, in the classes of `submit`.
    pub complete: [u64; 7],
}

impl DepthCounters {
    /// Counts `ios` I/Os that were submitted while `depth` were in flight, themselves included.
    #[inline]
    pub fn mark_depth(&mut self, depth: u32, ios: u64) {
        self.level[depth.max(1).ilog2().min(6) as usize] += ios;
    }

    /// Counts one submission of `ios` I/Os.
    #[inline]
    pub fn mark_submit(&mut self, ios: u32) {
        self.submit[batch_class(ios)] += 1;
    }

    /// Counts one poll that found `ios` completions.
    #[inline]
    pub fn mark_complete(&mut self, ios: u32) {
        self.complete[batch_class(ios)] += 1;
    }

    /// Adds what another worker counted.
    pub fn merge(&mut self, other: &Self) {
        let own = [&mut self.level, &mut self.submit, &mut self.complete];
        for (own, theirs) in own.into_iter().zip([other.level, other.submit, other.complete]) {
            own.iter_mut().zip(theirs).for_each(|(own, theirs)| *own += theirs);
        }
    }
}

/// 0 is a class of its own; then up to 4, 8, 16, 32, 64, and the rest.
fn batch_class(ios: u32) -> usize {
    match ios {
        0 => 0,
        1..=4 => 1,
        _ => ((ios - 1).ilog2() as usize).min(6),
    }
}

/// Everything that one worker counts.
#[derive(Clone, Debug, Default)]
pub struct WorkerStats {
    /// By direction.
    pub directions: PerDirection<DirectionStats>,
    /// Latencies of flushes.
    pub sync: LatencyHistogram,
    /// Depths and batches.
    pub depth: DepthCounters,
    /// What the queue counted.
    pub queue: QueueCounters,
}

impl WorkerStats {
    /// Makes the counters of a worker; `rated` says for which directions a rate is set.
    pub fn new(rated: PerDirection<bool>) -> Self {
        let directions = PerDirection::from_fn(|direction| DirectionStats {
            corrected: rated.get(direction).then(LatencyHistogram::new),
            ..DirectionStats::default()
        });
        Self { directions, ..Self::default() }
    }

    /// Closes an interval in the directions that are in use.
    pub fn sample(&mut self, elapsed: Duration, used: PerDirection<bool>) {
        for direction in Direction::ALL.into_iter().filter(|direction| *used.get(*direction)) {
            self.directions.get_mut(direction).sample(elapsed);
        }
    }

    /// Adds a worker that ran beside this one, for group reporting.
    pub fn merge(&mut self, other: &Self) {
        for direction in Direction::ALL {
            self.directions.get_mut(direction).merge(other.directions.get(direction));
        }
        self.sync.merge(&other.sync);
        self.depth.merge(&other.depth);
        self.queue.merge(&other.queue);
    }

    /// Forgets everything, as at the end of the ramp; keeps the memory.
    pub fn clear(&mut self) {
        for direction in Direction::ALL {
            self.directions.get_mut(direction).clear();
        }
        self.sync.clear();
        (self.depth, self.queue) = (DepthCounters::default(), QueueCounters::default());
    }
}

#[cfg(test)]
mod tests;
