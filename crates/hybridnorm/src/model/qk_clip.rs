//! QK-clip: scales query and key weights down if attention logits grew too large (MuonClip, Kimi K2, arXiv
//! 2507.20534).
//!
//! If the max attention logit S of a head exceeds the threshold τ, its logits are multiplied by γ = τ/S: query and key
//! projections by √γ each if the head has its own key; the query projection by γ if the key is shared by all heads
//! (MLA's rotary key). If a group of heads shares a key, the key is multiplied by the smallest √γ of the group, and
//! each query by its γ divided by that factor.

use super::attention::Attention;
use super::config::ModelConfig;
use super::model::Model;
use super::registry::Param;
use crate::error::{Error, Result};
use crate::placement::{AttnScale, HeadNorm};

/// Returns γ of every head; a max logit that is not finite changes nothing.
fn clip_factors(maxima: &[f32], threshold: f32) -> Vec<f32> {
    let factor = |&largest: &f32| match largest > threshold && largest.is_finite() {
        true => threshold / largest,
        false => 1.0,
    };
    maxima.iter().map(factor).collect()
}

/// Returns factors of queries and of keys shared by groups of equal size, whose products are `factors`.
fn split_between_query_and_key(factors: &[f32], groups: usize) -> (Vec<f32>, Vec<f32>) {
    let group = factors.len() / groups;
    let smallest = |heads: &[f32]| heads.iter().fold(1.0, |a: f32, b| a.min(*b));
    let keys: Vec<f32> = factors.chunks(group).map(|h| smallest(h).sqrt()).collect();
    let queries = factors.iter().enumerate();
    let queries = queries.map(|(head, factor)| factor / keys[head / group]);
    (queries.collect(), keys)
}

/// Repeats every factor `times` times consecutively.
fn repeated(factors: &[f32], times: usize) -> impl Iterator<Item = f32> {
    factors
        .iter()
        .flat_map(move |&factor| std::iter::repeat_n(factor, times))
}

/// Matrices and biases of a block, with a factor per row.
type RowFactors = Vec<(Param, Vec<f32>)>;

impl Attention {
    /// Returns the row factors that multiply the attention logits of every head by `factors`.
    fn row_factors(&self, config: &ModelConfig, factors: &[f32]) -> RowFactors {
        match self {
            Self::GroupedQuery(heads) => {
                let (groups, width) = (config.n_kv_heads, config.head_dim());
                let (queries, keys) = split_between_query_and_key(factors, groups);
                let values = std::iter::repeat_n(1.0, groups * width);
                let rows = repeated(&queries, width).chain(repeated(&keys, width));
                let rows: Vec<f32> = rows.chain(values).collect();
                let params = [Some(heads.qkv), heads.qkv_bias].into_iter().flatten();
                params.map(|param| (param, rows.clone())).collect()
            }
            Self::MultiHeadLatent(latent) => {
                let mla = config.mla.expect("only latent attention has latents");
                let roots: Vec<f32> = factors.iter().map(|factor| factor.sqrt()).collect();
                let of_query = |(&root, &factor): (&f32, &f32)| {
                    [vec![root; mla.nope_dim], vec![factor; mla.rope_dim]].concat()
                };
                let mut queries: Vec<f32> = roots.iter().zip(factors).flat_map(of_query).collect();
                let of_queries = match latent.q_up {
                    Some(q_up) => q_up,
                    None => {
                        queries.extend(std::iter::repeat_n(1.0, mla.kv_rank + mla.rope_dim));
                        latent.latents
                    }
                };
                let of_key =
                    |&root: &f32| [vec![root; mla.nope_dim], vec![1.0; mla.v_dim]].concat();
                let keys = roots.iter().flat_map(of_key).collect();
                vec![(of_queries, queries), (latent.kv_up, keys)]
            }
        }
    }
}

impl Model {
    /// Scales queries and keys down so that no max attention logit exceeds `threshold`, given those of every head in
    /// every block; returns the number of clipped heads.
    pub fn apply_qk_clip(&mut self, maxima: &[Vec<f32>], threshold: f64) -> usize {
        let mut clipped = 0;
        let mut scaled: RowFactors = Vec::new();
        for (block, maxima) in self.decoder().blocks.iter().zip(maxima) {
            let factors = clip_factors(maxima, threshold as f32);
            let above = factors.iter().filter(|&&factor| factor < 1.0).count();
            if above > 0 {
                clipped += above;
                scaled.extend(block.attention.row_factors(self.config(), &factors));
            }
        }
        for (param, factors) in scaled {
            let spec = self.decoder().registry().spec(param).clone();
            let mut values = self.read(&spec);
            let rows = values.chunks_mut(spec.columns());
            for (row, factor) in rows.zip(factors) {
                row.iter_mut().for_each(|x| *x *= factor);
            }
            self.write(&spec, &values);
        }
        clipped
    }
}

impl ModelConfig {
    /// Checks that scaling query and key weights scales the attention logits in every block.
    ///
    /// # Errors
    /// [`Error::Conflict`] naming the first block in which a norm cancels it.
    pub fn check_qk_clip(&self) -> Result<()> {
        let (resolved, _) = self.resolve()?;
        let refuse = |what: String| {
            Err(Error::conflict(
                ["optimizer.qk_clip", "placement"],
                format!(
                    "optimizer.qk_clip cannot limit attention logits: {what} cancels the scale of queries and \
                     keys; remove optimizer.qk_clip, or use a placement that normalizes neither queries \
                     and keys nor weights, such as \"pre-norm\""
                ),
            ))
        };
        if resolved.unit_weights {
            return refuse("placement.unit_weights".into());
        }
        for (layer, block) in resolved.blocks.iter().enumerate() {
            let inner = &block.attn_inner;
            let has_latent_queries = self.mla.is_some_and(|mla| mla.q_rank.is_some());
            // With latents, norms precede the projections that are scaled.
            let normed = match self.mla {
                Some(_) => inner.q_norm != HeadNorm::None && !has_latent_queries,
                None => [inner.q_norm, inner.k_norm] != [HeadNorm::None; 2],
            };
            if normed || inner.attn_scale == AttnScale::Cosine {
                return refuse(format!("the norm of queries or keys in block {layer}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_and_key_factors_multiply_to_gamma() {
        let factors = clip_factors(&[50.0, 200.0, 100.0, 400.0, f32::NAN, f32::INFINITY], 100.0);
        assert_eq!(factors, [1.0, 0.5, 1.0, 0.25, 1.0, 1.0]);
        let (queries, keys) = split_between_query_and_key(&factors, 3);
        assert_eq!(keys[2], 1.0);
        for (head, factor) in factors.iter().enumerate() {
            assert!((queries[head] * keys[head / 2] - factor).abs() < 1e-6);
        }
        let (queries, keys) = split_between_query_and_key(&factors, 6);
        assert_eq!(queries, keys);
    }
}
