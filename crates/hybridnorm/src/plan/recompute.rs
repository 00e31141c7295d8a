//! Serialization of the key `recompute`, and the check of its budget.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Recompute;
use crate::error::Error;

const BUDGET: &str = "budget:";

impl Recompute {
    /// Checks that an arena of this many bytes is within the budget, if there is one.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the number of bytes that are needed.
    pub fn check(self, arena_bytes: usize) -> crate::Result<()> {
        match self {
            Self::Budget(budget) if arena_bytes as u64 > budget => Err(Error::OutOfMemory {
                needed: arena_bytes as u64,
                available: Some(budget),
                problem: format!(
                    "train.recompute = \"{self}\": even with recomputation, activations, gradients and scratch \
                     of a micro-batch need {arena_bytes} bytes; raise the budget, or use a smaller micro-batch"
                ),
            }),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for Recompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Block => f.write_str("block"),
            Self::Budget(bytes) => write!(f, "{BUDGET}{bytes}"),
        }
    }
}

impl std::str::FromStr for Recompute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let budget = text.strip_prefix(BUDGET).map(str::parse);
        match (text, budget) {
            ("none", _) => Ok(Self::None),
            ("block", _) => Ok(Self::Block),
            (_, Some(Ok(bytes))) => Ok(Self::Budget(bytes)),
            _ => Err(format!(
                "{text:?}, expected \"none\", \"block\", or \"budget:BYTES\" as in \"budget:2000000000\""
            )),
        }
    }
}

impl Serialize for Recompute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Recompute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}
