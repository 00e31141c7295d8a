//! Configurations of the families for models of this crate: the inverse of their readers.

use serde_json::{Map, Value, json};

use crate::model::{Activation, ModelConfig, MoeConfig, PositionEmbedding, Rope, RopeScaling};
use crate::placement::{AttnScale, StdRule, Topology};

/// Fields of a `config.json`.
type Fields = Map<String, Value>;

/// A family: its `model_type`, the prefix of its class names in `transformers`, and its fields for a model, unless it
/// certainly does not compute the model.
type Family = (
    &'static str,
    &'static str,
    fn(&ModelConfig) -> Option<Fields>,
);

/// All families that models are exported to; of several with equal equations the first is used.
const FAMILIES: [Family; 16] = [
    ("llama", "Llama", |config| {
        dense(config, false).filter(|_| divides_width(config))
    }),
    ("mistral", "Mistral", mistral),
    ("qwen2", "Qwen2", |config| dense(config, true)),
    ("qwen3", "Qwen3", |config| dense(config, true)),
    ("olmo2", "Olmo2", |config| dense(config, false)),
    ("olmo3", "Olmo3", |config| {
        layered(config, dense(config, true)?)
    }),
    ("gemma2", "Gemma2", gemma),
    ("gemma3_text", "Gemma3", |config| {
        layered(config, gemma(config)?)
    }),
    ("smollm3", "SmolLM3", smollm3),
    ("phi3", "Phi3", phi3),
    ("mixtral", "Mixtral", mixtral),
    ("qwen3_moe", "Qwen3Moe", qwen3_moe),
    ("olmoe", "Olmoe", olmoe),
    ("deepseek_v3", "DeepseekV3", deepseek_v3),
    ("gpt2", "GPT2", gpt2),
    ("gpt_neox", "GPTNeoX", gpt_neox),
];

/// Returns the `model_type` and the `config.json` of every family, with the sizes of a model. Whether the family
/// computes the model is decided by reading it back.
pub(in crate::interop) fn candidates(config: &ModelConfig) -> Vec<(&'static str, Value)> {
    let complete = |&(model_type, prefix, fields): &Family| {
        let class = match model_type {
            "gpt2" => format!("{prefix}LMHeadModel"),
            _ => format!("{prefix}ForCausalLM"),
        };
        let mut json = Map::new();
        json.insert("architectures".into(), json!([class]));
        json.insert("model_type".into(), json!(model_type));
        json.extend(fields(config)?);
        add_older_rope(model_type, &mut json);
        Some((model_type, Value::Object(json)))
    };
    FAMILIES.iter().filter_map(complete).collect()
}

/// Adds the keys by which version 4 of `transformers`, and programs that do not know `rope_parameters`, read the rotary
/// embedding.
fn add_older_rope(model_type: &str, fields: &mut Fields) {
    let Some(tables) = fields.get("rope_parameters").cloned() else {
        return;
    };
    let full = tables.get("full_attention").unwrap_or(&tables);
    let mut add = |key: &str, value: &Value| fields.insert(key.into(), value.clone());
    match model_type {
        "gpt_neox" => {
            add("rotary_emb_base", &full["rope_theta"]);
            add("rotary_pct", &full["partial_rotary_factor"]);
        }
        _ => {
            add("rope_theta", &full["rope_theta"]);
        }
    }
    if model_type == "gemma3_text" {
        add(
            "rope_local_base_freq",
            &tables["sliding_attention"]["rope_theta"],
        );
    }
    if full["rope_type"] != "default" {
        let mut scaling = full.clone();
        for key in ["rope_theta", "partial_rotary_factor"] {
            scaling.as_object_mut().and_then(|table| table.remove(key));
        }
        add("rope_scaling", &scaling);
    }
}

fn object(value: Value) -> Fields {
    match value {
        Value::Object(fields) => fields,
        _ => unreachable!("the macro makes an object"),
    }
}

/// Fields that most families have.
fn common(config: &ModelConfig) -> Fields {
    let initializer_range = match config.placement.init.std {
        StdRule::Const(std) => std,
        StdRule::SmallInit => 0.02,
    };
    object(json!({
        "attention_bias": config.bias.out,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "initializer_range": initializer_range,
        "intermediate_size": config.d_ff.max(1),
        "max_position_embeddings": config.max_seq_len,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "rms_norm_eps": config.placement.norm.eps,
        "rope_parameters": rope_table(&config.rope_of_layer(0)),
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    }))
}

fn rope_table(rope: &Rope) -> Value {
    let (theta, scaling) = match rope {
        Rope::On { theta, scaling } => (*theta, *scaling),
        Rope::Off => (10_000.0, None),
    };
    let mut table = match scaling {
        None => json!({ "rope_type": "default" }),
        Some(RopeScaling::Linear { factor }) => json!({ "rope_type": "linear", "factor": factor }),
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_seq_len,
        }) => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_seq_len,
        }),
        Some(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_seq_len,
            attention_factor,
        }) => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "original_max_position_embeddings": original_max_seq_len,
            "attention_factor": attention_factor,
        }),
    };
    table["rope_theta"] = json!(theta);
    table
}

