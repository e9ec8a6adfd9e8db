//! The result of a run: one record, of which every report is a face.
//!
//! [`RunResult`] holds the environment, one [`JobResult`] per reported job or group, and
//! [`Warning`]s that say what to do. It is plain data that serialises and reads back, with units in
//! its field names. The runner fills it from `stats.rs`; nothing in a report may come from anywhere
//! else.
#![forbid(unsafe_code)]

use core::{fmt, time::Duration};
use std::fs;

use serde::{Deserialize, Serialize};

use super::{
    human::{Iops, Percent},
    job::{Direction, Job, PerDirection},
    stats::{DepthCounters, DirectionStats, LatencyHistogram, Samples, WorkerStats},
};

/// The version of the record; a change that old readers would misread increments it.
pub const RESULT_VERSION: u32 = 1;

/// Everything about one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// [`RESULT_VERSION`] of the writer.
    pub version: u32,
    /// The end of the run in milliseconds since 1970.
    pub timestamp_ms: u64,
    /// On what it ran.
    pub environment: Environment,
    /// The options of `[global]`, as written.
    pub global_options: Vec<(String, String)>,
    /// The jobs in order; with `group_reporting` one for each group.
    pub jobs: Vec<JobResult>,
    /// What casts doubt on the numbers.
    pub warnings: Vec<Warning>,
}

/// The machine, the device and the seed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// The model of the processor.
    pub cpu_model: String,
    /// The release of the kernel.
    pub kernel: String,
    /// The processors that this process may use.
    pub cores: u32,
    /// The devices, in the order of their first job.
    pub devices: Vec<DeviceInfo>,
    /// The seed of the first job.
    pub seed: u64,
}

impl Environment {
    /// Describes this machine, without devices; what cannot be found out stays empty.
    pub fn of_this_machine() -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        Self {
            cpu_model: cpu_model(&cpus).to_owned(),
            kernel: kernel.trim().to_owned(),
            cores: u32::try_from(cores).unwrap_or(u32::MAX),
            ..Self::default()
        }
    }
}

fn cpu_model(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or("", |(_, model)| model.trim())
}

/// One device under test.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// The address that opened it.
    pub address: String,
    /// The model, as the device says.
    pub model: String,
    /// The serial number, as the device says.
    pub serial: String,
    /// The firmware revision, as the device says.
    pub firmware: String,
    /// The size of a logical block.
    pub lba_bytes: u32,
    /// The capacity.
    pub capacity_bytes: u64,
}

/// The result of one job, or of one group of workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// The name of the job.
    pub name: String,
    /// The reporting group.
    pub group_id: u32,
    /// The options of the job, as written.
    pub options: Vec<(String, String)>,
    /// The workload, by fio's name.
    pub rw: String,
    /// The address of the device.
    pub filename: String,
    /// The depth of each worker.
    pub iodepth: u32,
    /// The workers that were added up.
    pub workers: u32,
    /// I/Os that failed.
    pub error_count: u64,
    /// What the first failure said.
    pub first_error: Option<String>,
    /// The errno of the first failure; 0 for none.
    pub first_errno: i32,
    /// From the start of the job, ramp included, to its end.
    pub elapsed_ms: u64,
    /// The measured part.
    pub runtime_ms: u64,
    /// By direction.
    pub directions: PerDirection<DirectionResult>,
    /// Flushes.
    pub sync: LatencySummary,
    /// Depths and batches.
    pub depth: DepthCounters,
    /// CPU time in user mode, in percent of the runtime of one core.
    pub usr_cpu_percent: f64,
    /// CPU time in the kernel, in percent of the runtime of one core.
    pub sys_cpu_percent: f64,
    /// Context switches, voluntary and not.
    pub context_switches: u64,
    /// Page faults that went to disk.
    pub major_faults: u64,
    /// Page faults that did not.
    pub minor_faults: u64,
    /// What the queues counted.
    pub queue: QueueCounters,
}

