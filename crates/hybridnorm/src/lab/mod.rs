//! Comparison of placements: studies, statistics, probes and replays.

pub mod analysis;
pub mod probe;
pub mod quickstart;
pub mod replay;
pub mod stats;
pub mod study;
