//! Aligned tables.

pub use hybridnorm::format_number::with_thousands_separators;

use std::fmt;
use std::io::{self, IsTerminal};

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, presets};
use hybridnorm::text;
use terminal_size::{Width, terminal_size_of};

/// Maximum number of characters shown per cell.
const CELL_CHARS: usize = 200;

/// Table whose cells may contain names from files: characters that move the cursor or break lines are escaped, and
/// long cells are shortened.
pub struct Table(comfy_table::Table);

impl Table {
    /// Adds a row.
    pub fn add_row<C: fmt::Display>(&mut self, cells: impl IntoIterator<Item = C>) {
        let cells = cells
            .into_iter()
            .map(|cell| text::truncated_line(&cell.to_string(), CELL_CHARS).into_owned());
        self.0.add_row(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Creates a table with a header; the first column is left-aligned, the others right-aligned.
pub fn numeric_table(header: &[&str]) -> Table {
    let mut table = text_table(header);
    let inner = &mut table.0;
    inner.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    for index in 1..header.len() {
        if let Some(column) = inner.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Creates a table of left-aligned text.
pub fn text_table(header: &[&str]) -> Table {
    let header = header
        .iter()
        .map(|head| text::truncated_line(head, CELL_CHARS));
    let mut table = comfy_table::Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    if let Some(width) = terminal_width() {
        table.set_width(width);
    }
    Table(table)
}

/// Returns the width of a terminal in characters, if tables go to one.
fn terminal_width() -> Option<u16> {
    let stdout = io::stdout();
    let size = stdout
        .is_terminal()
        .then(|| terminal_size_of(stdout))
        .flatten();
    size.map(|(Width(width), _)| width)
}

/// Formats a count with an SI prefix: `1.24 G`.
pub fn si_prefixed(number: f64) -> String {
    let (value, prefix) = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")]
        .into_iter()
        .find(|(unit, _)| number >= *unit)
        .map_or((number, ""), |(unit, prefix)| (number / unit, prefix));
    match prefix {
        "" => format!("{value:.0}"),
        _ => format!("{value:.2}{prefix}"),
    }
}

/// Formats a count as in model names: `6.9B`, `151.0M`.
pub fn parameter_count(number: u64) -> String {
    let number = number as f64;
    match [(1e9, "B"), (1e6, "M"), (1e3, "k")]
        .into_iter()
        .find(|(unit, _)| number >= *unit)
    {
        Some((unit, suffix)) => format!("{:.1}{suffix}", number / unit),
        None => format!("{number}"),
    }
}

/// Formats a number of bytes with a binary prefix: `1.5 GiB`.
pub fn bytes(number: u64) -> String {
    let number = number as f64;
    let (value, unit) = [
        (1024f64.powi(4), "TiB"),
        (1024f64.powi(3), "GiB"),
        (1024f64.powi(2), "MiB"),
        (1024f64, "KiB"),
    ]
    .into_iter()
    .find(|(size, _)| number >= *size)
    .map_or((number, "B"), |(size, unit)| (number / size, unit));
    match unit {
        "B" => format!("{value:.0} B"),
        _ => format!("{value:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_one_line_without_control_characters() {
        let mut table = numeric_table(&["name", "\x1b[1mhead"]);
        table.add_row(["a\nb\x1b[2J\u{9b}".to_owned(), "x".repeat(10_000)]);
        let text = table.to_string();
        let is_plain = |char: char| char == '\n' || !char.is_control();
        assert!(text.chars().all(is_plain), "{text}");
        assert!(text.contains(r"a\nb\u{1b}[2J\u{9b}"), "{text}");
        assert!(text.len() < 5000, "{text}");
    }

    #[test]
    fn numbers_have_prefixes() {
        assert_eq!(si_prefixed(1_240_000_000.0), "1.24 G");
        assert_eq!(si_prefixed(12.0), "12");
        assert_eq!(parameter_count(6_919_071_744), "6.9B");
        assert_eq!(parameter_count(12), "12");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(12), "12 B");
    }
}
