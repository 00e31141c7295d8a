//! Checkpoints, written atomically: an interrupted save leaves either the previous state or a complete new
//! checkpoint.
//!
//! ```text
//! step-00000100/
//!   config.json            model configuration, placement and its hash
//!   model.safetensors      weights
//!   tokenizer/             the model's tokenizer (where known)
//!   optimizer.safetensors  moments                        ┐ only in a training run's
//!   state.json             step, tokens, data cursor, ... ┘ checkpoints
//!   manifest.json          size and SHA-256 of all of the above; written last
//! ```
//!
//! A checkpoint is a [`StagedFolder`]: a folder with its final name is complete. Reading verifies the manifest.

mod run_checkpoints;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::files::{self, Fingerprint, StagedFolder};
use crate::model::counts;
use crate::model::{Device, Model, ModelConfig};
use crate::tensors::{self, TensorFile, TensorHandle};

pub(super) use run_checkpoints::remove_all;
pub use run_checkpoints::{CHECKPOINTS, Newest, exists, newest, newest_before, prune, step_path};

const MANIFEST: &str = "manifest.json";
const CONFIG: &str = "config.json";
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const TOKENIZER: &str = "tokenizer";
const FORMAT_VERSION: u32 = 1;
/// Problem of a checkpoint without a tokenizer that is used with text.
pub const NO_TOKENIZER: &str = "has no tokenizer, which text needs; import the model again with --tokenizer, or train with data.tokenizer";
/// Size limit of the JSON files of a checkpoint.
const JSON_LIMIT: u64 = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format_version: u32,
    files: BTreeMap<String, Fingerprint>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    placement_hash: String,
    model: ModelConfig,
}

/// Contents of a checkpoint to be written.
#[non_exhaustive]
pub struct Contents<'a, S> {
    /// The model.
    pub model: &'a Model,
    /// Tokenizer of the model, if known.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Optimizer moments and trainer state, in a training run.
    pub training: Option<(BTreeMap<String, TensorHandle>, &'a S)>,
}

impl<'a> Contents<'a, ()> {
    /// Creates the contents for a model without training state.
    pub fn model_only(model: &'a Model, tokenizer: Option<&'a Tokenizer>) -> Self {
        Self {
            model,
            tokenizer,
            training: None,
        }
    }
}

/// A checkpoint whose manifest has been verified.
///
/// ```
/// # use std::sync::atomic::AtomicBool;
/// # use hybridnorm::data::TokenDataset;
/// # use hybridnorm::train::{Config, ModelSection, Start, TrainSection, Trainer, TrainingData};
/// use hybridnorm::Device;
/// use hybridnorm::train::Checkpoint;
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
/// # let (start, device) = (Start::Fresh, Device::Cpu);
/// # let mut trainer = Trainer::open_with_data(config, data, &run, start, device, &mut |_| {})?;
/// # trainer.run(&AtomicBool::new(false), &mut |_| {})?;
/// // The newest checkpoint of a run directory.
/// let checkpoint = Checkpoint::open(&run)?;
/// assert!(checkpoint.path().ends_with("checkpoints/step-00000004"));
/// let model = checkpoint.model(Device::Cpu)?;
/// assert_eq!(model.config().n_layers, 2);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    path: PathBuf,
    fingerprint: String,
    skipped: Vec<String>,
}

/// Checks that a checkpoint can be written at `path`, before the long computation that it is to store.
///
/// # Errors
/// If the path already exists, or a file is in the way.
pub fn check_does_not_exist(path: &Path) -> Result<()> {
    files::check_folder_name(path)?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(path)(error)),
        Ok(_) => Err(Error::exists(
            path,
            format!(
                "{}: already exists; choose another name, or remove it",
                path.display()
            ),
        )),
    }
}

/// Describes a model that `import` reads: a folder in Hugging Face format or of the official code, or a GGUF file;
/// `None` for anything else.
fn importable_kind(path: &Path) -> Result<Option<&'static str>> {
    let is_gguf = |path: &Path| {
        path.extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    };
    if is_gguf(path) && files::exists(path)? && !files::is_dir(path)? {
        return Ok(Some("a GGUF file"));
    }
    if !files::is_dir(path)?
        || [MANIFEST, CHECKPOINTS]
            .iter()
            .any(|name| path.join(name).exists())
    {
        return Ok(None);
    }
    Ok(match config_keys(path).as_slice() {
        keys if keys.iter().any(|key| key == "model_type") => {
            Some("a model in Hugging Face format")
        }
        _ if path.join("config.yaml").exists() => Some("a model of the official HybridNorm code"),
        _ => {
            let mut entries = fs::read_dir(path).map_err(Error::io(path))?.flatten();
            let has_gguf = entries.any(|entry| is_gguf(&entry.path()));
            has_gguf.then_some("a folder with a GGUF file")
        }
    })
}

