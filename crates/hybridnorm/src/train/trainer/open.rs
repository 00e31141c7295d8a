//! How a run begins: its data, its model, where it stands.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::checkpoint::{self, Checkpoint};
use super::super::config::Config;
use super::super::optimizer::Optimizer;
use super::super::recorder::Recorder;
use super::super::rows::RowsFile;
use super::super::run_directory;
use super::super::sources::{self, Sources};
use super::{Event, Start, State, Trainer};
use crate::Device;
use crate::data::{BatchStream, Cursor};
use crate::error::{Error, Result};
use crate::files;
use crate::memory;
use crate::model::inventory::inventory;
use crate::model::matrices::Matrices;
use crate::model::params::Values;
use crate::model::{Decoder, ModelConfig, params};

impl Trainer {
    /// Prepares a run in the directory `run`: opens its data, makes or loads its model.
    ///
    /// `on_event` hears of what is being prepared.
    ///
    /// # Errors
    /// If the configuration, the data or the directory do not allow the run.
    pub fn open(
        config: Config,
        run: &Path,
        start: Start,
        device: &Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let is_new = !run.exists();
        let opened = Self::prepare(config, run, start, device, on_event);
        if opened.is_err() && is_new {
            // Nothing was done yet: no trace is left. The error to report is the first one.
            let _ = run_directory::remove(run)
                .and_then(|()| std::fs::remove_dir(run).map_err(Error::io(run)));
        }
        opened
    }

