//! `layers.jsonl`: activations, gradients and updates by block, every few steps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::optimizer::ParameterNorms;
use super::records::Record;
use crate::model::registry::Init;
use crate::model::{BlockActivationStats, Model, RouterStatistics};
use hybridnorm_kernels::attention;
use hybridnorm_kernels::tensor_stats::TensorStats;

/// A measured number; `None` if it was not finite.
pub type FiniteOrNone = Option<f32>;

/// Converts a number to the form that is written to files: `None` if it is not finite in single precision.
///
/// # Example
/// ```
/// use hybridnorm::train::layers::finite_or_none;
///
/// assert_eq!(finite_or_none(0.5), Some(0.5));
/// assert_eq!(finite_or_none(f64::INFINITY), None);
/// ```
pub fn finite_or_none(value: f64) -> FiniteOrNone {
    let value = value as f32;
    value.is_finite().then_some(value)
}

/// Statistics of the model at one step; activations are those of the weights that produced the step's gradients.
///
/// ```
/// use hybridnorm::Device;
/// # use hybridnorm::data::TokenDataset;
/// use hybridnorm::train::layers::LayerRecord;
/// use hybridnorm::train::{LogSection, Start, Trainer, records};
/// # use hybridnorm::train::{Config, ModelSection, TrainSection, TrainingData};
///
/// # let model = ModelSection::new("hybridnorm")
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8);
/// # let train = TrainSection::default().with_steps(4).with_batch_size(4).with_seq_len(8);
/// # let config = Config::default().with_model(model).with_train(train);
/// # let tokens: Vec<u32> = (0..200).map(|i| i % 8).collect();
/// # let data = TrainingData::new(&config, TokenDataset::from_tokens(&tokens, 8, 8)?, None);
/// # let folder = tempfile::tempdir().unwrap();
/// # let run = folder.path().join("run");
/// let config = config.with_log(LogSection::default().with_layers_every(2));
/// let mut trainer = Trainer::open_with_data(config, data, &run, Start::Fresh, Device::Cpu, &mut |_| {})?;
/// trainer.run(&false.into(), &mut |_| {})?;
///
/// let layers: Vec<LayerRecord> = records::read(&run)?;
/// let steps: Vec<u64> = layers.iter().map(|record| record.step).collect();
/// assert_eq!(steps, [2, 4]);
/// for block in &layers[0].blocks {
///     assert!(block.residual.rms > Some(0.0) && block.attention.entropy > Some(0.0));
/// }
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LayerRecord {
    /// The step, counted from 1.
    pub step: u64,
    /// One entry per block.
    pub blocks: Vec<BlockStats>,
    /// Parameters outside the blocks: `embedding`, `head`, `norm`, `scale`.
    #[serde(rename = "ends")]
    pub outside_blocks: ParameterStats,
}

/// Statistics of one block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BlockStats {
    /// Residual stream at the input of the block.
    #[serde(rename = "stream")]
    pub residual: ActivationStats,
    /// Output of the attention branch, after its output norm and scale.
    pub attn: ActivationStats,
    /// Output of the feed-forward branch, after its output norm and scale.
    pub ffn: ActivationStats,
    /// Attention logits and weights.
    #[serde(rename = "scores")]
    pub attention: AttentionStats,
    /// Load of the experts, in a mixture of experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertStats>,
    /// Parameters by label: `qkv` (with multi-head latent attention `latents`, `q_up`, `kv_up`), `out`, `up` and `down`
    /// (routed and shared experts together), `router`, `norm`, `scale`.
    #[serde(flatten)]
    pub parameters: ParameterStats,
}

/// Magnitude of a tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ActivationStats {
    /// Root mean square.
    pub rms: FiniteOrNone,
    /// Maximum absolute value.
    pub max: FiniteOrNone,
}

/// Statistics of attention logits and weights over unmasked positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AttentionStats {
    /// Max attention logit over all heads.
    pub max: FiniteOrNone,
    /// Mean entropy of the attention weights in nats, over heads and positions.
    pub entropy: FiniteOrNone,
}

/// Load and router statistics of a mixture of experts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ExpertStats {
    /// Load of every expert over the mean load; 1 if perfectly balanced.
    pub load: Vec<FiniteOrNone>,
    /// Mean entropy of the router scores in nats.
    pub entropy: FiniteOrNone,
    /// Load-balancing loss, unweighted; 1 if perfectly balanced.
    pub load_balance: FiniteOrNone,
    /// Router z-loss, unweighted.
    pub z: FiniteOrNone,
    /// Dropped assignments (a token counts once for each of its top-k experts that dropped it).
    pub dropped: u64,
}

/// Parameters grouped by label.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ParameterStats {
    /// Norm of the gradients before clipping.
    pub grad_norm: BTreeMap<String, FiniteOrNone>,
    /// Norm of the optimizer's update over the norm of the weights.
    pub update_ratio: BTreeMap<String, FiniteOrNone>,
    /// Root mean square distance of norm gains from their initial values, after the step's update; absent if no
    /// norm has a gain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain_drift: FiniteOrNone,
}

