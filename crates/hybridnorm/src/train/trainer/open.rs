//! Opening a run: its data, its model, and the state that it starts from or is resumed at.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::checkpoint::{self, Checkpoint};
use super::super::claim::Claim;
use super::super::config::Config;
use super::super::history;
use super::super::inventory::inventory;
use super::super::metrics::Metrics;
use super::super::optimizer::Optimizer;
use super::super::recorder::Recorder;
use super::super::rows::Row;
use super::super::run_directory;
use super::super::segments::{self, Segment};
use super::super::sources::{self, Sources};
use super::begin::Beginning;
use super::{Event, OpenOptions, Start, State, Trainer, resume};
use crate::Device;
use crate::data::{BatchStream, Cursor};
use crate::error::{Error, Result};
use crate::files;
use crate::machine;
use crate::memory;
use crate::model::{Decoder, Model, ModelConfig, ParamSpec};
use crate::threads;

impl Trainer {
    /// Prepares a run in the directory `run`: opens its data, makes or loads its model. What the run
    /// writes, it writes when the first step is about to be done.
    ///
    /// `on_event` hears of what is being prepared.
    ///
    /// # Errors
    /// If the configuration, the data or the directory do not allow the run. What this call created is
    /// removed again; what was there before is as it was.
    pub fn open(
        config: Config,
        run: &Path,
        start: Start,
        device: Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let options = OpenOptions::default();
        Self::open_with(config, run, start, &options, device, on_event)
    }

