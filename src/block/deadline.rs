//! Finding out that a command is overdue, at the cost of two counters per command.
//!
//! Time is cut into ticks of an eighth of the timeout. Every command counts towards the tick it was
//! submitted in and is taken off when it completes; a command is overdue when its tick's counter is
//! not zero [`TICKS_MAX`] ticks later. Nothing is scanned and the clock is read only now and then.
//!
//! A tick advances by one per look at the clock, whatever time has passed. So a caller that did not poll
//! for a minute is not told that the command it has just submitted is late: a command is overdue only
//! when the queue was looked at in at least that many ticks of its life.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Ticks in a timeout.
const TICKS_MAX: u8 = 8;

/// Counters: a power of two above `TICKS_MAX`, so that no tick in use shares one.
const SLOTS: usize = 16;

/// How many looks pass between two readings of the clock.
const LOOKS_PER_READING: u32 = 64;

/// Counts commands by the tick they were submitted in.
pub(crate) struct Deadlines {
    counts: [u32; SLOTS],
    now: u8,
    looks: u32,
    timeout: Duration,
    tick_began: Instant,
}

/// The tick a command was submitted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tick(u8);

impl Deadlines {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { counts: [0; SLOTS], now: 0, looks: 0, timeout, tick_began: Instant::now() }
    }

    /// Returns how long a command may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Counts a command in.
    #[inline(always)]
    pub(crate) fn start(&mut self) -> Tick {
        self.counts[usize::from(self.now) % SLOTS] += 1;
        Tick(self.now)
    }

    /// Counts a command out.
    #[inline(always)]
    pub(crate) fn stop(&mut self, tick: Tick) {
        self.counts[usize::from(tick.0) % SLOTS] -= 1;
    }

    /// Says whether a command is overdue. To be called at every poll.
    #[inline(always)]
    pub(crate) fn overdue(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        self.looks.is_multiple_of(LOOKS_PER_READING) && self.read_clock()
    }

    #[cold]
    fn read_clock(&mut self) -> bool {
        let now = Instant::now();
        if now.duration_since(self.tick_began) < self.timeout / u32::from(TICKS_MAX) {
            return false;
        }
        self.tick_began = now;
        self.advance()
    }

    /// Begins the next tick; says whether one that ends with it has commands left.
    fn advance(&mut self) -> bool {
        self.now = self.now.wrapping_add(1);
        // One more, since the tick that a command counts towards had begun before it.
        let oldest = self.now.wrapping_sub(TICKS_MAX + 1);
        self.counts[usize::from(oldest) % SLOTS] > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadlines() -> Deadlines {
        Deadlines::new(Duration::from_secs(30))
    }

    #[test]
    fn a_command_is_overdue_after_eight_whole_ticks_and_not_before() {
        let mut deadlines = deadlines();
        let _tick = deadlines.start();
        assert!((0..TICKS_MAX).all(|_| !deadlines.advance()));
        assert!(deadlines.advance());
    }

    #[test]
    fn finished_commands_are_never_overdue_for_many_laps() {
        let mut deadlines = deadlines();
        for _ in 0..1000 {
            let ticks: Vec<Tick> = (0..5).map(|_| deadlines.start()).collect();
            assert!(!deadlines.advance());
            ticks.into_iter().for_each(|tick| deadlines.stop(tick));
        }
        assert_eq!(deadlines.counts, [0; SLOTS]);
    }

    #[test]
    fn a_caller_that_slept_is_not_told_that_its_new_command_is_late() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        let _tick = deadlines.start();
        // The clock is far ahead at the first reading, and still only one tick passes.
        let late = (0..LOOKS_PER_READING).any(|_| deadlines.overdue());
        assert!(!late);
    }
}