impl JobResult {
    /// Sums up what the workers of `job` counted in `runtime`; errors, times and CPU are the
    /// runner's to add.
    pub fn new(
        job: &Job,
        group_id: u32,
        workers: u32,
        stats: &WorkerStats,
        runtime: Duration,
    ) -> Self {
        let summary = |direction| {
            let stats = stats.directions.get(direction);
            DirectionResult::new(stats, runtime, &job.percentile_list)
        };
        Self {
            name: job.name.clone(),
            group_id,
            options: job.written.clone(),
            rw: job.rw.name().to_owned(),
            filename: job.filename.clone(),
            iodepth: job.iodepth,
            workers,
            error_count: stats.directions.iter().map(|(_, stats)| stats.errors).sum(),
            runtime_ms: millis(runtime),
            directions: PerDirection::from_fn(summary),
            sync: LatencySummary::new(&stats.sync, &job.percentile_list),
            depth: stats.depth,
            queue: stats.queue,
            ..Self::default()
        }
    }

    /// Returns the I/Os of all directions.
    pub fn ios(&self) -> u64 {
        self.directions.iter().map(|(_, result)| result.ios).sum()
    }

    /// Iterates over the directions in which something was done or failed.
    pub fn active(&self) -> impl Iterator<Item = (Direction, &DirectionResult)> {
        self.directions.iter().filter(|(_, result)| result.ios + result.errors > 0)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The result of one direction of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DirectionResult {
    /// I/Os that completed.
    pub ios: u64,
    /// Bytes that were moved.
    pub bytes: u64,
    /// I/Os that moved less than was asked for.
    pub short: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// I/Os per second over the runtime.
    pub iops: f64,
    /// Bytes per second over the runtime.
    pub bytes_per_s: f64,
    /// The measured time; 0 if nothing was done.
    pub runtime_ms: u64,
    /// From the call to the queue having it.
    pub slat: LatencySummary,
    /// From the queue having it to its completion.
    pub clat: LatencySummary,
    /// From the call to its completion.
    pub lat: LatencySummary,
    /// From the time at which the rate wanted it to its completion; only under a rate.
    pub corrected: Option<LatencySummary>,
    /// Bandwidth per interval in KiB/s.
    pub bw_kib: Spread,
    /// I/Os per second per interval.
    pub iops_samples: Spread,
}

impl DirectionResult {
    /// Sums up `stats` over `runtime`.
    pub fn new(stats: &DirectionStats, runtime: Duration, percentiles: &[f64]) -> Self {
        let summary = |histogram| LatencySummary::new(histogram, percentiles);
        Self {
            ios: stats.ios,
            bytes: stats.bytes,
            short: stats.short,
            errors: stats.errors,
            iops: per_second(stats.ios, runtime),
            bytes_per_s: per_second(stats.bytes, runtime),
            runtime_ms: if stats.ios == 0 { 0 } else { millis(runtime) },
            slat: summary(&stats.slat),
            clat: summary(&stats.clat),
            lat: summary(&stats.lat),
            corrected: stats.corrected.as_ref().map(summary),
            bw_kib: Spread::new(&stats.bw),
            iops_samples: Spread::new(&stats.iops),
        }
    }
}

fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// A distribution of latencies, summed up. Everything is in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// How many latencies.
    pub count: u64,
    /// The shortest.
    pub min_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// The mean.
    pub mean_ns: f64,
    /// The standard deviation.
    pub stddev_ns: f64,
    /// Percent, and the latency that so many do not exceed; empty without latencies.
    pub percentiles_ns: Vec<(f64, u64)>,
    /// The upper end of each bucket that holds something, and its count.
    pub bins_ns: Vec<(u64, u64)>,
}

impl LatencySummary {
    /// Sums up `histogram`.
    pub fn new(histogram: &LatencyHistogram, percentiles: &[f64]) -> Self {
        let some = if histogram.count() == 0 { &[] } else { percentiles };
        Self {
            count: histogram.count(),
            min_ns: histogram.min(),
            max_ns: histogram.max(),
            mean_ns: histogram.mean(),
            stddev_ns: histogram.stddev(),
            percentiles_ns: some.iter().map(|p| (*p, histogram.percentile(*p))).collect(),
            bins_ns: histogram.bins().collect(),
        }
    }
}

/// How a rate varied over the intervals of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The lowest rate.
    pub min: f64,
    /// The highest rate.
    pub max: f64,
    /// The mean rate.
    pub mean: f64,
    /// The standard deviation.
    pub stddev: f64,
    /// The intervals.
    pub samples: u64,
}

