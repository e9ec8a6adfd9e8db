//! Sorted entries in leaves: where they lie, and nothing of what they mean.
//!
//! [`Packed`] is one extent in 16 bytes, [`Leaves`] a sorted sequence of them, [`Place`] a position in it.
//! A leaf is a vector of at most `LEAF` entries; the first key of every leaf stands in one vector beside
//! them, so that a lookup is two binary searches in contiguous memory.
//!
//! The invariant: no leaf is empty, `firsts` is exact, and two neighbouring leaves together are more than
//! half a full one. Places are normal: behind the last entry of a leaf comes the first of the next.
#![forbid(unsafe_code)]

use super::Mapped;

/// Bits of a file unit and of a device unit.
pub(super) const UNIT_BITS: u32 = 54;
/// Bits of a length, which is stored less one.
const LEN_BITS: u32 = 19;
/// The most units of one entry.
pub(super) const ENTRY_UNITS_MAX: u64 = 1 << LEN_BITS;

const DEVICE_SHIFT: u32 = LEN_BITS + 1;
const FILE_SHIFT: u32 = DEVICE_SHIFT + UNIT_BITS;
const _: () = assert!(FILE_SHIFT + UNIT_BITS == u128::BITS);

/// An extent in 16 bytes. From the top: file unit 54, device unit 54, units less one 19, written 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed(u128);

const _: () = assert!(size_of::<Packed>() == 16);

impl Packed {
    /// Packs an extent of 1 to [`ENTRY_UNITS_MAX`] units that fits.
    #[inline]
    pub(super) fn new(extent: Mapped) -> Self {
        debug_assert!(extent.fits() && extent.units <= ENTRY_UNITS_MAX, "{extent:?}");
        let low = extent.device << DEVICE_SHIFT;
        let high = extent.device >> (u64::BITS - DEVICE_SHIFT) | extent.file << (FILE_SHIFT - 64);
        let low = low | (extent.units - 1) << 1 | u64::from(extent.written);
        Self(u128::from(high) << 64 | u128::from(low))
    }

    #[inline]
    pub(super) fn file(self) -> u64 {
        (self.0 >> FILE_SHIFT) as u64
    }

    #[inline]
    fn units(self) -> u64 {
        ((self.0 as u64 >> 1) & (ENTRY_UNITS_MAX - 1)) + 1
    }

    #[inline]
    fn end(self) -> u64 {
        self.file() + self.units()
    }

    #[inline]
    pub(super) fn unpack(self) -> Mapped {
        Mapped {
            file: self.file(),
            device: (self.0 >> DEVICE_SHIFT) as u64 & ((1 << UNIT_BITS) - 1),
            units: self.units(),
            written: self.0 & 1 == 1,
        }
    }
}

/// A position: at an entry, or behind the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    leaf: usize,
    slot: usize,
}

/// Entries sorted by file unit, none of which overlap.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaves<const LEAF: usize> {
    /// The file unit of each leaf's first entry.
    firsts: Vec<u64>,
    leaves: Vec<Vec<Packed>>,
    len: usize,
}

impl<const LEAF: usize> Leaves<LEAF> {
    /// Neighbours that together have no more than this become one leaf. It is what a split leaves in a half, so
    /// that neither half is too small beside whatever neighbour it has.
    const JOINED: usize = LEAF / 2;

    pub(super) const fn new() -> Self {
        Self { firsts: Vec::new(), leaves: Vec::new(), len: 0 }
    }

