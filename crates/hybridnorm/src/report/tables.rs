//! Tables of a study.

mod tasks;

use super::format::{
    NONE, count, difference, learning_rate, loss, mean_sd, mebibytes, or_none, probability, ratio,
    throughput,
};
use super::history::{NOT_RECORDED, machine};
use super::palette::PlacementStyles;
use super::run::ReportedRun;
use super::table::{Cell, Table};
use super::view::View;
use crate::format_number::{percent, with_thousands_separators};
use crate::lab::analysis::{Best, Comparison, Edge, LearningRateSummary, Verdict};
use crate::lab::study::record::RunStatus;

pub(super) use tasks::tasks;

/// Words for the status of runs, in every table and sentence.
pub(super) const DIVERGED: &str = "diverged";
pub(super) const NOT_LEARNED: &str = "not learned yet";
/// Eliminated by successive halving.
pub(super) const ELIMINATED: &str = "eliminated";

/// Returns a cell with the name and mark of a placement.
pub(super) fn placement(styles: &PlacementStyles, name: &str) -> Cell {
    Cell::new(name).style(styles.style(name))
}

/// Builds the table of mean losses by placement and learning rate.
pub(super) fn losses(view: &View, styles: &PlacementStyles) -> Table {
    let mut table = Table::new(
        "Validation loss by learning rate, in nats per token: mean ± standard deviation over the \
         seeds that finished; each placement's best learning rate is bold",
    )
    .text("placement");
    for &lr in &view.lrs {
        table = table.number(learning_rate(lr));
    }
    for &name in &view.placements {
        let best = view.best_lr(name).filter(|_| view.is_complete);
        let mut row = vec![placement(styles, name)];
        for &lr in &view.lrs {
            let found = view.status_at(name, lr);
            let mut notes = Vec::new();
            for (number, word) in [
                (found.diverged, DIVERGED),
                (found.not_learned, NOT_LEARNED),
                (found.eliminated, ELIMINATED),
                (found.unfinished, "unfinished"),
            ] {
                if number > 0 {
                    notes.push(format!("{number} of {} {word}", found.runs));
                }
            }
            let class = match (best == Some(lr), found.diverged > 0) {
                (true, _) => "best",
                (false, true) => "warn",
                (false, false) => "",
            };
            let text = match found.summary() {
                None if notes.is_empty() => NONE.to_owned(),
                None => String::new(),
                Some(found) => mean_sd(&found),
            };
            row.push(Cell::new(text).class(class).note(notes.join(", ")));
        }
        table.row(row);
    }
    table
}

/// Builds the table of best learning rates and of comparisons with the baseline.
pub(super) fn comparisons(view: &View, styles: &PlacementStyles) -> Option<Table> {
    let analysis = &view.group?.analysis;
    let level = percent(1.0 - analysis.rules.alpha);
    let mut table = Table::new(format!(
        "Each placement at its best learning rate, and its paired difference from {} at the \
         baseline's best learning rate, over the same seeds; negative is better",
        analysis.rules.baseline
    ))
    .text("placement")
    .number("best learning rate")
    .number("validation loss (nats)")
    .number(format!("difference, {level} interval (nats)"))
    .number("p (adjusted)")
    .text("verdict")
    .number("compute gain")
    .number("throughput ratio")
    .number("effective speed-up");
    for summary in &analysis.placements {
        let mut row = vec![placement(styles, &summary.placement)];
        row.push(or_none_cell(summary.best.as_ref(), best_lr));
        row.push(or_none_cell(summary.best.as_ref(), |best| {
            Cell::new(mean_sd(&best.loss)).note(count(best.loss.n, "seed", "seeds"))
        }));
        match &summary.comparison {
            Some(comparison) => row.extend(comparison_cells(comparison)),
            None => {
                let why = match &summary.no_comparison_reason {
                    Some(why) => why.as_str(),
                    None if summary.placement == analysis.rules.baseline => "the baseline",
                    None => "not compared",
                };
                row.extend([NONE, NONE].map(Cell::new));
                row.push(Cell::new(why).class("quiet"));
                row.extend([NONE, NONE, NONE].map(Cell::new));
            }
        }
        table.row(row);
    }
    Some(table)
}

