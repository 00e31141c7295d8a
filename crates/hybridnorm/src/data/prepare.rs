//! Preparation of text: tokenization into a folder of token shards.
//!
//! The folder holds `train-00000.bin`, ..., `validation-00000.bin`, ..., the tokenizer, and
//! `manifest.json`. It is a [`StagedFolder`]: it is renamed into place when complete.
//!
//! **The split** is by document. A document is held out when a hash of (seed, text) falls below
//! the fraction, so the choice does not depend on the order of inputs, and copies of one document
//! are always in the same split. If one split would be empty by chance, the document nearest to the
//! threshold is moved to it, so that two documents yield one for each. BPE is trained on the
//! training split only.

use std::path::{Path, PathBuf};

use derive_setters::Setters;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::{self, StagedFolder};

use super::bpe::BpeTrainer;
use super::literal_special_tokens::LiteralSpecialTokenCounter;
use super::manifest::{Dtype, FirstTokenBytes, Manifest, SourceRecord};
use super::overwrite_check;
use super::shard::ShardWriter;
use super::source::{SourceOptions, Sources};
use super::tokenizer::{LostText, Tokenizer, TokenizerSpec};
use super::{Progress, ProgressFn};

/// Text tokenized per batch, in bytes.
const BATCH_BYTES: usize = 8 << 20;
/// Memory overhead per text in bytes, so that many short texts are accounted for.
const TEXT_OVERHEAD: usize = 320;

/// Options for preparing text.
///
/// ```
/// use hybridnorm::data::PrepareOptions;
///
/// let options = PrepareOptions::default().with_validation_fraction(0.05).with_seed(1);
/// assert_eq!(options.validation_fraction, 0.05);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PrepareOptions {
    /// Options for reading text.
    #[serde(flatten)]
    pub source: SourceOptions,
    /// Fraction of documents to hold out for validation, at least 0 and below 1. With 0, or with
    /// `validation_inputs`, all inputs are for training.
    pub validation_fraction: f64,
    /// Inputs that are validation text only.
    pub validation_inputs: Vec<String>,
    /// Number of tokens at which a shard is closed.
    pub shard_tokens: u64,
    /// Seed of the split.
    pub seed: u64,
    /// Tokenization threads; 0: one per core. The result does not depend on it.
    #[serde(skip)]
    pub threads: usize,
    /// True to replace prepared data that the folder already holds.
    #[serde(skip)]
    pub overwrite: bool,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self {
            source: SourceOptions::default(),
            validation_fraction: 0.01,
            validation_inputs: Vec::new(),
            shard_tokens: 100_000_000,
            seed: 0,
            threads: 0,
            overwrite: false,
        }
    }
}

/// Tokenizes `inputs` into `out` with the tokenizer that `spec` names, training it if it is
/// `bpe:N`.
///
/// # Errors
/// If an input is missing, empty or malformed, the tokenizer cannot be loaded, an option is invalid,
/// or `out` cannot be written or holds other files.
///
/// ```
/// use hybridnorm::data::{PrepareOptions, PreparedFolder, TokenizerSpec, prepare, quiet};
///
/// let folder = tempfile::tempdir().unwrap();
/// let out = folder.path().join("tokens");
/// let options = PrepareOptions::default().with_validation_fraction(0.2);
/// let inputs = ["stories:20".to_owned()];
/// let manifest = prepare(&inputs, &TokenizerSpec::Bytes, &out, &options, &mut quiet)?;
/// assert_eq!(manifest.train.documents + manifest.validation.documents, 20);
/// assert_eq!(PreparedFolder::open(&out)?.train()?.len(), manifest.train.tokens);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn prepare(
    inputs: &[String],
    spec: &TokenizerSpec,
    out: &Path,
    options: &PrepareOptions,
    progress: ProgressFn,
) -> Result<Manifest> {
    let TokenizerSpec::Bpe { vocab_size } = *spec else {
        return prepare_with(inputs, &Tokenizer::from_spec(spec)?, out, options, progress);
    };
    let preparation = Preparation::new(inputs, out, options)?;
    let mut trainer = BpeTrainer::new(vocab_size)?;
    let plan = preparation.scan(Some(&mut trainer), progress)?;
    let json = trainer.finish(progress);
    let tokenizer = Tokenizer::from_json(json.into_bytes(), None)?.with_name(&spec.to_string());
    preparation.write(&tokenizer, &plan, progress)
}

