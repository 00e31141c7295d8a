//! `metrics.jsonl`: one record per step.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::records::Record;
use crate::model::RouterStatistics;

/// Deserializes a measured number. Non-finite numbers, which JSON cannot represent, are written as `null`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Metrics of one optimizer step.
///
/// # Example
/// ```
/// use hybridnorm::train::metrics::Metrics;
///
/// let line = r#"{"step":3,"loss":2.5,"grad_norm":0.7,"update_norm":0.1,"lr":1e-3,"tokens":96,"tokens_per_second":null}"#;
/// let metrics: Metrics = serde_json::from_str(line).unwrap();
/// assert_eq!((metrics.step, metrics.loss), (3, 2.5));
/// assert!(metrics.tokens_per_second.is_nan() && metrics.validation_loss.is_none());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Metrics {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean cross-entropy of the step's batch before the update, in nats per token.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Global norm of the optimizer's update.
    #[serde(deserialize_with = "number")]
    pub update_norm: f64,
    /// Learning rate of the update.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Throughput of this step, excluding evaluation and saving; NaN if the clock did not advance.
    #[serde(deserialize_with = "number")]
    pub tokens_per_second: f64,
    /// Training objective, if it differs from the loss: with z-loss and router losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<f64>,
    /// Router statistics over the step's tokens, for mixtures of experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterMetrics>,
    /// Outcome of QK-clip, if enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_clip: Option<QkClipMetrics>,
    /// Mean validation loss after the update, if measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Scores on downstream tasks after the update, by task, if measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, TaskScores>,
}

/// Scores on a downstream task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TaskScores {
    /// Number of documents.
    pub documents: u64,
    /// Name of the main metric of the task.
    pub main: String,
    /// Value of each metric, by name.
    pub values: BTreeMap<String, f64>,
}

impl TaskScores {
    /// Returns the value of the main metric.
    pub fn main_value(&self) -> Option<f64> {
        self.values.get(&self.main).copied()
    }
}

/// Router metrics of one step: means over the mixture-of-experts blocks, except `imbalance` (maximum) and `dropped`
/// (sum). With gradient accumulation the losses are means over micro-batches, as in the objective.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RouterMetrics {
    /// Load-balancing loss, unweighted; 1 if perfectly balanced.
    #[serde(deserialize_with = "number")]
    pub load_balance: f64,
    /// Router z-loss, unweighted.
    #[serde(deserialize_with = "number")]
    pub z: f64,
    /// Entropy of the router scores in nats.
    #[serde(deserialize_with = "number")]
    pub entropy: f64,
    /// Load of the busiest expert over the mean load, maximum over blocks; 1 if perfectly balanced.
    #[serde(deserialize_with = "number")]
    pub imbalance: f64,
    /// Dropped assignments (a token counts once for each of its top-k experts that dropped it).
    pub dropped: u64,
}

/// QK-clip in one step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct QkClipMetrics {
    /// Max attention logit over all heads in the step's forward pass.
    #[serde(deserialize_with = "number")]
    #[serde(rename = "largest_score")]
    pub max_attention_logit: f64,
    /// Heads whose queries and keys were scaled down after the update.
    pub clipped_heads: usize,
}

impl RouterMetrics {
    /// Computes the metrics of a step; `None` without a mixture of experts.
    pub fn new(routing: &[RouterStatistics]) -> Option<Self> {
        let mean = |f: fn(&RouterStatistics) -> f64| {
            let sum: f64 = routing.iter().map(f).sum();
            sum / routing.len() as f64
        };
        let imbalance = routing.iter().map(RouterStatistics::imbalance);
        (!routing.is_empty()).then(|| Self {
            load_balance: mean(|routing| routing.load_balancing_loss),
            z: mean(|routing| routing.z_loss),
            entropy: mean(|routing| routing.entropy),
            imbalance: imbalance.fold(0.0, f64::max),
            dropped: routing.iter().map(RouterStatistics::dropped).sum(),
        })
    }
}

/// A metric of a step: an entry of [`METRICS`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Metric {
    /// Name in text.
    pub name: &'static str,
    /// Unit; empty for numbers without one.
    pub unit: &'static str,
    /// Tag in TensorBoard.
    pub tag: &'static str,
    /// Returns the value; `None` if the step does not have it.
    pub value: fn(&Metrics) -> Option<f64>,
    /// True if a bit-identical replay has the same value.
    pub is_reproducible: bool,
    /// Curve in a report, if it has one.
    pub curve: Option<MetricCurve>,
}

