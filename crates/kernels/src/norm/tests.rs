use super::*;
use crate::testing::{
    Rng, assert_all_close, assert_bit_identical_for_any_thread_count, check_gradient, dot_f64,
    erf_f64, to_f64,
};
use proptest::prelude::*;

pub(crate) const GAINS: [Gain; 3] = [Gain::None, Gain::Plain, Gain::OnePlus];

/// Reference by definition, row by row.
pub(crate) fn naive(n: &NormConfig, x: &[f64], params: &[f64]) -> Vec<f64> {
    let channels = n.groups * n.width;
    let bias_at = if n.gain == Gain::None { 0 } else { channels };
    let scalars = &params[bias_at + if n.bias { channels } else { 0 }..];
    let eps = f64::from(n.eps);
    let mut y = Vec::new();
    for (r, x) in x.chunks(n.width).enumerate() {
        let count = n.width as f64;
        let mean = x.iter().sum::<f64>() / count;
        let squares: f64 = x.iter().map(|v| v * v).sum();
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        for (c, &v) in x.iter().enumerate() {
            let h = match n.function {
                NormFn::Rmsnorm => v / (squares / count + eps).sqrt(),
                NormFn::Layernorm => (v - mean) / (variance + eps).sqrt(),
                NormFn::L2 => v / (squares + eps).sqrt(),
                NormFn::Dyt => (scalars[0] * v).tanh(),
                NormFn::Derf => erf_f64(scalars[0] * v + scalars[1]),
            };
            let at = (r % n.groups) * n.width + c;
            let gained = match n.gain {
                Gain::None => h,
                Gain::Plain => params[at] * h,
                Gain::OnePlus => (1.0 + params[at]) * h,
            };
            y.push(gained + if n.bias { params[bias_at + at] } else { 0.0 });
        }
    }
    y
}

fn check(n: &NormConfig, rows: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    let len = rows * n.width;
    let (x, params, dy) = (rng.normal(len), rng.normal(n.params_len()), rng.normal(len));
    let mut y = vec![f32::NAN; len];
    forward(n, &x, &params, &mut y);
    assert_all_close(&y, &naive(n, &to_f64(&x), &to_f64(&params)), 2e-6);
    let (mut halves, mut normed) = (x.iter().map(|x| x / 2.0).collect::<Vec<_>>(), y.clone());
    normed.fill(f32::NAN);
    add_forward(n, &halves.clone(), &mut halves, &params, &mut normed);
    assert_eq!((halves, normed), (x.clone(), y));
    let (mut dx, mut dparams) = (dy.clone(), vec![f32::NAN; params.len()]);
    backward_in_place(n, &x, &params, &mut dx, &mut dparams);
    let (mut sum, mut again) = (vec![0.0; len], vec![f32::NAN; params.len()]);
    backward_add(n, &x, &params, &dy, &mut sum, &mut again);
    assert_eq!((&sum, &again), (&dx, &dparams));
    check_gradient(
        |x| dot_f64(&naive(n, x, &to_f64(&params)), &dy),
        &x,
        &dx,
        1e-5,
    );
    check_gradient(
        |p| dot_f64(&naive(n, &to_f64(&x), p), &dy),
        &params,
        &dparams,
        1e-5,
    );
}

#[test]
fn every_combination_matches_the_reference() {
    for function in NormFn::ALL {
        for gain in GAINS {
            for bias in [false, true] {
                for groups in [1, 3] {
                    let n = NormConfig {
                        function,
                        eps: 1e-3,
                        gain,
                        bias,
                        width: 19,
                        groups,
                    };
                    check(&n, 6, 21);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_shape_matches_the_reference(
        function in prop::sample::select(NormFn::ALL.to_vec()),
        gain in prop::sample::select(GAINS.to_vec()),
        bias in any::<bool>(), width in 2usize..70, groups in 1usize..4, rows in 1usize..7,
        seed in any::<u64>(),
    ) {
        // A width of at least 2 and a large eps avoid tiny variances, which break finite differences.
        check(&NormConfig { function, eps: 1e-1, gain, bias, width, groups }, rows, seed);
    }
}

#[test]
fn many_rows_span_several_chunks() {
    let n = NormConfig {
        function: NormFn::Layernorm,
        eps: 1e-5,
        gain: Gain::Plain,
        bias: true,
        width: 40,
        groups: 7,
    };
    check(&n, 301, 22);
}

#[test]
fn layer_norm_survives_a_large_mean() {
    let n = NormConfig {
        function: NormFn::Layernorm,
        eps: 1e-5,
        gain: Gain::None,
        bias: false,
        width: 64,
        groups: 1,
    };
    let x: Vec<f32> = (0..64).map(|i| 4096.0 + (i % 2) as f32).collect();
    let mut y = vec![0.0; 64];
    forward(&n, &x, &[], &mut y);
    assert_all_close(&y, &naive(&n, &to_f64(&x), &[]), 1e-5);
}

#[test]
fn bit_identical_for_any_thread_count() {
    for function in NormFn::ALL {
        let n = NormConfig {
            function,
            eps: 1e-5,
            gain: Gain::Plain,
            bias: true,
            width: 48,
            groups: 4,
        };
        let mut rng = Rng::new(23);
        let len = 1000 * n.width;
        let (x, params, dy) = (rng.normal(len), rng.normal(n.params_len()), rng.normal(len));
        assert_bit_identical_for_any_thread_count(|| {
            let (mut y, mut dx) = (vec![0.0; len], dy.clone());
            let mut dparams = vec![0.0; params.len()];
            forward(&n, &x, &params, &mut y);
            backward_in_place(&n, &x, &params, &mut dx, &mut dparams);
            let (mut sum, mut normed) = (dy.clone(), vec![0.0; len]);
            add_forward(&n, &x, &mut sum, &params, &mut normed);
            [y, dx, dparams, sum, normed].concat()
        });
    }
}
