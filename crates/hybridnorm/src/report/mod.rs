//! Reports of studies and probes: one self-contained HTML page, and Markdown for a pull
//! request.
//!
//! A [`Document`] contains all numbers. [`html()`] and [`markdown()`] only select, round and render them.

mod charts;
mod directory;
mod document;
mod escape;
mod format;
mod gather;
mod history;
mod how_sure;
mod html;
mod labels;
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
pub use run::{Directory, RateSince, ReportedRun, Rows};
pub use sets::Set;
pub use target::check_target;
