//! Sections about studies.

use super::charts::{compare, curves, inside, rates};
use super::document::Document;
use super::escape::{PARAGRAPH_CHARS, escape_line};
use super::format::{compact, count, loss, plain, times};
use super::history::{self, NOT_RECORDED};
use super::how_sure::how_sure;
use super::page::Page;
use super::palette::Roster;
use super::run::ReportedRun;
use super::sets::apart;
use super::tables;
use super::view::View;
use crate::digits::percent;
use crate::lab::analysis::Verdict;

/// Adds all sections about studies; empty ones are omitted.
pub(super) fn study(page: &mut Page, document: &Document, views: &[View], roster: &Roster) {
    if views.is_empty() {
        return;
    }
    if let Some(remark) = incomplete(document) {
        page.section("incomplete", "Incomplete");
        page.html(&format!(
            "<p class=\"verdict\">{}</p>\n",
            escape_line(&remark, PARAGRAPH_CHARS)
        ));
    }
    if let Some(sentence) = apart(&document.sets) {
        page.section("groups", "Groups of runs");
        page.text(&sentence);
    }
    if views
        .iter()
        .any(|view| view.runs.iter().any(|run| run.directory.is_some()))
    {
        page.section("runs", "Runs");
        each(page, views, |page, view| runs(page, view, roster));
    }
    if views.iter().any(|view| view.group.is_some()) {
        page.section("verdict", "Verdict");
        each(page, views, verdict);
    }
    page.section("rates", "Loss against learning rate");
    each(page, views, |page, view| losses(page, view, roster));
    if views.iter().any(|view| view.group.is_some()) {
        page.section("comparisons", "Best rates and comparisons");
        each(page, views, |page, view| comparisons(page, view, roster));
    }
    page.section("tolerance", "Tolerance and spikes");
    each(page, views, |page, view| tolerance(page, view, roster));
    page.section("curves", "Loss curves");
    each(page, views, |page, view| loss_curves(page, view, roster));
    page.section("inside", "Inside the model");
    each(page, views, insides);
    page.section("cost", "Cost");
    each(page, views, |page, view| cost(page, view, roster));
    if views.iter().any(|view| view.group.is_some()) {
        page.section("speedup", "Effective speed-up");
        each(page, views, speedup);
    }
}

/// Returns the warning that is shown first if runs of a study are missing.
pub(super) fn incomplete(document: &Document) -> Option<String> {
    let missing = document.missing();
    (missing > 0).then(|| {
        format!(
            "Incomplete: {} of {} runs of this study are missing. No placement is ranked before all of \
             them are there; means and best rates of what is there may change.",
            missing,
            document.planned.unwrap_or_default()
        )
    })
}

fn runs(page: &mut Page, view: &View, roster: &Roster) {
    let key = &view.key;
    page.html(&history::differences(view, roster).html(&format!("{key}-differences-table")));
    page.html(&tables::outcomes(view, roster).html(&format!("{key}-outcomes-table")));
    for remark in history::remarks(view) {
        page.note(&remark);
    }
    page.html(&history::segments(view, roster).html(&format!("{key}-segments-table")));
}

fn each(page: &mut Page, views: &[View], mut part: impl FnMut(&mut Page, &View)) {
    for view in views {
        page.heading(&view.name);
        part(page, view);
    }
}

fn verdict(page: &mut Page, view: &View) {
    let Some(group) = view.group else {
        page.text("These runs were not compared.");
        return;
    };
    for sentence in group.verdict.iter().chain(&group.remarks) {
        page.html(&format!(
            "<p class=\"verdict\">{}</p>\n",
            escape_line(sentence, PARAGRAPH_CHARS)
        ));
    }
    page.text(&how_sure(&group.analysis));
    if !group.sentences.is_empty() {
        let items: String = (group.sentences.iter())
            .map(|sentence| format!("<li>{}</li>\n", escape_line(sentence, PARAGRAPH_CHARS)))
            .collect();
        page.html(&format!("<ul class=\"sentences\">\n{items}</ul>\n"));
    }
}

fn losses(page: &mut Page, view: &View, roster: &Roster) {
    match rates::losses(view, roster) {
        None => page.text("No run finished with a validation loss, and none was lost."),
        Some(found) => {
            page.legend(
                &view.placements,
                roster,
                std::slice::from_ref(&found.chart.id),
            );
            let mut caption = vec!["Lines join mean losses."];
            if found.seeds {
                caption
                    .push("Small points are seeds; whiskers reach from the lowest to the highest.");
            }
            if found.lost {
                caption.push(
                    "A cross at the upper edge stands for runs that were lost; the mean of the others at that \
                     rate is hollow, and no line leads to it.",
                );
            }
            if found.beyond {
                caption.push("Some means lie beyond the upper edge; the table has them.");
            }
            page.chart(found.chart, &caption.join(" "));
        }
    }
    page.html(&tables::losses(view, roster).html(&format!("{}-losses-table", view.key)));
}

