//! A report as one self-contained HTML file.

use crate::format_number::with_thousands_separators;
use plotly::Plot;
use serde::Serialize;

use super::charts::{self, Chart, curves};
use super::document::Document;
use super::escape::{CELL_CHARS, PARAGRAPH_CHARS, escape_line, json_in_script};
use super::format::{count, learning_rate};
use super::page::Page;
use super::palette::{self, PlacementStyles};
use super::run::ReportedRun;
use super::sections::{self, Context};
use super::tables::{DIVERGED, ELIMINATED, NOT_LEARNED};
use super::view::{View, views};
use crate::lab::study::record::RunStatus;
use crate::train::layers::BLOCK_METRICS;
use crate::train::metrics::MetricCurve;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");

/// Content security policy: allows inline content only, nothing from the network.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      img-src data: blob:; base-uri 'none'; form-action 'none'";

/// Data for the script of the page.
#[derive(Serialize)]
struct Charts<'a> {
    config: plotly::Configuration,
    charts: &'a [Chart],
    /// Metrics of the CSV file of curves.
    curves: Vec<Column>,
    /// Block metrics of the CSV file of layers.
    #[serde(rename = "signals")]
    block_metrics: Vec<Column>,
}

/// Column of a CSV file.
#[derive(Serialize)]
struct Column {
    /// Name of the column.
    column: &'static str,
    /// Path of its values in a curve, or in a block.
    path: &'static str,
}

/// Returns a report as one HTML file that works from disk without a network and contains the document.
///
/// The output is deterministic.
pub fn html(document: &Document) -> String {
    let styles = PlacementStyles::new(document);
    let views = views(document);
    let mut page = Page::default();
    let context = Context {
        document,
        views: &views,
        styles: &styles,
    };
    sections::add_sections(&mut page, &context);
    let (contents, body, charts) = page.finish();
    let title = escape_line(&document.title, CELL_CHARS);
    let facts = escape_line(&summary_line(document, &views, &styles), PARAGRAPH_CHARS);
    let colors = palette::style_sheet();
    let data = json_in_script(document);
    let drawings = json_in_script(&Charts {
        config: charts::plotly_configuration(),
        charts: &charts,
        curves: curve_columns(document),
        block_metrics: block_metric_columns(),
    });
    let library = library();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}{colors}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">Skip to the results</a>\n\
         <header>\n<h1>{title}</h1>\n<p class=\"facts\">{facts}</p>\n\
         <noscript><p class=\"note\">Charts and downloads need JavaScript; the tables have the \
         numbers.</p></noscript>\n\
         <nav aria-label=\"Contents\">\n<ul>\n{contents}</ul>\n</nav>\n</header>\n\
         <main id=\"main\" tabindex=\"-1\">\n{body}</main>\n\
         <script type=\"application/json\" id=\"document\">{data}</script>\n\
         <script type=\"application/json\" id=\"charts\">{drawings}</script>\n\
         <script>{library}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

fn curve_columns(document: &Document) -> Vec<Column> {
    let metrics = curves::recorded(document.runs.iter()).into_iter();
    let column = |(_, curve): (_, MetricCurve)| Column {
        column: curve.column,
        path: curve.key,
    };
    metrics.map(column).collect()
}

fn block_metric_columns() -> Vec<Column> {
    let columns = BLOCK_METRICS.iter().filter_map(|metric| metric.column);
    columns
        .map(|(column, path)| Column { column, path })
        .collect()
}

/// Returns Plotly without MathJax: the first of the scripts that the crate bundles.
///
/// Control characters in its string literals, which HTML does not allow, are escaped.
fn library() -> String {
    let scripts = Plot::offline_js_sources();
    let script = (scripts.split_once("<script type=\"text/javascript\">"))
        .and_then(|(_, rest)| rest.split_once("</script>"))
        .map_or("", |(script, _)| script);
    let mut text = String::with_capacity(script.len() + 16);
    for character in script.chars() {
        match character {
            '\t' | '\n' | '\r' => text.push(character),
            '\0'..='\x1f' => text.push_str(&format!("\\x{:02x}", u32::from(character))),
            _ => text.push(character),
        }
    }
    text
}

