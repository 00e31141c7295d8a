//! Elements in single precision or in bfloat16.
//!
//! A bfloat16 number is the upper half of a single-precision one: 8 bits of exponent, 8 of significand. Widening is
//! exact; narrowing rounds to the nearest number, ties to the even one.

use crate::matmul::Precision;
use crate::parallel::ELEMENTS;
use crate::simd::dispatch;
use half::bf16;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Elements that are read.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// Elements that are written.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

impl<'a> Floats<'a> {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the elements in single precision.
    ///
    /// # Panics
    /// If there are more or fewer elements of `out`.
    #[inline(always)]
    pub fn widen(self, out: &mut [f32]) {
        match self {
            Self::F32(x) => out.copy_from_slice(x),
            Self::Bf16(x) => {
                assert_eq!(x.len(), out.len(), "elements to widen");
                widen(x, out);
            }
        }
    }

    /// Returns the elements in single precision: in place, or widened.
    pub(crate) fn to_f32(self) -> Cow<'a, [f32]> {
        match self {
            Self::F32(x) => Cow::Borrowed(x),
            Self::Bf16(x) => {
                let mut out = vec![0.0; x.len()];
                let chunks = out.par_chunks_mut(ELEMENTS).zip(x.par_chunks(ELEMENTS));
                chunks.for_each(|(out, x)| {
                    dispatch(
                        #[inline(always)]
                        || widen(x, out),
                    )
                });
                Cow::Owned(out)
            }
        }
    }

    /// Returns the elements, which must be in single precision.
    #[inline(always)]
    pub(crate) fn single(self) -> &'a [f32] {
        match self {
            Self::F32(x) => x,
            Self::Bf16(_) => panic!("the elements are not in single precision"),
        }
    }

    /// Returns the elements behind the first `n`.
    pub(crate) fn skip(self, n: usize) -> Self {
        self.slice(n..self.len())
    }

    /// Returns a part of the elements.
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[range]),
            Self::Bf16(x) => Self::Bf16(&x[range]),
        }
    }
}

impl<'a> FloatsMut<'a> {
    /// Splits `n` elements of a precision from single-precision scratch memory; returns the rest of it.
    ///
    /// # Panics
    /// If there is less than [`FloatsMut::scratch_len`].
    pub fn of_scratch(
        precision: Precision,
        scratch: &'a mut [f32],
        n: usize,
    ) -> (Self, &'a mut [f32]) {
        let (part, rest) = scratch.split_at_mut(Self::scratch_len(precision, n));
        let part = match precision {
            Precision::F32 => Self::F32(part),
            Precision::Bf16 => Self::Bf16(&mut bytemuck::cast_slice_mut(part)[..n]),
        };
        (part, rest)
    }

    /// Returns the single-precision elements of scratch memory that `n` elements of a precision take.
    pub fn scratch_len(precision: Precision, n: usize) -> usize {
        match precision {
            Precision::F32 => n,
            Precision::Bf16 => n.div_ceil(2),
        }
    }

    /// Returns the precision of the elements.
    pub fn precision(&self) -> Precision {
        match self {
            Self::F32(_) => Precision::F32,
            Self::Bf16(_) => Precision::Bf16,
        }
    }

    /// Returns the elements for reading.
    pub fn as_floats(&self) -> Floats<'_> {
        match self {
            Self::F32(x) => Floats::F32(x),
            Self::Bf16(x) => Floats::Bf16(x),
        }
    }

    /// Returns the elements for writing.
    pub fn reborrow(&mut self) -> FloatsMut<'_> {
        match self {
            Self::F32(x) => FloatsMut::F32(x),
            Self::Bf16(x) => FloatsMut::Bf16(x),
        }
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.as_floats().len()
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Overwrites the elements with rounded ones.
    ///
    /// # Panics
    /// If there are more or fewer of them.
    pub fn copy_from<'b>(self, x: impl Into<Floats<'b>>) {
        let x = x.into();
        assert_eq!(self.len(), x.len(), "copy_from: lengths differ");
        match (x, self) {
            (Floats::F32(x), Self::F32(y)) => y.copy_from_slice(x),
            (Floats::Bf16(x), Self::Bf16(y)) => y.copy_from_slice(x),
            (Floats::F32(x), Self::Bf16(y)) => dispatch(
                #[inline(always)]
                || narrow(x, y),
            ),
            (Floats::Bf16(x), Self::F32(y)) => dispatch(
                #[inline(always)]
                || widen(x, y),
            ),
        }
    }

    /// Splits the elements in two.
    pub(crate) fn split_at(self, middle: usize) -> (Self, Self) {
        match self {
            Self::F32(x) => {
                let (a, b) = x.split_at_mut(middle);
                (Self::F32(a), Self::F32(b))
            }
            Self::Bf16(x) => {
                let (a, b) = x.split_at_mut(middle);
                (Self::Bf16(a), Self::Bf16(b))
            }
        }
    }
}

