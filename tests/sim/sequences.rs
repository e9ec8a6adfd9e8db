//! All short sequences: whatever three operations follow each other on a fresh store, and wherever the power goes.

use std::sync::Arc;

use udirect::seed::Seed;
use udirect::soft::Disk;
use udirect::units::LbaSize;

use crate::world::config::{Config, Op};
use crate::world::formatted;
use crate::world::image::{Drive, Examiner};
use crate::world::life::Life;
use crate::world::model::{Found, Model};

fn config() -> Config {
    Config {
        lba: LbaSize::B512,
        unit: 1024,
        journal: 512 * 24,
        checkpoint: 8 << 10,
        units: 24,
        drive: Drive { cache: true, transfer: None },
        handles: 1,
        objects: 4,
        object_units: 6,
        under_way: 8,
        images: 1000,
        data_faults: 0,
        metadata_fault: None,
        ..Config::swarm(1)
    }
}

/// A store with two objects that are durable: one with data and space without, one with nothing.
fn fresh(config: &Config, examiner: Examiner) -> (Arc<Disk>, Found, Examiner, u64) {
    let disk = formatted(config, &examiner);
    let model = Model::new(config.sizes());
    let opened = Life::open(config, disk, model, examiner, Seed::from_u64(2), 0);
    let mut life = opened.expect("a new store opens");
    let mut perform = |ops: &[Op]| {
        ops.iter().for_each(|op| life.perform(*op, 0).expect("nothing is in its way"));
        life.settle().expect("nothing is wrong");
    };
    perform(&[Op::Create]);
    perform(&[Op::Write, Op::SetAttribute]);
    perform(&[Op::Preallocate]);
    perform(&[Op::Create]);
    let disk = life.disk.fork();
    let (found, examiner, tag) = life.end(&disk).expect("all of it is durable");
    assert_eq!(found.objects.len(), 2);
    (disk, found, examiner, tag)
}

/// Does a sequence on the store, some without waiting for the one before.
fn play(
    config: &Config,
    (disk, found, tag): (&Arc<Disk>, &Found, u64),
    examiner: Examiner,
    ops: &[Op],
    seed: u64,
) -> Result<Examiner, String> {
    let model = Model::of(config.sizes(), found);
    let mut life = Life::open(config, disk.fork(), model, examiner, Seed::from_u64(seed), tag)?;
    let waits = life.seed.bool();
    for op in ops {
        life.perform(*op, 0)?;
        if waits {
            life.drain()?;
        }
    }
    life.settle()?;
    let image = life.disk.crash(&mut Seed::from_u64(seed));
    Ok(life.end(&image)?.1)
}

#[test]
fn every_sequence_of_three_operations_survives_a_cut_at_every_command() {
    let config = config();
    let seed = Seed::from_env("sequences").u64(..);
    let (disk, found, mut examiner, tag) = fresh(&config, Examiner::new(seed, config.drive));
    let mut sequences = 0;
    let kinds = Op::ALL.len();
    for length in 1..=3 {
        for number in 0..kinds.pow(length) {
            let op = |place: u32| Op::ALL[number / kinds.pow(place) % kinds];
            let ops: Vec<Op> = (0..length).map(op).collect();
            let one = seed.wrapping_add(sequences);
            let played = play(&config, (&disk, &found, tag), examiner, &ops, one);
            examiner = played.unwrap_or_else(|what| panic!("{ops:?}, seed {one}: {what}"));
            sequences += 1;
        }
    }
    assert_eq!(sequences, 19 + 19 * 19 + 19 * 19 * 19);
    eprintln!("{sequences} sequences, {} images", examiner.images);
}
