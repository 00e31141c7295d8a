//! Quickstart: HybridNorm* against Pre-Norm on real text, in minutes.
//!
//! Both models start from the same initial weights, read the same batches in the same order and stop after the
//! same number of tokens. One seed and one learning rate show how the tool works; they do not show which
//! placement is better.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use derive_setters::Setters;
use serde::Serialize;

use crate::data;
use crate::error::{Error, Result};
use crate::eval::{self, Sampling};
use crate::files::{self, Lock, Locking};
use crate::memory;
use crate::train::{Config, Event, FloatFormat, OpenOptions, Start, Trainer, run_directory};
use crate::{Device, data::Tokenizer};

/// Compared placements.
pub const PLACEMENTS: [&str; 2] = ["hybridnorm-star", "pre-norm"];

/// Training recipe, without a placement.
const RECIPE: &str = include_str!("../../configs/quickstart.toml");

/// Marker file of run directories created by quickstart.
const MARKER_FILE: &str = "made-by-quickstart";
const LOCK_FILE: &str = "lock";

/// Options of quickstart.
///
/// ```
/// use hybridnorm::lab::quickstart::Options;
///
/// let options = Options::new("runs/quickstart").with_data(["stories:2000".to_owned()]).with_steps(50);
/// assert_eq!(options.steps, Some(50));
/// ```
#[derive(Debug, Clone, PartialEq, Setters)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct Options {
    /// Folder for the run directories and `results.json`.
    #[setters(into)]
    pub out: PathBuf,
    /// Text to use; if empty, Gutenberg, or generated stories if it is unavailable.
    #[setters(into)]
    pub data: Vec<String>,
    /// Training steps per model; `None`: as in the recipe.
    pub steps: Option<usize>,
    /// Precision of matmuls and activations.
    pub precision: FloatFormat,
    /// Locking of the folder and the runs.
    pub locking: Locking,
}

impl Options {
    /// Returns options for the folder `out`, with the text and the steps of the recipe.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self {
            out: out.into(),
            data: Vec::new(),
            steps: None,
            precision: FloatFormat::default(),
            locking: Locking::Required,
        }
    }
}

/// Results of quickstart.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Results {
    /// Text that was used.
    pub data: Vec<String>,
    /// Precision of the programs, such as `f32`.
    pub precision: String,
    /// Loss of a unigram model on the validation text, in nats per token.
    pub unigram_nats: f64,
    /// Training tokens per model.
    pub tokens: u64,
    /// One row per placement.
    #[serde(rename = "rows")]
    pub placements: Vec<PlacementResult>,
}

/// Results of training one placement.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PlacementResult {
    /// Name of the placement.
    pub placement: String,
    /// Validation loss in nats per token.
    pub validation_loss: f64,
    /// `exp(validation_loss)`.
    pub perplexity: f64,
    /// Training throughput.
    pub tokens_per_second: f64,
    /// Peak memory of the process during training, in bytes, if the system reports it.
    pub peak_memory_bytes: Option<u64>,
    /// Largest gradient norm before clipping.
    pub max_grad_norm: f64,
    /// Text that the trained model generates after [`PROMPT`].
    pub sample: String,
    /// Run directory.
    pub run: PathBuf,
}

/// Prompt for both models.
pub const PROMPT: &str = "Once upon a time";

/// Trains and compares both models; `None` if stopped.
///
/// # Errors
/// If the text is unavailable or training fails.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
///
/// use hybridnorm::Device;
/// use hybridnorm::lab::quickstart::{self, Options};
/// use hybridnorm::train::Event;
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let out = folder.path();
/// let options = Options::new(out).with_data(["stories:80".to_owned()]).with_steps(50);
/// let stop = AtomicBool::new(false);
/// let mut losses = Vec::new();
/// // Reports every step, and stops after the first one.
/// let mut on_event = |placement: &str, _steps: u64, event: Event<'_>| {
///     if let Event::Step(metrics) = event {
///         losses.push((placement.to_owned(), metrics.loss));
///         stop.store(true, Ordering::Relaxed);
///     }
/// };
/// let results = quickstart::run(&options, Device::Cpu, &stop, &mut on_event)?;
/// assert_eq!(results, None);
/// assert_eq!(losses.len(), 1);
/// assert_eq!(losses[0].0, "hybridnorm-star");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn run(
    options: &Options,
    device: Device,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(&str, u64, Event<'_>),
) -> Result<Option<Results>> {
    files::create_dir(&options.out)?;
    let _lock = Lock::exclusive(
        &options.out.join(LOCK_FILE),
        options.locking,
        "another quickstart is running here",
    )?;
    files::remove_stale_in(&options.out);
    let data = match options.data.as_slice() {
        [] => vec![available_text(&mut |note| {
            on_event("data", 0, Event::Note(note));
        })],
        given => given.to_vec(),
    };
    for placement in PLACEMENTS {
        prepare_run_directory(&options.out.join(placement), options.locking)?;
    }
    let recipe = config(PLACEMENTS[0], &data, options)?;
    let mut placements = Vec::new();
    let (mut tokens, mut unigram_nats) = (0, None);
    for placement in PLACEMENTS {
        let config = config(placement, &data, options)?;
        let steps = config.train.steps as u64;
        let mut forward = |event: Event<'_>| on_event(placement, steps, event);
        let run = options.out.join(placement);
        let open = OpenOptions::default().with_locking(options.locking);
        let mut trainer =
            Trainer::open_with(config, &run, Start::Fresh, &open, device, &mut forward)?;
        if unigram_nats.is_none() {
            unigram_nats = Some(unigram_loss(&trainer)?);
        }
        let Some((row, trained_tokens)) = train(placement, &mut trainer, run, stop, &mut forward)?
        else {
            return Ok(None);
        };
        tokens = trained_tokens;
        placements.push(row);
    }
    let results = Results {
        data,
        precision: recipe.train.program_precision().to_string(),
        unigram_nats: unigram_nats.unwrap_or(f64::NAN),
        tokens,
        placements,
    };
    let path = options.out.join("results.json");
    let text = serde_json::to_vec_pretty(&results)
        .map_err(|error| Error::format(&path, error.to_string()))?;
    files::write(path, &text)?;
    Ok(Some(results))
}

