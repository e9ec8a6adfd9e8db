use std::collections::HashSet;

use super::*;
use crate::bench::job::{BlockShare, PerDirection, Size, Verify, Workload};

const MIB: u64 = 1 << 20;
const REGION: Region = Region { start: 3 * MIB, bytes: 4 * MIB };

fn job(rw: Workload) -> Job {
    Job { rw, ..Job::default() }
}

fn generator(job: &Job) -> Generator {
    Generator::new(job, 0, REGION, LbaSize::B512).unwrap()
}

fn take(generator: &mut Generator, count: u64) -> Vec<Io> {
    (0..count).map(|_| generator.next()).collect()
}

#[test]
fn sequential_io_wraps_around_at_the_end_of_the_region() {
    let mut generator = generator(&job(Workload::Read));
    assert_eq!(generator.blocks_per_pass(), 1024);
    let ios = take(&mut generator, 1025);
    let offsets: Vec<u64> = ios.iter().map(|io| io.offset).collect();
    assert_eq!(offsets[..2], [3 * MIB, 3 * MIB + 4096]);
    assert_eq!(offsets[1023..], [7 * MIB - 4096, 3 * MIB]);
}

#[test]
fn a_rest_shorter_than_a_block_is_not_touched() {
    let region = Region { start: 0, bytes: 3 * 4096 + 512 };
    for rw in [Workload::Read, Workload::RandRead] {
        let mut generator = Generator::new(&job(rw), 0, region, LbaSize::B512).unwrap();
        assert_eq!(generator.blocks_per_pass(), 3);
        let mut offsets: Vec<u64> = take(&mut generator, 3).iter().map(|io| io.offset).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, [0, 4096, 8192]);
    }
}

#[test]
fn reads_and_writes_advance_on_their_own_in_a_sequential_mix() {
    let ios = take(&mut generator(&job(Workload::ReadWrite)), 200);
    for direction in [Direction::Read, Direction::Write] {
        let own = ios.iter().filter(|io| io.direction == direction);
        assert!(own.zip(0..).all(|(io, index)| io.offset == 3 * MIB + index * 4096));
    }
}

#[test]
fn random_io_covers_each_block_once_per_pass_whatever_the_direction() {
    for rw in [Workload::RandRead, Workload::RandWrite, Workload::RandRw, Workload::RandTrim] {
        let mut generator = generator(&job(rw));
        for _ in 0..3 {
            let pass = take(&mut generator, 1024);
            let offsets: HashSet<u64> = pass.iter().map(|io| io.offset).collect();
            assert_eq!(offsets.len(), 1024, "{rw:?}");
        }
    }
}

#[test]
fn without_a_map_blocks_repeat() {
    let job = Job { norandommap: true, ..job(Workload::RandRead) };
    let offsets: HashSet<u64> =
        take(&mut generator(&job), 1024).iter().map(|io| io.offset).collect();
    // 1024 draws out of 1024 leave one e-th untouched: 647 distinct ones, give or take a dozen.
    assert!((600..700).contains(&offsets.len()), "{}", offsets.len());
}

#[test]
fn the_same_seed_gives_the_same_sequence_and_another_worker_another() {
    for rw in [Workload::RandRw, Workload::RandRead] {
        let job = job(rw);
        let sequence = |job: &Job, worker| {
            take(&mut Generator::new(job, worker, REGION, LbaSize::B512).unwrap(), 100)
        };
        assert_eq!(sequence(&job, 0), sequence(&job, 0));
        assert_ne!(sequence(&job, 0), sequence(&job, 1));
        let other = Job { randseed: 2, ..job.clone() };
        assert_ne!(sequence(&job, 0), sequence(&other, 0));
    }
}

#[test]
fn reads_have_their_share_of_a_mix() {
    for percent in [0, 1, 30, 70, 99, 100] {
        let job = Job { rwmixread: percent, ..job(Workload::RandRw) };
        let ios = take(&mut generator(&job), 100_000);
        let reads = ios.iter().filter(|io| io.direction == Direction::Read).count();
        let expected = usize::from(percent) * 1000;
        // Four standard deviations of the widest binomial here are 632.
        let slack = if percent % 100 == 0 { 0 } else { 632 };
        assert!(reads.abs_diff(expected) <= slack, "{percent} %: {reads} of 100000");
    }
}