/// Returns the first layer with and the first without a sliding window.
fn layers_by_window(config: &ModelConfig) -> [Option<usize>; 2] {
    let first = |has_window: bool| {
        let mut layers = 0..config.n_layers;
        layers.find(|&layer| config.window_of_layer(layer).is_some() == has_window)
    };
    [first(true), first(false)]
}

/// Adds windows, and rotary embeddings by type of layer where they differ. Without a layer that has a window, there is
/// no `sliding_window`.
fn add_layer_types(config: &ModelConfig, fields: &mut Fields) {
    let [sliding, full] = layers_by_window(config);
    let types = (0..config.n_layers).map(|layer| match config.window_of_layer(layer) {
        Some(_) => "sliding_attention",
        None => "full_attention",
    });
    fields.insert("layer_types".into(), json!(types.collect::<Vec<_>>()));
    let window = sliding.and_then(|layer| config.window_of_layer(layer));
    fields.insert("sliding_window".into(), json!(window));
    if let (Some(sliding), Some(full)) = (sliding, full) {
        let [sliding, full] = [sliding, full].map(|layer| config.rope_of_layer(layer));
        if sliding != full {
            let tables = json!({
                "sliding_attention": rope_table(&sliding),
                "full_attention": rope_table(&full),
            });
            fields.insert("rope_parameters".into(), tables);
        }
    }
}

/// Completes the fields of a family that always has both types of layers: it ignores a rotary embedding that is not given
/// by type, and makes a mask of the window whether or not a layer has one.
fn layered(config: &ModelConfig, mut fields: Fields) -> Option<Fields> {
    set_missing_window(config, &mut fields);
    let [sliding, full] = layers_by_window(config);
    let table = |layer: Option<usize>| {
        let layer = layer.or(full).or(sliding).unwrap_or_default();
        rope_table(&config.rope_of_layer(layer))
    };
    let tables = json!({ "sliding_attention": table(sliding), "full_attention": table(full) });
    fields.insert("rope_parameters".into(), tables);
    Some(fields)
}

/// Sets the window where no layer has one: as long as the longest sequence, which is none.
fn set_missing_window(config: &ModelConfig, fields: &mut Fields) {
    if fields.get("sliding_window").is_none_or(Value::is_null) {
        fields.insert("sliding_window".into(), json!(config.max_seq_len));
    }
}

/// True if the width is a multiple of the number of heads, which some families require.
fn divides_width(config: &ModelConfig) -> bool {
    config.d_model.is_multiple_of(config.n_heads.max(1))
}

/// Grouped-query attention and a gated feed-forward; `has_windows`: some layers may have a sliding window.
fn dense(config: &ModelConfig, has_windows: bool) -> Option<Fields> {
    if config.moe.is_some() || config.mla.is_some() {
        return None;
    }
    let mut fields = common(config);
    fields.insert("head_dim".into(), json!(config.head_dim()));
    if config.bias.feed_forward {
        fields.insert("mlp_bias".into(), json!(true));
    }
    let [sliding, _] = layers_by_window(config);
    match (has_windows, sliding) {
        (true, _) => add_layer_types(config, &mut fields),
        (false, Some(_)) => return None,
        (false, None) => {}
    }
    if has_windows && sliding.is_some() {
        fields.insert("use_sliding_window".into(), json!(true));
    }
    Some(fields)
}

/// All layers have the window.
fn mistral(config: &ModelConfig) -> Option<Fields> {
    let [sliding, full] = layers_by_window(config);
    let window = sliding.and_then(|layer| config.window_of_layer(layer))?;
    if full.is_some() || config.moe.is_some() || config.mla.is_some() {
        return None;
    }
    let mut fields = common(config);
    fields.insert("head_dim".into(), json!(config.head_dim()));
    fields.insert("sliding_window".into(), json!(window));
    Some(fields)
}

/// All layers have the window, or none; the rotary frequencies are not scaled.
fn phi3(config: &ModelConfig) -> Option<Fields> {
    if config.rope_scaling.is_some() {
        return None;
    }
    let mut fields = match layers_by_window(config) {
        [Some(_), Some(_)] => return None,
        [Some(_), None] => mistral(config)?,
        [None, _] => dense(config, false)?,
    };
    let share = config.rope_dim() as f64 / config.head_dim() as f64;
    fields["rope_parameters"]["partial_rotary_factor"] = json!(share);
    fields.remove("head_dim");
    fields.extend(object(json!({
        "partial_rotary_factor": share,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "original_max_position_embeddings": config.max_seq_len,
    })));
    Some(fields)
}

fn gemma(config: &ModelConfig) -> Option<Fields> {
    let mut fields = dense(config, true).filter(|_| divides_width(config))?;
    set_missing_window(config, &mut fields);
    let (resolved, _) = config.resolve().ok()?;
    let inner = &resolved.blocks[0].attn_inner;
    let scalar = match inner.attn_scale {
        // An integer in this family.
        AttnScale::Const(scale) => scale.powi(-2).round() as u64,
        _ => config.head_dim() as u64,
    };
    for key in ["hidden_act", "use_sliding_window"] {
        fields.remove(key);
    }
    fields.extend(object(json!({
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": inner.attn_softcap,
        "final_logit_softcapping": resolved.logits.softcap,
    })));
    Some(fields)
}

