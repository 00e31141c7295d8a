//! Mixture-of-experts router: from router logits to top-k experts, their weights, and the router's
//! auxiliary losses.
//!
//! Scores are `s = softmax(logits)` (Switch Transformer, arXiv 2101.03961) or `s = sigmoid(logits)`.
//! An expert bias affects the selection only, never the weights, and the selection may be limited to some
//! groups of experts (DeepSeek-V3, arXiv 2412.19437, and its released code). The load-balancing loss is
//! `E sum_e load_e / (n k) mean_t p_te` with normalized scores `p = s / sum(s)`; the router z-loss is
//! `mean_t logsumexp(logits)^2` (ST-MoE, arXiv 2202.08906).

use crate::experts::DispatchLayout;
use crate::math::{exp, ln, sigmoid};
use crate::parallel::rows_per_chunk;
use crate::simd::{dispatch, dot, map_sum, max, sum, sum3};
use rayon::prelude::*;

mod top_k;

pub use top_k::select_top_k;

/// Added to sums of sigmoids that are divisors.
const SIGMOID_SUM_EPS: f32 = 1e-20;

/// The function from logits to scores.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Scoring {
    /// Softmax over the experts, `exp(l_e) / sum(exp(l))` (OLMoE).
    #[default]
    Softmax,
    /// A sigmoid for each expert, `1 / (1 + exp(-l_e))` (DeepSeek-V3).
    Sigmoid,
}

/// Shape and parameters of the router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// Number of experts E.
    pub experts: usize,
    /// Experts per token k.
    pub top_k: usize,
    /// Function from logits to scores.
    pub scoring: Scoring,
    /// True if a token's weights are divided by their sum, plus 1e-20 for the sigmoid.
    pub renormalize: bool,
    /// Number of groups of equally many experts; 1 for no groups.
    pub groups: usize,
    /// Number of groups from which the experts of a token may be selected.
    pub top_groups: usize,
    /// Factor on the weights.
    pub scaling: f32,
}

/// Auxiliary losses of the router, and the entropy of its scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AuxiliaryLosses {
    /// Load-balancing loss; 1 if load or scores are uniform.
    pub load_balancing: f64,
    /// Router z-loss, the mean of `logsumexp(logits)^2`.
    pub z: f64,
    /// Mean entropy of the normalized scores, in nats.
    pub entropy: f64,
}

/// Replaces the logits of a token by their scores.
#[inline(always)]
fn scores(scoring: Scoring, row: &mut [f32]) {
    match scoring {
        Scoring::Softmax => {
            let largest = max(row);
            let total = map_sum(row, |l| exp(l - largest));
            for score in row {
                *score /= total;
            }
        }
        Scoring::Sigmoid => {
            for score in row {
                *score = sigmoid(*score);
            }
        }
    }
}

/// Computes the gate weights (n, k) of the `selected` experts: their scores without bias, renormalized if
/// [`Router::renormalize`] is set, and scaled.
pub fn gate_weights(r: &Router, logits: &[f32], selected: &[i32], weights: &mut [f32]) {
    let n = r.check("router::gate_weights", logits);
    r.check_selected("router::gate_weights: selected", n, selected);
    r.check_assignments("router::gate_weights: weights", n, weights.len());
    let Router { experts, top_k, .. } = *r;
    let chunk = rows_per_chunk(n, experts);
    let inputs = logits.par_chunks(chunk * experts);
    weights
        .par_chunks_mut(chunk * top_k)
        .zip(inputs.zip(selected.par_chunks(chunk * top_k)))
        .for_each(|(weights, (logits, selected))| {
            dispatch(
                #[inline(always)]
                || {
                    let tokens = logits.chunks_exact(experts);
                    let tokens = tokens.zip(selected.chunks_exact(top_k));
                    for ((logits, selected), weights) in tokens.zip(weights.chunks_exact_mut(top_k))
                    {
                        gate_weights_of_token(r, logits, selected, weights);
                        for weight in weights {
                            *weight *= r.scaling;
                        }
                    }
                },
            );
        });
}

