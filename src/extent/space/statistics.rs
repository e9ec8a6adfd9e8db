//! What the free space looks like: how much, in how many pieces, of which sizes.
//!
//! [`Statistics`] is the answer, [`Tally`] what it is added up in, group by group.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::runs::CLASSES;

/// Free space at one moment; with others at work, at one moment for each group.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Units that are free.
    pub free_units: u64,
    /// In how many runs.
    pub runs: u64,
    /// The longest of them.
    pub largest_run: u64,
    /// Runs by size: entry k counts those of 2^k to 2^(k+1) - 1 units.
    pub histogram: [u64; CLASSES],
    /// How finely the free space is cut up, from 0 to 1.
    ///
    /// 0 if the free units of every group are one run, 1 if no two of them are neighbours. In between, the
    /// part of the doublings between a single unit and the one run of its group that an average free unit
    /// has lost: `1 - sum(len * log2(len)) / sum(free * log2(free))`, over runs and over groups. Halving every
    /// run adds the same, whatever their length; `1 - largest / free` is close to 1 even on an empty device,
    /// since no run crosses a group.
    pub fragmentation: f64,
}

/// Sums over the groups so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    free_units: u64,
    runs: u64,
    largest_run: u64,
    histogram: [u64; CLASSES],
    doublings: f64,
    doublings_whole: f64,
}

impl Tally {
    /// Adds the free runs of one group.
    pub(super) fn add_group(&mut self, runs: impl Iterator<Item = Range<u32>>) {
        let before = self.free_units;
        for run in runs {
            self.add_run(run.end - run.start);
        }
        self.doublings_whole += doublings(self.free_units - before);
    }

    fn add_run(&mut self, units: u32) {
        self.free_units += u64::from(units);
        self.runs += 1;
        self.largest_run = self.largest_run.max(u64::from(units));
        self.histogram[units.ilog2() as usize] += 1;
        self.doublings += doublings(u64::from(units));
    }

    pub(super) fn finish(self) -> Statistics {
        let kept =
            if self.doublings_whole > 0.0 { self.doublings / self.doublings_whole } else { 1.0 };
        Statistics {
            free_units: self.free_units,
            runs: self.runs,
            largest_run: self.largest_run,
            histogram: self.histogram,
            fragmentation: (1.0 - kept).clamp(0.0, 1.0),
        }
    }
}

/// Returns how many doublings lie between single units and a run of all `units`, for all of them.
fn doublings(units: u64) -> f64 {
    if units == 0 { 0.0 } else { units as f64 * (units as f64).log2() }
}
