//! The output layer and its loss in one: logits exist for a chunk of rows at a time only.
//!
//! For a row `x` with target `t`: `z = logit_scale * w x`, soft-capped to
//! `softcap * tanh(z / softcap)` if a cap is set (Gemma 2, arXiv 2408.00118); the cross-entropy is
//! `logsumexp(z) - z_t` and the z-loss `logsumexp(z)^2` (PaLM, arXiv 2204.02311, section 5).
//! With `p = softmax(z)` the gradient of their weighted sum is
//! `dz = (p * (1 + 2 z_loss logsumexp(z)) - onehot(t)) / divisor`.

use crate::gemm::matmul;
use crate::math::{exp_of_difference, tanh};
use crate::simd::{dispatch, map_sum, max, sum};
use rayon::prelude::*;

/// Most logits in memory at once: 64 MiB.
const MAX_LOGITS: usize = 16 << 20;
/// Bounds of the rows of a chunk: enough for the products to run at full speed.
const ROWS: (usize, usize) = (16, 512);
/// Vocabulary entries of a product for the gradient of `w`, which packs a copy of their logits.
const ENTRIES: usize = 2048;
/// Terms summed in single precision before they enter a double precision sum.
const SUM_BLOCK: usize = 4096;

/// Shape and form of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSpec {
    /// Width of a row of `x`.
    pub width: usize,
    /// Rows of `w`.
    pub vocab: usize,
    /// Factor of the logits.
    pub logit_scale: f32,
    /// Soft cap of the scaled logits.
    pub softcap: Option<f32>,
    /// Weight of the z-loss in the gradient.
    pub z_loss: f32,
    /// What the gradient is divided by, usually the number of tokens of the whole batch.
    pub divisor: f32,
}

/// Sums over the counted rows, not divided by anything; in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Sum of `logsumexp(z) - z_target`.
    pub cross_entropy: f64,
    /// Sum of `logsumexp(z)^2`, without the weight `z_loss`.
    pub z: f64,
    /// Rows with a target.
    pub tokens: usize,
}

/// The loss of `x` (n, width) under `w` (vocab, width) and `targets` (n).
///
/// A target of -1 means a row that is not counted. If `nll` (n) is given, it receives the
/// cross-entropy of each row, 0 for rows that are not counted. `logits` is where a chunk of logits is
/// worked on, at least [`LossSpec::scratch`] long.
///
/// # Panics
///
/// If a target is below -1 or not below `vocab`.
pub fn loss(
    spec: &LossSpec,
    x: &[f32],
    w: &[f32],
    targets: &[i32],
    nll: Option<&mut [f32]>,
    logits: &mut [f32],
) -> LossSums {
    spec.check("cross_entropy::loss", x, w, targets);
    assert!(
        logits.len() >= spec.scratch(targets.len()),
        "cross_entropy::loss: logits is shorter than a chunk"
    );
    let mut rows = vec![Row::default(); targets.len()];
    let chunk = spec.rows_per_chunk();
    let chunks = x.chunks(chunk * spec.width).zip(targets.chunks(chunk));
    for ((x, targets), rows) in chunks.zip(rows.chunks_mut(chunk)) {
        let logits = spec.logits(x, w, targets.len(), logits);
        let each = logits.par_chunks_mut(spec.vocab).zip(targets).zip(rows);
        each.for_each(|((z, &target), row)| *row = spec.reduce(z, target));
    }
    if let Some(nll) = nll {
        assert_eq!(nll.len(), rows.len(), "cross_entropy::loss: nll is not (n)");
        for (nll, row) in nll.iter_mut().zip(&rows) {
            *nll = row.cross_entropy as f32;
        }
    }
    LossSums::of(&rows)
}

