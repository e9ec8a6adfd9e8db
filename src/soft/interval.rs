//! A set of block ranges: the blocks that Write Uncorrectable has spoilt.
//!
//! [`IntervalSet`] keeps disjoint, non-adjacent ranges in a map by their first block. `namespace` asks it
//! before a read and only if it is not empty.
//! Invariant: no two ranges touch, and none is empty.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// Disjoint ranges of blocks: first block to one past the last.
#[derive(Debug, Default)]
pub(super) struct IntervalSet {
    ranges: BTreeMap<u64, u64>,
}

impl IntervalSet {
    /// Adds `first..end`, which is not empty.
    pub(super) fn insert(&mut self, first: u64, end: u64) {
        let (mut low, mut high) = (first, end);
        while let Some((start, stop)) = self.touching(low, high) {
            self.ranges.remove(&start);
            (low, high) = (low.min(start), high.max(stop));
        }
        self.ranges.insert(low, high);
    }

    /// Takes `first..end` away.
    pub(super) fn remove(&mut self, first: u64, end: u64) {
        while let Some((start, stop)) = self.overlapping(first, end) {
            self.ranges.remove(&start);
            if start < first {
                self.ranges.insert(start, first);
            }
            if stop > end {
                self.ranges.insert(end, stop);
            }
        }
    }

    /// Says whether any block of `first..end` is in the set.
    pub(super) fn meets(&self, first: u64, end: u64) -> bool {
        self.overlapping(first, end).is_some()
    }

    /// Says whether every block of `first..end`, which is not empty, is in the set.
    pub(super) fn covers(&self, first: u64, end: u64) -> bool {
        self.overlapping(first, end).is_some_and(|(start, stop)| start <= first && end <= stop)
    }

    /// Says whether nothing is in the set.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn overlapping(&self, first: u64, end: u64) -> Option<(u64, u64)> {
        let (&start, &stop) = self.ranges.range(..end).next_back()?;
        (stop > first && first < end).then_some((start, stop))
    }

    fn touching(&self, first: u64, end: u64) -> Option<(u64, u64)> {
        let (&start, &stop) = self.ranges.range(..=end).next_back()?;
        (stop >= first).then_some((start, stop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    #[test]
    fn intervals_agree_with_a_bitmap() {
        let mut seed = Seed::from_env("intervals_agree_with_a_bitmap");
        let (mut set, mut bits) = (IntervalSet::default(), [false; 200]);
        for _ in 0..5000 {
            let first = seed.below(199);
            let end = first + 1 + seed.below(199 - first).min(20);
            let put = seed.chance(1, 2);
            bits[first as usize..end as usize].fill(put);
            if put {
                set.insert(first, end);
            } else {
                set.remove(first, end);
            }
            let (first, len) = (seed.below(190), 1 + seed.below(10));
            let expected = bits[first as usize..(first + len) as usize].contains(&true);
            assert_eq!(set.meets(first, first + len), expected);
            let covered = !bits[first as usize..(first + len) as usize].contains(&false);
            assert_eq!(set.covers(first, first + len), covered);
            let runs = bits.windows(2).filter(|pair| !pair[0] && pair[1]).count();
            assert_eq!(set.ranges.len(), runs + usize::from(bits[0]));
            assert_eq!(set.is_empty(), !bits.contains(&true));
        }
    }
}
