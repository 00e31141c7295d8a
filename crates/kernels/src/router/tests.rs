use super::*;
use crate::testing::{
    Rng, assert_all_close, assert_bit_identical_for_any_thread_count, assert_close, check_gradient,
    dot_f64, to_f64,
};
use proptest::prelude::*;

const PLAIN: Router = Router {
    experts: 4,
    top_k: 2,
    scoring: Scoring::Softmax,
    renormalize: false,
    groups: 1,
    top_groups: 1,
    scaling: 1.0,
};

fn any_router() -> impl Strategy<Value = Router> {
    let sigmoid = any::<bool>();
    let groups = (1usize..5, 1usize..5, 1usize..8);
    (sigmoid, any::<bool>(), groups, 1usize..6).prop_map(
        |(sigmoid, renormalize, (groups, top_groups, size), top_k)| {
            let top_groups = top_groups.min(groups);
            Router {
                experts: groups * size,
                top_k: top_k.min(top_groups * size),
                scoring: if sigmoid {
                    Scoring::Sigmoid
                } else {
                    Scoring::Softmax
                },
                renormalize,
                groups,
                top_groups,
                scaling: 2.5,
            }
        },
    )
}

fn naive_scores(scoring: Scoring, logits: &[f64]) -> Vec<f64> {
    match scoring {
        Scoring::Softmax => {
            let total: f64 = logits.iter().map(|l| l.exp()).sum();
            logits.iter().map(|l| l.exp() / total).collect()
        }
        Scoring::Sigmoid => logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect(),
    }
}

/// Indices in descending order of their keys; ties go to the lower index.
fn order(keys: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]).then(a.cmp(&b)));
    order
}

fn naive_select_top_k(r: &Router, logits: &[f32], bias: Option<&[f32]>) -> Vec<i32> {
    let size = r.experts / r.groups;
    let mut selected = Vec::new();
    for logits in to_f64(logits).chunks(r.experts) {
        let mut keys = naive_scores(r.scoring, logits);
        for (key, &bias) in keys.iter_mut().zip(bias.unwrap_or_default()) {
            *key += f64::from(bias);
        }
        let groups: Vec<f64> = keys
            .chunks(size)
            .map(|keys| {
                let counted = if bias.is_some() { 2 } else { 1 };
                order(keys).iter().take(counted).map(|&e| keys[e]).sum()
            })
            .collect();
        for &group in &order(&groups)[r.top_groups..] {
            keys[group * size..][..size].fill(f64::NEG_INFINITY);
        }
        selected.extend(order(&keys)[..r.top_k].iter().map(|&e| e as i32));
    }
    selected
}

fn naive_weights(r: &Router, logits: &[f64], selected: &[i32]) -> Vec<f64> {
    let tokens = logits.chunks(r.experts).zip(selected.chunks(r.top_k));
    let one = |(logits, selected): (&[f64], &[i32])| {
        let scores = naive_scores(r.scoring, logits);
        let selected_scores: Vec<f64> = selected.iter().map(|&e| scores[e as usize]).collect();
        let total = if r.renormalize {
            selected_scores.iter().sum()
        } else {
            1.0
        };
        selected_scores
            .iter()
            .map(|s| s / total * f64::from(r.scaling))
            .collect::<Vec<_>>()
    };
    tokens.flat_map(one).collect()
}

fn naive_losses(r: &Router, logits: &[f64], load: &[i32]) -> AuxiliaryLosses {
    let n = (logits.len() / r.experts) as f64;
    let mut losses = AuxiliaryLosses::default();
    for logits in logits.chunks(r.experts) {
        let scores = naive_scores(r.scoring, logits);
        let total: f64 = scores.iter().sum();
        let log_sum_exp = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        losses.z += log_sum_exp * log_sum_exp / n;
        for (score, &load) in scores.iter().zip(load) {
            let p = score / total;
            let share = f64::from(load) / (n * r.top_k as f64);
            losses.load_balancing += r.experts as f64 * share * p / n;
            losses.entropy -= p * p.ln() / n;
        }
    }
    losses
}

fn count(r: &Router, selected: &[i32]) -> Vec<i32> {
    let mut load = vec![0; r.experts];
    for &expert in selected {
        load[expert as usize] += 1;
    }
    load
}

