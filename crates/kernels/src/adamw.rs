//! AdamW over all parameters at once, and gradient clipping by global norm.
//!
//! The update is that of `torch.optim.AdamW` (Loshchilov, Hutter, arXiv 1711.05101, algorithm 2,
//! with the learning rate multiplying the decay).

use crate::floats::narrow;
use crate::parallel::ELEMENTS;
use crate::simd::{dispatch, sum_squares_f64};
use half::bf16;
use rayon::prelude::*;
use std::ops::Add;

/// Hyperparameters of one step.
///
/// Learning rate, betas and epsilon are in double precision, as in PyTorch: `1 - beta2` computed from a rounded 0.999
/// is off by one part in 10^5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Factor on the gradients, see [`clip_coefficient`].
    pub clip_coefficient: f32,
    /// `1 - beta1^t` for step t, counted from 1.
    pub bias_correction1: f32,
    /// `1 - beta2^t`.
    pub bias_correction2: f32,
}

/// Returns the factor that clips gradients of global norm `norm` to the norm `max_norm`:
/// `min(1, max_norm / (norm + 1e-6))`, as in PyTorch's `clip_grad_norm_`, or 1 if `max_norm` is 0 (no clipping).
pub fn clip_coefficient(max_norm: f64, norm: f64) -> f64 {
    match max_norm {
        0.0 => 1.0,
        max_norm => (max_norm / (norm + 1e-6)).min(1.0),
    }
}

/// A parameter with its gradient and optimizer state; all slices have the same length, but the copy may be empty.
#[derive(Debug)]
pub struct ParameterState<'a> {
    /// Parameter values.
    pub p: &'a mut [f32],
    /// Gradient.
    pub g: &'a [f32],
    /// First moment, the mean of the gradient.
    pub m: &'a mut [f32],
    /// Second moment, the mean of its square.
    pub v: &'a mut [f32],
    /// Copy of the values, rounded to bfloat16, which is updated too; empty for none.
    pub copy: &'a mut [bf16],
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

/// Euclidean norms of one parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ParameterNorms {
    /// Norm of the update.
    pub update: f64,
    /// Norm of the values before the step.
    pub value: f64,
}

/// Updates all parameters in place by one step; returns their norms in the order of the parameters.
///
/// With `g' = clip_coefficient g`:
/// `p *= 1 - lr weight_decay`, `m = beta1 m + (1 - beta1) g'`, `v = beta2 v + (1 - beta2) g'^2`,
/// `p -= lr / bias_correction1 * m / (sqrt(v) / sqrt(bias_correction2) + eps)`.
pub fn step(a: &AdamW, parameters: &mut [ParameterState]) -> Vec<ParameterNorms> {
    for parameter in &*parameters {
        let n = parameter.p.len();
        assert_eq!(parameter.g.len(), n, "adamw::step: g is not as long as p");
        assert_eq!(parameter.m.len(), n, "adamw::step: m is not as long as p");
        assert_eq!(parameter.v.len(), n, "adamw::step: v is not as long as p");
        let copy = parameter.copy.len();
        assert!(
            copy == 0 || copy == n,
            "adamw::step: the copy is not as long as p"
        );
    }
    // All parameters in one parallel loop, so that a small one does not wait for threads separately.
    let norms = parameters.par_iter_mut().map(|parameter| {
        let squares = StepCoefficients::new(a, parameter.weight_decay).apply_all(parameter);
        ParameterNorms::from(squares)
    });
    norms.collect()
}

/// Sums of squares of the values before a step and of the update.
#[derive(Clone, Copy, Default)]
pub(crate) struct Squares {
    pub(crate) update: f64,
    pub(crate) value: f64,
}

impl From<Squares> for ParameterNorms {
    fn from(squares: Squares) -> Self {
        Self {
            update: squares.update.sqrt(),
            value: squares.value.sqrt(),
        }
    }
}

impl Add for Squares {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            update: self.update + other.update,
            value: self.value + other.value,
        }
    }
}

/// Elements whose update is buffered for its norm, so that they stay in the L1 cache.
pub(crate) const BLOCK: usize = 1024;

struct StepCoefficients {
    clip_coefficient: f32,
    decay_factor: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    step_size: f32,
    sqrt_bias_correction2: f32,
    eps: f32,
}

impl StepCoefficients {
    fn new(a: &AdamW, weight_decay: f64) -> Self {
        StepCoefficients {
            clip_coefficient: a.clip_coefficient,
            decay_factor: (1.0 - a.lr * weight_decay) as f32,
            beta1: a.beta1 as f32,
            beta2: a.beta2 as f32,
            one_minus_beta1: (1.0 - a.beta1) as f32,
            one_minus_beta2: (1.0 - a.beta2) as f32,
            step_size: (a.lr / f64::from(a.bias_correction1)) as f32,
            sqrt_bias_correction2: f64::from(a.bias_correction2).sqrt() as f32,
            eps: a.eps as f32,
        }
    }