fn shares(parts: &[(u32, f64)]) -> BlockSizes {
    let share = |&(bytes, percent): &(u32, f64)| BlockShare { bytes, percent };
    BlockSizes::split(parts.iter().map(share).collect()).unwrap()
}

#[test]
fn block_sizes_have_their_share_and_align_to_the_smallest() {
    let mut job = job(Workload::RandRead);
    job.bs.read = shares(&[(4096, 60.0), (65536, 30.0), (8192, 10.0), (512, 0.0)]);
    let ios = take(&mut generator(&job), 100_000);
    for (bytes, expected) in [(4096, 60_000), (65536, 30_000), (8192, 10_000), (512, 0)] {
        let found = ios.iter().filter(|io| io.len == bytes).count();
        assert!(found.abs_diff(expected) < 632, "{bytes}: {found}");
    }
}

/// The hundred most popular of 10,000 blocks, wherever they lie, receive what the law gives them.
#[test]
fn zipf_makes_few_blocks_hot_and_scatters_them() {
    let theta = 1.1;
    let job = Job { random_distribution: Distribution::Zipf { theta }, ..job(Workload::RandRead) };
    let region = Region { start: 0, bytes: 10_000 * 4096 };
    let mut generator = Generator::new(&job, 0, region, LbaSize::B512).unwrap();
    let mut hits = vec![0_u32; 10_000];
    (0..200_000).for_each(|_| hits[(generator.next().offset / 4096) as usize] += 1);
    let mut by_hits: Vec<usize> = (0..hits.len()).collect();
    by_hits.sort_by_key(|block| core::cmp::Reverse(hits[*block]));
    let hot = by_hits[..100].iter().map(|block| f64::from(hits[*block])).sum::<f64>() / 200_000.0;
    let sum = |ranks: u32| (1..=ranks).map(|rank| f64::from(rank).powf(-theta)).sum::<f64>();
    let expected = sum(100) / sum(10_000);
    assert!(expected > 0.6 && (hot - expected).abs() < 0.01, "{hot}, not {expected}");
    let neighbours = by_hits[..100].iter().filter(|block| by_hits[..100].contains(&(*block + 1)));
    assert!(neighbours.count() < 10, "hot blocks lie side by side");
}

#[test]
fn reads_and_writes_agree_on_which_blocks_are_hot() {
    let job =
        Job { random_distribution: Distribution::Zipf { theta: 2.0 }, ..job(Workload::RandRw) };
    let ios = take(&mut generator(&job), 10_000);
    let hottest = |direction| {
        let mut hits = std::collections::HashMap::new();
        let own = ios.iter().filter(|io| io.direction == direction);
        own.for_each(|io| *hits.entry(io.offset).or_insert(0) += 1);
        hits.into_iter().max_by_key(|(_, hits)| *hits).unwrap().0
    };
    assert_eq!(hottest(Direction::Read), hottest(Direction::Write));
}

#[test]
fn what_was_written_is_read_back_in_the_same_order() {
    for rw in [Workload::Write, Workload::RandWrite, Workload::ReadWrite, Workload::RandRw] {
        let job = Job { verify: Verify::Crc32c, ..job(rw) };
        let ios = take(&mut generator(&job), 3000);
        let written = ios.iter().filter(|io| io.direction == Direction::Write);
        let mut back = ReadBack::new(&job, 0, REGION, LbaSize::B512).unwrap();
        for io in written {
            assert_eq!(back.next(), Io { direction: Direction::Read, ..*io });
        }
    }
}

#[test]
fn a_workload_without_writes_has_nothing_to_read_back() {
    let refusal = |job: &Job| ReadBack::new(job, 0, REGION, LbaSize::B512).unwrap_err().to_string();
    assert_eq!(refusal(&job(Workload::RandRead)), "randread writes nothing to read back");
    let all_reads = Job { rwmixread: 100, ..job(Workload::RandRw) };
    assert_eq!(refusal(&all_reads), "randrw writes nothing to read back");
}

