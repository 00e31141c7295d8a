//! Training curves.

use std::collections::BTreeMap;

use plotly::Scatter;
use plotly::common::{DashType, HoverInfo, Mode};
use plotly::layout::{Axis, Shape, ShapeLine, ShapeType};

use super::super::escape::plot_text;
use super::super::format::rate;
use super::super::palette::{Roster, color};
use super::super::run::ReportedRun;
use super::super::view::View;
use super::{Chart, Figure, axis, layout, legend_group, line, log_axis, marker, positive, short};
use crate::lab::study::record::{Curve, Ending};

/// Charts of loss and gradient norm, and the names of their views.
pub(in super::super) struct Curves {
    /// Two charts with the same number of views.
    pub(in super::super) charts: Vec<Chart>,
    /// One name per view.
    pub(in super::super) choices: Vec<String>,
}

/// Builds the curves of every placement: at its best learning rate, and at each learning rate.
pub(in super::super) fn curves(view: &View, roster: &Roster) -> Option<Curves> {
    let mut picks: Vec<(String, Pick)> = Vec::new();
    let best = |name: &str| -> Vec<&ReportedRun> {
        (view.best_rate(name)).map_or_else(Vec::new, |lr| view.at(name, lr))
    };
    picks.push((
        "each placement at its best rate".to_owned(),
        pick(view, best),
    ));
    for &lr in &view.rates {
        let runs = pick(view, |name| view.at(name, lr));
        picks.push((format!("all placements at {}", rate(lr)), runs));
    }
    let changed = |name: &str| -> Vec<&ReportedRun> {
        view.of(name).filter(|run| run.rate().is_none()).collect()
    };
    picks.push((
        "runs whose learning rate was changed".to_owned(),
        pick(view, changed),
    ));
    picks.retain(|(_, pick)| {
        (pick.iter().flat_map(|(_, runs)| runs)).any(|run| !run.curve.step.is_empty())
    });
    if picks.is_empty() {
        return None;
    }
    let charts = vec![
        Chart {
            id: format!("{}-loss-curves", view.key),
            label: "Training loss against steps for each placement. The curves can be downloaded \
                    as CSV at the end."
                .to_owned(),
            height: 420,
            views: picks.iter().map(|(_, pick)| loss(pick, roster)).collect(),
        },
        Chart {
            id: format!("{}-grad-curves", view.key),
            label: "Gradient norm against steps for each placement. The curves can be downloaded \
                    as CSV at the end."
                .to_owned(),
            height: 320,
            views: picks
                .iter()
                .map(|(_, pick)| grad_norm(pick, roster))
                .collect(),
        },
    ];
    Some(Curves {
        charts,
        choices: picks.into_iter().map(|(name, _)| name).collect(),
    })
}

/// Placements with the runs that are shown for each.
type Pick<'a> = Vec<(&'a str, Vec<&'a ReportedRun>)>;

fn pick<'a>(view: &View<'a>, runs: impl Fn(&str) -> Vec<&'a ReportedRun>) -> Pick<'a> {
    view.placements
        .iter()
        .map(|name| (*name, runs(name)))
        .collect()
}

fn loss(pick: &Pick, roster: &Roster) -> Figure {
    let y = axis("training loss (nats per token)");
    let y = match loss_range(pick) {
        Some((low, high)) => y.range(vec![low, high]),
        None => y,
    };
    let mut figure = Figure::new(layout(420, steps(pick), y).shapes(marks(pick, roster)));
    for (name, runs) in pick {
        lines(
            &mut figure,
            roster.style(name),
            name,
            runs,
            |curve| &curve.loss,
            short,
        );
    }
    for (name, runs) in pick {
        evaluations(&mut figure, roster.style(name), name, runs);
    }
    figure
}

fn grad_norm(pick: &Pick, roster: &Roster) -> Figure {
    let runs = pick.iter().flat_map(|(_, runs)| runs);
    let norms = runs.flat_map(|run| &run.curve.grad_norm).copied();
    let y = log_axis("gradient norm before clipping", norms.map(f64::from));
    let mut figure = Figure::new(layout(320, steps(pick), y).shapes(marks(pick, roster)));
    for (name, runs) in pick {
        lines(
            &mut figure,
            roster.style(name),
            name,
            runs,
            |curve| &curve.grad_norm,
            |value| positive(Some(value)),
        );
    }
    figure
}

/// Returns dotted lines at the steps where keys of a run were changed.
fn marks(pick: &Pick, roster: &Roster) -> Vec<Shape> {
    let mut marks = Vec::new();
    for run in pick.iter().flat_map(|(_, runs)| runs) {
        let segments = run
            .directory
            .iter()
            .flat_map(|directory| &directory.segments);
        for segment in segments.filter(|segment| !segment.changed.is_empty()) {
            let line = ShapeLine::new()
                .color(color(roster.style(run.label())))
                .dash(DashType::Dot)
                .width(1.0);
            let mark = Shape::new()
                .shape_type(ShapeType::Line)
                .x0(segment.after_step)
                .x1(segment.after_step)
                .y_ref("paper")
                .y0(0.0)
                .y1(1.0)
                .line(line);
            marks.push(mark);
        }
    }
    marks
}