/// Curve of a metric in a report and its CSV file.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct MetricCurve {
    /// Key in the record of a run, and prefix of the chart's id.
    pub key: &'static str,
    /// Column of the CSV file.
    pub column: &'static str,
    /// Title of the axis, without the unit.
    pub title: &'static str,
    /// Unit of the metric.
    pub unit: &'static str,
    /// Section of its chart and its column; within a section the order is that of [`METRICS`].
    pub section: Section,
    /// Aggregation over an interval of steps.
    pub aggregate: Aggregate,
    /// Scale of the axis.
    pub scale: Scale,
}

/// Group of metrics, in the order of their charts and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Section {
    /// Losses.
    Loss,
    /// Gradients and updates.
    Optimizer,
    /// Router of a mixture of experts.
    Router,
    /// Attention.
    Attention,
}

/// Value of a metric over an interval of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Aggregate {
    /// Mean of the steps.
    Mean,
    /// Largest value of the steps.
    Max,
    /// Not aggregated: evaluations, stored separately in records and drawn as markers in the chart of the training
    /// loss.
    Evaluations,
}

/// Scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scale {
    /// Linear.
    Linear,
    /// Linear, from the lowest value to the maximum over finished runs after their first 5 % of steps.
    LinearAfterStart,
    /// Logarithmic.
    Log,
}

impl Aggregate {
    /// Returns the value of an interval; `None` if no step has one.
    pub fn of(self, values: impl Iterator<Item = f64>) -> Option<f64> {
        let mut values = values.peekable();
        values.peek()?;
        match self {
            Self::Mean => {
                let (sum, count) =
                    values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
                Some(sum / count as f64)
            }
            Self::Max => values.reduce(f64::max),
            Self::Evaluations => None,
        }
    }
}

impl Metric {
    const fn new(
        name: &'static str,
        unit: &'static str,
        tag: &'static str,
        value: fn(&Metrics) -> Option<f64>,
    ) -> Self {
        Self {
            name,
            unit,
            tag,
            value,
            is_reproducible: true,
            curve: None,
        }
    }

    /// Marks a metric that differs between replays.
    const fn not_reproducible(mut self) -> Self {
        self.is_reproducible = false;
        self
    }

    /// Adds a curve: the key, the column of the CSV file, and the title of the axis without the unit.
    const fn curve(
        mut self,
        [key, column, title]: [&'static str; 3],
        section: Section,
        aggregate: Aggregate,
        scale: Scale,
    ) -> Self {
        self.curve = Some(MetricCurve {
            key,
            column,
            title,
            unit: self.unit,
            section,
            aggregate,
            scale,
        });
        self
    }
}

impl MetricCurve {
    /// Returns the title of the axis with the unit.
    pub fn axis_title(&self) -> String {
        match self.unit {
            "" => self.title.to_owned(),
            unit => format!("{} ({unit})", self.title),
        }
    }

