//! Initial state of a run: the model with its weights, and the optimizer with its moments.

use std::collections::BTreeSet;

use super::super::checkpoint::Checkpoint;
use super::super::config::{Config, InitSection};
use super::super::inventory::inventory;
use super::super::optimizer::Optimizer;
use super::super::run_directory;
use super::super::sources::{self, TrainingData};
use super::start_point::StartPoint;
use super::{Event, State, resume};
use crate::Device;
use crate::data::Cursor;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::{Decoder, Model, ModelConfig, ParamSpec};
use crate::placement::Warning;

/// A model with its initial weights.
pub(super) struct InitialModel {
    pub(super) model: Model,
    pub(super) warnings: Vec<Warning>,
    /// Fingerprint of the checkpoint that the weights were loaded from; `None` for random weights and resumed runs.
    pub(super) weights_from: Option<String>,
    /// Parameters that are missing in the checkpoint that the run branches off from.
    pub(super) new_parameters: Vec<String>,
}

impl From<(Model, Vec<Warning>)> for InitialModel {
    fn from((model, warnings): (Model, Vec<Warning>)) -> Self {
        Self {
            model,
            warnings,
            weights_from: None,
            new_parameters: Vec::new(),
        }
    }
}

impl InitialModel {
    /// Loads or initializes the model.
    pub(super) fn new(
        config: &Config,
        start_point: &StartPoint,
        data: &TrainingData,
        device: Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        match (start_point, &config.init) {
            (StartPoint::Branch(from), _) => Self::branched(config, from, data, device),
            (StartPoint::Resumed(checkpoint), _) => {
                check_memory(config, &checkpoint.config()?)?;
                Ok((checkpoint.model(device)?, Vec::new()).into())
            }
            (StartPoint::Fresh, Some(init)) => Self::loaded(config, init, data, device, on_event),
            (StartPoint::Fresh, None) => Self::initialized(config, data, device),
        }
    }

    /// Creates a model with the weights of `from` for all parameters of the same shape and layout; the others keep
    /// their initial values.
    fn branched(
        config: &Config,
        from: &Checkpoint,
        data: &TrainingData,
        device: Device,
    ) -> Result<Self> {
        let model_config = match &config.model {
            Some(section) => section.resolve(config.train.seq_len, data.vocab_size)?,
            None => from.config()?,
        };
        let (_, warnings) = model_config.resolve()?;
        check_memory(config, &model_config)?;
        let mut model = Model::new(&model_config, config.seed, device)?;
        let same = parameters_with_same_layout(&from.config()?, &model_config)?;
        let new_parameters = model.load_matching(&from.weights()?, |name| same.contains(name))?;
        model.normalize_unit_weights()?;
        Ok(Self {
            model,
            warnings,
            weights_from: Some(from.fingerprint().to_owned()),
            new_parameters,
        })
    }

    /// Loads the model with all weights of the checkpoint in `[init]`.
    fn loaded(
        config: &Config,
        init: &InitSection,
        data: &TrainingData,
        device: Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let from = Checkpoint::open(&init.from)?;
        for problem in from.skipped_checkpoints() {
            on_event(Event::Note(run_directory::skipped_checkpoint_note(problem)));
        }
        let model_config =
            resolve_init_model(config, &from, data).map_err(|e| config.origin.prefix_error(e))?;
        check_memory(config, &model_config)?;
        let trained = from.config()?.max_seq_len;
        if config.train.seq_len > trained {
            on_event(Event::Note(format!(
                "train.seq_len = {} exceeds max_seq_len = {trained} of the model in {}, which was not trained on \
                 positions beyond it",
                config.train.seq_len,
                from.path().display()
            )));
        }
        let model = from
            .model(device)?
            .with_max_seq_len(model_config.max_seq_len)?;
        Ok(Self {
            weights_from: Some(from.fingerprint().to_owned()),
            ..(model, Vec::new()).into()
        })
    }

