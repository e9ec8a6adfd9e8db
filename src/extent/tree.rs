//! The map of one object: which units of the device its units are.
//!
//! [`ExtentTree`] keeps [`Mapped`] extents, at about 17 bytes each: packed entries in leaves
//! (`tree/leaves.rs`), 19 bits of length. What is longer lies in several entries and is reported as one. A
//! "unit" is an allocation unit of the store; this file knows neither bytes nor blocks, and nobody's locks.
//!
//! The invariant: no unit is mapped twice, and two entries that could be one are one: where an entry
//! continues the one before it, the two together are too long for an entry. So whoever walks a run looks at
//! no more than two entries for each [`ENTRY_UNITS_MAX`] units.
#![forbid(unsafe_code)]

use std::iter::FusedIterator;
use std::ops::Range;

use leaves::{Leaves, Packed, Place};

mod leaves;
#[cfg(test)]
mod tests;

/// The end of what can be mapped, in units of a file.
pub const FILE_UNITS_MAX: u64 = 1 << leaves::UNIT_BITS;
/// The end of what can be mapped to, in units of the device.
pub const DEVICE_UNITS_MAX: u64 = 1 << leaves::UNIT_BITS;
/// The most units of one entry; longer extents take several.
pub const ENTRY_UNITS_MAX: u64 = leaves::ENTRY_UNITS_MAX;

/// Entries of a leaf: 4 KiB.
const LEAF_ENTRIES: usize = 256;

/// A run of an object's units, and the run of the device's units that they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// First unit of the object.
    pub file: u64,
    /// First unit of the device.
    pub device: u64,
    /// How many.
    pub units: u64,
    /// Whether they hold data; if not, they are allocated and read as zeroes.
    pub written: bool,
}

impl Mapped {
    /// Says whether the extent can be kept: not empty, and within both limits.
    #[inline]
    pub fn fits(&self) -> bool {
        let within = |first: u64, most: u64| first < most && self.units <= most - first;
        self.units > 0 && within(self.file, FILE_UNITS_MAX) && within(self.device, DEVICE_UNITS_MAX)
    }

    /// Returns the unit of the object behind the last.
    #[inline]
    pub const fn end(&self) -> u64 {
        self.file + self.units
    }

    /// Returns the unit of the device behind the last: where an extent would go on.
    #[inline]
    pub const fn device_end(&self) -> u64 {
        self.device + self.units
    }

    /// Says whether `next` goes on where this ends, in the file, on the device and in kind.
    #[inline]
    fn goes_on_in(&self, next: &Self) -> bool {
        self.end() == next.file && self.device_end() == next.device && self.written == next.written
    }

    /// Returns what lies before a unit of the object; perhaps of no units.
    #[inline]
    fn before(self, at: u64) -> Self {
        Self { units: at.saturating_sub(self.file).min(self.units), ..self }
    }

    /// Returns what lies from a unit of the object on; perhaps of no units.
    #[inline]
    fn from(self, at: u64) -> Self {
        let skip = self.before(at).units;
        Self {
            file: self.file + skip,
            device: self.device + skip,
            units: self.units - skip,
            ..self
        }
    }
}

/// What lies at a unit of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An extent, from the unit that was asked for.
    Extent(Mapped),
    /// Nothing for so many units; `None` if nothing follows at all.
    Hole(Option<u64>),
}

/// The map of one object, from units of the object to units of the device.
pub type ExtentTree = Tree<LEAF_ENTRIES, ENTRY_UNITS_MAX>;

/// [`ExtentTree`], with a choice of sizes so that tests reach every border.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct Tree<const LEAF: usize, const LONGEST: u64> {
    leaves: Leaves<LEAF>,
    units: u64,
}

impl<const LEAF: usize, const LONGEST: u64> Tree<LEAF, LONGEST> {
    /// Makes a map of nothing; it takes no memory.
    pub const fn new() -> Self {
        assert!(LEAF >= 4 && LONGEST > 0 && LONGEST <= ENTRY_UNITS_MAX);
        Self { leaves: Leaves::new(), units: 0 }
    }

