//! Checkpoints of the official HybridNorm code (a fork of OLMo): `config.yaml` beside
//! `model.safetensors` or `model.pt`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use burn_store::pytorch_reader::DType;
use safetensors::Dtype;
use serde::Deserialize;

use super::experts::{self, Layout};
use super::python_dict;
use crate::error::{Error, Result};
use crate::files;
use crate::model::{
    Decoder, FfnActivation, ModelConfig, MoeConfig, MoeScoring,
    params::{self, Values},
};
use crate::placement::{
    Block, HeadNorm, Init, InitScheme, NormKind, NormSpec, Override, Placement, Scale, Selector,
    Skip, StdRule,
};
use crate::tensors;

const CONFIG_LIMIT: u64 = 4 << 20;

/// Reads an official checkpoint.
///
/// # Errors
/// If a file is missing or broken, the configuration asks for something this model does not have,
/// or the weights are not those of the configuration.
pub fn import(folder: &Path, device: &Device) -> Result<Decoder> {
    let config_path = folder.join("config.yaml");
    let config = read_config(&config_path)?;
    let (path, tensors) = read_tensors(folder)?;
    let values =
        translate_all(tensors, &config).map_err(|error| Error::format(&path, error.to_string()))?;
    let model = Decoder::uninitialized(&config, device)?;
    params::load(model, values).map_err(|error| Error::format(path, error.to_string()))
}

/// Reads the `model:` section of an official `config.yaml`.
///
/// # Errors
/// If it is no such file, or asks for something this model does not have.
pub fn read_config(path: &Path) -> Result<ModelConfig> {
    let bytes = files::read_small(path, CONFIG_LIMIT)?;
    let file: ConfigFile = serde_yaml_ng::from_slice(&bytes)
        .map_err(|error| Error::format(path, error.to_string()))?;
    let config = file
        .model
        .to_config()
        .map_err(|problem| Error::format(path, format!("model.{problem}")))?;
    config
        .resolve()
        .map_err(|error| Error::format(path, error.to_string()))?;
    Ok(config)
}

#[derive(Deserialize)]
struct ConfigFile {
    model: Official,
}

/// The keys of the official `model:` section that decide the computation. Others (dropout of zero,
/// attention implementation, initialization cut-off) do not.
#[derive(Deserialize)]
struct Official {
    d_model: usize,
    n_heads: usize,
    n_layers: usize,
    n_kv_heads: Option<usize>,
    #[serde(default)]
    multi_query_attention: Option<bool>,
    mlp_hidden_size: Option<usize>,
    #[serde(default = "four")]
    mlp_ratio: usize,
    #[serde(default = "swiglu")]
    activation_type: String,
    #[serde(default = "sequential")]
    block_type: String,
    #[serde(default)]
    alibi: bool,
    #[serde(default)]
    rope: bool,
    #[serde(default = "theta")]
    rope_theta: f64,
    #[serde(default)]
    attention_dropout: f64,
    #[serde(default)]
    residual_dropout: f64,
    #[serde(default)]
    embedding_dropout: f64,
    #[serde(default)]
    include_bias: bool,
    bias_for_layer_norm: Option<bool>,
    #[serde(default = "layer_norm")]
    layer_norm_type: String,
    #[serde(default = "yes")]
    layer_norm_with_affine: bool,
    #[serde(default = "eps")]
    layer_norm_eps: f64,
    #[serde(default)]
    attention_layer_norm: bool,
    #[serde(default = "yes")]
    attention_layer_norm_with_affine: bool,
    clip_qkv: Option<f64>,
    #[serde(default)]
    scale_logits: bool,
    #[serde(default)]
    embedding_layer_norm: bool,
    #[serde(default)]
    scale_emb_init: bool,
    #[serde(default = "yes")]
    weight_tying: bool,
    max_sequence_length: usize,
    vocab_size: usize,
    embedding_size: Option<usize>,
    #[serde(default)]
    init_fn: String,
    #[serde(default = "init_std")]
    init_std: f64,
    #[serde(default)]
    attn_norm: bool,
    #[serde(default)]
    ffn_norm: bool,
    #[serde(default)]
    attn_residual_after_norm: bool,
    #[serde(default)]
    ffn_residual_after_norm: bool,
    #[serde(default)]
    use_query_norm: bool,
    #[serde(default)]
    use_key_norm: bool,
    #[serde(default)]
    use_value_norm: bool,
    #[serde(default)]
    use_context_norm: bool,
    #[serde(default)]
    norm_pos_special_config: Option<String>,
    #[serde(default)]
    norm_after: bool,
    #[serde(default)]
    moe_num_experts: Option<usize>,
    #[serde(default = "two")]
    moe_top_k: usize,
    moe_expert_hidden_size: Option<usize>,
    #[serde(default = "yes")]
    moe_dropless: bool,
    #[serde(default)]
    moe_shared_expert: bool,
    #[serde(default)]
    moe_interleave: bool,
    #[serde(default)]
    moe_normalize_expert_weights: Option<f64>,
    #[serde(default = "loss_weight")]
    moe_loss_weight: f64,
    #[serde(default)]
    moe_zloss_weight: Option<f64>,
}

