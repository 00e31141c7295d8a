//! Relations between placements, as equalities between models.

mod common;

use common::*;
use hybridnorm::Device;
use hybridnorm::graph::DType;
use hybridnorm::model::{Decoder, Model, ModelConfig, Role, Scoring};
use hybridnorm::placement::{AttnScale, HeadNorm, NormFn, Placement, QkOrder, Skip};
use hybridnorm::plan::{Options, Precision};
use hybridnorm::tensors::HostTensor;

/// Returns a perturbed model of `from`, and a model of `to` with its weights under other names.
fn same_weights(
    from: &ModelConfig,
    to: &ModelConfig,
    name: impl Fn(&str) -> String,
) -> (Model, Model) {
    let a = perturbed_model(from);
    let mut b = Model::new(to, 0, Device::Cpu).unwrap();
    b.load(renamed(&a, name)).unwrap();
    (a, b)
}

/// Returns options for single precision, and for mixed precision with both types of the residual stream.
fn all_precisions() -> [Options; 3] {
    let mixed = [DType::F32, DType::Bf16].map(|residual| Precision::Bf16 { residual });
    [Precision::F32, mixed[0], mixed[1]]
        .map(|precision| Options::default().with_precision(precision))
}

/// Returns the logits of the inputs in double precision.
fn logits64(model: &Model) -> Vec<f64> {
    let logits = on_reference_executor(model).logits(&inputs(), BATCH, SEQ);
    logits.unwrap().into_f64()
}

#[test]
fn hybridnorm_is_post_norm_attention_with_a_norm_free_feed_forward() {
    let mut other = named("hybridnorm");
    other.block.attn.post_norm = true;
    other.block.ffn.in_norm = false;
    other.block.ffn.skip = Skip::Raw;
    let (mut hybrid, mut other) = same_weights(&tiny(named("hybridnorm")), &tiny(other), |name| {
        name.replace(".ffn.in_norm.", ".attn.post_norm.")
    });
    for options in all_precisions() {
        for model in [&mut hybrid, &mut other] {
            model.set_plan_options(options).unwrap();
        }
        assert_eq!(logits(&mut hybrid), logits(&mut other), "{options:?}");
    }
}

#[test]
fn normed_skips_equal_post_norm_shifted_by_one_norm() {
    let entry = tiny(named("post-norm-entry"));
    let mut classic = named("post-norm");
    classic.embed.norm = true;
    classic.norm = entry.placement.norm.clone();
    let last = entry.n_layers - 1;
    let (mut entry, mut classic) = same_weights(&entry, &tiny(classic), |name| {
        if let Some(field) = name.strip_prefix("final_norm.") {
            return format!("blocks.{last}.ffn.post_norm.{field}");
        }
        if let Some(field) = name.strip_prefix("blocks.0.attn.in_norm.") {
            return format!("embed_norm.{field}");
        }
        let parts: Vec<&str> = name.split('.').collect();
        match parts[..] {
            ["blocks", layer, "ffn", "in_norm", field] => {
                format!("blocks.{layer}.attn.post_norm.{field}")
            }
            ["blocks", layer, "attn", "in_norm", field] => {
                let before = layer.parse::<usize>().unwrap() - 1;
                format!("blocks.{before}.ffn.post_norm.{field}")
            }
            _ => name.to_owned(),
        }
    });
    for options in all_precisions() {
        for model in [&mut entry, &mut classic] {
            model.set_plan_options(options).unwrap();
        }
        let difference = largest_difference(&logits(&mut entry), &logits(&mut classic));
        assert!(difference < 1e-6, "{options:?}: {difference}");
    }
}

#[test]
fn a_norm_before_normed_projections_is_redundant() {
    let grouped_query = |config: ModelConfig| config;
    let mla = |config| with_mla(config, Some(12));
    for attention in [grouped_query as fn(ModelConfig) -> ModelConfig, mla] {
        // Equal weights: both are drawn by name from the same seed, and gains start at 1.
        let [pre, bare] = ["pre-qkv-pre", "qkv-pre"].map(|name| {
            let config = attention(without_eps(name));
            logits64(&Model::new(&config, 3, Device::Cpu).unwrap())
        });
        let difference = largest_difference64(&pre, &bare);
        assert!(difference < 1e-10, "{difference}");
    }
}

