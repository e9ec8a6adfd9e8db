//! The I/O of one worker: an endless sequence of direction, offset and length.
//!
//! [`Generator`] is made from a [`Job`] and a [`Region`] and yields one [`Io`] per call;
//! [`ReadBack`] yields what a generator wrote once more, as reads. The runner calls them millions
//! of times a second, so nothing in [`Generator::next`] allocates or divides. The same job, worker
//! and region give the same sequence.
#![forbid(unsafe_code)]

mod order;
mod random;

use self::{
    order::{Pareto, Pass, Scatter, Skew, Zipf},
    random::Random,
};
use super::{
    job::{BlockSizes, Direction, Distribution, Job, Region},
    option::OptionError,
};
use crate::units::LbaSize;

/// One I/O to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// What to do.
    pub direction: Direction,
    /// The first byte on the device.
    pub offset: u64,
    /// The length in bytes.
    pub len: u32,
}

/// The endless sequence of I/O of one worker.
#[derive(Clone, Debug)]
pub struct Generator {
    random: Random,
    mix: Mix,
    start: u64,
    /// One for each direction, by its number; those not in use are never asked.
    streams: [Stream; 3],
    order: Order,
    blocks_per_pass: u64,
}

impl Generator {
    /// Makes the generator of worker number `worker` for its `region`, as [`Job::region`] returns it.
    pub fn new(job: &Job, worker: u32, region: Region, lba: LbaSize) -> Result<Self, OptionError> {
        check_alignment(job, region, lba)?;
        let mut random = Random::new(job.randseed, worker);
        let order = Order::new(job, region, random.next());
        let streams = Direction::ALL.map(|direction| Stream::new(job.bs.get(direction), region));
        let blocks_per_pass = region.bytes / smallest_block(job);
        let mix = Mix::new(job);
        Ok(Self { random, mix, start: region.start, streams, order, blocks_per_pass })
    }

    /// Returns the next I/O.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "an iterator may end, this never does")]
    pub fn next(&mut self) -> Io {
        let direction = self.mix.draw(&mut self.random);
        self.next_in(direction)
    }

    /// Returns the next I/O of a direction that is in use, whatever the mix.
    #[inline]
    pub fn next_in(&mut self, direction: Direction) -> Io {
        let random = &mut self.random;
        let stream = &self.streams[direction as usize];
        let (len, slots) = stream.sizes.draw(random);
        let distance = match &mut self.order {
            Order::Uniform => random.below(slots) * stream.unit,
            Order::Once(pass) => pass.next() * stream.unit,
            Order::Sequential { next, end } => advance(&mut next[direction as usize], len, *end),
            Order::Zipf(skews) => skews[direction as usize].draw(random) * stream.unit,
            Order::Pareto(skews) => skews[direction as usize].draw(random) * stream.unit,
        };
        Io { direction, offset: self.start + distance, len }
    }

    /// Returns how many blocks of the smallest size in use the region holds.
    ///
    /// With one block size that is the number of I/Os after which every block was visited once, in
    /// sequence or through the random map; a rest at the end that is shorter than a block is never
    /// touched.
    pub fn blocks_per_pass(&self) -> u64 {
        self.blocks_per_pass
    }
}

/// What a [`Generator`] wrote, in the same order, as reads.
#[derive(Clone, Debug)]
pub struct ReadBack {
    generator: Generator,
}

impl ReadBack {
    /// Makes the sequence that reads what the generator of the same arguments writes.
    pub fn new(job: &Job, worker: u32, region: Region, lba: LbaSize) -> Result<Self, OptionError> {
        let generator = Generator::new(job, worker, region, lba)?;
        if !generator.mix.writes() {
            let name = job.rw.name();
            return Err(OptionError::Conflict(format!("{name} writes nothing to read back")));
        }
        Ok(Self { generator })
    }

    /// Returns the next read.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "an iterator may end, this never does")]
    pub fn next(&mut self) -> Io {
        loop {
            let io = self.generator.next();
            if io.direction == Direction::Write {
                return Io { direction: Direction::Read, ..io };
            }
        }
    }
}

fn smallest_block(job: &Job) -> u64 {
    let used = job.bs.iter().filter(|(direction, _)| job.rw.uses(*direction));
    used.map(|(_, sizes)| u64::from(sizes.min())).min().unwrap_or(1).max(1)
}

fn check_alignment(job: &Job, region: Region, lba: LbaSize) -> Result<(), OptionError> {
    let conflict = |text| Err(OptionError::Conflict(text));
    if !lba.divides(region.start) {
        return conflict(format!("offset {} is no multiple of the LBA size, {lba}", region.start));
    }
    for (direction, sizes) in job.bs.iter().filter(|(direction, _)| job.rw.uses(*direction)) {
        let odd = |bytes: &u32| *bytes == 0 || !lba.divides(u64::from(*bytes));
        let mut bytes = sizes.shares().iter().map(|share| share.bytes);
        if let Some(bytes) = bytes.find(odd) {
            return conflict(format!(
                "{direction} block size {bytes} is no multiple of the LBA size, {lba}"
            ));
        }
        if u64::from(sizes.max()) > region.bytes {
            let (max, room) = (sizes.max(), region.bytes);
            return conflict(format!(
                "{direction} block size {max} exceeds the region of {room} bytes"
            ));
        }
    }
    Ok(())
}

/// Which direction is next.
#[derive(Clone, Copy, Debug)]
enum Mix {
    Only(Direction),
    /// A read if the drawn number is below.
    ReadBelow(u64),
}

