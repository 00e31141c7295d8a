//! Charts as typed Plotly traces.
//!
//! Colours are CSS variables of the page (`var(--s0)`, `var(--ink)`), which its script resolves to their values for
//! light mode, dark mode and print. The legend group of a trace is the style of its placement, by which the page's own
//! legend shows and hides it.

pub(super) mod block_metrics;
pub(super) mod compare;
pub(super) mod curves;
pub(super) mod learning_rates;
pub(super) mod probe;

use plotly::common::{Font, Label, Line, Marker, Title};
use plotly::configuration::DisplayModeBar;
use plotly::layout::{Axis, AxisType, HoverMode, Margin, TicksDirection};
use plotly::{Configuration, Layout, Trace, Traces};
use serde::Serialize;

use super::escape::plot_text;
use super::format::learning_rate;
use super::palette;

const TRANSPARENT: &str = "rgba(0,0,0,0)";

/// Chart of the page that shows one of several figures.
#[derive(Clone, Serialize)]
pub(super) struct Chart {
    /// Id of the element.
    pub(super) id: String,
    /// Text alternative for screen readers.
    #[serde(skip)]
    pub(super) label: String,
    /// Height in pixels.
    #[serde(skip)]
    pub(super) height: usize,
    /// One or several figures; the first is shown initially.
    #[serde(rename = "views")]
    pub(super) figures: Vec<Figure>,
}

/// Traces in a layout.
#[derive(Clone, Serialize)]
pub(super) struct Figure {
    data: Traces,
    layout: Layout,
}

impl Figure {
    /// Creates a figure without traces.
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            data: Traces::new(),
            layout,
        }
    }

    /// Adds a trace on top.
    pub(super) fn push(&mut self, trace: Box<dyn Trace>) {
        self.data.push(trace);
    }

    /// True if there are no traces.
    pub(super) fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

/// Returns the settings of every chart: no external links, and no buttons.
pub(super) fn plotly_configuration() -> Configuration {
    Configuration::new()
        .typeset_math(false)
        .display_mode_bar(DisplayModeBar::False)
        .display_logo(false)
        .show_link(false)
        .show_send_to_cloud(false)
        .show_edit_in_chart_studio(false)
        .plotly_server_url("")
        .topojson_url("")
}

/// Returns a layout with two axes.
pub(super) fn layout(height: usize, x: Axis, y: Axis) -> Layout {
    let font = || {
        Font::new()
            .family("system-ui, sans-serif")
            .size(12)
            .color("var(--ink)")
    };
    Layout::new()
        .height(height)
        .auto_size(false)
        .show_legend(false)
        .hover_mode(HoverMode::Closest)
        .paper_background_color(TRANSPARENT)
        .plot_background_color(TRANSPARENT)
        .font(font())
        .hover_label(
            Label::new()
                .background_color("var(--page)")
                .border_color("var(--line)")
                .font(font())
                .name_length(-1),
        )
        .margin(Margin::new().left(56).right(16).top(16).bottom(44))
        .x_axis(x)
        .y_axis(y)
}

/// Returns an axis with a title, which may be empty.
pub(super) fn axis(title: &str) -> Axis {
    let axis = Axis::new()
        .auto_margin(true)
        .grid_color("var(--line)")
        .line_color("var(--soft)")
        .show_line(true)
        .zero_line(false)
        .ticks(TicksDirection::Outside)
        .tick_length(4)
        .tick_color("var(--soft)");
    match title {
        "" => axis,
        title => {
            axis.title(Title::with_text(title).font(Font::new().size(12).color("var(--soft)")))
        }
    }
}

/// Returns a logarithmic axis of learning rates with a tick at each of them.
pub(super) fn lr_axis(lrs: &[f64]) -> Axis {
    let lrs: Vec<f64> = (lrs.iter().copied())
        .filter(|lr| lr.is_finite() && *lr > 0.0)
        .collect();
    let axis = axis("learning rate").type_(AxisType::Log);
    let (Some(low), Some(high)) = (lrs.first(), lrs.last()) else {
        return axis;
    };
    let pad = 0.04 * (high / low).log10() + 0.06;
    axis.tick_text(lrs.iter().map(|lr| learning_rate(*lr)).collect())
        .tick_values(lrs.clone())
        .range(vec![low.log10() - pad, high.log10() + pad])
}

