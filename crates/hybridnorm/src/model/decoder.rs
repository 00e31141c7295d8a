//! The whole model.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::attention::Positions;
use super::block::Block;
use super::blueprint::Blueprint;
use super::cache::KvCache;
use super::config::ModelConfig;
use super::feed_forward::{Routed, Routing};
use super::init::Initializer;
use super::inventory::inventory;
use super::matrices;
use super::norm::{Norm, NormSite};
use super::recompute::Recompute;
use super::scale::Scale;
use super::stream::{State, Stream};
use crate::eager::{self as ops, LossSpec};
use crate::error::{Error, Result};
use crate::memory;

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
    /// Norm on the main stream where the second is added to it after the last block.
    pub merge_norm: Option<Norm>,
    /// Norm on the second stream there.
    pub second_norm: Option<Norm>,
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
    unit_weights: bool,
}

/// What a forward pass leaves beside its result.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Whether to look for the largest scores of heads.
    pub look_at_scores: bool,
    /// Where the tokens of each mixture went.
    pub routed: Vec<Routed>,
    /// The largest score of every head of each block, if looked for.
    pub head_maxima: Vec<Vec<f32>>,
}

impl Trace {
    /// The state behind a block.
    pub fn step(&mut self, block: &Block, state: State, positions: &Positions) -> State {
        let (state, routed) = match self.look_at_scores {
            false => block.step(state, positions, None),
            true => {
                let (state, routed, maxima) = block.step_with_maxima(state, positions);
                self.head_maxima.push(maxima);
                (state, routed)
            }
        };
        self.routed.extend(routed);
        state
    }
}

/// How a loss is normalized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossOptions {
    /// The sum over targets is divided by this: the number of targets of the whole optimizer
    /// step, so that accumulated micro-batches add up to the full batch.
    pub divisor: f32,
}

impl LossOptions {
    /// The share that these inputs have in the whole step.
    pub(crate) fn share(&self, inputs_bt: &Tensor<2, Int>) -> f64 {
        let [b, t] = inputs_bt.dims();
        (b * t) as f64 / f64::from(self.divisor)
    }
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

    /// The model for sequences up to another length. No parameter depends on it.
    ///
    /// # Errors
    /// If the length is not valid, or its table of rotations does not fit into memory.
    pub fn with_max_seq_len(mut self, max_seq_len: usize) -> Result<Self> {
        let config = ModelConfig {
            max_seq_len,
            ..self.config().clone()
        };
        config.resolve()?;
        let (theta, dim) = (config.rope_theta, config.rope_dim());
        let bytes = 8 * max_seq_len as u64 * dim as u64;
        memory::require(bytes, "the rotations of so many positions")?;
        let Shared {
            softcap,
            z_loss,
            unit_weights,
            ..
        } = *self.shared;
        self.shared = Arc::new(Shared {
            rope: ops::rope_table(theta, dim, 0, max_seq_len),
            softcap,
            z_loss,
            unit_weights,
            config,
        });
        Ok(self)
    }

    fn build(config: &ModelConfig, seed: Option<u64>, device: &Device) -> Result<Self> {
        let (resolved, _) = config.resolve()?;
        let rope = 2 * config.max_seq_len as u64 * config.rope_dim() as u64;
        let weights = inventory(config, 1, 1, Recompute::None)?.memory.weights;
        memory::require(weights.saturating_add(4 * rope), "the model's weights")?;
        let initializer = Initializer::new(seed, &resolved);
        let (v, d) = (config.vocab_size, config.d_model);
        let table = |values: Vec<f32>| Param::from_data(TensorData::new(values, [v, d]), device);
        let make_norm =
            |wanted: bool| wanted.then(|| Norm::new(&resolved.norm, NormSite::of_width(d), device));
        let block = |layer| {
            Block::new(&Blueprint {
                config,
                resolved: &resolved,
                layer,
                initializer: &initializer,
                device,
            })
        };
        let blocks = (0..config.n_layers).map(block).collect();
        let model = Self {
            embedding: table(initializer.embedding("embedding", v * d)),
            embed_scale: Scale::new(resolved.embed_scale, d, device),
            embed_norm: make_norm(resolved.embed_norm),
            blocks,
            merge_norm: make_norm(resolved.merge_norm),
            second_norm: make_norm(resolved.streams.are_two()),
            final_norm: make_norm(resolved.final_norm),
            logit_scale: Scale::new(resolved.logits.scale, v, device),
            head: (!config.tie_embeddings).then(|| table(initializer.head("head", v * d))),
            shared: Arc::new(Shared {
                rope: ops::rope_table(config.rope_theta, config.rope_dim(), 0, config.max_seq_len),
                softcap: resolved.logits.softcap.map(|cap| cap as f32),
                z_loss: resolved.logits.z_loss as f32,
                unit_weights: resolved.unit_weights,
                config: config.clone(),
            }),
        };
        Ok(match seed {
            Some(_) => model.with_unit_weights(),
            None => model,
        })
    }

    /// Brings matrices back to vectors of length 1 along the width, where the placement keeps them there;
    /// for the start and after every update.
    pub fn with_unit_weights(self) -> Self {
        if !self.shared.unit_weights {
            return self;
        }
        let config = self.config().clone();
        matrices::with_unit_vectors(self, &config)
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
        self.finish(self.through_blocks(ids_bt, &mut Trace::default()))
    }

