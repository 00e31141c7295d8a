//! Quantities over depth at the first training steps.

use plotly::Scatter;
use plotly::common::Mode;

use super::super::escape::plot_text;
use super::super::palette::Roster;
use super::{Chart, Figure, axis, inside, layout, legend_group, line, log_axis, marker, positive};
use crate::lab::probe::{ProbeMoment, ProbeReport};
use crate::train::layers::Measured;

/// Charts over depth, and the steps of their views.
pub(in super::super) struct Depths {
    /// Title and chart; all charts have the same number of views.
    pub(in super::super) charts: Vec<(&'static str, Chart)>,
    /// Step of each view.
    pub(in super::super) steps: Vec<u64>,
}

type Of = fn(&ProbeMoment) -> Vec<Measured>;

/// Title, title of the axis, and one value per block.
const DEPTHS: [(&str, &str, Of); 5] = [
    (
        "Gradient norm of each block's parameters",
        "gradient norm",
        |moment| moment.layers.blocks.iter().map(inside::grad_norm).collect(),
    ),
    (
        "Gradient at the stream that enters the block",
        "norm of the gradient",
        |moment| moment.stream_grad.clone(),
    ),
    (
        "Stream that enters the block",
        "root mean square",
        |moment| {
            moment
                .layers
                .blocks
                .iter()
                .map(|block| block.stream.rms)
                .collect()
        },
    ),
    ("Largest attention score", "score", |moment| {
        moment
            .layers
            .blocks
            .iter()
            .map(|block| block.scores.max)
            .collect()
    }),
    ("Entropy of the attention weights", "nats", |moment| {
        moment
            .layers
            .blocks
            .iter()
            .map(|block| block.scores.entropy)
            .collect()
    }),
];

/// Builds one chart per quantity, with one view per step.
pub(in super::super) fn depths(probe: &ProbeReport, roster: &Roster) -> Depths {
    let mut steps: Vec<u64> = (probe.placements.iter())
        .flat_map(|placement| placement.moments.iter().map(|moment| moment.step))
        .collect();
    steps.sort_unstable();
    steps.dedup();
    let mut charts = Vec::new();
    for (position, (title, unit, of)) in DEPTHS.into_iter().enumerate() {
        let views: Vec<Figure> = (steps.iter())
            .map(|step| depth(probe, roster, *step, unit, of))
            .collect();
        if views.iter().all(Figure::is_empty) {
            continue;
        }
        let chart = Chart {
            id: format!("probe{position}"),
            label: format!(
                "{title} against depth on a logarithmic scale, one line a placement. The numbers \
                 can be downloaded as CSV at the end."
            ),
            height: 280,
            views,
        };
        charts.push((title, chart));
    }
    Depths { charts, steps }
}

fn depth(probe: &ProbeReport, roster: &Roster, step: u64, unit: &str, of: Of) -> Figure {
    let lines: Vec<(&str, Vec<Option<f64>>)> = (probe.placements.iter())
        .filter_map(|placement| {
            let moment = placement
                .moments
                .iter()
                .find(|moment| moment.step == step)?;
            let values = of(moment)
                .into_iter()
                .map(|value| positive(value.map(f64::from)));
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
        let style = roster.style(name);
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
