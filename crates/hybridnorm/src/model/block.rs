//! Decoder block: attention and feed-forward with their norms, scales and skip connections.

use super::attention::{Attention, PositionContext};
use super::config::ModelConfig;
use super::feed_forward::{FeedForward, RouterOutputs};
use super::norm::norm;
use super::parameter_builder::ParameterBuilder;
use super::registry::Registry;
use super::scale::scale;
use super::sublayer::{Residual, SubLayer, SubLayerOutput};
use crate::error::{Error, Result};
use crate::graph::Value;
use crate::placement::Topology;
use hybridnorm_kernels::attention::AttentionConfig;

/// A decoder block whose norms, skip connections and scales come from a
/// [`ResolvedBlock`](crate::placement::ResolvedBlock).
///
/// With HybridNorm (arXiv 2503.04598) it is
///
/// ```text
/// Y  = X + A(X)            A normalizes queries, keys and values per head
/// X' = N(Y) + F(N(Y))
/// ```
///
/// or, as a graph:
///
/// ```
/// use hybridnorm::graph::{Builder, Type};
/// use hybridnorm::model::{Activation, Block, PositionContext, Registry, Residual};
/// use hybridnorm::ops;
/// # use hybridnorm::exec::{Executor, Reference, TensorRef};
/// # use hybridnorm::graph::DType;
/// # use hybridnorm::kernels::attention::AttentionConfig;
/// # use hybridnorm::kernels::matmul::Precision;
/// # use hybridnorm::kernels::norm::{Gain, NormConfig, NormFn};
/// # use hybridnorm::kernels::qkv::{QkOrder, QkvTransform};
/// # use hybridnorm::model::ModelConfig;
/// # use hybridnorm::placement;
/// # use hybridnorm::plan::{Options, Program};
///
/// let [b, t, d, heads, width] = [2, 5, 16, 4, 4];
/// # let config = ModelConfig::default()
/// #     .with_d_model(d)
/// #     .with_n_layers(1)
/// #     .with_n_heads(heads)
/// #     .with_n_kv_heads(heads)
/// #     .with_d_ff(24)
/// #     .with_vocab_size(1) // a block has no vocabulary
/// #     .with_max_seq_len(t)
/// #     .with_placement(placement::named("hybridnorm")?);
/// # let rotary = QkvTransform {
/// #     heads,
/// #     kv_heads: heads,
/// #     head_dim: width,
/// #     q: None,
/// #     k: None,
/// #     v: None,
/// #     order: QkOrder::BeforeRope,
/// #     qk_scale: 1.0,
/// #     clip: None,
/// # };
/// # let causal = AttentionConfig {
/// #     batch: b,
/// #     seq: t,
/// #     heads,
/// #     kv_heads: heads,
/// #     head_dim: width,
/// #     value_dim: width,
/// #     scale: 1.0 / (width as f32).sqrt(),
/// #     softcap: None,
/// #     window: None,
/// #     precision: Precision::F32,
/// # };
/// # let rms = |width| NormConfig {
/// #     function: NormFn::Rmsnorm,
/// #     eps: 1e-5,
/// #     gain: Gain::Plain,
/// #     bias: false,
/// #     width,
/// #     groups: 1,
/// # };
/// // `config` has the placement "hybridnorm".
/// let mut registry = Registry::default();
/// let block = Block::declare(&config, 0, &mut registry)?;
///
/// let g = Builder::new();
/// let x = g.input("x", Type::f32([b, t, d]));
/// let positions = PositionContext::from_start(&g, &config, 0, t);
///
/// // The ops with the block's parameters; `rms`, `rotary` and `causal` are their settings.
/// let weight = |name: &str| registry.get(&format!("blocks.0.{name}")).unwrap().param().value(&g);
/// let linear = |x, name| ops::linear(x, weight(name));
/// let norm = |x, width, name| ops::norm(x, weight(name), rms(width));
/// let rotate = |qkv| ops::qkv_transform(qkv, positions.rope_table, [None; 3], rotary);
/// let attend = |q, k, v| ops::attention(rotate(ops::concat(&[q, k, v])), causal);
/// let swiglu = |x| ops::activation(x, Activation::Swiglu);
///
/// let [q, k, v] = ops::split(linear(x, "attention.qkv"), [d; 3]);
/// let [q, k] = [norm(q, width, "attention.q_norm.gain"), norm(k, width, "attention.k_norm.gain")];
/// let v = norm(v, width, "attention.v_norm.gain");
/// let y = x + linear(attend(q, k, v), "attention.out");
/// let n = norm(y, d, "ffn.in_norm.gain");
/// let expected = n + linear(swiglu(linear(n, "feed_forward.up")), "feed_forward.down");
///
/// let actual = block.forward(Residual { x, y: None }, &positions).residual.x;
/// let difference = ops::tensor_stats(actual - expected).id();
/// # let program = Program::new(g.finish(), &[difference], Options::default());
/// # let mut executor = Reference::new();
/// # let parameters = executor.allocate(DType::F32, registry.elements())?;
/// # let numbers = |n| (0..n).map(|i| (i as f32).sin()).collect::<Vec<f32>>();
/// # executor.write(parameters, 0, TensorRef::F32(&numbers(registry.elements())));
/// # let values = numbers(b * t * d);
/// # let given = [("x", TensorRef::F32(&values))];
/// // On the reference executor, with arbitrary parameters and input:
/// executor.run(&program, ops::Arguments::default(), &given)?;
/// let difference = executor.output(&program, difference).into_f64();
/// let [_rms, largest] = difference[..] else { unreachable!() };
/// assert!(largest < 1e-12);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Norms, scales and skip connection of the attention sub-layer.
    pub attn_sub_layer: SubLayer,
    /// The attention function.
    pub attention: Attention,
    /// Norms, scales and skip connection of the feed-forward sub-layer.
    pub ffn_sub_layer: SubLayer,
    /// The feed-forward function.
    pub feed_forward: FeedForward,
    topology: Topology,
}

