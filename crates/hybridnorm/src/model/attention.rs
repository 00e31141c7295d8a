//! The attention function of a block: grouped-query attention, or multi-head latent attention.

mod grouped_query;
mod multi_head_latent;

use super::bias::bias;
use super::config::ModelConfig;
use super::norm::{Norm, NormSite, norm};
use super::parameter_builder::{Matrix, ParameterBuilder, Part};
use super::registry::{Param, Role};
use crate::graph::{Builder, Value};
use crate::ops;
use crate::placement::{self, AttnScale, HeadNorm};
use hybridnorm_kernels::attention::{AttentionConfig, LatentAttentionConfig};

pub use grouped_query::GroupedQueryAttention;
pub use multi_head_latent::MultiHeadLatentAttention;

/// The attention sub-layer of a block.
#[derive(Debug, Clone, PartialEq)]
pub enum Attention {
    /// Grouped-query attention.
    GroupedQuery(GroupedQueryAttention),
    /// Multi-head latent attention.
    MultiHeadLatent(MultiHeadLatentAttention),
}

/// Positions of a forward pass: their RoPE table, and the KV cache of a block, if any.
#[derive(Debug, Clone, Copy)]
pub struct PositionContext<'g> {
    /// Cosines and sines of the rotary embedding (t, rotary channels), see [`ops::rope_table`].
    pub rope_table: Value<'g>,
    /// KV cache (b, capacity, c): state that is updated.
    pub cache: Option<Value<'g>>,
    /// Segments (s, 3) of a flat batch of sequences of different lengths, whose slots the cache holds; see
    /// [`ops::Segment`]. `None` in a batch of sequences of one length.
    pub segments: Option<Value<'g>>,
    /// True if there is no cache, or an empty one and more than one position: these positions attend only to each
    /// other.
    pub is_prefill: bool,
}

impl<'g> PositionContext<'g> {
    /// Creates the context of positions 0 to `seq` in block `layer` (0-based), without a KV cache.
    pub fn from_start(graph: &'g Builder, config: &ModelConfig, layer: usize, seq: usize) -> Self {
        Self {
            rope_table: RopeTables::new(graph, RowPositions::Uniform { batch: 1, seq })
                .of_layer(config, layer),
            cache: None,
            segments: None,
            is_prefill: true,
        }
    }

    /// Appends columns of new rows (b, t, w), from `first_column` on, to the cache.
    fn append(&self, rows_btw: Value<'g>, first_column: usize, cache: Value<'g>) {
        match self.segments {
            None => ops::cache_append_columns(rows_btw, first_column, cache),
            Some(segments) => ops::segment_cache_append(rows_btw, first_column, cache, segments),
        }
    }

    /// Computes attention of packed rows over the cache.
    fn attend(
        &self,
        packed_btw: Value<'g>,
        cache: Value<'g>,
        config: AttentionConfig,
    ) -> Value<'g> {
        match self.segments {
            None => ops::cached_attention(packed_btw, cache, config),
            Some(segments) => ops::segment_cached_attention(packed_btw, cache, segments, config),
        }
    }

    /// Computes attention of absorbed queries over the cache.
    fn attend_latents(
        &self,
        queries: Value<'g>,
        cache: Value<'g>,
        config: LatentAttentionConfig,
    ) -> Value<'g> {
        match self.segments {
            None => ops::latent_attention(queries, cache, config),
            Some(segments) => ops::segment_latent_attention(queries, cache, segments, config),
        }
    }
}

/// Positions of the rows of a forward pass.
#[derive(Debug, Clone, Copy)]
pub(super) enum RowPositions<'g> {
    /// `seq` positions after those in the cache, in each of `batch` sequences.
    Uniform { batch: usize, seq: usize },
    /// Those of segments (s, 3), which have `rows` rows in total; see [`ops::Segment`].
    Segments { segments: Value<'g>, rows: usize },
}

impl<'g> RowPositions<'g> {
    /// Returns the segments, if any.
    pub(super) fn segments(self) -> Option<Value<'g>> {
        match self {
            Self::Uniform { .. } => None,
            Self::Segments { segments, .. } => Some(segments),
        }
    }

    /// Records the positions (b, t), or (1, n), as indices of an embedding.
    pub(super) fn ids(self, graph: &'g Builder) -> Value<'g> {
        match self {
            Self::Uniform { batch, seq } => ops::positions(graph, batch, seq),
            Self::Segments { segments, rows } => ops::segment_positions(segments, rows),
        }
    }

    /// Records the cosines and sines of the rotary embedding (t, k), or (n, k).
    fn rope_table(self, graph: &'g Builder, frequencies: &[f64], magnitude: f64) -> Value<'g> {
        match self {
            Self::Uniform { seq, .. } => ops::rope_table(graph, frequencies, magnitude, seq),
            Self::Segments { segments, rows } => {
                ops::segment_rope_table(segments, frequencies, magnitude, rows)
            }
        }
    }
}

/// RoPE tables of a forward pass: one for each set of frequencies.
pub(super) struct RopeTables<'g> {
    graph: &'g Builder,
    positions: RowPositions<'g>,
    /// Frequencies with the factor of cosines and sines, and their table.
    recorded: Vec<((Vec<f64>, f64), Value<'g>)>,
}

impl<'g> RopeTables<'g> {
    pub(super) fn new(graph: &'g Builder, positions: RowPositions<'g>) -> Self {
        Self {
            graph,
            positions,
            recorded: Vec::new(),
        }
    }

    /// Returns the table of block `layer`, see [`ops::rope_table`].
    pub(super) fn of_layer(&mut self, config: &ModelConfig, layer: usize) -> Value<'g> {
        let rope = config.rope_frequencies(layer);
        if let Some((_, table)) = self.recorded.iter().find(|(known, _)| *known == rope) {
            return *table;
        }
        let table = self.positions.rope_table(self.graph, &rope.0, rope.1);
        self.recorded.push((rope, table));
        table
    }
}

