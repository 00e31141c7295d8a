//! What a model can do: loss, perplexity, generation.

mod generate;
mod loss;
mod sets;
mod text;

pub use generate::{Generator, Sampling};
pub use loss::{Loss, loss};
pub use sets::{EvalOptions, EvalSet, Evaluation, Measured, SetLoss, measure, open_sets};
pub use text::{TextGenerator, write};
