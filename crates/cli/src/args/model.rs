//! Arguments of `placement` and `inspect`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::shared::{OutputArgs, OverrideArgs};

/// Operations on placements.
#[derive(Debug, Subcommand)]
pub enum PlacementCommand {
    /// Print every named placement with its description and source.
    List(PlacementListArgs),
    /// Print a placement's equations, norms, initialization and warnings.
    Explain(PlacementExplainArgs),
}

/// Arguments of `placement list`.
#[derive(Debug, Args)]
pub struct PlacementListArgs {
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `placement explain`.
#[derive(Debug, Args)]
pub struct PlacementExplainArgs {
    /// Name from `placement list`, or TOML file with a placement table.
    pub name: String,
    /// Number of blocks.
    #[arg(long, value_name = "L", default_value_t = 12)]
    pub layers: usize,
    /// Kind of attention.
    #[arg(long, value_enum, default_value_t = AttentionKind::Mha)]
    pub attention: AttentionKind,
    /// Output format.
    #[arg(long, value_enum, default_value_t = ExplainFormat::Text)]
    pub format: ExplainFormat,
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
pub enum ExplainFormat {
    /// Unicode text for the terminal.
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
    /// Overrides of the configuration.
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}
