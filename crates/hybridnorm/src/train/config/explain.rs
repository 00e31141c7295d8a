//! Error messages for configurations that cannot be read: the problem, and the value or key expected instead.

use crate::error::Error;
use crate::parse_errors::plain_message;

/// Returns the error for a TOML text, with the line and the key at which parsing stopped.
pub(super) fn in_text(text: &str, path: &str, error: &toml::de::Error) -> Error {
    let place = error.span().and_then(|span| {
        let before = text.get(..span.start.min(text.len()))?;
        let line = before.matches('\n').count() + 1;
        // The text before the value in its line is its key, unless the key itself is wrong.
        let line_start = before.rsplit('\n').next().unwrap_or_default();
        let key = line_start.trim_end().strip_suffix('=').map(str::trim);
        let is_plain = |key: &&str| {
            let part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !key.is_empty() && key.chars().all(part)
        };
        Some(match key.filter(is_plain) {
            Some(key) => format!("line {line}: {key}: "),
            None => format!("line {line}: "),
        })
    });
    invalid(path, error, &place.unwrap_or_default())
}

/// Returns the error for the `section.key=value` settings, naming the invalid one if known.
pub(super) fn in_settings(
    invalid_setting: Option<&str>,
    path: &str,
    error: &toml::de::Error,
) -> Error {
    let place = match invalid_setting {
        Some(setting) => format!("setting {setting}: "),
        None => "settings: ".to_owned(),
    };
    invalid(path, error, &place)
}

/// Returns the error for a key that does not exist or a value that cannot be parsed; its message begins with `place`.
fn invalid(path: &str, error: &toml::de::Error, place: &str) -> Error {
    let problem = format!("{place}{}", explain(error.message(), path));
    let unknown = error.message().strip_prefix("unknown field `");
    match unknown.and_then(|rest| rest.split('`').next()) {
        // The path of an unknown key ends with the key, if it is known at all.
        Some(key) if path.is_empty() => Error::unknown_key(key, problem),
        Some(_) => Error::unknown_key(path, problem),
        None => Error::invalid_value(path, problem),
    }
}

/// Examples of valid values, for keys that are often given in other forms.
const EXAMPLES: [(&str, &str); 35] = [
    (
        "model",
        "[model], with d_model, n_layers, n_heads and d_ff below it",
    ),
    ("model.activation", "activation = \"swiglu\""),
    (
        "model.moe",
        "moe = { n_experts = 8, top_k = 2, d_expert = 256 }",
    ),
    (
        "model.mla",
        "mla = { kv_rank = 64, nope_dim = 32, rope_dim = 16, v_dim = 32 }",
    ),
    ("model.head_dim", "head_dim = 64"),
    ("model.rope_theta", "rope_theta = 10000.0"),
    (
        "model.rope_scaling",
        "rope_scaling = { kind = \"linear\", factor = 4.0 }",
    ),
    ("model.rope_dim", "rope_dim = 4"),
    (
        "model.position_embedding",
        "position_embedding = \"learned\"",
    ),
    ("model.bias", "bias = { qkv = true }"),
    (
        "model.attention_overrides",
        "attention_overrides = [{ layers = { last = 1 }, window = 64 }]",
    ),
    ("model.tie_embeddings", "tie_embeddings = true"),
    ("init", "init = { from = \"runs/first\" }"),
    ("init.from", "from = \"runs/first\""),
    (
        "data",
        "data = { train = [\"text.txt\"], tokenizer = \"r50k\" }",
    ),
    ("data.train", "train = [\"text.txt\"]"),
    ("data.validation", "validation = [\"held-out.txt\"]"),
    ("data.tokenizer", "tokenizer = \"r50k\""),
    ("data.text", "text = { text_field = \"content\" }"),
    ("data.text.include", "include = [\"*.md\"]"),
    ("data.text.exclude", "exclude = [\"*.md\"]"),
    ("optimizer", "optimizer = { lr = 1e-3 }"),
    ("optimizer.betas", "betas = [0.9, 0.95]"),
    ("optimizer.clip_grad_norm", "clip_grad_norm = 1.0"),
    ("optimizer.weight_decay", "weight_decay = 0.1"),
    (
        "schedule",
        "schedule = { kind = \"cosine\", warmup_steps = 100 }",
    ),
    (
        "train",
        "train = { steps = 1000, batch_size = 16, seq_len = 256 }",
    ),
    ("train.recompute", "recompute = \"none\""),
    ("train.precision", "precision = \"bf16\""),
    ("train.steps", "steps = 1000"),
    ("train.batch_size", "batch_size = 16"),
    ("train.seq_len", "seq_len = 256"),
    ("optimizer.lr", "lr = 1e-3"),
    ("log", "log = { layers_every = 10 }"),
    ("log.tensorboard", "tensorboard = true"),
];

