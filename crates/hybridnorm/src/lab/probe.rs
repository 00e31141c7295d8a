//! Signal propagation: activations, gradients and updates of a model at the first step and some steps later.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use derive_setters::Setters;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Device;
use crate::error::{Error, Result};
use crate::omissions::Omissions;
use crate::placement::{Explanation, PlacementConfig};
use crate::train::layers::{FiniteOrNone, LayerRecord, finite_or_none};
use crate::train::{Config, DataCoverage, Event, Start, Trainer};

/// Options of a probe.
///
/// ```
/// use hybridnorm::lab::probe::Options;
/// use hybridnorm::placement::{Scale, named};
///
/// let mut custom = named("hybridnorm")?;
/// custom.block.ffn.out_scale = Scale::Const(0.5);
/// let options = Options::default()
///     .with_placements(["pre-norm".into(), custom.into()])
///     .with_steps(20);
/// assert_eq!(options.placements.len(), 2);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Setters)]
#[setters(prefix = "with_")]
#[non_exhaustive]
pub struct Options {
    /// Names of placements, [`Placement`](crate::placement::Placement)s, or tables of placement fields; if empty, the
    /// placement of the configuration.
    #[setters(into)]
    pub placements: Vec<Value>,
    /// Steps to train; the first and the last are measured.
    pub steps: u64,
}

impl Default for Options {
    /// Returns options for 100 steps of the placement of the configuration.
    fn default() -> Self {
        Self {
            placements: Vec::new(),
            steps: 100,
        }
    }
}

/// Results of a probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ProbeReport {
    /// Configuration, as TOML.
    pub config: String,
    /// Training steps per placement.
    pub steps: u64,
    /// One entry per placement.
    pub placements: Vec<ProbePlacement>,
    /// Used and omitted tokens of the data; absent in probes of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataCoverage>,
    /// Omissions from the data, by reason.
    #[serde(rename = "left_out", default)]
    pub omissions: Omissions,
}

/// Results for one placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ProbePlacement {
    /// Name of the placement.
    pub placement: String,
    /// Hash of the placement.
    pub placement_hash: String,
    /// Equations of the placement at this depth.
    pub equations: String,
    /// Measurements at the first step and the last.
    #[serde(rename = "moments")]
    pub measured_steps: Vec<ProbeStep>,
    /// Divergence that ended training before the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diverged: Option<String>,
}

/// Measurements at one step of one placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ProbeStep {
    /// Step, counted from 1.
    pub step: u64,
    /// Mean cross-entropy of the batch before the update, in nats.
    pub loss: f64,
    /// Activations before the update; gradients and update of the step.
    pub layers: LayerRecord,
    /// Norm of the gradient of the loss with respect to the residual stream entering each block, over the first
    /// micro-batch.
    pub stream_grad: Vec<FiniteOrNone>,
    /// Change of these quantities with depth.
    pub growth: DepthGrowth,
}

/// Ratios of the last block to the first: 1 means no change with depth. All but `grad_spread` come from a log-linear
/// fit over the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DepthGrowth {
    /// Ratio of the root mean square of the residual stream entering a block.
    pub stream: FiniteOrNone,
    /// Ratio of the norm of the parameter gradients of a block.
    pub grad: FiniteOrNone,
    /// Largest parameter gradient norm of a block over the smallest.
    pub grad_spread: FiniteOrNone,
    /// Ratio of the norm of the gradient of the loss with respect to the residual stream entering a block.
    pub stream_grad: FiniteOrNone,
}

