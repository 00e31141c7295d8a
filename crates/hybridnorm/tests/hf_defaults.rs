//! Keys that a `config.json` lacks have the values of their family's class in `transformers`, and published files are
//! read.

mod common;

use common::hf::modified_checkpoint;
use common::reference::{fixture, json};
use hybridnorm::interop::huggingface;
use hybridnorm::model::{ModelConfig, Rope, RopeScaling};
use serde_json::{Map, Value, json};

/// Returns the configuration of a fixture with a changed `config.json`, or the error.
fn read(family: &str, change: impl FnOnce(&mut Map<String, Value>)) -> Result<ModelConfig, String> {
    let change = |config: &mut Value| change(config.as_object_mut().unwrap());
    read_folder(&modified_checkpoint(family, change, |_| {}))
}

fn read_folder(folder: &tempfile::TempDir) -> Result<ModelConfig, String> {
    let path = folder.path().join("config.json");
    let problem = |error: hybridnorm::Error| {
        let message = error.to_string();
        message.replace(&path.display().to_string(), "config.json")
    };
    huggingface::read_config(&path).map_err(problem)
}

/// Returns the section that contains the last key of a path.
fn section<'a>(config: &'a mut Map<String, Value>, path: &[&str]) -> &'a mut Map<String, Value> {
    path[..path.len() - 1]
        .iter()
        .fold(config, |at, key| at[*key].as_object_mut().unwrap())
}

/// True if the message of an error names a key; `num_local_experts` is another name of `num_experts`.
fn is_named(key: &str, error: &str) -> bool {
    error.contains(key) || error.contains(&key.replace("local_", ""))
}

/// `defaults.json` is what `transformers` has where a key of a fixture is removed; `defaults.py` writes it.
#[test]
fn missing_keys_have_the_values_of_transformers() {
    let all = json(&fixture("hf/defaults.json"));
    let mut required = 0;
    for (family, defaults) in all.as_object().unwrap() {
        for (name, default) in defaults.as_object().unwrap() {
            let path: Vec<&str> = name.split('.').collect();
            let key = *path.last().unwrap();
            let removed = read(family, |config| {
                section(config, &path).remove(key).unwrap();
            });
            match &removed {
                Err(error) if is_named(key, error) => required += 1,
                _ => {
                    let set = read(family, |config| {
                        section(config, &path).insert(key.to_owned(), default.clone());
                    });
                    assert_eq!(removed, set, "{family} without {name}");
                }
            }
        }
    }
    assert!(required > 0);
}

