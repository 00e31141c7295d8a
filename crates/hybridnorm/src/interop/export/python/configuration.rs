//! Python of the configuration, and the fields of `config.json`.

use serde_json::{Map, Value, json};

use super::{CLASS, Generator, attention};
use crate::model::{MlaConfig, ModelConfig, MoeConfig};
use crate::placement::HeadNorm;

const TEMPLATE: &str = include_str!("fragments/configuration.py");

/// Returns the sizes of a model by their names in `transformers`, in the order in which files list them.
pub(in crate::interop) fn fields(config: &ModelConfig) -> Map<String, Value> {
    // A new field is a compile error here, so that it is either exported or rejected.
    let ModelConfig {
        d_model,
        n_layers,
        n_heads,
        head_dim: _,
        n_kv_heads,
        d_ff,
        vocab_size,
        max_seq_len,
        position_embedding: _,
        rope_dim: _,
        rope_theta,
        rope_scaling: _,
        attention_overrides: _,
        bias: _,
        tie_embeddings,
        activation: _,
        moe,
        mla,
        placement: _,
    } = config;
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    add("vocab_size", json!(vocab_size));
    add("hidden_size", json!(d_model));
    if *d_ff > 0 {
        add("intermediate_size", json!(d_ff));
    }
    add("num_hidden_layers", json!(n_layers));
    add("num_attention_heads", json!(n_heads));
    add("num_key_value_heads", json!(n_kv_heads));
    add("head_dim", json!(config.head_dim()));
    fields.extend(latent_and_experts(mla.as_ref(), moe.as_ref()));
    let mut add = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    add("max_position_embeddings", json!(max_seq_len));
    add("rope_theta", json!(rope_theta));
    add("tie_word_embeddings", json!(tie_embeddings));
    let windows: Vec<Option<usize>> = (0..*n_layers)
        .map(|layer| config.window_of_layer(layer))
        .collect();
    if let Some(window) = windows.iter().flatten().next() {
        let kind = |window: &Option<usize>| match window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        add("sliding_window", json!(window));
        add(
            "layer_types",
            json!(windows.iter().map(kind).collect::<Vec<_>>()),
        );
    }
    fields
}

/// Returns the sizes of latent attention and of a mixture of experts.
fn latent_and_experts(mla: Option<&MlaConfig>, moe: Option<&MoeConfig>) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut add = |name: &str, size: usize| fields.insert(name.to_owned(), json!(size));
    if let Some(mla) = mla {
        if let Some(q_rank) = mla.q_rank {
            add("q_lora_rank", q_rank);
        }
        add("kv_lora_rank", mla.kv_rank);
        add("qk_nope_head_dim", mla.nope_dim);
        add("qk_rope_head_dim", mla.rope_dim);
        add("v_head_dim", mla.v_dim);
    }
    if let Some(moe) = moe {
        add("num_experts", moe.n_experts);
        add("num_experts_per_tok", moe.top_k);
        add("moe_intermediate_size", moe.d_expert);
        if moe.n_shared > 0 {
            add("n_shared_experts", moe.n_shared);
        }
    }
    fields
}

/// Returns `configuration_hybridnorm.py`.
pub(super) fn text(generator: &Generator<'_>) -> String {
    let config = generator.config;
    let lines = fields(config).into_iter().map(|(name, value)| match value {
        Value::Bool(true) => format!("    {name}: bool = True"),
        Value::Bool(false) => format!("    {name}: bool = False"),
        Value::Number(number) if number.is_f64() => format!("    {name}: float = {number}"),
        // A list must not be a default; config.json has it.
        Value::Array(_) => format!("    {name}: list | None = None"),
        value => format!("    {name}: int = {value}"),
    });
    let fields: Vec<String> = lines.collect();
    TEMPLATE
        .replace("CLASS", CLASS)
        .replace("    TENSOR_PARALLEL\n", &tensor_parallel(generator))
        .replace("    FIELDS", &fields.join("\n"))
}

/// Returns the plan of tensor parallelism, if no norm and no parameter spans heads or hidden channels.
fn tensor_parallel(generator: &Generator<'_>) -> String {
    let config = generator.config;
    let is_divisible = generator.resolved.blocks.iter().all(|block| {
        let inner = &block.ffn_inner;
        let is_plain = |scale| matches!(scale, crate::placement::ResolvedScale::Const(_));
        attention::is_divisible_by_heads(config, &block.attn_inner)
            && !(inner.gate_norm || inner.up_norm || inner.mid_norm)
            && is_plain(inner.gate_scale)
            && is_plain(inner.up_scale)
            && block.attn_inner.ctx_norm != HeadNorm::Full
    });
    if !is_divisible || config.moe.is_some() {
        return String::new();
    }
    let mut lines = vec!["    base_model_tp_plan = {".to_owned()];
    let mut add = |module: &str, style: &str| {
        lines.push(format!("        \"layers.*.{module}\": \"{style}\","))
    };
    for name in ["q_proj", "k_proj", "v_proj"] {
        add(&format!("self_attn.{name}"), "colwise");
    }
    add("self_attn.o_proj", "rowwise");
    if config.activation.is_gated() {
        add("mlp.gate_proj", "colwise");
    }
    add("mlp.up_proj", "colwise");
    add("mlp.down_proj", "rowwise");
    lines.push("    }\n".into());
    lines.join("\n")
}