impl Spread {
    fn new(samples: &Samples) -> Self {
        Self {
            min: samples.min(),
            max: samples.max(),
            mean: samples.mean(),
            stddev: samples.stddev(),
            samples: samples.count(),
        }
    }
}

/// What a polled design hides from IOPS: how the queues were used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCounters {
    /// Looks at the completion queue.
    pub polls: u64,
    /// Looks that found nothing.
    pub idle_polls: u64,
    /// Commands that completed.
    pub completions: u64,
    /// Commands that were submitted.
    pub submissions: u64,
    /// Writes to the submission doorbell.
    pub sq_doorbells: u64,
    /// Writes to the completion doorbell.
    pub cq_doorbells: u64,
    /// Submissions that found the queue full.
    pub queue_full: u64,
    /// I/Os that took more than one command.
    pub splits: u64,
    /// I/Os that shared the command of a neighbour.
    pub merges: u64,
    /// I/Os whose memory was copied because it was not aligned.
    pub bounces: u64,
}

impl QueueCounters {
    /// Adds what another queue counted.
    pub fn merge(&mut self, other: &Self) {
        self.polls += other.polls;
        self.idle_polls += other.idle_polls;
        self.completions += other.completions;
        self.submissions += other.submissions;
        self.sq_doorbells += other.sq_doorbells;
        self.cq_doorbells += other.cq_doorbells;
        self.queue_full += other.queue_full;
        self.splits += other.splits;
        self.merges += other.merges;
        self.bounces += other.bounces;
    }

    /// Returns the polls that found nothing, in percent.
    pub fn idle_percent(&self) -> f64 {
        ratio(self.idle_polls, self.polls) * 100.0
    }

    /// Returns how many completions a poll found that found any.
    pub fn completions_per_poll(&self) -> f64 {
        ratio(self.completions, self.polls.saturating_sub(self.idle_polls))
    }

    /// Returns how many submission doorbells a command cost.
    pub fn sq_doorbells_per_io(&self) -> f64 {
        ratio(self.sq_doorbells, self.submissions)
    }