/// Names that other programs use for keys and values, and the names used here.
const KNOWN_ALIASES: [(&[&str], &str); 14] = [
    (&["silu", "swish"], "swiglu"),
    (
        &[
            "n_layer",
            "num_layers",
            "num_hidden_layers",
            "layers",
            "depth",
        ],
        "n_layers",
    ),
    (
        &["hidden_size", "n_embd", "dim", "d", "width", "embed_dim"],
        "d_model",
    ),
    (
        &["n_head", "num_heads", "heads", "num_attention_heads"],
        "n_heads",
    ),
    (
        &["n_kv_head", "num_kv_heads", "num_key_value_heads"],
        "n_kv_heads",
    ),
    (&["d_head", "head_size", "head_width"], "head_dim"),
    (
        &[
            "intermediate_size",
            "ffn_dim",
            "hidden_dim",
            "mlp_hidden_size",
        ],
        "d_ff",
    ),
    (
        &[
            "max_position_embeddings",
            "context_length",
            "max_sequence_length",
        ],
        "max_seq_len",
    ),
    (&["block_size", "sequence_length", "context"], "seq_len"),
    (&["learning_rate", "max_lr"], "lr"),
    (&["bs", "batch", "global_batch_size"], "batch_size"),
    (
        &["gradient_accumulation_steps", "accumulation"],
        "grad_accum_steps",
    ),
    (
        &["max_steps", "iterations", "num_steps", "max_iters"],
        "steps",
    ),
    (&["tie_word_embeddings", "weight_tying"], "tie_embeddings"),
];

/// Returns a hint for a key of other programs that has no direct counterpart.
fn hint_for(key: &str) -> Option<&'static str> {
    Some(match key {
        "q_norm" | "k_norm" | "qk_norm" | "v_norm" => {
            "norms inside attention are part of the placement: placement = { base = \"pre-norm\", block = \
             { attn_inner = { q_norm = \"per_head\", k_norm = \"per_head\" } } }"
        }
        "norm_type" | "norm_kind" | "layer_norm_type" => {
            "the norm function is set with norm = { kind = \"rmsnorm\" }"
        }
        "norm_placement" | "prenorm" | "pre_norm" | "post_norm" | "norm_position" => {
            "where to normalize is set with placement = \"pre-norm\""
        }
        "dtype" | "precision" => "mixed precision is train.precision = \"bf16\"",
        "dropout" => "dropout is not supported; remove the key",
        "study" => {
            "a file with a [study] section describes a study; run it with `hybridnorm study`"
        }
        _ => return None,
    })
}

/// Rewrites serde's "unknown field `x`, expected one of `a`, `b`" as one line that names the nearest known key,
/// and adds a valid example for a value of the wrong type at `path`.
fn explain(message: &str, path: &str) -> String {
    let message = message.trim().replace('\n', " ");
    if path == "model" && message.starts_with("missing field") {
        return format!(
            "{message}; [model] must describe the complete model; without [model] the model of the checkpoint in [init] \
             from is used"
        );
    }
    let plain = plain_message(&message);
    if plain != message {
        let example = EXAMPLES.iter().find(|(key, _)| *key == path);
        return match example {
            Some((_, example)) => format!("{plain}, as in {example}"),
            None => plain.into_owned(),
        };
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let is_key = message.starts_with("unknown field");
    if !is_key && !message.starts_with("unknown variant") {
        return message;
    }
    let Some(found) = quoted.next() else {
        return message;
    };
    let known: Vec<&str> = quoted.collect();
    let message = message.replacen("unknown variant", "unknown value", 1);
    if let Some(hint) = hint_for(found).filter(|_| is_key) {
        return format!("{message}; {hint}");
    }
    let alias = KNOWN_ALIASES
        .iter()
        .find(|(others, name)| others.contains(&found) && known.contains(name))
        .map(|(_, name)| *name);
    let nearest = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(found, known), *known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().max(3) / 2)
        .map(|(_, known)| known);
    match alias.or(nearest) {
        Some(known) => format!("{message}; did you mean `{known}`?"),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::EXAMPLES;

    #[test]
    fn every_example_parses() {
        let model = "[model]\nd_model = 16\nn_layers = 1\nn_heads = 2\n";
        let dense = format!("{model}d_ff = 32\n");
        for (key, example) in EXAMPLES {
            if key == "model" {
                continue;
            }
            let section = key.rsplit_once('.').map_or("", |(section, _)| section);
            let dot = if section.is_empty() { "" } else { "." };
            let setting = format!("{section}{dot}{example}");
            let text = if key == "model.moe" { model } else { &dense };
            Config::parse(text, &[setting]).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }
}