    fn apply_all(&self, parameter: &mut ParameterState) -> Squares {
        let mut copies = parameter.copy.chunks_mut(ELEMENTS);
        let moments = parameter.m.chunks_mut(ELEMENTS);
        let moments = moments.zip(parameter.v.chunks_mut(ELEMENTS));
        let values = parameter.p.chunks_mut(ELEMENTS);
        let values = values.zip(parameter.g.chunks(ELEMENTS));
        let chunks: Vec<_> = values
            .zip(moments)
            .map(|(values, moments)| (values, moments, copies.next().unwrap_or_default()))
            .collect();
        let chunks = chunks.into_par_iter().map(|((p, g), (m, v), copy)| {
            dispatch(
                #[inline(always)]
                || self.apply(p, g, m, v, copy),
            )
        });
        let squares: Vec<Squares> = chunks.collect();
        squares.into_iter().fold(Squares::default(), Squares::add)
    }

    #[inline(always)]
    fn apply(
        &self,
        p: &mut [f32],
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        copy: &mut [bf16],
    ) -> Squares {
        let mut copies = copy.chunks_mut(BLOCK);
        let mut squares = Squares::default();
        let mut updates = [0.0; BLOCK];
        let moments = m.chunks_mut(BLOCK).zip(v.chunks_mut(BLOCK));
        let values = p.chunks_mut(BLOCK).zip(g.chunks(BLOCK));
        for ((p, g), (m, v)) in values.zip(moments) {
            squares.value += sum_squares_f64(p);
            let updates = &mut updates[..p.len()];
            let moments = m.iter_mut().zip(v);
            for (((p, &g), (m, v)), update) in p.iter_mut().zip(g).zip(moments).zip(&mut *updates) {
                let g = g * self.clip_coefficient;
                *m = self.beta1 * *m + self.one_minus_beta1 * g;
                *v = self.beta2 * *v + self.one_minus_beta2 * g * g;
                let denominator = v.sqrt() / self.sqrt_bias_correction2 + self.eps;
                let new = *p * self.decay_factor - self.step_size * *m / denominator;
                *update = new - *p;
                *p = new;
            }
            squares.update += sum_squares_f64(updates);
            if let Some(copy) = copies.next() {
                narrow(p, copy);
            }
        }
        squares
    }
}