    /// The state after the last block.
    fn through_blocks(&self, ids_bt: Tensor<2, Int>, trace: &mut Trace) -> State {
        let positions = self.positions(0, ids_bt.dims()[1]);
        let step = |state, block: &Block| trace.step(block, state, &positions);
        self.blocks.iter().fold(self.begin(ids_bt), step)
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
        let mut state = self.begin(ids_bt);
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            state = block.step(state, &positions, Some(layer)).0;
        }
        cache.advance(seq);
        self.finish(state)
    }

    /// An empty cache for `batch` sequences of up to `capacity` positions.
    pub fn new_cache(&self, batch: usize, capacity: usize) -> KvCache {
        let config = self.config();
        let width = config.cache_width();
        KvCache::new(config.n_layers, batch, capacity, width, &self.device())
    }

    /// Logits (b, t, v) from what [`Decoder::forward`] gives.
    pub fn logits(&self, hidden_btd: Tensor<3>) -> Tensor<3> {
        let logits = ops::linear(hidden_btd, self.head_weight());
        let logits = self.logit_scale.forward(logits);
        match self.shared.softcap.map(f64::from) {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// `[training loss, cross-entropy]` in nats, without the logits ever standing in memory;
    /// only the first may be differentiated. A target of −1 is not counted. The training loss has the
    /// placement's z-loss and the weighted losses of routers in it.
    pub fn loss(
        &self,
        inputs_bt: Tensor<2, Int>,
        targets_bt: Tensor<2, Int>,
        options: LossOptions,
    ) -> Tensor<1> {
        self.traced_loss(inputs_bt, targets_bt, options, &mut Trace::default())
    }

    /// The same; what else is found goes into `trace`.
    pub(crate) fn traced_loss(
        &self,
        inputs_bt: Tensor<2, Int>,
        targets_bt: Tensor<2, Int>,
        options: LossOptions,
        trace: &mut Trace,
    ) -> Tensor<1> {
        let share = options.share(&inputs_bt);
        let state = self.through_blocks(inputs_bt, trace);
        let losses = self.loss_of(state, targets_bt, options);
        let add = |losses, routed| losses + self.router_loss(routed, share);
        trace.routed.iter().fold(losses, add)
    }

    /// What one router adds to `[training loss, cross-entropy]`, as the mean over all mixtures asks.
    pub(crate) fn router_loss(&self, routed: &Routed, share: f64) -> Tensor<1> {
        let config = self.config();
        let moe = config.moe.as_ref().expect("only a mixture routes");
        let mixtures = (config.n_layers - config.dense_layers()) as f64;
        let losses = routed.losses();
        let [balance, z] = [0, 1].map(|index| losses.clone().narrow(0, index, 1));
        let sum =
            balance * (moe.load_balance * share / mixtures) + z * (moe.z_loss * share / mixtures);
        Tensor::cat(vec![sum.clone(), sum.zeros_like()], 0)
    }

    /// The part of it that the state after the last block decides.
    pub(crate) fn loss_of(
        &self,
        state: State,
        targets_bt: Tensor<2, Int>,
        options: LossOptions,
    ) -> Tensor<1> {
        let hidden = self.finish(state);
        let [b, t, d] = hidden.dims();
        let mut head = self.head_weight();
        if let Some(scale) = self.logit_scale.learned() {
            // One for all logits or one for each.
            let rows = scale.dims()[0];
            head = head * scale.reshape([rows, 1]);
        }
        let spec = LossSpec {
            width: d,
            vocab: self.config().vocab_size,
            logit_scale: self.logit_scale.constant().unwrap_or(1.0) as f32,
            softcap: self.shared.softcap,
            z_loss: self.shared.z_loss,
            divisor: options.divisor,
        };
        ops::linear_cross_entropy(
            hidden.reshape([b * t, d]),
            head,
            targets_bt.reshape([b * t]),
            spec,
        )
    }

    /// Scales queries and keys down so that no score is above `most`, given each head's largest in
    /// every block; gives the number of heads for which that was needed.
    pub fn clip_scores(&mut self, maxima: &[Vec<f32>], most: f64) -> usize {
        let blocks = self.blocks.iter_mut().zip(maxima);
        let clipped =
            blocks.map(|(block, maxima)| block.attention.clip_scores(maxima, most as f32));
        clipped.sum()
    }

    /// Moves the selection biases of mixtures against the load of a step, one entry for each mixture.
    pub fn rebalance(&mut self, routing: &[Routing]) {
        let mixtures = self.blocks.iter_mut().filter_map(Block::mixture_mut);
        for (mixture, routing) in mixtures.zip(routing) {
            mixture.rebalance(&routing.load);
        }
    }

    fn head_weight(&self) -> Tensor<2> {
        self.head.as_ref().unwrap_or(&self.embedding).val()
    }

    /// The state that enters the first block; two streams begin alike.
    pub(crate) fn begin(&self, ids_bt: Tensor<2, Int>) -> State {
        let x = self.embed(ids_bt);
        if self.second_norm.is_none() {
            return State::single(x);
        }
        let [x, y] = ops::fork(x);
        State::of(vec![x, y])
    }

    fn embed(&self, ids_bt: Tensor<2, Int>) -> Tensor<3> {
        let x = ops::embedding(self.embedding.val(), ids_bt);
        let x = self.embed_scale.forward(x);
        match &self.embed_norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }

    /// `final_norm(x)`; of two streams `final_norm(merge_norm(x) + second_norm(y))`
    fn finish(&self, state: State) -> Tensor<3> {
        let State { x, y } = state;
        let x = match (&self.second_norm, y) {
            (Some(second_norm), Some(y)) => {
                let x = x.normed(&self.merge_norm).1;
                Stream::Sum(x, second_norm.forward(y))
            }
            _ => x,
        };
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
        let k = config.rope_dim();
        Positions {
            past,
            rope: self.shared.rope[past * k..end * k].into(),
        }
    }
}
