//! Times the driver's path: submit and poll of batches of 32 4 KiB reads at depth 128.
//!
//! `cargo bench --bench queue_pair_time`. The controller is stepped between the two halves and its time is
//! left out. Figures are per I/O; compare only what was measured in one run.
//!
//! "the loop alone" is the same loop over a queue that only keeps requests and gives them back: what is left of
//! "submit and poll" above it is the driver.
//!
//! This is not a benchmark of a device, and its figures vary with the machine: see
//! `queue_pair_instructions` for what can be held to a limit.

mod bed;

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bed::{BATCH, Bed};
use criterion::{Criterion, criterion_group, criterion_main};
use udirect::block::{Completion, Counters, IoQueue, Rejected, Request};

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
    let mut bed = Bed::new(4096, true);
    let shelf = Shelf { requests: VecDeque::with_capacity(BATCH) };
    let queue = std::mem::replace(&mut bed.queue, Box::new(shelf));
    group.bench_function("the loop alone", |bencher| {
        bencher.iter_custom(|ios| time(&mut bed, ios, both));
    });
    bed.queue = queue;
    group.finish();
}

/// A queue that keeps requests and gives them back.
struct Shelf {
    requests: VecDeque<Request>,
}

impl IoQueue for Shelf {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        self.requests.push_back(request);
        Ok(())
    }

    fn ring(&mut self) {}

    fn poll(&mut self, max: usize, sink: &mut dyn FnMut(Completion)) -> usize {
        let mut count = 0;
        while count < max {
            let Some(request) = self.requests.pop_front() else { break };
            sink(Completion { request, result: Ok(()) });
            count += 1;
        }
        count
    }

    fn inflight(&self) -> usize {
        self.requests.len()
    }

    fn depth(&self) -> usize {
        BATCH
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }
}

criterion_group!(benches, queue_pair);
criterion_main!(benches);
