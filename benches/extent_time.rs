//! Times the extent store's structures in memory: looking up, taking and giving back.
//!
//! `cargo bench --bench extent_time`. A tebibyte of 4 KiB units, empty, and 90 % full with a million free
//! runs; one and two threads, each with a group of its own and with the end of what it took last as its goal. Units
//! are taken one at a time, which is the worst that a writer can do. Figures are per operation of one thread,
//! throughputs those of all threads together.
//!
//! "steady" gives back a random unit for each one that it takes, so that the space stays as it is; "take"
//! is the first half of the same work.
//!
//! This is not a benchmark of a store: there is no journal here, and no device.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use criterion::{criterion_group, criterion_main, measurement::WallTime};
use udirect::extent::space::{Run, Space};
use udirect::extent::tree::{ExtentTree, Mapped};

/// A tebibyte of 4 KiB units.
const UNITS: u64 = 1 << 28;
/// Free runs of the full device.
const RUNS: u64 = 1_000_000;
/// Extents of the map.
const EXTENTS: u64 = 10_000;
/// Units that a thread has and gives back in random order.
const HELD: usize = 1 << 16;
/// Operations between two looks at the clock.
const BATCH: u64 = 1024;
/// How far apart the groups of the threads are.
const APART: usize = 64;

/// Looks up random aligned units of a file in which no two extents join.
fn lookup(criterion: &mut Criterion) {
    let mut tree = ExtentTree::new();
    for n in 0..EXTENTS {
        tree.push(Mapped { file: n * 8, device: n * 24, units: 8, written: true });
    }
    let mut order = fastrand::Rng::with_seed(1);
    let units: Vec<u64> = (0..HELD).map(|_| order.u64(..EXTENTS * 8)).collect();
    let mut group = criterion.benchmark_group("extent_tree");
    group.throughput(Throughput::Elements(1));
    group.bench_function("find among 10000 extents", |bencher| {
        let mut at = 0;
        bencher.iter(|| {
            at = (at + 1) % HELD;
            tree.find(black_box(units[at]))
        });
    });
    group.finish();
}

fn space(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("space");
    group.sample_size(20);
    for threads in [1, 2] {
        group.throughput(Throughput::Elements(threads as u64));
        bench_empty(&mut group, threads);
        bench_full(&mut group, threads);
    }
    group.finish();
}

/// Every sample begins with an empty device.
fn bench_empty(group: &mut BenchmarkGroup<'_, WallTime>, threads: usize) {
    group.bench_function(BenchmarkId::new("empty, take", threads), |bencher| {
        bencher.iter_custom(|rounds| {
            let space = Space::all_free(0..UNITS);
            let mut takers: Vec<Taker> = (0..threads).map(|at| Taker::new(at * APART)).collect();
            let take =
                |taker: &mut Taker| (0..rounds).fold(0, |_, _| black_box(taker.take(&space)));
            on_threads(&mut takers, |taker| _ = take(taker))
        });
    });
}

fn bench_full(group: &mut BenchmarkGroup<'_, WallTime>, threads: usize) {
    let (space, used) = nine_tenths_full();
    let mut swappers: Vec<Swapper> =
        (0..threads).map(|at| Swapper::new(at * APART, &space, &used)).collect();
    for (name, part) in [("take", Part::Take), ("steady", Part::Both)] {
        let name = format!("90 % full, {name}");
        group.bench_function(BenchmarkId::new(name, threads), |bencher| {
            bencher.iter_custom(|rounds| {
                let batches = rounds.div_ceil(BATCH);
                on_threads(&mut swappers, |swapper| swapper.run(&space, batches));
                let spent = swappers.iter().map(|swapper| swapper.spent(part)).max();
                // Batches round up; what is returned is for the rounds that were asked for.
                let spent = spent.expect("there is a thread");
                spent.mul_f64(rounds as f64 / (batches * BATCH) as f64)
            });
        });
    }
    let end = space.statistics();
    println!("left: {} runs, fragmentation {:.3}", end.runs, end.fragmentation);
}

