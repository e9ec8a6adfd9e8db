//! Finding the block that cannot be read: by halves.
//!
//! A device says that a command failed and not at which of its blocks. Reading the first half of what is in doubt again
//! either delivers it or halves the doubt: of 256 blocks eight reads find the first bad one, and every block before it
//! has been delivered. Invariant: all blocks before `good` were read, and a block before `bad` could not be.
#![forbid(unsafe_code)]

use crate::spec::completion::StatusField;
use crate::spec::status::Status;

/// A search among the blocks of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Search {
    /// Blocks from the first on that were read.
    good: u64,
    /// A number of blocks from the first on among which one is bad; `None` where any may be.
    bad: Option<u64>,
    /// Blocks of the request.
    total: u64,
    /// Blocks that are being read now, from `good` on.
    probe: u64,
}

/// What a probe has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Not enough.
    Doubt,
    /// The first bad block, counted from the first of the request.
    Bad(u64),
    /// Every block has been read after all.
    Good,
}

impl Search {
    /// Begins among `total` blocks; `together` says whether one command had them all, and failed.
    pub(super) fn among(total: u64, together: bool) -> Self {
        Self { good: 0, bad: together.then_some(total), total, probe: 0 }
    }

    /// Returns how many blocks before the next probe were read, and how many it may have.
    pub(super) fn next(&self) -> (u64, u64) {
        let most = match self.bad {
            Some(bad) => (bad - self.good).div_ceil(2),
            None => self.total - self.good,
        };
        (self.good, most)
    }

    /// Notes how many blocks a probe has.
    pub(super) fn sent(&mut self, blocks: u64) {
        self.probe = blocks;
    }

    /// Takes in how the probe ended.
    pub(super) fn ended(&mut self, well: bool) -> Shown {
        match well {
            true => self.good += self.probe,
            false if self.probe == 1 => return Shown::Bad(self.good),
            false => self.bad = Some(self.good + self.probe),
        }
        // What was in doubt may be readable now.
        self.bad = self.bad.filter(|bad| *bad > self.good);
        if self.good == self.total { Shown::Good } else { Shown::Doubt }
    }
}

/// Says whether a read that ended so has met a block that cannot be read.
pub(super) fn is_bad_block(field: StatusField) -> bool {
    let bad = [Status::UNRECOVERED_READ, Status::ACCESS_DENIED, Status::UNWRITTEN_BLOCK];
    bad.contains(&field.code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    /// Searches blocks of which some are bad, in probes of `most` at most; returns what was found and how many probes
    /// it took.
    fn search(mut search: Search, bad: &[bool], most: u64) -> (Shown, u32) {
        for probes in 1.. {
            let (from, blocks) = search.next();
            let blocks = blocks.min(most);
            assert!(blocks > 0 && from + blocks <= bad.len() as u64);
            search.sent(blocks);
            let read = &bad[from as usize..(from + blocks) as usize];
            match search.ended(!read.contains(&true)) {
                Shown::Doubt => assert!(probes < 1000, "it ends"),
                shown => return (shown, probes),
            }
        }
        unreachable!("the loop has no end of its own")
    }

    #[test]
    fn each_block_of_256_is_found_in_at_most_nine_probes() {
        for at in 0..256 {
            let mut bad = [false; 256];
            bad[at] = true;
            let (shown, probes) = search(Search::among(256, true), &bad, 256);
            assert_eq!(shown, Shown::Bad(at as u64));
            assert!(probes <= 9, "block {at} took {probes} probes");
        }
    }

    #[test]
    fn the_first_of_several_is_found_and_none_is_none() {
        let mut seed = Seed::from_env("search for bad blocks");
        for _ in 0..10_000 {
            let total = 1 + seed.below(700);
            let rate = 1 + seed.below(total);
            let bad: Vec<bool> = (0..total).map(|_| seed.chance(1, rate)).collect();
            let first = bad.iter().position(|bad| *bad);
            let expected = first.map_or(Shown::Good, |at| Shown::Bad(at as u64));
            let together = seed.chance(1, 2);
            let most = if together { total } else { 1 + seed.below(total) };
            assert_eq!(search(Search::among(total, together), &bad, most).0, expected);
        }
    }
}
