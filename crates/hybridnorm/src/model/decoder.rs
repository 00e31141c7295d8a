//! Graph builder of the whole model.

use super::attention::{PositionContext, RopeTables, RowPositions};
use super::block::{Block, BlockOutput};
use super::config::{ModelConfig, PositionEmbedding};
use super::norm::{Norm, NormSite, norm};
use super::parameter_builder::ParameterBuilder;
use super::registry::{Param, Registry, Role};
use super::scale::{Scale, scale};
use super::sublayer::Residual;
use crate::error::Result;
use crate::graph::{Buffer, Builder, Type, Value};
use crate::ops;
use crate::plan::{Options, Precision, Program};

/// A decoder language model, `head(final_norm(blocks(embed(tokens))))`: its parameter declarations and
/// computation, without parameter values.
///
/// ```
/// use hybridnorm::graph::{Builder, Type};
/// use hybridnorm::model::Decoder;
/// # use hybridnorm::model::ModelConfig;
///
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8)
/// #     .with_max_seq_len(8)
/// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
/// let decoder = Decoder::new(&config)?;
/// let names: Vec<&str> = decoder.registry().iter().map(|spec| spec.name.as_str()).collect();
/// assert_eq!(names[0], "embedding");
/// assert!(names.contains(&"blocks.1.attention.qkv"));
///
/// // Two sequences of four tokens, with logits for each of eight tokens.
/// let g = Builder::new();
/// let ids = g.input("ids", Type::i32([2, 4]));
/// let hidden = decoder.forward(ids, None).hidden;
/// assert_eq!(decoder.logits(hidden).shape().sizes(), [2, 4, 8]);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Decoder {
    /// Token embedding, (v, d); also the output head if tied.
    pub embedding: Param,
    /// Learned embedding of positions, (max_seq_len, d).
    pub position_embedding: Option<Param>,
    /// Scale of the token embedding.
    pub embed_scale: Scale,
    /// Norm of the embedding.
    pub embed_norm: Option<Norm>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Norm of the main stream where the second is added to it after the last block.
    pub merge_norm: Option<Norm>,
    /// Norm of the second stream before it is added.
    pub second_norm: Option<Norm>,
    /// Norm before the output head.
    pub final_norm: Option<Norm>,
    /// Scale of the logits.
    pub logit_scale: Scale,
    head: Param,
    softcap: Option<f64>,
    z_loss: f64,
    unit_weights: bool,
    plan_options: Options,
    config: ModelConfig,
    registry: Registry,
}

/// Outputs of a forward pass.
pub struct ForwardOutput<'g> {
    /// Hidden states after the final norm, (b, t, d): the input of the output head.
    pub hidden: Value<'g>,
    /// Outputs of the blocks, for taps.
    pub blocks: Vec<BlockOutput<'g>>,
}

/// Losses of a forward pass, one element each, in nats.
pub struct Losses<'g> {
    /// Training objective: the cross-entropy, the z-loss, and the weighted router losses.
    pub objective: Value<'g>,
    /// The cross-entropy.
    pub cross_entropy: Value<'g>,
    /// Outputs of the blocks, for taps.
    pub blocks: Vec<BlockOutput<'g>>,
}

/// KV caches of a forward pass, one per block.
#[derive(Debug, Clone, Copy)]
pub struct KvCaches<'a> {
    /// Buffers of the caches.
    pub buffers: &'a [Buffer],
    /// Capacity of each, in positions.
    pub capacity: usize,
    /// True if they are empty and the run has more than one position.
    pub is_prefill: bool,
}

