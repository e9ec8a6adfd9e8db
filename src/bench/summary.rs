//! From what workers brought home to the entries of the report, and what casts doubt on them.
#![forbid(unsafe_code)]

use core::time::Duration;

use super::job::{Direction, Job};
use super::result::{DirectionResult, JobResult, Warning};
use super::stats::WorkerStats;
use super::usage::Usage;
use super::worker::{Errors, Outcome};

/// One entry of the report, with what it was made of, so that a group can be added up.
pub(super) struct Reported {
    pub(super) result: JobResult,
    stats: WorkerStats,
    times: Times,
    /// Whether it is to be added to others of its group.
    grouped: bool,
    /// Which job it is of.
    job: usize,
}

/// The times of one entry: those of its longest worker.
#[derive(Clone, Copy, Default)]
struct Times {
    runtime: Duration,
    verify_runtime: Duration,
    elapsed: Duration,
    /// What all workers took together, of which CPU time is a share.
    busy: Duration,
    usage: Usage,
}

/// Makes the entries of a job, one for each worker.
pub(super) fn report(jobs: &[Job], at: usize, group: u32, outcomes: Vec<Outcome>) -> Vec<Reported> {
    let job = &jobs[at];
    let each = |outcome: Outcome| {
        let Outcome { stats, runtime, verify_runtime, elapsed, usage, errors } = outcome;
        let times = Times { runtime, verify_runtime, elapsed, busy: elapsed, usage };
        let result = job_result(job, group, 1, &stats, &times, &errors);
        Reported { result, stats, times, grouped: job.group_reporting, job: at }
    };
    outcomes.into_iter().map(each).collect()
}

/// Makes the entry of a job that could not start.
pub(super) fn not_started(
    jobs: &[Job],
    at: usize,
    group: u32,
    error: &(dyn std::error::Error + 'static),
) -> Reported {
    let chain = core::iter::successors(Some(error), |error| error.source());
    let text: Vec<String> = chain.map(ToString::to_string).collect();
    let errors = Errors::one(text.join(": "), libc::EIO);
    let (stats, times) = (WorkerStats::default(), Times::default());
    let result = job_result(&jobs[at], group, 0, &stats, &times, &errors);
    Reported { result, stats, times, grouped: false, job: at }
}

fn job_result(
    job: &Job,
    group: u32,
    workers: u32,
    stats: &WorkerStats,
    times: &Times,
    errors: &Errors,
) -> JobResult {
    let mut result = JobResult::new(job, group, workers, stats, times.runtime);
    if !times.verify_runtime.is_zero() {
        // Reads of the verification took their own time; those of a mix took both.
        let mixed = if job.rw.uses(Direction::Read) { times.runtime } else { Duration::ZERO };
        let time = times.verify_runtime + mixed;
        let reads = stats.directions.get(Direction::Read);
        *result.directions.get_mut(Direction::Read) =
            DirectionResult::new(reads, time, &job.percentile_list);
    }
    result.error_count = errors.count;
    result.first_error.clone_from(&errors.first);
    result.first_errno = errors.errno;
    add_times(&mut result, times);
    result
}

fn add_times(result: &mut JobResult, times: &Times) {
    let percent = |time: Duration| {
        let whole = times.busy.as_secs_f64();
        if whole > 0.0 { time.as_secs_f64() / whole * 100.0 } else { 0.0 }
    };
    result.elapsed_ms = u64::try_from(times.elapsed.as_millis()).unwrap_or(u64::MAX);
    result.usr_cpu_percent = percent(times.usage.user);
    result.sys_cpu_percent = percent(times.usage.system);
    result.context_switches = times.usage.context_switches;
    result.major_faults = times.usage.major_faults;
    result.minor_faults = times.usage.minor_faults;
}

/// Adds up the workers of each group that asked for it.
pub(super) fn merge_groups(jobs: &[Job], reported: Vec<Reported>) -> Vec<Reported> {
    let mut merged: Vec<Reported> = Vec::new();
    for entry in reported {
        let group = entry.result.group_id;
        let into = merged
            .iter_mut()
            .find(|other| entry.grouped && other.grouped && other.result.group_id == group);
        match into {
            Some(into) => add(jobs, into, &entry),
            None => merged.push(entry),
        }
    }
    merged
}

fn add(jobs: &[Job], into: &mut Reported, other: &Reported) {
    into.stats.merge(&other.stats);
    into.times = Times {
        runtime: into.times.runtime.max(other.times.runtime),
        verify_runtime: into.times.verify_runtime.max(other.times.verify_runtime),
        elapsed: into.times.elapsed.max(other.times.elapsed),
        busy: into.times.busy + other.times.busy,
        usage: into.times.usage,
    };
    into.times.usage.add(&other.times.usage);
    let errors = Errors::of(&into.result, &other.result);
    let workers = into.result.workers + other.result.workers;
    let job = &jobs[into.job];
    into.result = job_result(job, into.result.group_id, workers, &into.stats, &into.times, &errors);
}

/// A run shorter than this has seen no steady state.
const SHORT_RUN: Duration = Duration::from_secs(1);

/// A rate is missed if less than this share of it was reached.
const RATE_TOLERANCE: f64 = 0.95;

/// Says what casts doubt on the results.
pub(super) fn warnings(
    jobs: &[Job],
    stages: &[core::ops::Range<usize>],
    cores: usize,
    addresses: impl Iterator<Item = String>,
    results: &[Reported],
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for Reported { result, job, .. } in results {
        if result.error_count > 0 {
            let (job, count) = (result.name.clone(), result.error_count);
            warnings.push(Warning::Errors { job, count });
        }
        if u128::from(result.runtime_ms) < SHORT_RUN.as_millis() {
            let (job, runtime_ms) = (result.name.clone(), result.runtime_ms);
            warnings.push(Warning::ShortRun { job, runtime_ms });
        }
        warnings.extend(rate_missed(&jobs[*job], result));
    }
    let busiest = stages.iter().map(|stage| {
        jobs[stage.clone()].iter().map(|job| job.numjobs).fold(0, u32::saturating_add)
    });
    let (workers, cores) = (busiest.max().unwrap_or(0), u32::try_from(cores).unwrap_or(u32::MAX));
    if workers > cores {
        warnings.push(Warning::TooManyWorkers { workers, cores });
    }
    let embedded = addresses.filter(|address| is_memory(address));
    warnings.extend(embedded.map(|address| Warning::MemoryDevice { address }));
    warnings
}

fn rate_missed(job: &Job, result: &JobResult) -> Option<Warning> {
    let rates = job.rate_iops.iter().filter(|(direction, _)| job.rw.uses(*direction));
    let asked: u64 = rates.filter_map(|(_, rate)| *rate).sum::<u64>() * u64::from(result.workers);
    let rated =
        |direction: Direction| job.rw.uses(direction) && job.rate_iops.get(direction).is_some();
    let of_rated = result.directions.iter().filter(|(direction, _)| rated(*direction));
    let found: f64 = of_rated.map(|(_, direction)| direction.iops).sum();
    let missed = asked > 0 && found < asked as f64 * RATE_TOLERANCE;
    let job = result.name.clone();
    missed.then_some(Warning::RateMissed { job, asked_iops: asked as f64, found_iops: found })
}

fn is_memory(address: &str) -> bool {
    address.starts_with("mem:") || address.starts_with("null:")
}
