//! Export of models for other programs: Hugging Face folders, GGUF files, and plain safetensors.
//!
//! | file | contents |
//! |---|---|
//! | `architecture.rs` | choice between an architecture of `transformers` and generated Python |
//! | `python/` | generation of `configuration_hybridnorm.py` and `modeling_hybridnorm.py` |
//! | `weights.rs`, `configs.rs`, `tokenizer.rs` | weights, `config.json`, tokenizer files |
//! | `self_test.rs` | expected values of a forward pass, and a script that compares them |
//! | `card.rs`, `facts.rs` | model card, and facts about the training for it |
//! | `support.rs` | programs that can run a model, and why the others cannot |
//! | `verify.rs` | comparison of a written folder with the model |

mod architecture;
mod card;
mod configs;
mod facts;
mod python;
mod self_test;
mod support;
mod tokenizer;
mod verify;
mod weights;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Serialize;

use super::gguf::{self, MatrixType};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::files::{self, StagedFolder};
use crate::memory;
use crate::model::{Model, counts};
use crate::tensors::FloatType;
use crate::train::checkpoint;
use architecture::Architecture;
use card::Card;
use self_test::SelfTest;

pub use facts::TrainingFacts;
pub(super) use python::fields;
pub use support::{Support, support};
pub use verify::Verification;

/// Name of the weights file.
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
/// Name of the file for llama.cpp.
const GGUF: &str = "model.gguf";

/// Format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A folder for `transformers`: an architecture that it contains where the equations are equal, otherwise with
    /// generated Python.
    HuggingFace,
    /// A file for llama.cpp with matrices of this type, and the tokenizer.
    Gguf(MatrixType),
    /// Weights with this crate's names, and the configuration, in one file.
    Safetensors,
}

impl Format {
    /// Returns the name of the type of the weights.
    pub fn type_name(self, dtype: FloatType) -> &'static str {
        match self {
            Self::Gguf(kind) => kind.name(),
            Self::HuggingFace | Self::Safetensors => dtype.torch_name(),
        }
    }
}

/// Options of an export.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Options {
    /// Format of the folder.
    pub format: Format,
    /// Type of the weights; [`FloatType::F32`] for [`Format::Gguf`], which has its own.
    pub dtype: FloatType,
    /// True if the folder is read back and compared before it appears.
    pub verify: bool,
}

impl Options {
    /// Returns the options of a format: weights of 32 bits, without verification.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            dtype: FloatType::F32,
            verify: false,
        }
    }
}

/// Tokenizer and training facts that accompany an exported model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras<'a> {
    /// Tokenizer of the model.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Facts about its training, for the model card.
    pub training: Option<&'a TrainingFacts>,
}

/// Result of an export.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// `model_type` of a folder for `transformers`: `hybridnorm` with generated Python.
    pub model_type: Option<String>,
    /// Number of parameters.
    pub parameters: u64,
    /// Names of the files.
    pub files: Vec<String>,
    /// Result of the comparison, if requested.
    pub verification: Option<Verification>,
}

/// Writes a model to the folder `out`, which appears complete or not at all. Besides the model, it holds one converted
/// tensor in memory at a time; with `verify` a second model.
///
/// # Errors
/// If `out` exists, something cannot be written, a weight is out of the range of the type, the format cannot represent
/// the model, or a comparison fails.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::interop::export::{Extras, Format, Options, export};
/// use hybridnorm::interop::huggingface;
/// use hybridnorm::model::Model;
/// # use hybridnorm::model::ModelConfig;
///
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8)
/// #     .with_max_seq_len(8)
/// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
/// # let folder = tempfile::tempdir().unwrap();
/// # let out = folder.path().join("out");
/// let model = Model::new(&config, 0, Device::Cpu)?;
/// let values = model.values();
/// let exported = export(model, &out, Options::new(Format::HuggingFace), Extras::default())?;
/// assert!(exported.files.contains(&"modeling_hybridnorm.py".to_owned()));
/// assert_eq!(huggingface::import(&out, Device::Cpu)?.values(), values);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn export(
    mut model: Model,
    out: &Path,
    options: Options,
    extras: Extras<'_>,
) -> Result<Exported> {
    check(&model, extras.tokenizer)?;
    if let (Format::Gguf(_), FloatType::Bf16 | FloatType::F16) = (options.format, options.dtype) {
        return Err(Error::no_effect(
            format!("dtype {}", options.dtype.torch_name()),
            " on a GGUF file, whose format has a type of its own",
        ));
    }
    let out = files::resolve_links(out)?;
    checkpoint::check_does_not_exist(&out)?;
    let before = match options.verify {
        true => Some(SelfTest::new(&mut model)?),
        false => None,
    };
    weights::round(&mut model, options.dtype)?;
    files::create_parent(&out)?;
    let staged = StagedFolder::create(&out)?;
    let exported = write(staged.path(), &mut model, before.as_ref(), options, extras)?;
    staged.publish()?;
    Ok(exported)
}

