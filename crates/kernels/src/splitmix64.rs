//! Pseudorandom numbers for tests of this crate and of those that depend on it.

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, good enough for tests.
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Returns a generator; equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a uniform number in [-1, 1) with 24 random bits.
    pub fn uniform_symmetric(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Mixes a number into the state, so that a generator can be seeded with several.
    pub fn mix(&mut self, part: u64) {
        self.0 ^= part.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.next_u64();
    }
}
