//! AdamW in one pass over parameters, gradients and moments, and the sum of squares for clipping.
//!
//! The update is that of `torch.optim.AdamW` (Loshchilov, Hutter, arXiv 1711.05101, algorithm 2,
//! with the learning rate multiplying the decay).

use crate::parallel::ELEMENTS;
use crate::simd::{dispatch, sum_squares_f64};
use rayon::prelude::*;

/// Hyperparameters of one step.
///
/// They are kept in double precision, as PyTorch keeps them: `1 - beta2` computed from a rounded
/// 0.999 is off by one part in 10^5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of the gradient.
    pub beta1: f64,
    /// Decay of the mean of its square.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// `1 - beta1^t` for step t, counted from 1.
    pub bias_correction1: f32,
    /// `1 - beta2^t`.
    pub bias_correction2: f32,
}

/// One step in place on parameters `p`, moments `m` and `v`, from gradients `g`, all of one length.
///
/// With `g' = grad_scale g`:
/// `p *= 1 - lr weight_decay`, `m = beta1 m + (1 - beta1) g'`, `v = beta2 v + (1 - beta2) g'^2`,
/// `p -= lr / bias_correction1 * m / (sqrt(v) / sqrt(bias_correction2) + eps)`.
pub fn step(a: &AdamW, grad_scale: f32, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    assert_eq!(g.len(), p.len(), "adamw::step: g is not as long as p");
    assert_eq!(m.len(), p.len(), "adamw::step: m is not as long as p");
    assert_eq!(v.len(), p.len(), "adamw::step: v is not as long as p");
    let factors = Factors::new(a, grad_scale);
    let moments = m.par_chunks_mut(ELEMENTS).zip(v.par_chunks_mut(ELEMENTS));
    let values = p.par_chunks_mut(ELEMENTS).zip(g.par_chunks(ELEMENTS));
    values.zip(moments).for_each(|((p, g), (m, v))| {
        dispatch(
            #[inline(always)]
            || factors.apply(p, g, m, v),
        );
    });
}

struct Factors {
    grad_scale: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    fresh1: f32,
    fresh2: f32,
    step_size: f32,
    root_correction: f32,
    eps: f32,
}

impl Factors {
    fn new(a: &AdamW, grad_scale: f32) -> Self {
        Factors {
            grad_scale,
            keep: (1.0 - a.lr * a.weight_decay) as f32,
            beta1: a.beta1 as f32,
            beta2: a.beta2 as f32,
            fresh1: (1.0 - a.beta1) as f32,
            fresh2: (1.0 - a.beta2) as f32,
            step_size: (a.lr / f64::from(a.bias_correction1)) as f32,
            root_correction: f64::from(a.bias_correction2).sqrt() as f32,
            eps: a.eps as f32,
        }
    }

    #[inline(always)]
    fn apply(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * self.grad_scale;
            *m = self.beta1 * *m + self.fresh1 * g;
            *v = self.beta2 * *v + self.fresh2 * g * g;
            let denominator = v.sqrt() / self.root_correction + self.eps;
            *p = *p * self.keep - self.step_size * *m / denominator;
        }
    }
}

/// Sum of squares, in double precision and in a fixed order.
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
    use crate::testing::{Rng, all_close, same_bits_on_any_pool, wide};
    use proptest::prelude::*;

    fn at_step(t: i32) -> AdamW {
        let (beta1, beta2) = (0.9, 0.95);
        AdamW {
            lr: 1e-2,
            beta1,
            beta2,
            eps: 1e-8,
            weight_decay: 0.1,
            bias_correction1: (1.0 - beta1.powi(t)) as f32,
            bias_correction2: (1.0 - beta2.powi(t)) as f32,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn ten_steps_match_the_reference(len in 0usize..200, scale in 0.1f32..2.0) {
            let mut rng = Rng::new(51);
            let mut p = rng.normal(len);
            let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
            let (mut p64, mut m64, mut v64) = (wide(&p), wide(&m), wide(&v));
            for t in 1..=10 {
                let a = at_step(t);
                let g = rng.normal(len);
                step(&a, scale, &mut p, &g, &mut m, &mut v);
                for i in 0..len {
                    let g = f64::from(scale) * f64::from(g[i]);
                    p64[i] *= 1.0 - a.lr * a.weight_decay;
                    m64[i] = a.beta1 * m64[i] + (1.0 - a.beta1) * g;
                    v64[i] = a.beta2 * v64[i] + (1.0 - a.beta2) * g * g;
                    let m_hat = m64[i] / (1.0 - a.beta1.powi(t));
                    let v_hat = v64[i] / (1.0 - a.beta2.powi(t));
                    p64[i] -= a.lr * m_hat / (v_hat.sqrt() + a.eps);
                }
            }
            all_close(&p, &p64, 1e-6);
            all_close(&m, &m64, 1e-6);
            all_close(&v, &v64, 1e-6);
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let len = 100_000;
        let mut rng = Rng::new(52);
        let (p, g) = (rng.normal(len), rng.normal(len));
        same_bits_on_any_pool(|| {
            let (mut p, mut m, mut v) = (p.clone(), vec![0.1; len], vec![0.2; len]);
            step(&at_step(3), 0.7, &mut p, &g, &mut m, &mut v);
            let norm = sum_squares(&g);
            let halves = [norm as f32, (norm - f64::from(norm as f32)) as f32];
            [p, m, v, halves.to_vec()].concat()
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
