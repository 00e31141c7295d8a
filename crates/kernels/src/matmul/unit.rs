//! Vector units for bfloat16.

/// Vector unit that multiplies bfloat16 numbers. Results depend on it: units differ in the order of the additions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// AVX-512 BF16, VDPBF16PS.
    #[cfg(target_arch = "x86_64")]
    Avx512(super::avx512::Token),
    /// None: widened to single precision.
    Widened,
}

impl Unit {
    /// Returns the fastest unit of this machine.
    #[inline]
    pub(crate) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(token) = super::avx512::Token::new() {
            return Self::Avx512(token);
        }
        Self::Widened
    }
}
