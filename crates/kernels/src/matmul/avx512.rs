//! Matmuls with VDPBF16PS of AVX-512 BF16.

use super::arithmetic::Arithmetic;
use super::panels::{PANEL, PanelRow};
use super::tiles::{Output, TiledMatmul};
use std::arch::x86_64::{
    __cpuid, __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::mem::transmute;
use std::ops::Range;

/// Proof that the processor has the instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Token(());

impl Token {
    /// Returns a token if the processor has the instructions.
    #[inline]
    pub(crate) fn new() -> Option<Self> {
        let is_available = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("fma");
        is_available.then_some(Self(()))
    }

    /// Returns a token if the processor has the instructions, and they are faster than multiply-adds in single precision.
    ///
    /// On AMD they are (Zen 4). On Intel (Emerald Rapids) they compute half as many products in the same time.
    pub(super) fn if_fast() -> Option<Self> {
        let vendor = __cpuid(0);
        let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        let is_fast = name.as_flattened() == b"AuthenticAMD";
        Self::new().filter(|_| is_fast)
    }

    /// Runs a matmul.
    #[inline(always)]
    pub(super) fn run<O: Output>(
        self,
        matmul: TiledMatmul<'_, O>,
        active: impl Fn(Range<usize>) -> (Range<usize>, usize),
    ) {
        // SAFETY: the token proves that the processor has these features.
        unsafe { run(self, matmul, active) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
fn run<O: Output>(
    token: Token,
    mut matmul: TiledMatmul<'_, O>,
    active: impl Fn(Range<usize>) -> (Range<usize>, usize),
) {
    matmul.groups::<_, 8, 3>(token, active);
}

/// Each sum is a chain of dot products of pairs, in the order of the inner dimension.
impl Arithmetic for Token {
    type Right = __m512;
    type Sums = __m512;

    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: the token proves that the processor has the instructions, here and below.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn load(self, row: &PanelRow) -> __m512 {
        // SAFETY: a panel row has the 64 bytes that are read.
        unsafe { _mm512_loadu_ps(row.0.as_ptr().cast()) }
    }

    #[inline(always)]
    fn multiply_add(self, left: u32, right: __m512, sums: __m512) -> __m512 {
        // SAFETY: the types have the same size, and any bits are valid.
        unsafe {
            _mm512_dpbf16_ps(
                sums,
                transmute::<__m512i, __m512bh>(_mm512_set1_epi32(left.cast_signed())),
                transmute::<__m512, __m512bh>(right),
            )
        }
    }

    #[inline(always)]
    fn store(self, sums: __m512) -> [f32; PANEL] {
        let mut out = [0.0; PANEL];
        // SAFETY: `out` has the 64 bytes that are written.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums) };
        out
    }
}
