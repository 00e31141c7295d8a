//! For any text or bytes, readers return a value or an error.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use hybridnorm::Device;
use hybridnorm::data::Tokenizer;
use hybridnorm::interop;
use hybridnorm::model::Model;
use hybridnorm::tasks::{TaskFile, read_task};
use hybridnorm::train::checkpoint::{self, Contents};
use hybridnorm::train::metrics::Metrics;
use hybridnorm::train::records::{self, RecordFile};
use hybridnorm::train::{Checkpoint, Config};
use proptest::prelude::*;

const TEXT: &str = r#"
seed = 3
[model]
d_model = 16
n_layers = 2
n_heads = 2
d_ff = 32
vocab_size = 257
placement = { base = "pre-norm", norm = { eps = 1e-6 } }
[data]
train = ["stories:60"]
[optimizer]
betas = [0.9, 0.95]
[schedule]
kind = "wsd"
warmup_tokens = 64
[train]
steps = 20
"#;

/// Returns the files of a checkpoint, written once.
fn checkpoint_files() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let config = Config::parse(TEXT, &[]).unwrap().model_config().unwrap();
        let model = Model::new(&config, 1, Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        checkpoint::save(
            &path,
            Contents::model_only(&model, Some(&Tokenizer::bytes())),
        )
        .unwrap();
        ["manifest.json", "config.json", "model.safetensors"]
            .map(|name| (name.to_owned(), fs::read(path.join(name)).unwrap()))
            .into()
    })
}

/// Writes a checkpoint with one file replaced, and a manifest with matching checksums.
fn write_with_valid_manifest(folder: &Path, name: &str, bytes: &[u8]) {
    let mut files = serde_json::Map::new();
    for (file, content) in checkpoint_files() {
        let content = if file == name { bytes } else { content };
        fs::write(folder.join(file), content).unwrap();
        if file != "manifest.json" {
            files.insert(
                file.clone(),
                serde_json::json!({
                    "bytes": content.len(),
                    "sha256": hybridnorm::files::sha256(content),
                }),
            );
        }
    }
    if name != "manifest.json" {
        let manifest = serde_json::json!({"format_version": 1, "files": files});
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    }
}

fn open(folder: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(folder) {
        let _ = checkpoint.config();
        let _ = checkpoint.tokenizer();
        let _ = checkpoint.model(Device::Cpu);
        let _ = checkpoint.state::<serde_json::Value>();
        let _ = checkpoint.moments();
    }
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|x| x.to_string()),
        any::<f64>().prop_map(|x| format!("{x:?}")),
        "[a-z-]{0,12}".prop_map(|x| x),
        "\\PC{0,20}".prop_map(|x| x),
        Just("{}".into()),
        Just("[]".into()),
        Just("[[1, 2], {a = 1}]".into()),
        Just("{ base = 'hybridnorm', x = [1979-05-27] }".into()),
        Just("nan".into()),
        Just("true".into()),
    ]
}

fn any_key() -> impl Strategy<Value = String> {
    const KEYS: [&str; 30] = [
        "seed",
        "model",
        "model.d_model",
        "model.n_layers",
        "model.n_heads",
        "model.n_kv_heads",
        "model.d_ff",
        "model.vocab_size",
        "model.max_seq_len",
        "model.rope_theta",
        "model.placement",
        "model.norm",
        "model.init",
        "model.placement.norm.eps",
        "model.placement.layers",
        "data.train",
        "data.order",
        "data.tokenizer",
        "init.from",
        "optimizer.lr",
        "optimizer.betas",
        "schedule.kind",
        "schedule.warmup_steps",
        "schedule.warmup_tokens",
        "schedule.min_lr_ratio",
        "train.steps",
        "train.batch_size",
        "train.seq_len",
        "train.grad_accum_steps",
        "train.eval_every",
    ];
    prop_oneof![
        prop::sample::select(&KEYS[..]).prop_map(str::to_owned),
        "\\PC{0,15}".prop_map(|x| x),
    ]
}

/// Two requests of one document, and a document with its choices.
const REQUESTS: &str = r#"{"doc": {"id": 7}, "doc_id": 0, "idx": 0, "label": 1, "request": {"context": "Q:", "continuation": " a"}}
{"doc": {"id": 7}, "doc_id": 0, "idx": 1, "label": 1, "request": {"context": "Q:", "continuation": " b"}}
"#;
const DOCUMENTS: &str = r#"{"query": "Q:", "choices": ["a", "b"], "gold": 1, "unconditional_context": "A:"}
{"sentence_good": "he runs", "sentence_bad": "he run"}
"#;

/// Reads a task of one file; an error must be one line.
fn read_lines(bytes: &[u8], config: Option<Vec<u8>>) -> Result<(), TestCaseError> {
    let file = TaskFile {
        name: "task".to_owned(),
        path: "task.jsonl".to_owned(),
        lines: Box::new(bytes),
        config,
    };
    match read_task(file, None) {
        Ok(task) => {
            for document in &task.documents {
                prop_assert!(
                    document
                        .gold
                        .iter()
                        .all(|&gold| gold < document.choices.len())
                );
                prop_assert!(
                    document
                        .choices
                        .iter()
                        .all(|choice| !choice.continuation.is_empty())
                );
            }
        }
        Err(error) => prop_assert_eq!(error.to_string().lines().count(), 1, "{}", error),
    }
    Ok(())
}

