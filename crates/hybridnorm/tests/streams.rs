//! Placements with two streams, and on the sphere, line by line as they are published.

mod common;

use burn::tensor::{Int, Tensor};
use common::*;
use hybridnorm::model::{Attention, Block, Decoder, FeedForward, Norm, Positions};

/// The functions of a block without their wiring.
struct Functions<'a> {
    block: &'a Block,
    positions: Positions,
}

impl Functions<'_> {
    fn attention(&self, u: Tensor<3>) -> Tensor<3> {
        self.block.attention.forward(u, &self.positions, None)
    }

    fn feed_forward(&self, u: Tensor<3>) -> Tensor<3> {
        self.block.feed_forward.forward(u).0
    }
}

fn norm(norm: &Option<Norm>, x: &Tensor<3>) -> Tensor<3> {
    norm.as_ref().expect("there is a norm").forward(x.clone())
}

fn embedded(model: &Decoder, ids: Tensor<2, Int>) -> Tensor<3> {
    let [b, t] = ids.dims();
    let rows = model.embedding.val().select(0, ids.reshape([b * t]));
    rows.reshape([b, t, model.config().d_model])
}

/// Compares a model with what `forward` makes of its parts.
fn check(name: &str, forward: impl Fn(&Decoder, &[Functions<'_>], Tensor<3>) -> Tensor<3>) {
    for (kind, config) in kinds(name) {
        let model = in_f64(stirred(&config, &plain()));
        let positions = Positions::first(&config, SEQ);
        let functions: Vec<_> = model
            .blocks
            .iter()
            .map(|block| Functions {
                block,
                positions: positions.clone(),
            })
            .collect();
        let x = embedded(&model, inputs(&model));
        let expected = to_vec64(forward(&model, &functions, x));
        let found = to_vec64(model.forward(inputs(&model)));
        let difference = largest_difference64(&expected, &found);
        assert!(difference < 1e-12, "{kind}: {difference}");
    }
}

#[test]
fn residual_dual() {
    check("resi-dual", |model, blocks, embedding| {
        let (mut x, mut e) = (embedding.clone(), embedding);
        for f in blocks {
            let o = f.attention(x.clone());
            e = e + o.clone();
            x = norm(&f.block.attn.post_norm, &(x + o));
            let o = f.feed_forward(x.clone());
            e = e + o.clone();
            x = norm(&f.block.ffn.post_norm, &(x + o));
        }
        x + norm(&model.second_norm, &e)
    });
}

#[test]
fn siamese_as_in_the_paper() {
    check("siamese-norm", |model, blocks, embedding| {
        let (mut x, mut y) = (embedding.clone(), embedding);
        for (l, f) in blocks.iter().enumerate() {
            let c = (2.0 * (l + 1) as f64).sqrt();
            let (attn, ffn) = (&f.block.attn, &f.block.ffn);
            let s = x.clone() + norm(&attn.second_norm, &y);
            let o = f.attention(norm(&attn.in_norm, &s));
            x = norm(&attn.post_norm, &(x + o.clone() / c));
            y = y + o;
            let s = x.clone() + norm(&ffn.second_norm, &y);
            let o = f.feed_forward(norm(&ffn.in_norm, &s));
            x = norm(&ffn.post_norm, &(x + o.clone() / c));
            y = y + o;
        }
        x + norm(&model.second_norm, &y)
    });
}

#[test]
fn siamese_as_released() {
    check("siamese-hybrid", |model, blocks, embedding| {
        let (mut x, mut y) = (embedding.clone(), embedding);
        for (l, f) in blocks.iter().enumerate() {
            let c = (2.0 * (l + 1) as f64).sqrt();
            let (attn, ffn) = (&f.block.attn, &f.block.ffn);
            let c1 = attn
                .read_scale
                .factor
                .as_ref()
                .expect("a learned scale")
                .val();
            let d = c1.dims()[0];
            let s = x.clone() * c1.reshape([1, 1, d]) + norm(&attn.second_norm, &y);
            let o = f.attention(s);
            x = x + o.clone() / c;
            y = y + o;
            x = norm(&attn.post_norm, &x);
            let s = x.clone() + norm(&ffn.second_norm, &y);
            let o = f.feed_forward(norm(&ffn.in_norm, &s));
            x = x + o.clone() / c;
            y = y + o;
        }
        let x = norm(&model.merge_norm, &x) + norm(&model.second_norm, &y);
        norm(&model.final_norm, &x)
    });
}

#[test]
fn normalized_gpt() {
    let unit = |x: Tensor<3>| x.clone() / x.square().sum_dim(2).sqrt();
    check("ngpt", |_, blocks, embedding| {
        let mut h = embedding;
        for f in blocks {
            for (sub, o) in [(&f.block.attn, 0), (&f.block.ffn, 1)] {
                let o = match o {
                    0 => f.attention(h.clone()),
                    _ => f.feed_forward(h.clone()),
                };
                // The parameter starts at 1/√d where its effect starts at 0.05.
                let alpha = sub
                    .out_scale
                    .factor
                    .as_ref()
                    .expect("a learned scale")
                    .val();
                let d = alpha.dims()[0];
                let alpha = alpha.reshape([1, 1, d]) * (0.05 * (d as f64).sqrt());
                h = unit(h.clone() + alpha * (unit(o) - h));
            }
        }
        h
    });
}

/// Queries and keys of nGPT: unit vectors after the rotation, times a factor for every channel of a
/// key/value head, and a softmax scale of √k.
#[test]
fn normalized_gpt_scales_queries_and_keys_by_group() {
    let config = tiny(named("ngpt"));
    let model = stirred(&config, &plain());
    let Attention::Heads(heads) = &model.blocks[0].attention else {
        panic!("attention with heads of its own");
    };
    let k = config.head_dim();
    assert_eq!(
        heads.qk_scale.factor.as_ref().unwrap().dims(),
        [config.n_kv_heads * k]
    );
    let FeedForward::Dense(mlp) = &model.blocks[0].feed_forward else {
        panic!("a dense feed-forward");
    };
    assert_eq!(
        mlp.gate_scale.factor.as_ref().unwrap().dims(),
        [config.d_ff]
    );
    assert_eq!(model.logit_scale.factor.as_ref().unwrap().dims(), [VOCAB]);
}
