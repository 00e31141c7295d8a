//! Tables as HTML and Markdown.

use super::escape::{CELL_CHARS, PARAGRAPH_CHARS, escape_line, markdown_line, markdown_text};
use super::palette;

/// A table of text.
pub(super) struct Table {
    caption: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

struct Column {
    head: String,
    numeric: bool,
}

/// Text with its style in HTML.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell {
    text: String,
    /// Smaller text below.
    note: String,
    style: Option<usize>,
    class: &'static str,
}

impl Cell {
    /// Creates a cell of plain text.
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// Adds a note below the text.
    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Adds the mark of a placement before the text.
    pub(super) fn style(mut self, style: usize) -> Self {
        self.style = Some(style);
        self
    }

    /// Sets a CSS class; `best` is bold in Markdown too.
    pub(super) fn class(mut self, class: &'static str) -> Self {
        self.class = class;
        self
    }

    fn html(&self) -> String {
        let mark = self.style.map(palette::swatch).unwrap_or_default();
        let note = match self.note.as_str() {
            "" => String::new(),
            note => format!(" <small>{}</small>", escape_line(note, CELL_CHARS)),
        };
        format!("{mark}{}{note}", escape_line(&self.text, CELL_CHARS))
    }

    fn markdown(&self) -> String {
        let text = match (self.class, self.text.as_str()) {
            (_, "") => String::new(),
            ("best", text) => format!("**{}**", markdown_line(text, CELL_CHARS)),
            (_, text) => markdown_line(text, CELL_CHARS),
        };
        match (text.as_str(), markdown_line(&self.note, CELL_CHARS)) {
            (_, note) if note.is_empty() => text,
            ("", note) => note,
            (text, note) => format!("{text} ({note})"),
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl Table {
    /// Creates a table without columns.
    pub(super) fn new(caption: impl Into<String>) -> Self {
        Self {
            caption: caption.into(),
            columns: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Adds a column of text.
    pub(super) fn text(mut self, head: impl Into<String>) -> Self {
        self.columns.push(Column {
            head: head.into(),
            numeric: false,
        });
        self
    }

    /// Adds a column of numbers.
    pub(super) fn number(mut self, head: impl Into<String>) -> Self {
        self.columns.push(Column {
            head: head.into(),
            numeric: true,
        });
        self
    }

    /// Adds a row; its first cell is the row heading.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// True if it has no rows.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns a horizontally scrollable HTML table; `id` is the id of its caption. Empty without rows.
    pub(super) fn html(&self, id: &str) -> String {
        if self.is_empty() {
            return String::new();
        }
        let heads: String = (self.columns.iter())
            .map(|column| {
                let class = class_attribute(column.numeric, "");
                format!(
                    "<th scope=\"col\"{class}>{}</th>",
                    escape_line(&column.head, CELL_CHARS)
                )
            })
            .collect();
        let mut body = String::new();
        for row in &self.rows {
            body.push_str("<tr>");
            for (position, (cell, column)) in row.iter().zip(&self.columns).enumerate() {
                let class = class_attribute(column.numeric, cell.class);
                let cell = cell.html();
                body.push_str(&match position {
                    0 => format!("<th scope=\"row\"{class}>{cell}</th>"),
                    _ => format!("<td{class}>{cell}</td>"),
                });
            }
            body.push_str("</tr>\n");
        }
        format!(
            "<div class=\"table\" role=\"region\" aria-labelledby=\"{id}\" tabindex=\"0\">\n<table>\n\
             <caption id=\"{id}\">{}</caption>\n<thead><tr>{heads}</tr></thead>\n\
             <tbody>\n{body}</tbody>\n</table>\n</div>\n",
            escape_line(&self.caption, PARAGRAPH_CHARS)
        )
    }

    /// Returns Markdown with the caption in a line above. Empty without rows.
    pub(super) fn markdown(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let heads: Vec<String> = (self.columns.iter())
            .map(|column| markdown_line(&column.head, CELL_CHARS))
            .collect();
        let rules: Vec<&str> = (self.columns.iter())
            .map(|column| if column.numeric { "--:" } else { ":--" })
            .collect();
        let mut text = format!(
            "{}\n\n| {} |\n| {} |\n",
            markdown_text(&self.caption),
            heads.join(" | "),
            rules.join(" | ")
        );
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(Cell::markdown).collect();
            text.push_str(&format!("| {} |\n", cells.join(" | ")));
        }
        text.push('\n');
        text
    }
}

fn class_attribute(numeric: bool, class: &str) -> String {
    match (numeric, class) {
        (false, "") => String::new(),
        (true, "") => " class=\"n\"".to_owned(),
        (false, class) => format!(" class=\"{class}\""),
        (true, class) => format!(" class=\"n {class}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("<Losses>").text("name").number("loss|nats");
        table.row(vec![
            Cell::new("a<b"),
            Cell::new("1.5").class("best").note("one|two"),
        ]);
        table
    }

    #[test]
    fn html_escapes_and_has_scopes() {
        let html = table().html("t1");
        assert!(html.contains("<caption id=\"t1\">&lt;Losses&gt;</caption>"));
        assert!(html.contains("<th scope=\"col\" class=\"n\">loss|nats</th>"));
        assert!(html.contains("<th scope=\"row\">a&lt;b</th>"));
        assert!(html.contains("<td class=\"n best\">1.5 <small>one|two</small></td>"));
    }

    #[test]
    fn markdown_keeps_its_columns() {
        assert_eq!(
            table().markdown(),
            "&lt;Losses&gt;\n\n| name | loss\\|nats |\n| :-- | --: |\n\
             | a&lt;b | **1.5** (one\\|two) |\n\n"
        );
    }

    #[test]
    fn empty_tables_render_nothing() {
        let table = Table::new("caption").text("name");
        assert_eq!(table.html("t") + &table.markdown(), "");
    }
}
