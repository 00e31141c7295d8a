//! Comparing placements.

pub mod quickstart;