/// Returns the keys of the `config.json` in a folder; none if it cannot be read.
fn config_keys(folder: &Path) -> Vec<String> {
    let read = files::read_small(folder.join(CONFIG), JSON_LIMIT).ok();
    let parsed = read.and_then(|bytes| {
        serde_json::from_slice::<BTreeMap<String, serde::de::IgnoredAny>>(&bytes).ok()
    });
    parsed.map_or(Vec::new(), |keys| keys.into_keys().collect())
}

/// True if `path` is the folder of a checkpoint, or a run directory.
#[cfg(feature = "interop")]
pub(crate) fn is_own(path: &Path) -> bool {
    let is_checkpoint = || {
        let keys = config_keys(path);
        path.join(MANIFEST).exists() && keys.iter().any(|key| key == "placement_hash")
    };
    path.join(CHECKPOINTS).is_dir() && path.join(super::run_directory::CONFIG).exists()
        || is_checkpoint()
}

/// Writes a checkpoint at `path` atomically: it appears under its name only when complete. The parent must exist: a run
/// directory that was removed is not recreated.
///
/// # Errors
/// If anything cannot be written, or the path already exists.
pub fn save<S: Serialize>(path: &Path, contents: Contents<'_, S>) -> Result<()> {
    check_does_not_exist(path)?;
    let staged = StagedFolder::create(path)?;
    write_folder(staged.path(), contents)?;
    staged.publish()
}

fn write_folder<S: Serialize>(folder: &Path, contents: Contents<'_, S>) -> Result<()> {
    let model = contents.model.config();
    let config = ConfigFile {
        placement_hash: model.placement.hash(),
        model: model.clone(),
    };
    write_json(&folder.join(CONFIG), &config)?;
    let executor = contents.model.executor();
    tensors::write(
        &folder.join(MODEL),
        &tensors::parameters(contents.model),
        executor,
    )?;
    if let Some(tokenizer) = contents.tokenizer {
        tokenizer.save(folder.join(TOKENIZER))?;
    }
    if let Some((moments, state)) = contents.training {
        tensors::write(&folder.join(OPTIMIZER), &moments, executor)?;
        write_json(&folder.join(STATE), state)?;
    }
    let mut manifest = Manifest {
        format_version: FORMAT_VERSION,
        files: BTreeMap::new(),
    };
    for file in list_files_recursively(folder)? {
        files::open(&file)?.sync_all().map_err(Error::io(&file))?;
        let name = file.strip_prefix(folder).expect("listed below the folder");
        let name = name.to_string_lossy().replace('\\', "/");
        manifest.files.insert(name, files::fingerprint(&file)?);
    }
    write_json(&folder.join(MANIFEST), &manifest)
}

/// Writes a checkpoint as [`save`] does, but replaces an existing folder: a corrupt checkpoint, when the run was
/// resumed from an earlier one and reaches its step again.
///
/// # Errors
/// If anything cannot be written; the existing folder is then kept.
pub fn replace<S: Serialize>(path: &Path, contents: Contents<'_, S>) -> Result<()> {
    let staged = StagedFolder::create(path)?;
    write_folder(staged.path(), contents)?;
    staged.replace(|_| Ok(()))
}

