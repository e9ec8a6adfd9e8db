//! Whether a controller can be used: one word, with the number of the reset that it has lived since.
//!
//! ```text
//!   live(n) --begin_reset--> resetting(n) --finish_reset--> live(n + 1)
//!      |                          |
//!      +---------- fail ----------+--> failing --stopped--> stopped      (the end)
//! ```
//!
//! A queue keeps the [`Era`] in which the controller learnt of it and compares it with the word at every poll. So
//! one comparison tells it of a failure, of a reset that is under way, and of one that it slept through.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};

/// The states, in the two low bits; a live word is that of its era.
const LIVE: u32 = 0;
const RESETTING: u32 = 1;
const FAILING: u32 = 2;
const STOPPED: u32 = 3;
const STATE: u32 = 3;

/// How far the word of an era is from that of the next.
const NEXT_ERA: u32 = 4;

/// A time from one reset to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Era(u32);

impl Era {
    /// An era that no controller lives in: that of a queue which no controller knows of.
    pub(super) const NONE: Self = Self(u32::MAX);
}

/// Whether a controller can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It works.
    Live(Era),
    /// It is being reset; who needs it lends a hand.
    Resetting,
    /// It is being stopped; its queues wait.
    Failing,
    /// It can no longer touch memory; its queues hand their requests back.
    Stopped,
}

/// The word.
pub(super) struct Health {
    word: AtomicU32,
}

impl Health {
    /// A controller that has come up.
    pub(super) fn new() -> Self {
        Self { word: AtomicU32::new(LIVE) }
    }

    /// Says whether the controller works and was not reset since `era` began. Looked at by every poll.
    #[inline(always)]
    pub(super) fn is(&self, era: Era) -> bool {
        // Acquire: who does not see a reset yet may go on with what the controller knew before it.
        self.word.load(Ordering::Acquire) == era.0
    }

    /// Says how the controller is.
    pub(super) fn state(&self) -> State {
        // Acquire: who sees `Stopped`, or another era, also sees that the device let go of its memory before.
        let word = self.word.load(Ordering::Acquire);
        match word & STATE {
            LIVE => State::Live(Era(word)),
            RESETTING => State::Resetting,
            FAILING => State::Failing,
            _ => State::Stopped,
        }
    }

    /// Ends an era; says whether this call did.
    pub(super) fn begin_reset(&self, era: Era) -> bool {
        let resetting = era.0 | RESETTING;
        let order = (Ordering::AcqRel, Ordering::Acquire);
        self.word.compare_exchange(era.0, resetting, order.0, order.1).is_ok()
    }

    /// Begins the next era; says whether nobody gave the controller up meanwhile.
    pub(super) fn finish_reset(&self) -> bool {
        let finish =
            |word: u32| (word & STATE == RESETTING).then(|| (word & !STATE).wrapping_add(NEXT_ERA));
        self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, finish).is_ok()
    }

    /// Begins the end. A controller that is at it already goes on.
    pub(super) fn fail(&self) {
        let fail = |word: u32| (word & STATE < FAILING).then_some(FAILING);
        // Already failing or stopped is as good.
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, fail);
    }

    /// Ends it: the device can no longer touch memory.
    pub(super) fn stopped(&self) {
        // Release: the device is cut off before anybody reads `Stopped`.
        self.word.store(STOPPED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn era(health: &Health) -> Era {
        match health.state() {
            State::Live(era) => era,
            other => panic!("it is {other:?}"),
        }
    }

    #[test]
    fn a_reset_begins_another_era_and_ends_the_last_for_good() {
        let health = Health::new();
        let first = era(&health);
        assert!(health.is(first) && !health.is(Era::NONE));
        assert!(health.begin_reset(first));
        assert!(!health.begin_reset(first), "one of those who ask begins it");
        assert_eq!((health.state(), health.is(first)), (State::Resetting, false));
        assert!(health.finish_reset());
        assert!(!health.is(first) && health.is(era(&health)));
        assert!(!health.begin_reset(first), "what went wrong before the reset is over");
    }

    #[test]
    fn nothing_comes_after_the_end() {
        for resetting in [false, true] {
            let health = Health::new();
            let first = era(&health);
            if resetting {
                health.begin_reset(first);
            }
            health.fail();
            assert_eq!(health.state(), State::Failing);
            assert!(!health.finish_reset() && !health.begin_reset(first));
            health.stopped();
            health.fail();
            assert_eq!(health.state(), State::Stopped);
            assert!(!health.is(first) && !health.is(Era::NONE), "nobody is of the last word");
        }
    }
}