fn four() -> usize {
    4
}
fn two() -> usize {
    2
}
fn loss_weight() -> f64 {
    0.1
}
fn yes() -> bool {
    true
}
fn eps() -> f64 {
    1e-5
}
fn theta() -> f64 {
    10_000.0
}
fn init_std() -> f64 {
    0.02
}
fn swiglu() -> String {
    "swiglu".into()
}
fn sequential() -> String {
    "sequential".into()
}
fn layer_norm() -> String {
    "default".into()
}

impl Official {
    fn to_config(&self) -> Result<ModelConfig, String> {
        self.refuse_what_is_not_there()?;
        let (activation, fused) = match self.activation_type.as_str() {
            "swiglu" => (FfnActivation::Swiglu, 2),
            other => return Err(format!("activation_type {other:?}, expected \"swiglu\"")),
        };
        let hidden = match self.mlp_hidden_size {
            Some(size) => size,
            None => self
                .mlp_ratio
                .checked_mul(self.d_model)
                .ok_or_else(|| format!("mlp_ratio {} is too large", self.mlp_ratio))?,
        };
        if !hidden.is_multiple_of(fused) {
            return Err(format!("mlp_hidden_size {hidden} is odd"));
        }
        let moe = self.moe(hidden / fused)?;
        let n_kv_heads = match (self.n_kv_heads, self.multi_query_attention) {
            (Some(heads), _) => heads,
            (None, Some(true)) => 1,
            (None, _) => self.n_heads,
        };
        Ok(ModelConfig {
            d_model: self.d_model,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads,
            d_ff: if moe.is_some() { 0 } else { hidden / fused },
            vocab_size: self.embedding_size.unwrap_or(self.vocab_size),
            max_seq_len: self.max_sequence_length,
            rope_theta: self.rope_theta,
            tie_embeddings: self.weight_tying,
            activation,
            moe,
            mla: None,
            placement: self.placement()?,
        })
    }

    fn refuse_what_is_not_there(&self) -> Result<(), String> {
        let unsupported = [
            ("alibi", self.alibi),
            ("include_bias", self.include_bias),
            ("scale_logits", self.scale_logits),
            ("embedding_layer_norm", self.embedding_layer_norm),
            ("scale_emb_init", self.scale_emb_init),
            // Of the OLMo the official code branched off from.
            ("norm_after", self.norm_after),
            ("moe_shared_expert", self.moe_shared_expert),
            ("moe_interleave", self.moe_interleave),
            ("attention_dropout", self.attention_dropout != 0.0),
            ("residual_dropout", self.residual_dropout != 0.0),
            ("embedding_dropout", self.embedding_dropout != 0.0),
        ];
        if let Some((key, _)) = unsupported.iter().find(|(_, set)| *set) {
            return Err(format!("{key} is set, which is not supported"));
        }
        if !self.rope {
            return Err("rope is off, expected on".into());
        }
        match self.block_type.as_str() {
            "sequential" | "moe" => Ok(()),
            other => Err(format!(
                "block_type {other:?}, expected \"sequential\" or \"moe\""
            )),
        }
    }

