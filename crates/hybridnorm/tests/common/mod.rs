//! Tiny models for tests.
#![allow(dead_code)] // every test file uses its own part

pub mod reference;

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Int, Tensor};
use hybridnorm::model::params::{self, Values};
use hybridnorm::model::{
    Decoder, FfnActivation, LossOptions, MlaConfig, ModelConfig, MoeConfig, MoeScoring,
};
use hybridnorm::placement::{self, Placement};
use hybridnorm::train::GradientSum;

pub const VOCAB: usize = 37;
pub const BATCH: usize = 2;
pub const SEQ: usize = 7;

/// A three-block model of width 16 with grouped queries.
pub fn tiny(placement: Placement) -> ModelConfig {
    ModelConfig {
        d_model: 16,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 2,
        d_ff: 24,
        vocab_size: VOCAB,
        max_seq_len: 16,
        rope_theta: 100.0,
        tie_embeddings: false,
        activation: FfnActivation::Swiglu,
        moe: None,
        mla: None,
        placement,
    }
}

/// Eight experts in two groups, of which a token passes through two of one group and a shared one;
/// the first block is dense.
pub fn with_experts(config: ModelConfig, scoring: MoeScoring) -> ModelConfig {
    let moe = MoeConfig {
        n_experts: 8,
        top_k: 2,
        d_expert: 8,
        n_shared: 1,
        first_dense: 1,
        scoring,
        renormalize: scoring == MoeScoring::Sigmoid,
        n_groups: 2,
        top_groups: 1,
        scaling: 1.5,
        load_balance: 0.05,
        z_loss: 0.02,
        bias_rate: Some(0.01),
    };
    ModelConfig {
        moe: Some(moe),
        ..config
    }
}

/// Latent attention, with or without a latent for queries.
pub fn with_latents(config: ModelConfig, q_rank: Option<usize>) -> ModelConfig {
    ModelConfig {
        n_kv_heads: config.n_heads,
        mla: Some(MlaConfig {
            q_rank,
            kv_rank: 10,
            nope_dim: 6,
            rope_dim: 4,
            v_dim: 5,
        }),
        ..config
    }
}

/// Placements that latent attention does not have: cosine scores, norms behind the rotation.
const WITHOUT_LATENTS: [&str; 3] = ["swin-v2-res-post", "nanochat", "ngpt"];

/// A model of every kind in which a placement is defined.
pub fn kinds(name: &str) -> Vec<(String, ModelConfig)> {
    let dense = tiny(named(name));
    let kinds = [
        ("dense", dense.clone()),
        ("experts", with_experts(dense.clone(), MoeScoring::Softmax)),
        ("latents", with_latents(dense.clone(), Some(12))),
        (
            "experts and latents",
            with_experts(with_latents(dense, None), MoeScoring::Sigmoid),
        ),
    ];
    let defined = kinds.into_iter().filter(|(kind, config)| {
        let is_defined = config.resolve().is_ok();
        let is_refused = config.mla.is_some() && WITHOUT_LATENTS.contains(&name);
        assert_eq!(is_defined, !is_refused, "{name}, {kind}");
        is_defined
    });
    defined
        .map(|(kind, config)| (format!("{name}, {kind}"), config))
        .collect()
}

/// Every kind of model with every named placement.
pub fn all_models() -> Vec<(String, ModelConfig)> {
    all_names().into_iter().flat_map(kinds).collect()
}

/// Names of the parameters that gradients move.
pub fn trained(model: &Decoder) -> Vec<String> {
    let mut names = params::names(model);
    names.retain(|name| params::Kind::of(name).is_trained());
    names
}

pub fn named(name: &str) -> Placement {
    placement::named(name).unwrap()
}

/// Canonical names of all named placements.
pub fn all_names() -> Vec<&'static str> {
    placement::names().iter().map(|entry| entry.name).collect()
}

pub fn plain() -> Device {
    Device::flex()
}

pub fn autodiff() -> Device {
    Device::flex().autodiff()
}

/// A model whose every parameter is off its starting value, so that gains and learned scales
/// matter and nothing is zero.
pub fn stirred(config: &ModelConfig, device: &Device) -> Decoder {
    let model = Decoder::new(config, 5, device).unwrap();
    let mut values = params::values(&model);
    for (name, values) in &mut values {
        let mut random = Random::new(name);
        for value in &mut values.data {
            *value = match values.shape.len() {
                // A temperature must stay above its floor.
                _ if name.ends_with("tau") => *value * (1.0 + 0.3 * random.uniform()),
                1 => *value + 0.3 * random.uniform(),
                _ => 0.4 * random.uniform(),
            };
        }
    }
    params::load(model, values).unwrap()
}

/// Small reproducible numbers.
pub struct Random(u64);

impl Random {
    pub fn new(name: &str) -> Self {
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between −1 and 1.
    pub fn uniform(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }

    pub fn ids(&mut self, n: usize) -> Vec<i32> {
        (0..n)
            .map(|_| (self.next() % VOCAB as u64) as i32)
            .collect()
    }
}

pub fn inputs(model: &Decoder) -> Tensor<2, Int> {
    let ids = Random::new("inputs").ids(BATCH * SEQ);
    model.ids(&ids, BATCH, SEQ).unwrap()
}

pub fn targets(model: &Decoder) -> Tensor<2, Int> {
    let ids = Random::new("targets").ids(BATCH * SEQ);
    model.ids(&ids, BATCH, SEQ).unwrap()
}

pub fn logits(model: &Decoder) -> Vec<f32> {
    to_vec(model.logits(model.forward(inputs(model))))
}

pub fn to_vec<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data_as::<f32>().try_into_vec().unwrap()
}

pub fn to_vec64<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data_as::<f64>().try_into_vec().unwrap()
}

/// Mean loss, and the gradient of every parameter.
pub fn loss_and_gradients(model: &Decoder) -> (f64, GradientSum) {
    let divisor = (BATCH * SEQ) as f32;
    let loss = model.loss(inputs(model), targets(model), LossOptions { divisor });
    let value = to_vec64(loss.clone().inner())[0];
    let mut gradients = GradientSum::default();
    gradients.add(model, loss.backward());
    (value, gradients)
}

/// The same model in f64, which runs on the compositions.
pub fn in_f64(model: Decoder) -> Decoder {
    params::map(model, |_, tensor| tensor.cast(DType::F64))
}

/// The values of `model` under other names.
pub fn renamed(model: &Decoder, name: impl Fn(&str) -> String) -> BTreeMap<String, Values> {
    params::values(model)
        .into_iter()
        .map(|(key, values)| (name(&key), values))
        .collect()
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

pub fn largest_difference64(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}
