//! Torn metadata: a write of several blocks that is there in part leaves the old state or the new one.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use udirect::seed::Seed;
use udirect::soft::{Disk, Pending, PendingWrite};
use udirect::units::LbaSize;

use crate::world::config::{Config, Op};
use crate::world::hook::{Onlooker, Sight};
use crate::world::image::Examiner;
use crate::world::watch::enter;
use crate::world::{replay, run_with};

/// Writes of several blocks that are torn in every way.
const WRITES: u64 = 300;

/// Which blocks of a torn write are there.
#[derive(Clone, Copy, Debug)]
enum Torn {
    Only(u64),
    Without(u64),
    UpTo(u64),
}

impl Torn {
    fn keeps(self, index: u64) -> bool {
        match self {
            Self::Only(kept) => index == kept,
            Self::Without(lost) => index != lost,
            Self::UpTo(end) => index < end,
        }
    }

    /// Every way in which a write of so many blocks is torn here, first whole and not at all.
    fn all(blocks: u64) -> impl Iterator<Item = Self> {
        let ends = [Self::UpTo(0), Self::UpTo(blocks)].into_iter();
        let each = (0..blocks).flat_map(|at| [Self::Only(at), Self::Without(at), Self::UpTo(at)]);
        ends.chain(each)
    }
}

/// Leaves a torn write, and of the other writes all or nothing.
fn torn(disk: &Disk, write: PendingWrite, how: Torn, others: bool) -> Arc<Disk> {
    disk.crash_by(&mut |block: Pending| {
        if block.serial == write.serial { how.keeps(block.index) } else { others }
    })
}

/// Tears every new write of several blocks of metadata that it sees.
fn tearing(config: &Config, torn_writes: &Arc<AtomicU64>) -> Onlooker {
    let metadata = config.metadata_blocks();
    let (mut seen, torn_writes) = (HashSet::new(), Arc::clone(torn_writes));
    Box::new(move |sight, examiner| {
        for write in sight.pending {
            let counts = write.blocks.0 > 1 && metadata.contains(&write.first);
            if counts && seen.insert(write.serial) {
                for others in [false, true] {
                    tear(sight, examiner, *write, others)?;
                }
                torn_writes.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    })
}

fn tear(
    sight: &Sight<'_>,
    examiner: &mut Examiner,
    write: PendingWrite,
    others: bool,
) -> Result<(), String> {
    let mut ends = Vec::new();
    for how in Torn::all(write.blocks.0) {
        let image = torn(sight.disk, write, how, others);
        let (found, position) = examiner.examine(&image, &enter(sight.model))?;
        if ends.len() < 2 {
            ends.push(found);
        } else if ends.iter().all(|end| end.shape_difference(&found).is_some()) {
            return Err(format!(
                "{write:?} torn as {how:?} is neither old nor new: event {position}"
            ));
        }
    }
    Ok(())
}

#[test]
fn every_torn_metadata_write_leaves_the_old_state_or_the_new_one() {
    let mut seed = Seed::from_env("torn writes");
    let torn_writes = Arc::new(AtomicU64::new(0));
    let mut images = 0;
    while torn_writes.load(Ordering::Relaxed) < WRITES {
        let one = seed.u64(..);
        let config = Config { lba: LbaSize::B512, ..Config::swarm(one) };
        let config = Config {
            unit: 512 << (one % 4),
            journal: 512 * (16 + one % 40),
            checkpoint: 16 << 10,
            lives: 1,
            ..config
        };
        // Large attributes and long names make records of several blocks.
        let config = config.with(Op::SetAttribute, 20).with(Op::Checkpoint, 4).with(Op::SyncAll, 4);
        let outcome = run_with(&config, &mut |life| {
            let onlooker = tearing(&config, &torn_writes);
            life.hook.look_on(onlooker);
        });
        images += outcome.unwrap_or_else(|what| panic!("{what}\n{}", replay(one, 80))).images;
    }
    eprintln!("{} torn writes, {images} images", torn_writes.load(Ordering::Relaxed));
}
