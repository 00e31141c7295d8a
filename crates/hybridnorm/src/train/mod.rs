//! Training: configuration, loop, optimizer, schedule, checkpoints, metrics.

pub mod checkpoint;
pub(crate) mod config;
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
pub use config::{
    Config, DataSection, InitSection, LogSection, ModelSection, TrainSection, placement_from_file,
};
pub use gradients::{Gradients, PassStats, gradients};
pub use optimizer::{Optimizer, OptimizerConfig, OptimizerKind, ParameterNorms, StepNorms};
pub use schedule::{Schedule, ScheduleConfig, ScheduleKind};
pub use sources::{DataCoverage, DataOrder, Sources};
pub use step::{StepOutcome, StepShape, TrainingStep};
pub use trainer::{Event, OpenOptions, Outcome, Start, State, Step, Trainer};