    /// Returns the number of entries.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let entries: usize = self.leaves.iter().map(Vec::capacity).sum();
        entries * size_of::<Packed>()
            + self.leaves.capacity() * size_of::<Vec<Packed>>()
            + self.firsts.capacity() * size_of::<u64>()
    }

    /// Returns the place of the first entry that ends behind `at`: it covers `at`, or comes next.
    #[inline]
    pub(super) fn first_ending_after(&self, at: u64) -> Place {
        let Some(leaf) = self.firsts.partition_point(|&first| first <= at).checked_sub(1) else {
            return Place { leaf: 0, slot: 0 };
        };
        let entries = &self.leaves[leaf];
        let slot = entries.partition_point(|entry| entry.file() <= at);
        match slot.checked_sub(1) {
            Some(last) if entries[last].end() > at => Place { leaf, slot: last },
            _ => self.normal(leaf, slot),
        }
    }

    /// Returns the place behind the last entry.
    #[inline]
    pub(super) fn end(&self) -> Place {
        Place { leaf: self.leaves.len(), slot: 0 }
    }

    /// Returns the entry at a place, or `None` behind the last.
    #[inline]
    pub(super) fn get(&self, place: Place) -> Option<Mapped> {
        self.leaves.get(place.leaf).map(|entries| entries[place.slot].unpack())
    }

    /// Returns the place behind an entry's.
    #[inline]
    pub(super) fn next(&self, place: Place) -> Place {
        self.normal(place.leaf, place.slot + 1)
    }

    /// Returns the place before, if there is an entry.
    #[inline]
    pub(super) fn before(&self, place: Place) -> Option<Place> {
        match place.slot.checked_sub(1) {
            Some(slot) => Some(Place { slot, ..place }),
            None => {
                let leaf = place.leaf.checked_sub(1)?;
                Some(Place { leaf, slot: self.leaves[leaf].len() - 1 })
            }
        }
    }

    #[inline]
    fn normal(&self, leaf: usize, slot: usize) -> Place {
        if slot < self.leaves[leaf].len() {
            Place { leaf, slot }
        } else {
            Place { leaf: leaf + 1, slot: 0 }
        }
    }

    /// Puts `new` where the entries from `start` to before `end` were.
    pub(super) fn replace(
        &mut self,
        start: Place,
        end: Place,
        mut new: impl Iterator<Item = Packed>,
    ) {
        let mut at = start;
        while at != end {
            let Some(entry) = new.next() else {
                return self.remove(at, end);
            };
            self.set(at, entry);
            at = self.next(at);
        }
        for entry in new {
            at = self.insert(at, entry);
        }
    }

    fn set(&mut self, at: Place, entry: Packed) {
        self.leaves[at.leaf][at.slot] = entry;
        if at.slot == 0 {
            self.firsts[at.leaf] = entry.file();
        }
    }

    /// Inserts before a place; returns the place behind what was inserted.
    fn insert(&mut self, at: Place, entry: Packed) -> Place {
        self.len += 1;
        match at.slot {
            0 => self.insert_between(at.leaf, entry),
            _ if self.is_full(at.leaf) => {
                let at = self.split(at);
                self.insert_inside(at, entry)
            }
            _ => self.insert_inside(at, entry),
        }
    }

    /// Inserts between two leaves. If both are full, a leaf is added and none is split: entries that arrive
    /// in order, at the end or in the middle, leave full leaves behind.
    fn insert_between(&mut self, leaf: usize, entry: Packed) -> Place {
        if leaf > 0 && !self.is_full(leaf - 1) {
            push_snugly(&mut self.leaves[leaf - 1], entry, LEAF);
            return Place { leaf, slot: 0 };
        }
        if leaf < self.leaves.len() && !self.is_full(leaf) {
            return self.insert_inside(Place { leaf, slot: 0 }, entry);
        }
        self.add_leaf(leaf, vec![entry]);
        Place { leaf: leaf + 1, slot: 0 }
    }

    /// Inserts into a leaf that has room.
    fn insert_inside(&mut self, at: Place, entry: Packed) -> Place {
        let entries = &mut self.leaves[at.leaf];
        grow_snugly(entries, LEAF);
        entries.insert(at.slot, entry);
        if at.slot == 0 {
            self.firsts[at.leaf] = entry.file();
        }
        self.next(at)
    }

    fn is_full(&self, leaf: usize) -> bool {
        self.leaves[leaf].len() == LEAF
    }

    /// Makes two of a full leaf; returns where `at` is now.
    fn split(&mut self, at: Place) -> Place {
        let entries = &mut self.leaves[at.leaf];
        let upper = entries.split_off(LEAF / 2);
        trim(entries);
        self.add_leaf(at.leaf + 1, upper);
        match at.slot.checked_sub(LEAF / 2) {
            // The end of the lower half will do as well, and moves nothing.
            None | Some(0) => at,
            Some(slot) => Place { leaf: at.leaf + 1, slot },
        }
    }

    fn add_leaf(&mut self, leaf: usize, entries: Vec<Packed>) {
        grow_snugly(&mut self.firsts, usize::MAX);
        grow_snugly(&mut self.leaves, usize::MAX);
        self.firsts.insert(leaf, entries[0].file());
        self.leaves.insert(leaf, entries);
    }

    /// Removes the entries from `start` to before `end`; there is at least one.
    fn remove(&mut self, start: Place, end: Place) {
        let before = self.entries_of(start, end);
        if start.leaf == end.leaf {
            self.leaves[start.leaf].drain(start.slot..end.slot);
        } else {
            self.leaves[start.leaf].truncate(start.slot);
            if end.slot > 0 {
                self.leaves[end.leaf].drain(..end.slot);
            }
            self.leaves.drain(start.leaf + 1..end.leaf);
            self.firsts.drain(start.leaf + 1..end.leaf);
        }
        // Both ends are in leaves `start.leaf` and the next one by now.
        self.len -= before;
        self.tidy(start.leaf);
    }

    /// Returns how many entries lie from `start` to before `end`.
    fn entries_of(&self, start: Place, end: Place) -> usize {
        let whole: usize = self.leaves[start.leaf..end.leaf].iter().map(Vec::len).sum();
        whole + end.slot - start.slot
    }

    /// Restores the invariant after entries of `leaf` and the next one have gone.
    fn tidy(&mut self, leaf: usize) {
        for touched in [leaf + 1, leaf] {
            self.refresh(touched);
        }
        for upper in [leaf + 2, leaf + 1, leaf] {
            self.join_if_small(upper);
        }
        if let Some(entries) = self.leaves.get_mut(leaf) {
            trim(entries);
        }
    }

    /// Corrects a leaf's first key, or drops the leaf if nothing is left of it.
    fn refresh(&mut self, leaf: usize) {
        let Some(entries) = self.leaves.get(leaf) else { return };
        match entries.first() {
            Some(entry) => self.firsts[leaf] = entry.file(),
            None => self.drop_leaf(leaf),
        }
    }

    fn drop_leaf(&mut self, leaf: usize) {
        self.leaves.remove(leaf);
        self.firsts.remove(leaf);
        trim(&mut self.leaves);
        trim(&mut self.firsts);
    }

    /// Moves a leaf into the one below if the two are small enough.
    fn join_if_small(&mut self, upper: usize) {
        if upper == 0 || upper >= self.leaves.len() {
            return;
        }
        if self.leaves[upper - 1].len() + self.leaves[upper].len() <= Self::JOINED {
            let mut entries = std::mem::take(&mut self.leaves[upper]);
            self.drop_leaf(upper);
            let lower = &mut self.leaves[upper - 1];
            lower.reserve_exact(entries.len());
            lower.append(&mut entries);
        }
    }
}