/// Logits with ties.
fn coarse(rng: &mut Rng, len: usize) -> Vec<f32> {
    rng.normal(len)
        .iter()
        .map(|l| (2.0 * l).round() / 2.0)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn selections_match_the_reference(r in any_router(), n in 0usize..12, biased in any::<bool>()) {
        let mut rng = Rng::new(101);
        let logits = coarse(&mut rng, n * r.experts);
        let bias = rng.normal(r.experts);
        let bias = biased.then_some(&bias[..]);
        let mut selected = vec![i32::MAX; n * r.top_k];
        select_top_k(&r, &logits, bias, &mut selected);
        prop_assert_eq!(selected, naive_select_top_k(&r, &logits, bias));
    }

    #[test]
    fn weights_match_the_reference(r in any_router(), n in 0usize..8) {
        let mut rng = Rng::new(102);
        let logits = rng.normal(n * r.experts);
        let bias = rng.normal(r.experts);
        let mut selected = vec![i32::MAX; n * r.top_k];
        select_top_k(&r, &logits, Some(&bias), &mut selected);
        let mut found = vec![f32::NAN; n * r.top_k];
        gate_weights(&r, &logits, &selected, &mut found);
        assert_all_close(&found, &naive_weights(&r, &to_f64(&logits), &selected), 2e-6);
        let dweights = rng.normal(n * r.top_k);
        let mut dlogits = vec![f32::NAN; logits.len()];
        gate_weights_backward(&r, &logits, &selected, &dweights, &mut dlogits);
        let loss = |logits: &[f64]| dot_f64(&naive_weights(&r, logits, &selected), &dweights);
        check_gradient(loss, &logits, &dlogits, 1e-5);
    }

    #[test]
    fn losses_match_the_reference(r in any_router(), n in 1usize..8) {
        let mut rng = Rng::new(103);
        let logits = rng.normal(n * r.experts);
        let mut selected = vec![i32::MAX; n * r.top_k];
        select_top_k(&r, &logits, None, &mut selected);
        let load = count(&r, &selected);
        let found = losses(&r, &logits, &load);
        let want = naive_losses(&r, &to_f64(&logits), &load);
        assert_close(found.load_balancing as f32, want.load_balancing, 2e-6);
        assert_close(found.z as f32, want.z, 2e-6);
        assert_close(found.entropy as f32, want.entropy, 2e-6);
        for (dload_balancing, dz) in [(0.7, 0.0), (0.0, 0.4), (1.5, -0.3)] {
            let mut dlogits = vec![f32::NAN; logits.len()];
            losses_backward(&r, &logits, &load, dload_balancing, dz, &mut dlogits);
            let loss = |logits: &[f64]| {
                let losses = naive_losses(&r, logits, &load);
                f64::from(dload_balancing) * losses.load_balancing + f64::from(dz) * losses.z
            };
            check_gradient(loss, &logits, &dlogits, 1e-5);
        }
    }
}

#[test]
fn selections_from_many_experts_match_the_reference() {
    for (experts, top_k, groups, top_groups) in [(512, 16, 1, 1), (256, 8, 8, 4), (130, 5, 2, 1)] {
        let r = Router {
            experts,
            top_k,
            groups,
            top_groups,
            ..PLAIN
        };
        let n = 40;
        let mut rng = Rng::new(104);
        for logits in [rng.normal(n * experts), coarse(&mut rng, n * experts)] {
            let mut selected = vec![0; n * top_k];
            select_top_k(&r, &logits, None, &mut selected);
            assert_eq!(selected, naive_select_top_k(&r, &logits, None));
        }
    }
}

#[test]
fn groups_are_ranked_as_in_deepseek() {
    // Groups (0, 1), (2, 3), (4, 5): the best expert is in the first, the best two in the second.
    let logits = [3.0, -9.0, 2.0, 1.5, 0.0, 0.0];
    let r = Router {
        experts: 6,
        groups: 3,
        scoring: Scoring::Sigmoid,
        ..PLAIN
    };
    let mut selected = [0; 2];
    select_top_k(&r, &logits, None, &mut selected);
    assert_eq!(selected, [0, 1]);
    select_top_k(&r, &logits, Some(&[0.0; 6]), &mut selected);
    assert_eq!(selected, [2, 3]);
    select_top_k(
        &r,
        &logits,
        Some(&[0.0, 0.0, 0.0, 0.0, 1.0, 2.0]),
        &mut selected,
    );
    assert_eq!(selected, [5, 4]);
    select_top_k(&r, &[1.0; 6], Some(&[0.0; 6]), &mut selected);
    assert_eq!(selected, [0, 1]);
}

#[test]
fn non_finite_scores_are_selected_and_propagate() {
    let non_finite = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        for renormalize in [false, true] {
            for (groups, top_groups) in [(1, 1), (4, 2)] {
                let r = Router {
                    experts: 8,
                    top_k: 3,
                    scoring,
                    renormalize,
                    groups,
                    top_groups,
                    scaling: 1.0,
                };
                for bias in [None, Some(&[0.5; 8][..]), Some(&[f32::NAN; 8])] {
                    for case in 0..4usize.pow(4) {
                        let mut logits = Rng::new(105).normal(8);
                        for at in 0..4 {
                            if let Some(&non_finite) = non_finite.get(case / 4usize.pow(at) % 4) {
                                logits[2 * at as usize + 1] = non_finite;
                            }
                        }
                        let mut selected = [99; 3];
                        select_top_k(&r, &logits, bias, &mut selected);
                        let mut distinct = selected.to_vec();
                        distinct.sort_unstable();
                        distinct.dedup();
                        assert!(distinct.len() == 3 && distinct[2] < 8, "{selected:?}");
                        let mut found = [0.0; 3];
                        gate_weights(&r, &logits, &selected, &mut found);
                        let mut dlogits = [0.0; 8];
                        gate_weights_backward(&r, &logits, &selected, &[1.0; 3], &mut dlogits);
                        let load = count(&r, &selected);
                        let sums = losses(&r, &logits, &load);
                        if logits.iter().any(|l| l.is_nan()) {
                            let nan_bias = bias.is_some_and(|bias| bias[0].is_nan());
                            let propagates = found.iter().any(|w| w.is_nan());
                            assert!(propagates || nan_bias, "{r:?} {logits:?} {found:?}");
                            assert!(sums.z.is_nan() && sums.load_balancing.is_nan());
                        }
                        losses_backward(&r, &logits, &load, 1.0, 1.0, &mut dlogits);
                    }
                }
            }
        }
    }
}

