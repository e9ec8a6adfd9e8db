//! The random numbers of a worker: wyrand.
//!
//! [`Random`] is one word of state and one wide multiplication a number. It is written out here, so
//! that a seed in a report means the same sequence in every later version, whatever a dependency
//! does. Not for secrets.
#![forbid(unsafe_code)]

/// The step of the state, odd.
const STEP: u64 = 0x2d35_8dcc_aa6c_78a5;
/// What the second factor differs by from the first.
const FLIP: u64 = 0x8bb8_4b93_962e_acc9;

/// A generator of random numbers.
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    /// Returns the generator of worker number `worker` under `seed`.
    pub(super) fn new(seed: u64, worker: u32) -> Self {
        // Spread before use: neighbouring workers would otherwise walk the same sequence a step
        // apart.
        Self { state: spread(seed ^ spread(u64::from(worker) + 1)) }
    }

    /// Returns 64 random bits.
    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        let product = u128::from(self.state) * u128::from(self.state ^ FLIP);
        (product as u64) ^ ((product >> 64) as u64)
    }

    /// Returns a number below `bound`, by multiplication; its bias is `bound / 2^64`.
    #[inline]
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Returns a number from 0 up to but not including 1.
    #[inline]
    pub(super) fn unit(&mut self) -> f64 {
        const SCALE: f64 = 1.0 / (1_u64 << 53) as f64;
        (self.next() >> 11) as f64 * SCALE
    }
}

/// Lets every bit of `word` change half of the bits (the finaliser of `SplitMix64`).
fn spread(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_wyrand() {
        let mut random = Random { state: 1_234_567 };
        let mut oracle = fastrand::Rng::with_seed(1_234_567);
        assert!((0..1000).all(|_| random.next() == oracle.u64(..)));
    }

    #[test]
    fn workers_have_sequences_of_their_own() {
        let first = |worker| Random::new(1, worker).next();
        assert_ne!(first(0), first(1));
        assert_eq!(first(1), first(1));
    }

    #[test]
    fn numbers_stay_below_their_bound() {
        let mut random = Random::new(7, 0);
        assert_eq!(random.below(1), 0);
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random.unit())));
    }
}