/// The loss as in [`loss`], and the gradients of
/// `(cross_entropy + z_loss * z) / divisor` for `x` (n, width) and `w` (vocab, width).
///
/// `logits` is where a chunk of logits is worked on, at least [`LossSpec::scratch`] long.
pub fn loss_and_gradients(
    spec: &LossSpec,
    x: &[f32],
    w: &[f32],
    targets: &[i32],
    dx: &mut [f32],
    dw: &mut [f32],
    logits: &mut [f32],
) -> LossSums {
    spec.check("cross_entropy::loss_and_gradients", x, w, targets);
    assert_eq!(
        dx.len(),
        x.len(),
        "cross_entropy::loss_and_gradients: dx is not as long as x"
    );
    assert_eq!(
        dw.len(),
        w.len(),
        "cross_entropy::loss_and_gradients: dw is not as long as w"
    );
    let LossSpec {
        width,
        vocab,
        logit_scale,
        ..
    } = *spec;
    assert!(
        logits.len() >= spec.scratch(targets.len()),
        "cross_entropy::loss_and_gradients: logits is shorter than a chunk"
    );
    let mut rows = vec![Row::default(); targets.len()];
    let chunk = spec.rows_per_chunk();
    if targets.is_empty() {
        dw.fill(0.0);
    }
    let inputs = x.chunks(chunk * width).zip(targets.chunks(chunk));
    let outputs = rows.chunks_mut(chunk).zip(dx.chunks_mut(chunk * width));
    for (c, ((x, targets), (rows, dx))) in inputs.zip(outputs).enumerate() {
        let n = targets.len();
        let logits = spec.logits(x, w, n, logits);
        let each = logits.par_chunks_mut(vocab).zip(targets).zip(rows);
        each.for_each(|((z, &target), row)| {
            *row = match spec.softcap {
                None => spec.reduce_and_differentiate(z, target),
                Some(cap) => {
                    let row = spec.reduce(z, target);
                    spec.differentiate(z, target, row.log_sum, cap);
                    row
                }
            };
        });
        let (rows, columns, wide) = ((width, 1), (1, vocab), (vocab, 1));
        matmul(
            n,
            width,
            vocab,
            logits,
            wide,
            w,
            rows,
            dx,
            rows,
            logit_scale,
            false,
            true,
        );
        for (block, dw) in dw.chunks_mut(ENTRIES * width).enumerate() {
            matmul(
                dw.len() / width,
                width,
                n,
                &logits[block * ENTRIES..],
                columns,
                x,
                rows,
                dw,
                rows,
                logit_scale,
                c > 0,
                true,
            );
        }
    }
    LossSums::of(&rows)
}

/// The loss of given logits (n, vocab); scale and cap of the spec are not applied.
pub fn loss_of_logits(spec: &LossSpec, logits: &[f32], targets: &[i32]) -> LossSums {
    spec.check_targets("cross_entropy::loss_of_logits", targets);
    let mut rows = vec![Row::default(); targets.len()];
    let each = logits.par_chunks(spec.vocab).zip(targets).zip(&mut rows);
    each.for_each(|((z, &target), row)| *row = reduce(z, target));
    LossSums::of(&rows)
}

/// Gradient of `upstream * (cross_entropy + z_loss * z) / divisor` for given logits (n, vocab), in
/// their place.
pub fn logits_backward(spec: &LossSpec, logits: &mut [f32], targets: &[i32], upstream: f32) {
    spec.check_targets("cross_entropy::logits_backward", targets);
    let each = logits.par_chunks_mut(spec.vocab).zip(targets);
    each.for_each(|(z, &target)| {
        spec.reduce_and_differentiate(z, target);
        z.iter_mut().for_each(|z| *z *= upstream);
    });
}

/// What is kept of one row.
#[derive(Clone, Copy, Default)]
struct Row {
    counted: bool,
    log_sum: f64,
    cross_entropy: f64,
}

/// Reduces the logits of a row.
fn reduce(z: &[f32], target: i32) -> Row {
    let Ok(target) = usize::try_from(target) else {
        return Row::default();
    };
    let (largest, total) = dispatch(
        #[inline(always)]
        || {
            let largest = max(z);
            let block = |z: &[f32]| f64::from(sum(z, |z| exp_of_difference(z - largest)));
            let mut total = 0.0f64;
            for z in z.chunks(SUM_BLOCK) {
                total += block(z);
            }
            (largest, total)
        },
    );
    let log_sum = f64::from(largest) + total.ln();
    Row {
        counted: true,
        log_sum,
        cross_entropy: log_sum - f64::from(z[target]),
    }
}

impl LossSums {
    fn of(rows: &[Row]) -> Self {
        let mut sums = LossSums::default();
        for row in rows.iter().filter(|row| row.counted) {
            sums.cross_entropy += row.cross_entropy;
            sums.z += row.log_sum * row.log_sum;
            sums.tokens += 1;
        }
        sums
    }
}