/// Returns the sum of squares, in double precision and in a fixed order.
pub fn sum_squares(x: &[f32]) -> f64 {
    let chunk = |x: &[f32]| {
        dispatch(
            #[inline(always)]
            || sum_squares_f64(x),
        )
    };
    let partials: Vec<f64> = x.par_chunks(ELEMENTS).map(chunk).collect();
    partials.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Rng, assert_all_close, assert_bit_identical_for_any_thread_count, to_f64,
    };
    use proptest::prelude::*;

    fn at_step(t: i32, clip_coefficient: f32) -> AdamW {
        let (beta1, beta2) = (0.9, 0.95);
        AdamW {
            lr: 1e-2,
            beta1,
            beta2,
            eps: 1e-8,
            clip_coefficient,
            bias_correction1: (1.0 - beta1.powi(t)) as f32,
            bias_correction2: (1.0 - beta2.powi(t)) as f32,
        }
    }

    /// Parameters with their moments; weight decay applies to every second one, copies are kept of all others.
    struct Model {
        p: Vec<Vec<f32>>,
        copies: Vec<Vec<bf16>>,
        m: Vec<Vec<f32>>,
        v: Vec<Vec<f32>>,
    }

    impl Model {
        fn new(rng: &mut Rng, lens: &[usize]) -> Self {
            let zeros: Vec<_> = lens.iter().map(|&n| vec![0.0; n]).collect();
            let copied = |(i, &n): (usize, &usize)| if i.is_multiple_of(2) { 0 } else { n };
            let copies = lens.iter().enumerate().map(copied);
            Self {
                p: lens.iter().map(|&n| rng.normal(n)).collect(),
                copies: copies.map(|n| vec![bf16::ZERO; n]).collect(),
                m: zeros.clone(),
                v: zeros,
            }
        }

        fn decay(i: usize) -> f64 {
            if i.is_multiple_of(2) { 0.1 } else { 0.0 }
        }

        fn step(&mut self, a: &AdamW, gradients: &[Vec<f32>]) -> Vec<ParameterNorms> {
            let moments = self.m.iter_mut().zip(&mut self.v);
            let parts = self.p.iter_mut().zip(gradients).zip(moments);
            let parts = parts.zip(&mut self.copies).enumerate();
            let mut parameters: Vec<ParameterState> = parts
                .map(|(i, (((p, g), (m, v)), copy))| ParameterState {
                    p,
                    g,
                    m,
                    v,
                    copy,
                    weight_decay: Self::decay(i),
                })
                .collect();
            let norms = step(a, &mut parameters);
            for (p, copy) in self.p.iter().zip(&self.copies) {
                // As bits: not a number is not equal to itself.
                let rounded = p.iter().map(|p| bf16::from_f32(*p).to_bits());
                assert!(copy.is_empty() || rounded.eq(copy.iter().map(|x| x.to_bits())));
            }
            norms
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn ten_steps_match_the_reference(
            lens in prop::collection::vec(0usize..200, 1..5),
            clip_coefficient in prop::sample::select(vec![1.0f32, 0.7, 0.01]),
        ) {
            let mut rng = Rng::new(51);
            let mut model = Model::new(&mut rng, &lens);
            let wide_all = |all: &[Vec<f32>]| all.iter().map(|x| to_f64(x)).collect::<Vec<_>>();
            let (mut p64, mut m64, mut v64) =
                (wide_all(&model.p), wide_all(&model.m), wide_all(&model.v));
            for t in 1..=10 {
                let a = at_step(t, clip_coefficient);
                let gradients: Vec<_> = lens.iter().map(|&n| rng.normal(n)).collect();
                let before = model.p.clone();
                let norms = model.step(&a, &gradients);
                for i in 0..lens.len() {
                    let norm = |x: &[f32]| to_f64(x).iter().map(|v| v * v).sum::<f64>().sqrt();
                    let moved: Vec<f32> = before[i].iter().zip(&model.p[i]).map(|(b, p)| p - b).collect();
                    let ParameterNorms { update, value } = norms[i];
                    prop_assert!((update - norm(&moved)).abs() <= 1e-10 * update);
                    prop_assert!((value - norm(&before[i])).abs() <= 1e-10 * value);
                }
                for i in 0..lens.len() {
                    for j in 0..lens[i] {
                        let g = f64::from(clip_coefficient) * f64::from(gradients[i][j]);
                        let (p, m, v) = (&mut p64[i][j], &mut m64[i][j], &mut v64[i][j]);
                        *p *= 1.0 - a.lr * Model::decay(i);
                        *m = a.beta1 * *m + (1.0 - a.beta1) * g;
                        *v = a.beta2 * *v + (1.0 - a.beta2) * g * g;
                        let m_hat = *m / (1.0 - a.beta1.powi(t));
                        let v_hat = *v / (1.0 - a.beta2.powi(t));
                        *p -= a.lr * m_hat / (v_hat.sqrt() + a.eps);
                    }
                }
            }
            for i in 0..lens.len() {
                assert_all_close(&model.p[i], &p64[i], 1e-6);
                assert_all_close(&model.m[i], &m64[i], 1e-6);
                assert_all_close(&model.v[i], &v64[i], 1e-6);
            }
        }
    }

    #[test]
    fn clipping_limits_the_norm_and_leaves_smaller_gradients_unchanged() {
        assert_eq!(clip_coefficient(0.0, 1e30), 1.0);
        assert_eq!(clip_coefficient(0.7, 0.69), 1.0);
        assert_eq!(clip_coefficient(0.7, 0.0), 1.0);
        assert!((clip_coefficient(0.7, 1e3) * 1e3 - 0.7).abs() < 1e-6);
    }

    #[test]
    fn non_finite_values_propagate() {
        let mut model = Model::new(&mut Rng::new(54), &[3, 4]);
        let norms = model.step(&at_step(1, 1.0), &[vec![1.0; 3], vec![f32::NAN; 4]]);
        assert!(norms[0].update.is_finite() && norms[1].update.is_nan());
        assert!(model.p[0].iter().all(|p| p.is_finite()));
        assert!(model.p[1].iter().all(|p| p.is_nan()));
    }

    #[test]
    fn bit_identical_for_any_thread_count() {
        let lens = [100_000, 7, 40_000];
        let gradients = lens.map(|n| Rng::new(52).normal(n)).to_vec();
        assert_bit_identical_for_any_thread_count(|| {
            let mut model = Model::new(&mut Rng::new(53), &lens);
            let norms = model.step(&at_step(3, 0.7), &gradients);
            let halves = |x: f64| [x as f32, (x - f64::from(x as f32)) as f32];
            let norms = norms
                .iter()
                .flat_map(|parameter| [parameter.update, parameter.value]);
            let exact: Vec<f32> = norms.flat_map(halves).collect();
            let Model { p, m, v, .. } = model;
            [p, m, v, vec![exact]].concat().concat()
        });
    }

    #[test]
    fn sum_of_squares_is_exact_to_double_precision() {
        let x = Rng::new(53).normal(50_000);
        let exact: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
        assert!((sum_squares(&x) - exact).abs() < 1e-10 * exact);
        assert_eq!(sum_squares(&[]), 0.0);
        assert!(sum_squares(&[1e30, 1e30]).is_finite());
    }
}
