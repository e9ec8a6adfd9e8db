//! Finding out that a command is overdue, at the cost of two counters per command.
//!
//! Time is cut into ticks of an eighth of the timeout. Every command counts towards the tick it was
//! submitted in and is taken off when it completes; a command is overdue when its tick's counter is
//! not zero [`TICKS_MAX`] ticks later. Nothing is scanned and the clock is read only now and then.
//!
//! A tick advances by one per look at the clock, whatever time has passed. So a caller that did not poll
//! for a minute is not told that the command it has just submitted is late: a command is overdue only
//! when the queue was looked at in at least that many ticks of its life.
//!
//! The same reading of the clock says when it is time to look at the controller itself.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Ticks in a timeout.
const TICKS_MAX: u8 = 8;

/// Counters: a power of two above `TICKS_MAX`, so that no tick in use shares one.
const SLOTS: usize = 16;

/// How many looks pass between two readings of the clock.
const LOOKS_PER_READING: u32 = 64;

/// How often the controller's registers are looked at while commands are in flight. Short enough for everybody to
/// hear of a failure within a second, and long beside the microsecond that a register takes.
const WATCH: Duration = Duration::from_millis(100);

/// Counts commands by the tick they were submitted in.
pub(crate) struct Deadlines {
    counts: [u32; SLOTS],
    now: u16,
    looks: u32,
    timeout: Duration,
    tick_began: Instant,
    watched: Instant,
    /// The tick whose commands have become overdue.
    overdue: Option<Tick>,
}

/// A tick: the low byte of a [`Stamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick(u16);

/// When a command was submitted, and what was tried since.
///
/// Bits 7:0 are the tick, bits 14:8 how often the request was sent before, bit 15 whether the device was asked to
/// abort it. A new command's stamp is its tick alone, so that what is above costs nothing until it is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp(u16);

const TICK: u16 = 0x00ff;
const TRIAL: u16 = 0x0100;
const TRIALS: u16 = 0x7f00;
const ABORTED: u16 = 0x8000;

impl Stamp {
    /// Says whether the command was submitted in a tick.
    pub(crate) fn is_of(self, tick: Tick) -> bool {
        self.0 & TICK == tick.0
    }

    /// Returns how often the request was sent before.
    pub(crate) fn trials(self) -> u8 {
        ((self.0 & TRIALS) / TRIAL) as u8
    }

    /// Says whether the controller was asked to abort the command.
    pub(crate) fn is_aborted(self) -> bool {
        self.0 & ABORTED != 0
    }

    /// Returns the stamp of a request that was sent so often before, at most 127 times.
    #[must_use]
    pub(crate) fn with_trials(self, trials: u8) -> Self {
        Self((self.0 & !TRIALS) | (u16::from(trials.min(127)) * TRIAL))
    }

    /// Returns the stamp of a request that is sent once more.
    #[must_use]
    pub(crate) fn sent_again(self) -> Self {
        Self(self.0 & !ABORTED).with_trials(self.trials().saturating_add(1))
    }

    /// Returns the stamp of a command that the controller was asked to abort.
    #[must_use]
    pub(crate) fn aborted(self) -> Self {
        Self(self.0 | ABORTED)
    }
}

impl Deadlines {
    pub(crate) fn new(timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            counts: [0; SLOTS],
            now: 0,
            looks: 0,
            timeout,
            tick_began: now,
            watched: now,
            overdue: None,
        }
    }

    /// Returns how long a command may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Counts a command in.
    #[inline(always)]
    pub(crate) fn start(&mut self) -> Stamp {
        self.counts[usize::from(self.now) % SLOTS] += 1;
        Stamp(self.now)
    }

    /// Counts a command out.
    #[inline(always)]
    pub(crate) fn stop(&mut self, stamp: Stamp) {
        self.counts[usize::from(stamp.0) % SLOTS] -= 1;
    }

    /// Counts a command that was counted in at `stamp` in again, as if it had been submitted now.
    pub(crate) fn restart(&mut self, stamp: Stamp) -> Stamp {
        self.stop(stamp);
        Stamp((stamp.0 & !TICK) | self.start().0)
    }

    /// Says whether something is to be seen to: the controller, or a command that is overdue. To be called at
    /// every poll.
    #[inline(always)]
    pub(crate) fn is_time(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        self.looks.is_multiple_of(LOOKS_PER_READING) && self.read_clock()
    }

    /// Says whether a command is overdue, to whoever has nothing else to look at. To be called at every poll.
    #[cfg(feature = "spdk")]
    #[inline(always)]
    pub(crate) fn overdue(&mut self) -> bool {
        self.is_time() && self.take_overdue().is_some()
    }

    /// Returns the tick whose commands have become overdue since this was asked last.
    pub(crate) fn take_overdue(&mut self) -> Option<Tick> {
        self.overdue.take()
    }

    #[cold]
    fn read_clock(&mut self) -> bool {
        let now = Instant::now();
        let watch = now.duration_since(self.watched) >= WATCH;
        if watch {
            self.watched = now;
        }
        if now.duration_since(self.tick_began) < self.timeout / u32::from(TICKS_MAX) {
            return watch;
        }
        self.tick_began = now;
        self.advance() || watch
    }

    /// Begins the next tick; says whether one that ends with it has commands left.
    fn advance(&mut self) -> bool {
        self.now = self.now.wrapping_add(1) & TICK;
        // One more, since the tick that a command counts towards had begun before it.
        let oldest = self.now.wrapping_sub(u16::from(TICKS_MAX) + 1) & TICK;
        let is_overdue = self.counts[usize::from(oldest) % SLOTS] > 0;
        if is_overdue {
            self.overdue = Some(Tick(oldest));
        }
        is_overdue
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
        let stamp = deadlines.start();
        assert!((0..TICKS_MAX).all(|_| !deadlines.advance()));
        assert!(deadlines.advance());
        let tick = deadlines.take_overdue().unwrap();
        assert!(stamp.is_of(tick) && !deadlines.start().is_of(tick));
        assert!(deadlines.take_overdue().is_none(), "it is told once");
    }

    #[test]
    fn a_command_that_is_counted_in_again_has_as_long_again() {
        let mut deadlines = deadlines();
        let stamp = deadlines.start().with_trials(2);
        assert_eq!((0..=TICKS_MAX).filter(|_| deadlines.advance()).count(), 1);
        let stamp = deadlines.restart(stamp).aborted();
        assert_eq!((stamp.trials(), stamp.is_aborted()), (2, true));
        assert!((0..TICKS_MAX).all(|_| !deadlines.advance()));
        assert!(deadlines.advance());
        assert!(stamp.is_of(deadlines.take_overdue().unwrap()));
        deadlines.stop(stamp);
        assert_eq!(deadlines.counts, [0; SLOTS]);
    }

    #[test]
    fn finished_commands_are_never_overdue_for_many_laps() {
        let mut deadlines = deadlines();
        for _ in 0..1000 {
            let stamps: Vec<Stamp> = (0..5).map(|_| deadlines.start()).collect();
            assert!(!deadlines.advance());
            stamps.into_iter().for_each(|stamp| deadlines.stop(stamp));
        }
        assert_eq!(deadlines.counts, [0; SLOTS]);
    }

    #[test]
    fn a_caller_that_slept_is_not_told_that_its_new_command_is_late() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        let _stamp = deadlines.start();
        // The clock is far ahead at the first reading, and still only one tick passes.
        let told = (0..LOOKS_PER_READING).any(|_| deadlines.is_time());
        assert!(!told && deadlines.take_overdue().is_none());
    }
}
