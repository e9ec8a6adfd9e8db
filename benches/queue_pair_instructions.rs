//! Counts the instructions of the driver's path, and fails above the limits.
//!
//! `cargo bench --bench queue_pair_instructions`; needs valgrind and `gungraun-runner`. One batch of 32
//! commands is counted, so the limits are 32 times what one I/O may cost. The controller's own
//! instructions and those of making requests lie in the set-up and are not counted.
//!
//! This is not a benchmark of time: see `queue_pair_time`.

#![expect(missing_docs, reason = "the attribute makes public modules of the functions")]

mod bed;
#[path = "bed/limit.rs"]
mod limit;

use std::hint::black_box;

use bed::{BATCH, Bed};
use gungraun::prelude::*;
use limit::limit;
use udirect::block::Request;

/// What one I/O may cost, in what is counted: the driver, and a loop around it that takes requests from a
/// vector and puts completions into another. The limits are what the code needs today and a little
/// room, so that a change that costs is seen.
const SUBMIT_MAX: u64 = 160;
const SUBMIT_32_PAGES_PRP_MAX: u64 = 525;
const SUBMIT_32_PAGES_SGL_MAX: u64 = 396;
const POLL_MAX: u64 = 184;
const EMPTY_POLL_MAX: u64 = 110;

/// What the loop takes of that, by callgrind's count per function: 24 to submit, 26 to poll.
const LOOP: u64 = 50;

const _: () = assert!(SUBMIT_MAX + POLL_MAX - LOOP <= 300, "the budget of one 4 KiB read");

fn prepared(pages: usize, sgl: bool) -> (Bed, Vec<Request>) {
    let mut bed = Bed::new(pages * 4096, sgl);
    (0..8).for_each(|_| bed.lap());
    let requests = bed.requests();
    (bed, requests)
}

fn one_page() -> (Bed, Vec<Request>) {
    prepared(1, false)
}

fn two_pages() -> (Bed, Vec<Request>) {
    prepared(2, false)
}

fn thirty_two_pages_prp() -> (Bed, Vec<Request>) {
    prepared(32, false)
}

fn thirty_two_pages_sgl() -> (Bed, Vec<Request>) {
    prepared(32, true)
}

fn completed() -> Bed {
    let (mut bed, requests) = one_page();
    bed.submit(requests);
    bed.controller.step();
    bed
}

fn idle() -> Bed {
    one_page().0
}

#[library_benchmark(config = limit(SUBMIT_MAX, BATCH))]
#[bench::one_page(setup = one_page)]
#[bench::two_pages(setup = two_pages)]
fn submit(prepared: (Bed, Vec<Request>)) -> Bed {
    let (mut bed, requests) = prepared;
    bed.submit(black_box(requests));
    bed
}

#[library_benchmark(config = limit(SUBMIT_32_PAGES_PRP_MAX, BATCH))]
#[bench::prp(setup = thirty_two_pages_prp)]
fn submit_32_pages(prepared: (Bed, Vec<Request>)) -> Bed {
    let (mut bed, requests) = prepared;
    bed.submit(black_box(requests));
    bed
}

#[library_benchmark(config = limit(SUBMIT_32_PAGES_SGL_MAX, BATCH))]
#[bench::sgl(setup = thirty_two_pages_sgl)]
fn submit_32_pages_sgl(prepared: (Bed, Vec<Request>)) -> Bed {
    let (mut bed, requests) = prepared;
    bed.submit(black_box(requests));
    bed
}

#[library_benchmark(config = limit(POLL_MAX, BATCH))]
#[bench::batch(setup = completed)]
fn poll(mut bed: Bed) -> Bed {
    assert_eq!(black_box(bed.poll()), BATCH);
    bed
}

#[library_benchmark(config = limit(EMPTY_POLL_MAX, 1))]
#[bench::empty(setup = idle)]
fn poll_empty(mut bed: Bed) -> Bed {
    assert_eq!(black_box(bed.poll()), 0);
    bed
}

library_benchmark_group!(
    name = queue_pair,
    benchmarks = [submit, submit_32_pages, submit_32_pages_sgl, poll, poll_empty]
);

main!(library_benchmark_groups = queue_pair);
