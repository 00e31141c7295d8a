//! Dumps of steps with spikes or non-finite values, from the learner to the flight recorder.

use std::collections::BTreeMap;
use std::path::Path;

use super::learner::Learner;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::train::checkpoint;
use crate::train::layers::{LayerRecord, finite_or_none};
use crate::train::metrics::Metrics;
use crate::train::optimizer::ParameterNorms;
use crate::train::recorder::{Dump, DumpReason, Recorder, WeightsVersion};
use crate::train::spikes::Spike;

/// Context of a step for a dump, besides its metrics.
pub(super) struct StepContext {
    /// Ids of the step's instances.
    pub(super) instances: Vec<u64>,
    /// The micro-batch whose activations are dumped.
    pub(super) batch: Batch,
    /// Weights of the model: those before the step's update or after it.
    pub(super) weights: WeightsVersion,
    /// Norms of every parameter.
    pub(super) norms: BTreeMap<String, ParameterNorms>,
}

/// Dumps a step with a result that is not finite; returns the error.
pub(super) fn divergence(
    learner: &mut Learner,
    recorder: &mut Recorder,
    metrics: &Metrics,
    context: &StepContext,
    found: String,
) -> Error {
    let problem = format!(
        "{found}; batch instances {:?}; {}",
        context.instances,
        last_good_checkpoint(recorder.run(), metrics.step)
    );
    let dump = dump_of(
        learner,
        metrics,
        context,
        DumpReason::NotFinite,
        vec![found],
    );
    let problem = match dump.and_then(|dump| recorder.dump(&dump)) {
        Ok(path) => format!("{problem}; see {}", path.display()),
        Err(error) => format!("{problem}; no dump: {error}"),
    };
    Error::Diverged {
        step: Some(metrics.step),
        problem,
    }
}

/// Returns the spikes of a step; if there are any, dumps the step if the limit on dumps allows it.
pub(super) fn detect_spikes(
    learner: &mut Learner,
    recorder: &mut Recorder,
    metrics: &Metrics,
    context: &StepContext,
) -> Result<Vec<Spike>> {
    let spikes = recorder.detect_spikes(metrics);
    if !spikes.is_empty() && recorder.may_dump() {
        let reasons = spikes.iter().map(Spike::to_string).collect();
        let dump = dump_of(learner, metrics, context, DumpReason::Spike, reasons)?;
        recorder.dump(&dump)?;
    }
    Ok(spikes)
}

fn dump_of(
    learner: &mut Learner,
    metrics: &Metrics,
    context: &StepContext,
    kind: DumpReason,
    reasons: Vec<String>,
) -> Result<Dump> {
    let batch = &context.batch;
    let activations = learner.activations(batch, batch.len(), batch.seq_len)?;
    let parameters = context.norms.iter();
    Ok(Dump {
        step: metrics.step,
        kind,
        reasons,
        loss: finite_or_none(metrics.loss),
        grad_norm: finite_or_none(metrics.grad_norm),
        update_norm: finite_or_none(metrics.update_norm),
        lr: metrics.lr,
        instances: context.instances.clone(),
        weights: context.weights,
        layers: LayerRecord::new(metrics.step, &learner.model, &activations, &context.norms),
        parameters: parameters
            .map(|(name, norms)| (name.clone(), norms.into()))
            .collect(),
    })
}

/// Describes the newest checkpoint before that of `step`, for messages.
fn last_good_checkpoint(run: &Path, step: u64) -> String {
    match checkpoint::newest_before(run, step) {
        Ok(checkpoint::Newest {
            checkpoint: Some((_, checkpoint)),
            ..
        }) => format!("last good checkpoint: {}", checkpoint.path().display()),
        _ => "there is no earlier checkpoint".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::config::LogSection;
    use crate::train::recorder::find_failure_dump;
    use crate::train::trainer::testing::{batches, learner};

    fn context(batch: Batch, weights: WeightsVersion) -> StepContext {
        StepContext {
            instances: batch.instance_ids.clone(),
            batch,
            weights,
            norms: BTreeMap::new(),
        }
    }

    fn recorder(run: &Path, dumps: usize) -> Recorder {
        let log = LogSection {
            dumps,
            ..LogSection::default()
        };
        Recorder::open(run, &log, 0).unwrap()
    }

    fn metrics(step: u64, loss: f64) -> Metrics {
        Metrics {
            step,
            loss,
            grad_norm: 1.0,
            update_norm: 0.5,
            lr: 1e-3,
            ..Metrics::default()
        }
    }

    #[test]
    fn a_divergence_is_dumped_and_its_error_names_step_instances_and_dump() {
        let folder = tempfile::tempdir().unwrap();
        let (mut learner, mut recorder) = (learner(), recorder(folder.path(), 0));
        let context = context(batches(usize::MAX).peek(2).unwrap(), WeightsVersion::Before);
        let metrics = metrics(7, f64::NAN);
        let error = divergence(
            &mut learner,
            &mut recorder,
            &metrics,
            &context,
            "loss NaN".into(),
        );
        let Error::Diverged { step, problem } = error else {
            panic!("{error}");
        };
        assert_eq!(step, Some(7));
        let dump = find_failure_dump(folder.path(), 7).unwrap().unwrap();
        assert_eq!(
            (dump.kind, dump.weights),
            (DumpReason::NotFinite, WeightsVersion::Before)
        );
        assert_eq!((dump.loss, dump.lr), (None, 1e-3));
        assert_eq!(dump.instances, context.instances);
        assert_eq!(dump.layers.blocks.len(), learner.model.config().n_layers);
        let expected = format!(
            "loss NaN; batch instances {:?}; there is no earlier checkpoint; see {}",
            context.instances,
            folder.path().join("flight").display()
        );
        assert!(problem.starts_with(&expected), "{problem}");
    }

    #[test]
    fn only_the_first_spikes_are_dumped() {
        let folder = tempfile::tempdir().unwrap();
        let (mut learner, mut recorder) = (learner(), recorder(folder.path(), 1));
        let context = context(batches(usize::MAX).peek(2).unwrap(), WeightsVersion::After);
        let mut spikes = Vec::new();
        for step in 1..=400 {
            let loss = match step {
                200 | 400 => 50.0,
                _ => 3.0 + 0.01 * (step % 7) as f64,
            };
            let metrics = metrics(step, loss);
            let found = detect_spikes(&mut learner, &mut recorder, &metrics, &context).unwrap();
            if !found.is_empty() {
                spikes.push(step);
            }
        }
        assert_eq!(spikes, [200, 400]);
        let dumps = std::fs::read_dir(folder.path().join("flight")).unwrap();
        assert_eq!(dumps.count(), 1);
    }
}