    fn prepare(
        config: Config,
        run: &Path,
        start: Start,
        device: &Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        files::create_dir(run.join(checkpoint::CHECKPOINTS))?;
        let lock = run_directory::lock(run)?;
        let is_branch = matches!(start, Start::Branch(_));
        let resumed = match start {
            Start::Fresh => {
                run_directory::refuse_to_overwrite(run)?;
                None
            }
            Start::Resume => run_directory::find_resume_point(run, on_event)?,
            Start::Branch(checkpoint) => {
                run_directory::refuse_to_share(run)?;
                Some(checkpoint)
            }
        };
        // What a killed process left.
        files::remove_stale_in(run);
        files::remove_stale_in(&run.join(checkpoint::CHECKPOINTS));
        if resumed.is_some() && !is_branch {
            run_directory::check_same_run(&config, run, on_event)?;
        }
        let name_file = |error| config.origin.name(error);
        let sources = sources::open(&config, &mut |progress| on_event(Event::Progress(progress)))
            .map_err(name_file)?;
        for note in &sources.notes {
            on_event(Event::Note(format!("data: {note}")));
        }
        if sources.validation.is_none() && config.train.eval_every > 0 {
            on_event(Event::Note(format!(
                "no validation: the data hold out less than one sequence of {} tokens, and \
                 data.validation names none",
                config.train.seq_len
            )));
        }
        let device = device.clone().autodiff();
        let mut new_parameters = Vec::new();
        let (model, warnings) = match (&resumed, &config.init) {
            (Some(checkpoint), _) if is_branch => {
                let model = match &config.model {
                    Some(section) => section.settle(config.train.seq_len, sources.vocab_size)?,
                    None => checkpoint.config()?,
                };
                let (_, warnings) = model.resolve()?;
                require_memory(&config, &model)?;
                let fresh = Decoder::new(&model, config.seed, &device)?;
                let mut weights = checkpoint.weights()?;
                drop_of_other_layout(&mut weights, &checkpoint.config()?, &model);
                let (model, new) = params::load_shared(fresh, weights);
                new_parameters = new;
                (model.with_unit_weights(), warnings)
            }
            (Some(checkpoint), _) => {
                require_memory(&config, &checkpoint.config()?)?;
                (checkpoint.model(&device)?, Vec::new())
            }
            (None, Some(init)) => {
                let from = Checkpoint::open(&init.from)?;
                check_init(&config, &from, &sources).map_err(name_file)?;
                require_memory(&config, &from.config()?)?;
                (from.model(&device)?, Vec::new())
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
                (Decoder::new(&model, config.seed, &device)?, warnings)
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
        let mut optimizer = Optimizer::new(config.optimizer.clone(), &model);
        let state = match &resumed {
            Some(checkpoint) => {
                let (state, mut moments): (State, _) = checkpoint.training()?;
                // What begins anew has no past; in its file a moment has the name of its kind before.
                moments.retain(|name, _| {
                    let parameter = name.split_once('.').map(|(_, parameter)| parameter);
                    !new_parameters
                        .iter()
                        .any(|new| Some(new.as_str()) == parameter)
                });
                let found = sources.train.fingerprint();
                if state.data != found {
                    return Err(Error::config(format!(
                        "the training data are not those of {} (fingerprint {}, now {found})",
                        checkpoint.path().display(),
                        state.data
                    )));
                }
                let plain = device.clone().without_autodiff();
                match is_branch {
                    true => optimizer.restore_shared(state.step, moments, &plain)?,
                    false => optimizer.restore(state.step, moments, &plain)?,
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
            tokenizer,
            folders,
            ..
        } = sources;
        let stream = BatchStream::new(train, config.data.order.seeded(config.seed), state.cursor)?;
        let tokens_per_step = (config.train.batch_size * config.train.seq_len) as u64;
        let schedule =
            config
                .schedule
                .settle(config.optimizer.lr, config.train.steps, tokens_per_step)?;
        let metrics = RowsFile::open(run, state.step)?;
        let recorder = Recorder::open(run, &config.log, state.step)?;
        // What says the same already may be somebody's own, with comments.
        let path = run.join(run_directory::CONFIG);
        if !path.exists() || Config::load(&path, &[])? != config {
            files::write(path, config.to_toml().as_bytes())?;
        }
        if resumed.is_some() && !is_branch {
            // A kill may have come between saving and pruning.
            checkpoint::prune(run, state.step, config.train.keep_checkpoints)?;
        }
        Ok(Self {
            metrics,
            recorder,
            last_saved: (resumed.is_some() && !is_branch).then_some(state.step),
            new_parameters,
            config,
            run: run.to_path_buf(),
            stream,
            validation,
            tokenizer,
            folders,
            schedule,
            model: Some(model),
            optimizer,
            state,
            warnings,
            lock,
        })
    }
}

/// Refuses a training that the machine's memory cannot hold.
fn require_memory(config: &Config, model: &ModelConfig) -> Result<()> {
    let train = &config.train;
    let micro = train.batch_size / train.grad_accum_steps;
    let inventory = inventory(model, micro, train.seq_len, train.recompute)?;
    memory::require(
        config.optimizer.inventory(inventory).memory.total(),
        "the model's weights, gradients, moments and activations",
    )
}

/// Drops weights whose rows are for something else in another model, even if there are as many.
fn drop_of_other_layout(
    weights: &mut BTreeMap<String, Values>,
    from: &ModelConfig,
    to: &ModelConfig,
) {
    weights.retain(|name, values| {
        let rows = values.shape.first().copied().unwrap_or(0);
        let of = |config| Matrices::of(name, rows, config);
        let heads = |config: &ModelConfig| (config.n_heads, config.n_kv_heads, config.mla);
        let same_heads = heads(from) == heads(to) || !name.contains(".attention.");
        same_heads && of(from) == of(to)
    });
}

/// A run that starts from a checkpoint takes its shape from there; what `[model]` says beside it
/// must agree, since it would have no effect.
fn check_init(config: &Config, from: &Checkpoint, sources: &Sources) -> Result<()> {
    let theirs = from.config()?;
    sources::check_vocabulary(sources, &theirs)?;
    if config.train.seq_len > theirs.max_seq_len {
        return Err(Error::config(format!(
            "train.seq_len = {} is longer than the {} tokens of the model in {}",
            config.train.seq_len,
            theirs.max_seq_len,
            from.path().display()
        )));
    }
    let Some(section) = &config.model else {
        return Ok(());
    };
    let vocab = section.vocab_size.or(Some(theirs.vocab_size));
    let mut ours = section.settle(config.train.seq_len, vocab)?;
    if section.max_seq_len.is_none() {
        ours.max_seq_len = theirs.max_seq_len;
    }
    if ours != theirs {
        return Err(Error::config(format!(
            "[model] is not the model in {}; leave it out to take that one",
            from.path().display()
        )));
    }
    Ok(())
}
