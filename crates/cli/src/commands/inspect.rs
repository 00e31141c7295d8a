//! `hybridnorm inspect`.

use std::path::Path;

use hybridnorm::Error;
use hybridnorm::files;
use hybridnorm::model::ModelConfig;
use hybridnorm::train::inventory::{Inventory, inventory};
use hybridnorm::train::{Config, ModelSection, OptimizerConfig, StepShape, run_directory};
use serde::Serialize;

use super::Outcome;
use crate::args::InspectArgs;
use crate::console::{self, Console};
use crate::table::{bytes, numeric_table, parameter_count, si_prefixed, with_thousands_separators};

#[derive(Serialize)]
struct Report {
    model: ModelConfig,
    placement_hash: String,
    inventory: Inventory,
    memory_total_bytes: u64,
    warnings: Vec<String>,
    config: Option<Config>,
}

pub fn run(args: InspectArgs, console: &Console) -> Result<Outcome, Error> {
    let report = report(&args, console)?;
    if args.output.json {
        console::print_json(&report)?;
        return Ok(Outcome::Completed);
    }
    for warning in &report.warnings {
        console.warning(warning);
    }
    console::print(&text(&report))?;
    Ok(Outcome::Completed)
}

fn report(args: &InspectArgs, console: &Console) -> Result<Report, Error> {
    let (model, config, (shape, optimizer)) = match is_config(&args.path)? {
        true => {
            let mut config = Config::load(&args.path, &args.overrides.settings)?;
            let model = config.model_config()?;
            if let Some(section) = &mut config.model {
                section.n_kv_heads = Some(model.n_kv_heads);
                section.vocab_size = Some(model.vocab_size);
                section.max_seq_len = Some(model.max_seq_len);
            }
            let training = (config.train.step_shape(), config.optimizer.clone());
            (model, Some(config), training)
        }
        false => {
            if !args.overrides.settings.is_empty() {
                return Err(Error::no_effect(
                    "--set",
                    " on a checkpoint; give a configuration, such as the config.toml of a run",
                ));
            }
            let model = super::open_checkpoint(&args.path, console)?.config()?;
            let training = training_setup(&args.path, &model)?;
            (model, None, training)
        }
    };
    let (_, warnings) = model.resolve()?;
    let inventory = inventory(&model, shape, &optimizer)?;
    Ok(Report {
        placement_hash: model.placement.hash(),
        memory_total_bytes: inventory.memory.total(),
        model,
        inventory,
        warnings: warnings.iter().map(ToString::to_string).collect(),
        config,
    })
}

/// Returns the training setup of a run directory; for a checkpoint alone, one sequence of maximum length and AdamW.
fn training_setup(path: &Path, model: &ModelConfig) -> Result<(StepShape, OptimizerConfig), Error> {
    let config = path.join(run_directory::CONFIG);
    if files::exists(&config)? {
        let config = Config::load(&config, &[])?;
        return Ok((config.train.step_shape(), config.optimizer));
    }
    let shape = StepShape::new(1, model.max_seq_len);
    Ok((shape, OptimizerConfig::default()))
}

fn is_config(path: &Path) -> Result<bool, Error> {
    let is_toml = path
        .extension()
        .is_some_and(|extension| extension == "toml");
    let is_gguf = path
        .extension()
        .is_some_and(|extension| extension == "gguf");
    Ok(is_toml || !is_gguf && files::exists(path)? && !files::is_dir(path)?)
}

/// Lists the dimensions of a model.
fn dimensions(model: &ModelConfig) -> Vec<String> {
    let mut parts = vec![
        format!("d_model {}", model.d_model),
        format!("blocks {}", model.n_layers),
        format!("heads {}", model.n_heads),
    ];
    match &model.mla {
        None => {
            parts.push(format!("kv heads {}", model.n_kv_heads));
            parts.push(format!("head dim {}", model.head_dim()));
        }
        Some(mla) => {
            let q = mla.q_rank.map_or("none".into(), |rank| rank.to_string());
            parts.push(format!("MLA ranks: q {q}, kv {}", mla.kv_rank));
            parts.push(format!(
                "head dim {} + {} rotary, value dim {}",
                mla.nope_dim, mla.rope_dim, mla.v_dim
            ));
        }
    }
    if model.n_dense_layers() > 0 {
        parts.push(format!("d_ff {}", model.d_ff));
    }
    if let Some(moe) = &model.moe {
        parts.push(format!(
            "{} experts of width {}, top-{}",
            moe.n_experts, moe.d_expert, moe.top_k
        ));
        if moe.n_shared > 0 {
            parts.push(format!("shared experts {}", moe.n_shared));
        }
        if moe.first_dense > 0 {
            parts.push(format!("dense blocks {}", moe.first_dense));
        }
    }
    parts.push(format!(
        "vocabulary {}",
        with_thousands_separators(model.vocab_size as u64)
    ));
    parts.push(format!("max sequence length {}", model.max_seq_len));
    parts
}

fn text(report: &Report) -> String {
    let Report {
        model, inventory, ..
    } = report;
    let counts = &inventory.counts;
    let dimensions = dimensions(model).join(" · ");
    let mut parameters = numeric_table(&["parameters", "count", "share"]);
    for (kind, &count) in &counts.parameters {
        let share = 100.0 * count as f64 / counts.total as f64;
        parameters.add_row([
            (*kind).to_owned(),
            with_thousands_separators(count),
            format!("{share:.2} %"),
        ]);
    }
    parameters.add_row([
        "total".to_owned(),
        with_thousands_separators(counts.total),
        parameter_count(counts.total),
    ]);
    if counts.active != counts.total {
        parameters.add_row([
            "active".to_owned(),
            with_thousands_separators(counts.active),
            parameter_count(counts.active),
        ]);
    }
    let memory = &inventory.memory;
    let mut table = numeric_table(&["training memory", "size"]);
    for (name, size) in [
        ("weights", memory.weights),
        ("bf16 copies of weights", memory.weight_copies),
        ("optimizer moments", memory.optimizer),
        ("accumulated gradients", memory.gradients),
        (
            "activations, gradients, scratch (planned arena)",
            memory.activations,
        ),
        ("workspace of kernels", memory.workspace),
        ("code, libraries and plans", memory.process),
        ("total", memory.total()),
    ] {
        table.add_row([name.to_owned(), bytes(size)]);
    }
    let configuration = match &report.config {
        Some(config) => format!("\nresolved configuration:\n\n{}", config.to_toml()),
        None => format!(
            "\nresolved configuration:\n\n{}",
            ModelSection::from(model).to_toml()
        ),
    };
    let sequences = match inventory.micro_batch {
        1 => "sequence",
        _ => "sequences",
    };
    format!(
        "{dimensions}\nplacement hash {}\n\n{parameters}\n\n\
         FLOPs per token at sequence length {}: {}FLOP training, {}FLOP decoding\n\n{table}\n\
         micro-batch of {} {sequences} of {} tokens, {}\n{configuration}",
        report.placement_hash,
        with_thousands_separators(counts.seq_len as u64),
        si_prefixed(counts.train_flops_per_token as f64),
        si_prefixed(counts.decode_flops_per_token as f64),
        inventory.micro_batch,
        with_thousands_separators(counts.seq_len as u64),
        inventory.precision,
    )
}
