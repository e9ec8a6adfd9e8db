//! SPDK's environment: DPDK's EAL and SPDK's subsystems, on a thread of their own.
//!
//! A process has one, started by whoever comes first and stopped when the process ends: DPDK cannot start twice. The
//! thread polls SPDK's application thread, takes jobs, and sleeps in between. Whoever waits for a job has a deadline;
//! a late answer then goes to nobody. Invariant: only this thread opens and closes block devices and configures.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::{self, NonNull};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::address::{configuration, startup};
use super::sys;
use crate::block::{BlockError, Cause};

/// How long any one thing may take that is asked of SPDK.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the environment's thread sleeps: while somebody waits, and while nobody does.
const PAUSE_BUSY: Duration = Duration::from_micros(50);
const PAUSE_IDLE: Duration = Duration::from_millis(2);

/// How the environment starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentOptions {
    /// What DPDK's memory is made of.
    pub hugepages: Hugepages,
    /// How much of it there is, in MiB: SPDK's own pools, not the data, which lies in our memory.
    pub megabytes: u32,
    /// Whether SPDK looks for devices on the PCI bus.
    pub pci: bool,
    /// A configuration of SPDK's, in JSON, that is loaded at the start.
    pub config: Option<PathBuf>,
}

/// What DPDK's memory is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hugepages {
    /// Hugepages where there are enough of them, ordinary pages otherwise.
    #[default]
    Prefer,
    /// Ordinary pages (`--no-huge`).
    Never,
    /// Hugepages of the filesystem that is mounted here.
    At(PathBuf),
}

impl Default for EnvironmentOptions {
    /// 320 MiB, of hugepages if there are any; no PCI devices.
    fn default() -> Self {
        Self { hugepages: Hugepages::default(), megabytes: 320, pci: false, config: None }
    }
}

/// SPDK in this process.
pub struct Environment {
    pci: bool,
    jobs: Sender<Job>,
    /// One configuration at a time: SPDK names the socket that it configures itself by after the process.
    configuring: Mutex<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Job {
    Run(Box<dyn FnOnce() + Send>),
    Stop,
}

enum State {
    Never,
    Up(Arc<Environment>),
    /// It did not start, or was stopped: what is said to whoever wants it.
    Over(String),
}

static STATE: Mutex<State> = Mutex::new(State::Never);

/// What SPDK has complained of lately.
static COMPLAINTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The most complaints that are kept.
const COMPLAINTS_MAX: usize = 4;

impl Environment {
    /// Starts SPDK in this process, or returns what was started: the options of whoever comes first count.
    ///
    /// # Errors
    ///
    /// `NoSpace` or `Invalid` when the environment is refused, `Busy` when it was asked for PCI devices after a start without,
    /// `Poisoned` when it cannot start again in this process.
    pub fn start(options: &EnvironmentOptions) -> Result<Arc<Self>, BlockError> {
        let mut state = lock(&STATE);
        match &*state {
            State::Up(up) if options.pci && !up.pci => {
                let what = "SPDK was started without PCI devices by an earlier address: open the PCIe one first".into();
                return Err(Cause::Busy { what }.into());
            }
            State::Up(up) => {
                let up = Arc::clone(up);
                drop(state);
                options.config.as_ref().map_or(Ok(()), |path| up.load_file(path))?;
                return Ok(up);
            }
            State::Over(why) => return Err(Cause::Poisoned { what: why.clone().into() }.into()),
            State::Never => {}
        }
        match Self::begin(options) {
            Ok(up) => {
                *state = State::Up(Arc::clone(&up));
                // SAFETY: the function takes nothing, returns nothing, and does not unwind.
                unsafe { libc::atexit(stop_at_exit) };
                Ok(up)
            }
            Err(error) => {
                let why = format!(
                    "SPDK did not start, and DPDK cannot start twice in a process: {error}"
                );
                *state = State::Over(why);
                Err(error)
            }
        }
    }

    fn begin(options: &EnvironmentOptions) -> Result<Arc<Self>, BlockError> {
        let configs = match &options.config {
            Some(path) => vec![startup(), read_config(path)?],
            None => vec![startup()],
        };
        let (jobs, inbox) = channel();
        let (ready, started) = channel();
        let wanted = options.clone();
        let builder = std::thread::Builder::new().name("udirect-spdk".into());
        let thread = builder.spawn(move || serve(&wanted, &configs, &ready, &inbox));
        let thread = thread.map_err(|error| no_space("a thread for SPDK").with_source(error))?;
        match started.recv_timeout(2 * PATIENCE) {
            Ok(result) => result?,
            Err(_) => return Err(timeout("SPDK's start")),
        }
        let thread = Mutex::new(Some(thread));
        Ok(Arc::new(Self { pci: options.pci, jobs, configuring: Mutex::new(()), thread }))
    }