macro_rules! from_slices {
    ($($variant:ident: $number:ty),+) => {$(
        impl<'a> From<&'a [$number]> for Floats<'a> {
            fn from(x: &'a [$number]) -> Self {
                Self::$variant(x)
            }
        }

        impl<'a> From<&'a mut [$number]> for FloatsMut<'a> {
            fn from(x: &'a mut [$number]) -> Self {
                Self::$variant(x)
            }
        }

        impl<'a> From<&'a Vec<$number>> for Floats<'a> {
            fn from(x: &'a Vec<$number>) -> Self {
                Self::$variant(x)
            }
        }

        impl<'a> From<&'a mut Vec<$number>> for FloatsMut<'a> {
            fn from(x: &'a mut Vec<$number>) -> Self {
                Self::$variant(x)
            }
        }

        impl<'a, const N: usize> From<&'a [$number; N]> for Floats<'a> {
            fn from(x: &'a [$number; N]) -> Self {
                Self::$variant(x)
            }
        }

        impl<'a, const N: usize> From<&'a mut [$number; N]> for FloatsMut<'a> {
            fn from(x: &'a mut [$number; N]) -> Self {
                Self::$variant(x)
            }
        }
    )+};
}

from_slices!(F32: f32, Bf16: bf16);

/// Number that rows of results are rounded to.
pub(crate) trait Float: Copy + Default + Send + Sync {
    /// True if numbers in single precision are rounded.
    const IS_ROUNDED: bool;

    /// Rounds `x`.
    fn narrow(x: &[f32], out: &mut [Self]);
    /// Returns the number in single precision.
    fn widen(self) -> f32;
}

impl Float for f32 {
    const IS_ROUNDED: bool = false;

    #[inline(always)]
    fn narrow(x: &[f32], out: &mut [Self]) {
        out.copy_from_slice(x);
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Float for bf16 {
    const IS_ROUNDED: bool = true;

    #[inline(always)]
    fn narrow(x: &[f32], out: &mut [Self]) {
        narrow(x, out);
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Rounds a number to bfloat16. In integer arithmetic without branches, which compilers vectorize; NaN stays NaN.
#[inline(always)]
pub(crate) fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // The sum would carry a NaN into the exponent or the sign.
    let quiet = bits | 0x0040_0000;
    let is_nan = 0u32.wrapping_sub(u32::from(bits & 0x7fff_ffff > 0x7f80_0000));
    let bits = rounded & !is_nan | quiet & is_nan;
    bf16::from_bits((bits >> 16) as u16)
}

/// Widens `x` to single precision.
#[inline(always)]
pub(crate) fn widen(x: &[bf16], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = x.widen();
    }
}

/// Rounds `x` to bfloat16 in place, if `precision` is that: what an op stores between two others is rounded also where
/// one kernel runs both.
#[inline(always)]
pub(crate) fn round_to(precision: Precision, x: &mut [f32]) {
    if precision == Precision::Bf16 {
        x.iter_mut().for_each(|x| *x = round(*x).widen());
    }
}

/// Rounds `x` to bfloat16.
#[inline(always)]
pub(crate) fn narrow(x: &[f32], out: &mut [bf16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = round(*x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn rounding_is_to_nearest_even() {
        let mut rng = Rng::new(4);
        let mut all: Vec<f32> = rng.normal(4000);
        // Ties, the largest numbers, and what is not a number.
        all.extend((0..64).map(|i| f32::from_bits(0x3f80_0000 + i * 0x4000)));
        all.extend([
            0.0,
            -0.0,
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            f32::NEG_INFINITY,
        ]);
        all.extend([f32::MIN_POSITIVE, 1e-40, f32::EPSILON]);
        for x in all {
            assert_eq!(round(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
        }
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff] {
            assert!(round(f32::from_bits(bits)).is_nan(), "{bits:x}");
        }
    }

    #[test]
    fn widening_and_narrowing_are_inverse() {
        let bits = (0..=u16::MAX).map(bf16::from_bits);
        let all: Vec<bf16> = bits.filter(|x| !x.is_nan()).collect();
        let (mut wide, mut back) = (vec![0.0; all.len()], vec![bf16::ZERO; all.len()]);
        widen(&all, &mut wide);
        narrow(&wide, &mut back);
        for ((x, wide), back) in all.iter().zip(&wide).zip(&back) {
            assert_eq!(x.to_f32().to_bits(), wide.to_bits());
            assert_eq!(x.to_bits(), back.to_bits());
        }
    }
}
