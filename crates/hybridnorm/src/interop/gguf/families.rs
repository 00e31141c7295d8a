//! Families of models in GGUF: their metadata as the `config.json`, and their tensors under the names, of the same
//! family in Hugging Face's format.
//!
//! Keys and names are those of `gguf-py/gguf/constants.py`, changes to tensors those of `convert_hf_to_gguf.py`
//! (llama.cpp).

use serde_json::{Map, Value as Json, json};

use super::gemma::{self, Gemma, Sizes};
use super::keys::Keys;
use super::reader::GgufFile;
use super::rope;
use crate::model::ModelConfig;

/// A family.
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) architecture: &'static str,
    /// `model_type` of the `config.json`.
    pub(super) model_type: &'static str,
    /// Tensors of a block: name below `blk.N`, and name below `model.layers.N`.
    tensors: &'static [(&'static str, &'static str)],
    /// True if rows of `q` and `k` are stored in the order of interleaved rotary pairs.
    has_interleaved_heads: bool,
    /// Keys of Gemma, whose gains are stored as `1 + g`.
    pub(super) gemma: Option<&'static Gemma>,
}

/// Tensors that the blocks of all families have.
const BLOCK: [(&str, &str); 7] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// Tensors outside the blocks.
const ENDS: [(&str, &str); 3] = [
    (EMBEDDING, "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    (HEAD, "lm_head.weight"),
];
const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// All families.
pub(super) const FAMILIES: [Family; 5] = [
    Family {
        architecture: "llama",
        model_type: "llama",
        tensors: &[
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ],
        has_interleaved_heads: true,
        gemma: None,
    },
    Family {
        architecture: "qwen3",
        model_type: "qwen3",
        tensors: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
            ("ffn_norm", "post_attention_layernorm"),
        ],
        has_interleaved_heads: false,
        gemma: None,
    },
    Family {
        architecture: "olmo2",
        model_type: "olmo2",
        tensors: &[
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
            ("post_attention_norm", "post_attention_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        has_interleaved_heads: false,
        gemma: None,
    },
    Family {
        architecture: "gemma2",
        model_type: "gemma2",
        tensors: GEMMA_NORMS.split_at(4).0,
        has_interleaved_heads: false,
        gemma: Some(&gemma::GEMMA2),
    },
    Family {
        architecture: "gemma3",
        model_type: "gemma3_text",
        tensors: &GEMMA_NORMS,
        has_interleaved_heads: false,
        gemma: Some(&gemma::GEMMA3),
    },
];

/// Norms of Gemma; the last two are those of Gemma 3.
const GEMMA_NORMS: [(&str, &str); 6] = [
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
];

/// Layout in which a file stores a tensor of Hugging Face's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    Unchanged,
    /// The rows of each of `heads` heads are in the order 0, d/2, 1, d/2 + 1, ….
    Interleaved {
        heads: usize,
    },
    /// One is added to every element.
    PlusOne,
}

/// Returns the architectures that can be read.
pub(super) fn architectures() -> Vec<&'static str> {
    FAMILIES.iter().map(|family| family.architecture).collect()
}

/// Returns the family of a file.
pub(super) fn family(file: &GgufFile) -> Result<&'static Family, String> {
    let mut keys = Keys::new(file.metadata(), "general");
    let kind = keys.text("type")?.unwrap_or("model");
    if kind != "model" {
        return Err(format!("general.type = {kind:?}, expected \"model\""));
    }
    let version = keys.integer("quantization_version")?.unwrap_or(2);
    if version != 2 {
        return Err(format!(
            "general.quantization_version = {version}, expected 2"
        ));
    }
    let parts = Keys::new(file.metadata(), "split").integer("count")?;
    if let Some(parts) = parts.filter(|parts| *parts > 1) {
        return Err(format!(
            "split.count = {parts}, expected a model in one file; join the parts with llama-gguf-split --merge"
        ));
    }
    let name = keys
        .text("architecture")?
        .ok_or("general.architecture is missing")?;
    let mut families = FAMILIES.iter();
    families
        .find(|family| family.architecture == name)
        .ok_or_else(|| {
            let known: Vec<String> = FAMILIES
                .iter()
                .map(|family| format!("{:?}", family.architecture))
                .collect();
            let name = crate::text::truncated_line(name, 40);
            format!(
                "general.architecture = {name:?}, expected one of {}",
                known.join(", ")
            )
        })
}

