//! Other people's checkpoints.

pub mod official;
mod python_dict;
