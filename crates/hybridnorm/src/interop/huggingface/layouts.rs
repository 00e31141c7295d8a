//! Mappings of layers that several families store in the same way.

use super::mapping::{Mapping, Part};
use crate::model::{ModelConfig, MoeConfig};

/// Name of the LM head's weight.
pub(super) const HEAD: &str = "lm_head.weight";
/// Names of it in all families.
pub(super) const HEADS: [&str; 2] = [HEAD, "embed_out.weight"];

/// Embedding, final norm and head.
pub(super) fn ends(config: &ModelConfig) -> Vec<Mapping> {
    let mut mappings = vec![
        Mapping::renamed("model.embed_tokens.weight", "embedding"),
        Mapping::renamed("model.norm.weight", "final_norm.gain"),
    ];
    if !config.tie_embeddings {
        mappings.push(Mapping::renamed(HEAD, "head"));
    }
    mappings
}

/// Grouped-query attention: `SOURCE.q_proj`, `.k_proj`, `.v_proj` and `.o_proj`, with the biases of the configuration.
pub(super) fn attention(source: &str, ours: &str, config: &ModelConfig) -> Vec<Mapping> {
    let qkv = |kind: &str| {
        let part = |field: &str, heads: usize| {
            Part::rows(
                format!("{source}.{field}_proj.{kind}"),
                heads * config.head_dim(),
            )
        };
        let (h, g) = (config.n_heads, config.n_kv_heads);
        vec![part("q", h), part("k", g), part("v", g)]
    };
    let out = |kind: &str| format!("{source}.o_proj.{kind}");
    let mut mappings = vec![
        Mapping::stack(qkv("weight"), format!("{ours}.qkv")),
        Mapping::renamed(out("weight"), format!("{ours}.out")),
    ];
    if config.bias.qkv {
        mappings.push(Mapping::stack(qkv("bias"), format!("{ours}.qkv_bias")));
    }
    if config.bias.out {
        mappings.push(Mapping::renamed(out("bias"), format!("{ours}.out_bias")));
    }
    mappings
}

/// Returns the order of the rows of packed `[q heads | k heads | v heads]` in which the rotary pairs of every query and
/// key head are half of the head apart, where the checkpoint rotates the first channels of a head among themselves.
pub(super) fn packed_rope_order(config: &ModelConfig) -> Vec<usize> {
    let width = config.head_dim();
    let rotated = (config.n_heads + config.n_kv_heads) * width;
    let row = |row: usize| match row < rotated {
        true => row / width * width + rope_channel(row % width, width, config.rope_dim()),
        false => row,
    };
    (0..rotated + config.n_kv_heads * width).map(row).collect()
}

/// Returns the channel of the checkpoint for a channel of this crate, in heads of `width` channels. The checkpoint
/// rotates the pairs (i, i + rotary/2) and then has all channels that are not rotated; this crate has the pairs
/// (i, i + width/2), the first rotary/2 of which are rotated.
pub(super) fn rope_channel(channel: usize, width: usize, rotary: usize) -> usize {
    let (half, pair) = (width / 2, channel % (width / 2));
    match (pair < rotary / 2, channel < half) {
        (true, true) => pair,
        (true, false) => rotary / 2 + pair,
        (false, true) => rotary / 2 + pair,
        (false, false) => half + pair,
    }
}

/// Gated feed-forward of inner width `f`: `SOURCE.gate_proj`, `.up_proj` and `.down_proj`.
pub(super) fn mlp(source: &str, ours: &str, f: usize) -> Vec<Mapping> {
    let [gate, up, down] =
        ["gate", "up", "down"].map(|kind| format!("{source}.{kind}_proj.weight"));
    vec![
        Mapping::stack(
            vec![Part::rows(gate, f), Part::rows(up, f)],
            format!("{ours}.up"),
        ),
        Mapping::renamed(down, format!("{ours}.down")),
    ]
}

/// Experts of a mixture: `SOURCE.E.GATE`, `.UP` and `.DOWN` of every expert E, with these names of the matrices; or the
/// fused tensors `SOURCE.gate_up_proj` and `.down_proj` of the state of a model in newer versions of `transformers`.
pub(super) fn experts(
    source: &str,
    ours: &str,
    d_model: usize,
    moe: &MoeConfig,
    [gate, up, down]: [&str; 3],
) -> Vec<Mapping> {
    let part = |expert: usize, kind: &str, rows: usize| {
        Part::rows(format!("{source}.{expert}.{kind}.weight"), rows)
    };
    let experts = 0..moe.n_experts;
    let f = moe.d_expert;
    let pairs = experts
        .clone()
        .flat_map(|expert| [part(expert, gate, f), part(expert, up, f)]);
    let downs = experts.map(|expert| part(expert, down, d_model));
    vec![
        Mapping::stack(pairs.collect(), format!("{ours}.up"))
            .or_fused(format!("{source}.gate_up_proj")),
        Mapping::stack(downs.collect(), format!("{ours}.down"))
            .or_fused(format!("{source}.down_proj")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_channels_come_first_in_the_checkpoint() {
        let order = |rotary| {
            (0..8)
                .map(|i| rope_channel(i, 8, rotary))
                .collect::<Vec<_>>()
        };
        assert_eq!(order(8), [0, 1, 2, 3, 4, 5, 6, 7]);
        // Pairs (0, 2) and (1, 3) are rotated, 4 to 7 are not.
        assert_eq!(order(4), [0, 1, 4, 5, 2, 3, 6, 7]);
    }
}
