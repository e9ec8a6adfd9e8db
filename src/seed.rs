//! Randomness that can be repeated: every random choice of a test or a fault comes from one printed seed.
#![forbid(unsafe_code)]

use std::ops::{Deref, DerefMut};

/// A random generator that says what it was seeded with.
///
/// `UDIRECT_SEED` replays a run: set it to the number that the failing run printed.
#[derive(Clone, Debug)]
pub struct Seed {
    rng: fastrand::Rng,
}

impl Seed {
    /// Takes the seed from `UDIRECT_SEED`, or a new one, and prints it for `purpose`.
    pub fn from_env(purpose: &str) -> Self {
        let given = std::env::var("UDIRECT_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| fastrand::u64(..));
        eprintln!("{purpose}: UDIRECT_SEED={seed}");
        Self::from_u64(seed)
    }

    /// Makes the generator of `seed`.
    pub fn from_u64(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed) }
    }

    /// Returns a number below `bound`, which is not 0.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        self.rng.u64(..bound)
    }

    /// Says yes `hits` times out of `of`.
    #[inline]
    pub fn chance(&mut self, hits: u64, of: u64) -> bool {
        self.below(of) < hits
    }
}

impl Deref for Seed {
    type Target = fastrand::Rng;

    fn deref(&self) -> &fastrand::Rng {
        &self.rng
    }
}

impl DerefMut for Seed {
    fn deref_mut(&mut self) -> &mut fastrand::Rng {
        &mut self.rng
    }
}
