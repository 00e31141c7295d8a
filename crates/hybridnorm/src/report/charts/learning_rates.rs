//! Loss against learning rate, and learning rate tolerance.

use plotly::Scatter;
use plotly::common::{ErrorData, ErrorType, HoverInfo, Line, Marker, MarkerSymbol, Mode};
use plotly::layout::AxisType;

use super::super::escape::plot_text;
use super::super::format::{count, learning_rate, loss, mean_sd};
use super::super::page::Page;
use super::super::palette::{PlacementStyles, color, symbol};
use super::super::view::{RunsAtLr, View};
use super::{
    Chart, Figure, axis, layout, legend_group, line, lr_axis, marker, name_axis, rounded, row_y,
    rows_height,
};
use crate::lab::analysis::LrRange;
use crate::lab::stats::Summary;

/// Upper end of the loss axis above the lowest mean loss, in multiples of the median's distance from it.
const MAX_RANGE_FACTOR: f64 = 8.0;

/// The chart of losses, and facts for its caption.
struct Losses {
    /// The chart.
    chart: Chart,
    /// True if a mean is over several seeds.
    has_several_seeds: bool,
    /// True if a run diverged.
    diverged: bool,
    /// True if a mean lies beyond the upper end.
    has_means_above_axis: bool,
}

/// Adds the chart of losses with its legend.
pub(in super::super) fn add_losses(page: &mut Page, view: &View, styles: &PlacementStyles) {
    let Some(found) = losses(view, styles) else {
        page.text("No run finished with a validation loss, and none diverged.");
        return;
    };
    let caption = found.caption();
    let ids = [found.chart.id.clone()];
    page.legend(&view.placements, styles, &ids);
    page.chart(found.chart, &caption);
}

impl Losses {
    fn caption(&self) -> String {
        let mut caption = vec!["Lines join mean losses."];
        if self.has_several_seeds {
            caption.push("Small points are single runs, one per seed; whiskers extend from the lowest to the highest loss.");
        }
        if self.diverged {
            caption.push(
                "Crosses at the upper edge are diverged runs; the mean of the remaining runs at that learning \
                 rate is a hollow marker without a line.",
            );
        }
        if self.has_means_above_axis {
            caption.push("Some means lie above the axis; see the table.");
        }
        caption.join(" ")
    }
}

/// Builds the chart of mean loss against learning rate, with single runs and diverged runs.
fn losses(view: &View, styles: &PlacementStyles) -> Option<Losses> {
    let cells: Vec<(usize, &str, f64, RunsAtLr)> = (view.placements.iter().enumerate())
        .flat_map(|(position, &name)| {
            (view.lrs.iter()).map(move |&lr| (position, name, lr, view.status_at(name, lr)))
        })
        .collect();
    let means: Vec<f64> = (cells.iter())
        .filter_map(|cell| Some(cell.3.summary()?.mean))
        .collect();
    let range = loss_range(&means);
    let diverged = cells.iter().any(|cell| cell.3.diverged > 0);
    if means.is_empty() && !diverged {
        return None;
    }
    let (low, high) = range.unwrap_or((0.0, 1.0));
    let y = axis("validation loss (nats per token)").range(vec![low, high]);
    let y = if range.is_some() {
        y
    } else {
        y.show_tick_labels(false)
    };
    let mut figure = Figure::new(layout(460, lr_axis(&view.lrs), y));
    for &name in &view.placements {
        let cells = || cells.iter().filter(|cell| cell.1 == name);
        let style = styles.style(name);
        let label = plot_text(name);
        seeds(&mut figure, style, &label, cells());
        means_without_diverged(&mut figure, style, &label, cells());
        means_with_diverged(&mut figure, style, &label, cells());
    }
    for &name in &view.placements {
        let cells = cells
            .iter()
            .filter(|cell| cell.1 == name && cell.3.diverged > 0);
        diverged_markers(
            &mut figure,
            styles.style(name),
            name,
            view.placements.len(),
            high,
            cells,
        );
    }
    let chart = Chart {
        id: format!("{}-losses", view.key),
        label: format!(
            "Validation loss against learning rate, one line for each of {}. The table below has \
             the numbers.",
            count(view.placements.len(), "placement", "placements")
        ),
        height: 460,
        figures: vec![figure],
    };
    Some(Losses {
        chart,
        has_several_seeds: cells.iter().any(|cell| cell.3.losses.len() > 1),
        diverged,
        has_means_above_axis: means.iter().any(|mean| *mean > high),
    })
}

/// Returns the ends of the loss axis, which shows all losses unless a few are far above the rest.
fn loss_range(means: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = means.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted[sorted.len() / 2] - low;
    let high = match middle > 0.0 {
        true => high.min(low + MAX_RANGE_FACTOR * middle),
        false => high,
    };
    let span = (high - low).max(1e-3 * low.abs()).max(1e-6);
    Some((low - 0.08 * span, high + 0.12 * span))
}

type CellRef<'a, 'b> = &'b (usize, &'a str, f64, RunsAtLr<'a>);