    /// The experts, of inner width `hidden` unless something else is said.
    fn moe(&self, hidden: usize) -> Result<Option<MoeConfig>, String> {
        if self.block_type != "moe" {
            return Ok(None);
        }
        if !self.moe_dropless {
            return Err("moe_dropless is off, expected on".into());
        }
        let renormalize = match self.moe_normalize_expert_weights {
            None => false,
            Some(1.0) => true,
            Some(norm) => {
                return Err(format!(
                    "moe_normalize_expert_weights {norm}, expected 1 or none"
                ));
            }
        };
        Ok(Some(MoeConfig {
            n_experts: self
                .moe_num_experts
                .ok_or("moe_num_experts is missing beside block_type \"moe\"")?,
            top_k: self.moe_top_k,
            d_expert: self.moe_expert_hidden_size.unwrap_or(hidden),
            n_shared: 0,
            first_dense: 0,
            scoring: MoeScoring::Softmax,
            renormalize,
            n_groups: 1,
            top_groups: 1,
            scaling: 1.0,
            load_balance: self.moe_loss_weight,
            z_loss: self.moe_zloss_weight.unwrap_or(0.0),
            bias_rate: None,
        }))
    }

    fn placement(&self) -> Result<Placement, String> {
        let kind = match self.layer_norm_type.as_str() {
            "default" => NormKind::Layernorm,
            "rms" => NormKind::Rmsnorm,
            other => {
                return Err(format!(
                    "layer_norm_type {other:?}, expected rms or default"
                ));
            }
        };
        let gain = match self.layer_norm_with_affine {
            true => crate::placement::Gain::Plain,
            false => crate::placement::Gain::None,
        };
        let scheme = match self.init_fn.as_str() {
            "full_megatron" => InitScheme::Megatron,
            "mitchell" => InitScheme::DepthScaled,
            _ => InitScheme::Normal,
        };
        let special = self.norm_pos_special_config.as_deref().unwrap_or_default();
        let special = python_dict::parse(special)
            .map_err(|problem| format!("norm_pos_special_config: {problem}"))?;
        let base = Flags {
            attn_norm: self.attn_norm,
            attn_residual: self.attn_residual_after_norm,
            ffn_norm: self.ffn_norm,
            ffn_residual: self.ffn_residual_after_norm,
        };
        let mut block: Block<Scale> = Block::default();
        base.write(&mut block);
        block.attn_inner.clip_qkv = self.clip_qkv;
        let head = |wanted: bool| match (wanted, self.attention_layer_norm) {
            (true, _) => HeadNorm::PerHead,
            (false, true) => HeadNorm::Full,
            (false, false) => HeadNorm::None,
        };
        let plain = |norm: HeadNorm| match (norm, self.attention_layer_norm_with_affine) {
            (HeadNorm::PerHead, false) => HeadNorm::PerHeadPlain,
            (HeadNorm::Full, false) => HeadNorm::FullPlain,
            (norm, _) => norm,
        };
        let only = |wanted: bool| match wanted {
            true => HeadNorm::PerHead,
            false => HeadNorm::None,
        };
        block.attn_inner.q_norm = plain(head(self.use_query_norm));
        block.attn_inner.k_norm = plain(head(self.use_key_norm));
        block.attn_inner.v_norm = plain(only(self.use_value_norm));
        block.attn_inner.ctx_norm = plain(only(self.use_context_norm));
        let overrides = special
            .into_iter()
            .map(|(layers, flags)| base.patched(&flags).map(|flags| flags.as_override(layers)))
            .collect::<Result<_, _>>()?;
        Ok(Placement {
            block,
            overrides,
            norm: NormSpec {
                kind,
                eps: self.layer_norm_eps,
                gain,
                bias: self.bias_for_layer_norm.unwrap_or(self.include_bias),
                alpha_init: None,
            },
            init: Init {
                scheme,
                std: StdRule::Const(self.init_std),
                ..Init::default()
            },
            ..Placement::default()
        })
    }
}

/// The official per-layer switches.
#[derive(Clone, Copy)]
struct Flags {
    attn_norm: bool,
    attn_residual: bool,
    ffn_norm: bool,
    ffn_residual: bool,
}

