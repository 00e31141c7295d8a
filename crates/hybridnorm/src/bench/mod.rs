//! Benchmarks of training and generation, relative to the limits of this machine.
//!
//! Every report compares with limits measured in the same process: peak GEMM throughput for training, memory
//! bandwidth for decoding and for memory-bound ops.

mod decode;
pub mod machine;
mod min_speedups;
pub mod ops;
pub mod placements;
mod step;
mod timing;

pub use decode::{DecodeOptions, DecodeReport, decode};
pub use min_speedups::MinSpeedups;
pub use ops::{OpsOptions, OpsReport, ops};
pub use placements::{PlacementsOptions, PlacementsReport, placements};
pub use step::{StepOptions, StepReport, step};
pub use timing::check_seconds;
