//! Reports of studies, runs and probes: one self-contained HTML page, and Markdown for a pull request.
//!
//! A [`Document`] contains all numbers. [`html()`] and [`markdown()`] only select, round and render them.
//!
//! The contents are defined in static arrays: the metrics ([`METRICS`](crate::train::metrics::METRICS)), the metrics
//! per block ([`BLOCK_METRICS`](crate::train::layers::BLOCK_METRICS)) and the sections of the page with their charts
//! (`sections.rs`).
//!
//! # Example
//! ```
//! use hybridnorm::report::{Document, html, markdown};
//!
//! let document = Document::default().with_title("Placements");
//! assert!(html(&document).starts_with("<!DOCTYPE html>"));
//! assert!(markdown(&document).starts_with("# Placements"));
//! ```

mod charts;
mod confidence;
mod data_groups;
mod directory;
mod document;
mod escape;
mod format;
mod history;
mod html;
mod labels;
mod load;
mod markdown;
mod output_path;
mod page;
mod palette;
mod reference;
mod run;
mod sections;
mod table;
mod tables;
mod view;

#[cfg(test)]
mod tests;

pub use data_groups::DataGroup;
pub use document::Document;
pub use html::html;
pub use markdown::markdown;
pub use output_path::check_output_path;
pub use run::{PeakLr, RecordCounts, ReportedRun, RunDirectoryData};