proptest! {
    #[test]
    fn random_bytes_as_a_task_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200), config in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        read_lines(&bytes, Some(config))?;
    }

    #[test]
    fn corrupted_tasks_are_read_or_rejected(
        of_documents in any::<bool>(), at in any::<prop::sample::Index>(), len in 0..20_usize,
        new in "[\\PC\n]{0,10}",
    ) {
        let text = if of_documents { DOCUMENTS } else { REQUESTS };
        let start = at.index(text.len());
        let end = (start + len).min(text.len());
        read_lines(format!("{}{new}{}", &text[..start], &text[end..]).as_bytes(), None)?;
    }

    #[test]
    fn arbitrary_text_parses_or_errors(text in "\\PC{0,200}") {
        let _ = Config::parse(&text, &[]);
    }

    #[test]
    fn arbitrary_settings_are_accepted_or_rejected(
        settings in prop::collection::vec((any_key(), any_value()).prop_map(|(k, v)| format!("{k}={v}")), 1..4),
        raw in "\\PC{0,20}",
    ) {
        if let Ok(config) = Config::parse(TEXT, &settings) {
            // An accepted configuration survives a round trip.
            let text = config.to_toml();
            prop_assert_eq!(Config::parse(&text, &[]).map_err(|e| e.to_string()), Ok(config));
        }
        let _ = Config::parse(TEXT, &[raw]);
    }

    #[test]
    fn corrupted_configuration_parses_or_errors(
        at in any::<prop::sample::Index>(), len in 0..20_usize, new in "[\\PC\n]{0,10}",
    ) {
        let start = at.index(TEXT.len());
        let end = (start + len).min(TEXT.len());
        let text = format!("{}{new}{}", &TEXT[..start], &TEXT[end..]);
        if let Err(error) = Config::parse(&text, &[]) {
            prop_assert_eq!(error.to_string().lines().count(), 1, "{}", error);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_as_checkpoint_never_panic(
        file in 0..3_usize, bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let folder = tempfile::tempdir().unwrap();
        write_with_valid_manifest(folder.path(), &checkpoint_files()[file].0, &bytes);
        open(folder.path());
    }

    #[test]
    fn corrupted_checkpoint_loads_or_errors(
        file in 0..3_usize, at in any::<prop::sample::Index>(), bit in 0..8_u8,
        digit in any::<prop::sample::Index>(),
    ) {
        let (name, bytes) = &checkpoint_files()[file];
        let mut flipped = bytes.clone();
        // The weights file ends with numbers, all of which are valid.
        let at = at.index(flipped.len().min(2000));
        flipped[at] ^= 1 << bit;
        let folder = tempfile::tempdir().unwrap();
        write_with_valid_manifest(folder.path(), name, &flipped);
        open(folder.path());
        // Numbers with many more digits.
        if name.ends_with(".json") {
            let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
            let at = digits[digit.index(digits.len())];
            let grown = [&bytes[..at], b"99999999", &bytes[at..]].concat();
            write_with_valid_manifest(folder.path(), name, &grown);
            open(folder.path());
        }
    }

    #[test]
    fn random_metrics_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metrics.jsonl"), bytes).unwrap();
        let _ = records::read::<Metrics>(folder.path());
        let _ = RecordFile::<Metrics>::open(folder.path(), 3);
    }

    #[test]
    fn corrupted_tokenizer_loads_or_errors(
        at in any::<prop::sample::Index>(), bit in 0..8_u8,
    ) {
        static JSON: OnceLock<Vec<u8>> = OnceLock::new();
        let json = JSON.get_or_init(|| {
            let text = "the cat and the dog and the bird ".repeat(20);
            Tokenizer::train_bpe(&[&text], 270, &mut hybridnorm::data::quiet).unwrap().to_json()
        });
        let mut json = json.clone();
        let at = at.index(json.len());
        json[at] ^= 1 << bit;
        if let Ok(tokenizer) = Tokenizer::from_json(json, None)
            && let Ok(ids) = tokenizer.encode("the cat \u{e9}\n")
        {
            let _ = tokenizer.decode(&ids);
        }
    }
}

/// Reads model and tokenizer of a GGUF file with these bytes.
fn read_gguf(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    fs::write(&path, bytes).unwrap();
    if let Err(error) = interop::import(&path, Device::Cpu) {
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
    match interop::tokenizer(&path) {
        Ok(Some(found)) => drop(found.tokenizer.encode("the cat \u{e9}\n")),
        Ok(None) => {}
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_as_gguf_never_panic(version in 0..5_u32, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_gguf(&[&b"GGUF"[..], &version.to_le_bytes(), &bytes].concat());
    }

    #[test]
    fn corrupted_gguf_is_read_or_rejected(
        file in 0..3_usize, at in any::<prop::sample::Index>(), bit in 0..8_u8, length in any::<prop::sample::Index>(),
        is_truncated in any::<bool>(),
    ) {
        let name = ["llama", "mixed", "pieces"][file];
        let path = Path::new("tests/fixtures/gguf").join(format!("{name}.gguf"));
        let mut bytes = fs::read(path).unwrap();
        // Data of tensors, at the end, may have any values.
        let at = at.index(bytes.len().min(12_000));
        bytes[at] ^= 1 << bit;
        if is_truncated {
            bytes.truncate(length.index(bytes.len()));
        }
        read_gguf(&bytes);
    }
}