#[test]
fn blocks_and_regions_that_do_not_fit_the_device_are_refused() {
    let refusal =
        |job: &Job, region| Generator::new(job, 0, region, LbaSize::B4096).unwrap_err().to_string();
    let mut job = job(Workload::Write);
    job.bs.write = BlockSizes::fixed(6144);
    let odd = "write block size 6144 is no multiple of the LBA size, 4096 B";
    assert_eq!(refusal(&job, REGION), odd);
    job.bs.write = BlockSizes::fixed(8192);
    let region = Region { start: 512, bytes: 8192 };
    assert_eq!(refusal(&job, region), "offset 512 is no multiple of the LBA size, 4096 B");
    let region = Region { start: 0, bytes: 4096 };
    assert_eq!(refusal(&job, region), "write block size 8192 exceeds the region of 4096 bytes");
}

fn any_sizes(random: &mut fastrand::Rng, lba: LbaSize) -> BlockSizes {
    let bytes = |random: &mut fastrand::Rng| lba.bytes() * random.u32(1..=40);
    if random.bool() {
        return BlockSizes::fixed(bytes(random));
    }
    let count = random.usize(2..=5);
    let percent = 100.0 / count as f64;
    let parts: Vec<_> = (0..count).map(|_| (bytes(random), percent)).collect();
    shares(&parts)
}

fn any_job(random: &mut fastrand::Rng, lba: LbaSize) -> Job {
    let distributions = [
        Distribution::Random,
        Distribution::Zipf { theta: 0.1 + 2.0 * random.f64() },
        Distribution::Pareto { h: 0.05 + 0.9 * random.f64() },
    ];
    Job {
        rw: random.choice(Workload::NAMES).unwrap().1,
        bs: PerDirection::from_fn(|_| any_sizes(random, lba)),
        rwmixread: random.u8(0..=100),
        random_distribution: random.choice(distributions).unwrap(),
        norandommap: random.bool(),
        randseed: random.u64(..),
        offset: Size::Percent(random.u8(0..=90)),
        ..Job::default()
    }
}

/// Checks that an I/O lies inside the region, on its grid, and is one that the job asks for.
fn check(io: Io, job: &Job, region: Region, seed: u64) {
    let sizes = job.bs.get(io.direction);
    let inside =
        io.offset >= region.start && io.offset + u64::from(io.len) <= region.start + region.bytes;
    assert!(inside, "UDIRECT_SEED={seed}: {io:?} outside {region:?}");
    // Sequential sizes follow each other without gaps, so only their LBAs align.
    let on_grid = (io.offset - region.start).is_multiple_of(u64::from(sizes.min()));
    assert!(on_grid || !job.rw.is_random(), "UDIRECT_SEED={seed}: {io:?} off the grid");
    let asked = job.rw.uses(io.direction) && sizes.shares().iter().any(|s| s.bytes == io.len);
    assert!(asked, "UDIRECT_SEED={seed}: {io:?} was not asked for");
}

#[test]
fn every_io_is_aligned_and_inside_its_region() {
    let given = std::env::var("UDIRECT_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("UDIRECT_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..100_000 {
        let lba = LbaSize::from_shift(random.u8(9..=12)).unwrap();
        let job = any_job(&mut random, lba);
        let largest = u64::from(job.max_block_size());
        let blocks_max = 1 << random.u32(1..40);
        let capacity = u64::from(lba.bytes()) * random.u64(1..blocks_max) + 11 * largest;
        let region = job.region(0, capacity, lba).unwrap();
        let mut generator = Generator::new(&job, random.u32(..64), region, lba).unwrap();
        for _ in 0..8 {
            let io = generator.next();
            check(io, &job, region, seed);
            assert!(lba.divides(io.offset), "UDIRECT_SEED={seed}: {io:?} is misaligned");
        }
    }
}
