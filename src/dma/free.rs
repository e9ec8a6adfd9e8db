//! Free ranges of a line of numbers: first fit, merged when given back.
//!
//! For control paths (arenas, IOVA space): correct and small before fast.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// The free part of an interval; ranges never touch, since neighbours merge.
#[derive(Debug, Default)]
pub(super) struct FreeRanges {
    /// Start to length.
    ranges: BTreeMap<u64, u64>,
}

impl FreeRanges {
    /// Makes a set with one free range.
    pub(super) fn new(start: u64, len: u64) -> Self {
        let mut free = Self::default();
        free.give(start, len);
        free
    }

    /// Takes `len` at a multiple of `align` (a power of two), as low as possible.
    pub(super) fn take(&mut self, len: u64, align: u64) -> Option<u64> {
        assert!(align.is_power_of_two() && len > 0, "take {len} at {align}");
        let (range, start) = self.ranges.iter().find_map(|(&start, &size)| {
            let aligned = start.checked_next_multiple_of(align)?;
            let end = aligned.checked_add(len)?;
            (end <= start + size).then_some((start, aligned))
        })?;
        self.cut(range, start, len);
        Some(start)
    }

    /// Gives a range back.
    ///
    /// # Panics
    ///
    /// If any of it is free already: that would be handing out the same memory twice.
    pub(super) fn give(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (mut from, mut to) = (start, start + len);
        if let Some((&before, &size)) = self.ranges.range(..start).next_back() {
            assert!(before + size <= start, "{start:#x}+{len:#x} is free already");
            if before + size == start {
                self.ranges.remove(&before);
                from = before;
            }
        }
        if let Some((&after, &size)) = self.ranges.range(start..).next() {
            assert!(after >= to, "{start:#x}+{len:#x} is free already");
            if after == to {
                self.ranges.remove(&after);
                to = after + size;
            }
        }
        self.ranges.insert(from, to - from);
    }

    /// Takes away whatever of `start..start + len` is free.
    pub(super) fn exclude(&mut self, start: u64, len: u64) {
        let end = start.saturating_add(len);
        let hit: Vec<(u64, u64)> = self
            .ranges
            .range(..end)
            .map(|(&from, &size)| (from, size))
            .filter(|&(from, size)| from + size > start)
            .collect();
        for (from, size) in hit {
            let (low, high) = (from.max(start), (from + size).min(end));
            self.cut(from, low, high - low);
        }
    }

    /// Returns the sum of all free ranges.
    pub(super) fn total(&self) -> u64 {
        self.ranges.values().sum()
    }

    /// Removes `start..start + len` from the free range that begins at `range`.
    fn cut(&mut self, range: u64, start: u64, len: u64) {
        let size = self.ranges.remove(&range).expect("the caller found this range");
        let (head, tail) = (start - range, range + size - (start + len));
        if head > 0 {
            self.ranges.insert(range, head);
        }
        if tail > 0 {
            self.ranges.insert(start + len, tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    #[test]
    fn neighbours_merge_so_that_the_whole_can_be_taken_again() {
        let mut free = FreeRanges::new(0, 100);
        let parts: Vec<u64> = (0..10).map(|_| free.take(10, 1).unwrap()).collect();
        assert_eq!(free.take(1, 1), None);
        for part in parts.into_iter().rev() {
            free.give(part, 10);
        }
        assert_eq!(free.take(100, 1), Some(0));
    }

    #[test]
    #[should_panic(expected = "is free already")]
    fn giving_twice_is_a_bug_that_shouts() {
        let mut free = FreeRanges::new(0, 100);
        free.give(50, 10);
    }

    #[test]
    fn excluded_windows_are_never_handed_out() {
        let mut free = FreeRanges::new(0, 100);
        free.exclude(20, 30);
        free.exclude(90, 1000);
        assert_eq!(free.total(), 60);
        assert_eq!(free.take(30, 1), Some(50));
        assert_eq!(free.take(20, 1), Some(0));
        assert_eq!(free.take(11, 1), None);
    }

    #[test]
    fn takes_and_gives_agree_with_a_map_of_units() {
        let mut seed = Seed::from_env("dma free ranges");
        let mut free = FreeRanges::new(0, 512);
        let mut model = [true; 512];
        let mut held: Vec<(u64, u64)> = Vec::new();
        for _ in 0..20_000 {
            if seed.chance(1, 2) || held.is_empty() {
                let (len, align) = (1 + seed.below(40), 1 << seed.below(5));
                let fits = |at: u64| (at..at + len).all(|unit| model[unit as usize]);
                let expected = (0..=512 - len).filter(|at| at % align == 0).find(|&at| fits(at));
                let taken = free.take(len, align);
                assert_eq!(taken, expected);
                if let Some(start) = taken {
                    (start..start + len).for_each(|unit| model[unit as usize] = false);
                    held.push((start, len));
                }
            } else {
                let (start, len) = held.swap_remove(seed.below(held.len() as u64) as usize);
                (start..start + len).for_each(|unit| model[unit as usize] = true);
                free.give(start, len);
            }
            assert_eq!(free.total(), model.iter().filter(|free| **free).count() as u64);
        }
    }
}
