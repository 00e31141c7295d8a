//! Studies: grids of runs over placement, learning rate and seed.
//!
//! Runs with the same seed share batches and the initial values of common parameters. Each run is identified by
//! a hash of its configuration: finished runs are never repeated, and interrupted runs resume from their newest
//! checkpoint.

mod assess;
mod consistent;
mod difference;
pub mod folder;
mod groups;
mod history;
mod hold;
mod merge;
pub mod plan;
pub mod record;
mod records;
mod run;
mod rungs;
mod runner;
mod summary;
mod tied;

pub use assess::{Assessed, assess};
pub use folder::Folder;
pub(crate) use folder::writes;
pub(crate) use groups::group_name;
pub use groups::{Group, groups, judged};
pub use merge::{Merged, merge};
pub use plan::{Planned, Study, StudyFile, StudySection};
pub use record::{Cell, Ending, RunRecord};
pub use records::Records;
pub use runner::{Options, Shard, StudyEvent, run};
pub use summary::of_directory as run_record;
pub(crate) use summary::with_checkpoint as run_record_with_checkpoint;
