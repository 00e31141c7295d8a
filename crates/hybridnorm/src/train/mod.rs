//! Training: configuration, loop, optimizer with gradient clipping, schedule, atomic checkpoints, metrics.
//!
//! | file | contents |
//! |---|---|
//! | `config.rs` | sections of the configuration file |
//! | `trainer.rs`, `trainer/` | [`Trainer`], the training loop: opening, resuming, steps, files |
//! | `step.rs`, `gradients.rs` | programs of an optimizer step, gradients of the objective |
//! | `optimizer.rs`, `schedule.rs` | AdamW and Muon (both clip gradients in their update ops, `ops/adamw.rs` and `ops/muon.rs`), learning rate |
//! | `checkpoint.rs` | checkpoints, written atomically |
//! | `run_directory.rs`, `run_directory_guard.rs` | the directory of a run and its lock |
//! | `segments.rs`, `history.rs` | segments of steps run by one process, configuration changes between them |
//! | `sources.rs` | training and validation data |
//! | `metrics.rs`, `layers.rs`, `records.rs` | `metrics.jsonl`, `layers.jsonl` |
//! | `recorder.rs`, `spikes.rs`, `tensorboard.rs` | flight recorder, spike detection, event files |
//! | `inventory.rs` | memory estimate |

pub mod checkpoint;
pub(crate) mod config;
#[cfg(test)]
mod copies_tests;
#[cfg(test)]
mod device_tests;
mod gradients;
pub mod history;
pub mod inventory;
pub mod layers;
pub mod metrics;
mod optimizer;
pub mod recorder;
pub mod records;
pub mod run_directory;
mod run_directory_guard;
mod schedule;
pub mod segments;
pub mod sources;
pub mod spikes;
mod step;
pub mod tensorboard;
mod trainer;

pub use checkpoint::Checkpoint;
#[cfg(feature = "data")]
pub use config::EvalSection;
pub use config::{
    Config, DataSection, FloatFormat, InitSection, LogSection, ModelSection, TrainSection,
    placement_from_file,
};
pub use gradients::{Gradients, PassStats, gradients};
pub use optimizer::{Optimizer, OptimizerConfig, OptimizerKind, ParameterNorms, StepNorms};
pub use schedule::{Schedule, ScheduleConfig, ScheduleKind};
pub use sources::{DataCoverage, DataOrder, TrainingData};
pub use step::{StepOutcome, StepShape, TrainingStep};
pub use trainer::{Event, OpenOptions, Outcome, Start, State, Step, Trainer};
#[cfg(feature = "lab")]
pub(crate) use trainer::{check_inputs, no_validation};