/// Keys of the rotary embedding that older files have.
#[test]
fn missing_older_keys_have_the_values_of_transformers() {
    let older = |family: &str, keys: &Value| {
        read(family, |config| {
            config.remove("rope_parameters");
            config.remove("partial_rotary_factor");
            config.extend(keys.as_object().unwrap().clone());
        })
    };
    for (family, key, default) in [
        ("llama", "rope_theta", 1e4),
        ("mistral", "rope_theta", 1e4),
        ("mixtral", "rope_theta", 1e6),
        ("qwen2", "rope_theta", 1e4),
        ("qwen3", "rope_theta", 1e4),
        ("qwen3_moe", "rope_theta", 1e4),
        ("olmo2", "rope_theta", 1e4),
        ("olmo3", "rope_theta", 5e5),
        ("olmoe", "rope_theta", 1e4),
        ("gemma2", "rope_theta", 1e4),
        ("gemma3", "rope_theta", 1e6),
        ("gemma3", "rope_local_base_freq", 1e4),
        ("phi3", "rope_theta", 1e4),
        ("phi3", "partial_rotary_factor", 1.0),
        ("smollm3", "rope_theta", 2e6),
        ("gpt_neox", "rotary_emb_base", 1e4),
        ("gpt_neox", "rotary_pct", 0.25),
        ("deepseek-v3", "rope_theta", 1e4),
    ] {
        let missing = older(family, &json!({})).unwrap();
        let set = older(family, &json!({ key: default })).unwrap();
        assert_eq!(missing, set, "{family} without {key}");
        let factor = if key == "rotary_pct" { 2.0 } else { 0.5 };
        let other = older(family, &json!({ key: factor * default })).unwrap();
        assert_ne!(missing, other, "{family} with another {key}");
    }
    // Keys of other families.
    for (family, keys, problem) in [
        (
            "gpt_neox",
            json!({ "rope_theta": 500.0 }),
            "rope_theta is 500, but rotary_emb_base",
        ),
        (
            "gpt_neox",
            json!({ "rotary_pct": 0.5, "partial_rotary_factor": 0.25 }),
            "partial_rotary_factor is 0.25, but rotary_pct",
        ),
        (
            "llama",
            json!({ "hidden_activation": "gelu_pytorch_tanh" }),
            "hidden_activation \"gelu_pytorch_tanh\", expected none",
        ),
        (
            "mistral",
            json!({ "attention_bias": true }),
            "attention_bias is true, expected false",
        ),
        (
            "qwen3",
            json!({ "mlp_bias": true }),
            "mlp_bias is true, expected false",
        ),
        (
            "mistral",
            json!({ "layer_types": ["sliding_attention", "full_attention"] }),
            "layer_types differs from sliding_window",
        ),
        (
            "gemma3",
            json!({ "rope_parameters": { "rope_theta": 500.0, "rope_type": "default" } }),
            "rope_parameters has no full_attention and sliding_attention",
        ),
        (
            "qwen2",
            json!({ "rope_parameters": { "full_attention": { "rope_theta": 500.0 } } }),
            "rope_parameters has types of layers",
        ),
    ] {
        let error = older(family, &keys).unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
}

/// Files of published models, as version 4 of `transformers` wrote them: keys without effect are accepted, and the others
/// are applied.
#[test]
fn published_configurations_are_read() {
    let read = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        read_folder(&folder).unwrap_or_else(|error| panic!("{error}\n{text}"))
    };
    let theta = |config: &ModelConfig, layer: usize| match config.rope_of_layer(layer) {
        Rope::On { theta, .. } => theta,
        Rope::Off => 0.0,
    };
    // (layers, width, heads, heads of k and v, width of a head, tied, base of the first layer)
    let shape = |config: &ModelConfig| {
        (
            config.n_layers,
            config.d_model,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim(),
            config.tie_embeddings,
            theta(config, 0),
        )
    };

    let smollm2 = read(
        r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "model_type": "llama",
        "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
        "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}},
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152}"#,
    );
    assert_eq!(shape(&smollm2), (30, 576, 9, 3, 64, true, 1e5));

    let llama = read(
        r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0,
        "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256}"#,
    );
    assert_eq!(shape(&llama), (16, 2048, 32, 8, 64, true, 5e5));
    let llama3 = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_seq_len: 8192,
    };
    assert_eq!(llama.rope_scaling, Some(llama3));

    let mistral = read(
        r#"{"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000}"#,
    );
    assert_eq!(shape(&mistral), (32, 4096, 32, 8, 128, false, 1e4));
    assert_eq!(mistral.window_of_layer(31), Some(4096));

    let mixtral = read(
        r#"{"architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "output_router_logits": false, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0.dev0", "use_cache": true, "vocab_size": 32000}"#,
    );
    assert_eq!(shape(&mixtral), (32, 4096, 32, 8, 128, false, 1e6));
    assert_eq!(mixtral.moe.unwrap().n_experts, 8);

    let qwen2 = read(
        r#"{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
        "vocab_size": 151936}"#,
    );
    assert_eq!(shape(&qwen2), (24, 896, 14, 2, 64, true, 1e6));
    assert!(qwen2.bias.qkv && !qwen2.bias.out && qwen2.attention_overrides.is_empty());

    let qwen3 = read(
        r#"{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}"#,
    );
    assert_eq!(shape(&qwen3), (28, 1024, 16, 8, 128, true, 1e6));

    let qwen3_moe = read(
        r#"{"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": false,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}"#,
    );
    assert_eq!(shape(&qwen3_moe), (48, 2048, 32, 4, 128, false, 1e6));

    let olmo2 = read(
        r#"{"architectures": ["Olmo2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "olmo2",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 100277,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 500000, "tie_word_embeddings": false,
        "torch_dtype": "float32", "transformers_version": "4.47.0.dev0", "use_cache": true, "vocab_size": 100352}"#,
    );
    assert_eq!(shape(&olmo2), (32, 4096, 32, 32, 128, false, 5e5));

    let olmo3 = read(
        r#"{"architectures": ["Olmo3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": null, "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 65536,
        "model_type": "olmo3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": {"attention_factor": 1.2079441541679836,
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0, "original_max_position_embeddings": 8192,
        "rope_type": "yarn"}, "rope_theta": 500000, "sliding_window": 4096, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.57.0", "use_cache": true, "vocab_size": 100278}"#,
    );
    assert_eq!(shape(&olmo3), (32, 4096, 32, 32, 128, false, 5e5));
    let windows = [0, 2, 3].map(|layer| olmo3.window_of_layer(layer));
    assert_eq!(windows, [Some(4096), Some(4096), None]);

    let olmoe = read(
        r#"{"architectures": ["OlmoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "clip_qkv": null, "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 1024, "max_position_embeddings": 4096,
        "model_type": "olmoe", "norm_topk_prob": false, "num_attention_heads": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16, "output_router_logits": false,
        "pad_token_id": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
        "router_aux_loss_coef": 0.01, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0", "use_cache": true, "vocab_size": 50304}"#,
    );
    assert_eq!(shape(&olmoe), (16, 2048, 16, 16, 128, false, 1e4));

    let gemma2 = read(
        r#"{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
        "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "torch_dtype": "float32", "transformers_version": "4.42.4", "use_cache": true, "vocab_size": 256000}"#,
    );
    assert_eq!(shape(&gemma2), (26, 2304, 8, 4, 256, true, 1e4));
    assert_eq!(gemma2.placement.logits.softcap, Some(30.0));
    let windows = [0, 1].map(|layer| gemma2.window_of_layer(layer));
    assert_eq!(windows, [Some(4096), None]);

    let gemma3 = read(
        r#"{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144}"#,
    );
    assert_eq!(shape(&gemma3), (26, 1152, 4, 1, 256, true, 1e4));
    let layer = |layer: usize| (gemma3.window_of_layer(layer), theta(&gemma3, layer));
    assert_eq!([4, 5].map(layer), [(Some(512), 1e4), (None, 1e6)]);

    let phi3 = read(
        r#"{"_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"],
        "attention_bias": false, "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}, "bos_token_id": 1, "embd_pdrop": 0.0,
        "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": true, "vocab_size": 32064}"#,
    );
    assert_eq!(shape(&phi3), (32, 3072, 32, 32, 96, false, 1e4));
    assert_eq!(phi3.window_of_layer(0), Some(2047));

    let gpt2 = read(
        r#"{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
        "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
        "summary_use_proj": true, "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
        "vocab_size": 50257}"#,
    );
    assert!(gpt2.tie_embeddings && gpt2.d_ff == 4 * 768 && gpt2.n_kv_heads == 12);

    let pythia = read(
        r#"{"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
        "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8,
        "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
        "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": true,
        "use_parallel_residual": true, "vocab_size": 50304}"#,
    );
    assert_eq!(shape(&pythia), (6, 512, 8, 8, 64, false, 1e4));
    assert_eq!(pythia.rope_dim(), 16);

    let smollm3 = read(
        r#"{"architectures": ["SmolLM3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": null, "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 11008, "layer_types": ["full_attention", "full_attention",
        "full_attention", "full_attention"], "max_position_embeddings": 65536, "max_window_layers": 28,
        "mlp_bias": false, "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0],
        "num_attention_heads": 16, "num_hidden_layers": 4, "num_key_value_heads": 4, "pad_token_id": 128004,
        "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 5000000.0,
        "sliding_window": null, "torch_dtype": "bfloat16", "transformers_version": "4.54.0.dev0",
        "use_cache": false, "use_sliding_window": false, "vocab_size": 128256}"#,
    );
    assert_eq!(shape(&smollm3), (4, 2048, 16, 4, 128, true, 5e6));
    assert_eq!(smollm3.rope_of_layer(3), Rope::Off);

    // Without the quantization of its weights, which is refused.
    let deepseek = read(
        r#"{"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "bos_token_id": 0, "eos_token_id": 1,
        "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
        "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
        "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
        "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000,
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false, "topk_group": 4,
        "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": true,
        "v_head_dim": 128, "vocab_size": 129280}"#,
    );
    assert_eq!(shape(&deepseek), (61, 7168, 128, 128, 192, false, 1e4));
    assert_eq!(deepseek.moe.unwrap().top_groups, 4);
}
