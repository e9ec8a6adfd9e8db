//! Which units of the device are free, and who gets which.
//!
//! ```text
//!   Space     takes and gives back runs of units; chooses the group           shared by all cores
//!    ├ Layout     unit of the device <-> group and unit within it             arithmetic
//!    └ Group      a lock, and beside it what the group has                    padded; each core prefers one
//!       └ Runs    free runs by their end, and by their size                   32 bits for each number
//! ```
//!
//! A run is looked for where the caller's previous one ended, then in the caller's own group, then in the
//! others; a shorter one is handed out only where no run is surely long enough. Cores that prefer different
//! groups meet only when their own is full.
//!
//! The invariant: a unit is free or somebody's, and no two takers get the same. Free runs within a group do
//! not touch; none crosses a group.
#![forbid(unsafe_code)]

use std::ops::Range;

use group::Group;
use layout::Layout;
use runs::{Runs, class_holding};
pub use statistics::Statistics;
use statistics::Tally;

mod group;
mod layout;
mod runs;
mod statistics;
#[cfg(test)]
mod tests;

/// A run of units of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First unit.
    pub start: u64,
    /// How many.
    pub units: u64,
}

impl Run {
    /// Returns the unit behind the last.
    #[inline]
    pub const fn end(&self) -> u64 {
        self.start + self.units
    }
}

/// A run in use that begins before the one before it ends, or is not all within the space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("units {start}+{units} in use where only {} to {} are left", left.start, left.end)]
pub struct Overlap {
    /// First unit of the run.
    pub start: u64,
    /// How many units it has.
    pub units: u64,
    /// What the runs before it have left.
    pub left: Range<u64>,
}

/// The free units of a device.
#[derive(Debug)]
pub struct Space {
    layout: Layout,
    groups: Box<[Group]>,
}

impl Space {
    /// Makes a space in which all units are free.
    pub fn all_free(units: Range<u64>) -> Self {
        let layout = Layout::new(units);
        let mut free = Filler::new(&layout);
        free.add(&layout, layout.units());
        free.finish(layout)
    }