    /// Says what lies at `at`, from there on.
    ///
    /// Of an extent, the rest: all of it, or at least [`ENTRY_UNITS_MAX`] units, so that a lookup does not
    /// walk a terabyte.
    #[inline]
    pub fn find(&self, at: u64) -> Found {
        let place = self.leaves.first_ending_after(at);
        let Some(first) = self.leaves.get(place) else {
            return Found::Hole(None);
        };
        if first.file > at {
            return Found::Hole(Some(first.file - at));
        }
        let (found, _) = self.follow(first.from(at), place, LONGEST);
        Found::Extent(found)
    }

    /// Returns the last entry that ends at `at` or before it: what a new extent at `at` might go on from.
    pub fn before(&self, at: u64) -> Option<Mapped> {
        let next = self.leaves.first_ending_after(at);
        let covers = self.leaves.get(next).filter(|entry| entry.file < at);
        covers.map(|entry| entry.before(at)).or_else(|| self.entry_before(next))
    }

    /// Maps an extent whose units of the object are not mapped.
    ///
    /// # Panics
    ///
    /// If any of them is, or if the extent does not [fit](Mapped::fits): the caller has lost count.
    pub fn insert(&mut self, new: Mapped) {
        if new.file >= self.end() {
            return self.push(new);
        }
        assert!(new.fits(), "{new:?} does not fit");
        let place = self.leaves.first_ending_after(new.file);
        if let Some(next) = self.leaves.get(place) {
            assert!(new.end() <= next.file, "{new:?} over {next:?}");
        }
        self.units += new.units;
        self.write(place, place, &mut [new]);
    }

    /// Maps an extent behind all others.
    ///
    /// # Panics
    ///
    /// If it begins before [`Self::end`], or does not [fit](Mapped::fits).
    pub fn push(&mut self, new: Mapped) {
        assert!(new.fits(), "{new:?} does not fit");
        assert!(new.file >= self.end(), "{new:?} before the end at {}", self.end());
        self.units += new.units;
        let place = self.leaves.end();
        self.write(place, place, &mut [new]);
    }

    /// Unmaps a range and reports what was mapped there, in order.
    pub fn remove(&mut self, range: Range<u64>, removed: &mut impl FnMut(Mapped)) {
        let mut units = 0;
        for piece in self.range(range.clone()) {
            units += piece.units;
            removed(piece);
        }
        if units > 0 {
            self.units -= units;
            self.cut_out(&range);
        }
    }

