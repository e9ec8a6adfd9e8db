//! Times the driver's path: submit and poll of batches of 32 4 KiB reads at depth 128.
//!
//! `cargo bench --bench queue_pair_time`. The controller is stepped between the two halves and its time is
//! left out. Figures are per I/O; compare only what was measured in one run.
//!
//! This is not a benchmark of a device, and its figures vary with the machine: see
//! `queue_pair_instructions` for what can be held to a limit.

mod bed;

use std::hint::black_box;
use std::time::{Duration, Instant};

use bed::{BATCH, Bed};
use criterion::{Criterion, criterion_group, criterion_main};

/// Which halves of a lap are timed.
#[derive(Clone, Copy)]
struct Timed {
    submit: bool,
    poll: bool,
}

/// Returns the time of `ios` I/Os, in whole batches.
fn time(bed: &mut Bed, ios: u64, timed: Timed) -> Duration {
    let batches = ios.div_ceil(BATCH as u64);
    let mut spent = Duration::ZERO;
    for _ in 0..batches {
        let requests = bed.requests();
        let began = Instant::now();
        // What it takes to read the clock twice is measured in the same place and taken off.
        let clock = began.elapsed();
        let began = Instant::now();
        bed.submit(black_box(requests));
        let submitted = began.elapsed().saturating_sub(clock);
        bed.controller.step();
        let began = Instant::now();
        assert_eq!(black_box(bed.poll()), BATCH);
        let polled = began.elapsed().saturating_sub(clock);
        spent += if timed.submit { submitted } else { Duration::ZERO };
        spent += if timed.poll { polled } else { Duration::ZERO };
    }
    // Batches round up; what is returned is for the I/Os that were asked for.
    spent.mul_f64(ios as f64 / (batches * BATCH as u64) as f64)
}

fn queue_pair(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue_pair");
    let both = Timed { submit: true, poll: true };
    let cases = [
        ("submit and poll", both),
        ("submit", Timed { poll: false, ..both }),
        ("poll", Timed { submit: false, ..both }),
    ];
    for (name, timed) in cases {
        let mut bed = Bed::new(4096, true);
        (0..8).for_each(|_| bed.lap());
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|ios| time(&mut bed, ios, timed));
        });
    }
    group.finish();
}

criterion_group!(benches, queue_pair);
criterion_main!(benches);
