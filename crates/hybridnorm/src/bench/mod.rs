//! Benchmarks of training and generation, relative to the limits of this machine.
//!
//! The step, decode and op reports are relative to limits measured in the same process: peak GEMM throughput for
//! training and compute-bound ops, memory bandwidth for decoding and memory-bound ops. The placement report is relative
//! to pre-norm.

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
