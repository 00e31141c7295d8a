//! Programs that can run a model, and why the others cannot.

use serde::Serialize;

use super::super::gguf;
use super::super::huggingface::hybridnorm::MODEL_TYPE;
use super::architecture;
use crate::error::Result;
use crate::model::{Activation, ModelConfig, Rope};
use crate::placement::ResolvedScale;

/// A program, and whether it can run an exported model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Support {
    /// Name of the program.
    pub program: &'static str,
    /// True if it can run the model.
    pub can_run: bool,
    /// Command or option with which it runs, or the property that is missing.
    pub reason: String,
}

/// Returns which of `transformers`, vLLM, llama.cpp and MLX can run the exported folder of a model. What vLLM, MLX and
/// architectures of llama.cpp that [`Format::Gguf`](super::Format::Gguf) does not write compute is not measured.
///
/// # Errors
/// If the configuration is invalid.
///
/// ```
/// use hybridnorm::interop::export::support;
/// use hybridnorm::model::ModelConfig;
/// use hybridnorm::placement::named;
///
/// let config = ModelConfig::default()
///     .with_d_model(16)
///     .with_n_layers(2)
///     .with_n_heads(2)
///     .with_n_kv_heads(2)
///     .with_d_ff(32)
///     .with_vocab_size(8)
///     .with_max_seq_len(8);
/// let programs = support(&config.clone().with_placement(named("pre-norm")?))?;
/// assert!(programs.iter().all(|support| support.can_run));
/// let programs = support(&config.with_placement(named("hybridnorm")?))?;
/// let can_run = |name| programs.iter().any(|support| support.program == name && support.can_run);
/// assert!(can_run("transformers") && !can_run("llama.cpp"));
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn support(config: &ModelConfig) -> Result<Vec<Support>> {
    let architecture = architecture::choose(config)?;
    match architecture.model_type.as_str() {
        MODEL_TYPE => of_generated(config),
        name => Ok(of_stock(name, config)),
    }
}

fn row(program: &'static str, can_run: bool, reason: String) -> Support {
    Support {
        program,
        can_run,
        reason,
    }
}

/// Returns the programs for generated Python.
fn of_generated(config: &ModelConfig) -> Result<Vec<Support>> {
    let different = difference(config)?;
    let vllm = match vllm_obstacle(config)? {
        Some(obstacle) => row("vLLM", false, obstacle.into()),
        None => {
            let eager = match config.moe {
                Some(_) => {
                    " and --enforce-eager, since the experts loop over numbers of tokens that depend on the data"
                }
                None => "",
            };
            let reason =
                format!("its Transformers backend, with trust_remote_code{eager}; {NOT_RUN}");
            row("vLLM", true, reason)
        }
    };
    let own_graphs = format!("computes only its own architectures; {different}");
    Ok(vec![
        row(
            "transformers",
            true,
            "generated Python, with trust_remote_code".into(),
        ),
        vllm,
        row("llama.cpp", false, own_graphs.clone()),
        row("MLX", false, own_graphs),
    ])
}

/// Marks statements on programs with which exported models were not compared.
const NOT_RUN: &str = "not run";

/// Returns the programs for an architecture of `transformers`.
fn of_stock(name: &str, config: &ModelConfig) -> Vec<Support> {
    let with_own_code = |program, obstacle: Option<String>, otherwise: String| match obstacle {
        Some(obstacle) => row(program, false, format!("{obstacle}; {NOT_RUN}")),
        None => row(program, true, otherwise),
    };
    let llama_cpp = match (gguf::check(config), gguf::problem_of(name, config)) {
        (Ok(()), _) => row(
            "llama.cpp",
            true,
            "the file that --format gguf writes".into(),
        ),
        (Err(_), Some(Err(problem))) => row("llama.cpp", false, problem),
        (Err(_), _) => with_own_code(
            "llama.cpp",
            llama_cpp_obstacle(name, config),
            format!("architecture {name}, after convert_hf_to_gguf.py; {NOT_RUN}"),
        ),
    };
    vec![
        row("transformers", true, format!("architecture {name}")),
        row("vLLM", true, format!("architecture {name}; {NOT_RUN}")),
        llama_cpp,
        with_own_code(
            "MLX",
            mlx_obstacle(name, config),
            format!("architecture {name} of mlx-lm; {NOT_RUN}"),
        ),
    ]
}

