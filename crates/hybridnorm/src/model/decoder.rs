//! The whole model.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::attention::Positions;
use super::block::Block;
use super::cache::KvCache;
use super::config::ModelConfig;
use super::init::Initializer;
use super::inventory::inventory;
use super::norm::{Norm, NormSite};
use super::recompute::Recompute;
use super::scale::Scale;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::memory;
use crate::ops::{self, LossSpec};

/// A decoder language model: `head(final_norm(blocks(embed(tokens))))`.
///
/// On an autodiff device it records gradients; [`Module::valid`] gives the plain twin for
/// evaluation and generation.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embedding, (v, d); also the head when tied.
    pub embedding: Param<Tensor<2>>,
    /// Factor on the embedding.
    pub embed_scale: Scale,
    /// Norm on the embedding.
    pub embed_norm: Option<Norm>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Norm before the head.
    pub final_norm: Option<Norm>,
    /// Factor on the logits.
    pub logit_scale: Scale,
    /// Output head, (v, d), unless tied.
    pub head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    shared: Arc<Shared>,
}

/// What a forward pass needs beyond parameters.
#[derive(Debug)]
struct Shared {
    config: ModelConfig,
    /// A row of k numbers for every position up to `max_seq_len`.
    rope: Vec<f32>,
    softcap: Option<f32>,
    z_loss: f32,
}

/// How a loss is normalized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossOptions {
    /// The sum over targets is divided by this: the number of targets of the whole optimizer
    /// step, so that accumulated micro-batches add up to the full batch.
    pub divisor: f32,
}

impl Decoder {
    /// Makes a model with initial values drawn by (seed, parameter name).
    ///
    /// # Errors
    /// If the configuration is not valid; see [`ModelConfig::resolve`].
    pub fn new(config: &ModelConfig, seed: u64, device: &Device) -> Result<Self> {
        Self::build(config, Some(seed), device)
    }