/// A metric of a block: an entry of [`BLOCK_METRICS`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct BlockMetric {
    /// Returns the value; the outer `None` if the block does not have the metric, the inner if it is not finite.
    pub value: fn(&BlockStats) -> Option<FiniteOrNone>,
    /// Name of its heat map in a report.
    pub heat_map: Option<&'static str>,
    /// Tag in TensorBoard: `blocks/TAG/INDEX`.
    pub tag: Option<&'static str>,
    /// Column of a report's CSV file, and path of the value in a block of `layers.jsonl`.
    pub column: Option<(&'static str, &'static str)>,
}

impl BlockMetric {
    const fn new(value: fn(&BlockStats) -> Option<FiniteOrNone>) -> Self {
        Self {
            value,
            heat_map: None,
            tag: None,
            column: None,
        }
    }

    const fn heat_map(mut self, name: &'static str) -> Self {
        self.heat_map = Some(name);
        self
    }

    const fn tag(mut self, tag: &'static str) -> Self {
        self.tag = Some(tag);
        self
    }

    const fn column(mut self, column: &'static str, path: &'static str) -> Self {
        self.column = Some((column, path));
        self
    }
}

/// Table of the per-block metrics in TensorBoard event files and in the heat maps and CSV files of reports. To add a
/// metric, add a field to [`BlockStats`] and an entry here.
///
/// # Example
/// ```
/// use hybridnorm::train::layers::BLOCK_METRICS;
///
/// let tags: Vec<&str> = BLOCK_METRICS.iter().filter_map(|metric| metric.tag).collect();
/// assert!(tags.contains(&"stream_rms") && tags.contains(&"grad_norm"));
/// ```
#[rustfmt::skip]
pub static BLOCK_METRICS: &[BlockMetric] = &[
    BlockMetric::new(|block| Some(finite_or_none(block.grad_norm())))
        .heat_map("gradient norm of the block's parameters").tag("grad_norm"),
    BlockMetric::new(|block| Some(block.residual.rms))
        .heat_map("RMS of the residual stream at the block input").tag("stream_rms").column("stream_rms", "stream.rms"),
    BlockMetric::new(|block| Some(block.residual.max)).column("stream_max", "stream.max"),
    BlockMetric::new(|block| Some(block.attn.rms))
        .heat_map("RMS of the attention output").tag("attn_rms").column("attn_rms", "attn.rms"),
    BlockMetric::new(|block| Some(block.attn.max)).column("attn_max", "attn.max"),
    BlockMetric::new(|block| Some(block.ffn.rms))
        .heat_map("RMS of the feed-forward output").tag("ffn_rms").column("ffn_rms", "ffn.rms"),
    BlockMetric::new(|block| Some(block.ffn.max)).column("ffn_max", "ffn.max"),
    BlockMetric::new(|block| Some(block.attention.max))
        .heat_map("max attention logit").tag("largest_score").column("score_max", "scores.max"),
    BlockMetric::new(|block| Some(block.attention.entropy))
        .heat_map("entropy of the attention weights (nats)").tag("entropy").column("entropy", "scores.entropy"),
    BlockMetric::new(|block| Some(block.max_update_ratio()))
        .heat_map("update-to-weight ratio, largest of the block's parameter roles"),
    BlockMetric::new(|block| Some(block.parameters.gain_drift))
        .heat_map("RMS distance of norm gains from their initial values"),
    BlockMetric::new(|block| Some(block.experts.as_ref()?.max_load()))
        .heat_map("load of the busiest expert over the mean load"),
    BlockMetric::new(|block| Some(block.experts.as_ref()?.entropy))
        .heat_map("router entropy (nats)").tag("routing_entropy"),
];

impl Record for LayerRecord {
    const FILE: &'static str = "layers.jsonl";
    const IS_PER_STEP: bool = false;

    fn step(&self) -> u64 {
        self.step
    }
}

impl LayerRecord {
    /// Collects the activations and norms of a step.
    pub fn new(
        step: u64,
        model: &Model,
        activations: &[BlockActivationStats],
        norms: &BTreeMap<String, ParameterNorms>,
    ) -> Self {
        let mut squares_of_blocks = vec![Squares::new(); activations.len()];
        let mut outside_blocks = Squares::new();
        // Squared distances of gains from their initial values, and their number.
        let mut drifts = vec![(0.0, 0usize); activations.len()];
        let mut outer_drift = (0.0, 0);
        for spec in model.decoder().registry().sorted_by_name() {
            if let Some(norms) = norms.get(&spec.name) {
                let squares = spec
                    .block
                    .map_or(&mut outside_blocks, |block| &mut squares_of_blocks[block]);
                squares.entry(spec.label).or_default().add(norms);
            }
            if let (true, Init::Constant(start)) = (spec.records_distance_from_init, &spec.init) {
                let (sum, count) = spec
                    .block
                    .map_or(&mut outer_drift, |block| &mut drifts[block]);
                for value in model.read(spec) {
                    *sum += (f64::from(value) - start).powi(2);
                    *count += 1;
                }
            }
        }
        let drift = |(sum, count): (f64, usize)| (count > 0).then(|| (sum / count as f64).sqrt());
        let blocks = activations.iter().zip(&drifts).zip(&squares_of_blocks);
        let blocks = blocks.map(|((activations, drifts), squares)| BlockStats {
            residual: activations.residual.into(),
            attn: activations.attn.into(),
            ffn: activations.ffn.into(),
            attention: activations.attention_logits.into(),
            experts: activations.routing.as_ref().map(ExpertStats::from),
            parameters: ParameterStats::new(squares, drift(*drifts)),
        });
        Self {
            step,
            blocks: blocks.collect(),
            outside_blocks: ParameterStats::new(&outside_blocks, drift(outer_drift)),
        }
    }

