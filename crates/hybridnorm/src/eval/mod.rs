//! Evaluation of a model: loss, perplexity, generation.

mod generate;
mod loss;
mod reading;
mod sets;
mod shared;
mod text;

pub use generate::{Generator, Sampling};
pub use loss::{Loss, loss};
pub use reading::{TextOverrides, TextReading};
pub use sets::{EvalOptions, EvalSet, Evaluation, Measured, SetLoss, measure, open_sets};
pub use text::{PromptAccount, TextGenerator, write};