impl Mix {
    fn new(job: &Job) -> Self {
        let only = Direction::ALL.into_iter().find(|direction| job.rw.uses(*direction));
        match job.rwmixread {
            _ if !job.rw.is_mixed() => Self::Only(only.expect("every workload has a direction")),
            0 => Self::Only(Direction::Write),
            percent @ 1..100 => Self::ReadBelow(u64::MAX / 100 * u64::from(percent)),
            100.. => Self::Only(Direction::Read),
        }
    }

    fn writes(self) -> bool {
        matches!(self, Self::Only(Direction::Write) | Self::ReadBelow(_))
    }

    #[inline]
    fn draw(self, random: &mut Random) -> Direction {
        match self {
            Self::Only(direction) => direction,
            Self::ReadBelow(bound) if random.next() < bound => Direction::Read,
            Self::ReadBelow(_) => Direction::Write,
        }
    }
}

/// The I/O of one direction.
#[derive(Clone, Debug)]
struct Stream {
    sizes: Sizes,
    /// What random offsets are multiples of, counted from the start of the region: the smallest
    /// block, as in fio.
    unit: u64,
}

impl Stream {
    fn new(sizes: &BlockSizes, region: Region) -> Self {
        Self { sizes: Sizes::new(sizes, region), unit: u64::from(sizes.min()) }
    }
}

/// Where the next I/O goes. Arrays hold one value for each direction.
#[derive(Clone, Debug)]
enum Order {
    /// Anywhere, with repetition.
    Uniform,
    /// Anywhere, each block once per pass; the directions share the pass, as in fio.
    Once(Pass),
    /// Behind the one before; the directions have cursors of their own, as in fio.
    Sequential {
        next: [u64; 3],
        end: u64,
    },
    Zipf(Box<[Skew<Zipf>; 3]>),
    Pareto(Box<[Skew<Pareto>; 3]>),
}

impl Order {
    fn new(job: &Job, region: Region, seed: u64) -> Self {
        match job.random_distribution {
            _ if !job.rw.is_random() => Self::Sequential { next: [0; 3], end: region.bytes },
            _ if job.covers_each_block_once() => {
                Self::Once(Pass::new(region.bytes / smallest_block(job), seed))
            }
            Distribution::Random => Self::Uniform,
            Distribution::Zipf { theta } => {
                Self::Zipf(skews(job, region, seed, |slots| Zipf::new(slots, theta)))
            }
            Distribution::Pareto { h } => {
                Self::Pareto(skews(job, region, seed, |slots| Pareto::new(slots, h)))
            }
        }
    }
}

/// Makes one skew for each direction. They share the seed of their places, so that reads and writes
/// of one size agree on which blocks are hot; behind every slot there is room for the largest block.
fn skews<D>(
    job: &Job,
    region: Region,
    seed: u64,
    distribution: impl Fn(u64) -> D,
) -> Box<[Skew<D>; 3]> {
    Box::new(Direction::ALL.map(|direction| {
        let sizes = job.bs.get(direction);
        let slots = slots(region, sizes.max(), sizes.min());
        Skew::new(distribution(slots), Scatter::new(slots, seed))
    }))
}

/// Moves a cursor over `len` bytes and returns where they begin; what does not fit begins anew.
#[inline]
fn advance(next: &mut u64, len: u32, end: u64) -> u64 {
    let fits = *next + u64::from(len) <= end;
    let begin = if fits { *next } else { 0 };
    *next = begin + u64::from(len);
    begin
}

/// Returns at how many multiples of `unit` a block of `len` bytes fits the region.
fn slots(region: Region, len: u32, unit: u32) -> u64 {
    let room = region.bytes.saturating_sub(u64::from(len));
    room / u64::from(unit.max(1)) + 1
}

/// The sizes of one direction, ready to be drawn.
#[derive(Clone, Debug)]
struct Sizes {
    last: Choice,
    /// The others in the order of their bounds; empty for one size, which then costs no random
    /// number.
    others: Box<[Choice]>,
}

#[derive(Clone, Copy, Debug)]
struct Choice {
    /// Chosen if the drawn number is below, and not below an earlier choice.
    below: u64,
    len: u32,
    slots: u64,
}

impl Sizes {
    fn new(sizes: &BlockSizes, region: Region) -> Self {
        let mut sum = 0.0;
        let choose = |share: &super::job::BlockShare| {
            sum += share.percent;
            let below = (sum / 100.0 * 2.0_f64.powi(64)) as u64;
            Choice { below, len: share.bytes, slots: slots(region, share.bytes, sizes.min()) }
        };
        let mut choices: Vec<Choice> =
            sizes.shares().iter().filter(|share| share.percent > 0.0).map(choose).collect();
        let whole =
            Choice { below: 0, len: sizes.min(), slots: slots(region, sizes.min(), sizes.min()) };
        let last = choices.pop().unwrap_or(whole);
        Self { last, others: choices.into_boxed_slice() }
    }

    #[inline]
    fn draw(&self, random: &mut Random) -> (u32, u64) {
        let choice = if self.others.is_empty() { &self.last } else { self.choose(random.next()) };
        (choice.len, choice.slots)
    }

    fn choose(&self, number: u64) -> &Choice {
        self.others.iter().find(|choice| number < choice.below).unwrap_or(&self.last)
    }
}

#[cfg(test)]
mod tests;
