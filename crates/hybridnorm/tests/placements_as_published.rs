//! Published placements, written line by line as published and built by hand from the parts of a model: with one
//! residual stream, with two, and on the hypersphere.

mod common;

use common::*;
use hybridnorm::Device;
use hybridnorm::exec::TensorRef;
use hybridnorm::graph::{Builder, Type, Value};
use hybridnorm::model::{
    Attention, Block, Decoder, FeedForward, Model, Norm, PositionContext, Scale, norm,
};
use hybridnorm::ops::{self, Arguments};
use hybridnorm::plan::{Options, Program};
use hybridnorm_kernels::norm::{Gain, NormConfig, NormFn};

/// Sub-layers of a block without their wiring. Norms on queries, keys and values belong to attention.
struct SubLayers<'a, 'g> {
    block: &'a Block,
    positions: PositionContext<'g>,
}

impl<'g> SubLayers<'_, 'g> {
    fn attention(&self, u: Value<'g>) -> Value<'g> {
        self.block.attention.output(u, &self.positions)
    }

    fn feed_forward(&self, u: Value<'g>) -> Value<'g> {
        self.block.feed_forward.output(u)
    }
}

/// Returns `norm(x)`; the norm must exist.
fn normed<'g>(site: &Option<Norm>, x: Value<'g>) -> Value<'g> {
    assert!(site.is_some(), "there is a norm");
    norm(site, x)
}

/// Returns `x / |x|` of rows: RMSNorm, whose rows have norm √d, times 1/√d.
fn unit(x: Value<'_>) -> Value<'_> {
    let width = x.shape().width();
    let config = NormConfig {
        function: NormFn::Rmsnorm,
        eps: 1e-30,
        gain: Gain::None,
        bias: false,
        width,
        groups: 1,
    };
    ops::norm(x, None, config) * (1.0 / (width as f64).sqrt())
}

/// Returns `(c · factor) ⊙ x` with the parameter c of a learned scale.
fn scaled<'g>(scale: &Scale, factor: f64, x: Value<'g>) -> Value<'g> {
    let Scale::Learned(param, _) = scale else {
        panic!("a learned scale");
    };
    ops::scale_columns(x, param.value(x.builder()) * factor, 1)
}