/// True if exactly the layers that are no multiple of `n` have a window.
fn has_windows_but_every(n: usize, config: &ModelConfig) -> bool {
    (0..config.n_layers)
        .all(|layer| config.window_of_layer(layer).is_some() != (layer + 1).is_multiple_of(n))
}

fn has_window(config: &ModelConfig) -> bool {
    (0..config.n_layers).any(|layer| config.window_of_layer(layer).is_some())
}

/// Returns what llama.cpp's architecture lacks for a model of a family that `--format gguf` does not write.
fn llama_cpp_obstacle(name: &str, config: &ModelConfig) -> Option<String> {
    let rotates = |layer: usize| config.rope_of_layer(layer) != Rope::Off;
    let mut layers = 0..config.n_layers;
    let renormalizes = config.moe.as_ref().is_some_and(|moe| moe.renormalize);
    let obstacle = match name {
        "mistral" => "computes this family as its llama, without a sliding window",
        "qwen2" | "phi3" if has_window(config) => {
            "its architecture of this family ignores sliding windows"
        }
        "olmo3" if !has_windows_but_every(4, config) => {
            "its olmo2 has sliding windows in three of four layers"
        }
        "smollm3" if layers.any(|layer| rotates(layer) == (layer + 1).is_multiple_of(4)) => {
            "its smollm3 has no rotary embedding in every fourth layer"
        }
        "qwen3_moe" if !renormalizes => "the gate weights of its qwen3moe sum to 1",
        "qwen3_moe" if config.n_dense_layers() > 0 => "its qwen3moe has experts in all layers",
        "olmoe" if renormalizes => "the gate weights of its olmoe do not sum to 1",
        "gpt2" | "gpt_neox" if config.activation == Activation::GeluErf => {
            "computes GELU by its approximation with tanh"
        }
        _ => return None,
    };
    Some(obstacle.into())
}

/// Returns what the class of mlx-lm lacks for a model.
fn mlx_obstacle(name: &str, config: &ModelConfig) -> Option<String> {
    let caps = [
        config.placement.block.attn_inner.attn_softcap,
        config.placement.logits.softcap,
    ];
    let obstacle = match name {
        "mistral" => "computes this family as its llama, without a sliding window",
        "qwen2" | "qwen3" | "gemma2" | "phi3" if has_window(config) => {
            "its class of this family ignores sliding windows"
        }
        "qwen3" | "gemma2" | "gemma3_text" if config.bias.out => {
            "its class of this family has no biases"
        }
        "gemma2" if caps.contains(&None) || !config.tie_embeddings => {
            "its gemma2 has soft caps and a tied head"
        }
        "gemma3_text" if caps != [None, None] => "its gemma3_text has no soft caps",
        "gemma3_text" if has_window(config) && !has_windows_but_every(6, config) => {
            "its gemma3_text has no window in every sixth layer only"
        }
        _ => return None,
    };
    Some(obstacle.into())
}

/// Returns where the equations differ from those of the nearest architecture.
fn difference(config: &ModelConfig) -> Result<String> {
    const SHOWN: usize = 4;
    let Some((name, places)) = architecture::nearest(config)? else {
        return Ok("none has blocks of this kind".into());
    };
    let shown = places[..places.len().min(SHOWN)].join(", ");
    let rest = match places.len().saturating_sub(SHOWN) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Ok(format!("the nearest, {name}, differs in {shown}{rest}"))
}

/// Returns what vLLM's Transformers backend lacks for a model. It has its own attention function and output head.
fn vllm_obstacle(config: &ModelConfig) -> Result<Option<&'static str>> {
    let (resolved, _) = config.resolve()?;
    let has_softcap = resolved
        .blocks
        .iter()
        .any(|block| block.attn_inner.attn_softcap.is_some());
    let is_one = resolved.logits.scale == ResolvedScale::Const(1.0);
    Ok(if config.mla.is_some() {
        Some("its Transformers backend has no attention whose keys and values differ in width")
    } else if has_softcap {
        Some("its Transformers backend does not pass a soft cap to the attention function")
    } else if resolved.logits.softcap.is_some() || !is_one {
        Some(
            "its Transformers backend has its own output head, without the scale and the soft cap of the logits",
        )
    } else {
        None
    })
}
