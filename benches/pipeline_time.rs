//! Times the pipeline's path against the bare queue's: batches of 32 aligned 4 KiB reads at depth 128.
//!
//! `cargo bench --bench pipeline_time`. The two alternate, batch by batch, so that they meet the same
//! machine; the controller is stepped between the halves and left out. What is reported is the time of the
//! one less the time of the other, for each I/O, as the median over rounds, with the spread.
//!
//! This is not a benchmark of a device; what can be held to a limit is in `pipeline_instructions`.

mod bed;

use std::hint::black_box;
use std::time::{Duration, Instant};

use bed::{BATCH, Bed, PipelineBed};

/// Batches of one round.
const BATCHES: u32 = 2000;

fn main() {
    let is_test = std::env::args().any(|arg| arg == "--test");
    let rounds = if is_test { 3 } else { 101 };
    let (mut bare, mut pipeline) = (Bed::new(4096, true), PipelineBed::new(4096));
    (0..8).for_each(|_| bare.lap());
    (0..8).for_each(|_| pipeline.lap());
    let mut figures: Vec<[f64; 3]> = (0..rounds)
        .map(|_| {
            let (mut through, mut past) = (Duration::ZERO, Duration::ZERO);
            for _ in 0..if is_test { 20 } else { BATCHES } {
                past += time_bare(&mut bare);
                through += time_pipeline(&mut pipeline);
            }
            let ios = f64::from(if is_test { 20 } else { BATCHES }) * BATCH as f64;
            let (through, past) = (through.as_nanos() as f64 / ios, past.as_nanos() as f64 / ios);
            [through, past, through - past]
        })
        .collect();
    for (name, column) in [("pipeline", 0), ("bare queue", 1), ("difference", 2)] {
        figures.sort_by(|one, other| one[column].total_cmp(&other[column]));
        let at = |part: usize| figures[(rounds - 1) * part / 100][column];
        println!("{name:<11} {:6.1} ns   (5 % {:.1}, 95 % {:.1})", at(50), at(5), at(95));
    }
}

/// Returns the time of `work`, less what it takes to read the clock there.
fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    let clock = began.elapsed();
    let began = Instant::now();
    work();
    began.elapsed().saturating_sub(clock)
}

fn time_bare(bed: &mut Bed) -> Duration {
    let requests = bed.requests();
    let submitted = timed(|| bed.submit(black_box(requests)));
    bed.controller.step();
    submitted + timed(|| assert_eq!(black_box(bed.poll()), BATCH))
}

fn time_pipeline(bed: &mut PipelineBed) -> Duration {
    let requests = bed.requests();
    let submitted = timed(|| bed.submit(black_box(requests)));
    bed.controller.step();
    submitted + timed(|| assert_eq!(black_box(bed.poll()), BATCH))
}
