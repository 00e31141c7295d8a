//! Pseudorandom numbers of synthetic studies.

use hybridnorm_kernels::splitmix64::SplitMix64;

/// Pseudorandom numbers.
pub(super) struct Random(SplitMix64);

impl Random {
    pub(super) fn of(parts: &[u64]) -> Self {
        let mut random = SplitMix64::new(0x5eed);
        parts.iter().for_each(|&part| random.mix(part));
        Self(random)
    }

    pub(super) fn next(&mut self) -> f64 {
        self.0.next_u64() as f64 / u64::MAX as f64
    }

    /// Draws an approximately normal number with mean 0 and standard deviation `sd`.
    pub(super) fn normal(&mut self, sd: f64) -> f64 {
        let sum: f64 = (0..6).map(|_| self.next()).sum();
        (sum - 3.0) * sd * 2_f64.sqrt()
    }
}
