//! Training curves.

use std::collections::BTreeMap;

use plotly::Scatter;
use plotly::common::{DashType, HoverInfo, Mode};
use plotly::layout::{Axis, Shape, ShapeLine, ShapeType};

use super::super::escape::plot_text;
use super::super::format::learning_rate;
use super::super::page::Page;
use super::super::palette::{PlacementStyles, color};
use super::super::run::ReportedRun;
use super::super::view::View;
use super::{
    Chart, Figure, axis, layout, legend_group, line, log_axis, marker, rounded, rounded_positive,
};
use crate::lab::study::record::RunStatus;
use crate::train::metrics::{self, Aggregate, Metric, MetricCurve, Scale};

/// Charts of the metrics, and the names of their figures.
struct Curves {
    /// Charts with their captions; all have the same number of figures.
    charts: Vec<(Chart, String)>,
    /// One name per figure.
    choices: Vec<String>,
}

/// Adds the curves of every metric that was recorded, with a drop-down of learning rates and a legend.
pub(in super::super) fn add_curves(page: &mut Page, view: &View, styles: &PlacementStyles) {
    let Some(found) = curves(view, styles) else {
        page.text("No training curves were recorded.");
        return;
    };
    let ids: Vec<String> = found
        .charts
        .iter()
        .map(|(chart, _)| chart.id.clone())
        .collect();
    let id = format!("{}-curves-choice", view.key);
    page.drop_down(&id, "Runs:", &ids, &found.choices);
    page.legend(&view.placements, styles, &ids);
    for (chart, caption) in found.charts {
        page.chart(chart, &caption);
    }
}

/// Returns the metrics that some of these runs recorded.
pub(in super::super) fn recorded<'a>(
    runs: impl Iterator<Item = &'a ReportedRun> + Clone,
) -> Vec<(&'static Metric, MetricCurve)> {
    let mut metrics = metrics::curves();
    metrics.retain(|(_, curve)| {
        curve.aggregate == Aggregate::Evaluations
            || (runs.clone()).any(|run| !run.curve.series(curve.key).is_empty())
    });
    metrics
}

/// Builds the curves of every placement: at its best learning rate, and at each learning rate.
fn curves(view: &View, styles: &PlacementStyles) -> Option<Curves> {
    let selections = selections(view);
    if selections.is_empty() {
        return None;
    }
    let metrics = recorded(view.runs.iter().copied());
    let drawn = metrics
        .iter()
        .filter(|(_, curve)| curve.aggregate != Aggregate::Evaluations);
    let charts = drawn.map(|(metric, curve)| {
        let figures = selections.iter().map(|(_, selection)| figure(selection, curve, styles));
        let chart = Chart {
            id: format!("{}-{}-curves", view.key, curve.key),
            label: format!(
                "{} against steps for each placement. The curves can be downloaded as CSV at the end.",
                capitalized(&curve.axis_title())
            ),
            height: height(curve),
            figures: figures.collect(),
        };
        (chart, caption(metric, curve))
    });
    Some(Curves {
        charts: charts.collect(),
        choices: selections.iter().map(|(name, _)| name.clone()).collect(),
    })
}

/// Returns the selections of runs that have curves, with their names.
fn selections<'a>(view: &'a View) -> Vec<(String, Selection<'a>)> {
    let best = |name: &str| -> Vec<&ReportedRun> {
        (view.best_lr(name)).map_or_else(Vec::new, |lr| view.runs_at(name, lr))
    };
    let mut selections = vec![(
        "each placement at its best learning rate".to_owned(),
        select(view, best),
    )];
    for &lr in &view.lrs {
        let runs = select(view, |name| view.runs_at(name, lr));
        selections.push((format!("all placements at {}", learning_rate(lr)), runs));
    }
    let changed = |name: &str| -> Vec<&ReportedRun> {
        view.runs_of(name)
            .filter(|run| run.peak_lr().is_none())
            .collect()
    };
    selections.push((
        "runs whose learning rate was changed".to_owned(),
        select(view, changed),
    ));
    selections.retain(|(_, selection)| {
        (selection.iter().flat_map(|(_, runs)| runs)).any(|run| !run.curve.step.is_empty())
    });
    selections
}

/// Returns the height of the chart in pixels.
fn height(curve: &MetricCurve) -> usize {
    match curve.is_training_loss() {
        true => 420,
        false => 320,
    }
}

fn caption(metric: &Metric, curve: &MetricCurve) -> String {
    match (curve.is_training_loss(), curve.aggregate) {
        (true, _) => "Training loss. Thick: mean over the seeds that finished; thin: each seed; markers: \
             validation loss during training; dotted vertical lines: configuration changes of a run. The axis \
             ends at the highest loss that a finished run has at 5 % of its steps; double-click to show all."
            .to_owned(),
        (_, Aggregate::Max) => format!("Maximum {} per interval of steps.", metric.name),
        _ => format!("Mean {} per interval of steps.", metric.name),
    }
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(characters.clone()).collect()
}

/// Placements with the runs that are shown for each.
type Selection<'a> = Vec<(&'a str, Vec<&'a ReportedRun>)>;

