//! Training: configuration, loop, optimizer, schedule, checkpoints, metrics.

pub mod checkpoint;
mod config;
mod gradients;
pub mod metrics;
mod optimizer;
pub mod run_directory;
mod schedule;
pub mod sources;
mod trainer;

pub use checkpoint::Checkpoint;
pub use config::{
    Config, DataSection, InitSection, ModelSection, TrainSection, placement_from_file,
};
pub use gradients::GradientSum;
pub use optimizer::{Optimizer, OptimizerConfig, OptimizerKind};
pub use schedule::{Schedule, ScheduleConfig, ScheduleKind};
pub use sources::{DataOrder, Sources};
pub use trainer::{Event, Outcome, Start, State, Trainer};