/// Tokenizes `inputs` into `out` as [`prepare()`] does, with a given tokenizer.
///
/// # Errors
/// As [`prepare()`].
pub fn prepare_with(
    inputs: &[String],
    tokenizer: &Tokenizer,
    out: &Path,
    options: &PrepareOptions,
    progress: ProgressFn,
) -> Result<Manifest> {
    let preparation = Preparation::new(inputs, out, options)?;
    let plan = if preparation.fraction > 0.0 {
        preparation.scan(None, progress)?
    } else {
        SplitPlan::default()
    };
    preparation.write(tokenizer, &plan, progress)
}

struct Preparation<'o> {
    sources: Sources,
    validation: Option<Sources>,
    fraction: f64,
    /// Path of the output folder, with links resolved.
    out: PathBuf,
    options: &'o PrepareOptions,
}

/// Result of the first pass over the text.
#[derive(Default)]
struct SplitPlan {
    /// Bytes of text, for the progress of the second pass.
    text_bytes: Option<u64>,
    /// Index of a document that is moved to the other split, and true if that is the validation split.
    reassigned: Option<(u64, bool)>,
}

impl<'o> Preparation<'o> {
    fn new(inputs: &[String], out: &Path, options: &'o PrepareOptions) -> Result<Self> {
        let fraction = options.validation_fraction;
        if !(0.0..1.0).contains(&fraction) {
            return Err(Error::out_of_range(
                "validation_fraction",
                fraction,
                "at least 0 and below 1",
            ));
        }
        if options.shard_tokens == 0 {
            return Err(Error::out_of_range("shard_tokens", 0, "at least 1"));
        }
        let out = files::resolve_links(out)?;
        overwrite_check::check(&out, options.overwrite)?;
        let (sources, validation) = match options.validation_inputs.as_slice() {
            [] => (Sources::resolve(inputs, &options.source)?, None),
            more => {
                let mut all = Sources::resolve_all(&[inputs, more], &options.source)?;
                let validation = all.pop();
                let sources = all.pop();
                let sources = sources.ok_or_else(|| Error::missing("input text", ""))?;
                (sources, validation)
            }
        };
        Ok(Self {
            sources,
            fraction: if validation.is_some() { 0.0 } else { fraction },
            validation,
            out,
            options,
        })
    }

    fn hash(&self, text: &str) -> u64 {
        let mut digest = Sha256::new();
        digest.update(b"hybridnorm split 1");
        digest.update(self.options.seed.to_le_bytes());
        digest.update(text);
        let bytes: [u8; 32] = digest.finalize().into();
        bytes[..8]
            .iter()
            .fold(0, |hash, &byte| hash << 8 | u64::from(byte))
    }

    fn is_held_out(&self, hash: u64) -> bool {
        hash < (self.fraction * 2_f64.powi(64)) as u64
    }

    /// Reads all text once: finds the document that must be moved to the other split, and feeds the trainer.
    fn scan(
        &self,
        mut trainer: Option<&mut BpeTrainer>,
        progress: ProgressFn,
    ) -> Result<SplitPlan> {
        let mut documents = self.sources.documents();
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        let mut held_out = 0;
        let mut lowest = (u64::MAX, 0);
        let mut highest = (0, 0);
        let mut index = 0;
        while let Some(document) = documents.next() {
            let text = document?.text;
            let hash = self.hash(&text);
            if hash <= lowest.0 {
                lowest = (hash, index);
            }
            if hash >= highest.0 {
                highest = (hash, index);
            }
            index += 1;
            if self.is_held_out(hash) {
                held_out += 1;
            } else if trainer.is_some() {
                batch_bytes += text.len() + TEXT_OVERHEAD;
                batch.push(text);
            }
            if batch_bytes >= BATCH_BYTES {
                feed(&mut trainer, &mut batch, self.options.threads);
                batch_bytes = 0;
            }
            if index % 256 == 0 {
                progress(reading(documents.text_bytes(), None));
            }
        }
        feed(&mut trainer, &mut batch, self.options.threads);
        let text_bytes = documents.text_bytes();
        progress(reading(text_bytes, Some(text_bytes)));
        let reassigned = if held_out == index && held_out > 0 {
            Some((highest.1, false))
        } else if held_out == 0 && index >= 2 && self.fraction > 0.0 {
            Some((lowest.1, true))
        } else {
            None
        };
        Ok(SplitPlan {
            text_bytes: Some(text_bytes),
            reassigned,
        })
    }