    /// Returns how many completion doorbells a command cost.
    pub fn cq_doorbells_per_io(&self) -> f64 {
        ratio(self.cq_doorbells, self.completions)
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Something that casts doubt on the numbers; its text says what to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warning {
    /// The measured time was too short for a steady state.
    ShortRun {
        /// The job.
        job: String,
        /// The measured time.
        runtime_ms: u64,
    },
    /// More workers than processors: polling threads took time from each other.
    TooManyWorkers {
        /// Workers at the same time.
        workers: u32,
        /// Processors.
        cores: u32,
    },
    /// The rate that was asked for was not reached.
    RateMissed {
        /// The job.
        job: String,
        /// The rate asked for.
        asked_iops: f64,
        /// The rate reached.
        found_iops: f64,
    },
    /// The device is memory of this process.
    MemoryDevice {
        /// The address of the device.
        address: String,
    },
    /// Buffers lie on ordinary pages.
    NoHugepages,
    /// Much memory was copied to be aligned.
    Bounces {
        /// The job.
        job: String,
        /// I/Os that were copied, in percent.
        percent: f64,
    },
    /// I/Os failed.
    Errors {
        /// The job.
        job: String,
        /// How many.
        count: u64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShortRun { job, runtime_ms } => write!(
                f,
                "{job} ran for {runtime_ms} ms: set runtime=10s or more with time_based to see a \
                 steady state"
            ),
            Self::TooManyWorkers { workers, cores } => write!(
                f,
                "{workers} polling workers share {cores} cores: lower numjobs, or latency measures \
                 the scheduler"
            ),
            Self::RateMissed { job, asked_iops, found_iops } => write!(
                f,
                "{job} reached {} of {}: raise iodepth or lower rate_iops, and read the \
                 corrected latency",
                Iops(*found_iops),
                Iops(*asked_iops)
            ),
            Self::MemoryDevice { address } => write!(
                f,
                "{address} is memory of this process: the numbers are those of the software, not \
                 of a drive"
            ),
            Self::NoHugepages => f.write_str(
                "buffers lie on ordinary pages: reserve hugepages with `sysctl vm.nr_hugepages=64`",
            ),
            Self::Bounces { job, percent } => write!(
                f,
                "{job} copied {} of its I/Os: align buffers to the LBA size",
                Percent(*percent)
            ),
            Self::Errors { job, count } => write!(
                f,
                "{job} had {count} failed I/Os: its rates and latencies hold only those that \
                 succeeded"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_reads_back_as_it_was_written() {
        let mut stats = WorkerStats::default();
        stats.directions.read.complete(4096, 10, 20);
        stats.directions.read.sample(Duration::from_millis(500));
        let job = JobResult::new(&Job::default(), 1, 2, &stats, Duration::from_secs(1));
        let result = RunResult {
            version: RESULT_VERSION,
            timestamp_ms: 1,
            environment: Environment::of_this_machine(),
            global_options: vec![("bs".into(), "4k".into())],
            jobs: vec![job],
            warnings: vec![
                Warning::RateMissed { job: "a".into(), asked_iops: 1e6, found_iops: 0.5 },
                Warning::NoHugepages,
                Warning::Errors { job: "a".into(), count: 2 },
            ],
        };
        let text = serde_json::to_string(&result).unwrap();
        assert_eq!(serde_json::from_str::<RunResult>(&text).unwrap(), result);
    }

    #[test]
    fn rates_are_over_the_runtime_and_idle_directions_are_zero() {
        let mut stats = WorkerStats::default();
        (0..100).for_each(|_| stats.directions.write.complete(512, 1, 1));
        let job = JobResult::new(&Job::default(), 0, 1, &stats, Duration::from_millis(250));
        let write = &job.directions.write;
        assert_eq!((write.iops, write.bytes_per_s, write.runtime_ms), (400.0, 204_800.0, 250));
        assert_eq!(job.directions.read, DirectionResult::default());
        assert_eq!(
            job.active().map(|(direction, _)| direction).collect::<Vec<_>>(),
            [Direction::Write]
        );
    }

    #[test]
    fn ratios_of_nothing_are_zero() {
        let none = QueueCounters::default();
        assert_eq!((none.idle_percent(), none.completions_per_poll()), (0.0, 0.0));
        let some = QueueCounters { polls: 10, idle_polls: 6, completions: 128, ..none };
        assert_eq!((some.idle_percent(), some.completions_per_poll()), (60.0, 32.0));
    }

    #[test]
    fn the_model_is_found_in_the_description_of_the_cpus() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Xeon 5: fast\n"), "Xeon 5: fast");
        assert_eq!(cpu_model(""), "");
    }

    #[test]
    fn a_warning_says_what_to_do() {
        let text = Warning::TooManyWorkers { workers: 8, cores: 2 }.to_string();
        let expected =
            "8 polling workers share 2 cores: lower numjobs, or latency measures the scheduler";
        assert_eq!(text, expected);
    }
}
