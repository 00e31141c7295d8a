use super::*;
use crate::floats::round_to;
use crate::testing::{
    BF16_ERROR, Bounded, Rng, assert_bit_identical_for_any_thread_count, assert_close,
    assert_within, check_gradient, to_f64,
};
use proptest::prelude::*;

fn with_gradients(
    spec: &LossSpec,
    x: &[f32],
    w: &[f32],
    targets: &[i32],
    dx: &mut [f32],
    dw: &mut [f32],
) -> LossSums {
    let mut logits = vec![f32::NAN; spec.scratch_len(targets.len())];
    loss_and_gradients(spec, x, w, targets, dx, dw, &mut logits)
}

/// Returns the sums of the cross-entropy and of the squared log-sum-exp, by definition.
fn naive(spec: &LossSpec, x: &[f64], w: &[f64], targets: &[i32]) -> (f64, f64) {
    let mut sums = (0.0, 0.0);
    for (x, &target) in x.chunks(spec.width).zip(targets).filter(|(_, t)| **t >= 0) {
        let logit = |w: &[f64]| {
            let z = f64::from(spec.logit_scale) * w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            spec.softcap
                .map_or(z, |cap| f64::from(cap) * (z / f64::from(cap)).tanh())
        };
        let z: Vec<f64> = w.chunks(spec.width).map(logit).collect();
        let log_sum_exp = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        sums.0 += log_sum_exp - z[target as usize];
        sums.1 += log_sum_exp * log_sum_exp;
    }
    sums
}

fn check(spec: &LossSpec, n: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    let (x, w) = (
        rng.normal(n * spec.width),
        rng.normal(spec.vocab * spec.width),
    );
    let mut targets = rng.below(spec.vocab, n);
    targets.iter_mut().step_by(3).for_each(|t| *t = -1);
    let (mut dx, mut dw) = (vec![f32::NAN; x.len()], vec![f32::NAN; w.len()]);
    let sums = with_gradients(spec, &x, &w, &targets, &mut dx, &mut dw);
    let (cross_entropy, z) = naive(spec, &to_f64(&x), &to_f64(&w), &targets);
    assert_close(sums.cross_entropy as f32, cross_entropy, 2e-6);
    assert_close(sums.z as f32, z, 2e-6);
    assert_eq!(sums.tokens, targets.iter().filter(|t| **t >= 0).count());
    let mut nll = vec![f32::NAN; n];
    assert_eq!(
        loss(
            spec,
            &x,
            &w,
            &targets,
            Some(&mut nll),
            &mut vec![0.0; spec.scratch_len(n)]
        ),
        sums
    );
    let rows = x.chunks(spec.width).zip(&targets).zip(&nll);
    for ((x, target), nll) in rows {
        let (want, _) = naive(spec, &to_f64(x), &to_f64(&w), &[*target]);
        assert_close(*nll, want, 2e-6);
        assert!(*target >= 0 || *nll == 0.0);
    }
    assert_close(nll.iter().sum::<f32>(), cross_entropy, 1e-5);
    let objective = |x: &[f64], w: &[f64]| {
        let (cross_entropy, z) = naive(spec, x, w, &targets);
        (cross_entropy + f64::from(spec.z_loss) * z) / f64::from(spec.divisor)
    };
    check_gradient(|x| objective(x, &to_f64(&w)), &x, &dx, 2e-5);
    check_gradient(|w| objective(&to_f64(&x), w), &w, &dw, 2e-5);
}

/// Checks loss and gradients in bfloat16 for operands that it holds, so that only the gradients of logits are rounded.
fn check_bf16(spec: &LossSpec, n: usize, seed: u64) {
    let precision = Precision::Bf16;
    let spec = LossSpec { precision, ..*spec };
    let mut rng = Rng::new(seed);
    let (mut x, mut w) = (
        rng.normal(n * spec.width),
        rng.normal(spec.vocab * spec.width),
    );
    round_to(precision, &mut x);
    round_to(precision, &mut w);
    let targets = rng.below(spec.vocab, n);
    let (mut dx, mut dw) = (vec![f32::NAN; x.len()], vec![f32::NAN; w.len()]);
    let sums = with_gradients(&spec, &x, &w, &targets, &mut dx, &mut dw);
    let (x, w) = (to_f64(&x), to_f64(&w));
    assert_close(
        sums.cross_entropy as f32,
        naive(&spec, &x, &w, &targets).0,
        2e-6,
    );
    let mut want_dx = vec![Bounded::default(); x.len()];
    let mut want_dw = vec![Bounded::default(); w.len()];
    let rows = x.chunks(spec.width).zip(want_dx.chunks_mut(spec.width));
    for ((x, dx), target) in rows.zip(&targets) {
        let scale = f64::from(spec.logit_scale);
        let products = w.chunks(spec.width);
        let products = products.map(|w| scale * w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>());
        let (logits, slopes): (Vec<f64>, Vec<f64>) = products
            .map(|u| match spec.softcap.map(f64::from) {
                Some(cap) => (cap * (u / cap).tanh(), 1.0 - (u / cap).tanh().powi(2)),
                None => (u, 1.0),
            })
            .unzip();
        let log_sum_exp = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
        let of_sum = 1.0 + 2.0 * f64::from(spec.z_loss) * log_sum_exp;
        for (j, (logit, slope)) in logits.iter().zip(&slopes).enumerate() {
            let hit = f64::from(j == *target as usize);
            let gradient = of_sum * (logit - log_sum_exp).exp() - hit;
            let gradient = gradient * slope * scale / f64::from(spec.divisor);
            for c in 0..spec.width {
                for (sum, term) in [
                    (&mut dx[c], gradient * w[j * spec.width + c]),
                    (&mut want_dw[j * spec.width + c], gradient * x[c]),
                ] {
                    sum.add(term, BF16_ERROR * term.abs());
                }
            }
        }
    }
    assert_within(&dx, &want_dx);
    assert_within(&dw, &want_dw);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn matches_the_reference(
        n in 2usize..8, width in 1usize..12, vocab in 2usize..60,
        logit_scale in prop::sample::select(vec![1.0f32, 0.3]),
        softcap in prop::sample::select(vec![None, Some(3.0f32)]),
        z_loss in prop::sample::select(vec![0.0f32, 1e-2]), seed in any::<u64>(),
    ) {
        let divisor = n as f32;
        let spec = LossSpec { width, vocab, logit_scale, softcap, z_loss, divisor, precision: Precision::F32 };
        check(&spec, n, seed);
        check_bf16(&spec, n, seed);
    }
}

