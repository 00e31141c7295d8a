//! Exported folders: imported again with equal bits, in the architecture with the same equations; and models for
//! `bench/check_export.py`, which compares them with `transformers`.

#[path = "../common/mod.rs"]
mod common;
mod settings;

use std::path::Path;

use common::reference::{fixture, json};
use common::*;
use hybridnorm::Device;
use hybridnorm::data::{ChatTemplate, StartToken, TextStart, Tokenizer, quiet};
use hybridnorm::interop::export::{Exported, Extras, Format, Options, export, support};
use hybridnorm::interop::gguf::MatrixType;
use hybridnorm::interop::{self, huggingface};
use hybridnorm::model::{AttentionOverride, Model, ModelConfig};
use hybridnorm::placement::{Selector, named_placements};
use hybridnorm::tensors::{FloatType, TensorFile};
use settings::{settings, stock_settings};

/// Fixtures with the `model_type` of their export.
const FAMILIES: [(&str, &str); 20] = [
    ("llama", "llama"),
    ("llama-bias", "llama"),
    ("mistral", "mistral"),
    ("mixtral", "mixtral"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3_moe", "qwen3_moe"),
    ("qwen3_moe-dense-first", "qwen3_moe"),
    ("olmo2", "olmo2"),
    ("olmo3", "olmo3"),
    ("olmoe", "olmoe"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("phi3", "phi3"),
    ("smollm3", "smollm3"),
    ("gpt2", "gpt2"),
    ("gpt_neox", "gpt_neox"),
    ("gpt_neox-sequential", "gpt_neox"),
    ("deepseek-v3", "deepseek_v3"),
    // Its scale of the attention logits is a number, from which no key of its family follows.
    ("deepseek_v3-yarn", "hybridnorm"),
];

fn verified(format: Format) -> Options {
    let mut options = Options::new(format);
    options.verify = true;
    options
}

/// Exports a model with arbitrary weights to Hugging Face's format, and compares it with the imported folder.
fn round_trip(config: &ModelConfig, out: &Path) -> Exported {
    let model = random_model(config);
    let values = model.values();
    let exported = export(model, out, verified(Format::HuggingFace), Extras::default()).unwrap();
    let mut imported = huggingface::import(out, Device::Cpu).unwrap();
    assert!(imported.values() == values, "{}", out.display());
    assert_eq!(imported.config().n_layers, config.n_layers);
    let verification = exported.verification.unwrap();
    assert_eq!(verification.equal_parameters, values.len());
    assert_eq!(verification.logits_difference, Some(0.0));
    assert!(imported.logits(&[1, 2, 3], 1, 3).is_ok());
    exported
}

fn random_model(config: &ModelConfig) -> Model {
    let mut model = perturbed_model(config);
    model.normalize_unit_weights().unwrap();
    model
}

#[test]
fn exported_folders_are_imported_with_equal_bits() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "hybridnorm",
        "ngpt",
        "siamese-hybrid",
        "derf",
        "gpt-j-parallel",
        "rezero",
    ] {
        for (kind, config) in model_variants(name) {
            let exported = round_trip(&config, &folder.path().join(format!("{name}-{kind}")));
            assert_eq!(
                exported.model_type.as_deref(),
                Some("hybridnorm"),
                "{name}, {kind}"
            );
        }
    }
    for (name, config) in settings() {
        round_trip(&config, &folder.path().join(name));
    }
    for (name, config, model_type) in stock_settings() {
        let exported = round_trip(&config, &folder.path().join(name));
        assert_eq!(exported.model_type.as_deref(), Some(model_type), "{name}");
    }
}

