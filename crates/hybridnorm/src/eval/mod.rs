//! Evaluation of a model: loss, perplexity, log-likelihoods of continuations, generation.

#[cfg(feature = "data")]
mod evaluation;
mod generate;
#[cfg(feature = "data")]
mod overlap;
#[cfg(feature = "data")]
mod sets;
#[cfg(feature = "data")]
mod text;
#[cfg(feature = "data")]
mod text_bytes;
#[cfg(feature = "data")]
mod text_options;

pub use crate::loss::{Loss, loss, sliding_loss};
pub use crate::score::{Request, Score, TokenScore, score};
#[cfg(feature = "data")]
pub use evaluation::{Evaluation, LossWithCoverage, SetLoss, SetMeans, evaluate};
pub use generate::{Generator, Sampler, Sampling};
#[cfg(feature = "data")]
pub(crate) use sets::named_path;
#[cfg(feature = "data")]
pub use sets::{EvalOptions, EvalSet, open_sets};
#[cfg(feature = "data")]
pub use text::{PromptCoverage, TextGenerator, generate_text};
#[cfg(feature = "data")]
pub use text_options::{TextOptions, TextOverrides};
