//! A thread that serves every queue: spins while there is work, then yields, then sleeps, longer after a while.
//!
//! [`Worker`] owns the thread and joins it when dropped. The thread holds the core, never the
//! controller, so that dropping the controller ends it.
//! Invariant: no queue is served after the worker is gone.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::engine::Core;

/// Empty passes before the thread gives its processor away.
const SPINS: u32 = 2000;

/// Empty passes before it sleeps between passes.
const YIELDS: u32 = 20_000;

/// How long it sleeps then: the latency of the first command after a pause.
const SLEEP: Duration = Duration::from_micros(50);

/// Empty passes before it sleeps long: a second at least, after which nobody is in a hurry.
const NAPS: u32 = YIELDS + 20_000;

/// How long it sleeps then: the latency of the first command after a long pause. An idle server wakes up as often.
const LONG_SLEEP: Duration = Duration::from_millis(1);

/// A running thread.
pub(super) struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts serving. If there is no thread to be had, the controller fails.
    pub(super) fn start(core: &Arc<Core>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, its_core) = (Arc::clone(&stop), Arc::clone(core));
        let builder = std::thread::Builder::new().name("udirect-soft".into());
        let thread = builder.spawn(move || serve(&its_core, &theirs));
        if thread.is_err() {
            core.fail("there is no thread to be had");
        }
        Self { stop, thread: thread.ok() }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}

fn serve(core: &Core, stop: &AtomicBool) {
    let mut idle = 0_u32;
    while !stop.load(Ordering::Acquire) {
        // Doorbells of no queue are worth a look only when there is nothing else to do.
        let served = if idle < SPINS { core.serve_all() } else { core.serve_and_patrol() };
        idle = if served > 0 { 0 } else { idle.saturating_add(1) };
        match idle {
            0..SPINS => std::hint::spin_loop(),
            SPINS..YIELDS => std::thread::yield_now(),
            YIELDS..NAPS => std::thread::sleep(SLEEP),
            _ => std::thread::sleep(LONG_SLEEP),
        }
    }
}
