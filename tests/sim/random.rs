//! Random runs: whatever is done, every image that a power cut may leave is explained.

use std::time::Instant;

use udirect::seed::Seed;

use crate::world::config::Config;
use crate::world::{Outcome, replay, run};

/// How many images, where nobody says.
const IMAGES: u64 = 100_000;

/// Cycles of errors and crashes on disks that hold a tag where nothing was written.
const CYCLES: u64 = 100_000;

/// Seeds that are run twice.
const TWICE: u64 = 100;

fn wanted(default: u64) -> u64 {
    std::env::var("UDIRECT_IMAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn run_one(config: &Config) -> Outcome {
    run(config).unwrap_or_else(|what| panic!("{what}\nagain: {}", replay(config.seed, 80)))
}

#[test]
fn every_image_of_a_random_run_is_explained() {
    let mut seed = Seed::from_env("crash images");
    let (began, mut sum, mut runs) = (Instant::now(), Outcome::default(), 0);
    while sum.images < wanted(IMAGES) {
        sum.add(&run_one(&Config { images: 800, ..Config::swarm(seed.u64(..)) }));
        runs += 1;
    }
    eprintln!("{runs} runs, {sum:?}, {:?}", began.elapsed());
}

/// Every disk is filled with a tag before it is formatted, and the model knows every byte that may be found. Here
/// a tenth of all data commands fails, and in the lives of every third run a flush or a write of metadata.
#[test]
fn stale_data_is_never_read_after_errors_and_crashes() {
    let mut seed = Seed::from_env("stale data");
    let (began, mut sum) = (Instant::now(), Outcome::default());
    while sum.images + sum.failures < wanted(CYCLES) {
        let one = seed.u64(..);
        let swarm = Config::swarm(one);
        let metadata_fault = one.is_multiple_of(3).then_some(one % 41);
        let (data_faults, images) = (100_000, 600);
        let config = Config { images, data_faults, metadata_fault, ..swarm };
        run(&config).map_or_else(
            |what| panic!("{what}\nUDIRECT_SEED of this run is printed above; run {one}"),
            |outcome| sum.add(&outcome),
        );
    }
    eprintln!("{sum:?}, {:?}", began.elapsed());
}

#[test]
fn a_seed_gives_one_run() {
    let mut seed = Seed::from_env("runs that are made twice");
    for _ in 0..TWICE {
        let config = Config { images: 100, ..Config::swarm(seed.u64(..)) };
        assert_eq!(run_one(&config), run_one(&config), "seed {}", config.seed);
    }
}