    /// Makes a space in which all but `used` units are free: pairs of first unit and number, which rise.
    ///
    /// # Errors
    ///
    /// [`Overlap`] for the first run that does not lie behind the one before it, or not within `units`.
    pub fn from_used(
        units: Range<u64>,
        used: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<Self, Overlap> {
        let layout = Layout::new(units);
        let mut free = Filler::new(&layout);
        let mut left = layout.units();
        for (start, units) in used {
            let is_left = start >= left.start && start <= left.end && units <= left.end - start;
            if !is_left {
                return Err(Overlap { start, units, left });
            }
            free.add(&layout, left.start..start);
            left.start = start + units;
        }
        free.add(&layout, left);
        Ok(free.finish(layout))
    }

    /// Takes at most `most` units in one run, or `None` if every group was found empty.
    ///
    /// From `goal` on, if that unit is free: whatever there is. Otherwise `most` units from the group
    /// `preferred`, or from the others in turn, in the lowest run of the smallest class that surely has them.
    /// Otherwise a run of the largest class there is: no other is twice as long.
    pub fn take(&self, preferred: usize, goal: Option<u64>, most: u64) -> Option<Run> {
        assert!(most > 0, "a run of nothing was asked for");
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let home = preferred % self.groups.len();
        let goal = goal.filter(|unit| self.layout.units().contains(unit));
        let goal = goal.map(|unit| self.layout.find(unit));
        self.take_at_home(home, goal, most)
            .or_else(|| self.take_in_turn(home, most))
            .or_else(|| self.take_long(home, most))
    }

    /// Gives units back.
    ///
    /// # Panics
    ///
    /// If any of them is free, or not in the space: they would be handed out twice.
    pub fn give_back(&self, run: Run) {
        assert!(self.layout.has(run), "{run:?} given back to {:?}", self.layout.units());
        for (group, part) in self.layout.pieces(run) {
            let given = self.groups[group].with(|runs| runs.give(part));
            if let Err(free) = given {
                let free = self.layout.run(group, &free);
                panic!("{run:?} given back, where {free:?} is free already");
            }
        }
    }

    /// Takes these units and no others; says whether all of them were free, and takes none if not.
    ///
    /// For recovery and tests, before anyone else takes.
    ///
    /// # Panics
    ///
    /// If somebody takes some of them between the look and the taking.
    pub fn take_exact(&self, start: u64, units: u64) -> bool {
        let run = Run { start, units };
        let is_free = self.is_free(run);
        if is_free {
            for (group, part) in self.layout.pieces(run) {
                let taken = self.groups[group].with(|runs| runs.take_all(part));
                assert!(taken, "{run:?} was taken by somebody else meanwhile");
            }
        }
        is_free
    }

    /// Says whether every unit of a run is free.
    pub fn is_free(&self, run: Run) -> bool {
        let has = |group: usize, part: Range<u32>| self.groups[group].with(|runs| runs.has(&part));
        self.layout.has(run) && self.layout.pieces(run).all(|(group, part)| has(group, part))
    }

    /// Returns how many units are free; with others at work, a moment ago in each group.
    pub fn free_units(&self) -> u64 {
        self.groups.iter().map(|group| u64::from(group.free())).sum()
    }

    /// Returns the units of the space.
    pub fn units(&self) -> Range<u64> {
        self.layout.units()
    }

    /// Returns the number of groups.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Looks at every free run.
    pub fn statistics(&self) -> Statistics {
        let mut tally = Tally::default();
        for group in &self.groups {
            group.with(|runs| tally.add_group(runs.iter()));
        }
        tally.finish()
    }

    /// Returns about how much memory the space has beside itself.
    pub fn heap_bytes(&self) -> usize {
        let runs = |group: &Group| group.with(|runs| runs.heap_bytes());
        size_of_val(&*self.groups) + self.groups.iter().map(runs).sum::<usize>()
    }

    /// Takes at the goal, or `most` units from the caller's group: mostly one and the same, under one lock.
    #[inline]
    fn take_at_home(&self, home: usize, goal: Option<(usize, u32)>, most: u32) -> Option<Run> {
        let class = class_holding(most);
        let (group, at) = match goal {
            Some((group, at)) if group != home => {
                let part = self.groups[group].with(|runs| runs.take_at(at, most));
                if let Some(part) = part {
                    return Some(self.layout.run(group, &part));
                }
                (home, None)
            }
            goal => (home, goal.map(|(_, at)| at)),
        };
        let here = &self.groups[group];
        let is_worth_it = if at.is_some() { here.free() > 0 } else { here.holds(class) };
        let take = |runs: &mut Runs| {
            let at_goal = at.and_then(|at| runs.take_at(at, most));
            at_goal.or_else(|| runs.take_from_class(class, most))
        };
        let part = is_worth_it.then(|| here.with(take)).flatten()?;
        Some(self.layout.run(group, &part))
    }

    /// Takes `most` units from the first group, from `home` on, that surely has them.
    fn take_in_turn(&self, home: usize, most: u32) -> Option<Run> {
        let class = class_holding(most);
        self.in_turn(home).find_map(|(index, group)| {
            let part =
                group.holds(class).then(|| group.with(|runs| runs.take_from_class(class, most)));
            Some(self.layout.run(index, &part.flatten()?))
        })
    }

    /// Takes what there is of `most` units where the longest runs are; of groups alike, in the next in turn.
    fn take_long(&self, home: usize, most: u32) -> Option<Run> {
        loop {
            // The first of the best: `max_by_key` would return the last.
            let best =
                self.in_turn(home).rev().max_by_key(|(_, group)| group.occupied().checked_ilog2());
            let (index, group) = best.filter(|(_, group)| group.occupied() != 0)?;
            if let Some(part) = group.with(|runs| runs.take_long(most)) {
                return Some(self.layout.run(index, &part));
            }
            // Somebody was faster, and got it: look again.
        }
    }

    /// Returns every group once, from `home` on.
    fn in_turn(&self, home: usize) -> impl DoubleEndedIterator<Item = (usize, &Group)> {
        let (before, from) = self.groups.split_at(home);
        let from = from.iter().zip(home..self.groups.len()).map(|(group, index)| (index, group));
        from.chain(before.iter().enumerate())
    }
}

/// Collects free runs that rise, group by group.
struct Filler {
    groups: Vec<Vec<(u32, u32)>>,
}

impl Filler {
    fn new(layout: &Layout) -> Self {
        Self { groups: vec![Vec::new(); layout.groups()] }
    }

    /// Adds free units behind those before, not touching them.
    fn add(&mut self, layout: &Layout, free: Range<u64>) {
        let run = Run { start: free.start, units: free.end.saturating_sub(free.start) };
        for (group, part) in layout.pieces(run) {
            self.groups[group].push((part.end, part.start));
        }
    }

    fn finish(self, layout: Layout) -> Space {
        let group = |runs| Group::new(Runs::from_sorted(runs));
        Space { layout, groups: self.groups.into_iter().map(group).collect() }
    }
}