const PLAIN: LossSpec = LossSpec {
    width: 3,
    vocab: 7,
    logit_scale: 1.0,
    softcap: None,
    z_loss: 1e-3,
    divisor: 5.0,
    precision: Precision::F32,
};

#[test]
fn several_chunks_accumulate() {
    check(&PLAIN, 2 * ROWS.1 + 5, 81);
    check_bf16(&PLAIN, 2 * ROWS.1 + 5, 81);
    // Many logits per row, so that a chunk holds few rows.
    let spec = LossSpec {
        vocab: 300_000,
        width: 2,
        ..PLAIN
    };
    assert_eq!(spec.rows_per_chunk(), 55);
    let mut rng = Rng::new(82);
    let (x, w) = (rng.normal(120 * 2), rng.normal(600_000));
    let targets = rng.below(300_000, 120);
    let mut logits = vec![0.0; spec.scratch_len(targets.len())];
    let sums = loss(&spec, &x, &w, &targets, None, &mut logits);
    assert_close(
        sums.cross_entropy as f32,
        naive(&spec, &to_f64(&x), &to_f64(&w), &targets).0,
        1e-6,
    );
}

#[test]
fn weights_in_bfloat16_give_the_loss_of_rounded_ones() {
    // Two blocks of the vocabulary.
    let (vocab, width, n) = (ENTRIES + 5, 24, 140);
    let spec = LossSpec {
        vocab,
        width,
        precision: Precision::Bf16,
        ..PLAIN
    };
    let mut rng = Rng::new(83);
    let (x, w) = (rng.normal(n * width), rng.normal(vocab * width));
    let narrow: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
    let targets = rng.below(vocab, n);
    let loss = |w: Floats| {
        let mut logits = vec![0.0; spec.scratch_len(n)];
        loss(&spec, &x, w, &targets, None, &mut logits)
    };
    assert_eq!(loss(Floats::F32(&w)), loss(Floats::Bf16(&narrow)));
}

#[test]
fn large_logits_do_not_overflow() {
    let spec = LossSpec {
        width: 1,
        vocab: 3,
        z_loss: 0.0,
        divisor: 1.0,
        ..PLAIN
    };
    let (mut dx, mut dw) = ([0.0], [0.0; 3]);
    let sums = with_gradients(&spec, &[1.0], &[1e4, -1e4, 0.0], &[1], &mut dx, &mut dw);
    assert_eq!(sums.cross_entropy, 2e4);
    assert_eq!(dw, [1.0, -1.0, 0.0]);
}

#[test]
fn rows_without_targets_give_zeros() {
    let (mut dx, mut dw) = ([1.0; 6], [1.0; 21]);
    let sums = with_gradients(&PLAIN, &[1.0; 6], &[1.0; 21], &[-1, -1], &mut dx, &mut dw);
    assert_eq!((sums, dx, dw), (LossSums::default(), [0.0; 6], [0.0; 21]));
    dw.fill(1.0);
    with_gradients(&PLAIN, &[], &[1.0; 21], &[], &mut [], &mut dw);
    assert_eq!(dw, [0.0; 21]);
}

#[test]
fn bit_identical_for_any_thread_count() {
    let spec = LossSpec {
        width: 40,
        vocab: 500,
        softcap: Some(5.0),
        ..PLAIN
    };
    let n = ROWS.1 + 100;
    let mut rng = Rng::new(83);
    let (x, w) = (rng.normal(n * 40), rng.normal(500 * 40));
    let targets = rng.below(500, n);
    for precision in [Precision::F32, Precision::Bf16] {
        let spec = LossSpec { precision, ..spec };
        assert_bit_identical_for_any_thread_count(|| {
            let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
            let sums = with_gradients(&spec, &x, &w, &targets, &mut dx, &mut dw);
            let rest = (sums.cross_entropy - f64::from(sums.cross_entropy as f32)) as f32;
            [dx, dw, vec![sums.cross_entropy as f32, rest, sums.z as f32]].concat()
        });
    }
}

#[test]
#[should_panic(expected = "target 9 is neither -1 nor in 0..7")]
fn target_out_of_range_is_rejected() {
    loss(&PLAIN, &[0.0; 3], &[0.0; 21], &[9], None, &mut [0.0; 7]);
}
