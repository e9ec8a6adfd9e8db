//! What a run is like: the shape of the disk and of the store, who does what how often, what goes wrong.

use std::ops::Range;

use udirect::seed::Seed;
use udirect::units::{Lba, LbaSize};

use super::image::Drive;
use super::model::Sizes;

/// What is done to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Create,
    Remove,
    Rename,
    Replace,
    Write,
    Append,
    WriteData,
    WriteFull,
    WriteZeroes,
    Read,
    Preallocate,
    Punch,
    Shrink,
    Grow,
    SetAttribute,
    RemoveAttribute,
    Sync,
    SyncAll,
    Checkpoint,
}

impl Op {
    pub(crate) const ALL: [Self; 19] = [
        Self::Create,
        Self::Remove,
        Self::Rename,
        Self::Replace,
        Self::Write,
        Self::Append,
        Self::WriteData,
        Self::WriteFull,
        Self::WriteZeroes,
        Self::Read,
        Self::Preallocate,
        Self::Punch,
        Self::Shrink,
        Self::Grow,
        Self::SetAttribute,
        Self::RemoveAttribute,
        Self::Sync,
        Self::SyncAll,
        Self::Checkpoint,
    ];

    /// Says whether it may bring data to the medium.
    pub(crate) fn writes_data(self) -> bool {
        let those =
            [Self::Write, Self::Append, Self::WriteData, Self::WriteFull, Self::WriteZeroes];
        those.contains(&self)
    }

    /// How often it is done where nothing is swarmed.
    const WEIGHTS: [u64; 19] = [4, 2, 2, 2, 10, 6, 4, 2, 3, 5, 2, 3, 2, 1, 3, 1, 3, 2, 1];
}

/// What a run is like.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) lba: LbaSize,
    /// Bytes of a unit, of the journal, of each checkpoint; and units of data.
    pub(crate) unit: u64,
    pub(crate) journal: u64,
    pub(crate) checkpoint: u64,
    pub(crate) units: u64,
    pub(crate) drive: Drive,
    pub(crate) handles: usize,
    /// Objects at most, and units of one.
    pub(crate) objects: usize,
    pub(crate) object_units: u64,
    /// By operation, how often it is done.
    pub(crate) weights: [u64; 19],
    /// Requests under way at most.
    pub(crate) under_way: usize,
    /// How many steps out of ten begin something new.
    pub(crate) eager: u64,
    pub(crate) lives: u64,
    pub(crate) steps: u64,
    /// Images for a command, out of a thousand.
    pub(crate) images: u64,
    /// Data commands out of a million that fail.
    pub(crate) data_faults: u32,
    /// The metadata write or flush of a life that fails, if one does.
    pub(crate) metadata_fault: Option<u64>,
    /// Whether every operation and answer is printed.
    pub(crate) verbose: bool,
}

/// Bytes before the journal.
const SUPERBLOCKS: u64 = 256 << 10;

impl Config {
    /// Chooses everything by a seed.
    pub(crate) fn swarm(seed: u64) -> Self {
        let mut from = Seed::from_u64(seed);
        let lba = if from.chance(2, 3) { LbaSize::B512 } else { LbaSize::B4096 };
        let block = u64::from(lba.bytes());
        let unit = block << from.below(4);
        let mut weights = Op::WEIGHTS;
        for weight in &mut weights {
            *weight *= [0, 1, 1, 1, 1, 4][from.below(6) as usize];
        }
        // Without these nothing happens.
        weights[0] = weights[0].max(2);
        weights[4] = weights[4].max(3);
        Self {
            seed,
            lba,
            unit,
            journal: block * (16 + from.below(40)),
            checkpoint: (16 << 10).max(block * 8),
            units: 24 + from.below(72),
            drive: Drive {
                cache: !from.chance(1, 10),
                transfer: from.chance(1, 3).then_some(8192),
            },
            handles: 1 + from.below(3) as usize,
            objects: 2 + from.below(5) as usize,
            object_units: 4 + from.below(12),
            weights,
            under_way: 1 + from.below(8) as usize,
            eager: 1 + from.below(7),
            lives: 3,
            steps: 160,
            images: 0,
            data_faults: if from.chance(1, 2) { 0 } else { from.u32(0..60_000) },
            metadata_fault: from.chance(1, 6).then(|| from.below(25)),
            verbose: false,
        }
    }

    /// Sets how often an operation is done.
    pub(crate) fn with(mut self, op: Op, weight: u64) -> Self {
        self.weights[op as usize] = weight;
        self
    }

    pub(crate) fn sizes(&self) -> Sizes {
        let block = u64::from(self.lba.bytes());
        Sizes { block, unit: self.unit / block }
    }

    fn blocks(&self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.lba.bytes()))
    }

    pub(crate) fn superblocks(&self) -> Range<Lba> {
        Lba(0)..Lba(self.blocks(SUPERBLOCKS))
    }

    pub(crate) fn journal_blocks(&self) -> Range<Lba> {
        let start = self.superblocks().end.0;
        Lba(start)..Lba(start + self.blocks(self.journal))
    }

    pub(crate) fn checkpoint_blocks(&self) -> Range<Lba> {
        let start = self.journal_blocks().end.0;
        Lba(start)..Lba(start + 2 * self.blocks(self.checkpoint))
    }

    pub(crate) fn data_blocks(&self) -> Range<Lba> {
        let unit = self.sizes().unit;
        let start = self.checkpoint_blocks().end.0.next_multiple_of(unit);
        Lba(start)..Lba(start + self.units * unit)
    }

    pub(crate) fn metadata_blocks(&self) -> Range<Lba> {
        Lba(0)..self.checkpoint_blocks().end
    }

    /// Bytes of the disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.data_blocks().end.0 * u64::from(self.lba.bytes())
    }
}