#[test]
fn architecture_is_chosen_by_equations() {
    let folder = tempfile::tempdir().unwrap();
    for (fixture_name, model_type) in FAMILIES {
        let model =
            huggingface::import(&fixture(&format!("hf/{fixture_name}")), Device::Cpu).unwrap();
        let values = model.values();
        let out = folder.path().join(fixture_name);
        let exported = export(
            model,
            &out,
            verified(Format::HuggingFace),
            Extras::default(),
        )
        .unwrap();
        assert_eq!(exported.model_type.as_deref(), Some(model_type));
        let has_python = exported
            .files
            .iter()
            .any(|file| file == "modeling_hybridnorm.py");
        assert_eq!(has_python, model_type == "hybridnorm");
        assert_eq!(json(&out.join("config.json"))["model_type"], model_type);
        assert!(huggingface::import(&out, Device::Cpu).unwrap().values() == values);
    }
    let choice = |config: &ModelConfig, name: &str| {
        round_trip(config, &folder.path().join(name))
            .model_type
            .unwrap()
    };
    // The equations of Llama under another name, with other initial values.
    let mut placement = named("hybridnorm");
    placement.block = named("pre-norm").block;
    assert_eq!(choice(&tiny(placement.clone()), "a"), "llama");
    // One norm more.
    placement.embed.norm = true;
    assert_eq!(choice(&tiny(placement), "b"), "hybridnorm");
    // Phi-3 rotates a part of the channels, in another order.
    let partial = tiny(named("pre-norm")).with_rope_dim(2);
    assert_eq!(choice(&partial, "c"), "phi3");
}

#[test]
fn python_contains_only_what_the_placement_uses() {
    let folder = tempfile::tempdir().unwrap();
    let modeling = |name: &str| {
        let out = folder.path().join(name);
        round_trip(&tiny(named(name)), &out);
        std::fs::read_to_string(out.join("modeling_hybridnorm.py")).unwrap()
    };
    let hybridnorm = modeling("hybridnorm");
    for line in [
        "        g, _ = self.self_attn(x, position_embeddings, attention_mask, cache, **kwargs)\n        x = x + g\n",
        "        n = self.ffn_in_norm(x)\n        g = self.mlp(n)\n        x = n + g\n        return x\n",
        "        v = self.v_norm(v)\n",
    ] {
        assert!(hybridnorm.contains(line), "{hybridnorm}");
    }
    for word in [
        "softcap",
        "ctx_norm",
        "unit(",
        "tau",
        "Block2",
        "SOFTCAP",
        "MAGNITUDE",
        "CLASS",
    ] {
        assert!(!hybridnorm.contains(word), "{word}");
    }
    assert!(modeling("gemma2").contains("softcap=50.0"));
    let ngpt = modeling("ngpt");
    assert!(
        ngpt.contains("x = unit(x + ") && ngpt.contains("self.attn_out_scale * (g - x))"),
        "{ngpt}"
    );
    let star = modeling("hybridnorm-star");
    assert!(
        star.contains("class Block2(") && star.contains("1 * [Block] + 2 * [Block2]"),
        "{star}"
    );
    assert!(modeling("lns").contains("ATTN_IN_SCALE = (1.0, 0.7071067811865475,"));
}

#[test]
fn weights_of_16_bits_are_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, name) in [(FloatType::Bf16, "bfloat16"), (FloatType::F16, "float16")] {
        let config = tiny(named("hybridnorm"));
        let model = random_model(&config);
        let mut expected = model.values();
        for values in expected.values_mut() {
            values.data.iter_mut().for_each(|x| *x = dtype.round(*x));
        }
        let out = folder.path().join(name);
        let mut options = verified(Format::HuggingFace);
        options.dtype = dtype;
        export(model, &out, options, Extras::default()).unwrap();
        assert!(huggingface::import(&out, Device::Cpu).unwrap().values() == expected);
        assert_eq!(json(&out.join("config.json"))["dtype"], name);
    }
    let mut model = random_model(&tiny(named("hybridnorm")));
    let spec = model.parameters().next().unwrap().clone();
    model.write(&spec, &vec![1e6; spec.elements()]);
    let mut options = Options::new(Format::HuggingFace);
    options.dtype = FloatType::F16;
    let out = folder.path().join("large");
    let error = export(model, &out, options, Extras::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("parameter embedding = 1000000, expected"),
        "{error}"
    );
    assert!(!out.exists());
}