/// Adds each run as a small point.
fn seeds<'a: 'b, 'b>(
    figure: &mut Figure,
    style: usize,
    name: &str,
    cells: impl Iterator<Item = CellRef<'a, 'b>>,
) {
    let (mut x, mut y, mut text) = (Vec::new(), Vec::new(), Vec::new());
    for (_, _, lr, found) in cells {
        for (run, value) in &found.losses {
            x.push(*lr);
            y.push(rounded(*value));
            text.push(format!(
                "{name}, {}, seed {}: {}",
                learning_rate(*lr),
                run.grid_point.seed,
                loss(*value)
            ));
        }
    }
    if x.is_empty() {
        return;
    }
    let trace = Scatter::new(x, y)
        .mode(Mode::Markers)
        .name(name)
        .legend_group(legend_group(style))
        .marker(marker(style, 5).opacity(0.45))
        .hover_info(HoverInfo::Text)
        .hover_text_array(text);
    figure.push(trace);
}

/// Adds mean losses as a line, with whiskers from the lowest to the highest. It has a gap at learning rates with
/// diverged runs: a mean without these is not a point of the curve.
fn means_without_diverged<'a: 'b, 'b>(
    figure: &mut Figure,
    style: usize,
    name: &str,
    cells: impl Iterator<Item = CellRef<'a, 'b>>,
) {
    let mut means = Means::default();
    for (_, _, lr, found) in cells {
        match found.summary() {
            Some(losses) if found.diverged == 0 => {
                let seeds = count(losses.n, "seed", "seeds");
                let text = format!(
                    "{name}, {}: {} ({seeds})",
                    learning_rate(*lr),
                    mean_sd(&losses)
                );
                means.push(*lr, &losses, text);
            }
            _ => means.push_gap(*lr),
        }
    }
    if let Some(trace) = means.trace(style, name) {
        let trace = trace.mode(Mode::LinesMarkers).marker(marker(style, 8));
        figure.push(trace.line(line(style, 2.0)));
    }
}

/// Adds mean losses of the remaining runs at learning rates with diverged runs: hollow markers without a line.
fn means_with_diverged<'a: 'b, 'b>(
    figure: &mut Figure,
    style: usize,
    name: &str,
    cells: impl Iterator<Item = CellRef<'a, 'b>>,
) {
    let mut means = Means::default();
    for (_, _, lr, found) in cells.filter(|cell| cell.3.diverged > 0) {
        if let Some(losses) = found.summary() {
            let text = format!(
                "{name}, {}: {} ({} of {} did not diverge)",
                learning_rate(*lr),
                mean_sd(&losses),
                losses.n,
                count(found.runs, "run", "runs")
            );
            means.push(*lr, &losses, text);
        }
    }
    if let Some(trace) = means.trace(style, name) {
        let hollow = marker(style, 8).symbol(symbol(style, false));
        figure.push(trace.mode(Mode::Markers).marker(hollow));
    }
}

/// Mean losses by learning rate.
#[derive(Default)]
struct Means {
    x: Vec<f64>,
    y: Vec<Option<f64>>,
    up: Vec<f64>,
    down: Vec<f64>,
    text: Vec<String>,
}

impl Means {
    fn push(&mut self, lr: f64, losses: &Summary, text: String) {
        self.x.push(lr);
        self.y.push(rounded(losses.mean));
        self.up.push(rounded_or_zero(losses.max - losses.mean));
        self.down.push(rounded_or_zero(losses.mean - losses.min));
        self.text.push(text);
    }

    fn push_gap(&mut self, lr: f64) {
        self.x.push(lr);
        self.y.push(None);
        self.up.push(0.0);
        self.down.push(0.0);
        self.text.push(String::new());
    }

    fn trace(self, style: usize, name: &str) -> Option<Box<Scatter<f64, Option<f64>>>> {
        if self.y.iter().all(Option::is_none) {
            return None;
        }
        let whiskers = ErrorData::new(ErrorType::Data)
            .symmetric(false)
            .array(self.up)
            .array_minus(self.down)
            .color(color(style))
            .thickness(1.0)
            .width(3);
        let trace = Scatter::new(self.x, self.y)
            .name(name)
            .legend_group(legend_group(style))
            .error_y(whiskers)
            .hover_info(HoverInfo::Text)
            .hover_text_array(self.text);
        Some(trace)
    }
}

fn rounded_or_zero(value: f64) -> f64 {
    rounded(value).unwrap_or(0.0)
}

/// Adds diverged runs as crosses at the upper edge, side by side.
fn diverged_markers<'a: 'b, 'b>(
    figure: &mut Figure,
    style: usize,
    name: &str,
    placements: usize,
    edge: f64,
    cells: impl Iterator<Item = CellRef<'a, 'b>>,
) {
    let (mut x, mut y, mut text) = (Vec::new(), Vec::new(), Vec::new());
    for (position, _, lr, found) in cells {
        let offset = *position as f64 - (placements as f64 - 1.0) / 2.0;
        x.push(rounded(lr * 10_f64.powf(0.02 * offset)));
        y.push(edge);
        text.push(format!(
            "{}, {}: {} of {} diverged",
            plot_text(name),
            learning_rate(*lr),
            found.diverged,
            found.runs
        ));
    }
    if x.is_empty() {
        return;
    }
    let marker = Marker::new()
        .symbol(MarkerSymbol::XThinOpen)
        .size(9)
        .color(color(style))
        .line(Line::new().width(2.0).color(color(style)));
    let trace = Scatter::new(x, y)
        .mode(Mode::Markers)
        .name(plot_text(name))
        .legend_group(legend_group(style))
        .marker(marker)
        .clip_on_axis(false)
        .hover_info(HoverInfo::Text)
        .hover_text_array(text);
    figure.push(trace);
}