fn smollm3(config: &ModelConfig) -> Option<Fields> {
    let mut fields = dense(config, false)?;
    let rotates = |layer: usize| u8::from(config.rope_of_layer(layer) != Rope::Off);
    let layers: Vec<u8> = (0..config.n_layers).map(rotates).collect();
    let first = layers.iter().position(|rotates| *rotates == 1)?;
    fields.insert(
        "rope_parameters".into(),
        rope_table(&config.rope_of_layer(first)),
    );
    fields.insert("no_rope_layers".into(), json!(layers));
    Some(fields)
}

/// Fields of a mixture of experts with grouped-query attention.
fn experts(config: &ModelConfig) -> Option<(Fields, &MoeConfig)> {
    let moe = config.moe.as_ref().filter(|_| config.mla.is_none())?;
    if layers_by_window(config)[0].is_some() {
        return None;
    }
    let mut fields = common(config);
    fields.extend(object(json!({
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.load_balance,
    })));
    Some((fields, moe))
}

fn mixtral(config: &ModelConfig) -> Option<Fields> {
    let (mut fields, moe) = experts(config)?;
    fields.extend(object(json!({
        "head_dim": config.head_dim(),
        "intermediate_size": moe.d_expert,
        "num_local_experts": moe.n_experts,
        "sliding_window": null,
    })));
    Some(fields)
}

fn qwen3_moe(config: &ModelConfig) -> Option<Fields> {
    let (mut fields, moe) = experts(config)?;
    fields.extend(object(json!({
        "head_dim": config.head_dim(),
        "num_experts": moe.n_experts,
        "moe_intermediate_size": moe.d_expert,
        "norm_topk_prob": moe.renormalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": (0..moe.first_dense).collect::<Vec<_>>(),
        "use_sliding_window": false,
    })));
    Some(fields)
}

fn olmoe(config: &ModelConfig) -> Option<Fields> {
    let (mut fields, moe) = experts(config)?;
    fields.extend(object(json!({
        "intermediate_size": moe.d_expert,
        "num_experts": moe.n_experts,
        "norm_topk_prob": moe.renormalize,
        "clip_qkv": null,
    })));
    Some(fields)
}

/// Without a mixture of experts all blocks are dense.
fn deepseek_v3(config: &ModelConfig) -> Option<Fields> {
    let mla = config.mla.as_ref()?;
    let mut fields = common(config);
    let moe = config.moe.as_ref();
    let of_moe = |of: fn(&MoeConfig) -> usize| moe.map_or(1, of);
    fields.extend(object(json!({
        "q_lora_rank": mla.q_rank,
        "kv_lora_rank": mla.kv_rank,
        "qk_nope_head_dim": mla.nope_dim,
        "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.v_dim,
        "rope_interleave": true,
        "n_routed_experts": of_moe(|moe| moe.n_experts),
        "n_shared_experts": of_moe(|moe| moe.n_shared),
        "num_experts_per_tok": of_moe(|moe| moe.top_k),
        "moe_intermediate_size": of_moe(|moe| moe.d_expert),
        "first_k_dense_replace": config.n_dense_layers(),
        "n_group": of_moe(|moe| moe.n_groups),
        "topk_group": of_moe(|moe| moe.top_groups),
        "norm_topk_prob": moe.is_some_and(|moe| moe.renormalize),
        "routed_scaling_factor": moe.map_or(1.0, |moe| moe.scaling),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    })));
    Some(fields)
}

fn gpt2(config: &ModelConfig) -> Option<Fields> {
    if config.position_embedding != PositionEmbedding::Learned {
        return None;
    }
    let activation = match config.activation {
        Activation::Gelu => "gelu_new",
        Activation::GeluErf => "gelu",
        _ => return None,
    };
    Some(object(json!({
        "activation_function": activation,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "layer_norm_epsilon": config.placement.norm.eps,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "n_layer": config.n_layers,
        "n_positions": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    })))
}

fn gpt_neox(config: &ModelConfig) -> Option<Fields> {
    if !divides_width(config) {
        return None;
    }
    let activation = match config.activation {
        Activation::Gelu => "gelu_new",
        Activation::GeluErf => "gelu",
        _ => return None,
    };
    let mut fields = common(config);
    for key in ["num_key_value_heads", "rms_norm_eps"] {
        fields.remove(key);
    }
    let share = config.rope_dim() as f64 / config.head_dim() as f64;
    fields["rope_parameters"]["partial_rotary_factor"] = json!(share);
    fields.extend(object(json!({
        "hidden_act": activation,
        "hidden_dropout": 0.0,
        "layer_norm_eps": config.placement.norm.eps,
        "use_parallel_residual": config.placement.block.topology != Topology::Sequential,
    })));
    Some(fields)
}