fn with_qk(norm: HeadNorm, order: QkOrder) -> Placement {
    let mut placement = named("pre-norm");
    placement.block.attn_inner.q_norm = norm;
    placement.block.attn_inner.k_norm = norm;
    placement.block.attn_inner.qk_order = order;
    placement.norm.eps = 1e-30;
    placement
}

#[test]
fn a_per_head_norm_without_gain_commutes_with_the_rotation_and_one_with_a_gain_does_not() {
    let difference = |norm: HeadNorm| {
        let outputs = [QkOrder::BeforeRope, QkOrder::AfterRope]
            .map(|order| logits64(&perturbed_model(&tiny(with_qk(norm, order)))));
        largest_difference64(&outputs[0], &outputs[1])
    };
    let no_gain = difference(HeadNorm::PerHeadNoGain);
    let with_gain = difference(HeadNorm::PerHead);
    assert!(no_gain < 1e-6, "{no_gain}");
    assert!(with_gain > 1e-3, "{with_gain}");
}

/// Returns the rows of q, k and v in the packed projection of block 1, and true if a norm cancels the part's scale.
/// The attention output is linear in v, so norms of that output count for v as well.
fn parts(config: &ModelConfig) -> [(&'static str, std::ops::Range<usize>, bool); 3] {
    let (q, kv) = (
        config.n_heads * config.head_dim(),
        config.n_kv_heads * config.head_dim(),
    );
    let (resolved, _) = config.resolve().unwrap();
    let block = &resolved.blocks[1];
    let inner = &block.attn_inner;
    // Stated independently of the table of properties, to test it.
    let is_scale_invariant = matches!(
        resolved.norm.kind,
        Some(NormFn::Rmsnorm | NormFn::Layernorm | NormFn::L2)
    );
    let normed = |norm: HeadNorm| is_scale_invariant && norm != HeadNorm::None;
    let cosine = inner.attn_scale == AttnScale::Cosine;
    [
        ("q", 0..q, cosine || normed(inner.q_norm)),
        ("k", q..q + kv, cosine || normed(inner.k_norm)),
        (
            "v",
            q + kv..q + 2 * kv,
            normed(inner.v_norm)
                || normed(inner.ctx_norm)
                || (is_scale_invariant && block.attn.out_norm.is_some()),
        ),
    ]
}

/// Returns the configuration of a model whose norms have a negligible eps.
fn without_eps(name: &str) -> ModelConfig {
    let mut placement = named(name);
    placement.norm.eps = 1e-30;
    tiny(placement)
}

/// Checks that logits do not depend on the scale of a projection exactly where a norm cancels it.
fn check_scale_invariance(options: Options, factor: f32) {
    let mut normed_parts = 0;
    for name in all_names() {
        let config = without_eps(name);
        let mut model = perturbed_model(&config);
        model.set_plan_options(options).unwrap();
        let before = logits(&mut model);
        let unscaled = model.values();
        for (part, rows, normed) in parts(&config) {
            let mut values = unscaled.clone();
            let qkv = values.get_mut("blocks.1.attention.qkv").unwrap();
            let d = config.d_model;
            for value in &mut qkv.data[rows.start * d..rows.end * d] {
                *value *= factor;
            }
            model.load(values).unwrap();
            let difference = largest_difference(&before, &logits(&mut model));
            assert_eq!(difference < 1e-4, normed, "{name} {part}: {difference}");
            normed_parts += usize::from(normed);
        }
    }
    // Including HybridNorm's three.
    assert!(normed_parts > 3);
}

#[test]
fn only_normed_projections_are_scale_invariant() {
    check_scale_invariance(Options::default(), 10.0);
}

/// In bfloat16, a power of two changes no rounding.
#[test]
fn in_bfloat16_only_normed_projections_are_scale_invariant() {
    check_scale_invariance(all_precisions()[1], 16.0);
}

#[test]
fn the_gradient_of_a_normed_projection_is_orthogonal_to_its_weights() {
    for name in all_names() {
        let config = without_eps(name);
        let mut model = perturbed_model(&config);
        let (_, gradients) = loss_and_gradients(&mut model);
        let gradient = gradients.get("blocks.1.attention.qkv").unwrap();
        let weights = &model.values()["blocks.1.attention.qkv"].data;
        for (part, rows, _) in parts(&config).into_iter().filter(|(_, _, normed)| *normed) {
            let range = rows.start * config.d_model..rows.end * config.d_model;
            let pairs = gradient[range.clone()].iter().zip(&weights[range]);
            let (mut dot, mut g2, mut w2) = (0.0, 0.0, 0.0);
            for (g, w) in pairs {
                let (g, w) = (f64::from(*g), f64::from(*w));
                dot += g * w;
                g2 += g * g;
                w2 += w * w;
            }
            let cosine = dot / (g2 * w2).sqrt();
            assert!(g2 > 0.0 && cosine.abs() < 1e-5, "{name} {part}: {cosine}");
        }
    }
}

#[test]
fn norm_parameters_per_block_are_counted_as_in_the_literature() {
    let count = |name: &str| {
        let config = tiny(named(name));
        let decoder = Decoder::new(&config).unwrap();
        let norms = decoder
            .registry()
            .iter()
            .filter(|spec| spec.name.starts_with("blocks.1.") && spec.role == Role::Norm);
        let total: usize = norms.map(|spec| spec.shape.iter().product::<usize>()).sum();
        (total, config.d_model, config.head_dim())
    };
    let (hybrid, d, k) = count("hybridnorm");
    assert_eq!(hybrid, d + 3 * k);
    let (pre, d, _) = count("pre-norm");
    assert_eq!(pre, 2 * d);
}

#[test]
fn star_differs_from_hybridnorm_only_in_its_first_block() {
    let model = |name: &str| {
        let decoder = Decoder::new(&tiny(named(name))).unwrap();
        let names = decoder.registry().sorted_by_name().into_iter();
        names.map(|spec| spec.name.clone()).collect::<Vec<_>>()
    };
    let (star, hybrid, pre_qkv_pre) = (
        model("hybridnorm-star"),
        model("hybridnorm"),
        model("pre-qkv-pre"),
    );
    let of = |names: &[String], block: &str| {
        let found: Vec<_> = names
            .iter()
            .filter(|name| name.starts_with(block))
            .cloned()
            .collect();
        found
    };
    assert_eq!(of(&star, "blocks.0."), of(&pre_qkv_pre, "blocks.0."));
    for block in ["blocks.1.", "blocks.2."] {
        assert_eq!(of(&star, block), of(&hybrid, block));
    }
}

#[test]
fn identical_experts_equal_a_dense_feed_forward() {
    let dense = tiny(named("hybridnorm"));
    let mut sparse = with_experts(dense.clone(), Scoring::Softmax);
    sparse.d_ff = 0;
    let moe = sparse.moe.as_mut().unwrap();
    (moe.n_experts, moe.top_k, moe.n_groups, moe.n_shared) = (3, 2, 1, 0);
    (moe.first_dense, moe.d_expert, moe.scaling) = (0, dense.d_ff, 1.0);
    (moe.renormalize, moe.bias_rate) = (true, None);
    let mut model = perturbed_model(&dense);
    let mut values = renamed(&model, |name| {
        name.replace("feed_forward.", "feed_forward.experts.")
    });
    for (name, values) in &mut values {
        if name.contains("experts") {
            values.shape[0] *= 3;
            values.data = values.data.repeat(3);
        }
    }
    for layer in 0..3 {
        let router = HostTensor {
            shape: vec![3, 16],
            data: (0..48).map(|i| (i as f32).sin()).collect(),
        };
        values.insert(format!("blocks.{layer}.feed_forward.router"), router);
    }
    let mut sparse = Model::new(&sparse, 0, Device::Cpu).unwrap();
    sparse.load(values).unwrap();
    // In bfloat16 the output of an expert is rounded, then the weighted sum over two of them: by up to 2^-9 of elements
    // that reach 3, in each of three blocks.
    for (options, bound) in all_precisions().into_iter().zip([1e-5, 0.04, 0.04]) {
        for model in [&mut model, &mut sparse] {
            model.set_plan_options(options).unwrap();
        }
        let difference = largest_difference(&logits(&mut model), &logits(&mut sparse));
        assert!(difference < bound, "{options:?}: {difference}");
    }
}
