//! The crash simulation, for as many seeds as wanted: `cargo run --release --example crash_sim -- --seeds 1000`.
//!
//! Every seed is a run of its own: store, pipeline, driver and controller on one thread, random operations, faults and
//! power cuts, and each image that a cut may leave held against a model. The first violation ends it, with exit code
//! 1 and the command that replays it.
#![forbid(unsafe_code)]

#[path = "../tests/sim/world/mod.rs"]
mod world;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use world::config::Config;

/// Cuts the power of a store at any command and looks at what is left.
#[derive(Parser)]
struct Args {
    /// How many runs.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The seed of the first; the others count on from it.
    #[arg(long)]
    first_seed: Option<u64>,
    /// Images for a hundred commands.
    #[arg(long, default_value_t = 80)]
    images: u64,
    /// Print every operation and answer.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let first = args.first_seed.unwrap_or_else(|| fastrand::u64(..));
    let began = Instant::now();
    let (mut images, mut commands) = (0, 0);
    println!("seeds {first} to {}", first.wrapping_add(args.seeds.saturating_sub(1)));
    for seed in (0..args.seeds).map(|nth| first.wrapping_add(nth)) {
        let swarm = Config::swarm(seed);
        let config = Config { images: args.images * 10, verbose: args.verbose, ..swarm };
        match world::run(&config) {
            Ok(outcome) => {
                images += outcome.images;
                commands += outcome.commands;
            }
            Err(what) => {
                println!("seed {seed}: {what}");
                println!("again: {}", world::replay(seed, args.images));
                return ExitCode::FAILURE;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = images as f64 / seconds;
    println!(
        "{images} images after {commands} commands in {seconds:.1} s ({rate:.0} a second), no violation"
    );
    ExitCode::SUCCESS
}