#[test]
fn masked_experts_keep_losses_finite() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let r = Router { scoring, ..PLAIN };
        let logits = [0.5, f32::NEG_INFINITY, -1.0, -200.0];
        let mut found = [0.0; 2];
        gate_weights(&r, &logits, &[0, 2], &mut found);
        let mut dlogits = [f32::NAN; 4];
        gate_weights_backward(&r, &logits, &[0, 2], &[1.0, -1.0], &mut dlogits);
        let AuxiliaryLosses {
            load_balancing: balance,
            z,
            entropy,
        } = losses(&r, &logits, &[1, 0, 1, 0]);
        let mut dlosses = [f32::NAN; 4];
        losses_backward(&r, &logits, &[1, 0, 1, 0], 1.0, 1.0, &mut dlosses);
        let all = found.iter().chain(&dlogits).chain(&dlosses);
        assert!(all.into_iter().all(|v| v.is_finite()));
        assert!(balance.is_finite() && z.is_finite() && entropy.is_finite());
        assert!(dlogits[1] == 0.0 && dlosses[1] == 0.0);
    }
}

#[test]
fn selected_experts_far_below_the_best_share_the_weight() {
    let r = Router {
        renormalize: true,
        ..PLAIN
    };
    let mut found = [0.0; 2];
    gate_weights(&r, &[300.0, 0.0, 0.0, -1.0], &[1, 2], &mut found);
    assert_eq!(found, [0.5, 0.5]);
}

#[test]
fn no_tokens_give_zeros() {
    assert_eq!(losses(&PLAIN, &[], &[0; 4]), AuxiliaryLosses::default());
    losses_backward(&PLAIN, &[], &[0; 4], 1.0, 1.0, &mut []);
    select_top_k(&PLAIN, &[], None, &mut []);
    gate_weights(&PLAIN, &[], &[], &mut []);
    gate_weights_backward(&PLAIN, &[], &[], &[], &mut []);
}

#[test]
fn uniform_scores_have_load_balancing_one_and_maximum_entropy() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let r = Router { scoring, ..PLAIN };
        let found = losses(&r, &[0.25; 12], &[6, 0, 0, 0]);
        assert!((found.load_balancing - 1.0).abs() < 1e-6);
        assert!((found.entropy - 4f64.ln()).abs() < 1e-6);
    }
}

#[test]
fn bit_identical_for_any_thread_count() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let r = Router {
            experts: 64,
            top_k: 4,
            scoring,
            renormalize: true,
            groups: 8,
            top_groups: 3,
            scaling: 2.0,
        };
        let n = 1500;
        let mut rng = Rng::new(106);
        let (logits, bias) = (rng.normal(n * 64), rng.normal(64));
        let dweights = rng.normal(n * 4);
        assert_bit_identical_for_any_thread_count(|| {
            let mut selected = vec![0; n * 4];
            select_top_k(&r, &logits, Some(&bias), &mut selected);
            let mut found = vec![0.0; n * 4];
            gate_weights(&r, &logits, &selected, &mut found);
            let (mut dlogits, mut dlosses) = (vec![0.0; n * 64], vec![0.0; n * 64]);
            gate_weights_backward(&r, &logits, &selected, &dweights, &mut dlogits);
            let load = count(&r, &selected);
            losses_backward(&r, &logits, &load, 1.0, 0.1, &mut dlosses);
            let AuxiliaryLosses {
                load_balancing: balance,
                z,
                entropy,
            } = losses(&r, &logits, &load);
            let halves = |x: f64| [x as f32, (x - f64::from(x as f32)) as f32];
            let sums = [balance, z, entropy].into_iter().flat_map(halves).collect();
            let selected = selected.into_iter().map(|e| e as f32).collect();
            [selected, found, dlogits, dlosses, sums].concat()
        });
    }
}

#[test]
#[should_panic(
    expected = "router::select_top_k: top_k is 3, but the best 1 groups have only 2 experts"
)]
fn too_few_groups_are_rejected() {
    let r = Router {
        top_k: 3,
        groups: 2,
        ..PLAIN
    };
    select_top_k(&r, &[0.0; 4], None, &mut [0; 3]);
}

#[test]
#[should_panic(expected = "router::gate_weights: selected: expert 7 is not in 0..4")]
fn expert_out_of_range_is_rejected() {
    gate_weights(&PLAIN, &[0.0; 4], &[0, 7], &mut [0.0; 2]);
}
