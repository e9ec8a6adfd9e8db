//! Counts the instructions of the direct-I/O pipeline's path, and fails above the limits.
//!
//! `cargo bench --bench pipeline_instructions`; needs valgrind and `gungraun-runner`. The same batches of 32
//! aligned 4 KiB reads are counted through the pipeline and through the bare queue below it
//! (`queue_pair_instructions`): the difference is what the pipeline costs.
//!
//! This is not a benchmark of time: see `pipeline_time`.

#![expect(missing_docs, reason = "the attribute makes public modules of the functions")]

mod bed;
#[path = "bed/limit.rs"]
mod limit;

use std::hint::black_box;

use bed::{BATCH, PipelineBed};
use gungraun::prelude::*;
use limit::limit;
use udirect::dio::Io;

/// What one I/O may cost with pipeline, driver and the loop around them: what the code needs today and a little
/// room.
const SUBMIT_MAX: u64 = 284;
const POLL_MAX: u64 = 248;
const EMPTY_POLL_MAX: u64 = 144;

fn prepared() -> (PipelineBed, Vec<Io>) {
    let mut bed = PipelineBed::new(4096);
    (0..8).for_each(|_| bed.lap());
    let requests = bed.requests();
    (bed, requests)
}

fn completed() -> PipelineBed {
    let (mut bed, requests) = prepared();
    bed.submit(requests);
    bed.controller.step();
    bed
}

fn idle() -> Box<PipelineBed> {
    Box::new(prepared().0)
}

#[library_benchmark(config = limit(SUBMIT_MAX, BATCH))]
#[bench::one_page(setup = prepared)]
fn submit(prepared: (PipelineBed, Vec<Io>)) -> PipelineBed {
    let (mut bed, requests) = prepared;
    bed.submit(black_box(requests));
    bed
}

#[library_benchmark(config = limit(POLL_MAX, BATCH))]
#[bench::batch(setup = completed)]
fn poll(mut bed: PipelineBed) -> PipelineBed {
    assert_eq!(black_box(bed.poll()), BATCH);
    bed
}

#[library_benchmark(config = limit(EMPTY_POLL_MAX, 1))]
#[bench::empty(setup = idle)]
fn poll_empty(mut bed: Box<PipelineBed>) -> Box<PipelineBed> {
    assert_eq!(black_box(bed.poll()), 0);
    bed
}

library_benchmark_group!(name = pipeline, benchmarks = [submit, poll, poll_empty]);

main!(library_benchmark_groups = pipeline);