impl Checkpoint {
    /// Opens and verifies the checkpoint at `path`: a checkpoint folder, or the newest valid checkpoint of a run
    /// directory.
    ///
    /// # Errors
    /// If there is none, or a file is missing or differs from the manifest in size or SHA-256. In a run directory,
    /// newer checkpoints with such errors are [skipped](Self::skipped_checkpoints).
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(kind) = importable_kind(path)? {
            return Err(Error::format(
                path,
                format!(
                    "{kind}, not a checkpoint of hybridnorm; convert it first: hybridnorm import {} --out CHECKPOINT",
                    path.display()
                ),
            ));
        }
        fs::read_dir(path).map_err(Error::io(path))?;
        if files::exists(path.join(MANIFEST))? {
            return Self::verify(path);
        }
        let folder = path.join(CHECKPOINTS);
        if files::exists(&folder)? {
            let found = newest(path)?;
            let Some((_, checkpoint)) = found.checkpoint else {
                let reason = match found.corrupt.first() {
                    Some(problem) => format!("no valid checkpoint; {problem}"),
                    None => "no checkpoint yet".into(),
                };
                return Err(Error::format(folder, reason));
            };
            return Ok(Self {
                skipped: found.corrupt,
                ..checkpoint
            });
        }
        Err(Error::format(
            path,
            "neither a checkpoint (no manifest.json) nor a run directory (no checkpoints/)",
        ))
    }

    fn verify(path: &Path) -> Result<Self> {
        let manifest_path = path.join(MANIFEST);
        let manifest: Manifest = read_json(&manifest_path)?;
        if manifest.format_version != FORMAT_VERSION {
            return Err(Error::format(
                manifest_path,
                format!(
                    "format_version is {}, expected {FORMAT_VERSION}",
                    manifest.format_version
                ),
            ));
        }
        for required in [CONFIG, MODEL] {
            if !manifest.files.contains_key(required) {
                return Err(Error::format(
                    manifest_path,
                    format!("{required} is not listed"),
                ));
            }
        }
        for (name, expected) in &manifest.files {
            let relative = Path::new(name);
            let stays_inside = relative
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
            if !stays_inside {
                return Err(Error::format(
                    manifest_path,
                    format!("file name {name:?} leads outside the checkpoint"),
                ));
            }
            let file = path.join(relative);
            let bytes = fs::metadata(&file).map_err(Error::io(&file))?.len();
            if bytes != expected.bytes {
                return Err(Error::format(
                    file,
                    format!("{bytes} bytes, expected {} (manifest.json)", expected.bytes),
                ));
            }
            if files::fingerprint(&file)?.sha256 != expected.sha256 {
                return Err(Error::format(
                    file,
                    "content does not match its SHA-256 in manifest.json",
                ));
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            fingerprint: manifest.files[MODEL].sha256.clone(),
            skipped: Vec::new(),
        })
    }

    /// Returns the errors of corrupt newer checkpoints in the run directory that this one was opened from.
    pub fn skipped_checkpoints(&self) -> &[String] {
        &self.skipped
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the SHA-256 of the weights file.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Reads the model's configuration.
    ///
    /// # Errors
    /// If it does not describe a valid model.
    pub fn config(&self) -> Result<ModelConfig> {
        let path = self.path.join(CONFIG);
        let config: ConfigFile = read_json(&path)?;
        let hash = config.model.placement.hash();
        if hash != config.placement_hash {
            return Err(Error::format(
                path,
                format!(
                    "placement_hash is {}, but the placement hashes to {hash}",
                    config.placement_hash
                ),
            ));
        }
        // An invalid model is a defect of this file, so the error names it.
        config
            .model
            .resolve()
            .map_err(|error| Error::format(path, error.to_string()))?;
        Ok(config.model)
    }

    /// Opens the weights file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn weights(&self) -> Result<TensorFile> {
        TensorFile::open(&self.path.join(MODEL))
    }

    /// Loads the model with its weights.
    ///
    /// # Errors
    /// If the weights do not match the configuration.
    pub fn model(&self, device: Device) -> Result<Model> {
        let config = self.config()?;
        let path = self.path.join(MODEL);
        // Nothing is allocated for a shape that the file is too small for: weights take at least two bytes each.
        let parameters = counts::parameters(&config)?;
        let bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
        if bytes / 2 < parameters {
            return Err(Error::format(
                path,
                format!("{bytes} bytes, too few for the {parameters} parameters of {CONFIG}"),
            ));
        }
        let file = self.weights()?;
        let mut model = Model::uninitialized(&config, device)?;
        model.load_file(&file).map_err(|error| match error {
            error if error.is_user_error() => Error::format(path, error.to_string()),
            // Errors of the file already name it.
            error => error,
        })?;
        Ok(model)
    }

    /// Loads the tokenizer, if the checkpoint has one.
    ///
    /// # Errors
    /// If it exists but is corrupt.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let folder = self.path.join(TOKENIZER);
        files::exists(&folder)?
            .then(|| Tokenizer::load(&folder))
            .transpose()
    }

    /// True if it was written by a training run, so that it has the trainer's state.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn has_state(&self) -> Result<bool> {
        files::exists(self.path.join(STATE))
    }

    /// Reads the trainer's state.
    ///
    /// # Errors
    /// If this checkpoint was not written by a training run.
    pub fn state<S: DeserializeOwned>(&self) -> Result<S> {
        let state = self.path.join(STATE);
        if !files::exists(&state)? {
            return Err(Error::format(
                &self.path,
                "contains a model without optimizer state, so that it cannot be resumed; set [init] from to start a \
                 new run with its weights",
            ));
        }
        read_json(&state)
    }

    /// Opens the file of the optimizer's moments.
    ///
    /// # Errors
    /// If this checkpoint was not written by a training run.
    pub fn moments(&self) -> Result<TensorFile> {
        TensorFile::open(&self.path.join(OPTIMIZER))
    }
}

fn list_files_recursively(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).map_err(Error::io(&next))? {
            let entry = entry.map_err(Error::io(&next))?;
            let (path, kind) = (entry.path(), entry.file_type());
            if kind.map_err(Error::io(&path))?.is_dir() {
                pending.push(path);
            } else {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|error| Error::format(path, error.to_string()))?;
    files::write(path, &text).map(drop)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = files::read_small(path, JSON_LIMIT)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::format(path, error.to_string()))
}