/// Returns an axis of steps from 0 to the last one.
fn steps(pick: &Pick) -> Axis {
    let last = (pick.iter().flat_map(|(_, runs)| runs))
        .filter_map(|run| run.curve.step.last())
        .max();
    let last = last.map_or(1.0, |last| *last as f64);
    axis("step").range(vec![0.0, 1.01 * last])
}

/// Returns the range from the lowest loss to the loss of finished runs after a twentieth of their steps.
fn loss_range(pick: &Pick) -> Option<(f64, f64)> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for run in finished(pick.iter().flat_map(|(_, runs)| runs)) {
        let losses = &run.curve.loss;
        let early = losses
            .get(losses.len() / 20)
            .copied()
            .map_or(f64::NAN, f64::from);
        let least = losses
            .iter()
            .copied()
            .map(f64::from)
            .fold(f64::INFINITY, f64::min);
        low = low.min(least);
        high = high.max(early);
    }
    let span = high - low;
    (span.is_finite() && span > 0.0).then_some((low - 0.04 * span, high + 0.02 * span))
}

fn finished<'a, 'b: 'a>(
    runs: impl Iterator<Item = &'a &'b ReportedRun>,
) -> impl Iterator<Item = &'b ReportedRun> {
    runs.copied()
        .filter(|run| matches!(run.ending, Ending::Finished))
}

/// Adds each run as a thin line, and the mean of the finished runs as a thick line.
fn lines(
    figure: &mut Figure,
    style: usize,
    name: &str,
    runs: &[&ReportedRun],
    of: impl Fn(&Curve) -> &Vec<f32>,
    shown: impl Fn(f64) -> Option<f64>,
) {
    let name = plot_text(name);
    let mean = mean_curve(runs, &of);
    for run in runs {
        // A single finished run is its own mean.
        if runs.len() == 1 && !mean.is_empty() {
            continue;
        }
        let y: Vec<Option<f64>> = of(&run.curve)
            .iter()
            .map(|value| shown((*value).into()))
            .collect();
        if y.is_empty() {
            continue;
        }
        let trace = Scatter::new(run.curve.step.clone(), y)
            .mode(Mode::Lines)
            .name(format!("{name}, seed {}", run.cell.seed))
            .legend_group(legend_group(style))
            .line(line(style, 1.0))
            .opacity(if mean.is_empty() { 0.8 } else { 0.4 })
            .hover_info(HoverInfo::Skip);
        figure.push(trace);
    }
    if mean.is_empty() {
        return;
    }
    let x: Vec<u64> = mean.keys().copied().collect();
    let y: Vec<Option<f64>> = mean.values().map(|value| shown(*value)).collect();
    let trace = Scatter::new(x, y)
        .mode(Mode::Lines)
        .name(name)
        .legend_group(legend_group(style))
        .line(line(style, 2.2))
        .hover_template("step %{x}: %{y}");
    figure.push(trace);
}

/// Averages the finished runs at the steps that all of them have.
fn mean_curve(runs: &[&ReportedRun], of: &impl Fn(&Curve) -> &Vec<f32>) -> BTreeMap<u64, f64> {
    let runs: Vec<&ReportedRun> = finished(runs.iter()).collect();
    let mut sums: BTreeMap<u64, (f64, usize)> = BTreeMap::new();
    for run in &runs {
        for (step, value) in run.curve.step.iter().zip(of(&run.curve)) {
            let entry = sums.entry(*step).or_default();
            entry.0 += f64::from(*value);
            entry.1 += 1;
        }
    }
    (sums.into_iter())
        .filter(|(_, (_, n))| *n == runs.len())
        .map(|(step, (sum, n))| (step, sum / n as f64))
        .collect()
}

/// Adds mean validation losses during training as markers.
fn evaluations(figure: &mut Figure, style: usize, name: &str, runs: &[&ReportedRun]) {
    let runs: Vec<&ReportedRun> = finished(runs.iter()).collect();
    let mut sums: BTreeMap<u64, (f64, usize)> = BTreeMap::new();
    for evaluation in runs.iter().flat_map(|run| &run.validation) {
        let entry = sums.entry(evaluation.step).or_default();
        entry.0 += evaluation.loss;
        entry.1 += 1;
    }
    sums.retain(|_, (_, n)| *n == runs.len());
    if sums.is_empty() {
        return;
    }
    let x: Vec<u64> = sums.keys().copied().collect();
    let y: Vec<Option<f64>> = sums
        .values()
        .map(|(sum, n)| short(sum / *n as f64))
        .collect();
    let trace = Scatter::new(x, y)
        .mode(Mode::Markers)
        .name(format!("{}, validation", plot_text(name)))
        .legend_group(legend_group(style))
        .marker(marker(style, 7))
        .hover_template("step %{x}: %{y}");
    figure.push(trace);
}