/// Computes the gate weights of a token before scaling.
#[inline(always)]
fn gate_weights_of_token(r: &Router, logits: &[f32], selected: &[i32], weights: &mut [f32]) {
    for (weight, &expert) in weights.iter_mut().zip(selected) {
        *weight = logits[expert as usize];
    }
    match (r.scoring, r.renormalize) {
        (Scoring::Softmax, false) => {
            let largest = max(logits);
            let total = sum(logits, |l| exp(l - largest));
            for weight in weights {
                *weight = exp(*weight - largest) / total;
            }
        }
        (Scoring::Softmax, true) => {
            // Scores divided by their sum are the softmax of the selected logits. Values that make all scores
            // NaN must do so here, too.
            let ordinary = logits
                .iter()
                .fold(true, |all, &l| all & (l < f32::INFINITY));
            let largest = if ordinary { max(weights) } else { f32::NAN };
            let total = map_sum(weights, |l| exp(l - largest));
            for weight in weights {
                *weight /= total;
            }
        }
        (Scoring::Sigmoid, false) => {
            map_sum(weights, sigmoid);
        }
        (Scoring::Sigmoid, true) => {
            let total = map_sum(weights, sigmoid) + SIGMOID_SUM_EPS;
            for weight in weights {
                *weight /= total;
            }
        }
    }
}

/// Computes `dlogits` (n, E) from `dweights` (n, k); the selection is treated as constant.
pub fn gate_weights_backward(
    r: &Router,
    logits: &[f32],
    selected: &[i32],
    dweights: &[f32],
    dlogits: &mut [f32],
) {
    let n = r.check("router::gate_weights_backward", logits);
    r.check_selected("router::gate_weights_backward: selected", n, selected);
    r.check_assignments("router::gate_weights_backward: dweights", n, dweights.len());
    r.check_logits("router::gate_weights_backward: dlogits", n, dlogits.len());
    let Router { experts, top_k, .. } = *r;
    let chunk = rows_per_chunk(n, experts);
    let assignments = selected.par_chunks(chunk * top_k);
    let assignments = assignments.zip(dweights.par_chunks(chunk * top_k));
    dlogits
        .par_chunks_mut(chunk * experts)
        .zip(logits.par_chunks(chunk * experts))
        .zip(assignments)
        .for_each(|((dlogits, logits), (selected, dweights))| {
            let mut scratch = vec![0.0; top_k];
            dispatch(
                #[inline(always)]
                || {
                    let rows = dlogits.chunks_exact_mut(experts);
                    let rows = rows.zip(logits.chunks_exact(experts));
                    let assignments = selected.chunks_exact(top_k);
                    let assignments = assignments.zip(dweights.chunks_exact(top_k));
                    for ((dlogits, logits), (selected, dweights)) in rows.zip(assignments) {
                        gate_weights_of_token(r, logits, selected, &mut scratch);
                        gate_weights_backward_row(r, logits, selected, &scratch, dweights, dlogits);
                    }
                },
            );
        });
}

#[inline(always)]
fn gate_weights_backward_row(
    r: &Router,
    logits: &[f32],
    selected: &[i32],
    weights: &[f32],
    dweights: &[f32],
    dlogits: &mut [f32],
) {
    // The gradients of softmax and of the division by the sum subtract a component common to all scores.
    let common = match (r.scoring, r.renormalize) {
        (Scoring::Sigmoid, false) => 0.0,
        _ => dot(weights, dweights),
    };
    match (r.scoring, r.renormalize) {
        (Scoring::Softmax, false) => {
            dlogits.copy_from_slice(logits);
            scores(r.scoring, dlogits);
            for dlogit in &mut *dlogits {
                *dlogit *= -common * r.scaling;
            }
        }
        _ => dlogits.fill(0.0),
    }
    let assignments = weights.iter().zip(dweights);
    for (&expert, (&weight, &dweight)) in selected.iter().zip(assignments) {
        let expert = expert as usize;
        let derivative = match (r.scoring, r.renormalize) {
            (Scoring::Softmax, false) => weight * dweight,
            (Scoring::Softmax, true) => weight * (dweight - common),
            (Scoring::Sigmoid, _) => weight * sigmoid(-logits[expert]) * (dweight - common),
        };
        dlogits[expert] += r.scaling * derivative;
    }
}

