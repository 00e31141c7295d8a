//! HTTP server for models of `hybridnorm`, compatible with OpenAI's API, with continuous batching.
//!
//! | module | contents |
//! |---|---|
//! | [`engine`] | queue, continuous batching, sampling, stop strings, log-probabilities; without HTTP |
//! | `http` | routes, JSON types, streams, limits, metrics; [`serve`] |
//! | [`chat`] | chat templates |
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod chat;
pub mod engine;
mod http;
mod options;

pub use http::{Started, serve};
pub use options::ServerOptions;
