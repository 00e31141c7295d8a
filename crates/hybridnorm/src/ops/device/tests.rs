//! Shapes of more than one tile, or turn of a loop, of the kernels; other tests of ops have small ones.

use hybridnorm_kernels::attention::AttentionConfig;
use hybridnorm_kernels::experts::DispatchLayout;
use hybridnorm_kernels::matmul::Precision;
use hybridnorm_kernels::norm::{Gain, NormConfig, NormFn};
use hybridnorm_kernels::router::{Router, Scoring};

use super::super::testing::{check, check_with, fixed_input, floats, ints, numbers};
use super::super::*;

fn attention_config(window: Option<usize>, softcap: Option<f32>) -> AttentionConfig {
    AttentionConfig {
        batch: 1,
        seq: 70,
        heads: 2,
        kv_heads: 1,
        head_dim: 40,
        value_dim: 36,
        scale: 0.3,
        softcap,
        window,
        precision: Precision::F32,
    }
}

#[test]
fn attention_of_several_tiles() {
    for (window, softcap) in [(None, None), (Some(20), None), (Some(40), Some(2.0))] {
        let config = attention_config(window, softcap);
        let qkv = floats(1, [1, 70, 3 * 40 + 36]);
        check_with(&[qkv], &[1, 2], |_, x| {
            vec![
                attention(x[0], config),
                attention_stats(x[0], config),
                max_attention_logits(x[0], config),
            ]
        });
    }
}

#[test]
fn norms_of_wide_rows() {
    for (function, groups) in [
        (NormFn::Rmsnorm, 1),
        (NormFn::Layernorm, 3),
        (NormFn::Derf, 1),
    ] {
        let config = NormConfig {
            function,
            eps: 1e-5,
            gain: Gain::Plain,
            bias: true,
            width: 70,
            groups,
        };
        let given = [floats(1, [5, 3, 70]), floats(2, [config.params_len()])];
        check(&given, |_, x| norm(x[0], x[1], config));
    }
}

#[test]
fn losses_of_wide_rows() {
    let targets = ints([7], &[599, 0, -1, 300, 256, 255, 31]);
    let given = [floats(1, [1, 7, 600]), targets.clone()];
    check_with(&given, &[1], |_, x| {
        cross_entropy(x[0], x[1], 0.01, 7.0).to_vec()
    });
    // Several parts of the rows.
    let given = [
        floats(1, [1, 7, 20]),
        floats(2, [100, 20]),
        ints([7], &[99, 0, -1, 30, 5, 31, 32]),
    ];
    check_with(&given, &[1], |_, x| {
        cross_entropy(linear(x[0], x[1]), x[2], 0.01, 7.0).to_vec()
    });
}

#[test]
fn embeddings_of_many_ids() {
    let ids: Vec<i32> = (0..70).map(|i| i * 7 % 5).collect();
    check(&[ints([2, 35], &ids), floats(1, [5, 40])], |_, x| {
        embedding(x[0], x[1])
    });
}

#[test]
fn factors_of_wide_rows() {
    let given = [floats(1, [1, 9, 70]), floats(2, [9]), floats(3, [70])];
    check(&given, |_, x| {
        add_bias(scale_columns(scale_rows(x[0], x[1]), x[2], 1), x[2])
    });
}

#[test]
fn many_experts() {
    const TOKENS: usize = 70;
    for (scoring, renormalize, groups) in [
        (Scoring::Softmax, false, 1),
        (Scoring::Softmax, true, 8),
        (Scoring::Sigmoid, true, 8),
    ] {
        let router = Router {
            experts: 40,
            top_k: 3,
            scoring,
            renormalize,
            groups,
            top_groups: groups.div_ceil(4),
            scaling: 1.5,
        };
        let layout = DispatchLayout {
            experts: 40,
            top_k: 3,
        };
        // Experts do not change where logits are moved a little.
        let logits: Vec<f64> = numbers(1, TOKENS * 40)
            .iter()
            .map(|x| (x * 64.0).round() / 8.0)
            .collect();
        let given = [
            floats(2, [1, TOKENS, 36]),
            fixed_input([1, TOKENS, 40], logits),
            floats(3, [40 * 34, 36]),
            floats(4, [40 * 36, 34]),
            floats(5, [1, TOKENS, 40]),
        ];
        check_with(&given, &[], |_, x| {
            let dispatch = top_k_dispatch(x[1], None, router);
            let logits = x[1] + x[4];
            let weights = gate_weights(logits, dispatch, router);
            let hidden = expert_up(x[0], x[2], dispatch, layout);
            let y = expert_down(hidden, None, x[3], weights, dispatch, layout, x[0].shape());
            let [balance, z, ..] = router_losses(logits, dispatch, router);
            vec![y, balance, z]
        });
    }
}
