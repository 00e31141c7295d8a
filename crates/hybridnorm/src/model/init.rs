//! Initial values, drawn by name.
//!
//! Every parameter has a generator of its own, keyed by (seed, parameter name). Two models with
//! different placements therefore share the initial value of every parameter that both have, and
//! a value does not depend on the order in which parameters are made.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};

use crate::placement::{Resolved, Role};

/// Draws initial values for one model.
///
/// The standard deviations are the placement's ([`Resolved::weight_std`] and its siblings).
#[derive(Debug, Clone)]
pub struct Initializer<'a> {
    seed: Option<u64>,
    resolved: &'a Resolved,
}

impl<'a> Initializer<'a> {
    /// An initializer for a model whose placement is `resolved`. Without a seed every matrix is
    /// zero: for models whose weights come from elsewhere.
    pub fn new(seed: Option<u64>, resolved: &'a Resolved) -> Self {
        Self { seed, resolved }
    }

    /// The (`fan_out`, `fan_in`) matrix `name` of block `layer` (0-based).
    pub fn block(
        &self,
        name: &str,
        layer: usize,
        role: Role,
        [fan_out, fan_in]: [usize; 2],
    ) -> Vec<f32> {
        let std = self.resolved.weight_std(layer, role, fan_in, fan_out);
        self.values(name, std, fan_out * fan_in)
    }

    /// The embedding of `count` elements.
    pub fn embedding(&self, name: &str, count: usize) -> Vec<f32> {
        self.values(name, self.resolved.embed_std(), count)
    }

    /// An untied output head of `count` elements.
    pub fn head(&self, name: &str, count: usize) -> Vec<f32> {
        self.values(name, self.resolved.head_std(), count)
    }

    fn values(&self, name: &str, std: f64, count: usize) -> Vec<f32> {
        match self.seed {
            Some(seed) => normal_values(seed, name, std, self.resolved.truncate_at(), count),
            None => vec![0.0; count],
        }
    }
}

/// Normal values from the generator keyed by (seed, name); those beyond `cut` standard deviations
/// are drawn again, from a second stream, so that schemes with and without a cut differ by a factor
/// in all other elements.
fn normal_values(seed: u64, name: &str, std: f64, cut: Option<f64>, count: usize) -> Vec<f32> {
    let key = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(name)
        .finalize();
    let mut generator = ChaCha8Rng::from_seed(key.into());
    let mut redraws = generator.clone();
    redraws.set_stream(1);
    let cut = cut.unwrap_or(f64::INFINITY);
    (0..count)
        .map(|_| {
            let mut z: f64 = StandardNormal.sample(&mut generator);
            while z.abs() > cut {
                z = StandardNormal.sample(&mut redraws);
            }
            (z * std) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let a = normal_values(1, "blocks.0.attention.qkv", 2.0, None, 100);
        assert_eq!(
            a,
            normal_values(1, "blocks.0.attention.qkv", 2.0, None, 100)
        );
        assert_ne!(
            a,
            normal_values(2, "blocks.0.attention.qkv", 2.0, None, 100)
        );
        assert_ne!(
            a,
            normal_values(1, "blocks.1.attention.qkv", 2.0, None, 100)
        );
    }

    #[test]
    fn moments_and_cut_are_as_asked() {
        let n = 200_000;
        let plain = normal_values(3, "x", 2.0, None, n);
        let mean = plain.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let var = plain.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((var.sqrt() - 2.0).abs() < 0.02, "std {}", var.sqrt());
        let cut = normal_values(3, "x", 2.0, Some(3.0), n);
        let largest = cut.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!((5.5..=6.0).contains(&largest), "largest {largest}");
        for (plain, cut) in plain.iter().zip(&cut) {
            assert!(plain == cut || plain.abs() > 6.0, "{plain} {cut}");
        }
    }
}