/// Computes the losses of `logits` (n, E) and `load` (E), the number of tokens of each expert; zeros
/// without tokens.
pub fn losses(r: &Router, logits: &[f32], load: &[i32]) -> AuxiliaryLosses {
    let n = r.check("router::losses", logits);
    r.check_load("router::losses: load", load);
    if n == 0 {
        return AuxiliaryLosses::default();
    }
    let factors = r.load_balancing_factors(n, load);
    let chunks = logits.par_chunks(rows_per_chunk(n, r.experts) * r.experts);
    let partials: Vec<AuxiliaryLosses> = chunks
        .map(|logits| {
            let mut scratch = vec![0.0; r.experts];
            let mut sums = AuxiliaryLosses::default();
            dispatch(
                #[inline(always)]
                || {
                    for logits in logits.chunks_exact(r.experts) {
                        add_losses(r, logits, &factors, &mut scratch, &mut sums);
                    }
                },
            );
            sums
        })
        .collect();
    let mut sums = AuxiliaryLosses::default();
    for partial in partials {
        sums.load_balancing += partial.load_balancing;
        sums.z += partial.z;
        sums.entropy += partial.entropy;
    }
    let n = n as f64;
    AuxiliaryLosses {
        load_balancing: sums.load_balancing / n,
        z: sums.z / n,
        entropy: sums.entropy / n,
    }
}

/// Adds the losses of one token.
#[inline(always)]
fn add_losses(
    r: &Router,
    logits: &[f32],
    factors: &[f32],
    scratch: &mut [f32],
    sums: &mut AuxiliaryLosses,
) {
    scratch.copy_from_slice(logits);
    let largest = max(logits);
    let exponentials = map_sum(scratch, |l| exp(l - largest));
    let log_sum_exp = f64::from(largest) + f64::from(exponentials).ln();
    sums.z += log_sum_exp * log_sum_exp;
    match r.scoring {
        Scoring::Softmax => {
            let total = f64::from(exponentials);
            sums.load_balancing += f64::from(dot(scratch, factors)) / total;
            // Probability 0 times an infinite logarithm counts as 0.
            let term = |e: f32, l: f32, _| if e == 0.0 { 0.0 } else { e * (l - largest) };
            let terms = sum3(scratch, logits, logits, term);
            sums.entropy += total.ln() - f64::from(terms) / total;
        }
        Scoring::Sigmoid => {
            scratch.copy_from_slice(logits);
            let scores = map_sum(scratch, sigmoid);
            let total = f64::from(scores + SIGMOID_SUM_EPS);
            sums.load_balancing += f64::from(dot(scratch, factors)) / total;
            let term = |s: f32| {
                if s < f32::MIN_POSITIVE {
                    0.0
                } else {
                    s * ln(s)
                }
            };
            let terms = f64::from(sum(scratch, term));
            sums.entropy += (f64::from(scores) * total.ln() - terms) / total;
        }
    }
}

/// Computes `dlogits` (n, E) of `dload_balancing * load_balancing + dz * z`, see [`AuxiliaryLosses`]; the load is
/// treated as constant.
pub fn losses_backward(
    r: &Router,
    logits: &[f32],
    load: &[i32],
    dload_balancing: f32,
    dz: f32,
    dlogits: &mut [f32],
) {
    let n = r.check("router::losses_backward", logits);
    r.check_load("router::losses_backward: load", load);
    r.check_logits("router::losses_backward: dlogits", n, dlogits.len());
    let mut factors = r.load_balancing_factors(n, load);
    for factor in &mut factors {
        *factor *= dload_balancing / n as f32;
    }
    let dz = 2.0 * dz / n as f32;
    let chunk = rows_per_chunk(n, r.experts) * r.experts;
    dlogits
        .par_chunks_mut(chunk)
        .zip(logits.par_chunks(chunk))
        .for_each(|(dlogits, logits)| {
            let mut scratch = vec![0.0; r.experts];
            dispatch(
                #[inline(always)]
                || {
                    let rows = dlogits.chunks_exact_mut(r.experts);
                    for (dlogits, logits) in rows.zip(logits.chunks_exact(r.experts)) {
                        losses_backward_row(r.scoring, logits, &factors, dz, &mut scratch, dlogits);
                    }
                },
            );
        });
}

