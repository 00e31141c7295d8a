//! Rules of the analysis.

use serde::{Deserialize, Serialize};

use crate::digits::written;

/// Rules by which runs are classified and placements compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Placement that all others are compared with.
    pub baseline: String,
    /// Largest probability of any false claim that a placement is better or worse (family-wise error rate);
    /// confidence intervals have the simultaneous level `1 - alpha` over all comparisons.
    pub alpha: f64,
    /// Smallest relevant difference, in nats: a placement is better or worse only if the whole interval lies
    /// beyond it.
    pub margin: f64,
    /// A run has diverged if its final loss is this much above the best median loss of its placement, in nats,
    /// at a learning rate at or above the one with that median.
    pub lost_above: f64,
    /// Statistical power at [`Comparison::seeds_to_resolve`](super::Comparison::seeds_to_resolve) seeds.
    pub power: f64,
    /// Loss above a placement's best that its learning rate tolerance allows, in nats.
    pub tolerance: f64,
    /// Irreducible loss, in nats; see [`Comparison::compute_gain`](super::Comparison::compute_gain).
    pub irreducible_loss: f64,
    /// Scaling exponent of compute; see [`Comparison::compute_gain`](super::Comparison::compute_gain).
    pub compute_exponent: f64,
    /// Loss cap of [`PlacementSummary::lr_sensitivity`](super::PlacementSummary::lr_sensitivity), in nats, also
    /// used as the loss of a diverged run; `None`: the largest mean loss at any placement and learning rate. The
    /// paper uses the loss at initialization.
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
    /// Returns a one-line message that names the first invalid key, if there is one. [`analyse`](super::analyse)
    /// then compares nothing and reports the message as the reason.
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