    /// Creates a model with random initial weights.
    fn initialized(config: &Config, data: &TrainingData, device: Device) -> Result<Self> {
        let in_file = |error| config.origin.prefix_error(error);
        let section = config
            .model
            .as_ref()
            .ok_or_else(|| Error::missing("[model]", ""))?;
        let model_config = section
            .resolve(config.train.seq_len, data.vocab_size)
            .map_err(in_file)?;
        let (_, warnings) = model_config.resolve().map_err(in_file)?;
        check_memory(config, &model_config)?;
        Ok((Model::new(&model_config, config.seed, device)?, warnings).into())
    }

    /// Allocates the optimizer, and restores its moments and the state of the run from the checkpoint that it
    /// starts from.
    pub(super) fn optimizer(
        &mut self,
        config: &Config,
        start_point: &StartPoint,
        data: &TrainingData,
    ) -> Result<(Optimizer, State)> {
        let mut optimizer = Optimizer::new(config.optimizer.clone(), &mut self.model)?;
        let Some(checkpoint) = start_point.checkpoint() else {
            let state = State {
                step: 0,
                tokens: 0,
                cursor: Cursor::default(),
                data: data.train.fingerprint(),
                max_grad_norm: 0.0,
            };
            return Ok((optimizer, state));
        };
        let state: State = checkpoint.state()?;
        resume::check_same_data(checkpoint, &state.data, data)?;
        let (moments, step, model) = (checkpoint.moments()?, state.step, &mut self.model);
        match start_point.is_resumed() {
            true => optimizer.restore(step, &moments, model)?,
            // A parameter with initial values has no moments.
            false => optimizer.restore_matching(step, &moments, &self.new_parameters, model)?,
        }
        Ok((optimizer, state))
    }
}

/// Checks that the memory of the machine suffices for a run.
pub(super) fn check_memory(config: &Config, model: &ModelConfig) -> Result<()> {
    let train = &config.train;
    let inventory = inventory(model, train.step_shape(), &config.optimizer)?;
    memory::check_available(
        inventory.memory.total_without_process(),
        "the model's weights, gradients, moments and activations",
    )
}

/// Returns the names of the parameters whose rows have the same meaning in both models. With different numbers of
/// heads, those of attention do not, even if their shapes are equal.
fn parameters_with_same_layout(from: &ModelConfig, to: &ModelConfig) -> Result<BTreeSet<String>> {
    let [from_registry, to_registry] = [Decoder::new(from)?, Decoder::new(to)?];
    let heads = |config: &ModelConfig| (config.n_heads, config.n_kv_heads, config.mla);
    let same_heads = heads(from) == heads(to);
    let layout = |spec: &ParamSpec| (spec.role, spec.matrices.clone(), spec.writes_residual);
    let is_same = |spec: &&ParamSpec| {
        let other = from_registry.registry().get(&spec.name);
        (same_heads || !spec.is_attention) && other.map(layout) == Some(layout(spec))
    };
    let specs = to_registry.registry().iter().filter(is_same);
    Ok(specs.map(|spec| spec.name.clone()).collect())
}

/// Returns the configuration of a model loaded through `[init]`: that of the checkpoint. A `[model]` section must
/// agree with it, except for `max_seq_len`, on which no parameter depends.
fn resolve_init_model(
    config: &Config,
    from: &Checkpoint,
    data: &TrainingData,
) -> Result<ModelConfig> {
    let mut from_checkpoint = from.config()?;
    sources::check_vocabulary(data, &from_checkpoint)?;
    let longest = from_checkpoint.max_seq_len.max(config.train.seq_len);
    let Some(section) = &config.model else {
        from_checkpoint.max_seq_len = longest;
        return Ok(from_checkpoint);
    };
    let vocab = section.vocab_size.or(Some(from_checkpoint.vocab_size));
    let mut requested = section.resolve(config.train.seq_len, vocab)?;
    if section.max_seq_len.is_none() {
        requested.max_seq_len = longest;
    }
    from_checkpoint.max_seq_len = requested.max_seq_len;
    if requested != from_checkpoint {
        return Err(Error::conflict(
            ["model", "init.from"],
            format!(
                "[model] differs from the model in {}; omit it to use that model",
                from.path().display()
            ),
        ));
    }
    Ok(requested)
}
