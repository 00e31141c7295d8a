//! Mappings of layers that several families store in the same way.

use super::mapping::{Mapping, Part};
use crate::model::{ModelConfig, MoeConfig};

/// Name of the LM head's weight.
pub(super) const HEAD: &str = "lm_head.weight";

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

/// Grouped-query attention: `SOURCE.q_proj`, `.k_proj`, `.v_proj` and `.o_proj`.
pub(super) fn attention(source: &str, ours: &str, config: &ModelConfig) -> Vec<Mapping> {
    let part = |field: &str, heads: usize| {
        let name = format!("{source}.{field}_proj.weight");
        Part::rows(name, heads * config.head_dim())
    };
    let (h, g) = (config.n_heads, config.n_kv_heads);
    vec![
        Mapping::stack(
            vec![part("q", h), part("k", g), part("v", g)],
            format!("{ours}.qkv"),
        ),
        Mapping::renamed(format!("{source}.o_proj.weight"), format!("{ours}.out")),
    ]
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

/// Experts of a mixture: `SOURCE.E.GATE`, `.UP` and `.DOWN` of every expert E, with these names of the matrices.
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
        Mapping::stack(pairs.collect(), format!("{ours}.up")),
        Mapping::stack(downs.collect(), format!("{ours}.down")),
    ]
}