/// True if a folder was written in [`Format::Safetensors`].
pub(super) fn is_plain(folder: &Path) -> bool {
    // The metadata are at the start of the file.
    let mut start = Vec::new();
    let found = files::open(folder.join(WEIGHTS)).map(|file| file.take(1 << 20));
    found.is_ok_and(|mut file| file.read_to_end(&mut start).is_ok())
        && String::from_utf8_lossy(&start).contains("\"placement_hash\":\"")
}

/// Checks that the weights are finite, and that the model has an embedding for every token.
fn check(model: &Model, tokenizer: Option<&Tokenizer>) -> Result<()> {
    if let Some(name) = model.first_non_finite() {
        return Err(Error::not_finite(format!(
            "parameter {name} contains NaN or infinite values"
        )));
    }
    let (tokens, rows) = (
        tokenizer.map_or(0, Tokenizer::vocab_size),
        model.config().vocab_size,
    );
    match tokens <= rows {
        true => Ok(()),
        false => Err(Error::conflict(
            ["tokenizer", "model.vocab_size"],
            format!("the tokenizer has {tokens} tokens, the model only {rows}"),
        )),
    }
}

fn write(
    folder: &Path,
    model: &mut Model,
    before: Option<&SelfTest>,
    options: Options,
    extras: Extras<'_>,
) -> Result<Exported> {
    let test = SelfTest::new(model)?;
    let model = &*model;
    let config = model.config();
    let parameters = counts::parameters(config)?;
    let architecture = architecture::choose(config)?;
    let path = folder.join(WEIGHTS);
    if !matches!(options.format, Format::Gguf(_)) {
        test.write(folder)?;
        if let Some(tokenizer) = extras.tokenizer {
            tokenizer::write(folder, tokenizer, config.max_seq_len)?;
        }
    }
    match options.format {
        Format::Gguf(kind) => gguf::write(model, extras.tokenizer, &folder.join(GGUF), kind)?,
        Format::HuggingFace => write_hugging_face(folder, model, &architecture, options, extras)?,
        Format::Safetensors => weights::write_plain(&path, model, options.dtype)?,
    }
    let card = Card {
        config,
        model_type: &architecture.model_type,
        options,
        training: extras.training,
        support: &support(config)?,
        has_tokenizer: extras.tokenizer.is_some(),
    };
    write_text(folder, "README.md", &card.text()?)?;
    let verification = match (before, options.format) {
        (None, _) => None,
        (Some(_), Format::Safetensors) => Some(verify::plain(&path, model)?),
        (Some(before), Format::Gguf(kind)) => {
            memory::check_available(4 * parameters, "the model that is read back")?;
            Some(verify::gguf(&folder.join(GGUF), model, before, kind)?)
        }
        (Some(before), Format::HuggingFace) => {
            memory::check_available(4 * parameters, "the model that is read back")?;
            Some(verify::hugging_face(folder, model, before)?)
        }
    };
    Ok(Exported {
        model_type: (options.format == Format::HuggingFace).then_some(architecture.model_type),
        parameters,
        files: names(folder)?,
        verification,
    })
}

/// Writes weights, configuration, script and, without an equal architecture, Python.
fn write_hugging_face(
    folder: &Path,
    model: &Model,
    architecture: &Architecture,
    options: Options,
    extras: Extras<'_>,
) -> Result<()> {
    let config = model.config();
    let json = match &architecture.stock {
        Some(json) => configs::stock(json, extras.tokenizer, options.dtype),
        None => {
            let python = python::generate(config)?;
            write_text(folder, python::CONFIGURATION, &python.configuration)?;
            write_text(folder, python::MODELING, &python.modeling)?;
            configs::generated(config, extras.tokenizer, options.dtype)
        }
    };
    write_text(folder, CONFIG, &configs::pretty(&json))?;
    write_text(folder, self_test::SCRIPT, self_test::SCRIPT_TEXT)?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join(WEIGHTS);
    weights::write(
        &path,
        model,
        &architecture.mappings,
        options.dtype,
        &metadata,
    )
}

fn write_text(folder: &Path, name: &str, text: &str) -> Result<()> {
    files::write(folder.join(name), text.as_bytes()).map(drop)
}

/// Returns the names of the files of a folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