impl Family {
    /// Returns the `config.json` of this family for the metadata of a file. A key of the family that is not read is an
    /// error.
    pub(super) fn config(&self, file: &GgufFile) -> Result<Json, String> {
        let mut keys = Keys::new(file.metadata(), self.architecture);
        let width = keys.required_integer("embedding_length")?;
        let heads = keys.required_integer("attention.head_count")?;
        let kv_heads = keys.integer("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = head_dim(&mut keys, width, heads)?;
        let layers = keys.required_integer("block_count")?;
        let length = keys.required_integer("context_length")?;
        let eps = keys.required_number("attention.layer_norm_rms_epsilon")?;
        let mut config = Map::new();
        for (key, value) in [
            ("model_type", json!(self.model_type)),
            ("hidden_size", json!(width)),
            ("num_hidden_layers", json!(layers)),
            ("num_attention_heads", json!(heads)),
            ("num_key_value_heads", json!(kv_heads)),
            ("head_dim", json!(head_dim)),
            (
                "intermediate_size",
                json!(keys.required_integer("feed_forward_length")?),
            ),
            ("max_position_embeddings", json!(length)),
            ("rms_norm_eps", json!(eps)),
            ("vocab_size", json!(vocab_size(file, &mut keys)?)),
            ("tie_word_embeddings", json!(file.shape(HEAD).is_none())),
            (
                "rope_parameters",
                rope::parameters(file, &mut keys, head_dim)?,
            ),
        ] {
            config.insert(key.to_owned(), value);
        }
        let own = match self.gemma {
            None => {
                let window = keys.integer("attention.sliding_window")?;
                let window = window.filter(|window| *window > 0);
                vec![("sliding_window", json!(window))]
            }
            Some(gemma) => gemma.read(
                &mut keys,
                &Sizes {
                    width,
                    heads,
                    head_dim,
                    layers,
                },
            )?,
        };
        config.extend(own.into_iter().map(|(key, value)| (key.to_owned(), value)));
        Gemma::split_rope(&mut config);
        keys.reject_unread()?;
        Ok(Json::Object(config))
    }

    /// Returns the name of a tensor in Hugging Face's format, and how it is stored, given `[q, k]` heads; `None` for a tensor
    /// that the family does not have.
    pub(super) fn tensor(&self, name: &str, heads: [usize; 2]) -> Option<(String, Stored)> {
        if name == rope::FACTORS {
            return Some((rope::FREQUENCIES.to_owned(), Stored::Unchanged));
        }
        if let Some((_, theirs)) = ENDS.iter().find(|(ours, _)| *ours == name) {
            return Some(((*theirs).to_owned(), self.stored(name, heads)));
        }
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let part = rest.strip_suffix(".weight")?;
        // Other spellings of the number would be other names.
        let layer = layer
            .parse::<usize>()
            .ok()
            .filter(|n| n.to_string() == layer)?;
        let mut all = BLOCK.iter().chain(self.tensors);
        let (_, theirs) = all.find(|(ours, _)| *ours == part)?;
        let stored = self.stored(part, heads);
        Some((format!("model.layers.{layer}.{theirs}.weight"), stored))
    }

    /// Returns how a tensor is stored, given its name outside of blocks, or its part of a block.
    fn stored(&self, name: &str, heads: [usize; 2]) -> Stored {
        match name.strip_suffix(".weight").unwrap_or(name) {
            "attn_q" if self.has_interleaved_heads => Stored::Interleaved { heads: heads[0] },
            "attn_k" if self.has_interleaved_heads => Stored::Interleaved { heads: heads[1] },
            name if self.gemma.is_some() && name.ends_with("norm") => Stored::PlusOne,
            _ => Stored::Unchanged,
        }
    }

    /// Returns the name and the storage of a tensor of Hugging Face's format: the inverse of [`Family::tensor`].
    pub(super) fn written(&self, theirs: &str, heads: [usize; 2]) -> Option<(String, Stored)> {
        if let Some((ours, _)) = ENDS.iter().find(|(_, known)| *known == theirs) {
            return Some(((*ours).to_owned(), self.stored(ours, heads)));
        }
        let (layer, rest) = theirs.strip_prefix("model.layers.")?.split_once('.')?;
        let part = rest.strip_suffix(".weight")?;
        let (ours, _) = BLOCK
            .iter()
            .chain(self.tensors)
            .find(|(_, known)| *known == part)?;
        let name = format!("blk.{layer}.{ours}.weight");
        let (_, stored) = self.tensor(&name, heads)?;
        Some((name, stored))
    }

    /// Returns a limit of llama.cpp that a configuration of this family exceeds.
    pub(super) fn problem(&self, config: &ModelConfig) -> Option<String> {
        if let Some(gemma) = self.gemma {
            return gemma.problem(config);
        }
        if self.architecture != "olmo2" {
            return None;
        }
        if config.tie_embeddings {
            return Some("tie_embeddings is true, expected false".into());
        }
        config
            .head_dim
            .map(|dim| format!("head_dim is {dim}, expected d_model / n_heads"))
    }

    /// Returns the numbers of heads of q and of k.
    pub(super) fn heads(&self, file: &GgufFile) -> Result<[usize; 2], String> {
        let mut keys = Keys::new(file.metadata(), self.architecture);
        let heads = keys.required_integer("attention.head_count")?;
        Ok([
            heads,
            keys.integer("attention.head_count_kv")?.unwrap_or(heads),
        ])
    }
}

/// Returns the width of a head; that of values and that of rotary embedding must be equal to it.
fn head_dim(keys: &mut Keys, width: usize, heads: usize) -> Result<usize, String> {
    let [key, value, rotary] = [
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
    ];
    let found = keys.integer(key)?;
    let follows = width.checked_div(heads).unwrap_or_default();
    let dim = found.unwrap_or(follows);
    for other in [value, rotary] {
        let length = keys.integer(other)?.unwrap_or(dim);
        if length != dim {
            return Err(format!(
                "{} = {length}, expected {dim}, the width of a head",
                keys.name(other)
            ));
        }
    }
    Ok(dim)
}

/// Returns the number of rows of the embedding.
fn vocab_size(file: &GgufFile, keys: &mut Keys) -> Result<usize, String> {
    let shape = file
        .shape(EMBEDDING)
        .ok_or_else(|| format!("tensor {EMBEDDING} is missing"))?;
    let rows = shape.first().copied().unwrap_or_default();
    match keys.integer("vocab_size")? {
        Some(size) if size != rows => Err(format!(
            "{} = {size}, but {EMBEDDING} has {rows} rows",
            keys.name("vocab_size")
        )),
        _ => Ok(rows),
    }
}
