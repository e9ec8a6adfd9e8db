//! Runs jobs: checks everything first, opens devices once, stage by stage, one thread a worker.
//!
//! A stage is what runs at the same time: the jobs up to the next `stonewall`. Whatever can be known to
//! be wrong is found before anything is started. Workers are bound to cores, since a queue belongs to
//! one.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use super::lane::Route;

use super::job::{Direction, Job, PerDirection, Region, group_ids};
use super::option::OptionError;
use super::result::{DeviceInfo, Environment, RESULT_VERSION, RunResult, Warning};
use super::summary::{merge_groups, not_started, report, warnings};
use super::target::Devices;
use super::worker::{Live, Outcome, Worker, WorkerError};
use super::workload::{Generator, ReadBack};
use crate::dma::{DmaError, PageKind};
use crate::open::{OpenError, split_object};
use crate::units::LbaSize;
use crate::volume::StoreError;

/// What is to be run.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The jobs in order.
    pub jobs: Vec<Job>,
    /// The options of `[global]`, for the report.
    pub global: Vec<(String, String)>,
    /// Whether there may be more workers than cores.
    pub oversubscribe: bool,
    /// Which way I/O takes.
    pub route: Route,
}

/// How far a run is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The jobs that run.
    pub job: String,
    /// Since they began.
    pub elapsed: Duration,
    /// How much of them is done, 0 to 1; `None` where nobody can say.
    pub fraction: Option<f64>,
    /// How long they will still take.
    pub remaining: Option<Duration>,
    /// I/Os per second since the last look.
    pub iops: PerDirection<f64>,
    /// Bytes per second since the last look.
    pub bytes_per_s: PerDirection<f64>,
    /// I/Os that failed so far.
    pub errors: u64,
}

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// An object is made, or made longer, before anything is measured.
    LayingOut {
        /// Its name.
        object: &'a str,
        /// The bytes that are written for that.
        bytes: u64,
    },
    /// Jobs run.
    Progress(&'a Progress),
}