fn or_none_cell<T>(value: Option<T>, cell: impl Fn(T) -> Cell) -> Cell {
    value.map_or_else(|| Cell::new(NONE), cell)
}

fn best_lr(best: &Best) -> Cell {
    let note = match best.at_edge {
        None => "",
        Some(Edge::Lowest) => "lowest tried",
        Some(Edge::Highest) => "highest tried",
        Some(Edge::Only) => "only one tried",
    };
    Cell::new(learning_rate(best.lr)).note(note)
}

/// Formats a number of seeds: `1 fresh seed`.
fn fresh_seeds(seeds: u64) -> String {
    count(seeds as usize, "fresh seed", "fresh seeds")
}

fn comparison_cells(comparison: &Comparison) -> Vec<Cell> {
    let found = &comparison.difference;
    let (class, word) = verdict(comparison.verdict);
    let note = match (comparison.verdict, comparison.seeds_for_significance) {
        (Verdict::NotSignificant, Some(seeds)) => {
            format!(
                "about {} would detect a difference of this size",
                fresh_seeds(seeds)
            )
        }
        _ => String::new(),
    };
    vec![
        Cell::new(difference(found.mean)).note(format!(
            "{} to {}",
            difference(found.low),
            difference(found.high)
        )),
        Cell::new(probability(comparison.p_adjusted)).note(count(
            comparison.pairs,
            "pair",
            "pairs",
        )),
        Cell::new(word).class(class).note(note),
        Cell::new(or_none(comparison.compute_gain, ratio)),
        Cell::new(or_none(comparison.throughput_ratio, ratio)),
        Cell::new(or_none(comparison.effective_speedup, ratio)),
    ]
}

/// Returns CSS class and word of a verdict.
pub(super) fn verdict(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Better => ("good", "better"),
        Verdict::Worse => ("bad", "worse"),
        Verdict::Equivalent => ("quiet", "equivalent"),
        Verdict::NotSignificant => ("quiet", "not significant"),
    }
}

/// Builds the table of learning rate tolerance, at grid resolution.
pub(super) fn tolerance(view: &View, styles: &PlacementStyles) -> Option<Table> {
    let analysis = &view.group?.analysis;
    let mut table = Table::new(format!(
        "Range of learning rates tried whose mean loss is within {} nats of the placement's best, the next learning \
         rate outside it on each side, and the largest learning rate up to which no run diverged. The range is known \
         only to grid resolution; at the edge of the grid it may extend further",
        analysis.rules.tolerance
    ))
    .text("placement")
    .number("lowest learning rate")
    .number("best learning rate")
    .number("highest learning rate")
    .number("largest stable learning rate")
    .number("learning rate sensitivity (nats)");
    for summary in &analysis.placements {
        let end = |lr: f64, next: Option<f64>, edge: &str| {
            let of_next = |summary: &&LearningRateSummary| Some(summary.lr) == next;
            Cell::new(learning_rate(lr)).note(
                match (next, summary.learning_rates.iter().find(of_next)) {
                    (Some(next), Some(found)) if found.eliminated > 0 => {
                        format!("{} was eliminated", learning_rate(next))
                    }
                    (Some(next), _) => format!("{} is outside", learning_rate(next)),
                    (None, _) => format!("{edge} tried"),
                },
            )
        };
        let range = summary.lr_tolerance.as_ref();
        table.row(vec![
            placement(styles, &summary.placement),
            or_none_cell(range, |range| end(range.low, range.next_below, "lowest")),
            or_none(summary.best.as_ref(), |best| learning_rate(best.lr)).into(),
            or_none_cell(range, |range| end(range.high, range.next_above, "highest")),
            or_none(summary.largest_stable_lr, learning_rate).into(),
            or_none(summary.lr_sensitivity, loss).into(),
        ]);
    }
    Some(table)
}

