//! The free runs of one group, by place and by size.
//!
//! [`Runs`] knows every run by its end, so that taking from the front of a run changes a value and moves
//! no key, and the ends of all runs of a size class, a power of two for each. Units are 32 bits, counted from
//! the start of the group; nothing here locks.
//!
//! The invariant: runs neither overlap nor touch, each is in the class of its length and in no other, and
//! `occupied` has the bits of the classes that are not empty.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};

/// One class for each power of two: class k has the runs of 2^k to 2^(k+1) - 1 units.
pub(super) const CLASSES: usize = 32;

/// Returns the class of a run, which is not empty.
#[inline]
fn class_of(units: u32) -> u32 {
    units.ilog2()
}

/// Returns the lowest class whose every run holds `units`; [`CLASSES`] if there is none.
#[inline]
pub(super) fn class_holding(units: u32) -> u32 {
    if units <= 1 { 0 } else { class_of(units - 1) + 1 }
}

/// Free runs of one group.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// End to start.
    by_end: BTreeMap<u32, u32>,
    /// The ends of each class.
    classes: [BTreeSet<u32>; CLASSES],
    occupied: u32,
    free: u32,
}

impl Runs {
    /// Makes the set of `runs`, pairs of end and start, which rise and do not touch.
    pub(super) fn from_sorted(runs: Vec<(u32, u32)>) -> Self {
        let mut ends: [Vec<u32>; CLASSES] = Default::default();
        let (mut free, mut occupied) = (0, 0);
        for &(end, start) in &runs {
            let class = class_of(end - start);
            ends[class as usize].push(end);
            occupied |= 1 << class;
            free += end - start;
        }
        // Both kinds of tree are built in one go from what is sorted.
        let classes = ends.map(BTreeSet::from_iter);
        Self { by_end: runs.into_iter().collect(), classes, occupied, free }
    }

    /// Returns how many units are free.
    #[inline]
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// Returns one bit for each class, set if there are runs of it.
    #[inline]
    pub(super) fn occupied(&self) -> u32 {
        self.occupied
    }