fn select<'a>(view: &View<'a>, runs: impl Fn(&str) -> Vec<&'a ReportedRun>) -> Selection<'a> {
    view.placements
        .iter()
        .map(|name| (*name, runs(name)))
        .collect()
}

/// Builds the curves of a metric for a selection of runs.
fn figure(selection: &Selection, curve: &MetricCurve, styles: &PlacementStyles) -> Figure {
    let series = |run: &ReportedRun| run.curve.series(curve.key);
    let title = curve.axis_title();
    let y = match curve.scale {
        Scale::Log => {
            let runs = selection.iter().flat_map(|(_, runs)| runs);
            log_axis(&title, runs.flat_map(|run| series(run)).map(f64::from))
        }
        Scale::LinearAfterStart => match range_after_start(selection, &series) {
            Some((low, high)) => axis(&title).range(vec![low, high]),
            None => axis(&title),
        },
        _ => axis(&title),
    };
    let rounded_value = match curve.scale {
        Scale::Log => |value| rounded_positive(Some(value)),
        _ => rounded,
    };
    let layout = layout(height(curve), steps(selection), y).shapes(change_lines(selection, styles));
    let mut figure = Figure::new(layout);
    for (name, runs) in selection {
        lines(
            &mut figure,
            styles.style(name),
            name,
            runs,
            &series,
            rounded_value,
        );
    }
    if curve.is_training_loss() {
        for (name, runs) in selection {
            evaluations(&mut figure, styles.style(name), name, runs);
        }
    }
    figure
}

/// Returns dotted lines at the steps after which the configuration of a run changed.
fn change_lines(selection: &Selection, styles: &PlacementStyles) -> Vec<Shape> {
    let mut change_lines = Vec::new();
    for run in selection.iter().flat_map(|(_, runs)| runs) {
        let segments = run
            .directory
            .iter()
            .flat_map(|directory| &directory.segments);
        for segment in segments.filter(|segment| !segment.changed.is_empty()) {
            let line = ShapeLine::new()
                .color(color(styles.style(run.label())))
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
            change_lines.push(mark);
        }
    }
    change_lines
}

/// Returns an axis of steps from 0 to the last one.
fn steps(selection: &Selection) -> Axis {
    let last = (selection.iter().flat_map(|(_, runs)| runs))
        .filter_map(|run| run.curve.step.last())
        .max();
    let last = last.map_or(1.0, |last| *last as f64);
    axis("step").range(vec![0.0, 1.01 * last])
}

/// Returns the range from the lowest value of all finished runs to the highest of their values at 5 % of the steps.
fn range_after_start(
    selection: &Selection,
    series: &impl Fn(&ReportedRun) -> Vec<f32>,
) -> Option<(f64, f64)> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for run in finished(selection.iter().flat_map(|(_, runs)| runs)) {
        let values = series(run);
        let early = values
            .get(values.len() / 20)
            .copied()
            .map_or(f64::NAN, f64::from);
        let least = values
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
        .filter(|run| matches!(run.status, RunStatus::Finished))
}

/// Adds each run as a thin line, and the mean of the finished runs as a thick line.
fn lines(
    figure: &mut Figure,
    style: usize,
    name: &str,
    runs: &[&ReportedRun],
    series: &impl Fn(&ReportedRun) -> Vec<f32>,
    rounded_value: impl Fn(f64) -> Option<f64>,
) {
    let name = plot_text(name);
    let mean = mean_curve(runs, series);
    for run in runs {
        // A single finished run is its own mean.
        if runs.len() == 1 && !mean.is_empty() {
            continue;
        }
        let values = series(run).into_iter();
        let y: Vec<Option<f64>> = values.map(|value| rounded_value(value.into())).collect();
        if y.is_empty() {
            continue;
        }
        let trace = Scatter::new(run.curve.step.clone(), y)
            .mode(Mode::Lines)
            .name(format!("{name}, seed {}", run.grid_point.seed))
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
    let y: Vec<Option<f64>> = mean.values().map(|value| rounded_value(*value)).collect();
    let trace = Scatter::new(x, y)
        .mode(Mode::Lines)
        .name(name)
        .legend_group(legend_group(style))
        .line(line(style, 2.2))
        .hover_template("step %{x}: %{y}");
    figure.push(trace);
}

/// Averages the finished runs at the steps that all of them have.
fn mean_curve(
    runs: &[&ReportedRun],
    series: &impl Fn(&ReportedRun) -> Vec<f32>,
) -> BTreeMap<u64, f64> {
    let runs: Vec<&ReportedRun> = finished(runs.iter()).collect();
    let mut sums: BTreeMap<u64, (f64, usize)> = BTreeMap::new();
    for run in &runs {
        for (step, value) in run.curve.step.iter().zip(series(run)) {
            let entry = sums.entry(*step).or_default();
            entry.0 += f64::from(value);
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
        .map(|(sum, n)| rounded(sum / *n as f64))
        .collect();
    let trace = Scatter::new(x, y)
        .mode(Mode::Markers)
        .name(format!("{}, validation", plot_text(name)))
        .legend_group(legend_group(style))
        .marker(marker(style, 7))
        .hover_template("step %{x}: %{y}");
    figure.push(trace);
}