/// Compares a model with a `forward` built from its parts.
fn check(
    name: &str,
    forward: impl for<'a, 'g> Fn(&'a Decoder, &'a [SubLayers<'a, 'g>], Value<'g>) -> Value<'g>,
) {
    for (kind, config) in model_variants(name) {
        let mut model = on_reference_executor(&perturbed_model(&config));
        let g = Builder::new();
        let ids = g.input("ids", Type::i32([BATCH, SEQ]));
        let (frequencies, magnitude) = config.rope_frequencies(0);
        let rope_table = ops::rope_table(&g, &frequencies, magnitude, SEQ);
        let positions = PositionContext {
            rope_table,
            cache: None,
            segments: None,
            is_prefill: true,
        };
        let decoder = model.decoder();
        let blocks = decoder.blocks.iter();
        let sub_layers: Vec<_> = blocks.map(|block| SubLayers { block, positions }).collect();
        let x = ops::embedding(ids, decoder.embedding.value(&g));
        let output = forward(decoder, &sub_layers, x).id();
        drop(sub_layers);
        let program = Program::new(g.finish(), &[output], Options::default());
        let ids = inputs();
        let executor = model.executor_mut();
        executor
            .run(
                &program,
                Arguments::default(),
                &[("ids", TensorRef::I32(&ids))],
            )
            .unwrap();
        let expected = executor.output(&program, output).into_f64();
        let found = model.hidden(&ids, BATCH, SEQ).unwrap().into_f64();
        let difference = largest_difference64(&expected, &found);
        assert!(difference < 1e-12, "{kind}: {difference}");
        let all = [expected, found].concat();
        assert!(all.iter().all(|x| x.is_finite()), "{kind}");
    }
}

/// Pre-norm (arXiv 2002.04745): `Y = X + A(N(X)), X' = Y + F(N(Y))`.
#[test]
fn pre_norm() {
    check("pre-norm", |model, blocks, embedding| {
        let mut x = embedding;
        for f in blocks {
            let y = x + f.attention(normed(&f.block.attn_sub_layer.in_norm, x));
            x = y + f.feed_forward(normed(&f.block.ffn_sub_layer.in_norm, y));
        }
        normed(&model.final_norm, x)
    });
}

/// Post-norm (arXiv 1706.03762): `Y = N(X + A(X)), X' = N(Y + F(Y))`; the last norm is the final one.
#[test]
fn post_norm() {
    check("post-norm", |model, blocks, embedding| {
        let mut x = embedding;
        for f in blocks {
            let y = normed(&f.block.attn_sub_layer.post_norm, x + f.attention(x));
            x = normed(&f.block.ffn_sub_layer.post_norm, y + f.feed_forward(y));
        }
        assert!(model.final_norm.is_none());
        x
    });
}

/// Peri-LN (arXiv 2502.02732): `Y = X + N(A(N(X))), X' = Y + N(F(N(Y)))`.
#[test]
fn peri_ln() {
    check("peri-ln", |model, blocks, embedding| {
        let mut x = embedding;
        for f in blocks {
            let (attn, ffn) = (&f.block.attn_sub_layer, &f.block.ffn_sub_layer);
            let o = f.attention(normed(&attn.in_norm, x));
            let y = x + normed(&attn.out_norm, o);
            let o = f.feed_forward(normed(&ffn.in_norm, y));
            x = y + normed(&ffn.out_norm, o);
        }
        normed(&model.final_norm, x)
    });
}

/// Feed-forward half of a HybridNorm block (arXiv 2503.04598): `X' = F(N(Y)) + N(Y)`.
fn normed_feed_forward<'g>(f: &SubLayers<'_, 'g>, y: Value<'g>) -> Value<'g> {
    let z = normed(&f.block.ffn_sub_layer.in_norm, y);
    f.feed_forward(z) + z
}

/// HybridNorm: `Y = A_QKV(X) + X, X' = F(N(Y)) + N(Y)`.
#[test]
fn hybridnorm() {
    check("hybridnorm", |model, blocks, embedding| {
        let mut x = embedding;
        for f in blocks {
            assert_qkv_norms(f.block);
            x = normed_feed_forward(f, f.attention(x) + x);
        }
        normed(&model.final_norm, x)
    });
}

/// HybridNorm*: the first block is `Y = A_QKV(N(X)) + X, X' = F(N(Y)) + Y`, the others are HybridNorm's.
#[test]
fn hybridnorm_star() {
    check("hybridnorm-star", |model, blocks, embedding| {
        let (first, others) = blocks.split_first().unwrap();
        assert_qkv_norms(first.block);
        let y = first.attention(normed(&first.block.attn_sub_layer.in_norm, embedding)) + embedding;
        let mut x = first.feed_forward(normed(&first.block.ffn_sub_layer.in_norm, y)) + y;
        for f in others {
            assert_qkv_norms(f.block);
            x = normed_feed_forward(f, f.attention(x) + x);
        }
        normed(&model.final_norm, x)
    });
}

/// Asserts that attention normalizes queries, keys and values, unless it is latent attention.
fn assert_qkv_norms(block: &Block) {
    if let Attention::GroupedQuery(heads) = &block.attention {
        let norms = [heads.q_norm, heads.k_norm, heads.v_norm];
        assert!(norms.iter().all(Option::is_some));
    }
}