/// Why nothing was run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The plan is wrong.
    #[error("{job}: {problem}")]
    Job {
        /// The job.
        job: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is nothing to do.
    #[error("there is no job to run")]
    Empty,
    /// A device could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no store to find an object in, or no room in it.
    #[error("{address}")]
    Store {
        /// The address of its device.
        address: String,
        /// Why.
        source: StoreError,
    },
    /// A device was opened and cannot do what the job needs.
    #[error("{job}: cannot start a worker")]
    Start {
        /// The job.
        job: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl RunError {
    /// Says whether the request was wrong, and not the device.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Job { .. } | Self::Empty => true,
            Self::Open(error) => error.is_usage(),
            Self::Start { .. } | Self::Store { .. } => false,
        }
    }
}

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Runs a plan until it is done or `stop` is set; what was measured by then is the result.
///
/// # Errors
///
/// Whatever is wrong before anything has started. Failures of I/O are part of the result.
pub fn run(
    plan: &Plan,
    stop: &AtomicBool,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<RunResult, RunError> {
    let jobs = seeded(&plan.jobs)?;
    check_route(&jobs, plan.route)?;
    let cores = Cores::of_this_process();
    let stages = stages(&jobs);
    check_workers(&jobs, &stages, &cores, plan.oversubscribe)?;
    let mut devices = Devices::open(&jobs)?;
    let checked = jobs.iter().try_for_each(|job| check_against_device(job, &devices));
    let ready = checked.and_then(|()| check_queues(&jobs, &stages, &devices)).and_then(|()| {
        devices.lay_out(stop, &mut |object, bytes| observe(Event::LayingOut { object, bytes }))
    });
    if let Err(error) = ready {
        devices.discard();
        return Err(error);
    }
    let groups = group_ids(&jobs);
    let stamp = fastrand::u64(..);
    let mut results = Vec::new();
    for stage in &stages {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let run = Run { devices: &devices, cores: &cores, route: plan.route, stamp };
        let outcomes = match run_stage(&jobs[stage.clone()], run, stop, &mut |progress| {
            observe(Event::Progress(progress));
        }) {
            Ok(outcomes) => outcomes,
            Err(error) if results.is_empty() => return Err(error),
            // What ran before is worth keeping; what could not start is reported as failed.
            Err(error) => {
                results.extend(stage.clone().map(|at| not_started(&jobs, at, groups[at], &error)));
                break;
            }
        };
        let numbered = stage.clone().zip(outcomes);
        results.extend(numbered.flat_map(|(at, outcomes)| report(&jobs, at, groups[at], outcomes)));
    }
    let results = merge_groups(&jobs, results);
    let addresses = devices.filenames().cloned();
    let mut warnings = warnings(&jobs, &stages, cores.len(), addresses, &results);
    let pages = |name: &String| devices.device(name).dma().page_kind();
    if devices.filenames().any(|name| pages(name) == Some(PageKind::Ordinary)) {
        warnings.push(Warning::NoHugepages);
    }
    Ok(RunResult {
        version: RESULT_VERSION,
        timestamp_ms: now_ms(),
        environment: environment(&jobs, &devices),
        global_options: plan.global.clone(),
        jobs: results.into_iter().map(|reported| reported.result).collect(),
        warnings,
    })
}

/// Jobs with the seed that they run with.
fn seeded(jobs: &[Job]) -> Result<Vec<Job>, RunError> {
    if jobs.is_empty() {
        return Err(RunError::Empty);
    }
    jobs.iter()
        .map(|job| {
            let problem = |problem: String| RunError::Job { job: job.name.clone(), problem };
            job.validate().map_err(|error| problem(error.to_string()))?;
            if job.filename.is_empty() {
                return Err(problem("filename is missing: which device?".into()));
            }
            let randseed = if job.randrepeat { job.randseed } else { fastrand::u64(..) };
            Ok(Job { randseed, ..job.clone() })
        })
        .collect()
}

/// Returns the runs of jobs that go on at the same time.
fn stages(jobs: &[Job]) -> Vec<core::ops::Range<usize>> {
    let begins = (0..jobs.len()).filter(|&index| index == 0 || jobs[index].stonewall);
    let begins: Vec<usize> = begins.collect();
    let ends = begins.iter().skip(1).copied().chain([jobs.len()]);
    begins.iter().copied().zip(ends).map(|(begin, end)| begin..end).collect()
}

/// The cores that this process may use.
struct Cores(Vec<usize>);

impl Cores {
    fn of_this_process() -> Self {
        let set = rustix::thread::sched_getaffinity(None).unwrap_or_default();
        let most = rustix::thread::CpuSet::MAX_CPU;
        let cores: Vec<usize> = (0..most).filter(|&core| set.is_set(core)).collect();
        // A kernel that does not tell has one core at least.
        Self(if cores.is_empty() { vec![0] } else { cores })
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Binds the calling thread to a core. Without it the numbers are noisier, so a refusal is only said.
fn bind(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "a worker could not be bound to its core");
    }
}

fn check_workers(
    jobs: &[Job],
    stages: &[core::ops::Range<usize>],
    cores: &Cores,
    oversubscribe: bool,
) -> Result<(), RunError> {
    for job in jobs {
        let asked = job.cpus_allowed.iter().flatten();
        if let Some(core) = asked.into_iter().find(|core| !cores.0.contains(core)) {
            let problem = format!("cpus_allowed={core} is not a core that this process may use");
            return Err(RunError::Job { job: job.name.clone(), problem });
        }
    }
    for stage in stages {
        let workers: u64 = jobs[stage.clone()].iter().map(|job| u64::from(job.numjobs)).sum();
        if oversubscribe {
            continue;
        }
        if workers > cores.len() as u64 {
            let problem = format!(
                "numjobs: {workers} polling workers at once and {} cores to run them on \
                 (--oversubscribe lets them share)",
                cores.len()
            );
            return Err(RunError::Job { job: jobs[stage.start].name.clone(), problem });
        }
        if let Some((job, core)) = shared_core(&jobs[stage.clone()], cores) {
            let problem =
                format!("two polling workers would share core {core} (--oversubscribe lets them)");
            return Err(RunError::Job { job: job.name.clone(), problem });
        }
    }
    Ok(())
}

/// An object is reached through the pipeline: the queue below knows nothing of it.
fn check_route(jobs: &[Job], route: Route) -> Result<(), RunError> {
    let of_object = |job: &&Job| split_object(&job.filename).1.is_some();
    match jobs.iter().find(of_object).filter(|_| route.raw_queue) {
        Some(job) => {
            let problem = format!("--raw-queue goes past the store that {} is in", job.filename);
            Err(RunError::Job { job: job.name.clone(), problem })
        }
        None => Ok(()),
    }
}

/// Checks what only the device knows: sizes, depths, operations.
fn check_against_device(job: &Job, devices: &Devices) -> Result<(), RunError> {
    let device = &**devices.device(&job.filename);
    let (geometry, capacity) = (device.geometry(), devices.capacity(&job.filename));
    let problem = |problem: String| Err(RunError::Job { job: job.name.clone(), problem });
    let most = device.max_depth();
    if job.iodepth > most {
        return problem(format!(
            "iodepth {} exceeds the {most} that {} takes",
            job.iodepth, job.filename
        ));
    }
    let unit = u64::from(job.max_block_size());
    let io_size = job.io_size.map(|size| size.resolve(capacity, unit));
    if let Some(bytes) = io_size.filter(|bytes| *bytes < unit) {
        return problem(format!("io_size {bytes} is less than a block of {unit}"));
    }
    if job.rw.uses(Direction::Trim) && !geometry.operations.deallocate {
        return problem(format!("{} cannot deallocate", job.filename));
    }
    for number in 0..job.numjobs {
        let checked = job
            .region(number, capacity, geometry.lba_size)
            .and_then(|region| check_workload(job, number, region, geometry.lba_size));
        if let Err(error) = checked {
            return problem(error.to_string());
        }
    }
    Ok(())
}

fn check_workload(job: &Job, number: u32, region: Region, lba: LbaSize) -> Result<(), OptionError> {
    Generator::new(job, number, region, lba)?;
    if job.reads_back() {
        ReadBack::new(job, number, region, lba)?;
    }
    Ok(())
}

/// Checks that the workers of each stage do not need more queues than their device has.
fn check_queues(
    jobs: &[Job],
    stages: &[core::ops::Range<usize>],
    devices: &Devices,
) -> Result<(), RunError> {
    for stage in stages {
        let stage = &jobs[stage.clone()];
        for job in stage {
            let of_device =
                stage.iter().filter(|other| devices.are_one(&other.filename, &job.filename));
            let workers: u64 = of_device.map(|job| u64::from(job.numjobs)).sum();
            let most = devices.queues(&job.filename);
            if workers > u64::from(most) {
                let problem =
                    format!("{workers} workers at once exceed the {most} queues of the device");
                return Err(RunError::Job { job: job.name.clone(), problem });
            }
        }
    }
    Ok(())
}

/// What the workers of all stages share.
#[derive(Clone, Copy)]
struct Run<'a> {
    devices: &'a Devices,
    cores: &'a Cores,
    route: Route,
    stamp: u64,
}

