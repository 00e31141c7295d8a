//! Tiny models for tests.
#![allow(dead_code)] // each test file uses only a part

pub mod hf;
pub mod reference;

use std::collections::BTreeMap;

use hybridnorm::Device;
use hybridnorm::exec::TensorRef;
use hybridnorm::model::{MlaConfig, Model, ModelConfig, MoeConfig, PARAMETERS, Scoring};
use hybridnorm::placement::{self, Placement};
use hybridnorm::plan::Options;
use hybridnorm::tensors::HostTensor;
use hybridnorm::train::{self, Gradients};
use hybridnorm_kernels::splitmix64::SplitMix64;

pub const VOCAB: usize = 37;
pub const BATCH: usize = 2;
pub const SEQ: usize = 7;

/// Returns the configuration of a three-block model of width 16 with grouped-query attention.
pub fn tiny(placement: Placement) -> ModelConfig {
    ModelConfig::default()
        .with_d_model(16)
        .with_n_layers(3)
        .with_n_heads(4)
        .with_n_kv_heads(2)
        .with_d_ff(24)
        .with_vocab_size(VOCAB)
        .with_max_seq_len(16)
        .with_rope_theta(100.0)
        .with_placement(placement)
}

/// Adds eight experts in two groups; a token uses two of one group and a shared one. The first block is dense.
pub fn with_experts(config: ModelConfig, scoring: Scoring) -> ModelConfig {
    let moe = MoeConfig::new(8, 2, 8)
        .with_n_shared(1)
        .with_first_dense(1)
        .with_scoring(scoring)
        .with_renormalize(scoring == Scoring::Sigmoid)
        .with_n_groups(2)
        .with_top_groups(1)
        .with_scaling(1.5)
        .with_load_balance(0.05)
        .with_z_loss(0.02)
        .with_bias_rate(0.01);
    config.with_moe(moe)
}

/// Adds multi-head latent attention, with or without a query latent.
pub fn with_mla(config: ModelConfig, q_rank: Option<usize>) -> ModelConfig {
    let mut mla = MlaConfig::new(10, 6, 4, 5);
    mla.q_rank = q_rank;
    let n_heads = config.n_heads;
    config.with_n_kv_heads(n_heads).with_mla(mla)
}

/// Placements not defined for multi-head latent attention: cosine attention, norms after the rotation.
const WITHOUT_MLA: [&str; 3] = ["swin-v2-res-post", "nanochat", "ngpt"];

/// Returns the configuration of each model variant (dense, experts, latents, both) for which a placement is defined.
pub fn model_variants(name: &str) -> Vec<(String, ModelConfig)> {
    let dense = tiny(named(name));
    let variants = [
        ("dense", dense.clone()),
        ("experts", with_experts(dense.clone(), Scoring::Softmax)),
        ("latents", with_mla(dense.clone(), Some(12))),
        (
            "experts and latents",
            with_experts(with_mla(dense, None), Scoring::Sigmoid),
        ),
    ];
    let defined = variants.into_iter().filter(|(kind, config)| {
        let is_defined = config.resolve().is_ok();
        let is_unsupported = config.mla.is_some() && WITHOUT_MLA.contains(&name);
        assert_eq!(is_defined, !is_unsupported, "{name}, {kind}");
        is_defined
    });
    defined
        .map(|(kind, config)| (format!("{name}, {kind}"), config))
        .collect()
}

/// Returns the configuration of every model variant with every named placement.
pub fn all_models() -> Vec<(String, ModelConfig)> {
    all_names().into_iter().flat_map(model_variants).collect()
}

/// Returns the names of the parameters that have gradients.
pub fn trained_parameters(model: &Model) -> Vec<String> {
    let trained = model.parameters().filter(|spec| spec.role.is_trained());
    trained.map(|spec| spec.name.clone()).collect()
}

pub fn named(name: &str) -> Placement {
    placement::named(name).unwrap()
}

/// Returns the canonical names of all named placements.
pub fn all_names() -> Vec<&'static str> {
    placement::named_placements()
        .iter()
        .map(|entry| entry.name)
        .collect()
}

/// Returns a model with all parameters perturbed from their initial values, so that gains and learned scales matter
/// and nothing is zero.
pub fn perturbed_model(config: &ModelConfig) -> Model {
    let mut model = Model::new(config, 5, Device::Cpu).unwrap();
    let mut values = model.values();
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
    model.load(values).unwrap();
    model
}

/// Copies a model to the reference executor, in double precision.
pub fn on_reference_executor(model: &Model) -> Model {
    let mut exact = Model::uninitialized(model.config(), Device::Reference).unwrap();
    exact.load(model.values()).unwrap();
    exact
}

/// Writes a parameter in double precision.
pub fn write_f64(model: &mut Model, name: &str, values: &[f64]) {
    let offset = model.decoder().registry().get(name).unwrap().offset;
    model
        .executor_mut()
        .write(PARAMETERS, offset, TensorRef::F64(values));
}

/// Reproducible pseudorandom numbers.
pub struct Random(SplitMix64);

impl Random {
    pub fn new(name: &str) -> Self {
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(SplitMix64::new(seed))
    }

    /// Returns a number between −1 and 1.
    pub fn uniform(&mut self) -> f32 {
        self.0.uniform_symmetric()
    }

    pub fn ids(&mut self, n: usize) -> Vec<i32> {
        (0..n)
            .map(|_| (self.0.next_u64() % VOCAB as u64) as i32)
            .collect()
    }
}

pub fn inputs() -> Vec<i32> {
    Random::new("inputs").ids(BATCH * SEQ)
}

pub fn targets() -> Vec<i32> {
    Random::new("targets").ids(BATCH * SEQ)
}

/// Returns the logits (b, t, v) of the inputs.
pub fn logits(model: &mut Model) -> Vec<f32> {
    model.logits(&inputs(), BATCH, SEQ).unwrap().into_f32()
}

/// Returns the mean objective, and the gradient of every parameter.
pub fn loss_and_gradients(model: &mut Model) -> (f64, Gradients) {
    let divisor = (BATCH * SEQ) as f64;
    let shape = [BATCH, SEQ];
    let options = Options::default();
    let gradients =
        train::gradients(model, &inputs(), &targets(), shape, divisor, options).unwrap();
    (gradients.stats.losses.objective, gradients)
}

/// Returns the parameters of `model` under other names.
pub fn renamed(model: &Model, name: impl Fn(&str) -> String) -> BTreeMap<String, HostTensor> {
    model
        .values()
        .into_iter()
        .map(|(key, values)| (name(&key), values))
        .collect()
}

/// Returns the largest absolute difference; NaN if any is NaN.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    let wide = |x: &[f32]| x.iter().copied().map(f64::from).collect::<Vec<_>>();
    largest_difference64(&wide(a), &wide(b)) as f32
}

/// Returns the largest absolute difference; NaN if any is NaN.
pub fn largest_difference64(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |largest, difference| match difference.is_nan() {
        true => difference,
        false if difference > largest => difference,
        false => largest,
    })
}