    /// Has SPDK load a configuration: `{"subsystems": [{"subsystem": "bdev", "config": [{"method": …, "params": …}]}]}`.
    ///
    /// # Errors
    ///
    /// `Device` with SPDK's complaints, `Timeout`.
    pub fn load(&self, json: &str) -> Result<(), BlockError> {
        let _turn = lock(&self.configuring);
        lock(&COMPLAINTS).clear();
        let text = json.to_owned();
        let code = self.ask("a configuration", move |answer| {
            let len = text.len() as isize;
            // SAFETY: the environment's thread runs this as SPDK's application thread; SPDK copies the text before it
            // returns, and calls back once, with what it was given.
            unsafe {
                sys::spdk_subsystem_load_config(
                    text.as_ptr() as *mut c_void,
                    len,
                    Some(answered),
                    answer,
                    true,
                );
            };
        })?;
        if code == 0 { Ok(()) } else { Err(refused("the configuration", code)) }
    }

    /// Makes or takes away something of the subsystem `bdev`.
    pub(super) fn call(&self, call: (&str, serde_json::Value)) -> Result<(), BlockError> {
        self.load(&configuration("bdev", &[call]))
    }

    fn load_file(&self, path: &Path) -> Result<(), BlockError> {
        self.load(&read_config(path)?)
    }

    /// Runs something on the environment's thread and returns what it returns.
    pub(super) fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, BlockError> {
        let (answer, answered) = channel();
        let job = Job::Run(Box::new(move || {
            // Whoever asked may have given up.
            let _ = answer.send(job());
        }));
        self.jobs.send(job).map_err(|_| stopped())?;
        match answered.recv_timeout(PATIENCE) {
            Ok(value) => Ok(value),
            Err(RecvTimeoutError::Timeout) => Err(timeout(what)),
            Err(RecvTimeoutError::Disconnected) => Err(stopped()),
        }
    }

