//! What a device looks like to those who send it requests: sizes, limits, abilities.
#![forbid(unsafe_code)]

use super::Metadata;
use crate::units::{BlockCount, ByteLen, LbaSize};

/// The shape and the limits of a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of one logical block.
    pub lba_size: LbaSize,
    /// Number of logical blocks.
    pub blocks: BlockCount,
    /// Largest transfer of one command; longer requests are split below the waist.
    pub max_transfer: ByteLen,
    /// Commands that cross a multiple of this are slow, and are split there. Any value, not only
    /// powers of two.
    pub optimal_boundary: Option<BlockCount>,
    /// Writes up to this length do not tear at a power cut, unless they cross `atomic_boundary`.
    pub atomic_write: BlockCount,
    /// Writes that cross a multiple of this may tear, whatever their length.
    pub atomic_boundary: Option<BlockCount>,
    /// Whether completed writes may be lost at a power cut until a flush.
    pub volatile_write_cache: bool,
    /// What the device can do beside reading and writing.
    pub operations: Operations,
    /// What is kept beside each block and what is done with it; `None` where blocks have nothing beside them.
    pub metadata: Option<Metadata>,
    /// How memory has to be cut for one command.
    pub segments: SegmentRules,
}

impl Geometry {
    /// Returns the capacity in bytes.
    ///
    /// Backends refuse a device whose capacity does not fit 64 bits, so this cannot overflow.
    pub fn capacity(&self) -> ByteLen {
        ByteLen(self.blocks.0 << self.lba_size.shift())
    }
}

/// What a device can do beside reading and writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Gives blocks back to the device.
    pub deallocate: bool,
    /// Writes zeroes without a transfer.
    pub write_zeroes: bool,
    /// Compares blocks with memory.
    pub compare: bool,
    /// Reads and checks without a transfer.
    pub verify: bool,
    /// Copies blocks within the device.
    pub copy: bool,
    /// Makes blocks unreadable until they are written again.
    pub write_uncorrectable: bool,
    /// Writes through the volatile cache.
    pub fua: bool,
}

/// How the memory of one command has to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRules {
    /// Every segment starts at a multiple of this and is a multiple of it long.
    pub alignment: u32,
    /// Every segment but the first starts, and every one but the last ends, at a multiple of this;
    /// `None` where segments may lie anywhere. Lists that break it are split into several commands.
    pub page: Option<u32>,
    /// The most segments of one command; where there is a `page`, the most pages that they touch.
    pub max_segments: u32,
}