/// Probes placements one after the other; `None` if stopped.
///
/// Batches and the initial values of common parameters are the same for all placements.
///
/// # Errors
/// If a placement is unknown or invalid, or the data cannot be read. Divergence is a result, not an error.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::lab::probe::{self, Options};
/// # use hybridnorm::train::{Config, DataSection, ModelSection, TrainSection};
///
/// # let model = ModelSection::new("hybridnorm")
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_d_ff(32);
/// # let data = DataSection::default()
/// #     .with_train(vec!["stories:20".to_owned()])
/// #     .with_tokenizer("bytes");
/// # let train = TrainSection::default()
/// #     .with_steps(4)
/// #     .with_batch_size(2)
/// #     .with_seq_len(16)
/// #     .with_eval_sequences(2);
/// # let config = Config::default()
/// #     .with_model(model)
/// #     .with_data(data)
/// #     .with_train(train);
/// let names = ["pre-norm".into(), "post-norm".into()];
/// let options = Options::default().with_placements(names).with_steps(3);
/// let report = probe::run(&config, &options, Device::Cpu, &false.into(), &mut |_, _| {})?;
/// let report = report.expect("`stop` is false");
/// for probed in &report.placements {
///     let steps: Vec<u64> = probed.measured_steps.iter().map(|measured| measured.step).collect();
///     assert_eq!(steps, [1, 3]);
///     assert_eq!(probed.measured_steps[0].stream_grad.len(), 2, "one for each block");
/// }
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn run(
    config: &Config,
    options: &Options,
    device: Device,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(&str, Event<'_>),
) -> Result<Option<ProbeReport>> {
    let configs = configs_to_probe(config, options)?;
    let mut placements = Vec::new();
    let mut data: Option<DataCoverage> = None;
    for (name, config) in configs {
        let folder = tempfile::tempdir().map_err(Error::io(std::env::temp_dir()))?;
        let mut on_event = |event: Event<'_>| {
            if let Event::Data(found) = &event {
                data.get_or_insert_with(|| DataCoverage::clone(found));
            }
            on_event(&name, event);
        };
        let Some(result) = probe_placement(
            &name,
            config,
            folder.path(),
            options,
            device,
            stop,
            &mut on_event,
        )?
        else {
            return Ok(None);
        };
        placements.push(result);
    }
    Ok(Some(ProbeReport {
        config: config.to_toml(),
        steps: options.steps,
        placements,
        omissions: data
            .as_ref()
            .map(DataCoverage::omissions)
            .unwrap_or_default(),
        data,
    }))
}

/// Returns the name and the configuration of each placement.
fn configs_to_probe(config: &Config, options: &Options) -> Result<Vec<(String, Config)>> {
    let most = config.train.steps as u64;
    if options.steps == 0 || options.steps > most {
        return Err(Error::out_of_range(
            "steps",
            options.steps,
            format!("1 to train.steps = {most}"),
        ));
    }
    let mut configs: Vec<(String, Config)> = Vec::new();
    for placement in &options.placements {
        let name = label(placement)?;
        if configs.iter().any(|(known, _)| *known == name) {
            return Err(Error::invalid_value(
                "placements",
                format!("placements has a duplicate: {name}"),
            ));
        }
        let mut config = config.clone();
        let section = config.model.as_mut().ok_or_else(|| {
            Error::missing("[model]", ": placements can be probed only for a model defined in the configuration, not for a checkpoint")
        })?;
        section.placement = placement.clone();
        config.check().map_err(|error| {
            Error::invalid_value("placements", format!("placement {name}: {error}"))
        })?;
        configs.push((name, config));
    }
    if configs.is_empty() {
        let name = match &config.model {
            Some(section) => PlacementConfig::from_value(&section.placement)?.label(),
            None => "placement of the checkpoint".into(),
        };
        configs.push((name, config.clone()));
    }
    for (_, config) in &mut configs {
        config.log.layers_every = 1;
        config.log.tensorboard = false;
    }
    Ok(configs)
}

/// Returns a name as it was given; the label of a placement that has no name.
fn label(placement: &Value) -> Result<String> {
    match placement {
        Value::String(name) => Ok(name.clone()),
        table => Ok(PlacementConfig::from_value(table)?.label()),
    }
}

