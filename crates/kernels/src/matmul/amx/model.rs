//! Plain model of TDPBF16PS: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, "Operation".

/// Returns an element of the sums after the instruction, for the pairs of a row and a column.
///
/// First and second elements of the pairs are two chains of fused multiply-adds that begin at zero; their sum is added.
/// Operands and results that are subnormal are zero.
pub(super) fn tdpbf16ps(sum: f32, pairs: impl Iterator<Item = (u32, u32)>) -> f32 {
    let mut chains = [0.0; 2];
    for (left, right) in pairs {
        let [left, right] = [left, right].map(|pair| [pair << 16, pair & 0xffff_0000]);
        for ((chain, left), right) in chains.iter_mut().zip(left).zip(right) {
            *chain = multiply_add(f32::from_bits(left), f32::from_bits(right), *chain);
        }
    }
    let [first, second] = chains;
    multiply_add(1.0, sum, multiply_add(1.0, first, second))
}

/// Returns `a b + c` rounded to nearest even, with subnormal operands and results as zeros of their sign.
pub(super) fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    // Results that are subnormal before rounding, but not if they were rounded to 24 bits, are not: the threshold is
    // halfway between the smallest normal number and the next smaller one of 24 bits. `exact` is not exact for all
    // operands, but so close to the threshold it is.
    const THRESHOLD: f64 = f32::MIN_POSITIVE as f64 * (1.0 - f32::EPSILON as f64 / 4.0);
    let [a, b, c] = [a, b, c].map(|x| if x.is_subnormal() { x * 0.0 } else { x });
    let exact = f64::from(a).mul_add(f64::from(b), f64::from(c));
    match a.mul_add(b, c) {
        sum if exact.abs() < THRESHOLD => sum * 0.0,
        sum => sum,
    }
}
