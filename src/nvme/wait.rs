//! Waiting: a little by spinning, then by sleeping, never without a deadline.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// One wait for something that somebody else does.
pub(super) struct Wait {
    deadline: Instant,
    pace: Pace,
}

/// How much time passes between two looks.
#[derive(Default)]
pub(super) struct Pace {
    looks: u32,
}

/// Looks before the first sleep: an in-process controller has answered by then.
const SPINS: u32 = 200;

/// The shortest and the longest sleep between two looks.
const NAP_MIN: Duration = Duration::from_micros(10);
const NAP_MAX: Duration = Duration::from_millis(1);

impl Wait {
    /// Begins to wait, `most` at the longest.
    pub(super) fn for_at_most(most: Duration) -> Self {
        Self { deadline: after(most), pace: Pace::default() }
    }

    /// Says whether the deadline has passed.
    pub(super) fn is_over(&self) -> bool {
        self.pace.looks > 0 && Instant::now() >= self.deadline
    }

    /// Passes some time before the next look.
    pub(super) fn pause(&mut self) {
        self.pace.pause();
    }
}

impl Pace {
    /// Passes some time: more, the longer it has taken.
    pub(super) fn pause(&mut self) {
        self.looks += 1;
        match self.looks.checked_sub(SPINS) {
            None => core::hint::spin_loop(),
            Some(naps) => std::thread::sleep(NAP_MAX.min(NAP_MIN * 2u32.pow(naps.min(10)))),
        }
    }
}

/// Longer than anybody waits, and short enough for every clock.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// Returns the moment after `time` from now. `Duration::MAX`, for no deadline, is a time too.
pub(super) fn after(time: Duration) -> Instant {
    Instant::now() + time.min(FOREVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_is_a_deadline_that_never_comes() {
        let mut wait = Wait::for_at_most(Duration::MAX);
        wait.pause();
        assert!(!wait.is_over());
    }
}
