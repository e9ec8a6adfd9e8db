//! A ring in shared memory: entries of a few 64-bit words, stored and loaded word by word.
//!
//! The ring knows where an entry lies and nothing of its meaning or of whose turn it is. Words are
//! atomics: an entry that the other side rewrites while it is being copied gives a torn copy, never
//! an undefined one.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use super::span::SharedBytes;

/// `entries` entries of `WORDS` words each.
pub struct Ring<const WORDS: usize> {
    /// First word; valid for `entries * WORDS` words while `_bytes` lives.
    first: NonNull<AtomicU64>,
    entries: u32,
    _bytes: SharedBytes,
}

// SAFETY: the words are atomics in memory that `_bytes`, itself `Send` and `Sync`, keeps mapped.
unsafe impl<const WORDS: usize> Send for Ring<WORDS> {}
// SAFETY: as above.
unsafe impl<const WORDS: usize> Sync for Ring<WORDS> {}

impl<const WORDS: usize> Ring<WORDS> {
    /// The size of one entry.
    pub const ENTRY_BYTES: usize = WORDS * size_of::<u64>();

    /// Lays a ring over memory, or returns `None` if it is too short or not aligned to a word.
    pub fn over(bytes: SharedBytes, entries: u32) -> Option<Self> {
        let len = usize::try_from(entries).ok()?.checked_mul(Self::ENTRY_BYTES)?;
        let start = bytes.span().slice(0, len)?.as_ptr();
        let aligned = start.as_ptr().addr().is_multiple_of(size_of::<u64>());
        (aligned && entries > 0).then(|| Self { first: start.cast(), entries, _bytes: bytes })
    }

    /// Returns the number of entries.
    #[inline(always)]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Stores an entry. Nothing orders its words: whoever publishes the index does.
    ///
    /// # Panics
    ///
    /// If there is no such entry.
    #[inline(always)]
    pub fn store(&self, index: u32, words: [u64; WORDS]) {
        let entry = self.entry(index);
        for (word, value) in entry.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Loads an entry, word by word.
    ///
    /// # Panics
    ///
    /// If there is no such entry.
    #[inline(always)]
    pub fn load(&self, index: u32) -> [u64; WORDS] {
        let entry = self.entry(index);
        core::array::from_fn(|word| entry[word].load(Ordering::Relaxed))
    }

    /// Returns the words of an entry.
    ///
    /// # Panics
    ///
    /// If there is no such entry.
    #[inline(always)]
    pub fn entry(&self, index: u32) -> &[AtomicU64; WORDS] {
        assert!(index < self.entries, "entry {index} of {}", self.entries);
        // SAFETY: `over` proved that `entries` entries lie in memory that `_bytes` keeps mapped, and that
        // the first word is aligned; `index < entries` was just checked.
        let entry = unsafe { self.first.add(index as usize * WORDS) };
        // SAFETY: as above; words of shared memory are only ever reached as atomics or copies.
        unsafe { entry.cast().as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_needs_all_its_memory() {
        let bytes = SharedBytes::anonymous(4096).unwrap();
        assert!(Ring::<2>::over(bytes.clone(), 256).is_some());
        assert!(Ring::<2>::over(bytes.clone(), 257).is_none());
        assert!(Ring::<2>::over(bytes.clone(), 0).is_none());
        assert!(Ring::<2>::over(bytes.part(4, 512).unwrap(), 1).is_none());
    }

    #[test]
    fn entries_do_not_overlap() {
        let ring = Ring::<8>::over(SharedBytes::anonymous(4096).unwrap(), 64).unwrap();
        (0..64).for_each(|i| ring.store(i, [u64::from(i); 8]));
        (0..64).for_each(|i| assert_eq!(ring.load(i), [u64::from(i); 8]));
    }
}
