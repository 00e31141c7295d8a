//! Elementary functions as straight-line code, so that loops over them vectorize.
//!
//! The polynomials are minimax fits made for this crate (Remez exchange in 50-digit arithmetic);
//! range reduction follows W. J. Cody and W. Waite, "Software Manual for the Elementary
//! Functions" (1980). Multiply-adds are explicit: one instruction where available; elsewhere
//! bit-identical, but slow. Selections compute both sides without a branch; NaN stays NaN.

/// 1.5 * 2^23: adding it rounds a small number to the nearest integer, kept in the low bits.
const ROUND: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
const ROOT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// Below this the result is zero; the smallest normal number is exp(-87.34).
const EXP_MIN: f32 = -86.98;
const EXP_MAX: f32 = 88.722_83;

/// Exponential; relative error below 2e-7, 0 below -86.98, infinity above 88.7.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let low = if x < EXP_MIN { EXP_MIN } else { x };
    let c = if low > EXP_MAX { EXP_MAX } else { low };
    let (e, n) = exp_reduced(c);
    // 2^n as 2^(n-1) * 2, since 2^128 alone is not finite.
    let power = f32::from_bits(n.wrapping_add(126) << 23);
    let value = e * power * 2.0;
    let value = if x < EXP_MIN { 0.0 } else { value };
    if x > EXP_MAX { f32::INFINITY } else { value }
}

/// [`exp`] of a number that is at most 88.37, such as a logit minus the maximum; the result is undefined
/// above.
#[inline(always)]
pub(crate) fn exp_bounded(x: f32) -> f32 {
    let c = if x < EXP_MIN { EXP_MIN } else { x };
    let (e, n) = exp_reduced(c);
    let value = e * f32::from_bits(n.wrapping_add(127) << 23);
    if x < EXP_MIN { 0.0 } else { value }
}

/// Returns e^r, and bits of which the lowest hold n, for x = n ln(2) + r and |r| <= ln(2)/2.
#[inline(always)]
fn exp_reduced(x: f32) -> (f32, u32) {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    // e^r = 1 + r + r^2 q(r), to 3e-9.
    let q = 1.395_047_3e-3f32;
    let q = q.mul_add(r, 8.368_882e-3);
    let q = q.mul_add(r, 4.166_620_6e-2);
    let q = q.mul_add(r, 0.166_665_2);
    let q = q.mul_add(r, 0.5);
    (q.mul_add(r * r, r + 1.0), shifted.to_bits())
}

/// Natural logarithm of a positive normal number; error below 2e-7 times the larger of 1 and `|ln(x)|`.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    // x = 2^n m with sqrt(1/2) <= m < sqrt(2).
    let shifted = x.to_bits().wrapping_sub(ROOT_HALF.to_bits());
    let n = (shifted as i32 >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(ROOT_HALF.to_bits()));
    // ln(m) = 2 artanh(s) by its series, s = (m - 1) / (m + 1), to 4e-10.
    let s = (m - 1.0) / (m + 1.0);
    let u = s * s;
    let q = (1.0f32 / 9.0).mul_add(u, 1.0 / 7.0);
    let q = q.mul_add(u, 0.2);
    let q = q.mul_add(u, 1.0 / 3.0);
    let value = n.mul_add(LN2_LOW, 2.0 * (s * u).mul_add(q, s));
    let value = n.mul_add(LN2_HIGH, value);
    if x.is_nan() { x } else { value }
}

/// Logistic function 1 / (1 + exp(-x)).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent; relative error below 4e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let large = (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(x);
    // tanh(x) = x + x^3 q(x^2) on |x| <= 0.65, to 7e-9.
    let u = x * x;
    let q = -5.528_632e-3f32;
    let q = q.mul_add(u, 2.048_331_4e-2);
    let q = q.mul_add(u, -5.369_296_7e-2);
    let q = q.mul_add(u, 0.133_309);
    let q = q.mul_add(u, -0.333_332_63);
    let small = x + x * u * q;
    if a < 0.65 { small } else { large }
}

/// Error function; absolute error below 3e-7.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    let u = x * x;
    // erf(x) = x p(x^2) on |x| <= 1, to 4e-8.
    let p = -5.660_156_6e-4f32;
    let p = p.mul_add(u, 4.924_79e-3);
    let p = p.mul_add(u, -2.671_770_8e-2);
    let p = p.mul_add(u, 0.112_804_12);
    let p = p.mul_add(u, -0.376_123_56);
    let p = p.mul_add(u, std::f32::consts::FRAC_2_SQRT_PI);
    // erf(x) = 1 - exp(-x^2) r(1 / (1 + x/2)) for larger x, to 4e-11 before rounding.
    let v = 1.0 / (1.0 + 0.5 * a);
    let r = -0.230_801_56f32;
    let r = r.mul_add(v, 0.636_679_7);
    let r = r.mul_add(v, -6.446_025e-2);
    let r = r.mul_add(v, 0.396_801_85);
    let r = r.mul_add(v, 0.259_700_7);
    let r = r.mul_add(v, 1.822_474_4e-3);
    let large = (1.0 - exp(-u) * r).copysign(x);
    if a < 1.0 { x * p } else { large }
}

/// Derivative of [`erf`]: 2/sqrt(pi) exp(-x^2).
#[inline(always)]
pub(crate) fn erf_derivative(x: f32) -> f32 {
    std::f32::consts::FRAC_2_SQRT_PI * exp(-(x * x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::erf_f64;

    fn grid(low: f32, high: f32) -> impl Iterator<Item = f32> {
        let steps = 200_000;
        (0..=steps).map(move |i| low + (high - low) * (i as f32 / steps as f32))
    }

    #[test]
    fn exp_is_accurate_over_its_range() {
        for x in grid(-86.9, 88.72) {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "exp({x}): relative error {error:e}");
        }
    }

    #[test]
    fn exp_has_the_right_limits() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(-87.5), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_is_accurate() {
        let powers = grid(-87.3, 88.7).map(|x| x.exp());
        for x in powers.chain(grid(0.5, 2.0)) {
            let exact = f64::from(x).ln();
            let error = (f64::from(ln(x)) - exact).abs();
            assert!(
                error <= 2e-7 * exact.abs().max(1.0),
                "ln({x}): error {error:e}"
            );
        }
        assert_eq!(ln(1.0), 0.0);
        assert!(ln(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_sigmoid_are_accurate() {
        for x in grid(-20.0, 20.0).chain(grid(-1.0, 1.0)) {
            let exact = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - exact).abs();
            assert!(error <= 4e-7 * exact.abs(), "tanh({x}): error {error:e}");
            let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
            let error = (f64::from(sigmoid(x)) - exact).abs();
            assert!(error <= 4e-7 * exact, "sigmoid({x}): error {error:e}");
        }
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert_eq!(sigmoid(f32::NEG_INFINITY), 0.0);
        assert!(tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_accurate() {
        for x in grid(-6.0, 6.0) {
            let error = (f64::from(erf(x)) - erf_f64(f64::from(x))).abs();
            assert!(error < 3e-7, "erf({x}): error {error:e}");
        }
        assert_eq!(erf(f32::INFINITY), 1.0);
        assert_eq!(erf(f32::NEG_INFINITY), -1.0);
        assert!(erf(f32::NAN).is_nan());
    }
}
