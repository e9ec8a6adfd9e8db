//! How units of a device fall into groups: arithmetic, no state.
//!
//! [`Layout`] turns a unit of the device into a group and a unit of 32 bits within it, and back.
//!
//! The invariant: every unit of the space is in exactly one group, and no group has as many as 2^32.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::Run;

/// What a group has at least, unless the whole space has less.
pub(super) const GROUP_UNITS_MIN: u64 = 1 << 12;
/// What a group has at most; the last one may have [`GROUP_UNITS_MIN`] more.
pub(super) const GROUP_UNITS_MAX: u64 = 1 << 31;
/// How many groups there are at most, unless they would be too large: more than there are cores.
const GROUPS: u64 = 256;

/// Equal groups of a power of two; the last one has what is left.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    units: Range<u64>,
    shift: u32,
    groups: usize,
}

impl Layout {
    pub(super) fn new(units: Range<u64>) -> Self {
        let total = units.end.saturating_sub(units.start);
        let size = total.div_ceil(GROUPS).clamp(GROUP_UNITS_MIN, GROUP_UNITS_MAX);
        let shift = size.next_power_of_two().ilog2();
        // A remainder that is too small for a group goes to the one before.
        let rest = total & ((1 << shift) - 1);
        let groups = (total >> shift) + u64::from(rest >= GROUP_UNITS_MIN);
        Self { units, shift, groups: groups.max(1) as usize }
    }

    #[inline]
    pub(super) fn units(&self) -> Range<u64> {
        self.units.clone()
    }

    #[inline]
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    /// Returns the group of a unit of the space, and the unit within it.
    #[inline]
    pub(super) fn find(&self, unit: u64) -> (usize, u32) {
        let offset = unit - self.units.start;
        let group = ((offset >> self.shift) as usize).min(self.groups - 1);
        (group, (offset - ((group as u64) << self.shift)) as u32)
    }

    /// Returns the device's number for units of a group.
    #[inline]
    pub(super) fn run(&self, group: usize, part: &Range<u32>) -> Run {
        let base = self.units.start + ((group as u64) << self.shift);
        Run { start: base + u64::from(part.start), units: u64::from(part.end - part.start) }
    }

    /// Says whether a run is within the space.
    #[inline]
    pub(super) fn has(&self, run: Run) -> bool {
        run.start >= self.units.start
            && run.start <= self.units.end
            && run.units <= self.units.end - run.start
    }

    /// Cuts a run of the space at the borders of groups.
    pub(super) fn pieces(&self, run: Run) -> impl Iterator<Item = (usize, Range<u32>)> {
        let mut rest = run;
        std::iter::from_fn(move || {
            if rest.units == 0 {
                return None;
            }
            let (group, start) = self.find(rest.start);
            let units = rest.units.min(self.group_units(group) - u64::from(start));
            rest = Run { start: rest.start + units, units: rest.units - units };
            Some((group, start..start + units as u32))
        })
    }

    fn group_units(&self, group: usize) -> u64 {
        let total = self.units.end - self.units.start;
        let is_last = group == self.groups - 1;
        if is_last { total - ((group as u64) << self.shift) } else { 1 << self.shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_every_unit_once() {
        let min = GROUP_UNITS_MIN;
        let sizes = [0, 1, min, 2 * min - 1, 2 * min, 256 * min + 1, 257 * min, 1 << 28, 1 << 44];
        for total in sizes {
            let whole = Run { start: 77, units: total };
            let layout = Layout::new(77..77 + total);
            let pieces: Vec<_> = layout.pieces(whole).collect();
            assert_eq!(pieces.len(), if total == 0 { 0 } else { layout.groups() }, "{total}");
            let mut at = 77;
            for (group, part) in pieces {
                let run = layout.run(group, &part);
                assert_eq!((run.start, part.start), (at, 0));
                assert_eq!(layout.find(run.end() - 1), (group, part.end - 1));
                assert!(run.units >= min.min(total) && run.units < GROUP_UNITS_MAX + min);
                at = run.end();
            }
            assert_eq!(at, whole.end());
        }
    }

    #[test]
    fn a_tebibyte_of_4_kib_units_is_256_groups() {
        assert_eq!(Layout::new(0..1 << 28).groups(), 256);
        assert_eq!(Layout::new(0..3 << 28).groups(), 192);
        assert_eq!(Layout::new(0..1 << 20).groups(), 256);
        assert_eq!(Layout::new(0..1 << 40).groups(), 512);
    }
}