    /// Reads and tokenizes all text and writes the folder, first as a temporary sibling, so that only a
    /// complete folder replaces an existing one.
    fn write(
        &self,
        tokenizer: &Tokenizer,
        plan: &SplitPlan,
        progress: ProgressFn,
    ) -> Result<Manifest> {
        let staged = StagedFolder::create(&self.out)?;
        let manifest = self.write_into(staged.path(), tokenizer, plan, progress)?;
        match self.options.overwrite {
            true => staged.replace(overwrite_check::check_only_prepared_files)?,
            false => staged.publish()?,
        }
        Ok(manifest)
    }

    /// Rejects a separator that occurs in no plain text input.
    fn check_separators(&self, found: u64) -> Result<()> {
        let source = &self.options.source;
        match &source.separator {
            Some(separator) if found == 0 && !source.allow_unused_options => Err(Error::no_effect(
                "separator",
                format!(": `{separator}` does not occur in any plain text input"),
            )),
            _ => Ok(()),
        }
    }

    /// Returns a manifest without tokens and sources.
    fn new_manifest(&self, tokenizer: &Tokenizer) -> Manifest {
        let source = &self.options.source;
        let mut manifest = Manifest::new(tokenizer.record(), self.options.seed);
        manifest.validation_fraction = self.validation.is_none().then_some(self.fraction);
        manifest.separator.clone_from(&source.separator);
        manifest.document_chars = match source.separator {
            Some(_) => None,
            None => Some(source.document_chars),
        };
        manifest
    }

    fn write_into(
        &self,
        out: &Path,
        tokenizer: &Tokenizer,
        plan: &SplitPlan,
        progress: ProgressFn,
    ) -> Result<Manifest> {
        tokenizer.save(out)?;
        let mut manifest = self.new_manifest(tokenizer);
        let mut output = ShardOutput::new(out, tokenizer, manifest.dtype, self.options);
        let mut done = 0;
        let mut step = |bytes: u64| {
            done += bytes;
            progress(Progress {
                stage: "write tokens",
                done,
                total: plan.text_bytes.map(|total| total.max(done)),
                unit: "bytes",
            });
        };
        let mut separators = 0;
        let read = read_all(
            &self.sources,
            false,
            &mut separators,
            |index, input, text| {
                let held_out = match plan.reassigned {
                    Some((reassigned, held_out)) if reassigned == index => held_out,
                    _ => self.fraction > 0.0 && self.is_held_out(self.hash(&text)),
                };
                output.push(text, held_out, input, &mut step)
            },
        )?;
        let n_train_inputs = read.len();
        manifest.sources.extend(read);
        if let Some(sources) = &self.validation {
            let read = read_all(sources, true, &mut separators, |_, input, text| {
                output.push(text, true, n_train_inputs + input, &mut step)
            })?;
            manifest.sources.extend(read);
        }
        output.flush(&mut step)?;
        self.check_separators(separators)?;
        output.complete(&mut manifest)?;
        manifest.write(out)?;
        Ok(manifest)
    }
}

fn reading(done: u64, total: Option<u64>) -> Progress {
    Progress {
        stage: "read text",
        done,
        total,
        unit: "bytes",
    }
}

fn feed(trainer: &mut Option<&mut BpeTrainer>, batch: &mut Vec<String>, threads: usize) {
    if let Some(trainer) = trainer {
        let texts: Vec<&str> = batch.iter().map(String::as_str).collect();
        trainer.feed(&texts, threads);
    }
    batch.clear();
}

/// Calls `each` with the index, input index and text of every document; returns one [`SourceRecord`] per input.
fn read_all(
    sources: &Sources,
    validation: bool,
    separators: &mut u64,
    mut each: impl FnMut(u64, usize, String) -> Result<()>,
) -> Result<Vec<SourceRecord>> {
    let mut documents = sources.documents();
    for index in 0.. {
        let Some(document) = documents.next() else {
            break;
        };
        let document = document?;
        each(index, document.input, document.text)?;
    }
    *separators += documents.stats().separators;
    let by_input = sources.given().zip(documents.stats_by_input());
    Ok(by_input
        .map(|(input, stats)| SourceRecord::new(input, validation, stats))
        .collect())
}

