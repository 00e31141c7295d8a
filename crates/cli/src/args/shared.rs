//! Options that several commands share. Each is declared here once and flattened into the arguments of a command,
//! which reads it through the methods of its group.

use clap::{Args, ValueEnum};
use hybridnorm::data::StartToken;
use hybridnorm::eval::TextOverrides;
use hybridnorm::files::Locking;
use hybridnorm::graph::DType;
use hybridnorm::model::Model;
use hybridnorm::plan::{Options, Precision};
use hybridnorm::train::FloatFormat;
use hybridnorm::{Device, Error};
use serde::Serialize;

use crate::console;

/// Global options.
#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// Print only results and errors: no progress, notes or warnings.
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Number of CPU threads (default: `RAYON_NUM_THREADS` if set, otherwise all cores); results do not depend on it.
    #[arg(long, global = true, value_name = "N", help_heading = "Global options")]
    pub threads: Option<usize>,
}

/// Output format of the results.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Print the results as one JSON document instead of text.
    #[arg(long)]
    pub json: bool,
}

impl OutputArgs {
    /// Prints results in the chosen format.
    pub fn print<T: Serialize>(
        &self,
        results: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Error> {
        match self.json {
            true => console::print_json(results),
            false => console::print(&text(results)),
        }
    }
}

/// Overrides of configuration keys.
#[derive(Debug, Args)]
pub struct OverrideArgs {
    /// Override a configuration key, e.g. `--set optimizer.lr=1e-3`; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
}

/// Locking of run directories and study folders.
#[derive(Debug, Args)]
pub struct LockArgs {
    /// Continue where the file system does not support file locks (some Lustre and NFS mounts); there nothing prevents
    /// a second process from writing to the same folder.
    #[arg(long)]
    no_lock: bool,
}

impl LockArgs {
    /// Returns the locking mode.
    pub fn mode(&self) -> Locking {
        match self.no_lock {
            true => Locking::IfSupported,
            false => Locking::Required,
        }
    }
}

/// Device of a model's programs.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Device that computes: `cpu`, `cuda`, or `cuda:INDEX` (`hybridnorm devices` lists them).
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub device: Device,
}

/// Arguments of `devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Precision of a model's programs.
#[derive(Debug, Args)]
pub struct PrecisionArgs {
    /// Precision of matmuls and activations; with `bf16`, matmuls of bfloat16 operands with sums in single precision.
    #[arg(long, value_enum, default_value_t = FloatFormatArg::F32)]
    precision: FloatFormatArg,
    /// Format of the residual stream with `--precision bf16` (default: `f32`).
    #[arg(long, value_enum, value_name = "FORMAT")]
    residual_precision: Option<FloatFormatArg>,
}

/// Format of floating-point numbers.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum FloatFormatArg {
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
}

impl From<FloatFormatArg> for FloatFormat {
    fn from(format: FloatFormatArg) -> Self {
        match format {
            FloatFormatArg::F32 => Self::F32,
            FloatFormatArg::Bf16 => Self::Bf16,
        }
    }
}

impl PrecisionArgs {
    /// Sets the precision of a model for evaluation or generation.
    ///
    /// # Errors
    /// If an option has no effect.
    pub fn apply(&self, model: &mut Model) -> Result<(), Error> {
        let options = Options::default().with_precision(self.precision()?);
        model.set_plan_options(options.with_keep_rounded_weights(true))
    }

    /// Returns the precision.
    fn precision(&self) -> Result<Precision, Error> {
        let residual = match self.residual_precision {
            Some(FloatFormatArg::Bf16) => DType::Bf16,
            Some(FloatFormatArg::F32) | None => DType::F32,
        };
        match (self.precision, self.residual_precision) {
            (FloatFormatArg::Bf16, _) => Ok(Precision::Bf16 { residual }),
            (FloatFormatArg::F32, None) => Ok(Precision::F32),
            (FloatFormatArg::F32, Some(_)) => Err(Error::conflict(
                ["--residual-precision", "--precision"],
                "--residual-precision has no effect without --precision bf16".to_owned(),
            )),
        }
    }
}

/// Options of raw text.
#[derive(Debug, Args)]
pub struct TextArgs {
    /// Field of a JSON record, or column of a Parquet file (nested: `meta.text`), that contains the text (default:
    /// `text`).
    #[arg(long, value_name = "NAME")]
    text_field: Option<String>,
    /// Separator between documents of plain text files, such as `<|endoftext|>`; files are split only there, and the
    /// separator is removed.
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "document_chars"
    )]
    separator: Option<String>,
    /// Split plain text files into documents at the next blank line after this many characters (default: 20000); 0:
    /// do not split.
    #[arg(long, value_name = "N")]
    document_chars: Option<usize>,
    /// In folders and globs, read only matching files; may be repeated. A pattern with `/` is matched against the path
    /// relative to the input, one without `/` against every component of that path.
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Skip matching files; may be repeated.
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Skip and count invalid records, unreadable files, and everything after damage in compressed and Parquet
    /// files, instead of stopping.
    #[arg(long)]
    skip_bad: bool,
    /// Replace invalid UTF-8 with U+FFFD instead of stopping.
    #[arg(long)]
    replace_invalid_utf8: bool,
}

impl TextArgs {
    /// Returns the given options, which override those of a configuration or run.
    pub fn overrides(self) -> TextOverrides {
        let mut overrides = TextOverrides::default()
            .with_include(self.include)
            .with_exclude(self.exclude)
            .with_skip_invalid(self.skip_bad)
            .with_replace_invalid_utf8(self.replace_invalid_utf8);
        overrides.text_field = self.text_field;
        overrides.separator = self.separator;
        overrides.document_chars = self.document_chars;
        overrides
    }
}

/// Token before a text that the model continues or scores.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StartTokenArg {
    /// The token that the tokenizer adds, if any.
    Tokenizer,
    /// The end-of-text token.
    Eos,
    /// None.
    None,
}

impl From<StartTokenArg> for StartToken {
    fn from(arg: StartTokenArg) -> Self {
        match arg {
            StartTokenArg::Tokenizer => Self::Tokenizer,
            StartTokenArg::Eos => Self::Eos,
            StartTokenArg::None => Self::None,
        }
    }
}