/// Adds the chart of learning rates within the tolerance.
pub(in super::super) fn add_tolerance(page: &mut Page, view: &View, styles: &PlacementStyles) {
    if let Some(chart) = tolerance(view, styles) {
        page.chart(
            chart,
            "Bars: learning rates whose mean loss is within the tolerance of the best. Circle: best learning \
             rate. Vertical line: largest learning rate up to which no run diverged.",
        );
    }
}

/// Builds the chart of learning rates within the tolerance as bars, with the best and the largest stable one.
fn tolerance(view: &View, styles: &PlacementStyles) -> Option<Chart> {
    let analysis = &view.group?.analysis;
    let placements = &analysis.placements;
    let known = placements.iter().any(|summary| {
        summary.lr_tolerance.is_some()
            || summary.best.is_some()
            || summary.largest_stable_lr.is_some()
    });
    if !known {
        return None;
    }
    let names: Vec<&str> = placements
        .iter()
        .map(|summary| summary.placement.as_str())
        .collect();
    let height = rows_height(names.len());
    let x = lr_axis(&view.lrs).type_(AxisType::Log);
    let mut figure = Figure::new(layout(height, x, name_axis(&names)));
    let (mut best, mut stable) = (Points::default(), Points::default());
    for (position, summary) in placements.iter().enumerate() {
        let name = plot_text(&summary.placement);
        let at = row_y(position);
        if let Some(range) = &summary.lr_tolerance {
            let style = styles.style(&summary.placement);
            figure.push(tolerance_bar(range, &name, at, style));
        }
        if let Some(found) = &summary.best {
            best.push(
                found.lr,
                at,
                format!("{name}: best at {}", learning_rate(found.lr)),
            );
        }
        if let Some(lr) = summary.largest_stable_lr {
            stable.push(
                lr,
                at,
                format!("{name}: no run diverged up to {}", learning_rate(lr)),
            );
        }
    }
    figure.push(stable.trace("largest stable learning rate", MarkerSymbol::LineNSOpen, 20));
    figure.push(best.trace("best learning rate", symbol(0, true), 8));
    Some(Chart {
        id: format!("{}-tolerance", view.key),
        label: "For each placement a bar over the learning rates within the tolerance of its best \
                loss, its best learning rate and its largest stable one. The table below has the numbers."
            .to_owned(),
        height,
        figures: vec![figure],
    })
}

/// Builds the bar over the learning rates within the tolerance.
fn tolerance_bar(range: &LrRange, name: &str, y: f64, style: usize) -> Box<Scatter<f64, f64>> {
    let text = format!(
        "{name}: {} to {}, of the learning rates tried",
        learning_rate(range.low),
        learning_rate(range.high)
    );
    Scatter::new(vec![range.low, range.high], vec![y, y])
        .mode(Mode::LinesMarkers)
        .name(name)
        .line(Line::new().color(color(style)).width(10.0))
        .marker(Marker::new().color(color(style)).size(10))
        .opacity(0.55)
        .hover_info(HoverInfo::Text)
        .hover_text_array(vec![text.clone(), text])
}

/// Points of several placements with the same meaning.
#[derive(Default)]
struct Points {
    x: Vec<f64>,
    y: Vec<f64>,
    text: Vec<String>,
}

impl Points {
    fn push(&mut self, x: f64, y: f64, text: String) {
        self.x.push(x);
        self.y.push(y);
        self.text.push(text);
    }

    fn trace(self, name: &str, symbol: MarkerSymbol, size: usize) -> Box<Scatter<f64, f64>> {
        let marker = Marker::new()
            .color("var(--ink)")
            .symbol(symbol)
            .size(size)
            .line(Line::new().color("var(--ink)").width(2.0));
        Scatter::new(self.x, self.y)
            .mode(Mode::Markers)
            .name(name)
            .marker(marker)
            .hover_info(HoverInfo::Text)
            .hover_text_array(self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_do_not_stretch_the_loss_axis() {
        let (low, high) = loss_range(&[3.0, 3.1, 3.2]).unwrap();
        assert!(low < 3.0 && high > 3.2 && high < 3.3);
        let (_, high) = loss_range(&[3.0, 3.1, 3.12, 9.0]).unwrap();
        assert!(high > 3.12 && high < 5.0, "{high}");
        let (low, high) = loss_range(&[3.0]).unwrap();
        assert!(low < 3.0 && high > 3.0);
        assert_eq!(loss_range(&[]), None);
    }
}
