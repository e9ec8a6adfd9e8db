//! Interrupts: which vector raises which event of a host that waits for them.
//!
//! [`Interrupts`] belongs to the core; the listener routes vectors to the eventfds that a host hands over, and the thread
//! that serves the queues raises them. A host in this process polls, and routes none.
//! Invariant: raising never waits, whatever kind of descriptor a host has handed over.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::engine::lock;

/// Where each vector goes.
#[derive(Default)]
pub(super) struct Interrupts {
    /// Whether any goes anywhere, so that a host that polls pays one load.
    any: AtomicBool,
    vectors: Mutex<Vec<Option<OwnedFd>>>,
}

impl Interrupts {
    /// Has a vector raise an event from now on, or none.
    pub(super) fn route(&self, vector: u16, event: Option<OwnedFd>) -> io::Result<()> {
        if let Some(event) = &event {
            // A host that lets its event run full must not stop us.
            fcntl_setfl(event, fcntl_getfl(event)? | OFlags::NONBLOCK)?;
        }
        let mut vectors = lock(&self.vectors);
        let at = usize::from(vector);
        if vectors.len() <= at {
            vectors.resize_with(at + 1, || None);
        }
        vectors[at] = event;
        self.any.store(vectors.iter().any(Option::is_some), Ordering::Release);
        Ok(())
    }

    /// Has no vector raise anything.
    pub(super) fn clear(&self) {
        self.any.store(false, Ordering::Release);
        lock(&self.vectors).clear();
    }

    /// Raises a vector, if it goes anywhere.
    pub(super) fn raise(&self, vector: u16) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        if let Some(Some(event)) = lock(&self.vectors).get(usize::from(vector)) {
            // An event that is full has been raised already.
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::AsFd;

    fn raised(event: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(event, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    #[test]
    fn a_vector_raises_its_event_until_it_is_routed_elsewhere() {
        let (interrupts, event) =
            (Interrupts::default(), eventfd(0, EventfdFlags::empty()).unwrap());
        interrupts.raise(3);
        interrupts.route(3, Some(event.try_clone().unwrap())).unwrap();
        interrupts.raise(2);
        interrupts.raise(3);
        interrupts.raise(3);
        interrupts.raise(400);
        assert_eq!(raised(&event), 2);
        interrupts.route(3, None).unwrap();
        interrupts.raise(3);
        assert_eq!(raised(&event), 0);
        interrupts.route(0, Some(event.try_clone().unwrap())).unwrap();
        interrupts.clear();
        interrupts.raise(0);
        assert_eq!(raised(&event), 0);
    }

    #[test]
    fn an_event_that_is_full_stops_nobody() {
        let (interrupts, event) =
            (Interrupts::default(), eventfd(0, EventfdFlags::empty()).unwrap());
        rustix::io::write(event.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
        interrupts.route(0, Some(event.try_clone().unwrap())).unwrap();
        interrupts.raise(0);
        assert_eq!(raised(&event), u64::MAX - 1);
    }
}