/// Summarizes a document in a line.
pub(super) fn summary_line(
    document: &Document,
    views: &[View],
    styles: &PlacementStyles,
) -> String {
    let runs = &document.runs;
    let mut facts = vec![match document.data_groups.is_empty() {
        true => count(styles.len(), "placement", "placements"),
        false => count(styles.len(), "configuration", "configurations"),
    }];
    facts.extend(learning_rates(runs));
    if views.len() > 1 {
        facts.push(match document.data_groups.is_empty() {
            true => format!("{} combinations of initialization and depth", views.len()),
            false => format!(
                "{} groups that are not comparable with each other",
                views.len()
            ),
        });
    }
    facts.extend(run_facts(document));
    if let Some(probe) = &document.probe {
        facts.push(format!(
            "probe of {}",
            count(probe.steps as usize, "step", "steps")
        ));
    }
    if !document.version.is_empty() {
        facts.push(format!("report by hybridnorm {}", document.version));
    }
    facts.push(document.created.clone());
    facts.retain(|fact| !fact.is_empty());
    facts.join(" · ")
}

/// Summarizes the peak learning rates of the runs; `None` without one.
fn learning_rates(runs: &[ReportedRun]) -> Option<String> {
    let mut lrs: Vec<f64> = runs.iter().filter_map(ReportedRun::peak_lr).collect();
    lrs.sort_by(f64::total_cmp);
    lrs.dedup();
    match lrs.as_slice() {
        [] => None,
        [only] => Some(format!("learning rate {}", learning_rate(*only))),
        [low, .., high] => Some(format!(
            "{} learning rates from {} to {}",
            lrs.len(),
            learning_rate(*low),
            learning_rate(*high)
        )),
    }
}

/// Summarizes seeds, status, parameters and tokens of the runs; empty without runs.
fn run_facts(document: &Document) -> Vec<String> {
    let runs = &document.runs;
    if runs.is_empty() {
        return Vec::new();
    }
    let mut seeds: Vec<u64> = runs.iter().map(|run| run.grid_point.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let mut facts = vec![count(seeds.len(), "seed", "seeds"), status_counts(runs)];
    if let Some(planned) = document.planned.filter(|planned| *planned > runs.len()) {
        facts.push(format!(
            "incomplete: {} of {planned} runs are missing",
            planned - runs.len()
        ));
    }
    let finished: Vec<&ReportedRun> = (runs.iter())
        .filter(|run| matches!(run.status, RunStatus::Finished))
        .collect();
    facts.push(range(runs.iter().map(|run| run.parameters), "parameters"));
    facts.push(range(
        finished.iter().map(|run| run.tokens),
        "tokens per finished run",
    ));
    facts
}

fn status_counts(runs: &[ReportedRun]) -> String {
    let (mut finished, mut diverged, mut not_learned, mut eliminated, mut unfinished) =
        (0, 0, 0, 0, 0);
    for run in runs {
        match run.status {
            RunStatus::Finished => finished += 1,
            RunStatus::Diverged { .. } => diverged += 1,
            RunStatus::NotLearned { .. } => not_learned += 1,
            RunStatus::Eliminated { .. } => eliminated += 1,
            RunStatus::Unfinished { .. } => unfinished += 1,
        }
    }
    let mut text = format!("{}: {finished} finished", count(runs.len(), "run", "runs"));
    for (n, word) in [
        (diverged, DIVERGED),
        (not_learned, NOT_LEARNED),
        (eliminated, ELIMINATED),
        (unfinished, "unfinished"),
    ] {
        if n > 0 {
            text.push_str(&format!(", {n} {word}"));
        }
    }
    text
}

/// Formats the range of the values, or the only value.
fn range(values: impl Iterator<Item = u64> + Clone, unit: &str) -> String {
    match (values.clone().min(), values.max()) {
        (Some(low), Some(high)) if low == high => {
            format!("{} {unit}", with_thousands_separators(low))
        }
        (Some(low), Some(high)) => {
            format!(
                "{} to {} {unit}",
                with_thousands_separators(low),
                with_thousands_separators(high)
            )
        }
        _ => String::new(),
    }
}