/// Trains one placement; returns its results and the number of training tokens, or `None` if stopped.
fn train(
    placement: &str,
    trainer: &mut Trainer,
    run: PathBuf,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<(PlacementResult, u64)>> {
    memory::reset_peak();
    let outcome = trainer.run(stop, on_event)?;
    if !outcome.finished {
        return Ok(None);
    }
    let validation = outcome.validation.ok_or_else(|| {
        Error::missing(
            "validation text",
            ": the text has too few documents to hold one out",
        )
    })?;
    let row = PlacementResult {
        placement: placement.to_owned(),
        validation_loss: validation.loss,
        perplexity: validation.perplexity,
        tokens_per_second: outcome.tokens_per_second,
        peak_memory_bytes: memory::peak_bytes(),
        max_grad_norm: outcome.max_grad_norm,
        sample: sample(trainer)?,
        run,
    };
    Ok(Some((row, outcome.tokens)))
}

fn config(placement: &str, data: &[String], options: &Options) -> Result<Config> {
    let mut config = Config::parse(RECIPE, &[format!("model.placement=\"{placement}\"")])?;
    config.data.train = data.to_vec();
    config.train.precision = options.precision;
    if let Some(steps) = options.steps {
        if steps == 0 {
            return Err(Error::out_of_range("steps", steps, "at least 1"));
        }
        config.train.steps = steps;
        config.schedule.warmup_steps = config
            .schedule
            .warmup_steps
            .map(|warmup| warmup.min(steps / 10));
    }
    Ok(config)
}

/// Returns the name of the Gutenberg data if available, otherwise of generated stories.
fn available_text(note: &mut dyn FnMut(String)) -> String {
    match data::gutenberg::books() {
        Ok(_) => "gutenberg".into(),
        Err(error) => {
            note(format!(
                "using generated stories because the Gutenberg text is unavailable: {error}"
            ));
            "stories:20000".into()
        }
    }
}

/// Marks the directory as created by quickstart. Removes the run of an earlier quickstart; rejects a non-empty
/// directory without the marker file.
fn prepare_run_directory(run: &Path, locking: Locking) -> Result<()> {
    files::create_new_dir(run)?;
    files::remove_stale_in(run);
    let marker = run.join(MARKER_FILE);
    if files::exists(&marker)? {
        return run_directory::remove(run, locking);
    }
    let mut entries = std::fs::read_dir(run).map_err(Error::io(run))?;
    if entries.next().is_some() {
        return Err(Error::exists(
            run,
            format!(
                "{} contains files not created by quickstart; choose another folder",
                run.display()
            ),
        ));
    }
    files::write(marker, b"The next quickstart replaces this run.\n").map(|_| ())
}

fn unigram_loss(trainer: &Trainer) -> Result<f64> {
    let folder = trainer.folders().first().ok_or_else(not_text)?;
    let inspection = data::inspect(folder)?;
    let split = inspection.validation.as_ref().unwrap_or(&inspection.train);
    Ok(split.unigram_nats)
}

fn not_text() -> Error {
    Error::invalid_value("data", "quickstart reads text, not pre-tokenized data")
}

fn sample(trainer: &mut Trainer) -> Result<String> {
    let tokenizer: Tokenizer = trainer.tokenizer().cloned().ok_or_else(not_text)?;
    let text = eval::generate_text(
        trainer.model_mut(),
        &tokenizer,
        PROMPT,
        60,
        Sampling::default(),
    )?;
    Ok(format!("{PROMPT}{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    #[test]
    fn both_models_share_their_initial_weights() {
        let values = PLACEMENTS.map(|placement| {
            let mut config =
                config(placement, &["stories:9".into()], &Options::new("unused")).unwrap();
            config.data.tokenizer = Some("bytes".into());
            let model = config.model_config().unwrap();
            Model::new(&model, config.seed, Device::Cpu)
                .unwrap()
                .values()
        });
        let [star, pre] = values;
        let shared: Vec<&String> = star.keys().filter(|name| pre.contains_key(*name)).collect();
        assert!(shared.iter().any(|name| *name == "blocks.3.attention.out"));
        for name in shared {
            assert!(star[name] == pre[name], "{name}");
        }
    }
}
