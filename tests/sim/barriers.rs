//! Barriers: with one of them taken away, the simulation finds out. So it would find out if the store forgot it.

use udirect::soft::{FaultAction, FaultRule};
use udirect::spec::command::NvmOpcode;
use udirect::units::LbaSize;

use crate::world::config::{Config, Op};
use crate::world::{run, run_with};

/// Images within which a missing barrier has to be noticed.
const IMAGES_MAX: u64 = 1000;

/// What keeps what is durable in order.
#[derive(Clone, Copy, Debug)]
enum Barrier {
    /// The flush before a record whose data may be in the cache.
    RoundFlush,
    RecordFua,
    /// The flush between a checkpoint and the superblock that names it.
    CheckpointFlush,
    SuperblockFua,
    /// FUA of writes that are to be durable when they are answered.
    DataFua,
}

const BARRIERS: [Barrier; 5] = [
    Barrier::RoundFlush,
    Barrier::RecordFua,
    Barrier::CheckpointFlush,
    Barrier::SuperblockFua,
    Barrier::DataFua,
];

impl Barrier {
    /// A run in which no other barrier is of the same kind.
    fn config(self, seed: u64) -> Config {
        let config = Config::swarm(seed);
        let cache = true;
        let drive = crate::world::image::Drive { cache, ..config.drive };
        let config = Config { drive, metadata_fault: None, data_faults: 0, ..config };
        let config = Config { images: 1000, lives: 1, ..config };
        match self {
            // A journal so large that no checkpoint flushes.
            Self::RoundFlush => {
                let config = Config { journal: 1 << 20, ..config };
                config.with(Op::Checkpoint, 0).with(Op::SyncAll, 4)
            }
            // No data: whatever is flushed is a checkpoint. And little room, so that what it replaces is used again.
            Self::CheckpointFlush | Self::SuperblockFua => {
                let weights = Op::ALL.map(|op| if op.writes_data() { 0 } else { 3 });
                let block = 1 << config.lba.shift();
                Config { weights, journal: 16 * block, ..config }.with(Op::SyncAll, 6)
            }
            Self::RecordFua | Self::DataFua => {
                let config = Config { lba: LbaSize::B512, unit: 1024, journal: 64 << 10, ..config };
                config.with(Op::WriteData, 10)
            }
        }
    }

    fn removal(self, config: &Config) -> FaultRule {
        let strip = FaultRule::new(FaultAction::StripFua).fua();
        match self {
            Self::RoundFlush | Self::CheckpointFlush => {
                FaultRule::new(FaultAction::Lose).opcode(NvmOpcode::FLUSH)
            }
            Self::RecordFua => strip.blocks(config.journal_blocks()),
            Self::SuperblockFua => strip.blocks(config.superblocks()),
            Self::DataFua => strip.blocks(config.data_blocks()),
        }
    }
}

#[test]
fn a_missing_barrier_is_noticed_within_1000_images() {
    for barrier in BARRIERS {
        let mut images = 0;
        let what = (0..).find_map(|seed| {
            let config = barrier.config(seed);
            let removed = run_with(&config, &mut |life| {
                // Not in the recovery: each barrier there is one of the same class.
                life.hook.faults.add(barrier.removal(&config));
            });
            match removed {
                Ok(outcome) => {
                    images += outcome.images;
                    assert!(
                        images < IMAGES_MAX,
                        "{barrier:?} is missing, and {images} images are explained"
                    );
                    None
                }
                Err(what) => Some(what),
            }
        });
        let what = what.unwrap_or_default();
        let first = what.lines().next().unwrap_or_default();
        eprintln!("{barrier:?}: noticed after {images} explained images: {first:.160}");
    }
}

#[test]
fn with_every_barrier_the_same_runs_are_explained() {
    for barrier in BARRIERS {
        for seed in 0..10 {
            let outcome = run(&barrier.config(seed));
            outcome.unwrap_or_else(|what| panic!("{barrier:?}, seed {seed}: {what}"));
        }
    }
}