/// Returns a logarithmic axis over these values, with ticks at 1, 2 and 5 times powers of ten, or only at powers of ten
/// if the range is wide.
pub(super) fn log_axis(title: &str, values: impl Iterator<Item = f64>) -> Axis {
    let axis = axis(title).type_(AxisType::Log);
    let (low, high) = (values.filter(|value| *value > 0.0 && value.is_finite()))
        .map(f64::log10)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), log| {
            (low.min(log), high.max(log))
        });
    if low > high {
        return axis;
    }
    let pad = 0.05 * (high - low) + 0.02;
    let axis = axis.range(vec![low - pad, high + pad]);
    if high - low < 0.7 {
        return axis;
    }
    let multiples: &[f64] = if high - low < 2.5 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0]
    };
    let step = (((high - low) / 8.0).ceil() as usize).max(1);
    let (mut values, mut texts) = (Vec::new(), Vec::new());
    for exponent in (low.floor() as i32..=high.ceil() as i32).step_by(step) {
        for multiple in multiples {
            let value = multiple * 10_f64.powi(exponent);
            if (low - pad..=high + pad).contains(&value.log10()) {
                values.push(value);
                texts.push(match exponent {
                    -3..=3 => format!("{value:.*}", (-exponent).max(0) as usize),
                    _ => format!("{multiple}e{exponent}"),
                });
            }
        }
    }
    axis.tick_values(values).tick_text(texts)
}

/// Returns an axis with the names of placements from top to bottom, at 0, -1, -2 and so on.
pub(super) fn name_axis(names: &[&str]) -> Axis {
    let names = if names.is_empty() { &[""] } else { names };
    axis("")
        .tick_values((0..names.len()).map(row_y).collect())
        .tick_text(
            names
                .iter()
                .map(|name| plot_text(&shortened(name)))
                .collect(),
        )
        .range(vec![row_y(names.len() - 1) - 0.6, 0.6])
        .show_grid(false)
        .show_line(false)
        .tick_length(0)
}

/// Shortens a name to leave room for the chart.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(28) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}…", &name[..end]),
    }
}

/// Returns the coordinate of the name at a position.
pub(super) fn row_y(position: usize) -> f64 {
    -(position as f64)
}

/// Returns the height in pixels of a chart with one row per placement.
pub(super) fn rows_height(rows: usize) -> usize {
    76 + 30 * rows.max(1)
}

/// Returns the marker of a style.
pub(super) fn marker(style: usize, size: usize) -> Marker {
    Marker::new()
        .color(palette::color(style))
        .symbol(palette::symbol(style, true))
        .size(size)
}

/// Returns the line of a style.
pub(super) fn line(style: usize, width: f64) -> Line {
    Line::new()
        .color(palette::color(style))
        .dash(palette::dash(style))
        .width(width)
}

/// Returns the legend group of a style.
pub(super) fn legend_group(style: usize) -> String {
    style.to_string()
}

/// Rounds a number to the precision of a chart; `None` if it is not finite.
pub(super) fn rounded(value: f64) -> Option<f64> {
    if !value.is_finite() {
        return None;
    }
    if value == 0.0 {
        return Some(0.0);
    }
    let scale = 10_f64.powi(4 - value.abs().log10().floor() as i32);
    let rounded = (value * scale).round() / scale;
    Some(if rounded.is_finite() { rounded } else { value })
}

/// Rounds as [`rounded`] does; `None` if a logarithmic axis cannot show the value.
pub(super) fn rounded_positive(value: Option<f64>) -> Option<f64> {
    value.filter(|value| *value > 0.0).and_then(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_five_digits() {
        assert_eq!(rounded(3.456_789), Some(3.4568));
        assert_eq!(rounded(0.1 + 0.2), Some(0.3));
        assert_eq!(rounded(f64::NAN), None);
        assert_eq!(rounded(1e-310), Some(1e-310));
        assert_eq!(rounded_positive(Some(-1.0)), None);
        assert_eq!(rounded_positive(Some(2.0)), Some(2.0));
    }

    #[test]
    fn logarithmic_axes_have_few_round_ticks() {
        let ticks = |values: &[f64]| {
            let axis = serde_json::to_value(log_axis("", values.iter().copied())).unwrap();
            axis["ticktext"].clone()
        };
        assert_eq!(
            ticks(&[0.3, 6.0]),
            serde_json::json!(["0.5", "1", "2", "5"])
        );
        assert_eq!(
            ticks(&[2e-5, 0.2, -1.0]),
            serde_json::json!(["1e-4", "0.001", "0.01", "0.1"])
        );
        assert_eq!(ticks(&[3.0, 4.0]), serde_json::Value::Null);
        assert_eq!(ticks(&[]), serde_json::Value::Null);
    }

    #[test]
    fn the_settings_have_no_external_links() {
        let json = serde_json::to_value(plotly_configuration()).unwrap();
        assert_eq!(json["displaylogo"], false);
        assert_eq!(json["showSendToCloud"], false);
        assert_eq!(json["showLink"], false);
        assert_eq!(json["plotlyServerURL"], "");
        assert_eq!(json["topojsonURL"], "");
    }
}
