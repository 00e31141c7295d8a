//! Keys of the precision of training.

use serde::{Deserialize, Serialize};

use crate::graph::DType;

/// Format of floating-point numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatFormat {
    /// Single precision, 24 bits of significand.
    #[default]
    F32,
    /// bfloat16, 8 bits of significand.
    Bf16,
}

impl FloatFormat {
    /// Returns the element type.
    pub(super) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::Bf16,
        }
    }

    /// True for the default.
    pub(super) fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}