#[test]
fn plain_safetensors_have_names_and_configuration_of_this_crate() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny(named("hybridnorm"));
    let model = random_model(&config);
    let values = model.values();
    let out = folder.path().join("plain");
    let exported = export(
        model,
        &out,
        verified(Format::Safetensors),
        Extras::default(),
    )
    .unwrap();
    assert_eq!(
        exported.files,
        ["README.md", "model.safetensors", "selftest.safetensors"]
    );
    let path = out.join("model.safetensors");
    assert_eq!(hybridnorm::tensors::read(&path).unwrap(), values);
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let stored = header["__metadata__"]["config"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<ModelConfig>(stored).unwrap(), config);
    let test = TensorFile::open(&out.join("selftest.safetensors")).unwrap();
    assert_eq!(test.shape("blocks.2.x"), Some(&[1, 16, 16][..]));
}

#[test]
fn tokenizer_is_exported_and_imported() {
    let folder = tempfile::tempdir().unwrap();
    let text = "Once upon a time, a cat sat on a mat. <|endoftext|>";
    let tokenizer = Tokenizer::train_bpe(&[text; 3], 270, &mut quiet).unwrap();
    let config = tiny(named("hybridnorm")).with_vocab_size(tokenizer.vocab_size());
    let extras = Extras {
        tokenizer: Some(&tokenizer),
        training: None,
    };
    let out = folder.path().join("out");
    let options = Options::new(Format::HuggingFace);
    export(random_model(&config), &out, options, extras).unwrap();
    let imported = interop::tokenizer(&out).unwrap().unwrap().tokenizer;
    assert_eq!(
        imported.encode(text).unwrap(),
        tokenizer.encode(text).unwrap()
    );
    let eos_id = tokenizer.eos_id();
    assert_eq!(imported.eos_id(), eos_id);
    let eos = json(&out.join("generation_config.json"))["eos_token_id"].as_u64();
    assert_eq!(eos, Some(u64::from(eos_id)));
    // It would encode the special tokens of a chat template as plain characters.
    let config_of_tokenizer = json(&out.join("tokenizer_config.json"));
    assert!(config_of_tokenizer.get("split_special_tokens").is_none());
    assert_eq!(
        (imported.end_ids(), imported.bos_id()),
        (&[eos_id][..], Some(eos_id))
    );
    // Further tokens that end generated text, and a start token that is named, but not added.
    let more = tokenizer
        .clone()
        .with_end_ids(&[70, 71])
        .with_bos_id(Some(65));
    let folder_of_more = folder.path().join("more");
    let extras_of_more = Extras {
        tokenizer: Some(&more),
        training: None,
    };
    export(
        random_model(&config),
        &folder_of_more,
        options,
        extras_of_more,
    )
    .unwrap();
    for name in ["config.json", "generation_config.json"] {
        let found = json(&folder_of_more.join(name));
        assert_eq!(
            found["eos_token_id"],
            serde_json::json!([eos_id, 70, 71]),
            "{name}"
        );
        assert_eq!(
            (&found["bos_token_id"], &found["pad_token_id"]),
            (&65.into(), &eos_id.into())
        );
    }
    let found = interop::tokenizer(&folder_of_more).unwrap().unwrap();
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    let found = found.tokenizer;
    assert_eq!(
        (found.end_ids(), found.eos_id()),
        (&[eos_id, 70, 71][..], eos_id)
    );
    assert_eq!((found.bos_id(), found.start_id()), (Some(65), None));
    let empty = TextStart::new(&found, StartToken::Tokenizer).before(&[]);
    assert_eq!(empty, [65]);
    // An existing folder is not replaced, and a tokenizer must fit the model.
    let error = export(random_model(&config), &out, options, extras)
        .unwrap_err()
        .to_string();
    assert!(error.contains("already exists"), "{error}");
    let small = random_model(&tiny(named("hybridnorm")));
    let error = export(small, &folder.path().join("b"), options, extras)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the tokenizer has 270 tokens, the model only 37"),
        "{error}"
    );
}

