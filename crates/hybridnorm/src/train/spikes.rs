//! Spikes: values far above their recent mean.
//!
//! The spike score is the fraction of the last [`WINDOW`] values that were more than [`THRESHOLD`] standard
//! deviations above the mean of the preceding values (after OLMo 2, arXiv 2501.00656, which counts deviations of 7
//! in either direction over 1000 values).

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::metrics::Metrics;

/// Number of preceding values that a new one is compared with.
pub const WINDOW: usize = 128;
/// Minimum number of preceding values for a comparison.
pub const MIN_VALUES: usize = 32;
/// Spike threshold, in standard deviations above the mean.
pub const THRESHOLD: f64 = 6.0;

/// A quantity in which spikes are detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Quantity {
    /// The training loss.
    Loss,
    /// The global gradient norm before clipping.
    GradNorm,
    /// The global norm of the optimizer's update.
    UpdateNorm,
}

impl Quantity {
    /// All quantities, in counting order.
    pub const ALL: [Self; 3] = [Self::Loss, Self::GradNorm, Self::UpdateNorm];

    /// Returns the value at a step.
    pub fn value(self, metrics: &Metrics) -> f64 {
        match self {
            Self::Loss => metrics.loss,
            Self::GradNorm => metrics.grad_norm,
            Self::UpdateNorm => metrics.update_norm,
        }
    }

    /// Returns the name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::GradNorm => "gradient norm",
            Self::UpdateNorm => "update norm",
        }
    }
}

/// A value far above its recent mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Spike {
    /// The quantity that spiked.
    pub quantity: Quantity,
    /// The value.
    pub value: f64,
    /// Mean of the preceding values.
    pub mean: f64,
    /// Distance from the mean, in standard deviations.
    pub deviations: f64,
}

impl fmt::Display for Spike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:.4} is {:.1} standard deviations above its recent mean of {:.4}",
            self.quantity.name(),
            self.value,
            self.deviations,
            self.mean
        )
    }
}

/// Number of spikes by quantity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SpikeCounts {
    /// Spikes of the loss.
    pub loss: u64,
    /// Spikes of the gradient norm.
    pub grad_norm: u64,
    /// Spikes of the update norm.
    pub update_norm: u64,
}

impl SpikeCounts {
    /// Returns the total.
    pub fn total(&self) -> u64 {
        self.loss + self.grad_norm + self.update_norm
    }
}

/// Fractions of the last [`WINDOW`] steps that spiked, between 0 and 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SpikeScores {
    /// Spike score of the loss.
    pub loss: f64,
    /// Spike score of the gradient norm.
    pub grad_norm: f64,
    /// Spike score of the update norm.
    pub update_norm: f64,
}

/// Spike detector, fed step by step.
#[derive(Debug, Clone, Default)]
pub struct Detector {
    series: [SeriesWindow; 3],
}

#[derive(Debug, Clone, Default)]
struct SeriesWindow {
    recent: VecDeque<f64>,
    spiked: VecDeque<bool>,
    count: u64,
}

impl Detector {
    /// Compares a step with the preceding ones; returns its spikes.
    pub fn push(&mut self, metrics: &Metrics) -> Vec<Spike> {
        let series = self.series.iter_mut().zip(Quantity::ALL);
        series
            .filter_map(|(series, quantity)| series.push(quantity, quantity.value(metrics)))
            .collect()
    }

    /// Returns the number of spikes so far.
    pub fn counts(&self) -> SpikeCounts {
        let [loss, grad_norm, update_norm] = self.series.each_ref().map(|series| series.count);
        SpikeCounts {
            loss,
            grad_norm,
            update_norm,
        }
    }

    /// Returns the current spike scores.
    pub fn scores(&self) -> SpikeScores {
        let [loss, grad_norm, update_norm] = self.series.each_ref().map(SeriesWindow::score);
        SpikeScores {
            loss,
            grad_norm,
            update_norm,
        }
    }
}

impl SeriesWindow {
    fn push(&mut self, quantity: Quantity, value: f64) -> Option<Spike> {
        // A record read from a file may lack a number.
        if !value.is_finite() {
            return None;
        }
        let spike = self.compare(quantity, value);
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
            self.spiked.pop_front();
        }
        self.recent.push_back(value);
        self.spiked.push_back(spike.is_some());
        self.count += u64::from(spike.is_some());
        spike
    }

    fn compare(&self, quantity: Quantity, value: f64) -> Option<Spike> {
        if self.recent.len() < MIN_VALUES {
            return None;
        }
        let n = self.recent.len() as f64;
        let mean = self.recent.iter().sum::<f64>() / n;
        let squares: f64 = self.recent.iter().map(|x| (x - mean).powi(2)).sum();
        let deviation = (squares / (n - 1.0)).sqrt();
        let deviations = (value - mean) / deviation;
        // With zero deviation, nothing counts as a spike.
        (deviation > 0.0 && deviations > THRESHOLD).then_some(Spike {
            quantity,
            value,
            mean,
            deviations,
        })
    }

    fn score(&self) -> f64 {
        let spikes = self.spiked.iter().filter(|&&spiked| spiked).count();
        spikes as f64 / WINDOW as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64, loss: f64, grad_norm: f64) -> Metrics {
        Metrics {
            step,
            loss,
            grad_norm,
            update_norm: 1.0,
            lr: 1e-3,
            tokens: step,
            tokens_per_second: 1.0,
            ..Metrics::default()
        }
    }

    /// Loss that oscillates by 0.1 around 3.
    fn oscillating_loss(step: u64) -> Metrics {
        metrics(step, 3.0 + 0.1 * (step as f64).sin(), 1.0)
    }

    #[test]
    fn only_values_far_above_the_mean_are_spikes() {
        let mut detector = Detector::default();
        assert!((0..100).all(|step| detector.push(&oscillating_loss(step)).is_empty()));
        // The sine has a standard deviation of 0.0707.
        for below_threshold in [3.40, 2.0] {
            assert!(
                detector
                    .clone()
                    .push(&metrics(100, below_threshold, 1.0))
                    .is_empty()
            );
        }
        let spikes = detector.push(&metrics(100, 3.45, 1.0));
        assert_eq!(spikes.len(), 1);
        assert_eq!(spikes[0].quantity, Quantity::Loss);
        assert!((spikes[0].mean - 3.0).abs() < 0.01);
        assert!((spikes[0].deviations - 6.36).abs() < 0.1, "{spikes:?}");
        assert_eq!(
            detector.counts(),
            SpikeCounts {
                loss: 1,
                ..SpikeCounts::default()
            }
        );
        assert_eq!(detector.scores().loss, 1.0 / 128.0);
        // The score covers the last steps, the count all steps.
        (0..WINDOW as u64).for_each(|step| drop(detector.push(&oscillating_loss(step))));
        assert_eq!(detector.scores().loss, 0.0);
        assert_eq!(detector.counts().total(), 1);
    }

    #[test]
    fn no_spikes_without_enough_varying_history() {
        let mut detector = Detector::default();
        for step in 0..MIN_VALUES as u64 - 1 {
            detector.push(&oscillating_loss(step));
        }
        assert!(detector.push(&metrics(31, 100.0, 50.0)).is_empty());
        let mut detector = Detector::default();
        (0..64).for_each(|step| drop(detector.push(&oscillating_loss(step))));
        assert!(detector.push(&metrics(64, 3.0, 50.0)).is_empty());
    }
}