impl LossSpec {
    fn check(&self, name: &str, x: &[f32], w: &[f32], targets: &[i32]) {
        let LossSpec { width, vocab, .. } = *self;
        let n = targets.len();
        assert!(
            width > 0 && vocab > 0,
            "{name}: width and vocab must not be 0"
        );
        assert_eq!(x.len(), n * width, "{name}: x is not ({n}, {width})");
        assert_eq!(
            w.len(),
            vocab * width,
            "{name}: w is not ({vocab}, {width})"
        );
        self.check_targets(name, targets);
    }

    fn check_targets(&self, name: &str, targets: &[i32]) {
        let vocab = self.vocab;
        for &target in targets {
            let known = target == -1 || usize::try_from(target).is_ok_and(|t| t < vocab);
            assert!(
                known,
                "{name}: target {target} is neither -1 nor below {vocab}"
            );
        }
    }

    fn rows_per_chunk(&self) -> usize {
        (MAX_LOGITS / self.vocab).clamp(ROWS.0, ROWS.1)
    }

    /// Logits that are worked on at once for `rows` rows.
    pub fn scratch(&self, rows: usize) -> usize {
        rows.min(self.rows_per_chunk()).saturating_mul(self.vocab)
    }

    /// Products `x w^T` of `n` rows, scaled; with a soft cap divided by it, ready for the tanh.
    fn logits<'a>(&self, x: &[f32], w: &[f32], n: usize, place: &'a mut [f32]) -> &'a mut [f32] {
        let LossSpec { width, vocab, .. } = *self;
        let place = &mut place[..n * vocab];
        let alpha = self.logit_scale / self.softcap.unwrap_or(1.0);
        let strides = ((width, 1), (1, width), (vocab, 1));
        matmul(
            n, vocab, width, x, strides.0, w, strides.1, place, strides.2, alpha, false, true,
        );
        place
    }

    /// Applies the soft cap to the logits `z` of a row and reduces them.
    fn reduce(&self, z: &mut [f32], target: i32) -> Row {
        if let Some(cap) = self.softcap {
            dispatch(
                #[inline(always)]
                || {
                    map_sum(z, |z| cap * tanh(z));
                },
            );
        }
        reduce(z, target)
    }

    /// [`LossSpec::reduce`] and [`LossSpec::differentiate`] in one, without a soft cap: the
    /// exponentials of the sum are those of the gradient.
    fn reduce_and_differentiate(&self, z: &mut [f32], target: i32) -> Row {
        let Ok(target) = usize::try_from(target) else {
            z.fill(0.0);
            return Row::default();
        };
        let logit = f64::from(z[target]);
        let (largest, total) = dispatch(
            #[inline(always)]
            || {
                let largest = max(z);
                let mut total = 0.0f64;
                for z in z.chunks_mut(SUM_BLOCK) {
                    total += f64::from(map_sum(z, |z| exp_of_difference(z - largest)));
                }
                (largest, total)
            },
        );
        let log_sum = f64::from(largest) + total.ln();
        let weight = self.gradient_weight(log_sum) / total;
        let weight = weight as f32;
        dispatch(
            #[inline(always)]
            || z.iter_mut().for_each(|z| *z *= weight),
        );
        z[target] -= 1.0 / self.divisor;
        Row {
            counted: true,
            log_sum,
            cross_entropy: log_sum - logit,
        }
    }

    /// Factor of the probabilities in the gradient.
    fn gradient_weight(&self, log_sum: f64) -> f64 {
        (1.0 + 2.0 * f64::from(self.z_loss) * log_sum) / f64::from(self.divisor)
    }

    /// Replaces the logits of a row, capped at `cap`, by the gradient for the products
    /// `logit_scale * w x`.
    fn differentiate(&self, z: &mut [f32], target: i32, log_sum: f64, cap: f32) {
        let Ok(target) = usize::try_from(target) else {
            return z.fill(0.0);
        };
        let (weight, log_sum) = (self.gradient_weight(log_sum) as f32, log_sum as f32);
        let slope = |z: f32| 1.0 - (z / cap) * (z / cap);
        let at_target = slope(z[target]);
        dispatch(
            #[inline(always)]
            || {
                for z in z.iter_mut() {
                    *z = weight * exp_of_difference(*z - log_sum) * slope(*z);
                }
            },
        );
        z[target] -= at_target / self.divisor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, check_gradient, close, same_bits_on_any_pool, wide};
    use proptest::prelude::*;

    fn with_gradients(
        spec: &LossSpec,
        x: &[f32],
        w: &[f32],
        targets: &[i32],
        dx: &mut [f32],
        dw: &mut [f32],
    ) -> LossSums {
        let mut logits = vec![f32::NAN; spec.scratch(targets.len())];
        loss_and_gradients(spec, x, w, targets, dx, dw, &mut logits)
    }

    /// (sum of cross-entropy, sum of squared log-sums), from the definition.
    fn naive(spec: &LossSpec, x: &[f64], w: &[f64], targets: &[i32]) -> (f64, f64) {
        let mut sums = (0.0, 0.0);
        for (x, &target) in x.chunks(spec.width).zip(targets).filter(|(_, t)| **t >= 0) {
            let logit = |w: &[f64]| {
                let z =
                    f64::from(spec.logit_scale) * w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                spec.softcap
                    .map_or(z, |cap| f64::from(cap) * (z / f64::from(cap)).tanh())
            };
            let z: Vec<f64> = w.chunks(spec.width).map(logit).collect();
            let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            sums.0 += log_sum - z[target as usize];
            sums.1 += log_sum * log_sum;
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
        let (cross_entropy, z) = naive(spec, &wide(&x), &wide(&w), &targets);
        close(sums.cross_entropy as f32, cross_entropy, 2e-6);
        close(sums.z as f32, z, 2e-6);
        assert_eq!(sums.tokens, targets.iter().filter(|t| **t >= 0).count());
        let mut nll = vec![f32::NAN; n];
        assert_eq!(
            loss(
                spec,
                &x,
                &w,
                &targets,
                Some(&mut nll),
                &mut vec![0.0; spec.scratch(n)]
            ),
            sums
        );
        assert!(
            nll.iter()
                .zip(&targets)
                .all(|(nll, t)| (*nll == 0.0) == (*t < 0))
        );
        close(nll.iter().sum::<f32>(), cross_entropy, 1e-5);
        let objective = |x: &[f64], w: &[f64]| {
            let (cross_entropy, z) = naive(spec, x, w, &targets);
            (cross_entropy + f64::from(spec.z_loss) * z) / f64::from(spec.divisor)
        };
        check_gradient(|x| objective(x, &wide(&w)), &x, &dx, 2e-5);
        check_gradient(|w| objective(&wide(&x), w), &w, &dw, 2e-5);
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
            check(&LossSpec { width, vocab, logit_scale, softcap, z_loss, divisor }, n, seed);
        }
    }

    const PLAIN: LossSpec = LossSpec {
        width: 3,
        vocab: 7,
        logit_scale: 1.0,
        softcap: None,
        z_loss: 1e-3,
        divisor: 5.0,
    };

    #[test]
    fn several_chunks_accumulate() {
        check(&PLAIN, 2 * ROWS.1 + 5, 81);
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
        let mut logits = vec![0.0; spec.scratch(targets.len())];
        let sums = loss(&spec, &x, &w, &targets, None, &mut logits);
        close(
            sums.cross_entropy as f32,
            naive(&spec, &wide(&x), &wide(&w), &targets).0,
            1e-6,
        );
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
    fn without_counted_rows_all_is_zero() {
        let (mut dx, mut dw) = ([1.0; 6], [1.0; 21]);
        let sums = with_gradients(&PLAIN, &[1.0; 6], &[1.0; 21], &[-1, -1], &mut dx, &mut dw);
        assert_eq!((sums, dx, dw), (LossSums::default(), [0.0; 6], [0.0; 21]));
        dw.fill(1.0);
        with_gradients(&PLAIN, &[], &[1.0; 21], &[], &mut [], &mut dw);
        assert_eq!(dw, [0.0; 21]);
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
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
        same_bits_on_any_pool(|| {
            let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
            let sums = with_gradients(&spec, &x, &w, &targets, &mut dx, &mut dw);
            let rest = (sums.cross_entropy - f64::from(sums.cross_entropy as f32)) as f32;
            [dx, dw, vec![sums.cross_entropy as f32, rest, sums.z as f32]].concat()
        });
    }

    #[test]
    #[should_panic(expected = "target 9 is neither -1 nor below 7")]
    fn an_unknown_target_is_refused() {
        loss(&PLAIN, &[0.0; 3], &[0.0; 21], &[9], None, &mut [0.0; 7]);
    }
}
