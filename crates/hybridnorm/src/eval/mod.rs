//! What a model can do: loss, perplexity, generation.

mod generate;
mod loss;
mod text;

pub use generate::{Generator, Sampling};
pub use loss::{Loss, loss, open_data};
pub use text::{TextGenerator, write};