/// Builds the table of run statuses and spikes.
pub(super) fn stability(view: &View, styles: &PlacementStyles) -> Table {
    let mut table = Table::new(
        "Run status and spikes over all learning rates and seeds: number of runs that finished, diverged, had not \
         learned yet (training loss not at least 0.1 nats below the unigram loss) or were eliminated by successive \
         halving, and number of spikes",
    )
    .text("placement")
    .number("runs")
    .number("finished")
    .number(DIVERGED)
    .number(NOT_LEARNED)
    .number(ELIMINATED)
    .number("loss spikes")
    .number("gradient norm spikes")
    .number("update norm spikes")
    .number("runs with loss spikes");
    for &name in &view.placements {
        let [loss, grad, update, runs] = view.spikes(name);
        let count_of = |wanted: fn(&RunStatus) -> bool| {
            view.runs_of(name).filter(|run| wanted(&run.status)).count()
        };
        let finished = count_of(|status| matches!(status, RunStatus::Finished));
        let diverged = count_of(|status| matches!(status, RunStatus::Diverged { .. }));
        let not_learned = count_of(|status| matches!(status, RunStatus::NotLearned { .. }));
        let eliminated = count_of(|status| matches!(status, RunStatus::Eliminated { .. }));
        table.row(vec![
            placement(styles, name),
            with_thousands_separators(view.runs_of(name).count() as u64).into(),
            with_thousands_separators(finished as u64).into(),
            Cell::new(with_thousands_separators(diverged as u64)).class(if diverged > 0 {
                "bad"
            } else {
                ""
            }),
            Cell::new(with_thousands_separators(not_learned as u64)).class(if not_learned > 0 {
                "warn"
            } else {
                ""
            }),
            with_thousands_separators(eliminated as u64).into(),
            with_thousands_separators(loss).into(),
            with_thousands_separators(grad).into(),
            with_thousands_separators(update).into(),
            with_thousands_separators(runs).into(),
        ]);
    }
    table
}

/// Builds the table of throughput and memory.
pub(super) fn cost(view: &View, styles: &PlacementStyles) -> Table {
    let mut table = Table::new("Cost of training")
        .text("placement")
        .number("parameters")
        .number("tokens/s")
        .number(match view.memory_is_measured() {
            true => "peak memory (MiB)",
            false => "memory, estimated (MiB)",
        });
    for &name in &view.placements {
        let parameters = view.runs_of(name).next().map(|run| {
            let active = run.active_parameters.map(with_thousands_separators);
            let active = active.map(|active| format!(" ({active} active)"));
            with_thousands_separators(run.parameters) + &active.unwrap_or_default()
        });
        table.row(vec![
            placement(styles, name),
            or_none(parameters, |parameters| parameters).into(),
            or_none(view.tokens_per_second(name), throughput).into(),
            or_none(view.memory(name), mebibytes).into(),
        ]);
    }
    table
}

/// Builds the table of run statuses, with few columns.
pub(super) fn statuses(view: &View, styles: &PlacementStyles) -> Table {
    let mut table = Table::new("Status of each run")
        .text("run")
        .number("peak learning rate")
        .number("seed")
        .text("status")
        .number("steps")
        .number("validation loss (nats)")
        .number("training loss (nats)");
    for run in &view.runs {
        let (status, class) = status_text(run);
        table.row(vec![
            placement(styles, run.label()),
            peak_learning_rates(run).into(),
            run.grid_point.seed.to_string().into(),
            Cell::new(status).class(class),
            with_thousands_separators(run.steps).into(),
            or_none(run.validation_loss, loss).into(),
            or_none(run.train_loss, loss).into(),
        ]);
    }
    table
}

