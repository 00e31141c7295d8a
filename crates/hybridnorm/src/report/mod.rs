//! Reports of studies and probes: one HTML page that needs nothing else, and Markdown for a pull
//! request.
//!
//! A [`Document`] holds all numbers. [`html()`] and [`markdown()`] only choose, round and draw them.

mod charts;
mod document;
mod format;
mod gather;
mod html;
mod markdown;
mod page;
mod palette;
mod reference;
mod sections;
mod table;
mod tables;
mod view;

#[cfg(test)]
mod tests;

pub use document::Document;
pub use html::html;
pub use markdown::markdown;