/// Runs the jobs of one stage; returns what the workers of each brought home.
fn run_stage(
    jobs: &[Job],
    run: Run<'_>,
    stop: &AtomicBool,
    observe: &mut dyn FnMut(&Progress),
) -> Result<Vec<Vec<Outcome>>, RunError> {
    let mut workers = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        for number in 0..job.numjobs {
            workers.push((index, make_worker(job, number, run)?));
        }
    }
    let lives: Vec<Live> = workers.iter().map(|_| Live::default()).collect();
    let start = Start::default();
    let mut outcomes: Vec<Vec<Outcome>> = jobs.iter().map(|_| Vec::new()).collect();
    thread::scope(|scope| {
        let mut running = Vec::new();
        for (place, ((index, worker), live)) in workers.into_iter().zip(&lives).enumerate() {
            let core = core_of(&jobs[index], place, run.cores);
            let delay = jobs[index].startdelay;
            let start = &start;
            let work = move || {
                bind(core);
                if !start.wait() {
                    return None;
                }
                pause_unless(stop, delay);
                // A worker that panics takes nobody along who could be saved: the others stop, bring
                // home what they have, and the panic goes on from here.
                let _stopper = StopOnPanic(stop);
                Some(worker.run(stop, live))
            };
            let spawned = thread::Builder::new().spawn_scoped(scope, work).map_err(|source| {
                start.give(Go::Home);
                let (job, source) = (jobs[index].name.clone(), source.into());
                RunError::Start { job, source }
            })?;
            running.push((index, spawned));
        }
        start.give(Go::Ahead);
        watch(jobs, &lives, &|| running.iter().all(|(_, worker)| worker.is_finished()), observe);
        for (index, worker) in running {
            match worker.join() {
                Ok(outcome) => outcomes[index].extend(outcome),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(outcomes)
    })
}

/// The signal at which all workers of a stage start together, or go home because one of them could not be
/// made.
#[derive(Default)]
struct Start {
    given: Mutex<Option<Go>>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Go {
    Ahead,
    Home,
}

impl Start {
    fn give(&self, go: Go) {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = Some(go);
        self.changed.notify_all();
    }

    /// Waits for the signal; says whether to go ahead.
    fn wait(&self) -> bool {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let given = self.changed.wait_while(given, |given| given.is_none());
        *given.unwrap_or_else(PoisonError::into_inner) == Some(Go::Ahead)
    }
}

/// Stops everybody else if the thread that holds it panics.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn make_worker<'a>(job: &'a Job, number: u32, run: Run<'_>) -> Result<Worker<'a>, RunError> {
    let target = run.devices.target(&job.filename);
    let (capacity, lba_size) = (target.capacity(), target.geometry().lba_size);
    let made = job
        .region(number, capacity, lba_size)
        .map_err(WorkerError::from)
        .and_then(|region| Worker::new(job, number, &target, run.route, region, run.stamp));
    made.map_err(|error| {
        let job = job.name.clone();
        match error {
            // More memory than anybody has was asked for.
            WorkerError::Memory(error @ DmaError::Invalid { .. }) => {
                RunError::Job { job, problem: format!("bs times iodepth: {error}") }
            }
            error => RunError::Start { job, source: error.into() },
        }
    })
}

fn core_of(job: &Job, place: usize, cores: &Cores) -> usize {
    match job.cpus_allowed.as_deref() {
        Some(allowed) if !allowed.is_empty() => allowed[place % allowed.len()],
        _ => cores.0[place % cores.len()],
    }
}

/// Returns a job and the core that one of its workers would share with another worker of the stage.
fn shared_core<'a>(stage: &'a [Job], cores: &Cores) -> Option<(&'a Job, usize)> {
    let workers = stage.iter().flat_map(|job| (0..job.numjobs).map(move |_| job));
    let mut taken = Vec::new();
    for (place, job) in workers.enumerate().take(cores.len() + 1) {
        let core = core_of(job, place, cores);
        if taken.contains(&core) {
            return Some((job, core));
        }
        taken.push(core);
    }
    None
}

