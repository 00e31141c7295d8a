//! Reports of studies and probes: one self-contained HTML page, and Markdown for a pull
//! request.
//!
//! A [`Document`] contains all numbers. [`html()`] and [`markdown()`] only select, round and render them.
//!
//! The contents are listed in tables: the metrics ([`METRICS`](crate::train::metrics::METRICS)), the signals per block
//! ([`BLOCK_SIGNALS`](crate::train::layers::BLOCK_SIGNALS)) and the sections of the page with their charts
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
mod directory;
mod document;
mod escape;
mod format;
mod history;
mod html;
mod labels;
mod load;
mod markdown;
mod page;
mod palette;
mod reference;
mod run;
mod sections;
mod sets;
mod table;
mod tables;
mod target;
mod view;

#[cfg(test)]
mod tests;

pub use document::Document;
pub use html::html;
pub use markdown::markdown;
pub use run::{Directory, PeakLr, RecordCounts, ReportedRun};
pub use sets::DataSet;
pub use target::check_output_path;
