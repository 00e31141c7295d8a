//! Charts of differences from the baseline, and of cost.

use crate::format_number::percent;
use plotly::common::{ErrorData, ErrorType, HoverInfo, Line, Marker, Mode, Orientation};
use plotly::layout::{Shape, ShapeLine, ShapeType};
use plotly::{Bar, Scatter};

use super::super::escape::plot_text;
use super::super::format::{difference, mebibytes, probability, throughput};
use super::super::page::Page;
use super::super::palette::{PlacementStyles, color, symbol};
use super::super::tables::verdict;
use super::super::view::View;
use super::{Chart, Figure, axis, layout, name_axis, rounded, row_y, rows_height};
use crate::lab::analysis::{Comparison, Verdict};

/// Adds the forest plot of paired differences from the baseline.
pub(in super::super) fn add_forest(page: &mut Page, view: &View, styles: &PlacementStyles) {
    let (Some(group), Some(chart)) = (view.group, forest(view, styles)) else {
        return;
    };
    let rules = &group.analysis.rules;
    let caption = format!(
        "Differences in validation loss from {} with {} {}; lower is better. Filled: significant beyond the \
         margin of {} nats; open: not significant, or equivalent.",
        rules.baseline,
        percent(1.0 - rules.alpha),
        match group.analysis.n_planned_comparisons() {
            0 | 1 => "confidence intervals",
            _ => "simultaneous confidence intervals",
        },
        rules.margin
    );
    page.chart(chart, &caption);
}

/// Adds the charts of throughput and memory.
pub(in super::super) fn add_cost(page: &mut Page, view: &View, styles: &PlacementStyles) {
    let charts = cost(view, styles);
    if charts.len() > 1 {
        page.grid("wide", charts.into_iter().map(|chart| ("", chart)));
    } else {
        for chart in charts {
            page.chart(chart, "");
        }
    }
}

/// Builds the chart of paired differences from the baseline with their confidence intervals.
fn forest(view: &View, styles: &PlacementStyles) -> Option<Chart> {
    if !view.is_complete {
        return None;
    }
    let analysis = &view.group?.analysis;
    let compared: Vec<_> = (analysis.placements.iter())
        .filter_map(|summary| Some((summary.placement.as_str(), summary.comparison.as_ref()?)))
        .filter(|(_, comparison)| comparison.difference.mean.is_finite())
        .collect();
    if compared.is_empty() {
        return None;
    }
    let names: Vec<&str> = compared.iter().map(|(name, _)| *name).collect();
    let height = rows_height(names.len());
    let x = axis("difference in loss (nats)");
    let mut figure = Figure::new(layout(height, x, name_axis(&names)).shapes(vec![zero_line()]));
    let level = percent(1.0 - analysis.rules.alpha);
    for (position, (name, comparison)) in compared.iter().enumerate() {
        figure.push(interval_trace(
            name,
            comparison,
            &level,
            row_y(position),
            styles.style(name),
        ));
    }
    Some(Chart {
        id: format!("{}-forest", view.key),
        label: format!(
            "Difference of each placement's validation loss from that of {}, with its confidence interval. The table \
             above has the numbers.",
            analysis.rules.baseline
        ),
        height,
        figures: vec![figure],
    })
}

/// Builds the vertical line at a difference of 0.
fn zero_line() -> Shape {
    Shape::new()
        .shape_type(ShapeType::Line)
        .x0(0.0)
        .x1(0.0)
        .y_ref("paper")
        .y0(0.0)
        .y1(1.0)
        .line(ShapeLine::new().color("var(--ink)").width(1.0))
}

/// Builds a marker at the mean difference with its confidence interval.
fn interval_trace(
    name: &str,
    comparison: &Comparison,
    level: &str,
    y: f64,
    style: usize,
) -> Box<Scatter<Option<f64>, f64>> {
    let found = &comparison.difference;
    let is_significant = matches!(comparison.verdict, Verdict::Better | Verdict::Worse);
    let marker = Marker::new()
        .color(color(style))
        .symbol(symbol(style, is_significant))
        .size(10)
        .line(Line::new().color(color(style)).width(1.5));
    let interval = ErrorData::new(ErrorType::Data)
        .symmetric(false)
        .array(vec![error_bar_length(found.high - found.mean)])
        .array_minus(vec![error_bar_length(found.mean - found.low)])
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
    Scatter::new(vec![rounded(found.mean)], vec![y])
        .mode(Mode::Markers)
        .name(plot_text(name))
        .marker(marker)
        .error_x(interval)
        .hover_info(HoverInfo::Text)
        .hover_text_array(vec![text])
}

fn error_bar_length(value: f64) -> f64 {
    rounded(value.max(0.0)).unwrap_or(0.0)
}

/// Builds bar charts of tokens per second and memory (measured peak or estimate), starting at 0.
fn cost(view: &View, styles: &PlacementStyles) -> Vec<Chart> {
    let throughputs: Vec<Option<f64>> = view
        .placements
        .iter()
        .map(|name| view.tokens_per_second(name))
        .collect();
    let memory: Vec<Option<f64>> = (view.placements.iter())
        .map(|name| {
            view.memory(name)
                .map(|bytes| bytes as f64 / f64::from(1 << 20))
        })
        .collect();
    let mebibyte = f64::from(1 << 20);
    [
        bars(
            view,
            styles,
            "speed",
            "tokens per second",
            &throughputs,
            throughput,
        ),
        bars(view, styles, "memory", "memory (MiB)", &memory, |value| {
            mebibytes((value * mebibyte) as u64)
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn bars(
    view: &View,
    styles: &PlacementStyles,
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
        let bar = Bar::new(vec![rounded(*value)], vec![row_y(position)])
            .orientation(Orientation::Horizontal)
            .name(plot_text(name))
            .width(0.6)
            .marker(Marker::new().color(color(styles.style(name))))
            .hover_info(HoverInfo::Text)
            .hover_text_array(vec![format!("{}: {}", plot_text(name), text(*value))]);
        figure.push(bar);
    }
    Some(Chart {
        id: format!("{}-{kind}", view.key),
        label: format!("Bars: {title} of each placement. The table below has the numbers."),
        height,
        figures: vec![figure],
    })
}
