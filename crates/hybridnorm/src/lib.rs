//! Train transformer language models and measure where to normalize.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod data;
pub mod error;
pub mod files;
pub mod placement;

pub use error::{Error, Result};