    /// Makes a model whose matrices are zero, for weights that come from elsewhere.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn uninitialized(config: &ModelConfig, device: &Device) -> Result<Self> {
        Self::build(config, None, device)
    }

    fn build(config: &ModelConfig, seed: Option<u64>, device: &Device) -> Result<Self> {
        let (resolved, _) = config.resolve()?;
        let rope = 2 * config.max_seq_len as u64 * config.head_dim() as u64;
        let weights = inventory(config, 1, 1, Recompute::None)?.memory.weights;
        memory::require(weights.saturating_add(4 * rope), "the model's weights")?;
        let initializer = Initializer::new(seed, &resolved);
        let (v, d) = (config.vocab_size, config.d_model);
        let table = |values: Vec<f32>| Param::from_data(TensorData::new(values, [v, d]), device);
        let make_norm =
            |wanted: bool| wanted.then(|| Norm::new(&resolved.norm, NormSite::of_width(d), device));
        let blocks = resolved
            .blocks
            .iter()
            .enumerate()
            .map(|(layer, spec)| {
                Block::new(config, spec, &resolved.norm, layer, &initializer, device)
            })
            .collect();
        Ok(Self {
            embedding: table(initializer.embedding("embedding", v * d)),
            embed_scale: Scale::new(resolved.embed_scale, d, device),
            embed_norm: make_norm(resolved.embed_norm),
            blocks,
            final_norm: make_norm(resolved.final_norm),
            logit_scale: Scale::new(resolved.logits.scale, d, device),
            head: (!config.tie_embeddings).then(|| table(initializer.head("head", v * d))),
            shared: Arc::new(Shared {
                rope: ops::rope_table(config.rope_theta, config.head_dim(), 0, config.max_seq_len),
                softcap: resolved.logits.softcap.map(|cap| cap as f32),
                z_loss: resolved.logits.z_loss as f32,
                config: config.clone(),
            }),
        })
    }

    /// The configuration the model was made from.
    pub fn config(&self) -> &ModelConfig {
        &self.shared.config
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.embedding.val().device()
    }

    /// Token ids as a tensor on this model's device.
    ///
    /// # Errors
    /// If an id is outside the vocabulary or the length is not `batch · seq`.
    pub fn ids(&self, ids: &[i32], batch: usize, seq: usize) -> Result<Tensor<2, Int>> {
        let v = self.config().vocab_size;
        if ids.len() != batch * seq {
            return Err(Error::config(format!(
                "{} token ids given, expected {batch} × {seq}",
                ids.len()
            )));
        }
        if let Some(at) = ids.iter().position(|&id| id < 0 || id as usize >= v) {
            return Err(Error::config(format!(
                "token id {} at position {at} is outside the vocabulary of {v}",
                ids[at]
            )));
        }
        let data = TensorData::new(ids.to_vec(), [batch, seq]);
        Ok(Tensor::from_data(data, (&self.device(), DType::I32)))
    }

    /// The stream after the final norm, (b, t, d): what the head reads.
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn forward(&self, ids_bt: Tensor<2, Int>) -> Tensor<3> {
        self.finish(self.through_blocks(ids_bt))
    }

    fn through_blocks(&self, ids_bt: Tensor<2, Int>) -> Stream {
        let positions = self.positions(0, ids_bt.dims()[1]);
        let x = Stream::Whole(self.embed(ids_bt));
        let step = |x, block: &Block| block.step(x, &positions, None);
        self.blocks.iter().fold(x, step)
    }

    /// The same for new positions after those in the cache, which grows by them.
    ///
    /// # Panics
    /// If the cache is full or the sequence longer than `max_seq_len`.
    pub fn forward_cached(&self, ids_bt: Tensor<2, Int>, cache: &mut KvCache) -> Tensor<3> {
        let seq = ids_bt.dims()[1];
        let past = cache.len();
        assert!(past + seq <= cache.capacity(), "the cache is full");
        let positions = self.positions(past, seq);
        let mut x = Stream::Whole(self.embed(ids_bt));
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.step(x, &positions, Some(layer));
        }
        cache.advance(seq);
        self.finish(x)
    }

    /// An empty cache for `batch` sequences of up to `capacity` positions.
    pub fn new_cache(&self, batch: usize, capacity: usize) -> KvCache {
        let config = self.config();
        let kv_width = 2 * config.n_kv_heads * config.head_dim();
        KvCache::new(config.n_layers, batch, capacity, kv_width, &self.device())
    }

    /// Logits (b, t, v) from what [`Decoder::forward`] gives.
    pub fn logits(&self, hidden_btd: Tensor<3>) -> Tensor<3> {
        let scaled = self.logit_scale.forward(hidden_btd);
        let logits = ops::linear(scaled, self.head_weight());
        match self.shared.softcap.map(f64::from) {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// `[training loss, cross-entropy]` in nats, without the logits ever standing in memory;
    /// only the first may be differentiated. A target of −1 is not counted.
    pub fn loss(
        &self,
        inputs_bt: Tensor<2, Int>,
        targets_bt: Tensor<2, Int>,
        options: LossOptions,
    ) -> Tensor<1> {
        self.loss_of(self.through_blocks(inputs_bt), targets_bt, options)
    }

    /// The same from the stream after the last block.
    pub(crate) fn loss_of(
        &self,
        x: Stream,
        targets_bt: Tensor<2, Int>,
        options: LossOptions,
    ) -> Tensor<1> {
        let hidden = self.finish(x);
        let [b, t, d] = hidden.dims();
        let (hidden, logit_scale) = match self.logit_scale.constant() {
            Some(constant) => (hidden, constant as f32),
            None => (self.logit_scale.forward(hidden), 1.0),
        };
        let spec = LossSpec {
            width: d,
            vocab: self.config().vocab_size,
            logit_scale,
            softcap: self.shared.softcap,
            z_loss: self.shared.z_loss,
            divisor: options.divisor,
        };
        ops::linear_cross_entropy(
            hidden.reshape([b * t, d]),
            self.head_weight(),
            targets_bt.reshape([b * t]),
            spec,
        )
    }

    fn head_weight(&self) -> Tensor<2> {
        self.head.as_ref().unwrap_or(&self.embedding).val()
    }

    /// The stream that enters the first block.
    pub(crate) fn embed(&self, ids_bt: Tensor<2, Int>) -> Tensor<3> {
        let x = ops::embedding(self.embedding.val(), ids_bt);
        let x = self.embed_scale.forward(x);
        match &self.embed_norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }

    fn finish(&self, x: Stream) -> Tensor<3> {
        x.normed(&self.final_norm).1
    }

    pub(crate) fn positions(&self, past: usize, seq: usize) -> Positions {
        let config = self.config();
        let end = past + seq;
        assert!(
            end <= config.max_seq_len,
            "{end} positions, but max_seq_len is {}",
            config.max_seq_len
        );
        let k = config.head_dim();
        Positions {
            past,
            rope: self.shared.rope[past * k..end * k].into(),
        }
    }
}
