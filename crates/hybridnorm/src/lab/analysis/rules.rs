//! Rules of the analysis.

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format_number::config_number;

/// Rules by which runs are classified and placements compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_", strip_option)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AnalysisRules {
    /// Placement that all others are compared with.
    #[setters(into)]
    pub baseline: String,
    /// Maximum probability of at least one false verdict "better" or "worse" (family-wise error rate);
    /// confidence intervals have the simultaneous level `1 - alpha` over all comparisons.
    pub alpha: f64,
    /// Smallest relevant difference, in nats: a placement is better or worse only if the whole interval lies
    /// beyond it.
    pub margin: f64,
    /// A run has diverged if its final loss is this much above the best median loss of its placement, in nats,
    /// at a learning rate at or above the one with that median.
    #[serde(rename = "lost_above")]
    pub diverged_above_best: f64,
    /// Statistical power at [`Comparison::seeds_for_significance`](super::Comparison::seeds_for_significance) seeds.
    pub power: f64,
    /// Maximum mean loss above a placement's best at which a learning rate is within its tolerance, in nats.
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

impl Default for AnalysisRules {
    fn default() -> Self {
        Self {
            baseline: "pre-norm".to_owned(),
            alpha: 0.05,
            margin: 0.01,
            diverged_above_best: 0.3,
            power: 0.8,
            tolerance: 0.05,
            irreducible_loss: 1.6,
            compute_exponent: 0.0941,
            loss_cap: None,
        }
    }
}

impl AnalysisRules {
    /// Checks all values. [`analyze`](super::analyze) makes no comparison if a rule is invalid, and reports the error
    /// as the reason.
    ///
    /// # Errors
    /// If a value is out of range.
    ///
    /// ```
    /// use hybridnorm::lab::analysis::AnalysisRules;
    ///
    /// let rules = AnalysisRules::default().with_baseline("post-norm").with_alpha(1.5);
    /// let error = rules.validate().unwrap_err().to_string();
    /// assert_eq!(error, "alpha = 1.5, expected between 0 and 1");
    /// ```
    pub fn validate(&self) -> Result<()> {
        self.validate_as("")
    }

    /// As [`AnalysisRules::validate`], with a prefix of the keys in errors.
    pub(in crate::lab) fn validate_as(&self, prefix: &str) -> Result<()> {
        let is_probability = self.alpha > 0.0 && self.alpha < 1.0;
        let is_power = (0.5..1.0).contains(&self.power);
        let checks = [
            ("alpha", self.alpha, is_probability, "between 0 and 1"),
            at_least_0("margin", self.margin),
            above_0("lost_above", self.diverged_above_best),
            ("power", self.power, is_power, "at least 0.5 and below 1"),
            at_least_0("tolerance", self.tolerance),
            at_least_0("irreducible_loss", self.irreducible_loss),
            above_0("compute_exponent", self.compute_exponent),
            at_least_0("loss_cap", self.loss_cap.unwrap_or_default()),
        ];
        match checks.into_iter().find(|(_, _, is_valid, _)| !is_valid) {
            None => Ok(()),
            Some((key, value, _, expected)) => Err(Error::out_of_range(
                format!("{prefix}{key}"),
                config_number(value),
                expected,
            )),
        }
    }
}

/// Key, value, true if it is valid, and the allowed range.
type Check = (&'static str, f64, bool, &'static str);

fn at_least_0(key: &'static str, value: f64) -> Check {
    (key, value, value.is_finite() && value >= 0.0, "at least 0")
}

fn above_0(key: &'static str, value: f64) -> Check {
    (key, value, value.is_finite() && value > 0.0, "above 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_checked_and_read() {
        assert!(AnalysisRules::default().validate().is_ok());
        let rules: AnalysisRules = toml::from_str("alpha = 0.01\nloss_cap = 7.0").unwrap();
        assert_eq!(
            (rules.alpha, rules.power, rules.loss_cap),
            (0.01, 0.8, Some(7.0))
        );
        assert!(toml::from_str::<AnalysisRules>("alpah = 0.01").is_err());
        for (key, bad) in [
            ("alpha", "0.0"),
            ("power", "0.4"),
            ("tolerance", "-0.1"),
            ("irreducible_loss", "nan"),
            ("compute_exponent", "0.0"),
            ("loss_cap", "inf"),
        ] {
            let rules: AnalysisRules = toml::from_str(&format!("{key} = {bad}")).unwrap();
            let found = rules.validate().unwrap_err().to_string();
            assert!(found.starts_with(key), "{found}");
        }
    }
}