impl Flags {
    fn patched(mut self, patch: &BTreeMap<String, bool>) -> Result<Self, String> {
        for (name, &value) in patch {
            let slot = match name.as_str() {
                "attn_norm" => &mut self.attn_norm,
                "attn_residual" => &mut self.attn_residual,
                "ffn_norm" => &mut self.ffn_norm,
                "ffn_residual" => &mut self.ffn_residual,
                _ => {
                    return Err(format!(
                        "norm_pos_special_config: unknown flag {name:?}, expected attn_norm, \
                         attn_residual, ffn_norm or ffn_residual"
                    ));
                }
            };
            *slot = value;
        }
        Ok(self)
    }

    fn skips(self) -> [Skip; 2] {
        // A residual "after the norm" where there is no norm is the plain residual.
        [
            self.attn_norm && self.attn_residual,
            self.ffn_norm && self.ffn_residual,
        ]
        .map(|normed| if normed { Skip::Normed } else { Skip::Raw })
    }

    fn write(self, block: &mut Block<Scale>) {
        let [attn, ffn] = self.skips();
        block.attn.in_norm = self.attn_norm;
        block.attn.skip = attn;
        block.ffn.in_norm = self.ffn_norm;
        block.ffn.skip = ffn;
    }

    fn as_override(self, layers: Vec<usize>) -> Override {
        let [attn, ffn] = self.skips();
        Override {
            layers: Selector::Indices(layers),
            set: serde_json::json!({
                "attn": { "in_norm": self.attn_norm, "skip": attn },
                "ffn": { "in_norm": self.ffn_norm, "skip": ffn },
            }),
        }
    }
}

/// Official tensors under our names in our layout. Works for gradients as well as for weights.
///
/// # Errors
/// If a name or a shape is not one of an official checkpoint.
pub fn translate_all(
    mut tensors: BTreeMap<String, Values>,
    config: &ModelConfig,
) -> Result<BTreeMap<String, Values>> {
    let stacks = take_experts(&mut tensors, config).map_err(Error::Config)?;
    let mut ours = tensors
        .into_iter()
        .map(|(name, tensor)| translate(&name, tensor, config))
        .collect::<Result<BTreeMap<_, _>, _>>()
        .map_err(Error::Config)?;
    ours.extend(stacks);
    // Official checkpoints of tied models may carry the head as a second copy.
    if config.tie_embeddings
        && let Some(head) = ours.remove("head")
        && ours.get("embedding") != Some(&head)
    {
        return Err(Error::config(
            "weight_tying is set, but transformer.ff_out.weight is not transformer.wte.weight",
        ));
    }
    Ok(ours)
}

fn read_tensors(folder: &Path) -> Result<(std::path::PathBuf, BTreeMap<String, Values>)> {
    let safe = folder.join("model.safetensors");
    if safe.exists() {
        let tensors = tensors::read(&safe)?;
        return Ok((safe, tensors));
    }
    let torch = folder.join("model.pt");
    if torch.exists() {
        let tensors = read_pytorch(&torch)?;
        return Ok((torch, tensors));
    }
    std::fs::metadata(folder).map_err(Error::io(folder))?;
    Err(Error::format(
        folder,
        "holds neither model.safetensors nor model.pt",
    ))
}

/// Reads a PyTorch file through a reader that interprets the few pickle opcodes tensors need and
/// runs nothing.
fn read_pytorch(path: &Path) -> Result<BTreeMap<String, Values>> {
    let broken = |problem: String| Error::format(path, problem);
    let reader = burn_store::pytorch::PytorchReader::new(path)
        .map_err(|error| broken(format!("not a PyTorch checkpoint: {error}")))?;
    let mut all = BTreeMap::new();
    for (name, tensor) in reader.tensors() {
        let shape = tensor.shape().to_vec();
        let bytes = tensor
            .read()
            .map_err(|error| broken(format!("tensor {name}: {error}")))?;
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            other => {
                return Err(broken(format!(
                    "tensor {name} is {other:?}, expected F32, F16 or BF16"
                )));
            }
        };
        let data = tensors::to_f32(dtype, &bytes).expect("a type of the list above");
        all.insert(name.clone(), Values { shape, data });
    }
    Ok(all)
}

