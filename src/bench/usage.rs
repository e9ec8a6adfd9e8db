//! What a thread has used of the machine: CPU time, faults, context switches, as the kernel counts them.
#![forbid(unsafe_code)]

use std::fs;
use std::time::Duration;

/// What a thread has used since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// Page faults that did not go to disk.
    pub minor_faults: u64,
    /// Page faults that went to disk.
    pub major_faults: u64,
    /// Context switches, voluntary and not.
    pub context_switches: u64,
}

impl Usage {
    /// Reads the counters of the calling thread; what the kernel does not tell stays 0.
    pub fn of_this_thread() -> Self {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        Self::parse(&stat, &status, rustix::param::clock_ticks_per_second())
    }

    /// Returns what was used since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            minor_faults: self.minor_faults.saturating_sub(earlier.minor_faults),
            major_faults: self.major_faults.saturating_sub(earlier.major_faults),
            context_switches: self.context_switches.saturating_sub(earlier.context_switches),
        }
    }

    /// Adds what another thread has used.
    pub fn add(&mut self, other: &Self) {
        self.user += other.user;
        self.system += other.system;
        self.minor_faults += other.minor_faults;
        self.major_faults += other.major_faults;
        self.context_switches += other.context_switches;
    }

    fn parse(stat: &str, status: &str, ticks_per_second: u64) -> Self {
        // The name in parentheses may hold anything; fields are counted from behind it (proc(5): the
        // state is field 3).
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let fields: Vec<u64> =
            behind.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
        let field = |number: usize| fields.get(number - 4).copied().unwrap_or(0);
        let time =
            |ticks: u64| Duration::from_nanos(ticks * (1_000_000_000 / ticks_per_second.max(1)));
        let switches = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        Self {
            minor_faults: field(10),
            major_faults: field(12),
            user: time(field(14)),
            system: time(field(15)),
            context_switches: switches("voluntary_ctxt_switches:")
                + switches("nonvoluntary_ctxt_switches:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_those_of_proc_5_whatever_the_name_of_the_thread() {
        let stat = "7 (a) b (c) R 1 2 3 4 5 6 10 0 12 0 140 150 0 0";
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4\n";
        let usage = Usage::parse(stat, status, 100);
        let expected = Usage {
            user: Duration::from_millis(1400),
            system: Duration::from_millis(1500),
            minor_faults: 10,
            major_faults: 12,
            context_switches: 7,
        };
        assert_eq!(usage, expected);
    }

    #[test]
    fn a_kernel_that_tells_nothing_gives_zeroes() {
        assert_eq!(Usage::parse("", "", 100), Usage::default());
    }
}
