//! Builder of an HTML page.

use std::fmt::Write as _;

use super::charts::Chart;
use super::escape::{CELL_CHARS, NAME_CHARS, PARAGRAPH_CHARS, escape, escape_line};
use super::palette::{PlacementStyles, SCALE, swatch};

/// A page that is built section by section.
#[derive(Default)]
pub(super) struct Page {
    body: String,
    contents: Vec<(&'static str, &'static str)>,
    charts: Vec<Chart>,
    open: bool,
}

impl Page {
    /// Starts a section and ends the previous one.
    pub(super) fn section(&mut self, id: &'static str, title: &'static str) {
        self.close();
        self.contents.push((id, title));
        let _ = writeln!(
            self.body,
            "<section id=\"{id}\" aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{}</h2>",
            escape_line(title, CELL_CHARS)
        );
        self.open = true;
    }

    /// Adds a heading to a section, unless `text` is empty.
    pub(super) fn heading(&mut self, text: &str) {
        if !text.is_empty() {
            let _ = writeln!(self.body, "<h3>{}</h3>", escape_line(text, PARAGRAPH_CHARS));
        }
    }

    /// Adds a paragraph of plain text.
    pub(super) fn text(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape_line(text, PARAGRAPH_CHARS));
    }

    /// Adds an emphasized paragraph of plain text.
    pub(super) fn emphasized(&mut self, text: &str) {
        let _ = writeln!(
            self.body,
            "<p class=\"verdict\">{}</p>",
            escape_line(text, PARAGRAPH_CHARS)
        );
    }

    /// Adds a smaller paragraph of plain text.
    pub(super) fn note(&mut self, text: &str) {
        let _ = writeln!(
            self.body,
            "<p class=\"note\">{}</p>",
            escape_line(text, PARAGRAPH_CHARS)
        );
    }

    /// Adds text that is already HTML.
    pub(super) fn html(&mut self, html: &str) {
        self.body.push_str(html);
    }

    /// Adds a chart with a caption below it.
    pub(super) fn chart(&mut self, chart: Chart, caption: &str) {
        let caption = match caption {
            "" => String::new(),
            caption => format!(
                "<figcaption>{}</figcaption>",
                escape_line(caption, PARAGRAPH_CHARS)
            ),
        };
        let _ = writeln!(
            self.body,
            "<figure>{}{caption}</figure>",
            chart_element(&chart)
        );
        self.charts.push(chart);
    }

    /// Adds charts side by side, each with its title; `class` is `narrow` or `wide`.
    pub(super) fn grid<T: AsRef<str>>(
        &mut self,
        class: &str,
        charts: impl IntoIterator<Item = (T, Chart)>,
    ) {
        let _ = writeln!(self.body, "<div class=\"grid {class}\">");
        for (title, chart) in charts {
            let title = match title.as_ref() {
                "" => String::new(),
                title => format!(
                    "<figcaption class=\"title\">{}</figcaption>",
                    escape_line(title, CELL_CHARS)
                ),
            };
            let _ = writeln!(
                self.body,
                "<figure>{title}{}</figure>",
                chart_element(&chart)
            );
            self.charts.push(chart);
        }
        self.body.push_str("</div>\n");
    }

    /// Adds buttons that show and hide placements in the charts with these ids.
    pub(super) fn legend(
        &mut self,
        placements: &[&str],
        styles: &PlacementStyles,
        charts: &[String],
    ) {
        if placements.len() < 2 {
            return;
        }
        let _ = writeln!(
            self.body,
            "<div class=\"legend\" role=\"group\" aria-label=\"Placements that are shown\" \
             data-charts=\"{}\">",
            escape(&charts.join(" "))
        );
        for name in placements {
            let style = styles.style(name);
            let _ = writeln!(
                self.body,
                "<button type=\"button\" aria-pressed=\"true\" data-style=\"{style}\">{}{}</button>",
                swatch(style),
                escape_line(name, NAME_CHARS)
            );
        }
        if placements.len() > 3 {
            for (which, text) in [("show", "show all"), ("hide", "hide all")] {
                let _ = writeln!(
                    self.body,
                    "<button type=\"button\" data-all=\"{which}\">{text}</button>"
                );
            }
        }
        self.body.push_str("</div>\n");
    }

    /// Adds a drop-down that switches the elements with these ids; nothing if there is only one choice.
    pub(super) fn drop_down(
        &mut self,
        id: &str,
        label: &str,
        targets: &[String],
        choices: &[impl AsRef<str>],
    ) {
        if choices.len() < 2 {
            return;
        }
        let _ = writeln!(
            self.body,
            "<p class=\"choice\"><label for=\"{id}\">{}</label> <select id=\"{id}\" \
             data-targets=\"{}\" autocomplete=\"off\">",
            escape(label),
            escape(&targets.join(" "))
        );
        for (value, choice) in choices.iter().enumerate() {
            let _ = writeln!(
                self.body,
                "<option value=\"{value}\">{}</option>",
                escape_line(choice.as_ref(), CELL_CHARS)
            );
        }
        self.body.push_str("</select></p>\n");
    }

    /// Adds colour bars with labels at the low end, the middle and the high end; only the first is visible initially.
    pub(super) fn color_bars(&mut self, id: &str, labels: &[[String; 3]]) {
        let _ = writeln!(self.body, "<div id=\"{id}\" class=\"views\">");
        let stops: String = (0..SCALE.len())
            .map(|stop| format!("<span class=\"stop{stop}\"></span>"))
            .collect();
        for (position, [low, middle, high]) in labels.iter().enumerate() {
            let hidden = if position > 0 { " hidden" } else { "" };
            let _ = writeln!(
                self.body,
                "<p class=\"scale\"{hidden}><span class=\"stops\" aria-hidden=\"true\">{stops}</span>\
                 <span class=\"ends\"><span>{}</span><span>{}</span><span>{}</span></span></p>",
                escape(low),
                escape(middle),
                escape(high)
            );
        }
        self.body.push_str("</div>\n");
    }

    /// Adds a collapsible section.
    pub(super) fn details(&mut self, summary: &str, html: &str) {
        let _ = writeln!(
            self.body,
            "<details>\n<summary>{}</summary>\n{html}</details>",
            escape_line(summary, CELL_CHARS)
        );
    }

    /// Ends the last section; returns the links to the sections, the sections and the charts.
    pub(super) fn finish(mut self) -> (String, String, Vec<Chart>) {
        self.close();
        let contents = (self.contents.iter())
            .map(|(id, title)| {
                format!(
                    "<li><a href=\"#{id}\">{}</a></li>\n",
                    escape_line(title, CELL_CHARS)
                )
            })
            .collect();
        (contents, self.body, self.charts)
    }

    fn close(&mut self) {
        if self.open {
            self.body.push_str("</section>\n");
            self.open = false;
        }
    }
}

/// Returns text as a `pre` element.
pub(super) fn pre(text: &str) -> String {
    format!("<pre tabindex=\"0\">{}</pre>\n", escape(text.trim_end()))
}

fn chart_element(chart: &Chart) -> String {
    format!(
        "<div class=\"plot\" style=\"min-height:{}px\" id=\"{}\" role=\"img\" aria-label=\"{}\"></div>",
        chart.height,
        escape(&chart.id),
        escape_line(&chart.label, CELL_CHARS)
    )
}
