//! Removal: a device is about to go, or has gone, and whoever uses it is told.
//!
//! A thread waits for the event, since no poll of a queue makes a system call. It tells once and ends; it also ends, told
//! or not, when the transport goes. Which descriptor shows the event, and what is said then, each transport knows.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// Who is told, with the words.
pub(super) type Told = Box<dyn FnOnce(&str) + Send>;

/// Waits for a device to go.
pub(super) struct Removal {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Shows one of `signs` when the device goes.
    source: OwnedFd,
    signs: PollFlags,
    /// We are going.
    end: OwnedFd,
    words: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    has_come: bool,
    told: Vec<Told>,
}

impl Removal {
    /// Begins to wait for one of `signs`, an error or the end of `source`; `words` are what is told then.
    pub(super) fn watch(source: OwnedFd, signs: PollFlags, words: String) -> io::Result<Self> {
        let (end, state) = (event()?, Mutex::default());
        let shared = Arc::new(Shared { source, signs, end, words, state });
        let watcher = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("udirect-removal".into());
        let thread = builder.spawn(move || watcher.wait())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Returns what is watched.
    pub(super) fn source(&self) -> &OwnedFd {
        &self.shared.source
    }

    /// Has somebody told; at once, if it has happened already.
    pub(super) fn tell(&self, told: Told) {
        let mut state = self.shared.lock();
        if state.has_come {
            drop(state);
            return told(&self.shared.words);
        }
        state.told.push(told);
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.shared.end, &1_u64.to_ne_bytes());
        let thread = self.thread.take().expect("it is taken once");
        // Whoever was told may have been the last to hold the transport; the thread then ends by itself.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wait(&self) {
        loop {
            let mut events = [(&self.source, self.signs), (&self.end, PollFlags::IN)]
                .map(|(source, signs)| PollFd::from_borrowed_fd(source.as_fd(), signs));
            if let Err(error) = poll(&mut events, None) {
                if error == rustix::io::Errno::INTR {
                    continue;
                }
                return tracing::warn!(%error, "no longer watched for: {}", self.words);
            }
            if !events[1].revents().is_empty() {
                return;
            }
            if !events[0].revents().is_empty() {
                return self.announce();
            }
        }
    }

    fn announce(&self) {
        let told = {
            let mut state = self.lock();
            state.has_come = true;
            core::mem::take(&mut state.told)
        };
        for told in told {
            told(&self.words);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes an event that nobody has raised.
pub(super) fn event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn watch() -> Removal {
        Removal::watch(event().unwrap(), PollFlags::IN, "it is about to go".into()).unwrap()
    }

    fn raise(removal: &Removal) {
        rustix::io::write(removal.source(), &1_u64.to_ne_bytes()).unwrap();
    }

    #[test]
    fn everybody_is_told_once_before_and_after() {
        let removal = watch();
        let (sender, receiver) = mpsc::channel();
        for _ in 0..2 {
            let sender = sender.clone();
            removal.tell(Box::new(move |what| sender.send(what.to_owned()).unwrap()));
        }
        raise(&removal);
        for _ in 0..2 {
            let words = receiver.recv_timeout(PATIENCE).unwrap();
            assert_eq!(words, "it is about to go");
        }
        removal.tell(Box::new(move |_| sender.send("late".into()).unwrap()));
        assert_eq!(receiver.try_recv().unwrap(), "late");
        raise(&removal);
        drop(removal);
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn whoever_is_told_may_let_go_of_the_last_hold() {
        let removal = Arc::new(Mutex::new(Some(watch())));
        let (sender, receiver) = mpsc::channel();
        let held = Arc::clone(&removal);
        removal.lock().unwrap().as_ref().unwrap().tell(Box::new(move |_| {
            drop(held.lock().unwrap().take());
            sender.send(()).unwrap();
        }));
        raise(removal.lock().unwrap().as_ref().unwrap());
        receiver.recv_timeout(PATIENCE).unwrap();
        assert!(removal.lock().unwrap().is_none());
    }
}
