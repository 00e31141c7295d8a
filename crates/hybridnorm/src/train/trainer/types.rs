//! Start, state, events and outcome of a run.

use std::path::{Path, PathBuf};

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use crate::data::{Cursor, Progress};
use crate::files::Locking;
use crate::loss::Loss;
use crate::omissions::Omissions;
use crate::train::checkpoint::Checkpoint;
use crate::train::layers::LayerRecord;
use crate::train::metrics::Metrics;
use crate::train::sources::DataCoverage;
use crate::train::spikes::{Spike, SpikeCounts, SpikeScores};

/// State of a run; together with weights and moments, it determines all further steps.
///
/// ```
/// use hybridnorm::Device;
/// # use hybridnorm::data::TokenDataset;
/// use hybridnorm::train::{Checkpoint, Start, State, Trainer};
/// # use hybridnorm::train::{Config, ModelSection, TrainSection, TrainingData};
///
/// # let model = ModelSection::new("hybridnorm")
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8);
/// # let train = TrainSection::default().with_steps(4).with_batch_size(4).with_seq_len(8);
/// # let config = Config::default().with_model(model).with_train(train);
/// # let tokens: Vec<u32> = (0..200).map(|i| i % 8).collect();
/// # let data = TrainingData::new(&config, TokenDataset::from_tokens(&tokens, 8, 8)?, None);
/// # let folder = tempfile::tempdir().unwrap();
/// # let run = folder.path().join("run");
/// let mut trainer = Trainer::open_with_data(config, data, &run, Start::Fresh, Device::Cpu, &mut |_| {})?;
/// trainer.run_to(2, &false.into(), &mut |_| {})?;
/// // A checkpoint contains the state.
/// let state: State = Checkpoint::open(&run)?.state()?;
/// assert_eq!(&state, trainer.state());
/// assert_eq!((state.step, state.tokens, state.cursor.position), (2, 2 * 4 * 8, 8));
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct State {
    /// Completed optimizer steps.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Position of the batch stream.
    pub cursor: Cursor,
    /// Fingerprint of the training data.
    pub data: String,
    /// Largest gradient norm so far.
    pub max_grad_norm: f64,
}