/// Output of attention, and the packed queries, keys and values that it reads.
pub(super) struct AttentionOutput<'g> {
    /// Output (b, t, d).
    pub(super) output: Value<'g>,
    /// Packed `[q | k | v]` after norms, rotation and scales, with the attention configuration; `None` where decoding
    /// absorbs the up-projections.
    pub(super) packed: Option<(Value<'g>, AttentionConfig)>,
}

impl Attention {
    /// Declares the attention of a block.
    pub(super) fn new(builder: &mut ParameterBuilder<'_>) -> Self {
        builder.in_attention = true;
        let attention = match builder.config.mla {
            None => Self::GroupedQuery(GroupedQueryAttention::new(builder)),
            Some(mla) => Self::MultiHeadLatent(MultiHeadLatentAttention::new(builder, &mla)),
        };
        builder.in_attention = false;
        attention
    }

    /// Computes the output (b, t, d) from the sub-layer input (b, t, d). With a cache, it also attends to cached
    /// positions and stores the new ones.
    pub fn output<'g>(&self, u_btd: Value<'g>, positions: &PositionContext<'g>) -> Value<'g> {
        self.forward(u_btd, positions).output
    }

    /// Computes [`Attention::output`], and returns the packed queries, keys and values with it.
    pub(super) fn forward<'g>(
        &self,
        u_btd: Value<'g>,
        positions: &PositionContext<'g>,
    ) -> AttentionOutput<'g> {
        match self {
            Self::GroupedQuery(attention) => attention.forward(u_btd, positions),
            Self::MultiHeadLatent(attention) => attention.forward(u_btd, positions),
        }
    }
}

/// Returns the scale of the attention logits `q·k`.
fn logit_scale(scale: AttnScale, head_dim: usize) -> f64 {
    match scale {
        AttnScale::InvSqrtHeadDim => 1.0 / (head_dim as f64).sqrt(),
        AttnScale::SqrtHeadDim => (head_dim as f64).sqrt(),
        AttnScale::Const(value) => value,
        AttnScale::Cosine => 1.0,
    }
}

/// Declares the norm of `heads` vectors of `width`.
fn head_norm(
    builder: &mut ParameterBuilder<'_>,
    path: &str,
    kind: HeadNorm,
    heads: usize,
    width: usize,
) -> Option<Norm> {
    let of_width = |width| NormSite {
        eps: builder.attention().norm_eps,
        ..NormSite::of_width(width)
    };
    let site = match kind {
        HeadNorm::None => return None,
        HeadNorm::PerHead => of_width(width),
        HeadNorm::PerHeadOwn => NormSite {
            groups: heads,
            ..of_width(width)
        },
        HeadNorm::PerHeadNoGain => NormSite {
            affine: false,
            ..of_width(width)
        },
        HeadNorm::Full => of_width(heads * width),
        HeadNorm::FullNoGain => NormSite {
            affine: false,
            ..of_width(heads * width)
        },
    };
    Some(Norm::new(builder, path, site))
}

/// Output projection, from the context (b, t, heads of `width`) to the residual stream (b, t, d).
#[derive(Debug, Clone, PartialEq)]
struct OutputProjection {
    width: usize,
    ctx_norm: Option<Norm>,
    head_gain: Option<Param>,
    out: Param,
    bias: Option<Param>,
}

impl OutputProjection {
    fn new(builder: &mut ParameterBuilder<'_>, heads: usize, width: usize) -> Self {
        let kind = builder.attention().ctx_norm;
        let has_gain = builder.attention().head_gain;
        let d = builder.config.d_model;
        let gain = has_gain.then_some(("", heads, 1.0));
        Self {
            width,
            ctx_norm: head_norm(builder, "attention.ctx_norm", kind, heads, width),
            head_gain: builder.add_vectors("attention.head_gain", Role::Scale, gain.as_slice()),
            out: builder.add_matrix(Matrix {
                path: "attention.out",
                label: "out",
                role: Role::Attention,
                columns: heads * width,
                parts: vec![Part {
                    path: "attention.out".into(),
                    rows: d,
                    projection: placement::Projection::O,
                    count_category: "attention out",
                }],
                n_interleaved_groups: 1,
                writes_residual: true,
                experts: 1,
            }),
            bias: builder.add_bias("attention.out_bias", d, builder.config.bias.out),
        }
    }

    fn forward<'g>(&self, context: Value<'g>) -> Value<'g> {
        let g = context.builder();
        let context = norm(&self.ctx_norm, context);
        let context = match self.head_gain {
            Some(gain) => ops::scale_columns(context, gain.value(g), self.width),
            None => context,
        };
        bias(&self.bias, ops::linear(context, self.out.value(g)))
    }
}
