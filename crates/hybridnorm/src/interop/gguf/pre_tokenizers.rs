//! Normalizers and pre-tokenizers by their names in `tokenizer.ggml.pre`.
//!
//! Patterns are those of the models' `tokenizer.json`, which llama.cpp's `llm_tokenizer_bpe` reproduces.

use serde_json::{Value, json};

/// Splits text into words, before each is encoded by BPE.
pub(in crate::interop) struct PreTokenizer {
    /// Names in `tokenizer.ggml.pre`; the first is written.
    pub(super) names: &'static [&'static str],
    /// Patterns, applied one after the other to the parts that the earlier ones leave.
    patterns: &'static [&'static str],
    /// True if text is first normalized to composed characters (NFC).
    is_composed: bool,
    /// True if a word of the vocabulary is a token even if no merges produce it.
    pub(super) ignores_merges: bool,
    /// True if llama.cpp adds the start token where a file does not say whether to (`tokenizer.ggml.add_bos_token`).
    pub(super) adds_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Name for files without `tokenizer.ggml.pre`.
pub(super) const DEFAULT: &str = "default";

/// All known pre-tokenizers.
pub(super) const PRE_TOKENIZERS: [PreTokenizer; 7] = [
    PreTokenizer {
        names: &["gpt-2", "phi-2", "mpt", "olmo"],
        patterns: &[GPT2],
        is_composed: false,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        patterns: &[DIGIT, GPT2],
        is_composed: false,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[LLAMA3],
        is_composed: false,
        ignores_merges: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe"],
        patterns: &[LLAMA3],
        is_composed: false,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        patterns: &[QWEN2],
        is_composed: true,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["tekken"],
        patterns: &[TEKKEN],
        is_composed: false,
        ignores_merges: true,
        adds_bos: true,
    },
    // llama.cpp's fallback for files without a name.
    PreTokenizer {
        names: &[DEFAULT],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        is_composed: false,
        ignores_merges: false,
        adds_bos: false,
    },
];

impl PreTokenizer {
    /// Returns the pre-tokenizer of a name.
    pub(super) fn by_name(name: &str) -> Result<&'static Self, String> {
        let mut all = PRE_TOKENIZERS.iter();
        all.find(|known| known.names.contains(&name))
            .ok_or_else(|| {
                let known = PRE_TOKENIZERS.iter().flat_map(|known| known.names);
                let known: Vec<String> = known.map(|name| format!("{name:?}")).collect();
                let name = crate::text::truncated_line(name, 40);
                format!(
                    "tokenizer.ggml.pre = {name:?}, expected one of {}",
                    known.join(", ")
                )
            })
    }

    /// Returns the `normalizer` of a `tokenizer.json`.
    pub(super) fn normalizer(&self) -> Value {
        match self.is_composed {
            true => json!({"type": "NFC"}),
            false => Value::Null,
        }
    }

    /// Returns the `pre_tokenizer` of a `tokenizer.json`.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let split = |pattern: &&str| match *pattern {
            DIGIT => json!({"type": "Digits", "individual_digits": true}),
            pattern => json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false,
            }),
        };
        // The pre-tokenizer that maps bytes to characters also has GPT-2's pattern.
        let (patterns, has_own) = match self.patterns {
            [patterns @ .., GPT2] => (patterns, true),
            patterns => (patterns, false),
        };
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": has_own,
        });
        let mut steps: Vec<Value> = patterns.iter().map(split).chain([byte_level]).collect();
        match steps.len() {
            1 => steps.remove(0),
            _ => json!({"type": "Sequence", "pretokenizers": steps}),
        }
    }

    /// True if a `tokenizer.json` with this normalizer and pre-tokenizer splits text in the same way.
    pub(super) fn matches(&self, normalizer: &Value, pre_tokenizer: &Value) -> bool {
        let is_equal = |patterns: Vec<&str>| patterns == self.patterns;
        *normalizer == self.normalizer() && patterns(pre_tokenizer).is_some_and(is_equal)
    }
}

/// Returns the patterns by which a byte-level pre-tokenizer splits text; `None` if it does anything else.
fn patterns(pre_tokenizer: &Value) -> Option<Vec<&str>> {
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(pre_tokenizer),
    };
    let (last, splits) = steps.split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] != false {
        return None;
    }
    let pattern = |split: &'_ Value| match split["type"].as_str()? {
        "Digits" => (split["individual_digits"] == true).then_some(DIGIT),
        _ => None,
    };
    let mut found = Vec::new();
    for split in splits {
        let is_plain = split["behavior"] == "Isolated" && split["invert"] != true;
        found.push(match split["pattern"]["Regex"].as_str() {
            Some(pattern) if is_plain => pattern,
            _ => pattern(split)?,
        });
    }
    if last["use_regex"] != false {
        found.push(GPT2);
    }
    Some(found)
}
