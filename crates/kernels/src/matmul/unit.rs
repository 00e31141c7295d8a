//! Vector units of matmuls.

use super::panels::Precision;
use crate::simd::{SimdKernel, run_simd};
use pulp::Simd;

/// Vector unit that multiplies bfloat16 numbers. Results depend on it: units differ in the order of the additions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// AMX, TDPBF16PS.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(super::amx::Token),
    /// AVX-512 BF16, VDPBF16PS.
    #[cfg(target_arch = "x86_64")]
    Avx512(super::avx512::Token),
    /// None: single-precision arithmetic on rounded operands.
    F32,
}

impl Unit {
    /// Returns the fastest unit of this machine.
    #[inline]
    pub(crate) fn best() -> Self {
        #[cfg(test)]
        if is_ignored() {
            return Self::F32;
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let Some(token) = super::amx::Token::new() {
            return Self::Amx(token);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(token) = super::avx512::Token::new() {
            return Self::Avx512(token);
        }
        Self::F32
    }
}

/// True if the environment variable `HYBRIDNORM_IGNORE_BF16_UNITS` asks tests to run as on a machine without units.
#[cfg(test)]
fn is_ignored() -> bool {
    static IS_IGNORED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *IS_IGNORED.get_or_init(|| std::env::var_os("HYBRIDNORM_IGNORE_BF16_UNITS").is_some())
}

/// Returns the name of the vector unit that computes matmuls of a precision on this machine.
pub fn unit_name(precision: Precision) -> &'static str {
    match (precision, Unit::best()) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        (Precision::Bf16, Unit::Amx(_)) => "AMX",
        #[cfg(target_arch = "x86_64")]
        (Precision::Bf16, Unit::Avx512(_)) => "AVX-512 BF16",
        _ => match lanes() {
            16 => "AVX-512",
            8 => "AVX2",
            4 if cfg!(target_arch = "aarch64") => "NEON",
            4 => "128-bit vectors",
            _ => "scalar",
        },
    }
}

/// Returns the single-precision numbers of a vector.
pub(super) fn lanes() -> usize {
    run_simd(Lanes)
}

struct Lanes;

impl SimdKernel for Lanes {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, _: S) -> usize {
        S::F32_LANES
    }
}
