//! Learning rate as a function of the step.

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `[schedule]`: learning-rate schedule.
///
/// ```
/// use hybridnorm::train::{ScheduleConfig, ScheduleKind};
///
/// let config = ScheduleConfig::default()
///     .with_kind(ScheduleKind::Linear)
///     .with_warmup_steps(10)
///     .with_min_lr_ratio(0.0);
/// let schedule = config.resolve(1e-3, 110, 4096)?;
/// assert_eq!(schedule.lr(10), 1e-3);
/// assert!((schedule.lr(60) - 5e-4).abs() < 1e-12);
/// assert_eq!(schedule.lr(110), 0.0);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct ScheduleConfig {
    /// The curve after warm-up.
    pub kind: ScheduleKind,
    /// Steps of linear warm-up from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<usize>,
    /// Tokens of linear warm-up from 0; rounded up to whole steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_tokens: Option<u64>,
    /// Final learning rate relative to the peak; 0.1 by default. Not valid with `constant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_ratio: Option<f64>,
    /// Steps of the final decay of `wsd`; by default a fifth of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<usize>,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            warmup_steps: None,
            warmup_tokens: None,
            min_lr_ratio: None,
            decay_steps: None,
        }
    }
}

/// The curve after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ScheduleKind {
    /// Constant at the peak.
    Constant,
    /// Linear decay to `min_lr_ratio`.
    Linear,
    /// Cosine decay to `min_lr_ratio` (arXiv 1608.03983).
    Cosine,
    /// Warm-up, stable, decay: constant at the peak, then linear decay over the last `decay_steps`
    /// (arXiv 2404.06395).
    Wsd,
}

/// Schedule with all defaults resolved.
///
/// ```
/// use hybridnorm::train::ScheduleConfig;
///
/// let schedule = ScheduleConfig::default().with_warmup_steps(2).resolve(0.1, 10, 1)?;
/// assert_eq!(schedule.lr(1), 0.05);
/// assert!(schedule.lr(3) > schedule.lr(9), "cosine decay");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    kind: ScheduleKind,
    peak: f64,
    steps: usize,
    warmup: usize,
    decay: usize,
    floor: f64,
}

impl ScheduleConfig {
    /// Resolves the schedule of a run of `steps` steps of `tokens_per_step` tokens.
    ///
    /// # Errors
    /// [`Error::NoEffect`] for a key that the kind of schedule does not use, [`Error::OutOfRange`] for
    /// `min_lr_ratio`, [`Error::Conflict`] if both warm-up keys are given, or warm-up and decay are longer
    /// than the run.
    pub fn resolve(&self, peak: f64, steps: usize, tokens_per_step: u64) -> Result<Schedule> {
        if self.kind == ScheduleKind::Constant && self.min_lr_ratio.is_some() {
            return Err(Error::no_effect(
                "schedule.min_lr_ratio",
                " with schedule.kind = \"constant\"",
            ));
        }
        let floor = self.min_lr_ratio.unwrap_or(0.1);
        if !(0.0..=1.0).contains(&floor) {
            return Err(Error::out_of_range(
                "schedule.min_lr_ratio",
                floor,
                "0 to 1",
            ));
        }
        let warmup = match (self.warmup_steps, self.warmup_tokens) {
            (Some(_), Some(_)) => {
                return Err(Error::conflict(
                    ["schedule.warmup_steps", "schedule.warmup_tokens"],
                    "schedule.warmup_steps and schedule.warmup_tokens are both given, expected one",
                ));
            }
            (Some(steps), None) => steps,
            (None, Some(tokens)) => tokens.div_ceil(tokens_per_step.max(1)) as usize,
            (None, None) => 0,
        };
        if warmup > steps {
            return Err(Error::conflict(
                ["schedule.warmup_steps", "train.steps"],
                format!("schedule: warm-up of {warmup} steps is longer than the run of {steps}"),
            ));
        }
        let decay = match (self.kind, self.decay_steps) {
            (ScheduleKind::Wsd, given) => given.unwrap_or(steps / 5),
            (_, Some(_)) => {
                return Err(Error::no_effect(
                    "schedule.decay_steps",
                    " without schedule.kind = \"wsd\"",
                ));
            }
            (_, None) => steps - warmup,
        };
        if warmup + decay > steps {
            return Err(Error::conflict(
                ["schedule.decay_steps", "train.steps"],
                format!(
                    "schedule: warm-up ({warmup}) and decay ({decay}; schedule.decay_steps, a fifth of the run \
                 unless given) are longer than the run of {steps} steps"
                ),
            ));
        }
        Ok(Schedule {
            kind: self.kind,
            peak,
            steps,
            warmup,
            decay,
            floor,
        })
    }
}

