//! How fast this machine trains and generates, and how far that is from what it could do.
//!
//! Every report compares with limits measured in the same process: the best matrix product for
//! training, memory bandwidth for decoding and for whatever touches each number a few times only.

mod decode;
mod floors;
pub mod machine;
pub mod ops;
pub mod placements;
mod step;
mod timing;

pub use decode::{DecodeOptions, DecodeReport, decode};
pub use floors::Floors;
pub use ops::{OpsOptions, OpsReport, ops};
pub use placements::{PlacementsOptions, PlacementsReport, placements};
pub use step::{StepOptions, StepReport, step};
pub use timing::check_seconds;
