//! Arguments of `export`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use hybridnorm::Error;
use hybridnorm::interop::export::{Format, Options};
use hybridnorm::interop::gguf::MatrixType;
use hybridnorm::tensors::FloatType;

use super::shared::OutputArgs;

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Checkpoint, or run directory, whose newest valid checkpoint is used.
    pub checkpoint: PathBuf,
    /// Format of the folder.
    #[arg(long, value_enum, required_unless_present = "explain")]
    pub format: Option<ExportFormat>,
    /// Folder to write.
    #[arg(long, value_name = "DIR", required_unless_present = "explain")]
    pub out: Option<PathBuf>,
    /// Type of the weights [default: f32]
    #[arg(long, value_enum)]
    pub dtype: Option<ExportType>,
    /// Read the folder back before it appears, and compare weights and logits with those of the checkpoint.
    #[arg(long)]
    pub verify: bool,
    /// Print which programs can run the exported model, and why the others cannot; write nothing.
    #[arg(long, conflicts_with_all = ["format", "out", "dtype", "verify"])]
    pub explain: bool,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Format of an exported folder.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ExportFormat {
    /// Folder for transformers: an architecture that it contains where the equations are equal, otherwise with generated
    /// Python.
    Hf,
    /// File for llama.cpp, with the tokenizer, if it has an architecture with equal equations.
    Gguf,
    /// Weights with the names of hybridnorm, and the configuration, in one file.
    Safetensors,
}

/// Type of exported weights.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ExportType {
    /// 32 bits.
    F32,
    /// 16 bits, with the range of f32.
    Bf16,
    /// 16 bits, with more precision and numbers up to 65504.
    F16,
    /// 8 bits with a scale for every 32 elements of a matrix; GGUF only.
    #[value(name = "q8_0")]
    Q8_0,
}

impl ExportArgs {
    /// Returns the type of a GGUF file's matrices.
    fn matrix_type(&self) -> Result<MatrixType, Error> {
        match self.dtype {
            None | Some(ExportType::F32) => Ok(MatrixType::F32),
            Some(ExportType::F16) => Ok(MatrixType::F16),
            Some(ExportType::Q8_0) => Ok(MatrixType::Q8_0),
            Some(ExportType::Bf16) => Err(Error::conflict(
                ["--dtype", "--format"],
                "--dtype bf16 is not written to GGUF files; use f32, f16 or q8_0",
            )),
        }
    }

    /// Returns the options and the folder to write.
    ///
    /// # Errors
    /// If the format or the folder is missing.
    pub fn options(&self) -> Result<(Options, &Path), Error> {
        let format = match self.format {
            Some(ExportFormat::Hf) => Format::HuggingFace,
            Some(ExportFormat::Gguf) => Format::Gguf(self.matrix_type()?),
            Some(ExportFormat::Safetensors) => Format::Safetensors,
            None => return Err(Error::missing("--format", "")),
        };
        let out = self
            .out
            .as_deref()
            .ok_or_else(|| Error::missing("--out", ""))?;
        let mut options = Options::new(format);
        options.dtype = match (format, self.dtype) {
            (Format::Gguf(_), _) | (_, None | Some(ExportType::F32)) => FloatType::F32,
            (_, Some(ExportType::Bf16)) => FloatType::Bf16,
            (_, Some(ExportType::F16)) => FloatType::F16,
            (_, Some(ExportType::Q8_0)) => {
                return Err(Error::conflict(
                    ["--dtype", "--format"],
                    "--dtype q8_0 is a type of GGUF files; use --format gguf, or f32, bf16 or f16",
                ));
            }
        };
        options.verify = self.verify;
        Ok((options, out))
    }
}
