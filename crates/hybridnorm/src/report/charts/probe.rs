//! Metrics by depth at the measured steps of a probe.

use plotly::Scatter;
use plotly::common::Mode;

use super::super::escape::plot_text;
use super::super::page::Page;
use super::super::palette::PlacementStyles;
use super::super::sections::Context;
use super::{Chart, Figure, axis, layout, legend_group, line, log_axis, marker, rounded_positive};
use crate::format_number::with_thousands_separators;
use crate::lab::probe::{ProbeReport, ProbeStep};
use crate::train::layers::{FiniteOrNone, finite_or_none};

/// Charts over depth, and the steps of their figures.
struct DepthCharts {
    /// Title and chart; all charts have the same number of figures.
    charts: Vec<(&'static str, Chart)>,
    /// Step of each figure.
    steps: Vec<u64>,
}

type BlockValues = fn(&ProbeStep) -> Vec<FiniteOrNone>;

/// Title, title of the axis, and one value per block.
const DEPTH_METRICS: [(&str, &str, BlockValues); 5] = [
    (
        "Gradient norm of each block's parameters",
        "gradient norm",
        |measured| {
            measured
                .layers
                .blocks
                .iter()
                .map(|block| finite_or_none(block.grad_norm()))
                .collect()
        },
    ),
    (
        "Gradient norm with respect to the residual stream at the block input",
        "gradient norm",
        |measured| measured.stream_grad.clone(),
    ),
    (
        "Residual stream at the block input",
        "root mean square",
        |measured| {
            measured
                .layers
                .blocks
                .iter()
                .map(|block| block.residual.rms)
                .collect()
        },
    ),
    ("Max attention logit", "logit", |measured| {
        measured
            .layers
            .blocks
            .iter()
            .map(|block| block.attention.max)
            .collect()
    }),
    ("Attention entropy", "nats", |measured| {
        measured
            .layers
            .blocks
            .iter()
            .map(|block| block.attention.entropy)
            .collect()
    }),
];

/// Adds the charts with a drop-down of steps and a legend.
pub(in super::super) fn add_depth_charts(page: &mut Page, context: &Context) {
    let Some(report) = &context.document.probe else {
        return;
    };
    let depths = depth_charts(report, context.styles);
    let ids: Vec<String> = depths
        .charts
        .iter()
        .map(|(_, chart)| chart.id.clone())
        .collect();
    let steps: Vec<String> = depths
        .steps
        .iter()
        .map(|step| with_thousands_separators(*step))
        .collect();
    page.drop_down("probe-choice", "Step:", &ids, &steps);
    if depths.charts.is_empty() {
        return;
    }
    if let [step] = depths.steps.as_slice() {
        page.note(&format!("At step {}.", with_thousands_separators(*step)));
    }
    let placements = report.placements.iter();
    let names: Vec<&str> = placements
        .map(|placement| placement.placement.as_str())
        .collect();
    page.legend(&names, context.styles, &ids);
    page.grid("wide", depths.charts);
    page.note("Logarithmic scales; values that are not positive are omitted.");
}

/// Builds one chart per metric, with one figure per step.
fn depth_charts(probe: &ProbeReport, styles: &PlacementStyles) -> DepthCharts {
    let mut steps: Vec<u64> = (probe.placements.iter())
        .flat_map(|placement| {
            placement
                .measured_steps
                .iter()
                .map(|measured| measured.step)
        })
        .collect();
    steps.sort_unstable();
    steps.dedup();
    let mut charts = Vec::new();
    for (position, (title, unit, of)) in DEPTH_METRICS.into_iter().enumerate() {
        let figures: Vec<Figure> = (steps.iter())
            .map(|step| depth_figure(probe, styles, *step, unit, of))
            .collect();
        if figures.iter().all(Figure::is_empty) {
            continue;
        }
        let chart = Chart {
            id: format!("probe{position}"),
            label: format!(
                "{title} against depth on a logarithmic scale, one line per placement. The numbers \
                 can be downloaded as CSV at the end."
            ),
            height: 280,
            figures,
        };
        charts.push((title, chart));
    }
    DepthCharts { charts, steps }
}

fn depth_figure(
    probe: &ProbeReport,
    styles: &PlacementStyles,
    step: u64,
    unit: &str,
    of: BlockValues,
) -> Figure {
    let lines: Vec<(&str, Vec<Option<f64>>)> = (probe.placements.iter())
        .filter_map(|placement| {
            let measured = placement
                .measured_steps
                .iter()
                .find(|measured| measured.step == step)?;
            let values = of(measured)
                .into_iter()
                .map(|value| rounded_positive(value.map(f64::from)));
            Some((placement.placement.as_str(), values.collect()))
        })
        .collect();
    let shown = lines
        .iter()
        .flat_map(|(_, values)| values)
        .flatten()
        .copied();
    let blocks = lines
        .iter()
        .map(|(_, values)| values.len())
        .max()
        .unwrap_or(0);
    let x = axis("block")
        .tick0(1.0)
        .dtick((blocks as f64 / 12.0).ceil().max(1.0));
    let mut figure = Figure::new(layout(280, x, log_axis(unit, shown)));
    for (name, values) in lines {
        if values.iter().all(Option::is_none) {
            continue;
        }
        let style = styles.style(name);
        let x: Vec<usize> = (1..=values.len()).collect();
        let trace = Scatter::new(x, values)
            .mode(Mode::LinesMarkers)
            .name(plot_text(name))
            .legend_group(legend_group(style))
            .line(line(style, 2.0))
            .marker(marker(style, 7))
            .hover_template("block %{x}: %{y}");
        figure.push(trace);
    }
    figure
}
