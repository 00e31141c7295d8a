//! Metrics of a step, and the check that they are finite.

use crate::model::{BlockActivationStats, RouterStatistics};
use crate::train::metrics::{Metrics, RouterMetrics};
use crate::train::recorder::WeightsVersion;
use crate::train::step::StepOutcome;

/// Returns the metrics of step `step`, without its throughput. `tokens` is the number of tokens trained on so far.
pub(super) fn metrics(step: u64, lr: f64, tokens: u64, outcome: &StepOutcome) -> Metrics {
    let (loss, objective) = (outcome.losses.cross_entropy, outcome.losses.objective);
    Metrics {
        step,
        loss,
        grad_norm: outcome.norms.gradient,
        update_norm: outcome.norms.update,
        lr,
        tokens,
        tokens_per_second: f64::NAN,
        objective: (objective != loss).then_some(objective),
        router: RouterMetrics::new(&outcome.routing),
        qk_clip: outcome.norms.qk_clip.clone(),
        ..Metrics::default()
    }
}

/// Describes loss, gradient norm and update norm up to the first that is not finite, and returns whether the weights
/// are those before or after the update; `None` if all are finite.
pub(super) fn non_finite(metrics: &Metrics) -> Option<(String, WeightsVersion)> {
    let &Metrics {
        loss,
        grad_norm,
        update_norm,
        ..
    } = metrics;
    if !loss.is_finite() {
        return Some((format!("loss {loss}"), WeightsVersion::Before));
    }
    let found = format!("loss {loss}, gradient norm {grad_norm}");
    if !grad_norm.is_finite() {
        return Some((found, WeightsVersion::Before));
    }
    let found = format!("{found}, update norm {update_norm}");
    (!update_norm.is_finite()).then_some((found, WeightsVersion::After))
}

/// Replaces the router statistics of the sampled tokens by those of the whole step, for every block.
pub(super) fn replace_routing(
    activations: &mut [BlockActivationStats],
    routing: Vec<RouterStatistics>,
) {
    let sampled = activations
        .iter_mut()
        .filter_map(|block| block.routing.as_mut());
    for (sampled, whole_step) in sampled.zip(routing) {
        *sampled = whole_step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BatchLosses;
    use crate::train::StepNorms;

    fn outcome(loss: f64, objective: f64, gradient: f64, update: f64) -> StepOutcome {
        StepOutcome {
            losses: BatchLosses {
                cross_entropy: loss,
                objective,
            },
            norms: StepNorms {
                gradient,
                update,
                ..StepNorms::default()
            },
            routing: Vec::new(),
        }
    }

    #[test]
    fn objective_is_recorded_only_if_it_differs_from_the_loss() {
        let plain = metrics(3, 1e-3, 64, &outcome(2.0, 2.0, 0.5, 0.1));
        assert_eq!((plain.step, plain.tokens, plain.lr), (3, 64, 1e-3));
        assert_eq!(
            (plain.loss, plain.grad_norm, plain.update_norm),
            (2.0, 0.5, 0.1)
        );
        assert_eq!(plain.objective, None);
        let penalized = metrics(3, 1e-3, 64, &outcome(2.0, 2.5, 0.5, 0.1));
        assert_eq!(penalized.objective, Some(2.5));
    }

    #[test]
    fn first_non_finite_value_determines_the_weights_version() {
        let of = |loss, gradient, update| {
            non_finite(&metrics(1, 0.0, 0, &outcome(loss, loss, gradient, update)))
        };
        assert_eq!(of(2.0, 1.0, 0.5), None);
        let nan = f64::NAN;
        assert_eq!(
            of(nan, nan, nan),
            Some(("loss NaN".into(), WeightsVersion::Before))
        );
        let gradient = "loss 2, gradient norm inf".to_owned();
        assert_eq!(
            of(2.0, f64::INFINITY, nan),
            Some((gradient, WeightsVersion::Before))
        );
        let update = "loss 2, gradient norm 1, update norm NaN".to_owned();
        assert_eq!(of(2.0, 1.0, nan), Some((update, WeightsVersion::After)));
    }
}