    /// Returns the runs, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u32>> {
        self.by_end.iter().map(|(&end, &start)| start..end)
    }

    /// Returns the free run that has the unit `at`.
    #[inline]
    pub(super) fn around(&self, at: u32) -> Option<Range<u32>> {
        let behind = (Bound::Excluded(at), Bound::Unbounded);
        let (&end, &start) = self.by_end.range(behind).next()?;
        (start <= at).then_some(start..end)
    }

    /// Takes at most `most` units from `at` on, or none if `at` is not free.
    #[inline]
    pub(super) fn take_at(&mut self, at: u32, most: u32) -> Option<Range<u32>> {
        let run = self.around(at)?;
        let part = at..at + most.min(run.end - at);
        self.cut(run, part.clone());
        Some(part)
    }

    /// Says whether all of `part`, which is not empty, is free.
    pub(super) fn has(&self, part: &Range<u32>) -> bool {
        self.around(part.start).is_some_and(|run| part.end <= run.end)
    }

    /// Takes all of `part`, which is not empty, or nothing if some of it is not free.
    pub(super) fn take_all(&mut self, part: Range<u32>) -> bool {
        let run = self.around(part.start).filter(|run| part.end <= run.end);
        run.map(|run| self.cut(run, part)).is_some()
    }

    /// Takes at most `most` units from the lowest run of the lowest class that is not below `class`.
    #[inline]
    pub(super) fn take_from_class(&mut self, class: u32, most: u32) -> Option<Range<u32>> {
        let fitting = self.occupied.checked_shr(class)?;
        (fitting != 0).then(|| self.take_lowest(class + fitting.trailing_zeros(), most))
    }

    /// Takes at most `most` units from the lowest run of the highest class: no run is twice as long.
    pub(super) fn take_long(&mut self, most: u32) -> Option<Range<u32>> {
        self.occupied.checked_ilog2().map(|class| self.take_lowest(class, most))
    }

    fn take_lowest(&mut self, class: u32, most: u32) -> Range<u32> {
        let lowest = self.classes[class as usize].first().copied();
        let run = lowest.and_then(|end| Some(*self.by_end.get(&end)?..end));
        let run = run.expect("a class that is occupied has a run, and every run has its place");
        let part = run.start..run.start + most.min(run.end - run.start);
        self.cut(run, part.clone());
        part
    }

    /// Gives units back, joined with the free runs on both sides.
    ///
    /// # Errors
    ///
    /// The free run that has some of them already; nothing has changed then.
    pub(super) fn give(&mut self, part: Range<u32>) -> Result<(), Range<u32>> {
        let mut near = self.by_end.range(part.start..).map(|(&end, &start)| start..end);
        let first = near.next();
        let (lower, upper) = match first {
            Some(run) if run.end == part.start => (Some(run), near.next()),
            other => (None, other),
        };
        if let Some(upper) = upper.as_ref().filter(|upper| upper.start < part.end) {
            return Err(upper.clone());
        }
        self.free += part.end - part.start;
        let start = lower.map_or(part.start, |lower| {
            self.drop_run(&lower);
            lower.start
        });
        match upper.filter(|upper| upper.start == part.end) {
            Some(upper) => self.set_start(upper, start),
            None => self.add_run(start..part.end),
        }
        Ok(())
    }

    /// Takes `part` out of the free run `run`, which has all of it.
    pub(super) fn cut(&mut self, run: Range<u32>, part: Range<u32>) {
        self.free -= part.end - part.start;
        let head = run.start..part.start;
        if part.end < run.end {
            self.set_start(run, part.end);
        } else {
            self.drop_run(&run);
        }
        if !head.is_empty() {
            self.add_run(head);
        }
    }

    /// Lets a run begin elsewhere.
    #[inline]
    fn set_start(&mut self, run: Range<u32>, start: u32) {
        let place = self.by_end.get_mut(&run.end);
        *place.expect("the caller found this run") = start;
        let (old, new) = (class_of(run.end - run.start), class_of(run.end - start));
        if old != new {
            self.leave_class(old, run.end);
            self.enter_class(new, run.end);
        }
    }

    fn add_run(&mut self, run: Range<u32>) {
        self.by_end.insert(run.end, run.start);
        self.enter_class(class_of(run.end - run.start), run.end);
    }

    fn drop_run(&mut self, run: &Range<u32>) {
        self.by_end.remove(&run.end);
        self.leave_class(class_of(run.end - run.start), run.end);
    }

    fn enter_class(&mut self, class: u32, end: u32) {
        self.classes[class as usize].insert(end);
        self.occupied |= 1 << class;
    }

    fn leave_class(&mut self, class: u32, end: u32) {
        let ends = &mut self.classes[class as usize];
        ends.remove(&end);
        if ends.is_empty() {
            self.occupied &= !(1 << class);
        }
    }

    /// Returns about how much memory the set has beside itself: trees are two thirds full, give or take.
    pub(super) fn heap_bytes(&self) -> usize {
        self.by_end.len() * (size_of::<(u32, u32)>() + size_of::<u32>()) * 3 / 2
    }
}

#[cfg(test)]
impl Runs {
    /// Panics if the invariant does not hold.
    pub(super) fn check(&self) {
        let runs: Vec<Range<u32>> = self.iter().collect();
        assert!(runs.is_sorted_by(|one, other| one.end < other.start), "{runs:?}");
        assert!(runs.iter().all(|run| !run.is_empty()));
        assert_eq!(self.free, runs.iter().map(|run| run.end - run.start).sum::<u32>());
        for (class, ends) in self.classes.iter().enumerate() {
            let of_class =
                runs.iter().filter(|run| class_of(run.end - run.start) as usize == class);
            assert!(ends.iter().eq(of_class.map(|run| &run.end)), "class {class}");
            assert_eq!(self.occupied >> class & 1 == 1, !ends.is_empty(), "class {class}");
        }
    }
}
