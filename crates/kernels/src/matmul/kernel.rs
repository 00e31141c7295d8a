//! Kernels of matmuls: the unit that multiplies, and the operands that it takes.

use crate::simd::{SimdKernel, run_simd};
use pulp::Simd;
use std::sync::OnceLock;

/// Precision of the operands of a matmul; sums are always in single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision.
    F32,
    /// bfloat16: operands are rounded to it.
    Bf16,
}

impl Precision {
    /// Returns the number of steps of an inner dimension, its panel rows, on this machine.
    pub fn steps(self, inner: usize) -> usize {
        Kernel::from(self).steps(inner)
    }
}

/// Kernel of a matmul. In bfloat16 results depend on it: units differ in the order of the additions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kernel {
    /// Single-precision numbers on the vector unit.
    F32,
    /// Numbers rounded to bfloat16, in single precision, on the vector unit: for machines without a faster unit for bfloat16.
    Rounded,
    /// Pairs of bfloat16 numbers, AVX-512 BF16: VDPBF16PS.
    #[cfg(target_arch = "x86_64")]
    Avx512(super::avx512::Token),
    /// Pairs of bfloat16 numbers, AMX: TDPBF16PS.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(super::amx::Token),
}

impl From<Precision> for Kernel {
    /// Returns the fastest kernel of this machine.
    #[inline]
    fn from(precision: Precision) -> Self {
        static BF16: OnceLock<Kernel> = OnceLock::new();
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => *BF16.get_or_init(Self::bf16),
        }
    }
}

impl Kernel {
    /// Returns the fastest kernel for bfloat16 of this machine.
    fn bf16() -> Self {
        #[cfg(any(test, feature = "testing"))]
        if let Ok(unit) = std::env::var("HYBRIDNORM_BF16_UNIT") {
            return Self::requested(&unit);
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let Some(token) = super::amx::Token::new() {
            return Self::Amx(token);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(token) = super::avx512::Token::if_fast() {
            return Self::Avx512(token);
        }
        Self::Rounded
    }

    /// Returns the kernel that the environment variable `HYBRIDNORM_BF16_UNIT` requests in tests and benchmarks: `amx`,
    /// emulated on processors without it, `avx512` or `none`.
    #[cfg(any(test, feature = "testing"))]
    fn requested(unit: &str) -> Self {
        match unit {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            "amx" => Self::Amx(super::amx::Token::emulated()),
            #[cfg(target_arch = "x86_64")]
            "avx512" => Self::Avx512(
                super::avx512::Token::new().expect("the processor should have AVX-512 BF16"),
            ),
            "none" => Self::Rounded,
            unit => panic!("HYBRIDNORM_BF16_UNIT: no unit {unit:?} on this machine"),
        }
    }

    /// Returns the precision of its operands.
    pub(super) fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            _ => Precision::Bf16,
        }
    }

    /// Returns the elements of a step.
    #[inline]
    pub(crate) fn group(self) -> usize {
        match self {
            Self::F32 | Self::Rounded => 1,
            #[cfg(target_arch = "x86_64")]
            _ => 2,
        }
    }

    /// Returns the rows of its tallest tile.
    pub(super) fn tile_rows(self) -> usize {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(_) => super::amx::ROWS,
            _ => 8,
        }
    }

    /// Returns the steps of the inner dimension that [`multiply_transposed`](super::multiply_transposed) transposes at
    /// a time.
    pub(super) fn transposed_steps(self) -> usize {
        match self {
            // Its products are so fast that adding them to the output is to be rare.
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(_) => super::tiles::SUM_STEPS,
            _ => 256,
        }
    }

    /// Returns the number of steps of an inner dimension.
    #[inline]
    pub(crate) fn steps(self, inner: usize) -> usize {
        inner.div_ceil(self.group())
    }
}

/// Returns the name of the unit that computes matmuls of a precision on this machine.
pub fn unit_name(precision: Precision) -> &'static str {
    match Kernel::from(precision) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Kernel::Amx(_) => "AMX",
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512(_) => "AVX-512 BF16",
        Kernel::F32 | Kernel::Rounded => match lanes() {
            16 => "AVX-512",
            8 => "AVX2",
            4 if cfg!(target_arch = "aarch64") => "NEON",
            4 => "128-bit vectors",
            _ => "scalar",
        },
    }
}

/// Returns the single-precision numbers of a vector.
fn lanes() -> usize {
    struct Lanes;

    impl SimdKernel for Lanes {
        type Output = usize;

        #[inline(always)]
        fn run<S: Simd, const V: usize>(self, _: S) -> usize {
            S::F32_LANES
        }
    }

    run_simd(Lanes)
}
