//! A world of one thread: a disk with a cache, a controller, the driver, the store, pipelines; and power cuts.
//!
//! ```text
//!   life      random operations from a seed, on some handles          config says how many of what, and what fails
//!    ├ watch     the store as pipelines see it ──> model                what was asked, promised and done
//!    └ hook      before each command: an image ──> image ──> model      opened by a store of its own, and explained
//! ```
//!
//! Shared by `tests/sim` and `examples/crash_sim.rs`. The invariant: a seed gives one run, to the last command.
#![allow(dead_code, reason = "the example needs less of it than the tests")]

pub(crate) mod config;
pub(crate) mod content;
pub(crate) mod hook;
pub(crate) mod image;
pub(crate) mod life;
pub(crate) mod model;
pub(crate) mod watch;

use std::sync::Arc;

use udirect::extent::{FormatOptions, Store, Uuid};
use udirect::seed::Seed;
use udirect::soft::Disk;

use config::Config;
use image::{Examiner, PATIENCE, open_options};
use life::Life;
use model::Model;

/// What a run has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) images: u64,
    pub(crate) requests: u64,
    /// Requests and operations that were answered with an error.
    pub(crate) failures: u64,
    pub(crate) commands: u64,
    pub(crate) lives: u64,
    /// The same in every run of a seed.
    pub(crate) trace: u64,
}

impl Outcome {
    /// Adds another run.
    pub(crate) fn add(&mut self, other: &Self) {
        self.images += other.images;
        self.requests += other.requests;
        self.failures += other.failures;
        self.commands += other.commands;
        self.lives += other.lives;
    }
}

/// Returns the command that does a run again.
pub(crate) fn replay(seed: u64, images: u64) -> String {
    format!(
        "cargo run --release --example crash_sim -- --seeds 1 --first-seed {seed} --images {images}"
    )
}

/// Makes the disk of a configuration, with an empty store on it.
pub(crate) fn formatted(config: &Config, examiner: &Examiner) -> Arc<Disk> {
    let disk = Disk::filled(config.bytes(), config.lba, content::tag);
    let device = examiner.bench.device(&disk, config.drive, None);
    let options = FormatOptions {
        unit: config.unit,
        journal: Some(config.journal),
        checkpoint: Some(config.checkpoint),
        uuid: Some(Uuid::from_random(u128::from(config.seed) << 64 | 7)),
        force: false,
        timeout: PATIENCE,
        clock: open_options(1).clock,
    };
    Store::format(&device, &options).expect("the areas fit");
    drop(device);
    disk.fork()
}

/// Runs the lives of a configuration, each on what the power cut before it has left.
pub(crate) fn run(config: &Config) -> Result<Outcome, String> {
    run_with(config, &mut |_| {})
}

/// Runs the lives of a configuration, and shows each to `prepare` when it begins.
pub(crate) fn run_with(
    config: &Config,
    prepare: &mut dyn FnMut(&mut Life),
) -> Result<Outcome, String> {
    if config.verbose {
        eprintln!("{config:?}");
    }
    let mut seed = Seed::from_u64(config.seed ^ 0x5eed);
    let mut examiner = Examiner::new(seed.u64(..), config.drive);
    let mut disk = formatted(config, &examiner);
    let mut model = Model::new(config.sizes());
    let mut outcome = Outcome::default();
    let mut tag = 0;
    for nth in 0..config.lives {
        let context = |what: String| format!("life {nth}: {what}");
        let seed = Seed::from_u64(seed.u64(..));
        let mut life = Life::open(config, disk, model, examiner, seed, tag).map_err(context)?;
        prepare(&mut life);
        let image = live(&mut life).map_err(context)?;
        outcome.requests += life.done;
        outcome.failures += life.failures;
        outcome.commands += life.hook.commands();
        outcome.lives += 1;
        let found;
        (found, examiner, tag) = life.end(&image).map_err(context)?;
        model = Model::of(config.sizes(), &found);
        disk = image;
    }
    (outcome.images, outcome.trace) = (examiner.images, examiner.trace);
    Ok(outcome)
}

/// Lives until the power goes; returns what is left.
fn live(life: &mut Life) -> Result<Arc<Disk>, String> {
    life.add_faults();
    let cut = life.seed.chance(1, 3).then(|| life.seed.below(life.config.steps));
    for step in 0..life.config.steps {
        if cut == Some(step) {
            life.hook.tear_no_more();
            let (commands, seed) = (life.seed.below(20), life.seed.u64(..));
            life.disk.cut_power_after(commands, seed);
        }
        life.step()?;
        if life.is_over() {
            break;
        }
    }
    if life.is_over() {
        life.drain()?;
    } else if life.seed.bool() {
        life.settle()?;
        life.hook.look();
    }
    life.violation()?;
    let seed = &mut life.seed;
    Ok(life.disk.after_cut().unwrap_or_else(|| life.disk.crash(seed)))
}