/// What a vector of `len` gets beyond it when it grows: an eighth. Doubling would leave a quarter of
/// the memory unused on average, and moving a leaf is cheap.
fn slack(len: usize) -> usize {
    len / 8 + 2
}

/// Makes room for one more in a vector that will not have more than `most`.
fn grow_snugly<T>(vector: &mut Vec<T>, most: usize) {
    if vector.len() == vector.capacity() {
        vector.reserve_exact(slack(vector.len()).min(most - vector.len()));
    }
}

fn push_snugly<T>(vector: &mut Vec<T>, value: T, most: usize) {
    grow_snugly(vector, most);
    vector.push(value);
}

/// Returns memory if a vector has twice the slack that it would be given.
fn trim<T>(vector: &mut Vec<T>) {
    if vector.capacity() > vector.len() + 2 * slack(vector.len()) {
        vector.shrink_to(vector.len() + slack(vector.len()));
    }
}

#[cfg(test)]
impl<const LEAF: usize> Leaves<LEAF> {
    /// Panics if the invariant does not hold.
    pub(super) fn check(&self) {
        let firsts: Vec<u64> = self.leaves.iter().map(|entries| entries[0].file()).collect();
        assert_eq!(firsts, self.firsts);
        assert_eq!(self.len, self.leaves.iter().map(Vec::len).sum::<usize>());
        for pair in self.leaves.windows(2) {
            assert!(pair[0].len() + pair[1].len() > Self::JOINED, "two small leaves");
            assert!(pair[0][pair[0].len() - 1].end() <= pair[1][0].file());
        }
        for entries in &self.leaves {
            assert!(entries.len() <= LEAF);
            assert!(entries.is_sorted_by(|one, other| one.end() <= other.file()));
        }
    }

    pub(super) fn leaves(&self) -> usize {
        self.leaves.len()
    }
}
