//! Charts of differences from the baseline, and of cost.

use crate::digits::percent;
use plotly::common::{ErrorData, ErrorType, HoverInfo, Line, Marker, Mode, Orientation};
use plotly::layout::{Shape, ShapeLine, ShapeType};
use plotly::{Bar, Scatter};

use super::super::escape::plot_text;
use super::super::format::{difference, mebibytes, probability, speed};
use super::super::palette::{Roster, color, symbol};
use super::super::tables::verdict;
use super::super::view::View;
use super::{Chart, Figure, axis, height_of, layout, name_axis, rows_height, short};
use crate::lab::analysis::Verdict;

/// Builds the chart of paired differences from the baseline with their confidence intervals.
pub(in super::super) fn forest(view: &View, roster: &Roster) -> Option<Chart> {
    if !view.is_complete {
        return None;
    }
    let analysis = &view.group?.analysis;
    let compared: Vec<_> = (analysis.placements.iter())
        .filter_map(|summary| Some((summary.placement.as_str(), summary.against.as_ref()?)))
        .filter(|(_, comparison)| comparison.difference.mean.is_finite())
        .collect();
    if compared.is_empty() {
        return None;
    }
    let names: Vec<&str> = compared.iter().map(|(name, _)| *name).collect();
    let height = rows_height(names.len());
    let x = axis("difference of the loss (nats)");
    let zero = Shape::new()
        .shape_type(ShapeType::Line)
        .x0(0.0)
        .x1(0.0)
        .y_ref("paper")
        .y0(0.0)
        .y1(1.0)
        .line(ShapeLine::new().color("var(--ink)").width(1.0));
    let mut figure = Figure::new(layout(height, x, name_axis(&names)).shapes(vec![zero]));
    let level = percent(1.0 - analysis.rules.alpha);
    for (position, (name, comparison)) in compared.iter().enumerate() {
        let style = roster.style(name);
        let found = &comparison.difference;
        let sure = matches!(comparison.verdict, Verdict::Better | Verdict::Worse);
        let marker = Marker::new()
            .color(color(style))
            .symbol(symbol(style, sure))
            .size(10)
            .line(Line::new().color(color(style)).width(1.5));
        let interval = ErrorData::new(ErrorType::Data)
            .symmetric(false)
            .array(vec![reach(found.high - found.mean)])
            .array_minus(vec![reach(found.mean - found.low)])
            .color(color(style))
            .thickness(2.0)
            .width(5);
        let text = format!(
            "{}: {}, {level} interval {} to {}, p {}, {}",
            plot_text(name),
            difference(found.mean),
            difference(found.low),
            difference(found.high),
            probability(comparison.p_adjusted),
            verdict(comparison.verdict).1
        );
        let trace = Scatter::new(vec![short(found.mean)], vec![height_of(position)])
            .mode(Mode::Markers)
            .name(plot_text(name))
            .marker(marker)
            .error_x(interval)
            .hover_info(HoverInfo::Text)
            .hover_text_array(vec![text]);
        figure.push(trace);
    }
    Some(Chart {
        id: format!("{}-forest", view.key),
        label: format!(
            "Difference of each placement's validation loss to {} with its interval. The table \
             above has the numbers.",
            analysis.rules.baseline
        ),
        height,
        views: vec![figure],
    })
}

fn reach(value: f64) -> f64 {
    short(value.max(0.0)).unwrap_or(0.0)
}

/// Builds bar charts of tokens per second and peak memory, starting at 0.
pub(in super::super) fn cost(view: &View, roster: &Roster) -> Vec<Chart> {
    let speeds: Vec<Option<f64>> = view
        .placements
        .iter()
        .map(|name| view.speed(name))
        .collect();
    let memory: Vec<Option<f64>> = (view.placements.iter())
        .map(|name| {
            view.memory(name)
                .map(|bytes| bytes as f64 / f64::from(1 << 20))
        })
        .collect();
    let mebibyte = f64::from(1 << 20);
    [
        bars(view, roster, "speed", "tokens per second", &speeds, speed),
        bars(view, roster, "memory", "memory (MiB)", &memory, |value| {
            mebibytes((value * mebibyte) as u64)
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn bars(
    view: &View,
    roster: &Roster,
    kind: &str,
    title: &str,
    values: &[Option<f64>],
    text: impl Fn(f64) -> String,
) -> Option<Chart> {
    if values.iter().all(Option::is_none) {
        return None;
    }
    let height = rows_height(view.placements.len());
    let mut figure = Figure::new(layout(height, axis(title), name_axis(&view.placements)));
    for (position, (name, value)) in view.placements.iter().zip(values).enumerate() {
        let Some(value) = value else {
            continue;
        };
        let bar = Bar::new(vec![short(*value)], vec![height_of(position)])
            .orientation(Orientation::Horizontal)
            .name(plot_text(name))
            .width(0.6)
            .marker(Marker::new().color(color(roster.style(name))))
            .hover_info(HoverInfo::Text)
            .hover_text_array(vec![format!("{}: {}", plot_text(name), text(*value))]);
        figure.push(bar);
    }
    Some(Chart {
        id: format!("{}-{kind}", view.key),
        label: format!("Bars: {title} of each placement. The table below has the numbers."),
        height,
        views: vec![figure],
    })
}
