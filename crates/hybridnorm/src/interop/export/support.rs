//! Programs that can run a model, and why the others cannot.

use serde::Serialize;

use super::super::gguf;
use super::super::huggingface::hybridnorm::MODEL_TYPE;
use super::architecture;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::placement::ResolvedScale;

/// A program, and whether it can run an exported model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Support {
    /// Name of the program.
    pub program: &'static str,
    /// True if it can run the model.
    pub can_run: bool,
    /// How to run it, or what is missing.
    pub reason: String,
}

/// Returns which of `transformers`, vLLM, llama.cpp and MLX can run the exported folder of a model.
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
    let row = |program, can_run, reason: String| Support {
        program,
        can_run,
        reason,
    };
    if architecture.model_type != MODEL_TYPE {
        let name = architecture.model_type;
        return Ok(vec![
            row("transformers", true, format!("architecture {name}")),
            row("vLLM", true, format!("architecture {name}")),
            row(
                "llama.cpp",
                true,
                match gguf::check(config) {
                    Ok(()) => "the file that --format gguf writes".into(),
                    Err(_) => format!("architecture {name}, after convert_hf_to_gguf.py"),
                },
            ),
            row("MLX", true, format!("architecture {name} of mlx-lm")),
        ]);
    }
    let different = difference(config)?;
    let vllm = match vllm_obstacle(config)? {
        Some(obstacle) => row("vLLM", false, obstacle.into()),
        None => row(
            "vLLM",
            true,
            match config.moe {
                Some(_) => "its Transformers backend, with trust_remote_code and --enforce-eager, since the experts \
                            loop over numbers of tokens that depend on the data",
                None => "its Transformers backend, with trust_remote_code",
            }
            .into(),
        ),
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