#[test]
fn windows_of_two_widths_are_refused() {
    let window = |layer, width| AttentionOverride {
        window: Some(width),
        ..AttentionOverride::of_layers(Selector::Indices(vec![layer]))
    };
    let config =
        tiny(named("hybridnorm")).with_attention_overrides(vec![window(0, 3), window(1, 4)]);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = Options::new(Format::HuggingFace);
    let error = export(random_model(&config), &out, options, Extras::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("model.attention_overrides: sliding windows of {3, 4} positions"),
        "{error}"
    );
    assert!(!out.exists());
    let options = Options::new(Format::Safetensors);
    assert!(export(random_model(&config), &out, options, Extras::default()).is_ok());
}

#[test]
fn programs_that_can_run_a_model_are_named() {
    let can_run = |config: &ModelConfig| -> Vec<&'static str> {
        let all = support(config).unwrap().into_iter();
        all.filter(|support| support.can_run)
            .map(|support| support.program)
            .collect()
    };
    let all = ["transformers", "vLLM", "llama.cpp", "MLX"];
    assert_eq!(can_run(&tiny(named("olmo2"))), all);
    assert_eq!(can_run(&tiny(named("hybridnorm"))), all[..2]);
    assert_eq!(can_run(&tiny(named("gemma2"))), all[..1]);
    // Each program that lacks something says what; the GGUF writer agrees.
    let fixture_config =
        |name: &str| huggingface::read_config(&fixture(&format!("hf/{name}/config.json"))).unwrap();
    for (name, [llama_cpp, mlx]) in [
        ("llama", ["the file that --format gguf writes", "of mlx-lm"]),
        ("llama-bias", ["its llama: bias", "of mlx-lm"]),
        (
            "gemma2",
            [
                "its gemma2: placement.block.attn_inner.attn_scale differs",
                "its class of this family ignores sliding windows",
            ],
        ),
        (
            "mistral",
            ["as its llama, without a sliding window", "as its llama"],
        ),
        (
            "phi3",
            ["ignores sliding windows", "ignores sliding windows"],
        ),
        (
            "smollm3",
            ["no rotary embedding in every fourth layer", "of mlx-lm"],
        ),
        ("olmo3", ["in three of four layers", "of mlx-lm"]),
        ("qwen3_moe", ["after convert_hf_to_gguf.py", "of mlx-lm"]),
        ("qwen3_moe-dense-first", ["sum to 1", "of mlx-lm"]),
        ("olmoe", ["after convert_hf_to_gguf.py", "of mlx-lm"]),
    ] {
        let config = fixture_config(name);
        let programs = support(&config).unwrap();
        let [transformers, vllm, found @ ..] = &programs[..] else {
            panic!("{programs:?}")
        };
        assert!(
            transformers.can_run && vllm.can_run && vllm.reason.contains("not run"),
            "{name}"
        );
        for (found, expected) in found.iter().zip([llama_cpp, mlx]) {
            assert!(found.reason.contains(expected), "{name}: {found:?}");
            let is_positive = ["the file", "architecture "]
                .iter()
                .any(|start| found.reason.starts_with(start));
            assert_eq!(found.can_run, is_positive, "{name}: {found:?}");
        }
        let is_written = interop::gguf::check(&config).is_ok();
        assert_eq!(is_written, programs[2].reason.contains("--format gguf"));
    }
    let reasons = support(&tiny(named("hybridnorm"))).unwrap();
    let llama_cpp = &reasons[2].reason;
    assert!(
        llama_cpp.contains("qwen3, differs in block.") && llama_cpp.contains("v_norm"),
        "{llama_cpp}"
    );
}

