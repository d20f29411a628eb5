//! Chance that can be repeated. Used by `durability`, `gateway_cancel` and the fault suite.
//!
//! `ORCHD_TEST_SEED` repeats a run that failed: its seed is in its output.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Enough randomness for a test, from a seed: splitmix64.
pub struct Random(pub u64);

impl Random {
    /// From the seed that was asked for, or from a new one. Says which.
    pub fn seeded() -> Self {
        let Self(seed) = setting("ORCHD_TEST_SEED").map_or_else(Self::by_chance, Self);
        println!("ORCHD_TEST_SEED={seed}");
        Self(seed)
    }

    /// From a seed that nobody chose.
    pub fn by_chance() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A number that whoever runs the tests may set.
pub fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}
