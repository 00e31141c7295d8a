//! Heat maps of per-block metrics over training.

use crate::format_number::with_thousands_separators;
use std::collections::BTreeMap;

use plotly::HeatMap;
use plotly::common::{ColorScale, ColorScaleElement, HoverInfo};
use plotly::layout::Margin;

use super::super::format::{compact, learning_rate};
use super::super::page::Page;
use super::super::palette::{PlacementStyles, SCALE};
use super::super::run::ReportedRun;
use super::super::view::View;
use super::{Chart, Figure, axis, layout};
use crate::train::layers::{BLOCK_METRICS, BlockMetric, FiniteOrNone};

/// Heat maps of every placement, and the names of their figures.
struct HeatMaps {
    /// Placement with its learning rate, and its chart; all charts have the same number of figures.
    charts: Vec<(String, Chart)>,
    /// One name per figure.
    choices: Vec<&'static str>,
    /// Both ends of the colour scale of each figure.
    ends: Vec<(f64, f64)>,
}

/// Adds the heat maps with a drop-down of metrics and their colour bars.
pub(in super::super) fn add_heat_maps(page: &mut Page, view: &View, _: &PlacementStyles) {
    let Some(maps) = heat_maps(view) else {
        page.text(
            "No per-block metrics were recorded for these runs at their best learning rates.",
        );
        return;
    };
    let scale = format!("{}-inside-scale", view.key);
    let mut targets = vec![scale.clone()];
    targets.extend(maps.charts.iter().map(|(_, chart)| chart.id.clone()));
    let id = format!("{}-inside-choice", view.key);
    page.drop_down(&id, "Metric:", &targets, &maps.choices);
    let ends: Vec<[String; 3]> = (maps.ends.iter())
        .map(|(low, high)| [*low, (low * high).sqrt(), *high].map(compact))
        .collect();
    page.color_bars(&scale, &ends);
    page.grid("narrow", maps.charts);
    page.note(
        "At the best learning rate; geometric means over the seeds that finished, on one logarithmic colour scale per \
         metric. Gaps: values that are not positive or not finite.",
    );
}

/// Values by step and block.
struct Grid {
    steps: Vec<u64>,
    /// Base-10 logarithms, by block and step.
    logs: Vec<Vec<Option<f64>>>,
}

/// Builds heat maps of each placement at its best learning rate, with one colour scale per quantity.
fn heat_maps(view: &View) -> Option<HeatMaps> {
    let runs: Vec<(&str, Vec<&ReportedRun>)> = (view.placements.iter())
        .map(|name| (*name, view.best_runs(name)))
        .filter(|(_, runs)| runs.iter().any(|run| !run.layers.is_empty()))
        .collect();
    let mut maps = HeatMaps {
        charts: (runs.iter())
            .enumerate()
            .map(|(position, (name, runs))| {
                let at = runs.first().map_or(f64::NAN, |run| run.grid_point.lr);
                let title = format!("{name}, {}", learning_rate(at));
                (title, chart(&view.key, position, name))
            })
            .collect(),
        choices: Vec::new(),
        ends: Vec::new(),
    };
    for metric in BLOCK_METRICS {
        let Some(name) = metric.heat_map else {
            continue;
        };
        let grids: Vec<Grid> = (runs.iter()).map(|(_, runs)| grid(runs, metric)).collect();
        let shown = grids
            .iter()
            .flat_map(|grid| grid.logs.iter().flatten().flatten());
        let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), log| {
            (low.min(*log), high.max(*log))
        });
        if low > high {
            continue;
        }
        maps.choices.push(name);
        maps.ends.push((10_f64.powf(low), 10_f64.powf(high)));
        for ((_, chart), grid) in maps.charts.iter_mut().zip(&grids) {
            chart.figures.push(figure(grid, low, high.max(low + 1e-9)));
        }
    }
    (!maps.choices.is_empty()).then_some(maps)
}

fn chart(key: &str, position: usize, name: &str) -> Chart {
    Chart {
        id: format!("{key}-inside{position}"),
        label: format!(
            "Heat map of the selected metric of {name} over steps and blocks. The numbers can be \
             downloaded as CSV at the end."
        ),
        height: 200,
        figures: Vec::new(),
    }
}

/// Computes geometric means over runs, at the steps that all of them have.
fn grid(runs: &[&ReportedRun], metric: &BlockMetric) -> Grid {
    let mut by_step: BTreeMap<u64, Vec<Vec<Option<f64>>>> = BTreeMap::new();
    for record in runs.iter().flat_map(|run| &run.layers) {
        let blocks = record.blocks.iter();
        let logs = blocks.map(|block| log((metric.value)(block).flatten()));
        let logs = logs.collect();
        by_step.entry(record.step).or_default().push(logs);
    }
    by_step.retain(|_, found| found.len() == runs.len());
    let blocks = by_step.values().flatten().map(Vec::len).max().unwrap_or(0);
    let mean = |found: &[Vec<Option<f64>>], block: usize| -> Option<f64> {
        let logs: Option<Vec<f64>> = found
            .iter()
            .map(|logs| logs.get(block).copied().flatten())
            .collect();
        let logs = logs?;
        let mean = logs.iter().sum::<f64>() / logs.len() as f64;
        Some((mean * 1e3).round() / 1e3)
    };
    Grid {
        steps: by_step.keys().copied().collect(),
        logs: (0..blocks)
            .map(|block| by_step.values().map(|found| mean(found, block)).collect())
            .collect(),
    }
}

fn log(value: FiniteOrNone) -> Option<f64> {
    value
        .filter(|value| *value > 0.0)
        .map(|value| f64::from(value).log10())
}

fn figure(grid: &Grid, low: f64, high: f64) -> Figure {
    let blocks = grid.logs.len();
    let ticks = axis("block")
        .dtick((blocks as f64 / 8.0).ceil().max(1.0))
        .tick0(1.0);
    let layout = layout(200, axis("step").n_ticks(5), ticks)
        .margin(Margin::new().left(40).right(8).top(6).bottom(40));
    let mut figure = Figure::new(layout);
    let text = (grid.logs.iter().enumerate())
        .map(|(block, logs)| {
            (logs.iter().zip(&grid.steps))
                .map(|(log, step)| match log {
                    Some(log) => format!(
                        "block {}, step {}: {}",
                        block + 1,
                        with_thousands_separators(*step),
                        compact(10_f64.powf(*log))
                    ),
                    None => String::new(),
                })
                .collect()
        })
        .collect();
    let stops = SCALE.iter().enumerate().map(|(stop, color)| {
        let at = stop as f64 / (SCALE.len() - 1) as f64;
        ColorScaleElement(at, (*color).to_owned())
    });
    let x: Vec<u64> = grid.steps.clone();
    let y: Vec<usize> = (1..=blocks).collect();
    let map = HeatMap::new(x, y, grid.logs.clone())
        .color_scale(ColorScale::Vector(stops.collect()))
        .show_scale(false)
        .zauto(false)
        .zmin(low)
        .zmax(high)
        .hover_on_gaps(false)
        .hover_info(HoverInfo::Text)
        .hover_text_matrix(text);
    figure.push(map);
    figure
}