struct ShardOutput<'t> {
    tokenizer: &'t Tokenizer,
    threads: usize,
    train: ShardWriter,
    validation: ShardWriter,
    /// Texts not tokenized yet, true if held out, and the index of the input.
    texts: Vec<(String, bool, usize)>,
    bytes: usize,
    /// Special tokens that appear literally in the text.
    literal_special_tokens: LiteralSpecialTokenCounter,
    /// Bytes of text of the first token of each split.
    first_token_bytes: FirstTokenBytes,
    /// Text lost in tokenization, by input.
    lost_text: Vec<LostText>,
}

impl<'t> ShardOutput<'t> {
    fn new(
        folder: &Path,
        tokenizer: &'t Tokenizer,
        dtype: Dtype,
        options: &PrepareOptions,
    ) -> Self {
        let eos = tokenizer.eos_id();
        let shards = |split| ShardWriter::new(folder, split, dtype, eos, options.shard_tokens);
        Self {
            tokenizer,
            threads: options.threads,
            train: shards("train"),
            validation: shards("validation"),
            texts: Vec::new(),
            bytes: 0,
            literal_special_tokens: LiteralSpecialTokenCounter::new(
                tokenizer.literal_special_token_names(),
            ),
            lost_text: Vec::new(),
            first_token_bytes: FirstTokenBytes::default(),
        }
    }

    fn push(
        &mut self,
        text: String,
        held_out: bool,
        input: usize,
        step: &mut impl FnMut(u64),
    ) -> Result<()> {
        self.bytes += text.len();
        self.literal_special_tokens.count(&text);
        self.texts.push((text, held_out, input));
        if self.bytes + TEXT_OVERHEAD * self.texts.len() >= BATCH_BYTES {
            self.flush(step)?;
        }
        Ok(())
    }

    fn flush(&mut self, step: &mut impl FnMut(u64)) -> Result<()> {
        let texts: Vec<&str> = self.texts.iter().map(|(text, ..)| text.as_str()).collect();
        let tokenizer = self.tokenizer;
        let dropped = tokenizer.dropped_chars(&texts, self.threads)?;
        for (dropped, (.., input)) in dropped.into_iter().zip(&self.texts) {
            if self.lost_text.len() <= *input {
                self.lost_text.resize(input + 1, LostText::default());
            }
            self.lost_text[*input].dropped_chars += dropped;
        }
        let unknown = tokenizer.unknown_id();
        tokenizer.encode_each(&texts, self.threads, |index, tokens, is_last| {
            let (text, held_out, input) = &self.texts[index];
            let unknown = tokens.iter().filter(|&&id| Some(id) == unknown);
            self.lost_text[*input].unknown_tokens += unknown.count() as u64;
            let (shards, first) = match held_out {
                true => (&mut self.validation, &mut self.first_token_bytes.validation),
                false => (&mut self.train, &mut self.first_token_bytes.train),
            };
            if shards.is_empty() && tokenizer.inexact_text_bytes_reason().is_some() {
                let id = tokens.first().copied();
                *first = id.map_or(Some(0), |id| tokenizer.first_token_bytes(text, id));
            }
            shards.append(tokens)?;
            match is_last {
                true => shards.end_document(text.len() as u64),
                false => Ok(()),
            }
        })?;
        step(self.bytes as u64);
        self.texts.clear();
        self.bytes = 0;
        Ok(())
    }
    /// Closes the shards, and adds their records and the statistics of all sources to the manifest.
    fn complete(self, manifest: &mut Manifest) -> Result<()> {
        manifest.first_token_bytes = self.first_token_bytes;
        for (source, lost) in manifest.sources.iter_mut().zip(&self.lost_text) {
            source.unknown_tokens = lost.unknown_tokens;
            source.dropped_chars = lost.dropped_chars;
        }
        for source in &manifest.sources {
            manifest.omissions.extend(&source.omissions);
        }
        manifest.literal_special_tokens = self.literal_special_tokens.finish();
        manifest.train = self.train.finish()?;
        manifest.validation = self.validation.finish()?;
        Ok(())
    }
}