/// The experts' matrices, which are made of several official ones: MegaBlocks' `w1` is the gate, `v1` the
/// up and `w2` the transposed down projection, all (E·f, d).
fn take_experts(
    tensors: &mut BTreeMap<String, Values>,
    config: &ModelConfig,
) -> Result<Vec<(String, Values)>, String> {
    let mut stacks = Vec::new();
    for layer in 0..config.n_layers {
        let Some(moe) = config.moe_at(layer) else {
            continue;
        };
        let mut take = |matrix: &str| {
            let name = format!("transformer.blocks.{layer}.ffn.experts.mlp.{matrix}");
            let tensor = tensors
                .remove(&name)
                .ok_or_else(|| format!("tensor {name} is missing"))?;
            experts::split(tensor, moe.n_experts)
                .map_err(|problem| format!("tensor {name} {problem}"))
        };
        let [gate, up, down] = [take("w1")?, take("v1")?, take("w2")?];
        let layout = Layout {
            d_model: config.d_model,
            d_expert: moe.d_expert,
        };
        let down = down.into_iter().map(experts::transposed).collect();
        let path = format!("blocks.{layer}.feed_forward.experts");
        stacks.extend(experts::stacks(&path, layout, [gate, up, down])?);
    }
    Ok(stacks)
}

/// An official tensor name and layout as ours.
fn translate(name: &str, tensor: Values, config: &ModelConfig) -> Result<(String, Values), String> {
    let unknown = || format!("tensor {name} is not one of an official checkpoint");
    let inner = name.strip_prefix("transformer.").ok_or_else(unknown)?;
    if let Some(rest) = inner.strip_prefix("blocks.") {
        let (layer, rest) = rest.split_once('.').ok_or_else(unknown)?;
        let ours = match rest {
            "att_proj.weight" => "attention.qkv",
            "attn_out.weight" => "attention.out",
            "ff_proj.weight" => {
                let swapped = swap_halves(tensor, config).ok_or_else(|| {
                    format!(
                        "tensor {name} is not ({}, {})",
                        2 * config.d_ff,
                        config.d_model
                    )
                })?;
                return Ok((format!("blocks.{layer}.feed_forward.up"), swapped));
            }
            "ff_out.weight" => "feed_forward.down",
            "ffn.router.layer.weight" => "feed_forward.router",
            _ => {
                let (site, field) = rest.rsplit_once('.').ok_or_else(unknown)?;
                let site = match site {
                    "attn_norm" => "attn.in_norm",
                    "ff_norm" => "ffn.in_norm",
                    "q_norm" => "attention.q_norm",
                    "k_norm" => "attention.k_norm",
                    "v_norm" => "attention.v_norm",
                    "c_norm" => "attention.ctx_norm",
                    _ => return Err(unknown()),
                };
                let field = norm_field(field).ok_or_else(unknown)?;
                return Ok((format!("blocks.{layer}.{site}.{field}"), tensor));
            }
        };
        return Ok((format!("blocks.{layer}.{ours}"), tensor));
    }
    let ours = match inner {
        "wte.weight" => "embedding".to_owned(),
        "ff_out.weight" => "head".to_owned(),
        _ => {
            let field = inner.strip_prefix("ln_f.").and_then(norm_field);
            format!("final_norm.{}", field.ok_or_else(unknown)?)
        }
    };
    Ok((ours, tensor))
}

fn norm_field(name: &str) -> Option<&'static str> {
    match name {
        "weight" => Some("gain"),
        "bias" => Some("bias"),
        _ => None,
    }
}

/// The official feed-forward projection holds the up rows before the gate rows; ours the other
/// way round.
fn swap_halves(tensor: Values, config: &ModelConfig) -> Option<Values> {
    let expected = [2 * config.d_ff, config.d_model];
    if tensor.shape != expected {
        return None;
    }
    let (up, gate) = tensor.data.split_at(tensor.data.len() / 2);
    Some(Values {
        shape: tensor.shape,
        data: [gate, up].concat(),
    })
}
