//! Evaluation of a model: loss, perplexity, generation.

mod generate;
#[cfg(feature = "data")]
mod reading;
#[cfg(feature = "data")]
mod sets;
#[cfg(feature = "data")]
mod shared;
#[cfg(feature = "data")]
mod text;

pub use crate::loss::{Loss, loss};
pub use generate::{Generator, Sampling};
#[cfg(feature = "data")]
pub use reading::{TextOptions, TextOverrides};
#[cfg(feature = "data")]
pub use sets::{EvalOptions, EvalSet, Evaluation, LossWithCoverage, SetLoss, evaluate, open_sets};
#[cfg(feature = "data")]
pub use text::{PromptCoverage, TextGenerator, generate_text};
