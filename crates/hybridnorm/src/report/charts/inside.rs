//! Heat maps of quantities per block over training.

use crate::digits::grouped;
use std::collections::BTreeMap;

use plotly::HeatMap;
use plotly::common::{ColorScale, ColorScaleElement, HoverInfo};
use plotly::layout::Margin;

use super::super::format::{compact, rate};
use super::super::palette::SCALE;
use super::super::run::ReportedRun;
use super::super::view::View;
use super::{Chart, Figure, axis, layout};
use crate::train::layers::{BlockSignals, Measured, measured};

/// A quantity that is measured in each block.
pub(in super::super) struct Quantity {
    /// Name for the reader.
    pub(in super::super) name: &'static str,
    /// Value for a block.
    pub(in super::super) of: fn(&BlockSignals) -> Measured,
}

/// Quantities that are shown for each block.
pub(in super::super) const QUANTITIES: [Quantity; 10] = [
    Quantity {
        name: "gradient norm (root of the sum of squares over the block's parameters)",
        of: grad_norm,
    },
    Quantity {
        name: "root mean square of the stream that enters the block",
        of: |block| block.stream.rms,
    },
    Quantity {
        name: "root mean square of what attention adds",
        of: |block| block.attn.rms,
    },
    Quantity {
        name: "root mean square of what the feed-forward adds",
        of: |block| block.ffn.rms,
    },
    Quantity {
        name: "largest attention score",
        of: |block| block.scores.max,
    },
    Quantity {
        name: "entropy of the attention weights (nats)",
        of: |block| block.scores.entropy,
    },
    Quantity {
        name: "update over weight (largest of the block's roles)",
        of: update_ratio,
    },
    Quantity {
        name: "distance of the norms' gains from where they started (root mean square)",
        of: |block| block.roles.gain_drift,
    },
    Quantity {
        name: "load of the busiest expert over the mean load",
        of: |block| {
            let loads: Option<Vec<f32>> = block.experts.as_ref()?.load.iter().copied().collect();
            loads?.into_iter().reduce(f32::max)
        },
    },
    Quantity {
        name: "entropy of the router's scores (nats)",
        of: |block| block.experts.as_ref()?.entropy,
    },
];

/// Returns the norm of a block's gradient.
pub(in super::super) fn grad_norm(block: &BlockSignals) -> Measured {
    measured(block.grad_norm())
}

/// Returns the largest update ratio of a block's roles; `None` if one is missing.
fn update_ratio(block: &BlockSignals) -> Measured {
    let ratios: Option<Vec<f32>> = block.roles.update_ratio.values().copied().collect();
    ratios?.into_iter().reduce(f32::max)
}

/// Heat maps of every placement, and the names of their views.
pub(in super::super) struct HeatMaps {
    /// Placement with its learning rate, and its chart; all charts have the same number of views.
    pub(in super::super) charts: Vec<(String, Chart)>,
    /// One name per view.
    pub(in super::super) choices: Vec<&'static str>,
    /// Both ends of the colour scale of each view.
    pub(in super::super) ends: Vec<(f64, f64)>,
}

/// Values by step and block.
struct Grid {
    steps: Vec<u64>,
    /// Base-10 logarithms, by block and step.
    logs: Vec<Vec<Option<f64>>>,
}

/// Builds heat maps of each placement at its best learning rate, with one colour scale per quantity.
pub(in super::super) fn heat_maps(view: &View) -> Option<HeatMaps> {
    let runs: Vec<(&str, Vec<&ReportedRun>)> = (view.placements.iter())
        .map(|name| (*name, view.best_runs(name)))
        .filter(|(_, runs)| runs.iter().any(|run| !run.layers.is_empty()))
        .collect();
    let mut maps = HeatMaps {
        charts: (runs.iter())
            .enumerate()
            .map(|(position, (name, runs))| {
                let at = runs.first().map_or(f64::NAN, |run| run.cell.lr);
                let title = format!("{name}, {}", rate(at));
                (title, chart(&view.key, position, name))
            })
            .collect(),
        choices: Vec::new(),
        ends: Vec::new(),
    };
    for quantity in &QUANTITIES {
        let grids: Vec<Grid> = (runs.iter())
            .map(|(_, runs)| grid(runs, quantity.of))
            .collect();
        let shown = grids
            .iter()
            .flat_map(|grid| grid.logs.iter().flatten().flatten());
        let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), log| {
            (low.min(*log), high.max(*log))
        });
        if low > high {
            continue;
        }
        maps.choices.push(quantity.name);
        maps.ends.push((10_f64.powf(low), 10_f64.powf(high)));
        for ((_, chart), grid) in maps.charts.iter_mut().zip(&grids) {
            chart.views.push(figure(grid, low, high.max(low + 1e-9)));
        }
    }
    (!maps.choices.is_empty()).then_some(maps)
}

fn chart(key: &str, position: usize, name: &str) -> Chart {
    Chart {
        id: format!("{key}-inside{position}"),
        label: format!(
            "Heat map of the chosen quantity in {name} over steps and blocks. The numbers can be \
             downloaded as CSV at the end."
        ),
        height: 200,
        views: Vec::new(),
    }
}

/// Computes geometric means over runs, at the steps that all of them have.
fn grid(runs: &[&ReportedRun], of: fn(&BlockSignals) -> Measured) -> Grid {
    let mut rows: BTreeMap<u64, Vec<Vec<Option<f64>>>> = BTreeMap::new();
    for row in runs.iter().flat_map(|run| &run.layers) {
        let logs = row.blocks.iter().map(|block| log(of(block))).collect();
        rows.entry(row.step).or_default().push(logs);
    }
    rows.retain(|_, found| found.len() == runs.len());
    let blocks = rows.values().flatten().map(Vec::len).max().unwrap_or(0);
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
        steps: rows.keys().copied().collect(),
        logs: (0..blocks)
            .map(|block| rows.values().map(|found| mean(found, block)).collect())
            .collect(),
    }
}

fn log(value: Measured) -> Option<f64> {
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
                        grouped(*step),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::layers::RoleSignals;

    fn roles(norms: &[Measured]) -> BlockSignals {
        let by_role = |scale: f32| -> BTreeMap<String, Measured> {
            (norms.iter().enumerate())
                .map(|(role, norm)| (role.to_string(), norm.map(|norm| scale * norm)))
                .collect()
        };
        BlockSignals {
            stream: Default::default(),
            attn: Default::default(),
            ffn: Default::default(),
            scores: Default::default(),
            experts: None,
            roles: RoleSignals {
                grad_norm: by_role(1.0),
                update_ratio: by_role(0.1),
                gain_drift: None,
            },
        }
    }

    #[test]
    fn norms_of_roles_add_in_squares() {
        assert_eq!(grad_norm(&roles(&[Some(3.0), Some(4.0)])), Some(5.0));
        assert_eq!(grad_norm(&roles(&[Some(3.0), None])), None);
        assert_eq!(update_ratio(&roles(&[Some(3.0), Some(4.0)])), Some(0.4));
        assert_eq!(update_ratio(&roles(&[Some(3.0), None])), None);
        assert_eq!(update_ratio(&roles(&[])), None);
    }
}
