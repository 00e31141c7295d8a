//! Multiply-adds on a panel row, by precision and instruction set.

use super::panels::{PANEL, PanelRow};
use crate::simd::vectors_mut;
use pulp::Simd;

/// Multiply-add of one step of the left operand with a panel row.
pub(super) trait Arithmetic: Copy {
    /// A panel row in registers.
    type Right: Copy;
    /// Single-precision sums of 16 columns.
    type Sums: Copy;

    /// Returns sums of zero.
    fn zero(self) -> Self::Sums;
    /// Loads a panel row.
    fn load(self, row: &PanelRow) -> Self::Right;
    /// Adds the products of one step: an element of the left operand, or a pair of them.
    fn multiply_add(self, left: u32, right: Self::Right, sums: Self::Sums) -> Self::Sums;
    /// Returns the sums as numbers.
    fn store(self, sums: Self::Sums) -> [f32; PANEL];
}

/// One chain of fused multiply-adds per column, so that the bits do not depend on the vector width.
#[derive(Clone, Copy)]
pub(super) struct Fused<S, const V: usize>(pub(super) S);

impl<S: Simd, const V: usize> Arithmetic for Fused<S, V> {
    type Right = [S::f32s; V];
    type Sums = [S::f32s; V];

    #[inline(always)]
    fn zero(self) -> Self::Sums {
        [self.0.splat_f32s(0.0); V]
    }

    #[inline(always)]
    fn load(self, row: &PanelRow) -> Self::Right {
        let bits = S::as_simd_u32s(&row.0).0;
        let bits: &[S::u32s; V] = bits.try_into().expect("a panel row holds V vectors");
        let mut out = self.zero();
        for v in 0..V {
            out[v] = self.0.transmute_f32s_u32s(bits[v]);
        }
        out
    }

    #[inline(always)]
    fn multiply_add(self, left: u32, right: Self::Right, mut sums: Self::Sums) -> Self::Sums {
        let left = self.0.splat_f32s(f32::from_bits(left));
        for v in 0..V {
            sums[v] = self.0.mul_add_f32s(left, right[v], sums[v]);
        }
        sums
    }

    #[inline(always)]
    fn store(self, sums: Self::Sums) -> [f32; PANEL] {
        let mut out = [0.0; PANEL];
        *vectors_mut::<S, V>(&mut out) = sums;
        out
    }
}
