//! Writes that the cache has taken and the medium has not, and which of them a power cut leaves behind.
//!
//! A [`Write`] is what one command did to adjacent blocks. [`Survival`] chooses, from a seed, what a power cut
//! keeps: any subset of blocks is possible on real hardware, and these are the shapes that find faults.
//! Invariant: a block of a write that a later durable one has overtaken is never applied again.
#![forbid(unsafe_code)]

use super::image::{Block, Image};
use crate::seed::Seed;
use crate::soft::interval::IntervalSet;
use crate::units::{BlockCount, Lba};

/// One block of a write that is not durable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pending {
    /// The write that it belongs to. Later writes have larger numbers.
    pub serial: u64,
    /// The block.
    pub lba: Lba,
    /// The blocks of that write.
    pub blocks: BlockCount,
    /// Which of them this is, from 0.
    pub index: u64,
}

/// A write that is not durable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingWrite {
    /// Its number. Later writes have larger ones.
    pub serial: u64,
    /// Its first block.
    pub first: Lba,
    /// Its length. Some blocks of it may have been overtaken by a durable write.
    pub blocks: BlockCount,
}

/// What a write puts into its blocks.
pub(super) enum Content {
    /// Bytes of its own in each.
    Blocks(Vec<Option<Block>>),
    /// The same in all: zeroes.
    Same(Option<Block>),
}

/// A write that the cache has taken.
pub(super) struct Write {
    pub(super) serial: u64,
    pub(super) first: u64,
    pub(super) blocks: u64,
    pub(super) content: Content,
    /// Blocks that a later durable write has overtaken.
    overtaken: IntervalSet,
}

impl Write {
    pub(super) fn new(serial: u64, first: u64, blocks: u64, content: Content) -> Self {
        Self { serial, first, blocks, content, overtaken: IntervalSet::default() }
    }

    /// Returns what tests are told of it.
    pub(super) fn summary(&self) -> PendingWrite {
        let (first, blocks) = (Lba(self.first), BlockCount(self.blocks));
        PendingWrite { serial: self.serial, first, blocks }
    }

    /// Forgets the blocks of `first..end`, and says whether any are left.
    pub(super) fn overtake(&mut self, first: u64, end: u64) -> bool {
        let (low, high) = (first.max(self.first), end.min(self.first + self.blocks));
        if low < high {
            self.overtaken.insert(low, high);
        }
        !self.overtaken.covers(self.first, self.first + self.blocks)
    }

    /// Puts those blocks into an image that `keeps` wants.
    pub(super) fn apply(&self, image: &mut Image, mut keeps: impl FnMut(Pending) -> bool) {
        let (serial, blocks) = (self.serial, BlockCount(self.blocks));
        for index in 0..self.blocks {
            let lba = self.first + index;
            let lost = self.overtaken.meets(lba, lba + 1);
            if !lost && keeps(Pending { serial, lba: Lba(lba), blocks, index }) {
                image.set(lba, self.block(index));
            }
        }
    }

    /// Puts all blocks into an image.
    pub(super) fn apply_all(&self, image: &mut Image) {
        match self.content {
            Content::Same(None) if self.overtaken.is_empty() => {
                image.forget(self.first..self.first + self.blocks);
            }
            _ => self.apply(image, |_| true),
        }
    }

    fn block(&self, index: u64) -> Option<Block> {
        match &self.content {
            Content::Blocks(blocks) => blocks[index as usize].clone(),
            Content::Same(block) => block.clone(),
        }
    }
}

/// Which blocks a power cut keeps.
pub(super) enum Survival {
    /// Each block for itself, this many out of [`PARTS`].
    Blocks(u64),
    /// Each write as a whole, as many; and what was decided about which write last.
    Writes(u64, Option<(u64, bool)>),
    /// Writes before this one, and some blocks of this one: the cache was emptied in order.
    UpTo(u64),
}

/// What the chances of [`Survival`] are out of.
const PARTS: u64 = 16;

impl Survival {
    /// Chooses, for writes from the serial `first` to before `end`.
    pub(super) fn choose(seed: &mut Seed, first: u64, end: u64) -> Self {
        match seed.below(8) {
            0 => Self::Blocks(0),
            1 => Self::Blocks(PARTS),
            2 => Self::Blocks(PARTS / 2),
            3 => Self::Blocks(PARTS - 1),
            4 => Self::Blocks(1),
            5 => Self::Blocks(seed.below(PARTS + 1)),
            6 => Self::Writes(seed.below(PARTS + 1), None),
            _ => Self::UpTo(first + seed.below(end - first + 1)),
        }
    }

    /// Says whether a block is kept. Blocks come write by write.
    pub(super) fn keeps(&mut self, seed: &mut Seed, block: Pending) -> bool {
        match self {
            Self::Blocks(hits) => seed.chance(*hits, PARTS),
            Self::Writes(_, Some((serial, kept))) if *serial == block.serial => *kept,
            Self::Writes(hits, last) => {
                let kept = seed.chance(*hits, PARTS);
                *last = Some((block.serial, kept));
                kept
            }
            Self::UpTo(last) if block.serial == *last => seed.chance(1, 2),
            Self::UpTo(last) => block.serial < *last,
        }
    }
}
