//! Orders in which blocks are visited: each once, or some more often than others.
//!
//! [`Pass`] enumerates a permutation and needs no bitmap, where fio keeps one bit per block;
//! [`Zipf`] and [`Pareto`] draw a rank, and [`Scatter`] spreads ranks over the region so that hot
//! blocks are no neighbours. Every number that leaves here is below the number of blocks.
#![forbid(unsafe_code)]

use super::random::Random;

/// A bijection on the numbers of one power of two: additions, odd multiplications and shifts, each
/// reversible.
#[derive(Clone, Debug)]
struct Scramble {
    mask: u64,
    shift: u32,
    add: u64,
    factors: [u64; 3],
}

impl Scramble {
    /// Makes the bijection of `random` on the smallest power of two that holds `blocks` numbers.
    fn new(blocks: u64, random: &mut Random) -> Self {
        let mask = blocks.next_power_of_two() - 1;
        let shift = mask.count_ones().div_ceil(2).max(1);
        let factors = [(); 3].map(|()| random.next() | 1);
        Self { mask, shift, add: random.next(), factors }
    }

    #[inline]
    fn apply(&self, number: u64) -> u64 {
        let mut word = number.wrapping_add(self.add) & self.mask;
        for factor in self.factors {
            word = (word ^ (word >> self.shift)).wrapping_mul(factor) & self.mask;
        }
        word ^ (word >> self.shift)
    }
}

/// Random order that visits each block once before any block again.
///
/// The index runs over the power of two that holds the blocks, and what falls beyond them is passed
/// over: less than half of the numbers, so that a block costs fewer than two steps on average.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    blocks: u64,
    index: u64,
    scramble: Scramble,
    random: Random,
}

impl Pass {
    /// Makes the passes over `blocks` blocks, at least one; each pass has an order of its own.
    pub(super) fn new(blocks: u64, seed: u64) -> Self {
        assert!(blocks > 0 && blocks <= 1 << 62, "a region has 1 to 2^62 blocks, not {blocks}");
        let mut random = Random::new(seed, 0);
        let scramble = Scramble::new(blocks, &mut random);
        Self { blocks, index: 0, scramble, random }
    }

    /// Returns the next block.
    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        loop {
            if self.index > self.scramble.mask {
                self.begin();
            }
            let block = self.scramble.apply(self.index);
            self.index += 1;
            if block < self.blocks {
                return block;
            }
        }
    }

    #[cold]
    fn begin(&mut self) {
        self.scramble = Scramble::new(self.blocks, &mut self.random);
        self.index = 0;
    }
}

/// A fixed permutation of the blocks, for single lookups.
#[derive(Clone, Debug)]
pub(super) struct Scatter {
    blocks: u64,
    scramble: Scramble,
}

impl Scatter {
    /// Makes the permutation of `blocks` blocks that belongs to `seed`.
    pub(super) fn new(blocks: u64, seed: u64) -> Self {
        Self { blocks, scramble: Scramble::new(blocks, &mut Random::new(seed, 0)) }
    }

    /// Returns where rank `rank` lies, by walking its cycle until it is inside.
    #[inline]
    pub(super) fn apply(&self, rank: u64) -> u64 {
        let mut block = self.scramble.apply(rank);
        while block >= self.blocks {
            block = self.scramble.apply(block);
        }
        block
    }
}

/// A distribution of ranks.
pub(super) trait Ranks {
    /// Draws a rank from 0.
    fn draw(&self, random: &mut Random) -> u64;
}

/// Ranks and where they lie.
#[derive(Clone, Debug)]
pub(super) struct Skew<D> {
    ranks: D,
    scatter: Scatter,
}

impl<D: Ranks> Skew<D> {
    /// Draws a block.
    #[inline]
    pub(super) fn draw(&self, random: &mut Random) -> u64 {
        self.scatter.apply(self.ranks.draw(random))
    }
}

impl<D> Skew<D> {
    /// Joins a distribution with the places of as many ranks.
    pub(super) fn new(ranks: D, scatter: Scatter) -> Self {
        Self { ranks, scatter }
    }
}

/// Ranks with a probability proportional to `1 / (rank + 1)^theta`.
///
/// Drawn by rejection-inversion (Hörmann and Derflinger, 1996), which is exact for every number of
/// blocks and needs no sum over all of them; fio adds up to ten million terms at the start and
/// approximates the rest.
#[derive(Clone, Debug)]
pub(super) struct Zipf {
    blocks: f64,
    /// `1 - theta`, never 0.
    power: f64,
    theta: f64,
    /// The integral of the hat at both ends.
    area_first: f64,
    area_last: f64,
    /// Within this distance of its number a point is accepted without a test.
    sure: f64,
}

impl Zipf {
    /// Makes the distribution over `blocks` ranks; `theta` is above 0 and not 1.
    pub(super) fn new(blocks: u64, theta: f64) -> Self {
        let power = 1.0 - theta;
        let blocks = blocks as f64;
        let zipf = Self { blocks, power, theta, area_first: 0.0, area_last: 0.0, sure: 0.0 };
        let sure = 2.0 - zipf.inverse(zipf.area(2.5) - zipf.weight(2.0));
        let (area_first, area_last) = (zipf.area(1.5) - 1.0, zipf.area(blocks + 0.5));
        Self { area_first, area_last, sure, ..zipf }
    }

    fn weight(&self, point: f64) -> f64 {
        point.powf(-self.theta)
    }

    /// The integral of the weight from 1 to `point`; `exp_m1` keeps it exact for a theta near 1.
    fn area(&self, point: f64) -> f64 {
        (self.power * point.ln()).exp_m1() / self.power
    }

    fn inverse(&self, area: f64) -> f64 {
        ((self.power * area).max(-1.0).ln_1p() / self.power).exp()
    }
}

impl Ranks for Zipf {
    #[inline]
    fn draw(&self, random: &mut Random) -> u64 {
        loop {
            let area = self.area_last + random.unit() * (self.area_first - self.area_last);
            let point = self.inverse(area);
            let rank = (point + 0.5).floor().max(1.0).min(self.blocks);
            if rank - point <= self.sure || area >= self.area(rank + 0.5) - self.weight(rank) {
                return rank as u64 - 1;
            }
        }
    }
}

/// Ranks of which the first share `h` receives the share `1 - h`.
#[derive(Clone, Debug)]
pub(super) struct Pareto {
    blocks: f64,
    power: f64,
}

impl Pareto {
    /// Makes the distribution over `blocks` ranks; `h` lies between 0 and 1.
    pub(super) fn new(blocks: u64, h: f64) -> Self {
        Self { blocks: blocks as f64, power: h.ln() / (1.0 - h).ln() }
    }
}

impl Ranks for Pareto {
    #[inline]
    fn draw(&self, random: &mut Random) -> u64 {
        let rank = (self.blocks * random.unit().powf(self.power)).floor();
        rank.min(self.blocks - 1.0) as u64
    }
}

#[cfg(test)]
mod tests;