/// Progress of a run, reported as it happens.
///
/// ```
/// # use std::sync::atomic::AtomicBool;
/// # use hybridnorm::Device;
/// # use hybridnorm::data::TokenDataset;
/// use hybridnorm::train::{Config, Event, Start, Trainer};
/// # use hybridnorm::train::{ModelSection, TrainSection, TrainingData};
///
/// # let model = ModelSection::new("hybridnorm")
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8);
/// # let train = TrainSection::default().with_steps(4).with_batch_size(4).with_seq_len(8);
/// # let config = Config::default().with_model(model).with_train(train);
/// # let tokens: Vec<u32> = (0..200).map(|i| i % 8).collect();
/// # let dataset = TokenDataset::from_tokens(&tokens, 8, 8)?;
/// # let data = TrainingData::new(&config, dataset, None);
/// # let folder = tempfile::tempdir().unwrap();
/// # let run = folder.path().join("run");
/// let mut losses = Vec::new();
/// let mut on_event = |event: Event<'_>| match event {
///     Event::Step(metrics) => losses.push(metrics.loss),
///     Event::Saved(path) => assert!(path.ends_with("step-00000004")),
///     _ => {}
/// };
/// let (start, device) = (Start::Fresh, Device::Cpu);
/// let mut trainer = Trainer::open_with_data(config, data, &run, start, device, &mut on_event)?;
/// trainer.run(&AtomicBool::new(false), &mut on_event)?;
/// assert_eq!(losses.len(), 4);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A note to the user.
    Note(String),
    /// Progress of tokenization.
    Progress(Progress),
    /// Data were opened.
    Data(&'a DataCoverage),
    /// A step was completed.
    Step(&'a Metrics),
    /// Validation loss was measured.
    Evaluated {
        /// Step after which it was measured.
        step: u64,
        /// Loss on the validation data.
        loss: Loss,
    },
    /// Downstream tasks were evaluated after a step; see [`Metrics::tasks`].
    Tasks(&'a Metrics),
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// Result of a run.
///
/// ```
/// use hybridnorm::Device;
/// # use hybridnorm::data::TokenDataset;
/// use hybridnorm::train::{Start, Trainer};
/// # use hybridnorm::train::{Config, ModelSection, TrainSection, TrainingData};
///
/// # let model = ModelSection::new("hybridnorm")
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8);
/// # let train = TrainSection::default().with_steps(4).with_batch_size(4).with_seq_len(8);
/// # let config = Config::default().with_model(model).with_train(train);
/// # let tokens: Vec<u32> = (0..200).map(|i| i % 8).collect();
/// # let data = TrainingData::new(&config, TokenDataset::from_tokens(&tokens, 8, 8)?, None);
/// # let folder = tempfile::tempdir().unwrap();
/// # let run = folder.path().join("run");
/// // A configuration of four steps, on 200 tokens that are all for training.
/// let mut trainer = Trainer::open_with_data(config, data, &run, Start::Fresh, Device::Cpu, &mut |_| {})?;
/// let stop = false.into();
/// let paused = trainer.run_to(3, &stop, &mut |_| {})?;
/// assert!(!paused.finished && paused.checkpoint.ends_with("step-00000003"));
/// let outcome = trainer.run(&stop, &mut |_| {})?;
/// assert!(outcome.finished);
/// assert_eq!((outcome.step, outcome.tokens), (4, 4 * 4 * 8));
/// assert_eq!(outcome.validation, None);
/// assert_eq!(outcome.data.train.tokens, 192, "in complete sequences");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// True if all steps were done; otherwise the run was stopped.
    pub finished: bool,
    /// Completed steps.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Validation loss after the last step, if there is validation data.
    pub validation: Option<Loss>,
    /// Counts of used and omitted tokens of the data.
    pub data: DataCoverage,
    /// Omissions from the data, by reason.
    #[serde(rename = "left_out")]
    pub omissions: Omissions,
    /// Largest gradient norm of all steps.
    pub max_grad_norm: f64,
    /// Spikes of all steps.
    pub spikes: SpikeCounts,
    /// Fractions of the last steps that spiked.
    pub spike_scores: SpikeScores,
    /// Throughput of the steps of this process, excluding evaluation and saving.
    pub tokens_per_second: f64,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// Result of an optimizer step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// Metrics of the step.
    pub metrics: Metrics,
    /// Activations, gradients and updates by block, if due at this step.
    pub layers: Option<LayerRecord>,
    /// Spikes of the step.
    pub spikes: Vec<Spike>,
    /// Wall time of the step, in seconds.
    pub seconds: f64,
}

/// Initial state of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// From step 0; the run directory must not contain a run.
    Fresh,
    /// From the newest valid checkpoint, or from step 0 if none was written yet. It is an error if all
    /// are corrupt or there is no run.
    Resume,
    /// As [`Start::Resume`], but starts a new run if there is none.
    ResumeOrFresh,
    /// From the checkpoint of another run on the same data, in a directory that must not contain a run.
    /// Parameters missing from the checkpoint start with their initial values.
    Branch(Checkpoint),
}

/// Options for opening a run.
///
/// ```
/// use hybridnorm::files::Locking;
/// use hybridnorm::train::OpenOptions;
///
/// let options = OpenOptions::default().with_locking(Locking::IfSupported).with_restart_purpose("a probe");
/// assert_eq!(options.restart_purpose.as_deref(), Some("a probe"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Setters)]
#[setters(prefix = "with_", strip_option, into)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Locking of the run directory.
    pub locking: Locking,
    /// Purpose of the run. Unless finished, the run is replaced by the next one with the same purpose. A file in the
    /// directory marks it as unfinished until [`Trainer::mark_finished`](super::Trainer::mark_finished).
    pub restart_purpose: Option<String>,
}
