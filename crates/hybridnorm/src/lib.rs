//! Train transformer language models, and measure where to normalize.
//!
//! The positions of norms in a block, and the input of its skip connections, are configured by one value, a
//! [`placement::Placement`]. 49 published ones have names, HybridNorm
//! ([arXiv 2503.04598](https://arxiv.org/abs/2503.04598)) among them; any other is built from the same fields, checked,
//! printed as equations and trained.
//!
//! # Placement
//!
//! ```
//! use hybridnorm::placement::{Explanation, Formula, Scale, named};
//!
//! let mut placement = named("hybridnorm")?;
//! placement.block.ffn.out_scale = Scale::Formula(Formula::InvSqrtLayer);
//! let equations = Explanation::of(&placement)?.to_text();
//! assert!(equations.contains("1/√l"), "{equations}");
//! # Ok::<(), hybridnorm::Error>(())
//! ```
//!
//! # Training
//!
//! ```
//! # #[cfg(feature = "model")]
//! # fn main() -> hybridnorm::Result<()> {
//! use hybridnorm::{Device, data::TokenDataset};
//! use hybridnorm::train::{Config, ModelSection, Start, TrainSection, Trainer, TrainingData};
//!
//! let model = ModelSection::new("hybridnorm").with_d_model(16).with_n_layers(1).with_n_heads(2).with_d_ff(32);
//! let train = TrainSection::default().with_steps(5).with_batch_size(2).with_seq_len(8);
//! let config = Config::default().with_model(model).with_train(train);
//! let tokens: Vec<u32> = (0..500).map(|i| i % 10).collect();
//! let data = TrainingData::new(&config, TokenDataset::from_tokens(&tokens, 8, 10)?, None);
//! # let folder = tempfile::tempdir().unwrap();
//! # let run = folder.path().join("run");
//! let mut trainer = Trainer::open_with_data(config, data, &run, Start::Fresh, Device::Cpu, &mut |_| {})?;
//! let outcome = trainer.run(&false.into(), &mut |_| {})?;
//! assert!(outcome.finished && outcome.checkpoint.exists());
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "model"))]
//! # fn main() {}
//! ```
//!
//! Call these functions inside [`threads::run`], as the command line does: otherwise every op wakes the calling thread,
//! which is slower. Every command is a function of this crate.
//!
//! # Modules
//!
//! | module | contents | feature |
//! |---|---|---|
//! | [`placement`] | specification of norms, skips and scales: named placements, overrides by layer, validation, equations | |
//! | [`kernels`] | CPU kernels over slices: attention, norms, matmuls, optimizers | |
//! | [`model`] | the decoder: [`ModelConfig`](model::ModelConfig), parameters, forward pass, key/value cache | `model` |
//! | [`train`] | configuration, [`Trainer`](train::Trainer), optimizers with gradient clipping, schedules, atomic checkpoints, metrics | `model` |
//! | [`eval`] | loss on data sets, log-likelihoods of continuations, generation | `model` |
//! | [`tasks`] | downstream tasks: files of requests, metrics with standard errors, results | `data` |
//! | [`graph`], [`ops`], [`passes`], [`plan`], [`exec`] | the compiler: symbolic graph, differentiable ops, passes (gradients, fusion), memory plan, executors | `model` |
//! | [`data`] | token datasets and batches; with `data` also text in many formats, tokenizers, prepared datasets | `model`, `data` |
//! | [`interop`] | import of checkpoints of the official code and of Hugging Face, export to `transformers` | `interop` |
//! | [`lab`] | quickstart, probe, replay, and studies with their statistics | `lab` |
//! | [`report`] | one offline HTML page of recorded results | `report` |
//! | [`bench`](mod@bench) | benchmarks: training step, decoding, ops, placements | `bench` |
//! | [`tensors`], [`files`], [`memory`], [`threads`] | safetensors files, atomic writes and locks, resources | `model` |
//!
//! # Where things are implemented
//!
//! | what | file in `crates/hybridnorm/src` |
//! |---|---|
//! | HybridNorm's equation in the forward pass | `model/block.rs`; norms and skip around a sub-layer: `SubLayer::forward` in `model/sublayer.rs`; norms of q, k and v: `model/attention/grouped_query.rs` |
//! | its definition as a placement | `placement/named/hybrid.rs` |
//! | gradient clipping | [`clip_coefficient`](kernels::adamw::clip_coefficient), the factor on gradients in the updates of [`kernels::adamw`] and [`kernels::muon`] |
//! | atomic writing of a checkpoint | `save` in `train/checkpoint.rs`, with `files/staged.rs` |
//! | a new norm function | `ops/norm.rs`, `placement/norm_functions.rs`, and `src/norm.rs` of the kernels |
//! | a norm of the model: its parameters and its op | `model/norm.rs` |
//! | backward pass | `passes/gradients.rs`, and `backward` of each op |
//! | training loop and step | `train/trainer.rs`, `train/step.rs` |
//!
//! All features are on by default. With default features off, `model` alone compiles no tokenizers and no charts.
//!
//! Functions fail with an [`Error`] whose variants callers can match on: a key that does not exist, a value out
//! of range, a setting without effect, a corrupt file, a loss that is not finite.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(feature = "bench")]
pub mod bench;
#[cfg(feature = "model")]
pub mod data;
pub mod error;
#[cfg(feature = "model")]
pub mod eval;
#[cfg(feature = "model")]
pub mod exec;
#[cfg(feature = "model")]
pub mod files;
#[cfg(feature = "model")]
pub mod format_number;
#[cfg(feature = "model")]
pub mod graph;
#[cfg(feature = "interop")]
pub mod interop;
#[cfg(feature = "lab")]
pub mod lab;
#[cfg(feature = "model")]
mod loss;
#[cfg(feature = "model")]
pub mod machine;
#[cfg(feature = "model")]
pub mod memory;
#[cfg(feature = "model")]
pub mod model;
#[cfg(feature = "model")]
pub mod omissions;
#[cfg(feature = "model")]
pub mod ops;
pub mod parse_errors;
#[cfg(feature = "model")]
pub mod passes;
pub mod placement;
#[cfg(feature = "model")]
pub mod plan;
#[cfg(feature = "report")]
pub mod report;
#[cfg(feature = "model")]
mod score;
#[cfg(feature = "data")]
pub mod tasks;
#[cfg(feature = "model")]
pub mod tensors;
pub mod text;
#[cfg(feature = "model")]
pub mod threads;
#[cfg(feature = "model")]
pub mod train;
#[cfg(feature = "data")]
pub mod untrusted;

pub use error::{Error, Result};
/// CPU kernels, and the types that specify norms, attention and activations to [`ops`].
pub use hybridnorm_kernels as kernels;
#[cfg(feature = "model")]
pub use model::Device;
/// Re-export of `serde_json`, whose `Value` appears in configurations: block overrides, and `norm` and `init` of a
/// model.
pub use serde_json;
