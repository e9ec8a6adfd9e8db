//! Where what lies on the device: the areas of a store, worked out once when it is formatted.
//!
//! ```text
//!   0      64K     128K    192K    256K
//!   | copy 0 | copy 1 | copy 2 | copy 3 | journal | checkpoint 0 | checkpoint 1 | units of data ... |
//! ```
//!
//! Blocks are the device's, units are what space is given out in. Invariant: areas do not overlap and lie within
//! the store; data begins at a multiple of the unit.
#![forbid(unsafe_code)]

use core::ops::Range;

use super::error::StoreError;
use super::record::{OP_BYTES_MAX, PREAMBLE_BYTES};
use super::seal::HEADER_BYTES;
use crate::block::{Geometry, UNIT_BLOCKS_MAX};
use crate::units::{BlockCount, Lba};

/// Copies of the superblock.
pub(super) const COPIES: usize = 4;

/// Bytes from one copy to the next: the largest block there is, so that a copy is always a block of its own.
const COPY_BYTES: u64 = 64 << 10;

/// The least and the most that are chosen for the journal where nobody says. The most bounds what a crash leaves
/// to be replayed: 32 MiB are at most 670,000 operations, a fraction of a second.
const JOURNAL_BYTES: (u64, u64) = (64 << 10, 32 << 20);

/// The least and the most that are chosen for each checkpoint; 1 GiB holds 44 million extents.
const CHECKPOINT_BYTES: (u64, u64) = (64 << 10, 1 << 30);

/// The part of the device that journal and checkpoints each take where nobody says, as a divisor.
const SHARE: u64 = 128;

/// The largest record of the journal, in bytes.
const RECORD_BYTES: u64 = 64 << 10;

/// Blocks that the journal has at least: a record is a quarter of it at most, and has to hold any one operation.
const JOURNAL_BLOCKS_MIN: u64 = 16;

const _: () = {
    let record = (JOURNAL_BLOCKS_MIN / 4) as usize * (512 - HEADER_BYTES);
    assert!(record >= PREAMBLE_BYTES + OP_BYTES_MAX);
};

/// The areas of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The size of a block, as a power of two.
    pub(super) block_shift: u8,
    /// The size of a unit, as a power of two.
    pub(super) unit_shift: u8,
    /// Blocks of the whole store.
    pub(super) blocks: u64,
    /// First block and blocks of the journal.
    pub(super) journal: Range<u64>,
    /// First blocks of the two checkpoints, and the blocks of each.
    pub(super) checkpoints: [u64; 2],
    pub(super) checkpoint_blocks: u64,
    /// The first block of data.
    pub(super) data: u64,
    /// Units of data.
    pub(super) units: u64,
}

/// How large the areas should be, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    pub(super) unit: u64,
    pub(super) journal: Option<u64>,
    pub(super) checkpoint: Option<u64>,
}

impl Layout {
    /// Plans a store over a whole device.
    pub(super) fn plan(geometry: &Geometry, wishes: Wishes) -> Result<Self, StoreError> {
        let block = u64::from(geometry.lba_size.bytes());
        let capacity = geometry.capacity().0;
        let Wishes { unit, journal, checkpoint } = wishes;
        let most = (block * UNIT_BLOCKS_MAX).min(1 << 20).max(block);
        within("the allocation unit", unit, block, most)?;
        if !unit.is_power_of_two() {
            let (what, value) = ("the allocation unit (a power of two)", unit);
            return Err(StoreError::Option { what, value, least: block, most });
        }
        let chosen = |(least, most): (u64, u64)| (capacity / SHARE).clamp(least, most);
        let journal = journal.unwrap_or_else(|| chosen(JOURNAL_BYTES).max(block * 16));
        let checkpoint = checkpoint.unwrap_or_else(|| chosen(CHECKPOINT_BYTES).max(block * 8));
        within("the journal", journal, block * JOURNAL_BLOCKS_MIN, 1 << 30)?;
        within("each checkpoint", checkpoint, block * 2, 1 << 40)?;
        let start = COPIES as u64 * COPY_BYTES / block;
        let (journal_blocks, checkpoint_blocks) =
            (journal.div_ceil(block), checkpoint.div_ceil(block));
        let first = start + journal_blocks;
        let second = first + checkpoint_blocks;
        let data = (second + checkpoint_blocks).next_multiple_of(unit / block);
        let units = (geometry.blocks.0.saturating_sub(data)) / (unit / block);
        if units == 0 {
            let what = "the device";
            let least = (data + unit / block) * block;
            return Err(StoreError::Option { what, value: capacity, least, most: u64::MAX });
        }
        Ok(Self {
            block_shift: geometry.lba_size.shift(),
            unit_shift: unit.trailing_zeros() as u8,
            blocks: geometry.blocks.0,
            journal: start..first,
            checkpoints: [first, second],
            checkpoint_blocks,
            data,
            units,
        })
    }