/// Writes models to the folder `EXPORT_MODELS`, each with the logits of a batch, for `bench/check_export.py`; with
/// `EXPORT_ALL=1` all named placements.
#[test]
fn gguf_files_are_verified_and_imported() {
    for (name, kind, allowed) in [
        ("llama", MatrixType::F32, 0.0),
        ("olmo2", MatrixType::F32, 0.0),
        ("qwen3", MatrixType::F16, 1e-2),
        ("llama", MatrixType::Q8_0, 0.2),
    ] {
        let model = huggingface::import(&fixture(&format!("hf/{name}")), Device::Cpu).unwrap();
        let values = model.values();
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let exported =
            export(model, &out, verified(Format::Gguf(kind)), Extras::default()).unwrap();
        assert_eq!(exported.files, ["README.md", "model.gguf"]);
        let difference = exported.verification.unwrap().logits_difference.unwrap();
        assert!(difference <= allowed, "{name} {kind:?}: {difference}");
        let back = interop::import(&out, Device::Cpu).unwrap().model;
        assert_eq!(back.values() == values, kind == MatrixType::F32);
    }
}

#[test]
fn models_without_an_architecture_of_llama_cpp_are_refused() {
    let config = tiny(named("hybridnorm"));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = Options::new(Format::Gguf(MatrixType::F32));
    let error = export(random_model(&config), &out, options, Extras::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no architecture of llama.cpp computes this model"),
        "{error}"
    );
    assert!(!out.exists());
}

#[test]
#[ignore = "run by bench/check_export.py"]
fn write_models() {
    let folder = std::env::var_os("EXPORT_MODELS").expect("EXPORT_MODELS");
    let folder = Path::new(&folder);
    let is_all = std::env::var_os("EXPORT_ALL").is_some();
    let some = [
        "hybridnorm",
        "hybridnorm-star",
        "ngpt",
        "siamese-norm",
        "gemma2",
        "swin-v2-res-post",
        "derf",
    ];
    let names = named_placements().iter().map(|named| named.name);
    let mut configs: Vec<(String, ModelConfig)> = Vec::new();
    for name in names.filter(|name| is_all || some.contains(name)) {
        for (kind, config) in model_variants(name) {
            configs.push((format!("{name}-{}", kind.replace(' ', "-")), config));
        }
    }
    let others = settings().into_iter();
    let stock = stock_settings().into_iter();
    let others = others.chain(stock.map(|(name, config, _)| (name, config)));
    configs.extend(others.map(|(name, config)| (format!("setting-{name}"), config)));
    let text = "Once upon a time there was a naïve café. The end.\n";
    let template =
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}";
    let tokenizer = Tokenizer::train_bpe(&[text; 3], 280, &mut quiet)
        .unwrap()
        .with_chat_template(Some(ChatTemplate::new(template)));
    for (name, config) in configs {
        let config = config.with_vocab_size(tokenizer.vocab_size());
        let extras = Extras {
            tokenizer: Some(&tokenizer),
            training: None,
        };
        export(
            random_model(&config),
            &folder.join(name),
            verified(Format::HuggingFace),
            extras,
        )
        .unwrap();
    }
    for (family, _) in FAMILIES {
        let model = huggingface::import(&fixture(&format!("hf/{family}")), Device::Cpu).unwrap();
        let out = folder.join(format!("family-{family}"));
        export(
            model,
            &out,
            verified(Format::HuggingFace),
            Extras::default(),
        )
        .unwrap();
    }
    let ids = |text: &str| tokenizer.encode(text).unwrap();
    let end = vec![tokenizer.eos_id()];
    let chat = [ids("user: The cat"), end.clone(), ids("\n")];
    let spelled = [ids("a cat"), end, ids(" the end")];
    let expected = serde_json::json!({
        "text": text, "ids": ids(text),
        "messages": [{ "role": "user", "content": "The cat" }], "chat": chat.concat(),
        "spelled": "a cat<|endoftext|> the end", "spelled_ids": spelled.concat(),
    });
    std::fs::write(folder.join("tokens.json"), expected.to_string()).unwrap();
}
