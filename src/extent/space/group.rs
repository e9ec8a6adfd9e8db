//! One allocation group: its free runs behind a lock, and two figures beside it.
//!
//! [`Group`] is padded, so that cores that work in different groups share no line. Whoever looks for space reads
//! the figures first and takes the lock only where there is something to be had.
//!
//! The invariant: the figures are those of the runs whenever the lock is free. They are hints to everyone who
//! does not hold it; a decision is made under the lock.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::runs::Runs;

/// A group. Two lines of 64 bytes: processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Group {
    free: AtomicU32,
    occupied: AtomicU32,
    runs: Mutex<Runs>,
}

impl Group {
    pub(super) fn new(runs: Runs) -> Self {
        let (free, occupied) = (runs.free().into(), runs.occupied().into());
        Self { free, occupied, runs: Mutex::new(runs) }
    }

    /// Returns how many units were free a moment ago.
    #[inline]
    pub(super) fn free(&self) -> u32 {
        // Relaxed: a hint, which publishes nothing. The lock orders what it is a hint of.
        self.free.load(Ordering::Relaxed)
    }

    /// Returns which classes had runs a moment ago.
    #[inline]
    pub(super) fn occupied(&self) -> u32 {
        self.occupied.load(Ordering::Relaxed)
    }

    /// Says whether there was a run of `class` or above a moment ago.
    #[inline]
    pub(super) fn holds(&self, class: u32) -> bool {
        self.occupied().checked_shr(class).is_some_and(|fitting| fitting != 0)
    }

    /// Works under the lock. No work panics with the runs half changed, so that a lock that a panic left
    /// behind is as good as any.
    #[inline]
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Runs) -> T) -> T {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut runs);
        self.free.store(runs.free(), Ordering::Relaxed);
        self.occupied.store(runs.occupied(), Ordering::Relaxed);
        result
    }
}