    /// Says what is wrong with a layout that was read, if anything is.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let start = (COPIES as u64 * COPY_BYTES) >> self.block_shift;
        let [first, second] = self.checkpoints;
        let per_unit = self.unit_shift.checked_sub(self.block_shift);
        let Some(per_unit) = per_unit.filter(|shift| 1 << shift <= UNIT_BLOCKS_MAX) else {
            return Some("the allocation unit");
        };
        let end = |first: u64, blocks: u64| first.checked_add(blocks);
        let data_end =
            self.units.checked_shl(per_unit.into()).filter(|n| n >> per_unit == self.units);
        if self.journal.start < start
            || self.journal.end < self.journal.start + JOURNAL_BLOCKS_MIN
            || self.journal.end - self.journal.start > 1 << 30
        {
            Some("the journal")
        } else if first < self.journal.end
            || end(first, self.checkpoint_blocks).is_none_or(|end| end > second)
            || end(second, self.checkpoint_blocks).is_none_or(|end| end > self.data)
            || self.checkpoint_blocks == 0
        {
            Some("the checkpoints")
        } else if data_end.and_then(|n| end(self.data, n)).is_none_or(|end| end > self.blocks)
            || self.units == 0
            || !self.data.is_multiple_of(1 << per_unit)
        {
            Some("the data")
        } else {
            None
        }
    }

    /// Returns the bytes of a block.
    pub(super) fn block(&self) -> usize {
        1 << self.block_shift
    }

    /// Returns the bytes of payload in a block.
    pub(super) fn payload(&self) -> usize {
        self.block() - HEADER_BYTES
    }

    /// Returns the blocks of a unit.
    pub(super) fn unit_blocks(&self) -> BlockCount {
        BlockCount(1 << (self.unit_shift - self.block_shift))
    }

    /// Returns where a copy of the superblock is.
    pub(super) fn copy(block_shift: u8, index: usize) -> Lba {
        Lba((index as u64 * COPY_BYTES) >> block_shift)
    }

    /// Returns the first block of a unit.
    #[inline]
    pub(super) fn lba_of_unit(&self, unit: u64) -> Lba {
        Lba(self.data + (unit << (self.unit_shift - self.block_shift)))
    }

    /// Returns the blocks of the journal.
    pub(super) fn journal_blocks(&self) -> u64 {
        self.journal.end - self.journal.start
    }

    /// Returns where position `at` of the journal is, which may have gone round.
    pub(super) fn journal_lba(&self, at: u64) -> Lba {
        Lba(self.journal.start + at % self.journal_blocks())
    }

    /// Returns the most blocks of one record: a quarter of the journal at most.
    pub(super) fn record_blocks_max(&self) -> u64 {
        (RECORD_BYTES >> self.block_shift).clamp(1, self.journal_blocks() / 4)
    }

    /// Returns the bytes of payload that a checkpoint can have.
    pub(super) fn checkpoint_bytes_max(&self) -> u64 {
        self.checkpoint_blocks * self.payload() as u64
    }

    /// Returns all blocks of metadata behind the superblocks.
    pub(super) fn metadata(&self) -> Range<u64> {
        self.journal.start..self.checkpoints[1] + self.checkpoint_blocks
    }
}

fn within(what: &'static str, value: u64, least: u64, most: u64) -> Result<(), StoreError> {
    let inside = (least..=most).contains(&value);
    if inside { Ok(()) } else { Err(StoreError::Option { what, value, least, most }) }
}
