//! Reference sections: probe, placements, all runs, downloads.

use crate::format_number::with_thousands_separators;
use std::fmt::Write as _;

use super::document::Document;
use super::escape::{NAME_CHARS, PARAGRAPH_CHARS, escape_line};
use super::format::{compact, count, loss, or_none};
use super::page::{Page, pre};
use super::palette::PlacementStyles;
use super::run::ReportedRun;
use super::sections::Context;
use super::table::Table;
use super::tables;
use crate::lab::probe::ProbeReport;

/// Adds a sentence with the numbers of steps and placements of the probe.
pub(super) fn probe_summary(page: &mut Page, context: &Context) {
    if let Some(report) = &context.document.probe {
        page.text(&format!(
            "Per-block metrics at the first and the last of {} of training, for {}.",
            count(report.steps as usize, "step", "steps"),
            count(report.placements.len(), "placement", "placements")
        ));
    }
}

/// Adds the table of growth with depth, divergences and the configuration of the probe.
pub(super) fn probe_details(page: &mut Page, context: &Context) {
    let Some(report) = &context.document.probe else {
        return;
    };
    page.html(&growth_table(report, context.styles).html("probe-growth-table"));
    for placement in &report.placements {
        if let Some(problem) = &placement.diverged {
            page.note(&format!("{} diverged: {problem}.", placement.placement));
        }
    }
    if !report.config.is_empty() {
        page.details("Configuration of the probe", &pre(&report.config));
    }
}

/// Adds the equations of every placement.
pub(super) fn add_placements(page: &mut Page, context: &Context) {
    for placement in placements(context.document) {
        page.html(&placement.html());
    }
}

/// Builds the table of the growth of block metrics with depth.
pub(super) fn growth_table(report: &ProbeReport, styles: &PlacementStyles) -> Table {
    let mut table = Table::new(
        "Growth with depth: fitted ratio of the last block to the first, and ratio of the largest gradient norm \
         of a block to the smallest",
    )
    .text("placement")
    .number("step")
    .number("loss (nats)")
    .number("residual stream RMS, last/first block")
    .number("gradient norm, last/first block")
    .number("gradient norm, largest/smallest block")
    .number("gradient norm w.r.t. the residual stream, last/first block");
    for placement in &report.placements {
        for measured in &placement.measured_steps {
            let ratio = |value: Option<f32>| or_none(value, |value| compact(value.into()));
            table.row(vec![
                tables::placement(styles, &placement.placement),
                with_thousands_separators(measured.step).into(),
                loss(measured.loss).into(),
                ratio(measured.growth.stream).into(),
                ratio(measured.growth.grad).into(),
                ratio(measured.growth.grad_spread).into(),
                ratio(measured.growth.stream_grad).into(),
            ]);
        }
    }
    table
}

/// Equations of a placement at a depth.
pub(super) struct Equations<'a> {
    /// Name of the placement.
    pub(super) name: &'a str,
    /// Hash of the placement.
    pub(super) hash: &'a str,
    /// Number of blocks, if the study compares several depths.
    pub(super) depth: Option<usize>,
    /// Text of the equations.
    pub(super) text: &'a str,
}

impl Equations<'_> {
    fn html(&self) -> String {
        format!(
            "<h3>{}</h3>\n<p class=\"note\">hash <code>{}</code>{}</p>\n{}",
            escape_line(self.name, NAME_CHARS),
            escape_line(self.hash, NAME_CHARS),
            or_none(self.depth, |depth| format!(", {depth} blocks")).trim_start_matches('–'),
            pre(self.text)
        )
    }
}

/// Returns the placements of a document, once per depth.
pub(super) fn placements(document: &Document) -> Vec<Equations<'_>> {
    let runs = document.runs.iter().map(|run| Equations {
        name: run.label(),
        hash: &run.placement_hash,
        depth: run.grid_point.depth,
        text: &run.equations,
    });
    let probe = (document.probe.iter())
        .flat_map(|probe| &probe.placements)
        .map(|placement| Equations {
            name: &placement.placement,
            hash: &placement.placement_hash,
            depth: None,
            text: &placement.equations,
        });
    let mut found: Vec<Equations> = Vec::new();
    for new in runs.chain(probe) {
        let known = (found.iter())
            .any(|old| (old.name, old.hash, old.text) == (new.name, new.hash, new.text));
        if !known {
            found.push(new);
        }
    }
    found
}

/// Adds the configuration of the first run, and the table of all runs.
pub(super) fn all_runs(page: &mut Page, context: &Context) {
    let Context {
        document,
        views,
        styles,
    } = *context;
    let Some(first) = document.runs.first() else {
        return;
    };
    page.details(
        &format!(
            "Configuration of the first run: {}, learning rate {}, seed {}",
            first.label(),
            tables::peak_learning_rates(first),
            first.grid_point.seed
        ),
        &pre(&first.config),
    );
    if document.runs.len() > 1 {
        page.note(
            "The table below lists the learning rate, seed, initialization and depth of every run; the JSON document \
             has their complete configurations.",
        );
    }
    // Runs that are not comparable are in separate tables.
    let mut table = String::new();
    match document.data_groups.len() {
        0 | 1 => {
            let runs: Vec<&ReportedRun> = document.runs.iter().collect();
            table += &tables::runs(&runs, styles).html("runs-table");
        }
        _ => {
            for view in views {
                let id = format!("{}-runs-table", view.key);
                let _ = writeln!(
                    table,
                    "<h3>{}</h3>",
                    escape_line(&view.name, PARAGRAPH_CHARS)
                );
                table += &tables::runs(&view.runs, styles).html(&id);
            }
        }
    }
    page.details(
        &format!("All runs: {}", count(document.runs.len(), "run", "runs")),
        &format!(
            "<div class=\"runs\">\n{table}</div>\n<p class=\"paper\">The table is too wide to print; see the HTML \
             file.</p>\n"
        ),
    );
}

/// Adds the buttons that download the data.
pub(super) fn downloads(page: &mut Page, context: &Context) {
    let document = context.document;
    let mut buttons = Vec::new();
    if !document.runs.is_empty() {
        buttons.push(("runs", "Runs (CSV)", "one row per run"));
        if document.runs.iter().any(|run| run.directory.is_some()) {
            buttons.push((
                "segments",
                "Segments (CSV)",
                "one row per run and training process",
            ));
        }
        buttons.push((
            "curves",
            "Curves (CSV)",
            "one row per run and interval of steps, and per evaluation",
        ));
    }
    if document.runs.iter().any(|run| !run.layers.is_empty()) {
        buttons.push(("layers", "Layers (CSV)", "one row per run, step and block"));
    }
    if document.probe.is_some() {
        buttons.push((
            "probe",
            "Probe (CSV)",
            "one row per placement, step and block",
        ));
    }
    buttons.push((
        "json",
        "All data (JSON)",
        "the complete document, with configurations",
    ));
    let mut html = String::from("<ul class=\"downloads\">\n");
    for (kind, label, meaning) in buttons {
        let _ = writeln!(
            html,
            "<li><button type=\"button\" data-download=\"{kind}\">{label}</button> {meaning}</li>"
        );
    }
    html.push_str("</ul>\n<p class=\"note\" id=\"saved\" role=\"status\"></p>\n");
    page.html(&html);
    page.note(
        "The files are generated from this page; nothing is fetched. In CSV, text that a spreadsheet would \
         read as a formula is prefixed with an apostrophe.",
    );
}
