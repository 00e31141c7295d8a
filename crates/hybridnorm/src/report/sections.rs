//! Sections of the page: their list, and those about studies.

use super::charts::{block_metrics, compare, curves, learning_rates, probe};
use super::confidence::confidence_note;
use super::data_groups::incomparable_note;
use super::document::Document;
use super::escape::{PARAGRAPH_CHARS, escape_line};
use super::format::{compact, count, exact, loss, ratio};
use super::history::{self, NOT_RECORDED};
use super::page::Page;
use super::palette::PlacementStyles;
use super::reference;
use super::run::ReportedRun;
use super::tables;
use super::view::View;
use crate::lab::analysis::Verdict;
use std::collections::BTreeSet;

/// Content of a report that sections select from.
pub(super) struct Context<'a> {
    /// All data.
    pub(super) document: &'a Document,
    /// Groups of comparable runs.
    pub(super) views: &'a [View<'a>],
    /// Styles of the placements.
    pub(super) styles: &'a PlacementStyles<'a>,
}

/// Section of the page; a part without content adds nothing.
struct Section {
    anchor: &'static str,
    title: &'static str,
    is_shown: fn(&Context) -> bool,
    parts: Parts,
}

/// Functions that add tables, charts and paragraphs to the page.
enum Parts {
    /// Once.
    Document(&'static [fn(&mut Page, &Context)]),
    /// For every group of comparable runs, under its name.
    View(&'static [fn(&mut Page, &View, &PlacementStyles)]),
}

/// The sections in the order of the page. A new section is a line here; a new chart is a function in a file of
/// [`charts`](super::charts), named in the section that shows it.
#[rustfmt::skip]
const SECTIONS: &[Section] = &[
    Section { anchor: "incomplete", title: "Incomplete", is_shown: |context| has_runs(context) && incomplete(context.document).is_some(),
        parts: Parts::Document(&[incomplete_warning]) },
    Section { anchor: "groups", title: "Groups of runs", is_shown: |context| has_runs(context) && incomparable_note(&context.document.data_groups).is_some(),
        parts: Parts::Document(&[groups]) },
    Section { anchor: "runs", title: "Runs", is_shown: has_directories,
        parts: Parts::View(&[runs]) },
    Section { anchor: "verdict", title: "Verdict", is_shown: has_analysis,
        parts: Parts::View(&[verdict]) },
    Section { anchor: "rates", title: "Loss against learning rate", is_shown: has_runs,
        parts: Parts::View(&[learning_rates::add_losses, losses]) },
    Section { anchor: "comparisons", title: "Best learning rates and comparisons", is_shown: has_analysis,
        parts: Parts::View(&[comparisons, compare::add_forest]) },
    Section { anchor: "tolerance", title: "Learning rate tolerance and stability", is_shown: has_runs,
        parts: Parts::View(&[learning_rates::add_tolerance, tolerance]) },
    Section { anchor: "tasks", title: "Downstream tasks", is_shown: |context| context.views.iter().any(|view| view.runs.iter().any(|run| !run.tasks.is_empty())),
        parts: Parts::View(&[tasks]) },
    Section { anchor: "curves", title: "Training curves", is_shown: has_runs,
        parts: Parts::View(&[curves::add_curves]) },
    Section { anchor: "inside", title: "Per-block metrics", is_shown: has_runs,
        parts: Parts::View(&[block_metrics::add_heat_maps]) },
    Section { anchor: "cost", title: "Cost", is_shown: has_runs,
        parts: Parts::View(&[compare::add_cost, cost]) },
    Section { anchor: "speedup", title: "Effective speed-up", is_shown: has_analysis,
        parts: Parts::View(&[speedup]) },
    Section { anchor: "probe", title: "Probe", is_shown: |context| context.document.probe.is_some(),
        parts: Parts::Document(&[reference::probe_summary, probe::add_depth_charts, reference::probe_details]) },
    Section { anchor: "placements", title: "Placements", is_shown: |context| !reference::placements(context.document).is_empty(),
        parts: Parts::Document(&[reference::add_placements]) },
    Section { anchor: "everything", title: "All runs", is_shown: |context| !context.document.runs.is_empty(),
        parts: Parts::Document(&[reference::all_runs]) },
    Section { anchor: "downloads", title: "Downloads", is_shown: |_| true,
        parts: Parts::Document(&[reference::downloads]) },
];

/// True if there are runs or analyses.
fn has_runs(context: &Context) -> bool {
    !context.views.is_empty()
}

/// True if runs were compared.
fn has_analysis(context: &Context) -> bool {
    context.views.iter().any(|view| view.group.is_some())
}

/// True if runs were given by directory.
fn has_directories(context: &Context) -> bool {
    let mut runs = context.views.iter().flat_map(|view| &view.runs);
    runs.any(|run| run.directory.is_some())
}

/// Adds all sections that have content.
pub(super) fn add_sections(page: &mut Page, context: &Context) {
    for section in SECTIONS
        .iter()
        .filter(|section| (section.is_shown)(context))
    {
        page.section(section.anchor, section.title);
        match section.parts {
            Parts::Document(parts) => parts.iter().for_each(|part| part(page, context)),
            Parts::View(parts) => {
                for view in context.views {
                    page.heading(&view.name);
                    parts
                        .iter()
                        .for_each(|part| part(page, view, context.styles));
                }
            }
        }
    }
}

fn incomplete_warning(page: &mut Page, context: &Context) {
    if let Some(warning) = incomplete(context.document) {
        page.emphasized(&warning);
    }
}

fn groups(page: &mut Page, context: &Context) {
    if let Some(sentence) = incomparable_note(&context.document.data_groups) {
        page.text(&sentence);
    }
}

/// Returns the warning that is shown first if runs of a study are missing.
pub(super) fn incomplete(document: &Document) -> Option<String> {
    let missing = document.missing();
    (missing > 0).then(|| {
        format!(
            "Incomplete: {} of {} runs of this study are missing. Placements are compared only when all runs have \
             ended; means and best learning rates may still change.",
            missing,
            document.planned.unwrap_or_default()
        )
    })
}

fn runs(page: &mut Page, view: &View, styles: &PlacementStyles) {
    let key = &view.key;
    page.html(&history::differing_keys(view, styles).html(&format!("{key}-differences-table")));
    page.html(&tables::statuses(view, styles).html(&format!("{key}-outcomes-table")));
    for caveat in history::caveats(view) {
        page.note(&caveat);
    }
    page.html(&history::segments(view, styles).html(&format!("{key}-segments-table")));
}

fn verdict(page: &mut Page, view: &View, _: &PlacementStyles) {
    let Some(group) = view.group else {
        page.text("These runs were not compared.");
        return;
    };
    for sentence in group.summary.iter().chain(&group.caveats) {
        page.emphasized(sentence);
    }
    page.text(&confidence_note(&group.analysis));
    if !group.sentences.is_empty() {
        let items: String = (group.sentences.iter())
            .map(|sentence| format!("<li>{}</li>\n", escape_line(sentence, PARAGRAPH_CHARS)))
            .collect();
        page.html(&format!("<ul class=\"sentences\">\n{items}</ul>\n"));
    }
}

fn losses(page: &mut Page, view: &View, styles: &PlacementStyles) {
    page.html(&tables::losses(view, styles).html(&format!("{}-losses-table", view.key)));
}

fn comparisons(page: &mut Page, view: &View, styles: &PlacementStyles) {
    let (Some(group), Some(table)) = (view.group, tables::comparisons(view, styles)) else {
        page.text("These runs were not compared.");
        return;
    };
    page.html(&table.html(&format!("{}-comparisons-table", view.key)));
    let placements = group.analysis.placements.iter();
    let edges = placements.filter_map(|summary| summary.best.as_ref()?.at_edge);
    let edges = edges.count();
    if edges > 0 {
        page.note(&format!(
            "For {} the best learning rate is at the edge of the grid; a better one may lie outside.",
            count(edges, "placement", "placements")
        ));
    }
}

fn tolerance(page: &mut Page, view: &View, styles: &PlacementStyles) {
    if let Some(table) = tables::tolerance(view, styles) {
        page.html(&table.html(&format!("{}-tolerance-table", view.key)));
    }
    page.html(&tables::stability(view, styles).html(&format!("{}-spikes-table", view.key)));
}

fn tasks(page: &mut Page, view: &View, styles: &PlacementStyles) {
    if let Some(table) = tables::tasks(view, styles) {
        page.html(&table.html(&format!("{}-tasks-table", view.key)));
    }
}

fn cost(page: &mut Page, view: &View, styles: &PlacementStyles) {
    page.html(&tables::cost(view, styles).html(&format!("{}-cost-table", view.key)));
    page.note(&machines(view));
}

/// Describes the machines on which the runs of a view were trained.
pub(super) fn machines(view: &View) -> String {
    let mut machines: Vec<String> = Vec::new();
    for run in &view.runs {
        for machine in trained_on(run) {
            if !machines.contains(&machine) {
                machines.push(machine);
            }
        }
    }
    let memory = match view.memory_is_measured() {
        true => "Memory is the largest recorded peak over a placement's runs.",
        false => {
            "Memory is estimated, since no run recorded its peak: weights, gradients, optimizer moments, activations."
        }
    };
    let on = match machines.as_slice() {
        [] => return "No runs.".to_owned(),
        [only] if only == NOT_RECORDED => "The hardware of these runs was not recorded.".to_owned(),
        [only] => format!("Trained on {only}."),
        several => format!(
            "Trained on different machines, with different numbers of threads or by different versions, so \
             throughputs are not directly comparable: {}.",
            several
                .join("; ")
                .replace(NOT_RECORDED, "not recorded for some runs")
        ),
    };
    let units: BTreeSet<&str> = (view.runs.iter()).flat_map(|run| bf16_units(run)).collect();
    let units = match units.len() {
        0 => String::new(),
        1 => format!(" Matmuls in bf16 with {}.", Vec::from_iter(units).concat()),
        _ => format!(
            " Matmuls in bf16 ran on different units, on which results depend, so losses are not strictly comparable: \
             {}.",
            Vec::from_iter(units).join("; ")
        ),
    };
    format!("{on}{units} Tokens per second exclude evaluation and checkpoints. {memory}")
}

/// Returns the units of matmuls in bfloat16 of every process that trained a part of a run.
fn bf16_units(run: &ReportedRun) -> impl Iterator<Item = &str> {
    let directory = run.directory.iter();
    let segments = directory.flat_map(|directory| &directory.segments);
    let units = segments.filter_map(|segment| segment.bf16_unit.as_deref());
    units.chain(run.cost.bf16_unit.as_deref())
}

/// Returns processor, threads and version of every process that trained a part of a run.
fn trained_on(run: &ReportedRun) -> Vec<String> {
    let description = |machine: &str, threads: usize, version: &str| {
        let threads = count(threads, "thread", "threads");
        format!("{machine}, {threads}, hybridnorm {version}")
    };
    let segments = run
        .directory
        .iter()
        .flat_map(|directory| &directory.segments);
    let found: Vec<String> = segments
        .map(|segment| description(&segment.machine, segment.threads, &segment.version))
        .collect();
    if !found.is_empty() {
        return found;
    }
    let cost = &run.cost;
    match (&cost.machine, cost.threads, &cost.version) {
        (Some(machine), Some(threads), Some(version)) => {
            vec![description(machine, threads, version)]
        }
        _ => vec![NOT_RECORDED.to_owned()],
    }
}

/// Constants of the power law from which the effective speed-up is computed.
pub(super) struct PowerLaw {
    /// Irreducible loss `E`.
    pub(super) irreducible: f64,
    /// Exponent `x`.
    pub(super) exponent: f64,
    /// Value and source of `A`, or the reason why it is undefined.
    pub(super) factor_text: String,
}

/// Returns the power law of a group of runs.
pub(super) fn power_law(view: &View) -> Option<PowerLaw> {
    let rules = &view.group?.analysis.rules;
    let name = rules.baseline.as_str();
    let run = view.best_runs(name).into_iter().next();
    let mean = view
        .summary(name)
        .and_then(|summary| Some(summary.best.as_ref()?.loss.mean));
    let factor_text = match (run, mean) {
        (Some(run), Some(mean)) if mean > rules.irreducible_loss => {
            let compute = run.compute();
            let factor = (mean - rules.irreducible_loss) * compute.powf(rules.compute_exponent);
            format!(
                "A = {}, from the mean loss of {name} at its best learning rate, {} nats, and its compute, \
                 C = 6 × {} {} × {} tokens = {}",
                compact(factor),
                loss(mean),
                crate::format_number::with_thousands_separators(
                    run.active_parameters.unwrap_or(run.parameters)
                ),
                if run.active_parameters.is_some() {
                    "active parameters"
                } else {
                    "parameters"
                },
                crate::format_number::with_thousands_separators(run.tokens),
                compact(compute)
            )
        }
        (Some(_), Some(_)) => {
            format!(
                "A is not defined, because the loss of {name} is not above the irreducible loss"
            )
        }
        _ => format!("A is unknown, because no run of {name} finished"),
    };
    Some(PowerLaw {
        irreducible: rules.irreducible_loss,
        exponent: rules.compute_exponent,
        factor_text,
    })
}

/// Limitations of the power law.
pub(super) const LIMITATIONS: &str = "This is extrapolated by a power law, not measured. The irreducible \
    loss E and the exponent are constants of the study and were not fitted here; A is set by a single point, the \
    baseline. Gains of placements without a significant difference may be noise. The power law does not extend to \
    other sizes, more tokens or other data.";

fn speedup(page: &mut Page, view: &View, _: &PlacementStyles) {
    let Some(law) = power_law(view) else {
        page.text("These runs were not compared.");
        return;
    };
    page.text(
        "Compute that the baseline would need for the same loss, extrapolated by a power law.",
    );
    page.html(&format!(
        "<p class=\"formula\">L(C) = E + A · C<sup>−x</sup> = {} + A · C<sup>−{}</sup></p>\n",
        exact(law.irreducible),
        exact(law.exponent)
    ));
    page.text(&format!("{}.", law.factor_text));
    page.text("A placement with loss L matches the baseline trained with compute");
    page.html("<p class=\"formula\">C′ = (A ∕ (L − E))<sup>1∕x</sup></p>\n");
    page.text(
        "Its compute gain is C′ ∕ C, from the mean losses over the seeds common to both. Its effective speed-up is \
         the compute gain times the throughput ratio (tokens per second relative to the baseline). All three are in \
         the table of comparisons.",
    );
    if !view.is_complete {
        page.text("Runs are missing, so no speed-up is reported.");
        return;
    }
    let best = (view.group.iter())
        .flat_map(|group| &group.analysis.placements)
        .filter_map(|summary| Some((summary, summary.comparison.as_ref()?)))
        .filter(|(_, comparison)| comparison.verdict == Verdict::Better)
        .filter_map(|(summary, comparison)| {
            Some((&summary.placement, comparison.effective_speedup?))
        })
        .max_by(|a, b| a.1.total_cmp(&b.1));
    page.text(&match best {
        Some((name, speedup)) => format!(
            "Of the placements that are better than the baseline, {name} has the largest effective \
             speed-up: {}.",
            ratio(speedup)
        ),
        None => {
            "No placement is significantly better than the baseline, so no speed-up is reported."
                .to_owned()
        }
    });
    page.note(LIMITATIONS);
}