fn comparisons(page: &mut Page, view: &View, roster: &Roster) {
    let (Some(group), Some(table)) = (view.group, tables::comparisons(view, roster)) else {
        page.text("These runs were not compared.");
        return;
    };
    page.html(&table.html(&format!("{}-comparisons-table", view.key)));
    let edges = (group.analysis.placements.iter())
        .filter(|summary| {
            summary
                .best
                .as_ref()
                .is_some_and(|best| best.at_edge.is_some())
        })
        .count();
    if edges > 0 {
        page.note(&format!(
            "The best rate of {} is the lowest, the highest or the only one that was tried: a better one \
             may lie outside.",
            count(edges, "placement", "placements")
        ));
    }
    if let Some(chart) = compare::forest(view, roster) {
        let caption = format!(
            "Differences of the validation loss to {} with {} intervals{}; left is better. Filled markers: \
             better or worse, the whole interval lies beyond the margin of {} nats; open markers: \
             not distinguishable or equivalent.",
            group.analysis.rules.baseline,
            percent(1.0 - group.analysis.rules.alpha),
            match group.analysis.comparisons() {
                0 | 1 => "",
                _ => " that hold for all comparisons together",
            },
            group.analysis.rules.margin
        );
        page.chart(chart, &caption);
    }
}

fn tolerance(page: &mut Page, view: &View, roster: &Roster) {
    if let Some(chart) = rates::tolerance(view, roster) {
        page.chart(
            chart,
            "Bars: rates whose mean loss is within the tolerance of the best. Circle: best rate. \
             Upright line: largest rate up to which no run was lost.",
        );
    }
    if let Some(table) = tables::tolerance(view, roster) {
        page.html(&table.html(&format!("{}-tolerance-table", view.key)));
    }
    page.html(&tables::spikes(view, roster).html(&format!("{}-spikes-table", view.key)));
}

fn loss_curves(page: &mut Page, view: &View, roster: &Roster) {
    let Some(found) = curves::curves(view, roster) else {
        page.text("No course of training was recorded.");
        return;
    };
    let ids: Vec<String> = found.charts.iter().map(|chart| chart.id.clone()).collect();
    let id = format!("{}-curves-choice", view.key);
    page.choice(&id, "Runs:", &ids, &found.choices);
    page.legend(&view.placements, roster, &ids);
    let captions = [
        "Training loss. Thick: mean over the seeds that finished; thin: each seed; markers: \
         validation loss on the way; dotted upright lines: keys of a run were changed. The axis begins where finished runs are after a twentieth of \
         their steps; a double click shows everything.",
        "Largest gradient norm of each stretch of steps, before clipping.",
    ];
    for (chart, caption) in found.charts.into_iter().zip(captions) {
        page.chart(chart, caption);
    }
}

fn insides(page: &mut Page, view: &View) {
    let Some(maps) = inside::heat_maps(view) else {
        page.text("Nothing was recorded of the inside of these models at their best rates.");
        return;
    };
    let scale = format!("{}-inside-scale", view.key);
    let mut targets = vec![scale.clone()];
    targets.extend(maps.charts.iter().map(|(_, chart)| chart.id.clone()));
    let id = format!("{}-inside-choice", view.key);
    page.choice(&id, "Quantity:", &targets, &maps.choices);
    let ends: Vec<[String; 3]> = (maps.ends.iter())
        .map(|(low, high)| [*low, (low * high).sqrt(), *high].map(compact))
        .collect();
    page.scales(&scale, &ends);
    page.grid("narrow", maps.charts);
    page.note(
        "At the best rate; geometric means over the seeds that finished, on one logarithmic scale for \
         each quantity. Gaps: not positive, or not finite.",
    );
}

fn cost(page: &mut Page, view: &View, roster: &Roster) {
    let charts = compare::cost(view, roster);
    if charts.len() > 1 {
        page.grid("wide", charts.into_iter().map(|chart| ("", chart)));
    } else {
        for chart in charts {
            page.chart(chart, "");
        }
    }
    page.html(&tables::cost(view, roster).html(&format!("{}-cost-table", view.key)));
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
        true => "Memory is the largest peak of a placement's runs that recorded one.",
        false => {
            "Memory is estimated, since no run recorded a peak of its own: weights, gradients, moments, \
             activations."
        }
    };
    let on = match machines.as_slice() {
        [] => return "No runs.".to_owned(),
        [only] if only == NOT_RECORDED => {
            "What these runs were trained on was not recorded.".to_owned()
        }
        [only] => format!("Trained on {only}."),
        several => format!(
            "Trained on several machines or in several ways, which makes speeds hard to compare: {}.",
            several
                .join("; ")
                .replace(NOT_RECORDED, "of some runs it was not recorded")
        ),
    };
    format!("{on} Tokens per second leave out evaluation and saving. {memory}")
}