#[test]
fn residual_dual() {
    check("resi-dual", |model, blocks, embedding| {
        let (mut x, mut e) = (embedding, embedding);
        for f in blocks {
            let o = f.attention(x);
            e = e + o;
            x = normed(&f.block.attn_sub_layer.post_norm, x + o);
            let o = f.feed_forward(x);
            e = e + o;
            x = normed(&f.block.ffn_sub_layer.post_norm, x + o);
        }
        x + normed(&model.second_norm, e)
    });
}

#[test]
fn siamese_as_in_the_paper() {
    check("siamese-norm", |model, blocks, embedding| {
        let (mut x, mut y) = (embedding, embedding);
        for (l, f) in blocks.iter().enumerate() {
            let c = (2.0 * (l + 1) as f64).sqrt();
            let (attn, ffn) = (&f.block.attn_sub_layer, &f.block.ffn_sub_layer);
            let s = x + normed(&attn.second_norm, y);
            let o = f.attention(normed(&attn.in_norm, s));
            x = normed(&attn.post_norm, x + o * (1.0 / c));
            y = y + o;
            let s = x + normed(&ffn.second_norm, y);
            let o = f.feed_forward(normed(&ffn.in_norm, s));
            x = normed(&ffn.post_norm, x + o * (1.0 / c));
            y = y + o;
        }
        x + normed(&model.second_norm, y)
    });
}

#[test]
fn siamese_as_released() {
    check("siamese-hybrid", |model, blocks, embedding| {
        let (mut x, mut y) = (embedding, embedding);
        for (l, f) in blocks.iter().enumerate() {
            let c = (2.0 * (l + 1) as f64).sqrt();
            let (attn, ffn) = (&f.block.attn_sub_layer, &f.block.ffn_sub_layer);
            let s = scaled(&attn.read_scale, 1.0, x) + normed(&attn.second_norm, y);
            let o = f.attention(s);
            x = x + o * (1.0 / c);
            y = y + o;
            x = normed(&attn.post_norm, x);
            let s = x + normed(&ffn.second_norm, y);
            let o = f.feed_forward(normed(&ffn.in_norm, s));
            x = x + o * (1.0 / c);
            y = y + o;
        }
        let x = normed(&model.merge_norm, x) + normed(&model.second_norm, y);
        normed(&model.final_norm, x)
    });
}

#[test]
fn normalized_gpt() {
    check("ngpt", |_, blocks, embedding| {
        let mut h = embedding;
        for f in blocks {
            for (sub, o) in [(&f.block.attn_sub_layer, 0), (&f.block.ffn_sub_layer, 1)] {
                let o = match o {
                    0 => f.attention(h),
                    _ => f.feed_forward(h),
                };
                // The parameter starts at 1/√d, its effective value at 0.05.
                let factor = 0.05 * (h.shape().width() as f64).sqrt();
                h = unit(h + scaled(&sub.out_scale, factor, unit(o) - h));
            }
        }
        h
    });
}

/// Queries and keys of nGPT: unit vectors after the rotation, times a factor per channel of a key/value head, and a
/// softmax scale of √k.
#[test]
fn normalized_gpt_scales_queries_and_keys_by_group() {
    let config = tiny(named("ngpt"));
    let model = Model::new(&config, 5, Device::Cpu).unwrap();
    let decoder = model.decoder();
    let factors = |scale: &Scale| match scale {
        Scale::Learned(param, _) => param.shape().sizes().to_vec(),
        Scale::Constant(_) => panic!("a learned scale"),
    };
    let Attention::GroupedQuery(heads) = &decoder.blocks[0].attention else {
        panic!("expected grouped-query attention");
    };
    let k = config.head_dim();
    assert_eq!(factors(&heads.qk_scale), [config.n_kv_heads * k]);
    let FeedForward::Dense(mlp) = &decoder.blocks[0].feed_forward else {
        panic!("a dense feed-forward");
    };
    assert_eq!(factors(&mlp.gate_scale), [config.d_ff]);
    assert_eq!(factors(&decoder.logit_scale), [VOCAB]);
}