/// Residual stream after a block, and intermediate values for taps.
#[derive(Debug, Clone, Copy)]
pub struct BlockOutput<'g> {
    /// Residual streams after the block, (b, t, d).
    pub residual: Residual<'g>,
    /// Residual streams that entered the block, (b, t, d).
    pub input: Residual<'g>,
    /// Output of the attention branch, after its output norm and scale, (b, t, d); with `lerp_unit` the interpolation
    /// step `out_scale · (g − skip)`.
    pub attention: Value<'g>,
    /// Output of the feed-forward branch, after its output norm and scale, (b, t, d); with `lerp_unit` the
    /// interpolation step `out_scale · (g − skip)`.
    pub feed_forward: Value<'g>,
    /// Packed `[q | k | v]` after norms, rotation and scales, with the attention configuration; `None` where decoding
    /// absorbs the up-projections.
    pub packed_qkv: Option<(Value<'g>, AttentionConfig)>,
    /// Routing statistics, in a mixture of experts.
    pub routing: Option<RouterOutputs<'g>>,
}

impl Block {
    /// Declares only block `layer` (0-based) of a model, for custom graphs.
    ///
    /// # Errors
    /// If the configuration is invalid, or [`Error::OutOfRange`] if it has no such block.
    pub fn declare(config: &ModelConfig, layer: usize, registry: &mut Registry) -> Result<Self> {
        let (resolved, _) = config.resolve()?;
        if layer >= resolved.blocks.len() {
            let expected = format!("0 to {}", config.n_layers - 1);
            return Err(Error::out_of_range("layer", layer, expected));
        }
        Ok(Self::new(&mut ParameterBuilder {
            config,
            resolved: &resolved,
            registry,
            layer: Some(layer),
            in_attention: false,
        }))
    }

    /// Declares a block of a model.
    pub(super) fn new(builder: &mut ParameterBuilder<'_>) -> Self {
        let spec = builder.spec().clone();
        let mut ffn = spec.ffn.clone();
        // With one shared input norm, the feed-forward reads attention's.
        ffn.in_norm &= spec.topology != Topology::ParallelShared;
        Self {
            attn_sub_layer: SubLayer::new(builder, "attn", &spec.attn),
            attention: Attention::new(builder),
            ffn_sub_layer: SubLayer::new(builder, "ffn", &ffn),
            feed_forward: FeedForward::new(builder),
            topology: spec.topology,
        }
    }

    /// Computes the residual streams (b, t, d) after the block. With a cache, they contain the new positions only.
    pub fn forward<'g>(
        &self,
        residual: Residual<'g>,
        positions: &PositionContext<'g>,
    ) -> BlockOutput<'g> {
        let input = residual;
        let x = residual.x;
        let (mut packed_qkv, mut routing) = (None, None);
        let mut attention = |u| {
            let attention_output = self.attention.forward(u, positions);
            packed_qkv = attention_output.packed;
            attention_output.output
        };
        let mut feed_forward = |u| {
            let (output, router_outputs) = self.feed_forward.forward(u);
            routing = router_outputs;
            output
        };
        let (residual, attention_branch, feed_forward_branch) = match self.topology {
            Topology::Sequential => {
                let SubLayerOutput { residual, branch } =
                    self.attn_sub_layer.forward(residual, x, attention);
                let attention_branch = branch;
                let SubLayerOutput { residual, branch } =
                    self.ffn_sub_layer.forward(residual, x, feed_forward);
                (residual, attention_branch, branch)
            }
            Topology::ParallelShared | Topology::ParallelTwo => {
                let (attn, ffn) = (&self.attn_sub_layer, &self.ffn_sub_layer);
                let n = norm(&attn.in_norm, x);
                let n_ffn = match self.topology {
                    Topology::ParallelShared => n,
                    _ => norm(&ffn.in_norm, x),
                };
                let o = norm(&attn.out_norm, attention(scale(&attn.in_scale, n)));
                let o = scale(&attn.out_scale, o);
                let o_ffn = norm(&ffn.out_norm, feed_forward(scale(&ffn.in_scale, n_ffn)));
                let o_ffn = scale(&ffn.out_scale, o_ffn);
                let x = norm(&attn.post_norm, scale(&attn.skip_scale, x) + (o + o_ffn));
                (Residual { x, y: None }, o, o_ffn)
            }
        };
        BlockOutput {
            residual,
            input,
            attention: attention_branch,
            feed_forward: feed_forward_branch,
            packed_qkv,
            routing,
        }
    }
}
