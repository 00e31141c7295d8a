//! The decoder: embedding, blocks, final norm, head.
//!
//! Shape suffixes: b batch, t position, s cached position, d width, h query heads, g key/value
//! heads, k head width, c packed q·k·v width `(h + 2g)·k`, f feed-forward width, v vocabulary,
//! e experts, n tokens of all sequences, m slots of tokens in experts.
//!
//! Weights are (out, in), as in PyTorch checkpoints. Parameter names are module paths:
//! `embedding`, `blocks.3.attention.qkv`, `blocks.3.ffn.in_norm.gain`, `final_norm.gain`, `head`.

mod attention;
mod block;
mod blueprint;
mod cache;
mod config;
mod decoder;
mod feed_forward;
pub mod init;
pub mod inventory;
pub mod matrices;
mod norm;
pub mod params;
mod qk_clip;
mod recompute;
mod scale;
mod signals;
mod stream;
mod sublayer;

pub use attention::{Attention, Heads, Latent, Positions};
pub use block::Block;
pub use cache::{KvCache, LayerCache};
pub(crate) use config::is_zero;
pub use config::{FfnActivation, MlaConfig, ModelConfig, MoeConfig, MoeScoring};
pub(crate) use decoder::Trace;
pub use decoder::{Decoder, LossOptions};
pub use feed_forward::{FeedForward, Mixture, Mlp, Routed, Routing};
pub use norm::{Norm, NormSite};
pub use recompute::Recompute;
pub use scale::Scale;
pub use signals::Activations;
pub(crate) use stream::State;
pub use sublayer::SubLayer;