/// Builds the table of all runs, with all columns.
pub(super) fn runs(runs: &[&ReportedRun], styles: &PlacementStyles) -> Table {
    let mut table = Table::new("All runs")
        .text("placement")
        .number("learning rate")
        .number("seed")
        .text("initialization")
        .number("blocks")
        .text("id")
        .text("status")
        .number("steps")
        .number("tokens")
        .number("validation loss (nats)")
        .number("training loss (nats)")
        .number("largest gradient norm")
        .number("spikes: loss, gradient, update")
        .number("tokens/s")
        .number("seconds")
        .text("machine")
        .number("threads")
        .text("version")
        .text("data");
    for run in runs {
        let (status, class) = status_text(run);
        let spikes = run.spikes;
        table.row(vec![
            placement(styles, run.label()),
            peak_learning_rates(run).into(),
            run.grid_point.seed.to_string().into(),
            run.grid_point.init.as_deref().unwrap_or(NONE).into(),
            or_none(run.grid_point.depth, |depth| depth.to_string()).into(),
            Cell::new(run.id.as_str()).class("code"),
            Cell::new(status).class(class),
            with_thousands_separators(run.steps).into(),
            with_thousands_separators(run.tokens).into(),
            or_none(run.validation_loss, loss).into(),
            or_none(run.train_loss, loss).into(),
            super::format::compact(run.max_grad_norm).into(),
            format!(
                "{}, {}, {}",
                spikes.loss, spikes.grad_norm, spikes.update_norm
            )
            .into(),
            throughput(run.cost.tokens_per_second).into(),
            format!("{:.0}", run.cost.seconds).into(),
            recorded(
                (run.cost.machine.as_deref())
                    .map(|cpu| machine(cpu, run.cost.bf16_unit.as_deref())),
            ),
            recorded(run.cost.threads.map(|threads| threads.to_string())),
            recorded(run.cost.version.clone()),
            Cell::new(run.data.as_str()).class("code"),
        ]);
    }
    table
}

fn recorded(fact: Option<String>) -> Cell {
    match fact {
        Some(fact) => fact.into(),
        None => Cell::new(NOT_RECORDED).class("quiet"),
    }
}

/// Formats the peak learning rate of a run, or all of them with their steps.
pub(super) fn peak_learning_rates(run: &ReportedRun) -> String {
    let peak_lrs = match &run.directory {
        None => return learning_rate(run.grid_point.lr),
        Some(directory) => &directory.peak_lrs,
    };
    let mut text = String::new();
    for peak in peak_lrs {
        match peak.after_step {
            0 => text += &learning_rate(peak.lr),
            step => {
                text += &format!(
                    ", {} after step {}",
                    learning_rate(peak.lr),
                    with_thousands_separators(step)
                )
            }
        }
    }
    match text.as_str() {
        "" => "changed during training".to_owned(),
        _ => text,
    }
}

/// Returns the status of a run in words, and their CSS class.
fn status_text(run: &ReportedRun) -> (String, &'static str) {
    match &run.status {
        RunStatus::Finished => ("finished".to_owned(), ""),
        RunStatus::Diverged { step, reason } => (
            format!(
                "{DIVERGED} after step {}: {reason}",
                with_thousands_separators(*step)
            ),
            "bad",
        ),
        RunStatus::NotLearned { reason } => (format!("{NOT_LEARNED}: {reason}"), "warn"),
        RunStatus::Eliminated { step } => (
            format!(
                "{ELIMINATED} after step {}",
                with_thousands_separators(*step)
            ),
            "quiet",
        ),
        RunStatus::Unfinished { step } => {
            let planned = run
                .directory
                .as_ref()
                .map(|directory| directory.planned_steps);
            let of = planned.map_or_else(String::new, |steps| {
                format!(" of {}", with_thousands_separators(steps))
            });
            (
                format!("unfinished: step {}{of}", with_thousands_separators(*step)),
                "warn",
            )
        }
    }
}
