//! Studies: grids of runs over placement, learning rate and seed.
//!
//! Runs with the same seed share batches and the initial values of their common parameters. Each run is identified by
//! a hash of its configuration: finished runs are never repeated, and interrupted runs resume from their newest
//! checkpoint.

mod consistency;
mod depth;
mod difference;
mod folder;
mod folder_lock;
mod groups;
mod history;
mod merge;
mod plan;
mod plan_match;
pub mod record;
mod records;
mod run;
mod rungs;
mod runner;
mod settings;
mod study_analysis;
mod summary;

pub use depth::at_depth;
pub use folder::{StudyFolder, is_study_file};
pub use groups::{Group, analyze_groups, group_name, with_relative_status};
pub use merge::{MergeSummary, merge};
pub use plan::{PlannedRun, Study};
pub use record::{GridPoint, RunRecord, RunStatus};
pub use records::Records;
pub use run::LEARNED_MARGIN;
pub use runner::{Options, Shard, StudyEvent, run};
pub use settings::{Halving, StudyConfig, StudySettings};
pub use study_analysis::{StudyAnalysis, analyze_folder};
pub use summary::{read_run_record, read_run_record_with_checkpoint};
