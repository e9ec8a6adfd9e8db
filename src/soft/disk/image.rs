//! An image: the blocks of a disk at one moment, cheap to copy.
//!
//! [`Image`] is a map of [`Chunk`]s of sixteen blocks. Map, chunks and blocks are all shared by counting, so
//! that a copy costs one count, and the first change after it as many as there are chunks: a search
//! through crash images makes a hundred thousand of them. `disk` keeps two, what is seen and what is safe.
//! Invariant: a block that is absent was never written, or reads as if it had not been.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The bytes of one block.
pub(super) type Block = Arc<[u8]>;

/// Blocks of one chunk. A change after a copy counts each of them once, so that few is cheap for
/// scattered writes, and many for large images.
const CHUNK_BLOCKS: u64 = 16;

/// Adjacent blocks.
type Chunk = [Option<Block>; CHUNK_BLOCKS as usize];

/// The blocks of a disk at one moment.
#[derive(Clone, Default)]
pub(super) struct Image {
    chunks: Arc<BTreeMap<u64, Arc<Chunk>>>,
}

impl Image {
    /// Returns a block, if it was written.
    pub(super) fn get(&self, lba: u64) -> Option<&Block> {
        let (chunk, slot) = place(lba);
        self.chunks.get(&chunk)?[slot].as_ref()
    }

    /// Sets a block, or makes it one that was never written.
    pub(super) fn set(&mut self, lba: u64, block: Option<Block>) {
        let (chunk, slot) = place(lba);
        if block.is_none() && !self.chunks.contains_key(&chunk) {
            return;
        }
        let chunk = Arc::make_mut(&mut self.chunks).entry(chunk).or_default();
        Arc::make_mut(chunk)[slot] = block;
    }

    /// Makes blocks ones that were never written. The cost is that of the blocks which were, so that a
    /// large disk can be given back at once.
    pub(super) fn forget(&mut self, blocks: Range<u64>) {
        let (first, end) = (blocks.start / CHUNK_BLOCKS, blocks.end.div_ceil(CHUNK_BLOCKS));
        let met: Vec<u64> = self.chunks.range(first..end).map(|(&chunk, _)| chunk).collect();
        for chunk in met {
            let here = chunk * CHUNK_BLOCKS..(chunk + 1) * CHUNK_BLOCKS;
            if blocks.start <= here.start && here.end <= blocks.end {
                Arc::make_mut(&mut self.chunks).remove(&chunk);
            } else {
                let both = here.start.max(blocks.start)..here.end.min(blocks.end);
                both.for_each(|lba| self.set(lba, None));
            }
        }
    }

    /// Makes blocks what they are in another image. The cost is that of the blocks which were written in
    /// either.
    pub(super) fn take(&mut self, other: &Self, blocks: Range<u64>) {
        self.forget(blocks.clone());
        let (first, end) = (blocks.start / CHUNK_BLOCKS, blocks.end.div_ceil(CHUNK_BLOCKS));
        for (&chunk, slots) in other.chunks.range(first..end) {
            for (lba, block) in (chunk * CHUNK_BLOCKS..).zip(slots.iter()) {
                if block.is_some() && blocks.contains(&lba) {
                    self.set(lba, block.clone());
                }
            }
        }
    }
}

fn place(lba: u64) -> (u64, usize) {
    (lba / CHUNK_BLOCKS, (lba % CHUNK_BLOCKS) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn block(byte: u8) -> Option<Block> {
        Some([byte; 8].into())
    }

    #[test]
    fn random_changes_agree_with_a_plain_map_and_copies_stay_as_they_were() {
        let mut seed = Seed::from_env("disk image against a map");
        let mut image = Image::default();
        let mut model: BTreeMap<u64, Option<Block>> = BTreeMap::new();
        let (nothing, mut copies) = (Default::default(), Vec::new());
        for step in 0..2000_u32 {
            let lba = seed.below(200);
            match seed.below(8) {
                0 => {
                    let end = lba + seed.below(60);
                    image.forget(lba..end);
                    model.retain(|at, _| !(lba..end).contains(at));
                }
                1 => copies.push((image.clone(), model.clone())),
                2 => {
                    let (end, other) = (lba + seed.below(60), copies.last());
                    let (from, same): &(Image, _) = other.unwrap_or(&nothing);
                    image.take(from, lba..end);
                    model.retain(|at, _| !(lba..end).contains(at));
                    model.extend(same.range(lba..end).map(|(at, block)| (*at, block.clone())));
                }
                3 => {
                    image.set(lba, None);
                    model.remove(&lba);
                }
                _ => {
                    image.set(lba, block(step as u8));
                    model.insert(lba, block(step as u8));
                }
            }
        }
        copies.push((image, model));
        for (image, model) in copies {
            for lba in 0..260 {
                assert_eq!(image.get(lba), model.get(&lba).and_then(Option::as_ref), "{lba}");
            }
        }
    }
}
