//! Training: configuration, loop, optimizer, schedule, checkpoints, metrics.

pub mod checkpoint;
mod claim;
pub(crate) mod config;
mod gradients;
pub mod history;
pub mod layers;
pub mod metrics;
mod optimizer;
pub mod recorder;
pub mod rows;
pub mod run_directory;
mod schedule;
pub mod segments;
pub mod sources;
pub mod spikes;
pub mod tensorboard;
mod trainer;

pub use checkpoint::Checkpoint;
pub use config::{
    Config, DataSection, InitSection, LogSection, ModelSection, TrainSection, placement_from_file,
};
pub use gradients::{GradientSum, Pass};
pub use optimizer::{Optimizer, OptimizerConfig, OptimizerKind, StepNorms};
pub use schedule::{Schedule, ScheduleConfig, ScheduleKind};
pub use sources::{DataOrder, DataUse, Sources};
pub use trainer::{Event, OpenOptions, Outcome, Start, State, Step, Trainer};