    /// Makes what is unwritten in a range written.
    pub fn set_written(&mut self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let place = self.leaves.first_ending_after(at);
            let Some(entry) = self.leaves.get(place).filter(|entry| entry.file < range.end) else {
                return;
            };
            if !entry.written {
                self.set_entry_written(place, entry, &range);
            }
            at = entry.end();
        }
    }

    /// Returns the extents, in order.
    pub fn iter(&self) -> Runs<'_, LEAF, LONGEST> {
        self.range(0..FILE_UNITS_MAX)
    }

    /// Returns what is mapped in a range, in order; the first and the last cut to it.
    pub fn range(&self, range: Range<u64>) -> Runs<'_, LEAF, LONGEST> {
        Runs { tree: self, place: self.leaves.first_ending_after(range.start), range }
    }

    /// Returns how many entries there are: at least one for each extent.
    #[inline]
    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    /// Says whether nothing is mapped.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the last entry: of a long extent, its last part.
    #[inline]
    pub fn last(&self) -> Option<Mapped> {
        self.entry_before(self.leaves.end())
    }

    /// Returns the unit behind the last that is mapped.
    #[inline]
    pub fn end(&self) -> u64 {
        self.last().map_or(0, |entry| entry.end())
    }

    /// Returns how many units are mapped.
    #[inline]
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Returns how much memory the map has beside itself.
    pub fn heap_bytes(&self) -> usize {
        self.leaves.heap_bytes()
    }

    fn entry_before(&self, place: Place) -> Option<Mapped> {
        self.leaves.before(place).and_then(|before| self.leaves.get(before))
    }

    /// Adds the entries behind `place` to a run as long as they continue it and it has fewer than `enough`
    /// units; returns the place behind them too.
    #[inline]
    fn follow(&self, mut run: Mapped, place: Place, enough: u64) -> (Mapped, Place) {
        let mut place = self.leaves.next(place);
        while run.units < enough
            && let Some(next) = self.leaves.get(place)
            && run.goes_on_in(&next)
        {
            run.units += next.units;
            place = self.leaves.next(place);
        }
        (run, place)
    }

    /// Removes the entries of a range but for what stands out of it on both sides; there is at least one.
    fn cut_out(&mut self, range: &Range<u64>) {
        let start = self.leaves.first_ending_after(range.start);
        let mut last = self.leaves.first_ending_after(range.end - 1);
        let mut end = last;
        match self.leaves.get(last) {
            Some(entry) if entry.file < range.end => end = self.leaves.next(last),
            _ => last = self.leaves.before(end).unwrap_or(start),
        }
        let stub = |place, part: fn(Mapped, u64) -> Mapped, at| {
            self.leaves.get(place).map(|entry| part(entry, at)).filter(|part| part.units > 0)
        };
        let head = stub(start, Mapped::before, range.start);
        let tail = stub(last, Mapped::from, range.end);
        match (head, tail) {
            (Some(head), Some(tail)) => self.write(start, end, &mut [head, tail]),
            (Some(one), None) | (None, Some(one)) => self.write(start, end, &mut [one]),
            (None, None) => self.write(start, end, &mut []),
        }
    }

    /// Makes the part of an unwritten entry that is in a range written.
    fn set_entry_written(&mut self, place: Place, entry: Mapped, range: &Range<u64>) {
        let mut now = entry.from(range.start).before(range.end);
        now.written = true;
        let mut parts = [entry.before(range.start), now, entry.from(range.end)];
        let first = usize::from(parts[0].units == 0);
        let end = 3 - usize::from(parts[2].units == 0);
        self.write(place, self.leaves.next(place), &mut parts[first..end]);
    }

    /// Puts `runs` where the entries from `start` to before `end` were, joined with what they continue.
    ///
    /// They are cut from the front. The entry before them is joined unless it is full; the one behind if
    /// it fits into their last entry. One is enough: with the one after it, it was too long already.
    fn write(&mut self, mut start: Place, mut end: Place, runs: &mut [Mapped]) {
        if let Some(first) = runs.first_mut()
            && let Some(before) = self.leaves.before(start)
            && let Some(entry) = self.leaves.get(before)
            && entry.units < LONGEST
            && entry.goes_on_in(first)
        {
            *first = Mapped { units: entry.units + first.units, ..entry };
            start = before;
        }
        if let Some(last) = runs.last_mut()
            && let Some(entry) = self.leaves.get(end)
            && last.goes_on_in(&entry)
            && (last.units - 1) % LONGEST + 1 + entry.units <= LONGEST
        {
            last.units += entry.units;
            end = self.leaves.next(end);
        }
        let entries = runs.iter().flat_map(|run| Self::entries(*run));
        self.leaves.replace(start, end, entries);
    }

    /// Cuts a run into entries, all but the last as long as they can be.
    fn entries(run: Mapped) -> impl Iterator<Item = Packed> {
        let firsts = (run.file..run.end()).step_by(LONGEST as usize);
        firsts.map(move |at| Packed::new(run.from(at).before(at + LONGEST)))
    }
}

/// The extents of a range, in order: see [`Tree::range`].
#[derive(Clone, Debug)]
pub struct Runs<'a, const LEAF: usize, const LONGEST: u64> {
    tree: &'a Tree<LEAF, LONGEST>,
    place: Place,
    range: Range<u64>,
}

impl<const LEAF: usize, const LONGEST: u64> Iterator for Runs<'_, LEAF, LONGEST> {
    type Item = Mapped;

    fn next(&mut self) -> Option<Mapped> {
        let entry = self.tree.leaves.get(self.place)?;
        if entry.file >= self.range.end || self.range.is_empty() {
            return None;
        }
        let enough = self.range.end - entry.file;
        let (run, place) = self.tree.follow(entry, self.place, enough);
        self.place = place;
        Some(run.from(self.range.start).before(self.range.end))
    }
}

impl<const LEAF: usize, const LONGEST: u64> FusedIterator for Runs<'_, LEAF, LONGEST> {}

impl<'a, const LEAF: usize, const LONGEST: u64> IntoIterator for &'a Tree<LEAF, LONGEST> {
    type Item = Mapped;
    type IntoIter = Runs<'a, LEAF, LONGEST>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