impl Decoder {
    /// Declares a model.
    ///
    /// # Errors
    /// If the configuration is not valid; see [`ModelConfig::resolve`].
    pub fn new(config: &ModelConfig) -> Result<Self> {
        let (resolved, _) = config.resolve()?;
        let mut registry = Registry::default();
        let mut builder = ParameterBuilder {
            config,
            resolved: &resolved,
            registry: &mut registry,
            layer: None,
            in_attention: false,
        };
        let (d, v) = (config.d_model, config.vocab_size);
        let embedding = builder.add_table("embedding", Role::Embedding, v, resolved.embed_std());
        let has_learned_positions = config.position_embedding == PositionEmbedding::Learned;
        let position_embedding = has_learned_positions.then(|| {
            let (rows, std) = (config.max_seq_len, resolved.embed_std());
            builder.add_table("position_embedding", Role::Embedding, rows, std)
        });
        let make = |builder: &mut ParameterBuilder<'_>, path, is_present: bool| {
            is_present.then(|| Norm::new(builder, path, NormSite::of_width(d)))
        };
        let embed_scale = Scale::new(&mut builder, "embed_scale", resolved.embed_scale, d);
        let embed_norm = make(&mut builder, "embed_norm", resolved.embed_norm);
        let mut blocks = Vec::with_capacity(config.n_layers);
        for layer in 0..config.n_layers {
            builder.layer = Some(layer);
            blocks.push(Block::new(&mut builder));
        }
        builder.layer = None;
        let merge_norm = make(&mut builder, "merge_norm", resolved.merge_norm);
        let second_norm = make(&mut builder, "second_norm", resolved.streams.is_dual());
        let final_norm = make(&mut builder, "final_norm", resolved.final_norm);
        let logit_scale = Scale::new(&mut builder, "logit_scale", resolved.logits.scale, v);
        let head = match config.tie_embeddings {
            true => embedding,
            false => builder.add_table("head", Role::Head, v, resolved.head_std()),
        };
        Ok(Self {
            position_embedding,
            embed_scale,
            embed_norm,
            blocks,
            merge_norm,
            second_norm,
            final_norm,
            logit_scale,
            embedding,
            head,
            softcap: resolved.logits.softcap,
            z_loss: resolved.logits.z_loss,
            unit_weights: resolved.unit_weights,
            plan_options: Options::default(),
            config: config.clone(),
            registry,
        })
    }

    /// Sets the options of the programs of this decoder.
    pub fn set_plan_options(&mut self, options: Options) {
        self.plan_options = options;
    }

    /// Checks that the precision of the residual stream has an effect on this model.
    pub(crate) fn check_residual(&self, precision: Precision) -> Result<()> {
        let g = Builder::new();
        let ids = Self::tokens(&g, "ids", 1, 1);
        let hidden = self.forward(ids, None).hidden.id();
        let options = Options::default().with_precision(precision);
        Program::new(g.finish(), &[hidden], options).check_residual(precision)
    }

    /// Returns the options of the programs of this decoder.
    pub fn plan_options(&self) -> Options {
        self.plan_options
    }

    /// Returns the configuration of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the parameters.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// True if the vectors of all matrices along the model width have length 1.
    pub fn has_unit_weights(&self) -> bool {
        self.unit_weights
    }

    /// Creates the graph input for ids or targets (b, t).
    pub(crate) fn tokens<'g>(g: &'g Builder, name: &str, batch: usize, seq: usize) -> Value<'g> {
        g.input(name, Type::i32([batch, seq]))
    }

    /// Computes the hidden states after the final norm, from ids (b, t).
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn forward<'g>(
        &self,
        ids_bt: Value<'g>,
        caches: Option<KvCaches<'_>>,
    ) -> ForwardOutput<'g> {
        let &[b, t] = ids_bt.shape().sizes() else {
            panic!("ids are not (b, t), but {:?}", ids_bt.shape())
        };
        let longest = self.config.max_seq_len;
        assert!(t <= longest, "{t} positions, but max_seq_len is {longest}");
        let positions = RowPositions::Uniform { batch: b, seq: t };
        self.forward_at(ids_bt, positions, b, caches)
    }

    /// Computes the hidden states after the final norm, (1, n, d), of a flat batch of ids (1, n) whose `segments` (s, 3)
    /// continue the sequences in `slots` slots of the caches; see [`ops::Segment`]. `is_prefill` requires one segment.
    pub fn forward_segments<'g>(
        &self,
        ids_1n: Value<'g>,
        segments: Value<'g>,
        slots: usize,
        caches: KvCaches<'_>,
    ) -> ForwardOutput<'g> {
        let rows = ids_1n.shape().elements();
        let positions = RowPositions::Segments { segments, rows };
        self.forward_at(ids_1n, positions, slots, Some(caches))
    }

    /// Computes a forward pass at these positions; the caches hold `sequences` sequences.
    fn forward_at<'g>(
        &self,
        ids_bt: Value<'g>,
        row_positions: RowPositions<'g>,
        sequences: usize,
        caches: Option<KvCaches<'_>>,
    ) -> ForwardOutput<'g> {
        let (g, config) = (ids_bt.builder(), &self.config);
        let mut rope_tables = RopeTables::new(g, row_positions);
        let mut residual = g.named_scope("embedding", || self.embed(ids_bt, row_positions));
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (layer, block) in self.blocks.iter().enumerate() {
            let cache = caches.map(|caches| {
                let ty = Type::f32([sequences, caches.capacity, config.cache_width()]);
                g.state(caches.buffers[layer], 0, ty)
            });
            let positions = PositionContext {
                rope_table: rope_tables.of_layer(config, layer),
                cache,
                segments: row_positions.segments(),
                is_prefill: caches.is_none_or(|caches| caches.is_prefill),
            };
            let output = g.named_scope(&format!("blocks.{layer}"), || {
                g.segment(layer, || block.forward(residual, &positions))
            });
            residual = output.residual;
            blocks.push(output);
        }
        let hidden = g.named_scope("final_norm", || self.final_norm_output(residual));
        ForwardOutput { hidden, blocks }
    }

    /// Computes the logits (.., v) from the hidden states (.., d) of [`Decoder::forward`].
    pub fn logits<'g>(&self, hidden: Value<'g>) -> Value<'g> {
        let g = hidden.builder();
        let mut head = self.head.value(g);
        if let Some(factors) = self.logit_scale.learned(g) {
            head = ops::scale_rows(head, factors);
        }
        let logits = ops::linear(hidden, head) * self.logit_scale.constant().unwrap_or(1.0);
        match self.softcap {
            Some(cap) => ops::softcap(logits, cap),
            None => logits,
        }
    }

    /// Computes the losses of ids and targets (b, t), summed over targets and divided by `divisor`: the number of
    /// targets of the whole optimizer step, so that accumulated micro-batches sum to the full batch. Targets of
    /// -1 are ignored.
    pub fn losses<'g>(&self, ids_bt: Value<'g>, targets_bt: Value<'g>, divisor: f64) -> Losses<'g> {
        let ForwardOutput { hidden, blocks } = self.forward(ids_bt, None);
        let g = ids_bt.builder();
        let [mut objective, cross_entropy] = g.named_scope("head", || {
            ops::cross_entropy(self.logits(hidden), targets_bt, self.z_loss, divisor)
        });
        if let Some(moe) = &self.config.moe {
            // Mean over all mixture-of-experts blocks, weighted by this micro-batch's share of the step.
            let mixtures = (self.config.n_layers - self.config.n_dense_layers()) as f64;
            let share = ids_bt.shape().elements() as f64 / divisor;
            for routed in blocks.iter().filter_map(|block| block.routing) {
                let balance = routed.load_balancing_loss * (moe.load_balance * share / mixtures);
                objective = objective + (balance + routed.z_loss * (moe.z_loss * share / mixtures));
            }
        }
        Losses {
            objective,
            cross_entropy,
            blocks,
        }
    }

    /// Computes the residual streams that enter the first block; two streams are both initialized to the
    /// embedding.
    fn embed<'g>(&self, ids_bt: Value<'g>, positions: RowPositions<'g>) -> Residual<'g> {
        let g = ids_bt.builder();
        let x = ops::embedding(ids_bt, self.embedding.value(g));
        let x = scale(&self.embed_scale, x);
        let x = match self.position_embedding {
            Some(table) => x + ops::embedding(positions.ids(g), table.value(g)),
            None => x,
        };
        let x = norm(&self.embed_norm, x);
        Residual {
            x,
            y: self.second_norm.is_some().then_some(x),
        }
    }

    /// Computes `final_norm(x)`; with two streams `final_norm(merge_norm(x) + second_norm(y))`.
    fn final_norm_output<'g>(&self, Residual { x, y }: Residual<'g>) -> Value<'g> {
        let x = match y {
            Some(y) => norm(&self.merge_norm, x) + norm(&self.second_norm, y),
            None => x,
        };
        norm(&self.final_norm, x)
    }
}
