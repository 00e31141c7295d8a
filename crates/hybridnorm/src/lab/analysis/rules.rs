//! By which rules runs are judged.

use serde::{Deserialize, Serialize};

use crate::digits::written;

/// By which rules runs are judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// The placement with which all others are compared.
    pub baseline: String,
    /// Largest probability of any false claim that a placement is better or worse; confidence
    /// intervals have the level `1 - alpha` for all comparisons together.
    pub alpha: f64,
    /// Smallest difference that counts, in nats: a placement is called better or worse only where the
    /// whole interval lies beyond it.
    pub margin: f64,
    /// A run is lost if its final loss is this much above the best median of its placement, in nats, at
    /// a learning rate at or above the one that has that median.
    pub lost_above: f64,
    /// Probability with which [`Comparison::seeds_to_resolve`](super::Comparison::seeds_to_resolve) seeds find a difference.
    pub power: f64,
    /// How far above its best loss a placement may be within its tolerance, in nats.
    pub tolerance: f64,
    /// Loss that no amount of compute goes below, in nats; see [`Comparison::compute_gain`](super::Comparison::compute_gain).
    pub irreducible_loss: f64,
    /// Exponent of compute in the law of [`Comparison::compute_gain`](super::Comparison::compute_gain).
    pub compute_exponent: f64,
    /// What a diverged run counts as in [`PlacementSummary::lr_sensitivity`](super::PlacementSummary::lr_sensitivity), in nats, and the most
    /// any run counts as; `None`: the largest mean loss at any placement and learning rate. Its
    /// authors took the loss at initialization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_cap: Option<f64>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            baseline: "pre-norm".to_owned(),
            alpha: 0.05,
            margin: 0.01,
            lost_above: 0.3,
            power: 0.8,
            tolerance: 0.05,
            irreducible_loss: 1.6,
            compute_exponent: 0.0941,
            loss_cap: None,
        }
    }
}

impl Rules {
    /// What is wrong with them, in one line that names the key. Where something is, [`analyse`](super::analyse)
    /// compares nothing and gives it as the reason.
    pub fn problem(&self) -> Option<String> {
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        let checks = [
            (
                "alpha",
                self.alpha,
                self.alpha > 0.0 && self.alpha < 1.0,
                "must lie between 0 and 1",
            ),
            (
                "margin",
                self.margin,
                not_negative(self.margin),
                "must not be negative",
            ),
            (
                "lost_above",
                self.lost_above,
                not_negative(self.lost_above) && self.lost_above > 0.0,
                "must be above 0",
            ),
            (
                "power",
                self.power,
                (0.5..1.0).contains(&self.power),
                "must be at least 0.5 and below 1",
            ),
            (
                "tolerance",
                self.tolerance,
                not_negative(self.tolerance),
                "must not be negative",
            ),
            (
                "irreducible_loss",
                self.irreducible_loss,
                not_negative(self.irreducible_loss),
                "must not be negative",
            ),
            (
                "compute_exponent",
                self.compute_exponent,
                not_negative(self.compute_exponent) && self.compute_exponent > 0.0,
                "must be above 0",
            ),
            (
                "loss_cap",
                self.loss_cap.unwrap_or_default(),
                self.loss_cap.is_none_or(not_negative),
                "must not be negative",
            ),
        ];
        let (key, value, _, expected) = checks.into_iter().find(|(_, _, right, _)| !right)?;
        Some(format!("{key} = {} {expected}", written(value)))
    }
}