/// Returns processor, threads and version of every process that trained a part of a run.
fn trained_on(run: &ReportedRun) -> Vec<String> {
    let in_words = |machine: &str, threads: usize, version: &str| {
        let threads = count(threads, "thread", "threads");
        format!("{machine}, {threads}, hybridnorm {version}")
    };
    let segments = run
        .directory
        .iter()
        .flat_map(|directory| &directory.segments);
    let found: Vec<String> = segments
        .map(|segment| in_words(&segment.machine, segment.threads, &segment.version))
        .collect();
    if !found.is_empty() {
        return found;
    }
    let cost = &run.cost;
    match (&cost.machine, cost.threads, &cost.version) {
        (Some(machine), Some(threads), Some(version)) => vec![in_words(machine, threads, version)],
        _ => vec![NOT_RECORDED.to_owned()],
    }
}

/// Constants of the model of effective speed-up.
pub(super) struct Law {
    /// Irreducible loss `E`.
    pub(super) irreducible: f64,
    /// Exponent `x`.
    pub(super) exponent: f64,
    /// Value and source of `A`, or the reason why it is undefined.
    pub(super) factor: String,
}

/// Returns the model as used for a view.
pub(super) fn law(view: &View) -> Option<Law> {
    let rules = &view.group?.analysis.rules;
    let name = rules.baseline.as_str();
    let run = view.best_runs(name).into_iter().next();
    let mean = view
        .summary(name)
        .and_then(|summary| Some(summary.best.as_ref()?.loss.mean));
    let factor = match (run, mean) {
        (Some(run), Some(mean)) if mean > rules.irreducible_loss => {
            let compute = run.compute();
            let factor = (mean - rules.irreducible_loss) * compute.powf(rules.compute_exponent);
            format!(
                "A = {}, from the mean loss of {name} at its best rate, {} nats, and its compute, \
                 C = 6 × {} {} × {} tokens = {}",
                compact(factor),
                loss(mean),
                crate::digits::grouped(run.active_parameters.unwrap_or(run.parameters)),
                if run.active_parameters.is_some() {
                    "active parameters"
                } else {
                    "parameters"
                },
                crate::digits::grouped(run.tokens),
                compact(compute)
            )
        }
        (Some(_), Some(_)) => {
            format!("A is not defined, because {name} is not above the irreducible loss")
        }
        _ => format!("A is not known, because no run of {name} finished"),
    };
    Some(Law {
        irreducible: rules.irreducible_loss,
        exponent: rules.compute_exponent,
        factor,
    })
}

/// Limitations of the model.
pub(super) const LIMITS: &str = "This is a model, not a measurement. E and the exponent are constants \
    of the study and were not fitted here; A is set by a single point, the baseline. Gains of \
    placements whose loss is not distinguishable are noise. Nothing follows for other sizes, more tokens \
    or other data.";

fn speedup(page: &mut Page, view: &View) {
    let Some(law) = law(view) else {
        page.text("These runs were not compared.");
        return;
    };
    page.text("How much compute would the baseline need for the same loss, by a power law?");
    page.html(&format!(
        "<p class=\"formula\">L(C) = E + A · C<sup>−x</sup> = {} + A · C<sup>−{}</sup></p>\n",
        plain(law.irreducible),
        plain(law.exponent)
    ));
    page.text(&format!("{}.", law.factor));
    page.text("A placement with loss L does what the baseline does with compute");
    page.html("<p class=\"formula\">C′ = (A ∕ (L − E))<sup>1∕x</sup></p>\n");
    page.text(
        "Its compute gain is C′ ∕ C over the seeds that both have; its effective speed-up is the \
         compute gain times the throughput ratio, which compares tokens per second. The table of \
         comparisons has all three.",
    );
    if !view.is_complete {
        page.text("Runs are missing, and so nothing is said about speed-ups.");
        return;
    }
    let best = (view.group.iter())
        .flat_map(|group| &group.analysis.placements)
        .filter_map(|summary| Some((summary, summary.against.as_ref()?)))
        .filter(|(_, against)| against.verdict == Verdict::Better)
        .filter_map(|(summary, against)| Some((&summary.placement, against.effective_speedup?)))
        .max_by(|a, b| a.1.total_cmp(&b.1));
    page.text(&match best {
        Some((name, speedup)) => format!(
            "Of the placements that are better than the baseline, {name} has the largest effective \
             speed-up: {}.",
            times(speedup)
        ),
        None => {
            "No placement is shown to be better than the baseline, and so no speed-up.".to_owned()
        }
    });
    page.note(LIMITS);
}