    /// Applies `f` to every number.
    pub fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        let all = |value: &mut FiniteOrNone| *value = value.map(&f);
        for block in &mut self.blocks {
            for part in [&mut block.residual, &mut block.attn, &mut block.ffn] {
                all(&mut part.rms);
                all(&mut part.max);
            }
            all(&mut block.attention.max);
            all(&mut block.attention.entropy);
            if let Some(experts) = &mut block.experts {
                experts.load.iter_mut().for_each(all);
                for value in [
                    &mut experts.entropy,
                    &mut experts.load_balance,
                    &mut experts.z,
                ] {
                    all(value);
                }
            }
        }
        let parameters = self.blocks.iter_mut().map(|block| &mut block.parameters);
        for statistics in parameters.chain([&mut self.outside_blocks]) {
            statistics.grad_norm.values_mut().for_each(all);
            statistics.update_ratio.values_mut().for_each(all);
            all(&mut statistics.gain_drift);
        }
        self
    }
}

impl BlockStats {
    /// Returns the norm of the gradients of all parameters of the block.
    pub fn grad_norm(&self) -> f64 {
        let norms = self.parameters.grad_norm.values();
        let squares = norms.map(|norm| norm.map_or(f64::NAN, |norm| f64::from(norm).powi(2)));
        squares.sum::<f64>().sqrt()
    }

    /// Returns the largest update ratio over the labels; `None` if one is missing.
    pub fn max_update_ratio(&self) -> FiniteOrNone {
        max(self.parameters.update_ratio.values())
    }
}

impl ExpertStats {
    /// Returns the load of the busiest expert over the mean load.
    pub fn max_load(&self) -> FiniteOrNone {
        max(self.load.iter())
    }
}

/// Returns the largest value; `None` if one is missing.
fn max<'a>(values: impl Iterator<Item = &'a FiniteOrNone>) -> FiniteOrNone {
    let values: Option<Vec<f32>> = values.copied().collect();
    values?.into_iter().reduce(f32::max)
}

/// Sums of squares by label.
type Squares<'a> = BTreeMap<&'a str, LabelSquares>;

#[derive(Debug, Clone, Copy, Default)]
struct LabelSquares {
    gradient: f64,
    update: f64,
    weight: f64,
}

impl LabelSquares {
    fn add(&mut self, norms: &ParameterNorms) {
        self.gradient += norms.gradient.powi(2);
        self.update += norms.update.powi(2);
        self.weight += norms.weight.powi(2);
    }
}

impl ParameterStats {
    fn new(squares: &Squares<'_>, gain_drift: Option<f64>) -> Self {
        let each = |f: &dyn Fn(&LabelSquares) -> f64| {
            let one = |(label, squares): (&&str, &LabelSquares)| {
                ((*label).to_owned(), finite_or_none(f(squares)))
            };
            squares.iter().map(one).collect()
        };
        Self {
            grad_norm: each(&|squares| squares.gradient.sqrt()),
            update_ratio: each(&|squares| (squares.update / squares.weight).sqrt()),
            gain_drift: gain_drift.and_then(finite_or_none),
        }
    }
}

impl From<&RouterStatistics> for ExpertStats {
    fn from(found: &RouterStatistics) -> Self {
        let mean = found.load.iter().sum::<u64>() as f64 / found.load.len() as f64;
        let loads = found.load.iter();
        Self {
            load: loads
                .map(|&load| finite_or_none(load as f64 / mean))
                .collect(),
            entropy: finite_or_none(found.entropy),
            load_balance: finite_or_none(found.load_balancing_loss),
            z: finite_or_none(found.z_loss),
            dropped: found.dropped(),
        }
    }
}

impl From<TensorStats> for ActivationStats {
    fn from(found: TensorStats) -> Self {
        Self {
            rms: finite_or_none(found.rms),
            max: finite_or_none(f64::from(found.max)),
        }
    }
}

impl From<attention::AttentionStats> for AttentionStats {
    fn from(found: attention::AttentionStats) -> Self {
        Self {
            max: finite_or_none(f64::from(found.max)),
            entropy: finite_or_none(found.entropy),
        }
    }
}

#[cfg(test)]
mod tests;