impl Schedule {
    /// Returns the steps around the end of warm-up and the start of decay, between which the learning rate follows one
    /// formula, and the last step.
    pub(super) fn breakpoints(&self) -> Vec<usize> {
        let decay_start = self.steps - self.decay;
        let breakpoints = [
            self.warmup,
            self.warmup + 1,
            decay_start,
            decay_start + 1,
            self.steps,
        ];
        breakpoints.to_vec()
    }

    /// Returns the learning rate of step `step`, counted from 1. Constant after the last step.
    pub fn lr(&self, step: usize) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let decay_start = self.steps - self.decay;
        let progress = match self.decay {
            0 => 0.0,
            decay => (step.saturating_sub(decay_start) as f64 / decay as f64).min(1.0),
        };
        let remaining = match self.kind {
            ScheduleKind::Constant => return self.peak,
            ScheduleKind::Linear | ScheduleKind::Wsd => 1.0 - progress,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.peak * (self.floor + (1.0 - self.floor) * remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> Schedule {
        let config = ScheduleConfig {
            kind,
            warmup_steps: Some(10),
            ..Default::default()
        };
        config.resolve(2.0, 110, 100).unwrap()
    }

    #[test]
    fn warm_up_is_linear_and_reaches_the_peak() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Cosine] {
            let schedule = schedule(kind);
            assert_eq!(schedule.lr(1), 0.2);
            assert_eq!(schedule.lr(10), 2.0);
        }
    }

    #[test]
    fn decay_ends_at_the_minimum_learning_rate() {
        assert_eq!(schedule(ScheduleKind::Constant).lr(110), 2.0);
        for kind in [
            ScheduleKind::Linear,
            ScheduleKind::Cosine,
            ScheduleKind::Wsd,
        ] {
            let schedule = schedule(kind);
            assert!((schedule.lr(110) - 0.2).abs() < 1e-12, "{kind:?}");
            assert_eq!(schedule.lr(500), schedule.lr(110), "{kind:?}");
        }
        assert!((schedule(ScheduleKind::Cosine).lr(60) - 1.1).abs() < 1e-12);
        assert!((schedule(ScheduleKind::Linear).lr(60) - 1.1).abs() < 1e-12);
    }

    #[test]
    fn wsd_is_flat_before_its_decay() {
        let schedule = schedule(ScheduleKind::Wsd);
        assert_eq!(schedule.lr(88), 2.0);
        assert!(schedule.lr(89) < 2.0);
    }

    #[test]
    fn warm_up_in_tokens_rounds_up() {
        let config = ScheduleConfig {
            warmup_tokens: Some(950),
            ..Default::default()
        };
        let schedule = config.resolve(1.0, 100, 100).unwrap();
        assert_eq!(schedule.lr(10), 1.0);
        assert!(schedule.lr(9) < 1.0);
    }

    #[test]
    fn keys_without_effect_are_errors() {
        let with_decay = ScheduleConfig {
            decay_steps: Some(5),
            ..Default::default()
        };
        let error = with_decay.resolve(1.0, 100, 1).unwrap_err().to_string();
        assert!(error.contains("decay_steps"), "{error}");
        let both = ScheduleConfig {
            warmup_steps: Some(1),
            warmup_tokens: Some(1),
            ..Default::default()
        };
        assert!(both.resolve(1.0, 100, 1).is_err());
        let long = ScheduleConfig {
            warmup_steps: Some(101),
            ..Default::default()
        };
        assert!(long.resolve(1.0, 100, 1).is_err());
    }
}
