//! Rates and pauses: when the next I/O of a direction may begin.
//!
//! A rate is a schedule that does not wait for the device: the n-th I/O was wanted at its time even if
//! the device was late, and the latency that is corrected for coordinated omission counts from there.
#![forbid(unsafe_code)]

use super::job::{Direction, Job, PerDirection};

/// The schedule of one worker. Times are nanoseconds since the worker began.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    schedules: PerDirection<Option<Schedule>>,
    /// Directions of a mix, where rates decide which is next.
    mixed: Option<PerDirection<bool>>,
    thinktime_ns: u64,
    thinktime_ios: u32,
    ios_before_thinking: u32,
    thinking_until: u64,
}

#[derive(Clone, Copy, Debug)]
struct Schedule {
    ns_per_io: f64,
    ns_per_byte: f64,
    next: f64,
}

impl Pace {
    pub(super) fn new(job: &Job) -> Self {
        let per = |rate: Option<u64>| rate.map_or(0.0, |rate| 1e9 / rate as f64);
        let schedule = |direction| {
            let (bytes, ios) = (*job.rate.get(direction), *job.rate_iops.get(direction));
            (bytes.is_some() || ios.is_some()).then(|| Schedule {
                ns_per_io: per(ios),
                ns_per_byte: per(bytes),
                next: 0.0,
            })
        };
        let schedules = PerDirection::from_fn(schedule);
        let used = PerDirection::from_fn(|direction| job.rw.uses(direction));
        let rated = schedules.iter().any(|(_, schedule)| schedule.is_some());
        Self {
            schedules,
            mixed: (job.rw.is_mixed() && rated).then_some(used),
            thinktime_ns: u64::try_from(job.thinktime.as_nanos()).unwrap_or(u64::MAX),
            thinktime_ios: job.thinktime_blocks,
            ios_before_thinking: job.thinktime_blocks,
            thinking_until: 0,
        }
    }

    /// Says for which directions a rate is set.
    pub(super) fn rated(&self) -> PerDirection<bool> {
        PerDirection::from_fn(|direction| self.schedules.get(direction).is_some())
    }

    /// Says whether there is any rate or pause at all.
    pub(super) fn is_free(&self) -> bool {
        self.thinktime_ns == 0 && self.schedules.iter().all(|(_, schedule)| schedule.is_none())
    }

    /// Returns the direction that is next in a mix with rates: the one that has waited longest, or one
    /// without a rate, or the one that will be wanted first. Elsewhere the workload decides.
    ///
    /// Drawn at random, the one that is not wanted yet would hold the other one back.
    pub(super) fn choose(&self, now: u64) -> Option<Direction> {
        let used = self.mixed.as_ref()?;
        let next = |direction| match self.schedules.get(direction) {
            Some(schedule) => schedule.next,
            None => now as f64,
        };
        let used = Direction::ALL.into_iter().filter(|direction| *used.get(*direction));
        used.min_by(|one, other| next(*one).total_cmp(&next(*other)))
    }

    /// Returns when an I/O was wanted, or `None` if it is not wanted yet.
    pub(super) fn admit(&mut self, direction: Direction, bytes: u32, now: u64) -> Option<u64> {
        if now < self.thinking_until {
            return None;
        }
        let wanted = match self.schedules.get_mut(direction) {
            None => now,
            Some(schedule) if schedule.next > now as f64 => return None,
            Some(schedule) => {
                let wanted = schedule.next;
                schedule.next += schedule.ns_per_io + schedule.ns_per_byte * f64::from(bytes);
                wanted as u64
            }
        };
        self.think(now);
        Some(wanted)
    }

    fn think(&mut self, now: u64) {
        if self.thinktime_ns == 0 {
            return;
        }
        self.ios_before_thinking -= 1;
        if self.ios_before_thinking == 0 {
            self.ios_before_thinking = self.thinktime_ios;
            self.thinking_until = now.saturating_add(self.thinktime_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::Workload;
    use super::*;
    use std::time::Duration;

    fn job() -> Job {
        let mut job = Job::default();
        job.rate_iops.read = Some(1000);
        job
    }

    #[test]
    fn a_rate_is_kept_and_a_stall_does_not_lose_what_it_held_back() {
        let mut pace = Pace::new(&job());
        assert_eq!(pace.admit(Direction::Read, 4096, 0), Some(0));
        assert_eq!(pace.admit(Direction::Read, 4096, 999_999), None);
        assert_eq!(pace.admit(Direction::Read, 4096, 1_000_000), Some(1_000_000));
        // The worker was away for ten intervals: all ten were wanted at their times.
        let wanted: Vec<u64> =
            core::iter::from_fn(|| pace.admit(Direction::Read, 4096, 12_000_000)).collect();
        assert_eq!(wanted, (2..=12).map(|n| n * 1_000_000).collect::<Vec<u64>>());
    }

    #[test]
    fn directions_without_a_rate_are_free() {
        let mut pace = Pace::new(&job());
        assert_eq!(pace.admit(Direction::Write, 4096, 5), Some(5));
        assert!(!pace.is_free());
        assert!(Pace::new(&Job::default()).is_free());
    }

    #[test]
    fn rates_decide_the_order_of_a_mix() {
        let mut job = Job { rw: Workload::RandRw, ..job() };
        job.rate_iops.write = Some(250);
        let mut pace = Pace::new(&job);
        let mut counts = [0; 3];
        for now in (0..100_000_000).step_by(100_000) {
            let direction = pace.choose(now).unwrap();
            if pace.admit(direction, 4096, now).is_some() {
                counts[direction as usize] += 1;
            }
        }
        assert_eq!(counts, [100, 25, 0], "a tenth of a second of 1000 and 250 a second");
        assert_eq!(Pace::new(&Job::default()).choose(0), None);
    }

    #[test]
    fn a_pause_follows_so_many_ios() {
        let thinktime = Duration::from_micros(1);
        let mut pace = Pace::new(&Job { thinktime, thinktime_blocks: 2, ..Job::default() });
        assert!(pace.admit(Direction::Read, 1, 0).is_some());
        assert!(pace.admit(Direction::Read, 1, 0).is_some());
        assert!(pace.admit(Direction::Read, 1, 999).is_none());
        assert!(pace.admit(Direction::Read, 1, 1000).is_some());
    }
}