    /// True for the training loss, whose chart comes first and also shows the validation loss.
    pub fn is_training_loss(&self) -> bool {
        self.key == "loss"
    }
}

/// Returns the curves of reports with their metrics, in the order of charts and columns.
pub fn curves() -> Vec<(&'static Metric, MetricCurve)> {
    let curves = METRICS
        .iter()
        .filter_map(|metric| Some((metric, metric.curve?)));
    let mut curves: Vec<_> = curves.collect();
    curves.sort_by_key(|(_, curve)| curve.section);
    curves
}

/// Table of the metrics in TensorBoard event files, in the comparison of a replay, in the records of studies, and in
/// the curves and CSV files of reports. To add a metric, add a field to [`Metrics`] or one of its parts, and an entry
/// here.
///
/// # Example
/// ```
/// use hybridnorm::train::metrics::{METRICS, curves};
///
/// let throughput = METRICS.iter().find(|metric| metric.tag == "train/tokens_per_second").unwrap();
/// assert!(!throughput.is_reproducible);
/// let columns: Vec<&str> = curves().iter().map(|(_, curve)| curve.column).collect();
/// assert_eq!(columns[..2], ["train_loss", "validation_loss"]);
/// ```
#[rustfmt::skip]
pub static METRICS: &[Metric] = {
    use Aggregate::{Evaluations, Max, Mean};
    use Scale::{Linear, LinearAfterStart, Log};
    use Section::{Attention, Loss, Optimizer, Router};
    &[
        Metric::new("learning rate", "", "train/lr", |metrics| Some(metrics.lr)),
        Metric::new("tokens", "tokens", "train/tokens", |metrics| Some(metrics.tokens as f64)),
        Metric::new("loss", "nats per token", "train/loss", |metrics| Some(metrics.loss))
            .curve(["loss", "train_loss", "training loss"], Loss, Mean, LinearAfterStart),
        Metric::new("gradient norm", "", "train/grad_norm", |metrics| Some(metrics.grad_norm))
            .curve(["grad_norm", "max_grad_norm", "gradient norm before clipping"], Optimizer, Max, Log),
        Metric::new("update norm", "", "train/update_norm", |metrics| Some(metrics.update_norm))
            .curve(["update_norm", "max_update_norm", "update norm"], Optimizer, Max, Log),
        Metric::new("tokens/s", "tokens per second", "train/tokens_per_second", |metrics| Some(metrics.tokens_per_second))
            .not_reproducible(),
        Metric::new("validation loss", "nats per token", "validation/loss", |metrics| metrics.validation_loss)
            .curve(["validation", "validation_loss", "validation loss"], Loss, Evaluations, Linear),
        Metric::new("training objective", "nats per token", "train/objective", |metrics| metrics.objective)
            .curve(["objective", "objective", "training objective"], Loss, Mean, LinearAfterStart),
        Metric::new("load-balancing loss", "", "router/load_balance", |metrics| Some(metrics.router.as_ref()?.load_balance))
            .curve(["load_balance", "load_balance", "load-balancing loss (balanced: 1)"], Router, Mean, Linear),
        Metric::new("router z-loss", "", "router/z", |metrics| Some(metrics.router.as_ref()?.z))
            .curve(["router_z", "router_z", "router z-loss"], Router, Mean, Log),
        Metric::new("router entropy", "nats", "router/entropy", |metrics| Some(metrics.router.as_ref()?.entropy))
            .curve(["router_entropy", "router_entropy", "router entropy"], Router, Mean, Linear),
        Metric::new("expert imbalance", "", "router/imbalance", |metrics| Some(metrics.router.as_ref()?.imbalance))
            .curve(["imbalance", "max_imbalance", "largest expert load over mean load"], Router, Max, Linear),
        Metric::new("dropped assignments", "", "router/dropped", |metrics| Some(metrics.router.as_ref()?.dropped as f64))
            .curve(["dropped", "dropped", "dropped (token, expert) assignments per step"], Router, Mean, Linear),
        Metric::new("max attention logit", "", "qk_clip/largest_score", |metrics| Some(metrics.qk_clip.as_ref()?.max_attention_logit))
            .curve(["max_attention_logit", "max_attention_logit", "max attention logit"], Attention, Max, Linear),
        Metric::new("clipped heads", "", "qk_clip/clipped_heads", |metrics| Some(metrics.qk_clip.as_ref()?.clipped_heads as f64))
            .curve(["clipped_heads", "max_clipped_heads", "heads clipped by QK-clip"], Attention, Max, Linear),
    ]
};

impl Record for Metrics {
    const FILE: &'static str = "metrics.jsonl";
    const IS_PER_STEP: bool = true;

    fn step(&self) -> u64 {
        self.step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keys_and_columns_are_unique() {
        let is_unique = |mut names: Vec<&str>| {
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            names.len() == count
        };
        assert!(is_unique(METRICS.iter().map(|metric| metric.tag).collect()));
        assert!(is_unique(
            curves().iter().map(|(_, curve)| curve.key).collect()
        ));
        assert!(is_unique(
            curves().iter().map(|(_, curve)| curve.column).collect()
        ));
    }

    #[test]
    fn empty_intervals_aggregate_to_none() {
        assert_eq!(Aggregate::Mean.of([1.0, 2.0].into_iter()), Some(1.5));
        assert_eq!(Aggregate::Max.of([1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(Aggregate::Max.of([-3.0, -2.0].into_iter()), Some(-2.0));
        assert_eq!(Aggregate::Mean.of(std::iter::empty()), None);
        assert_eq!(Aggregate::Max.of(std::iter::empty()), None);
    }
}