/// Computes the gradient of one token.
#[inline(always)]
fn losses_backward_row(
    scoring: Scoring,
    logits: &[f32],
    factors: &[f32],
    dz: f32,
    scratch: &mut [f32],
    dlogits: &mut [f32],
) {
    dlogits.copy_from_slice(logits);
    let largest = max(logits);
    let total = map_sum(dlogits, |l| exp(l - largest));
    let log_sum_exp = f64::from(largest) + f64::from(total).ln();
    let z_derivative = dz * log_sum_exp as f32;
    match scoring {
        Scoring::Softmax => {
            let mean = dot(dlogits, factors) / total;
            for (dlogit, &factor) in dlogits.iter_mut().zip(factors) {
                *dlogit = *dlogit / total * (factor - mean + z_derivative);
            }
        }
        Scoring::Sigmoid => {
            scratch.copy_from_slice(logits);
            let scores = map_sum(scratch, sigmoid) + SIGMOID_SUM_EPS;
            let mean = dot(scratch, factors) / scores;
            let experts = factors.iter().zip(&*scratch);
            for (dlogit, (&factor, &score)) in dlogits.iter_mut().zip(experts) {
                let balance = score * (1.0 - score) / scores * (factor - mean);
                *dlogit = *dlogit / total * z_derivative + balance;
            }
        }
    }
}

impl Router {
    /// Returns the sizes of the dispatch to the selected experts.
    pub fn layout(&self) -> DispatchLayout {
        DispatchLayout {
            experts: self.experts,
            top_k: self.top_k,
        }
    }

    /// Checks that the router is consistent; returns the number of tokens.
    fn check(&self, name: &str, logits: &[f32]) -> usize {
        let Router {
            experts,
            top_k,
            groups,
            top_groups,
            ..
        } = *self;
        assert!(
            0 < top_k && top_k <= experts,
            "{name}: top_k is {top_k}, must be at least 1 and at most the number of experts, {experts}"
        );
        assert!(
            i32::try_from(experts).is_ok(),
            "{name}: the number of experts, {experts}, does not fit into an i32"
        );
        assert!(
            groups > 0 && experts.is_multiple_of(groups),
            "{name}: {experts} experts cannot be divided into {groups} groups of equal size"
        );
        assert!(
            0 < top_groups && top_groups <= groups,
            "{name}: top_groups is {top_groups}, must be at least 1 and at most the number of groups, {groups}"
        );
        let allowed = top_groups * (experts / groups);
        assert!(
            top_k <= allowed,
            "{name}: top_k is {top_k}, but the best {top_groups} groups have only {allowed} experts"
        );
        assert_eq!(
            logits.len() % experts,
            0,
            "{name}: the length of logits is not a multiple of {experts}"
        );
        logits.len() / experts
    }

    fn check_assignments(&self, name: &str, n: usize, len: usize) {
        let k = self.top_k;
        assert_eq!(len, n * k, "{name} is not ({n}, {k})");
    }

    fn check_selected(&self, name: &str, n: usize, selected: &[i32]) {
        self.check_assignments(name, n, selected.len());
        let experts = self.experts;
        for &expert in selected {
            assert!(
                (expert as usize) < experts,
                "{name}: expert {expert} is not in 0..{experts}"
            );
        }
    }

    fn check_logits(&self, name: &str, n: usize, len: usize) {
        let experts = self.experts;
        assert_eq!(len, n * experts, "{name} is not ({n}, {experts})");
    }

    fn check_load(&self, name: &str, load: &[i32]) {
        let experts = self.experts;
        assert_eq!(load.len(), experts, "{name} is not ({experts})");
    }

    /// Returns `E load_e / (n k)`, which is 1 for uniform load.
    fn load_balancing_factors(&self, n: usize, load: &[i32]) -> Vec<f32> {
        let scale = self.experts as f64 / (n as f64 * self.top_k as f64);
        let factor = |&load: &i32| (scale * f64::from(load)) as f32;
        load.iter().map(factor).collect()
    }
}

#[cfg(test)]
mod tests;