fn pause_unless(stop: &AtomicBool, delay: Duration) {
    let until = Instant::now() + delay;
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
}

/// Looks at the live counters until the workers are done.
fn watch(
    jobs: &[Job],
    lives: &[Live],
    done: &dyn Fn() -> bool,
    observe: &mut dyn FnMut(&Progress),
) {
    let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
    let names = names.join("+");
    let planned = planned(jobs);
    let (began, mut looked) = (Instant::now(), Instant::now());
    let mut before = Seen::default();
    let mut nap = Duration::from_millis(1);
    while !done() {
        thread::sleep(nap);
        // Short jobs are noticed at once, long ones do not keep a core awake.
        nap = (nap * 2).min(LOOK / 4);
        if looked.elapsed() < LOOK {
            continue;
        }
        let (seen, interval) = (Seen::of(lives), looked.elapsed().as_secs_f64());
        looked = Instant::now();
        let rate = |now: &[u64; 3], then: &[u64; 3]| {
            PerDirection::from_fn(|direction| {
                let at = direction as usize;
                now[at].saturating_sub(then[at]) as f64 / interval
            })
        };
        let elapsed = began.elapsed();
        let fraction = fraction(planned, elapsed, lives);
        observe(&Progress {
            job: names.clone(),
            elapsed,
            fraction,
            remaining: fraction
                .filter(|part| *part > 0.01)
                .map(|part| Duration::from_secs_f64(elapsed.as_secs_f64() * (1.0 - part) / part)),
            iops: rate(&seen.ios, &before.ios),
            bytes_per_s: rate(&seen.bytes, &before.bytes),
            errors: seen.errors,
        });
        before = seen;
    }
}

/// The live counters of all workers.
#[derive(Default)]
struct Seen {
    ios: [u64; 3],
    bytes: [u64; 3],
    errors: u64,
}

impl Seen {
    fn of(lives: &[Live]) -> Self {
        let mut seen = Self::default();
        for live in lives {
            for at in 0..3 {
                seen.ios[at] += live.ios[at].load(Ordering::Relaxed);
                seen.bytes[at] += live.bytes[at].load(Ordering::Relaxed);
            }
            seen.errors += live.errors.load(Ordering::Relaxed);
        }
        seen
    }
}

/// Returns how long the stage will take if every job has a time.
fn planned(jobs: &[Job]) -> Option<Duration> {
    let time = |job: &Job| {
        let runtime = job.runtime?;
        Some(job.startdelay + job.ramp_time + runtime)
    };
    jobs.iter().map(time).try_fold(Duration::ZERO, |longest, time| Some(longest.max(time?)))
}

fn fraction(planned: Option<Duration>, elapsed: Duration, lives: &[Live]) -> Option<f64> {
    let least = lives.iter().map(|live| live.permille.load(Ordering::Relaxed)).min()?;
    let of_time = planned.map_or(0.0, |planned| elapsed.as_secs_f64() / planned.as_secs_f64());
    // A job ends with its time or with its data, whichever is first.
    Some(of_time.max(least as f64 / 1000.0).min(1.0))
}

fn environment(jobs: &[Job], devices: &Devices) -> Environment {
    let mut seen: Vec<&str> = Vec::new();
    for job in jobs {
        if !seen.contains(&job.filename.as_str()) {
            seen.push(&job.filename);
        }
    }
    let describe = |address: &&str| {
        let device = devices.device(address);
        let (info, geometry) = (device.info().clone(), device.geometry());
        DeviceInfo {
            address: (*address).to_owned(),
            model: info.model,
            serial: info.serial,
            firmware: info.firmware,
            lba_bytes: geometry.lba_size.bytes(),
            capacity_bytes: geometry.capacity().0,
        }
    };
    Environment {
        devices: seen.iter().map(describe).collect(),
        seed: jobs.first().map_or(0, |job| job.randseed),
        ..Environment::of_this_machine()
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
