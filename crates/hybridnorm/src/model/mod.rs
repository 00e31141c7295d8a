//! The model as a graph builder, and a model with its parameters on an executor.
//!
//! Shape suffixes: b batch, t position, s cached position, d width, h query heads, g key/value
//! heads, k head width, c packed `[q | k | v]` width `(h + 2g)·k`, f feed-forward width, v vocabulary,
//! e experts, n tokens of all sequences, m assignments (token-expert pairs).
//!
//! | file | contents |
//! |---|---|
//! | `block.rs` | decoder block: HybridNorm's equation, sequential and parallel sub-layers |
//! | `sublayer.rs` | norms, skip connection and scales around a sub-layer |
//! | `attention/grouped_query.rs` | grouped-query attention with the norms of q, k and v |
//! | `attention/multi_head_latent.rs` | multi-head latent attention |
//! | `feed_forward/` | dense feed-forward (`mlp.rs`), mixture of experts (`mixture.rs`) |
//! | `norm.rs`, `scale.rs` | declaration and application of a norm or a scale |
//! | `decoder.rs` | the whole model: embedding, blocks, output head, losses |
//! | `model.rs` | [`Model`]: a decoder with its parameters on an executor |
//! | `registry.rs`, `parameter_builder.rs` | parameters: names, shapes, roles, initial values |
//! | `config.rs`, `counts.rs` | [`ModelConfig`]; parameter and FLOP counts |
//! | `taps.rs`, `routing.rs` | statistics of activations and routers |
//! | `balance.rs`, `qk_clip.rs`, `unit_weights.rs` | weight updates outside the optimizer: balancing bias, QK-clip, unit-norm weights |
//! | `cache.rs`, `slots.rs`, `losses.rs`, `load.rs` | KV caches, program of the losses, loading of parameters |
//! | `head.rs` | logits of selected positions |
//! | `states.rs` | residual streams between blocks |
//!
//! Weights are (out, in), as in PyTorch checkpoints. Parameter names are module paths:
//! `embedding`, `blocks.3.attention.qkv`, `blocks.3.ffn.in_norm.gain`, `final_norm.gain`, `head`.

mod attention;
mod balance;
mod bias;
mod block;
mod cache;
mod config;
pub mod counts;
mod decoder;
mod device;
#[cfg(test)]
mod device_tests;
mod feed_forward;
mod head;
mod load;
mod losses;
mod lru_cache;
#[expect(clippy::module_inception, reason = "the model with its parameters")]
mod model;
mod norm;
mod parameter_builder;
mod qk_clip;
pub mod registry;
mod routing;
mod scale;
mod slots;
mod states;
mod sublayer;
pub(crate) mod taps;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod unit_weights;

pub use attention::{Attention, GroupedQueryAttention, MultiHeadLatentAttention, PositionContext};
pub use block::{Block, BlockOutput};
pub use cache::KvCache;
pub(crate) use config::is_zero;
#[cfg(feature = "interop")]
pub(crate) use config::yarn_ramp;
pub use config::{
    Activation, AttentionOverride, Bias, MlaConfig, ModelConfig, MoeConfig, PositionEmbedding,
    Rope, RopeScaling, Scoring,
};
pub use decoder::{Decoder, ForwardOutput, KvCaches, Losses};
pub use device::{Device, UnknownDevice};
pub use feed_forward::{FeedForward, MixtureOfExperts, Mlp, RouterOutputs};
pub(crate) use losses::LossProgram;
pub use model::{BatchLosses, Model};
pub use norm::{Norm, norm};
pub use registry::{PARAMETERS, Param, ParamSpec, Registry, Role};
pub use routing::RouterStatistics;
pub use scale::{Scale, scale};
pub use slots::{SlotCache, SlotTokens};
pub use states::ForwardStates;
pub use sublayer::{Residual, SubLayer};
pub use taps::BlockActivationStats;
