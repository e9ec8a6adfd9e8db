//! Removal: the kernel asks for the device, and whoever uses it is told.
//!
//! A thread waits for the event, since no poll of a queue makes a system call. It tells once and ends; it also ends, told
//! or not, when the transport goes.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// Who is told, with the words.
pub(super) type Told = Box<dyn FnOnce(&str) + Send>;

/// Waits for the kernel to ask for a device.
pub(super) struct Removal {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// The kernel wants the device.
    wanted: OwnedFd,
    /// We are going.
    end: OwnedFd,
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_wanted: bool,
    told: Vec<Told>,
}

impl Removal {
    /// Begins to wait.
    pub(super) fn watch(name: &str) -> io::Result<Self> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let (wanted, end) = (event()?, event()?);
        let shared = Arc::new(Shared { wanted, end, name: name.into(), state: Mutex::default() });
        let watcher = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("udirect-removal".into());
        let thread = builder.spawn(move || watcher.wait())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Returns the event that the kernel is to raise.
    pub(super) fn event(&self) -> &OwnedFd {
        &self.shared.wanted
    }

    /// Has somebody told; at once, if the kernel has asked already.
    pub(super) fn tell(&self, told: Told) {
        let mut state = self.shared.lock();
        if state.is_wanted {
            drop(state);
            return told(&self.shared.words());
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
            let mut events = [&self.wanted, &self.end]
                .map(|event| PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN));
            if let Err(error) = poll(&mut events, None) {
                if error == rustix::io::Errno::INTR {
                    continue;
                }
                return tracing::warn!(%error, device = self.name, "its removal is no longer watched for");
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
            state.is_wanted = true;
            core::mem::take(&mut state.told)
        };
        let words = self.words();
        for told in told {
            told(&words);
        }
    }

    fn words(&self) -> String {
        format!("the kernel asks for {} back: it is about to be removed", self.name)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn raise(removal: &Removal) {
        rustix::io::write(removal.event(), &1_u64.to_ne_bytes()).unwrap();
    }

    #[test]
    fn everybody_is_told_once_before_and_after() {
        let removal = Removal::watch("0000:04:00.0").unwrap();
        let (sender, receiver) = mpsc::channel();
        for _ in 0..2 {
            let sender = sender.clone();
            removal.tell(Box::new(move |what| sender.send(what.to_owned()).unwrap()));
        }
        raise(&removal);
        for _ in 0..2 {
            let words = receiver.recv_timeout(PATIENCE).unwrap();
            assert_eq!(words, "the kernel asks for 0000:04:00.0 back: it is about to be removed");
        }
        removal.tell(Box::new(move |_| sender.send("late".into()).unwrap()));
        assert_eq!(receiver.try_recv().unwrap(), "late");
        raise(&removal);
        drop(removal);
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn whoever_is_told_may_let_go_of_the_last_hold() {
        let removal = Arc::new(Mutex::new(Some(Removal::watch("it").unwrap())));
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