/// Returns a device of which a tenth is free, in [`RUNS`] runs of random length; and its used runs.
fn nine_tenths_full() -> (Space, Vec<(u64, u64)>) {
    let mut order = fastrand::Rng::with_seed(2);
    let (share, free) = (UNITS / RUNS, UNITS / RUNS / 10);
    let used: Vec<(u64, u64)> = (0..RUNS)
        .map(|n| {
            let gap = order.u64(1..2 * free);
            (n * share + gap, share - gap)
        })
        .collect();
    let began = Instant::now();
    let space = Space::from_used(0..RUNS * share, used.iter().copied()).expect("they rise");
    println!("{RUNS} runs loaded in {:.1?}: {} bytes", began.elapsed(), space.heap_bytes());
    (space, used)
}

/// Runs `work` on each of `states`, all at once, and returns the longest time.
fn on_threads<T: Send>(states: &mut [T], work: impl Fn(&mut T) + Sync) -> Duration {
    let start = Barrier::new(states.len());
    let (start, work) = (&start, &work);
    std::thread::scope(|scope| {
        let timed = |state| {
            move || {
                start.wait();
                let began = Instant::now();
                work(state);
                began.elapsed()
            }
        };
        let threads: Vec<_> = states.iter_mut().map(|state| scope.spawn(timed(state))).collect();
        let spent = threads.into_iter().map(|thread| thread.join().expect("it does not panic"));
        spent.max().expect("there is a thread")
    })
}

/// A writer that takes a unit at a time, each behind the one before.
///
/// Padded: its goal changes with every unit, and the writers of two threads lie side by side.
#[repr(align(128))]
struct Taker {
    preferred: usize,
    goal: Option<u64>,
}

impl Taker {
    fn new(preferred: usize) -> Self {
        Self { preferred, goal: None }
    }

    fn take(&mut self, space: &Space) -> u64 {
        let run = space.take(self.preferred, self.goal, 1).expect("there is space");
        self.goal = Some(run.end());
        run.start
    }
}

#[derive(Clone, Copy)]
enum Part {
    Take,
    Both,
}

/// A writer that gives back as much as it takes.
struct Swapper {
    taker: Taker,
    held: Vec<u64>,
    order: fastrand::Rng,
    take: Duration,
    give: Duration,
}

impl Swapper {
    /// Adopts random used units of the group that it prefers.
    fn new(preferred: usize, space: &Space, used: &[(u64, u64)]) -> Self {
        let mut order = fastrand::Rng::with_seed(preferred as u64);
        let share = used.len() / space.groups();
        let near: Range<usize> = preferred * share..(preferred + 1) * share;
        let mut held: Vec<u64> =
            used[near].iter().flat_map(|&(start, units)| start..start + units).collect();
        order.shuffle(&mut held);
        held.truncate(HELD);
        let (take, give) = Default::default();
        Self { taker: Taker::new(preferred), held, order, take, give }
    }

    /// Takes and gives back in batches, and adds up the time of both.
    fn run(&mut self, space: &Space, batches: u64) {
        (self.take, self.give) = Default::default();
        let mut taken = Vec::with_capacity(BATCH as usize);
        for _ in 0..batches {
            let began = Instant::now();
            taken.extend((0..BATCH).map(|_| self.taker.take(space)));
            self.take += began.elapsed();
            for unit in &mut taken {
                let at = self.order.usize(..self.held.len());
                std::mem::swap(unit, &mut self.held[at]);
            }
            let began = Instant::now();
            taken.drain(..).for_each(|start| space.give_back(Run { start, units: 1 }));
            self.give += began.elapsed();
        }
    }

    fn spent(&self, part: Part) -> Duration {
        match part {
            Part::Take => self.take,
            Part::Both => self.take + self.give,
        }
    }
}

criterion_group!(benches, lookup, space);
criterion_main!(benches);
