//! Configurations beyond the named placements.

use hybridnorm::model::{
    Activation, AttentionOverride, Bias, ModelConfig, MoeConfig, PositionEmbedding, RopeScaling,
};
use hybridnorm::placement::{AttnScale, HeadNorm, Placement, Scale, Selector};

use crate::common::*;

/// Configurations with settings that no named placement has.
pub fn settings() -> Vec<(&'static str, ModelConfig)> {
    let pre_norm = || tiny(named("pre-norm"));
    let with_inner = |change: fn(&mut Placement)| {
        let mut placement = named("hybridnorm");
        change(&mut placement);
        tiny(placement)
    };
    let scaled = |scaling| pre_norm().with_rope_scaling(scaling);
    let windows = AttentionOverride {
        window: Some(5),
        rope_theta: Some(50.0),
        ..AttentionOverride::of_layers(Selector::Indices(vec![0, 2]))
    };
    let no_rope = AttentionOverride {
        no_rope: true,
        ..AttentionOverride::of_layers(Selector::Indices(vec![1]))
    };
    let bias = Bias {
        qkv: true,
        out: true,
        feed_forward: true,
    };
    vec![
        ("tied", pre_norm().with_tie_embeddings(true)),
        ("linear", scaled(RopeScaling::Linear { factor: 2.0 })),
        (
            "llama3",
            scaled(RopeScaling::Llama3 {
                factor: 4.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_seq_len: 16,
            }),
        ),
        (
            "yarn",
            tiny(named("hybridnorm")).with_rope_scaling(RopeScaling::Yarn {
                factor: 4.0,
                beta_fast: 2.0,
                beta_slow: 0.5,
                original_max_seq_len: 16,
                attention_factor: 1.1,
            }),
        ),
        (
            "windows",
            tiny(named("hybridnorm")).with_attention_overrides(vec![windows, no_rope]),
        ),
        (
            "partial-rotation",
            tiny(named("hybridnorm")).with_rope_dim(2),
        ),
        (
            "learned-positions",
            tiny(named("dyt"))
                .with_rope_theta(10_000.0)
                .with_position_embedding(PositionEmbedding::Learned)
                .with_bias(bias)
                .with_activation(Activation::Gelu),
        ),
        (
            "no-positions",
            tiny(named("gemma2"))
                .with_rope_theta(10_000.0)
                .with_position_embedding(PositionEmbedding::None),
        ),
        (
            "geglu",
            tiny(named("sub-ln")).with_activation(Activation::Geglu),
        ),
        (
            "relu2",
            tiny(named("lns")).with_activation(Activation::Relu2),
        ),
        (
            "gains-of-heads",
            with_inner(|placement| {
                let inner = &mut placement.block.attn_inner;
                (inner.q_norm, inner.k_norm) = (HeadNorm::PerHeadOwn, HeadNorm::PerHeadNoGain);
                (inner.v_norm, inner.ctx_norm) = (HeadNorm::Full, HeadNorm::PerHeadOwn);
                inner.clip_qkv = Some(0.7);
                inner.head_gain = true;
                inner.norm_eps = Some(1e-3);
                inner.attn_scale = AttnScale::Const(0.3);
                placement.logits.scale = Scale::Const(0.5);
            }),
        ),
        (
            "softmax-experts",
            tiny(named("pre-norm-qk-full"))
                .with_d_ff(0)
                .with_moe(MoeConfig::new(4, 2, 8).with_renormalize(true)),
        ),
        ("deepseek-v3-dense-first", {
            let config = with_experts(
                with_mla(tiny(named("deepseek-v3")), Some(12)),
                hybridnorm::model::Scoring::Sigmoid,
            );
            config.with_max_seq_len(32)
        }),
    ]
}

/// Configurations with the `model_type` of their export, where a setting decides whether `transformers` computes them.
pub fn stock_settings() -> Vec<(&'static str, ModelConfig, &'static str)> {
    let geglu = |name: &str| tiny(named(name)).with_activation(Activation::Geglu);
    let window = |layers: Vec<usize>, rope_theta: Option<f64>| AttentionOverride {
        window: Some(5),
        rope_theta,
        ..AttentionOverride::of_layers(Selector::Indices(layers))
    };
    let with_window = |config: ModelConfig, layers: &[usize], rope_theta: Option<f64>| {
        config.with_attention_overrides(vec![window(layers.to_vec(), rope_theta)])
    };
    let bias = Bias {
        qkv: true,
        out: true,
        feed_forward: false,
    };
    let linear = RopeScaling::Linear { factor: 2.0 };
    let pre_norm = || tiny(named("pre-norm"));
    vec![
        // These families make a mask of the window even if no layer has one,
        ("gemma2-no-window", geglu("gemma2"), "gemma2"),
        (
            "gemma2-tied",
            geglu("gemma2").with_tie_embeddings(true),
            "gemma2",
        ),
        ("gemma3-no-window", geglu("gemma3"), "gemma3_text"),
        // and ignore a rotary embedding that is not given by type of layer.
        (
            "gemma3-one-base",
            with_window(geglu("gemma3"), &[0, 1], None),
            "gemma3_text",
        ),
        (
            "gemma3-two-bases",
            with_window(geglu("gemma3"), &[0, 1], Some(50.0)),
            "gemma3_text",
        ),
        (
            "gemma3-all-windows",
            with_window(geglu("gemma3"), &[0, 1, 2], None),
            "gemma3_text",
        ),
        (
            "olmo3-all-windows",
            with_window(tiny(named("olmo2")), &[0, 1, 2], None),
            "olmo3",
        ),
        // Its projections have no biases, whatever a key says.
        (
            "mistral-bias",
            with_window(pre_norm(), &[0, 1, 2], None).with_bias(bias),
            "hybridnorm",
        ),
        (
            "mistral",
            with_window(pre_norm(), &[0, 1, 2], None),
            "mistral",
        ),
        // Refuses scaled frequencies.
        (
            "phi3-scaled",
            pre_norm().with_rope_dim(2).with_rope_scaling(linear),
            "hybridnorm",
        ),
        // Llama refuses a width that is not a multiple of the number of heads.
        (
            "llama-width",
            pre_norm().with_d_model(18).with_head_dim(4),
            "smollm3",
        ),
    ]
}