fn probe_placement(
    name: &str,
    config: Config,
    folder: &Path,
    options: &Options,
    device: Device,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<ProbePlacement>> {
    let mut trainer = Trainer::open(config, folder, Start::Fresh, device, on_event)?;
    let model = trainer.model().config();
    let explanation = Explanation::new(&model.placement, model.n_layers, &model.facts())?;
    let mut result = ProbePlacement {
        placement: name.to_owned(),
        placement_hash: model.placement.hash(),
        equations: explanation.named(name).to_text().trim_end().to_owned(),
        measured_steps: Vec::new(),
        diverged: None,
    };
    for step in 1..=options.steps {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let is_measured = step == 1 || step == options.steps;
        let stream_grad = match is_measured {
            true => trainer.residual_gradient_norms()?,
            false => Vec::new(),
        };
        let done = match trainer.step() {
            Ok(done) => done,
            Err(Error::Diverged { problem, .. }) => {
                let problem = problem.split(';').next().unwrap_or_default();
                result.diverged = Some(format!("step {step}: {problem}"));
                break;
            }
            Err(error) => return Err(error),
        };
        on_event(Event::Step(&done.metrics));
        if let (true, Some(layers)) = (is_measured, done.layers) {
            let stream_grad: Vec<FiniteOrNone> =
                stream_grad.into_iter().map(finite_or_none).collect();
            result.measured_steps.push(ProbeStep {
                step,
                loss: done.metrics.loss,
                growth: DepthGrowth::of(&layers, &stream_grad),
                layers,
                stream_grad,
            });
        }
    }
    Ok(Some(result))
}

impl DepthGrowth {
    fn of(layers: &LayerRecord, stream_grad: &[FiniteOrNone]) -> Self {
        let per_block = |f: &dyn Fn(usize) -> FiniteOrNone| -> Vec<FiniteOrNone> {
            (0..layers.blocks.len()).map(f).collect()
        };
        let grads = per_block(&|index| finite_or_none(layers.blocks[index].grad_norm()));
        Self {
            stream: fitted_ratio(&per_block(&|index| layers.blocks[index].residual.rms)),
            grad: fitted_ratio(&grads),
            grad_spread: spread(&grads),
            stream_grad: fitted_ratio(stream_grad),
        }
    }
}

/// Returns the ratio of the last value to the first on a line fitted to the logarithms by least squares.
fn fitted_ratio(values: &[FiniteOrNone]) -> FiniteOrNone {
    let logarithms: Option<Vec<f64>> = values
        .iter()
        .map(|value| {
            value
                .filter(|value| *value > 0.0)
                .map(|value| f64::from(value).ln())
        })
        .collect();
    let y = logarithms?;
    let n = y.len() as f64;
    let middle = (n - 1.0) / 2.0;
    let x = |index: usize| index as f64 - middle;
    let products: f64 = y.iter().enumerate().map(|(index, y)| x(index) * y).sum();
    let squares: f64 = (0..y.len()).map(|index| x(index).powi(2)).sum();
    match y.len() {
        0 | 1 => None,
        _ => finite_or_none((products / squares * (n - 1.0)).exp()),
    }
}

fn spread(values: &[FiniteOrNone]) -> FiniteOrNone {
    let values: Option<Vec<f32>> = values.iter().copied().collect();
    let values = values?;
    let largest = values.iter().copied().reduce(f32::max)?;
    let smallest = values.iter().copied().reduce(f32::min)?;
    finite_or_none(f64::from(largest) / f64::from(smallest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_the_ratio_of_a_geometric_sequence() {
        let row = |factor: f32| -> Vec<FiniteOrNone> {
            (0..8).map(|index| Some(0.3 * factor.powi(index))).collect()
        };
        let near = |found: FiniteOrNone, expected: f32| {
            let found = found.unwrap();
            assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
        };
        near(fitted_ratio(&row(2.0)), 128.0);
        near(fitted_ratio(&row(1.0)), 1.0);
        near(fitted_ratio(&row(0.5)), 1.0 / 128.0);
        near(spread(&row(0.5)), 128.0);
        assert_eq!(fitted_ratio(&[Some(1.0), None]), None);
        assert_eq!(fitted_ratio(&[Some(1.0), Some(0.0)]), None);
        assert_eq!(fitted_ratio(&[Some(1.0)]), None);
        assert_eq!(spread(&[]), None);
    }
}