    /// As [`Trainer::open`], with options.
    ///
    /// # Errors
    /// As [`Trainer::open`].
    pub fn open_with(
        config: Config,
        run: &Path,
        start: Start,
        options: &OpenOptions,
        device: Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let mut claim = match start {
            Start::Resume => {
                run_directory::require_run(run)?;
                Claim::existing(run, options.locking)
            }
            _ => Claim::create(run, options.locking),
        }?;
        if let Some(purpose) = &options.unfinished {
            run_directory::begin_unfinished(run, purpose, &mut claim)?;
        }
        let is_branch = matches!(start, Start::Branch(_));
        let is_resume = matches!(start, Start::Resume | Start::ResumeOrFresh);
        let resumed = match start {
            Start::Fresh => {
                run_directory::refuse_to_overwrite(run)?;
                None
            }
            Start::Resume | Start::ResumeOrFresh => {
                run_directory::find_resume_point(run, on_event)?
            }
            Start::Branch(checkpoint) => {
                run_directory::refuse_to_share(run)?;
                Some(checkpoint)
            }
        };
        let goes_on = resumed.is_some() && !is_branch;
        if !goes_on && !is_branch && is_resume {
            on_event(Event::Note(
                "no checkpoint to resume from; starting from the beginning".into(),
            ));
        }
        // What a killed process left.
        files::remove_stale_in(run);
        files::remove_stale_in(&run.join(checkpoint::CHECKPOINTS));
        let path = run.join(run_directory::CONFIG);
        let written = match files::exists(&path)? {
            true => Some(Config::load(&path, &[])?),
            false if goes_on => {
                return Err(Error::format(
                    path,
                    "missing, so that nobody knows how the run was trained",
                ));
            }
            false => None,
        };
        if let (true, Some(old)) = (goes_on, &written) {
            resume::check_same_run(old, &config, run)?;
        }
        let name_file = |error| config.origin.name(error);
        let own = resumed.as_ref();
        let sources = sources::open(&config, own, &mut |progress| {
            on_event(Event::Progress(progress));
        })
        .map_err(name_file)?;
        for note in &sources.notes {
            on_event(Event::Note(note.clone()));
        }
        on_event(Event::Data(&sources.data_use));
        if sources.validation.is_none() && config.train.eval_every > 0 {
            on_event(Event::Note(format!(
                "no validation: {}, and data.validation names none",
                sources.no_validation
            )));
        }
        let mut new_parameters = Vec::new();
        let mut weights_from = resumed
            .as_ref()
            .filter(|_| is_branch)
            .map(|checkpoint| checkpoint.fingerprint().to_owned());
        let (mut model, warnings) = match (&resumed, &config.init) {
            (Some(checkpoint), _) if is_branch => {
                let model = match &config.model {
                    Some(section) => section.settle(config.train.seq_len, sources.vocab_size)?,
                    None => checkpoint.config()?,
                };
                let (_, warnings) = model.resolve()?;
                require_memory(&config, &model)?;
                let mut fresh = Model::new(&model, config.seed, device)?;
                let same = same_layout(&checkpoint.config()?, &model)?;
                new_parameters =
                    fresh.load_shared(&checkpoint.weights()?, |name| same.contains(name))?;
                fresh.restore_unit_weights()?;
                (fresh, warnings)
            }
            (Some(checkpoint), _) => {
                require_memory(&config, &checkpoint.config()?)?;
                (checkpoint.model(device)?, Vec::new())
            }
            (None, Some(init)) => {
                let from = Checkpoint::open(&init.from)?;
                for problem in from.passed_over() {
                    on_event(Event::Note(run_directory::passed_over(problem)));
                }
                weights_from = Some(from.fingerprint().to_owned());
                let model = settle_init(&config, &from, &sources).map_err(name_file)?;
                require_memory(&config, &model)?;
                let trained = from.config()?.max_seq_len;
                if config.train.seq_len > trained {
                    on_event(Event::Note(format!(
                        "train.seq_len = {} is beyond the {trained} positions of the model in {}: it \
                         learns those behind them from here on",
                        config.train.seq_len,
                        from.path().display()
                    )));
                }
                let loaded = from.model(device)?;
                (loaded.with_max_seq_len(model.max_seq_len)?, Vec::new())
            }
            (None, None) => {
                let section = config
                    .model
                    .as_ref()
                    .ok_or_else(|| Error::config("[model] is missing"))?;
                let model = section
                    .settle(config.train.seq_len, sources.vocab_size)
                    .map_err(name_file)?;
                let (_, warnings) = model.resolve().map_err(name_file)?;
                require_memory(&config, &model)?;
                (Model::new(&model, config.seed, device)?, warnings)
            }
        };
        if config.optimizer.qk_clip.is_some() {
            model.config().check_qk_clip().map_err(name_file)?;
        }
        if model.config().placement.unit_weights && config.optimizer.weight_decay > 0.0 {
            on_event(Event::Note(
                "weight decay does nothing but shorten steps where weights have unit length; nGPT uses \
                 optimizer.weight_decay = 0"
                    .into(),
            ));
        }
        let mut optimizer = Optimizer::new(config.optimizer.clone(), &mut model)?;
        let state = match &resumed {
            Some(checkpoint) => {
                let state: State = checkpoint.state()?;
                resume::check_same_data(checkpoint, &state.data, &sources)?;
                let (moments, step) = (checkpoint.moments()?, state.step);
                match is_branch {
                    // What begins anew has no past.
                    true => {
                        optimizer.restore_shared(step, &moments, &new_parameters, &mut model)?;
                    }
                    false => optimizer.restore(step, &moments, &mut model)?,
                }
                state
            }
            None => State {
                step: 0,
                tokens: 0,
                cursor: Cursor::default(),
                data: sources.train.fingerprint(),
                max_grad_norm: 0.0,
            },
        };
        let Sources {
            train,
            validation,
            data_use,
            tokenizer,
            folders,
            ..
        } = sources;
        let stream = BatchStream::new(train, config.data.order.seeded(config.seed), state.cursor)?;
        let schedule = config.settled_schedule()?;
        let recorder = Recorder::open(run, &config.log, state.step)?;
        let (mut segments, before) = match (goes_on, &written) {
            (true, Some(old)) => history::cut(segments::read(run)?, old, state.step)
                .map_err(|error| Error::format(run.join(segments::FILE), error.to_string()))?,
            _ => (Vec::new(), config.clone()),
        };
        if let Some(segment) = segments.first() {
            let begin = segment.after_step + 1;
            let hole = match recorder.first_row() {
                Some(row) if row > begin => {
                    Some(format!("begins with step {row}, the run with step {begin}"))
                }
                None if state.step >= begin => {
                    Some(format!("has no row of steps {begin} to {}", state.step))
                }
                _ => None,
            };
            if let Some(hole) = hole {
                return Err(Error::format(
                    run.join(Metrics::FILE),
                    format!("{hole}: rows are missing; put a whole copy of the file in its place"),
                ));
            }
        }
        let changed = history::changes(&before, &config);
        let measured_on = match &validation {
            Some(found) => found.fingerprint(),
            None => segments::NO_VALIDATION.to_owned(),
        };
        if goes_on {
            let missing = recorder.missing_rows();
            resume::tell((&before, &config), &changed, state.step, missing, on_event)?;
            match state.step >= config.train.steps as u64 {
                true => finish_what_was_begun(run, state.step, &segments, &before)?,
                false => {
                    let last = segments.last();
                    resume::tell_of_validation(last, &measured_on, state.step, on_event);
                }
            }
        }
        segments.push(Segment {
            after_step: state.step,
            last_step: None,
            started: machine::timestamp(),
            changed,
            threads: threads::count(),
            machine: machine::name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            data: state.data.clone(),
            validation: Some(measured_on),
            weights: weights_from,
            peak_memory_bytes: None,
        });
        let beginning = Beginning {
            // What says the same already may be somebody's own, with comments.
            writes_config: written.as_ref() != Some(&config),
            is_resumed: goes_on,
            is_for_good: options.unfinished.is_none(),
        };
        Ok(Self {
            metrics: None,
            recorder,
            last_saved: goes_on.then_some(state.step),
            new_parameters,
            config,
            run: run.to_path_buf(),
            stream,
            validation,
            data_use,
            tokenizer,
            folders,
            schedule,
            model,
            optimizer,
            training: None,
            state,
            warnings,
            segments,
            beginning: Some(beginning),
            claim,
        })
    }
}