    /// Has the environment's thread begin something that SPDK answers by [`answered`], and waits for the answer.
    fn ask(
        &self,
        what: &'static str,
        begin: impl FnOnce(*mut c_void) + Send + 'static,
    ) -> Result<c_int, BlockError> {
        let (answer, code) = channel::<c_int>();
        let job = Job::Run(Box::new(move || begin(Box::into_raw(Box::new(answer)).cast())));
        self.jobs.send(job).map_err(|_| stopped())?;
        code.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => timeout(what),
            RecvTimeoutError::Disconnected => stopped(),
        })
    }

    fn stop(&self) {
        // It has ended if nobody takes the job.
        let _ = self.jobs.send(Job::Stop);
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

/// Stops SPDK when the process ends: its hugepages and files go home.
extern "C" fn stop_at_exit() {
    let over = State::Over("SPDK was stopped".into());
    let before = core::mem::replace(&mut *lock(&STATE), over);
    if let State::Up(up) = before {
        up.stop();
    }
}

/// Takes an answer of SPDK's to whoever waits for it.
extern "C" fn answered(code: c_int, context: *mut c_void) {
    // SAFETY: `ask` and `Control::wait` made the context of a box of this type, and SPDK calls back once.
    let answer = unsafe { Box::from_raw(context.cast::<Sender<c_int>>()) };
    // Nobody waits any more if the deadline has passed.
    let _ = answer.send(code);
}

extern "C" fn finished(context: *mut c_void) {
    answered(0, context);
}

/// The environment's thread, from start to end.
fn serve(
    options: &EnvironmentOptions,
    configs: &[String],
    ready: &Sender<Result<(), BlockError>>,
    inbox: &Receiver<Job>,
) {
    let control = match Control::start(options, configs) {
        Ok(control) => control,
        // Nobody waits any more if the deadline has passed.
        Err(error) => return drop(ready.send(Err(error))),
    };
    if ready.send(Ok(())).is_ok() {
        control.serve(inbox);
    }
    control.stop();
}

/// SPDK's application thread, which only this thread touches.
struct Control {
    application: NonNull<sys::spdk_thread>,
}

impl Control {
    fn start(options: &EnvironmentOptions, configs: &[String]) -> Result<Self, BlockError> {
        // SAFETY: the function outlives the process, and SPDK calls it with a text that is ended by 0.
        unsafe { sys::udirect_log_to(Some(complain)) };
        // SAFETY: a setting of one integer.
        unsafe { sys::spdk_log_set_print_level(sys::SPDK_LOG_NOTICE) };
        start_env(options)?;
        // SAFETY: the environment is up; no function is called for new threads, whose context has no byte.
        let code = unsafe { sys::spdk_thread_lib_init(None, 0) };
        if code != 0 {
            return Err(refused("SPDK's thread library", code));
        }
        // SAFETY: the library is up, and the name is ended by 0.
        let application = unsafe { sys::spdk_thread_create(c"udirect".as_ptr(), ptr::null()) };
        let application =
            NonNull::new(application).ok_or_else(|| no_space("SPDK's application thread"))?;
        // SAFETY: the thread exists until `stop`.
        unsafe { sys::spdk_set_thread(application.as_ptr()) };
        let control = Self { application };
        control.start_subsystems(configs)?;
        Ok(control)
    }

    /// As SPDK's own applications do: what may be said before the start, the start, and what may be said after it.
    fn start_subsystems(&self, configs: &[String]) -> Result<(), BlockError> {
        // SAFETY: a setting of one integer, by the application thread.
        unsafe { sys::spdk_rpc_set_state(sys::SPDK_RPC_STARTUP) };
        configs.iter().try_for_each(|text| self.load(text))?;
        let code = self.wait("the start of SPDK's subsystems", |answer| {
            // SAFETY: this is the application thread; SPDK calls back once with the context.
            unsafe { sys::spdk_subsystem_init(Some(answered), answer) };
        })?;
        if code != 0 {
            return Err(refused("the start of its subsystems", code));
        }
        // SAFETY: as above.
        unsafe { sys::spdk_rpc_set_state(sys::SPDK_RPC_RUNTIME) };
        configs.iter().try_for_each(|text| self.load(text))
    }

    fn load(&self, text: &str) -> Result<(), BlockError> {
        let code = self.wait("SPDK's configuration", |answer| {
            let (start, len) = (text.as_ptr() as *mut c_void, text.len() as isize);
            // SAFETY: as in `Environment::load`.
            unsafe { sys::spdk_subsystem_load_config(start, len, Some(answered), answer, true) };
        })?;
        if code == 0 { Ok(()) } else { Err(refused("the configuration", code)) }
    }

    /// Begins something and polls until it is answered.
    fn wait(
        &self,
        what: &'static str,
        begin: impl FnOnce(*mut c_void),
    ) -> Result<c_int, BlockError> {
        let (answer, answered) = channel::<c_int>();
        begin(Box::into_raw(Box::new(answer)).cast());
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.poll();
            match answered.recv_timeout(PAUSE_BUSY) {
                Ok(code) => return Ok(code),
                Err(_) if Instant::now() < deadline => {}
                Err(_) => return Err(timeout(what)),
            }
        }
    }

    fn serve(&self, inbox: &Receiver<Job>) {
        let mut busy_until = Instant::now();
        loop {
            self.poll();
            let pause = if Instant::now() < busy_until { PAUSE_BUSY } else { PAUSE_IDLE };
            match inbox.recv_timeout(pause) {
                Ok(Job::Run(job)) => {
                    job();
                    // What a job begins takes some polls.
                    busy_until = Instant::now() + Duration::from_secs(1);
                }
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn poll(&self) {
        // SAFETY: this is the one thread that polls it.
        unsafe { sys::spdk_thread_poll(self.application.as_ptr(), 0, 0) };
    }

    fn stop(&self) {
        let ended = self.wait("the end of SPDK's subsystems", |answer| {
            // SAFETY: as `spdk_subsystem_init`; block devices that are still open are closed by it.
            unsafe { sys::spdk_subsystem_fini(Some(finished), answer) };
        });
        if let Err(error) = ended {
            // What it uses stays until the process is gone, which is about to be.
            return tracing::warn!(%error, "SPDK did not stop");
        }
        let thread = self.application.as_ptr();
        // SAFETY: it exists, is this thread's own, and is current.
        unsafe { sys::spdk_thread_exit(thread) };
        let deadline = Instant::now() + PATIENCE;
        // SAFETY: it is destroyed below only.
        while !unsafe { sys::spdk_thread_is_exited(thread) } {
            if Instant::now() > deadline {
                return tracing::warn!("SPDK's application thread did not end");
            }
            self.poll();
        }
        // SAFETY: it has exited, and nobody else knows it.
        unsafe { sys::spdk_thread_destroy(thread) };
        // SAFETY: no thread is left: queues end theirs when they are dropped, or keep the process alive.
        unsafe { sys::spdk_thread_lib_fini() };
        // SAFETY: nothing of SPDK's is used after this.
        unsafe { sys::spdk_env_fini() };
    }
}

/// Starts DPDK, on one core that this thread may run on.
fn start_env(options: &EnvironmentOptions) -> Result<(), BlockError> {
    let core = rustix::thread::sched_getcpu();
    let cores = CString::new(format!("[{core}]")).expect("digits");
    let no_huge = match &options.hugepages {
        Hugepages::Never => true,
        Hugepages::Prefer => !has_hugepages(options.megabytes),
        Hugepages::At(_) => false,
    };
    let directory = match &options.hugepages {
        Hugepages::At(path) => Some(c_path(path)?),
        Hugepages::Prefer | Hugepages::Never => None,
    };
    // Memory without files leaves none behind, however the process ends, and needs nothing mounted.
    let in_memory = if no_huge || directory.is_some() { "" } else { " --in-memory" };
    let arguments = format!("--log-level=lib.eal:4{in_memory}");
    let arguments = CString::new(arguments).expect("it has no byte 0").into_raw();
    let wanted = sys::udirect_env {
        cores: cores.as_ptr(),
        huge_directory: directory.as_ref().map_or(ptr::null(), |path| path.as_ptr()),
        megabytes: c_int::try_from(options.megabytes).unwrap_or(c_int::MAX),
        no_huge,
        no_pci: !options.pci,
        arguments,
    };
    // SAFETY: the texts are ended by 0 and outlive the call.
    let code = unsafe { sys::udirect_env_start(&raw const wanted) };
    // SAFETY: it came from `into_raw`, its length is what it was, and SPDK has made its own copy.
    drop(unsafe { CString::from_raw(arguments) });
    if code != 0 {
        let memory = if no_huge { "ordinary pages" } else { "hugepages" };
        let asked = format!("the environment, with {} MiB of {memory}", options.megabytes);
        return Err(refused(&asked, code));
    }
    // SAFETY: it changes which cores this thread may run on: DPDK has pinned it.
    unsafe { sys::spdk_unaffinitize_thread() };
    Ok(())
}

/// Says whether that much memory is free in hugepages of 2 MiB.
fn has_hugepages(megabytes: u32) -> bool {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let free = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    free.is_some_and(|pages: u64| pages * 2 >= u64::from(megabytes))
}

fn c_path(path: &Path) -> Result<CString, BlockError> {
    let text = CString::new(path.as_os_str().as_encoded_bytes());
    text.map_err(|_| {
        let what = format!("{}: a path does not hold a byte 0", path.display()).into();
        Cause::NotFound { what }.into()
    })
}

fn read_config(path: &Path) -> Result<String, BlockError> {
    std::fs::read_to_string(path).map_err(|error| {
        let what = format!("the configuration {}", path.display()).into();
        BlockError::new(Cause::NotFound { what }).with_source(error)
    })
}

/// Keeps what SPDK says: errors for whoever asks next, everything for whoever reads logs.
extern "C" fn complain(level: c_int, text: *const c_char) {
    // SAFETY: the shim hands over a text that is ended by 0 and lives until this returns.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match level {
        sys::SPDK_LOG_ERROR => {
            tracing::debug!(target: "spdk", "{text}");
            let mut complaints = lock(&COMPLAINTS);
            if complaints.len() == COMPLAINTS_MAX {
                complaints.remove(0);
            }
            complaints.push(text);
        }
        sys::SPDK_LOG_WARN => tracing::debug!(target: "spdk", "{text}"),
        _ => tracing::trace!(target: "spdk", "{text}"),
    }
}

/// Makes the error of something that SPDK refused, in its own words where it had any.
pub(super) fn refused(what: &str, code: c_int) -> BlockError {
    let said = core::mem::take(&mut *lock(&COMPLAINTS)).join("; ");
    let reason = std::io::Error::from_raw_os_error(code.saturating_abs());
    let said = if said.is_empty() { reason.to_string() } else { said };
    Cause::Format { what: format!("SPDK refused {what}: {said}").into() }.into()
}

fn stopped() -> BlockError {
    Cause::Poisoned { what: "SPDK was stopped".into() }.into()
}

fn timeout(what: &'static str) -> BlockError {
    Cause::Timeout { what: what.into(), after: PATIENCE }.into()
}

pub(super) fn no_space(what: &'static str) -> BlockError {
    Cause::NoSpace { what: what.into() }.into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each value is replaced as a whole: a panic under the lock leaves one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
