//! Reference sections: probe, placements, all runs, downloads.

use crate::digits::grouped;
use std::fmt::Write as _;

use super::charts::probe;
use super::document::Document;
use super::escape::{NAME_CHARS, PARAGRAPH_CHARS, escape_line};
use super::format::{compact, count, loss, or_none};
use super::page::{Page, pre};
use super::palette::Roster;
use super::run::ReportedRun;
use super::table::Table;
use super::tables;
use super::view::View;
use crate::lab::probe::ProbeReport;

/// Adds all of these sections; empty ones are omitted.
pub(super) fn reference(page: &mut Page, document: &Document, views: &[View], roster: &Roster) {
    if let Some(probe) = &document.probe {
        page.section("probe", "Probe");
        first_steps(page, probe, roster);
    }
    let placements = placements(document);
    if !placements.is_empty() {
        page.section("placements", "Placements");
        for placement in &placements {
            page.html(&placement.html());
        }
    }
    if let Some(first) = document.runs.first() {
        page.section("everything", "Everything");
        everything(page, document, first, views, roster);
    }
    page.section("downloads", "Downloads");
    downloads(page, document);
}

fn first_steps(page: &mut Page, report: &ProbeReport, roster: &Roster) {
    page.text(&format!(
        "{} of training with each of {}, seen from inside.",
        count(report.steps as usize, "step", "steps"),
        count(report.placements.len(), "placement", "placements")
    ));
    let depths = probe::depths(report, roster);
    let ids: Vec<String> = depths
        .charts
        .iter()
        .map(|(_, chart)| chart.id.clone())
        .collect();
    let steps: Vec<String> = depths.steps.iter().map(|step| grouped(*step)).collect();
    page.choice("probe-choice", "Step:", &ids, &steps);
    let names: Vec<&str> = report
        .placements
        .iter()
        .map(|placement| placement.placement.as_str())
        .collect();
    if !depths.charts.is_empty() {
        if let [step] = depths.steps.as_slice() {
            page.note(&format!("At step {}.", grouped(*step)));
        }
        page.legend(&names, roster, &ids);
        page.grid("wide", depths.charts);
        page.note("Logarithmic scales; what is not positive is left out.");
    }
    page.html(&growth(report, roster).html("probe-growth-table"));
    for placement in &report.placements {
        if let Some(problem) = &placement.diverged {
            page.note(&format!("{} diverged: {problem}.", placement.placement));
        }
    }
    if !report.config.is_empty() {
        page.details("Configuration of the probe", &pre(&report.config));
    }
}

/// Builds the table of the growth of signals with depth.
pub(super) fn growth(report: &ProbeReport, roster: &Roster) -> Table {
    let mut table = Table::new(
        "Growth with depth: fitted ratio of the last block's to the first block's value, and the \
         largest block's over the smallest block's gradient norm",
    )
    .text("placement")
    .number("step")
    .number("loss (nats)")
    .number("stream, last over first")
    .number("gradient norm, last over first")
    .number("gradient norm, largest over smallest")
    .number("gradient at the stream, last over first");
    for placement in &report.placements {
        for moment in &placement.moments {
            let ratio = |value: Option<f32>| or_none(value, |value| compact(value.into()));
            table.row(vec![
                tables::placement(roster, &placement.placement),
                grouped(moment.step).into(),
                loss(moment.loss).into(),
                ratio(moment.growth.stream).into(),
                ratio(moment.growth.grad).into(),
                ratio(moment.growth.grad_spread).into(),
                ratio(moment.growth.stream_grad).into(),
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
        depth: run.cell.depth,
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

fn everything(
    page: &mut Page,
    document: &Document,
    first: &ReportedRun,
    views: &[View],
    roster: &Roster,
) {
    page.details(
        &format!(
            "Configuration of the first run: {}, rate {}, seed {}",
            first.label(),
            tables::rates(first),
            first.cell.seed
        ),
        &pre(&first.config),
    );
    if document.runs.len() > 1 {
        page.note(
            "The other runs differ from it in what the table says. The complete configuration of each \
             is in the JSON document.",
        );
    }
    // Runs that are not comparable are in separate tables.
    let mut table = String::new();
    match document.sets.len() {
        0 | 1 => {
            let runs: Vec<&ReportedRun> = document.runs.iter().collect();
            table += &tables::runs(&runs, roster).html("runs-table");
        }
        _ => {
            for view in views {
                let id = format!("{}-runs-table", view.key);
                let _ = writeln!(
                    table,
                    "<h3>{}</h3>",
                    escape_line(&view.name, PARAGRAPH_CHARS)
                );
                table += &tables::runs(&view.runs, roster).html(&id);
            }
        }
    }
    page.details(
        &format!("Every run: {}", count(document.runs.len(), "run", "runs")),
        &format!(
            "<div class=\"runs\">\n{table}</div>\n<p class=\"paper\">The table is too wide for paper; \
             the HTML file has it.</p>\n"
        ),
    );
}

fn downloads(page: &mut Page, document: &Document) {
    let mut buttons = Vec::new();
    if !document.runs.is_empty() {
        buttons.push(("runs", "Runs (CSV)", "a row a run"));
        if document.runs.iter().any(|run| run.directory.is_some()) {
            buttons.push((
                "segments",
                "Segments (CSV)",
                "a row a run and process that trained a part of it",
            ));
        }
        buttons.push((
            "curves",
            "Curves (CSV)",
            "a row a run and stretch of steps, and one an evaluation",
        ));
    }
    if document.runs.iter().any(|run| !run.layers.is_empty()) {
        buttons.push(("layers", "Layers (CSV)", "a row a run, step and block"));
    }
    if document.probe.is_some() {
        buttons.push(("probe", "Probe (CSV)", "a row a placement, step and block"));
    }
    buttons.push((
        "json",
        "Everything (JSON)",
        "the whole document, configurations included",
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
        "The files are made from this page; nothing is fetched. In CSV, text that a spreadsheet would \
         take for a formula begins with an apostrophe.",
    );
}