/// Does what a process left undone that was killed right after its last checkpoint.
fn finish_what_was_begun(
    run: &Path,
    step: u64,
    segments: &[Segment],
    config: &Config,
) -> Result<()> {
    let recorded = segments::read(run)?;
    let is_behind = |last: &Segment| last.last_step.is_none_or(|of| of < step);
    if recorded.len() == segments.len() && recorded.last().is_some_and(is_behind) {
        segments::write(run, segments)?;
    }
    checkpoint::prune(run, step, config.train.keep_checkpoints)
}

/// Refuses a training that the machine's memory cannot hold.
pub(super) fn require_memory(config: &Config, model: &ModelConfig) -> Result<()> {
    let train = &config.train;
    let inventory = inventory(model, train.step_shape(), &config.optimizer)?;
    memory::require(
        inventory.memory.besides_program(),
        "the model's weights, gradients, moments and activations",
    )
}

/// Names of the parameters whose rows have the same meaning in both models. With other heads, the parameters of
/// attention have not, even if there are as many.
fn same_layout(from: &ModelConfig, to: &ModelConfig) -> Result<BTreeSet<String>> {
    let [from_registry, to_registry] = [Decoder::new(from)?, Decoder::new(to)?];
    let heads = |config: &ModelConfig| (config.n_heads, config.n_kv_heads, config.mla);
    let same_heads = heads(from) == heads(to);
    let layout = |spec: &ParamSpec| (spec.role, spec.matrices.clone(), spec.writes_residual);
    let is_same = |spec: &&ParamSpec| {
        let other = from_registry.registry().get(&spec.name);
        (same_heads || !spec.of_attention) && other.map(layout) == Some(layout(spec))
    };
    let specs = to_registry.registry().iter().filter(is_same);
    Ok(specs.map(|spec| spec.name.clone()).collect())
}

/// A run that starts from a checkpoint takes its shape from there; what `[model]` says beside it must
/// agree, since it would have no effect. Only the longest sequence may be another one, on which no
/// parameter depends.
fn settle_init(config: &Config, from: &Checkpoint, sources: &Sources) -> Result<ModelConfig> {
    let mut theirs = from.config()?;
    sources::check_vocabulary(sources, &theirs)?;
    let longest = theirs.max_seq_len.max(config.train.seq_len);
    let Some(section) = &config.model else {
        theirs.max_seq_len = longest;
        return Ok(theirs);
    };
    let vocab = section.vocab_size.or(Some(theirs.vocab_size));
    let mut ours = section.settle(config.train.seq_len, vocab)?;
    if section.max_seq_len.is_none() {
        ours.max_seq_len = longest;
    }
    theirs.max_seq_len = ours.max_seq_len;
    if ours != theirs {
        return Err(Error::config(format!(
            "[model] is not the model in {}; leave it out to take that one",
            from.path().display()
        )));
    }
    Ok(ours)
}
