//! Causal grouped-query attention without materializing the (seq, seq) matrix of logits.
//!
//! Queries are processed in tiles of 64 and keys in tiles of 256, with an online softmax over the key
//! tiles (Milakov, Gimelshein 2018, arXiv 1805.02867). The backward pass recomputes the logits from
//! the log-sum-exp of each row (Dao et al. 2022, arXiv 2205.14135, algorithms 1 and 4). Fully masked
//! tiles are never computed.
//!
//! With `u = scale q k`, a logit is `u`, or `softcap tanh(u / softcap)` if a cap is set (Gemma 2,
//! arXiv 2408.00118). Query head h reads key/value head `h / (heads / kv_heads)`.

use crate::floats::{Floats, FloatsMut};
use crate::matmul::{Precision, Rows};
use crate::qkv::{BoundQkvTransform, QkvTransform};
use head_rows::HeadRows;

mod backward;
mod forward;
mod head_rows;
mod key_tile;
mod latent;
mod single_query;
mod stats;

pub use backward::{backward, backward_transformed};
pub use latent::{LatentAttentionConfig, cached_latent};
pub use stats::{AttentionStats, attention_stats, max_attention_logits};

/// Queries per tile.
const QUERY_TILE: usize = 64;
/// Keys per tile, a multiple of the panel width.
const KEY_TILE: usize = 256;

/// Shape and parameters of an attention op.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub seq: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of each query and key head.
    pub head_dim: usize,
    /// Channels of each value head, and of each head of the context.
    pub value_dim: usize,
    /// Softmax scale, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Soft cap of the logits.
    pub softcap: Option<f32>,
    /// Sliding window: the number of keys that a query attends to, the last of them its own, at least 1. `None`: all
    /// keys up to its own.
    pub window: Option<usize>,
    /// Precision of the operands of the matmuls; the softmax is in single precision. A single query that attends to a
    /// cache needs no matmul, and is not rounded.
    pub precision: Precision,
}

/// Computes attention of packed `qkv` (batch, seq, (heads + kv_heads) * head_dim + kv_heads * value_dim),
/// rows `[q heads | k heads | v heads]`, into `ctx` (batch, seq, heads * value_dim).
///
/// `lse` (batch, heads, seq) receives the log-sum-exp of each query's logits, for [`backward`].
///
/// ```
/// use hybridnorm_kernels::attention::{self, AttentionConfig};
/// use hybridnorm_kernels::matmul::Precision;
///
/// let one_channel = AttentionConfig {
///     batch: 1,
///     seq: 2,
///     heads: 1,
///     kv_heads: 1,
///     head_dim: 1,
///     value_dim: 1,
///     scale: 1.0,
///     softcap: None,
///     window: None,
///     precision: Precision::F32,
/// };
/// // Both keys have the logit 0, so that the second context is the mean of both values.
/// let qkv = [0.0f32, 0.0, 1.0, 0.0, 0.0, 3.0];
/// let (mut ctx, mut lse) = ([0.0f32; 2], [0.0; 2]);
/// attention::forward(&one_channel, &qkv, &mut ctx, &mut lse);
/// assert_eq!(ctx, [1.0, 2.0]);
/// ```
pub fn forward<'a>(
    a: &AttentionConfig,
    qkv: impl Into<Floats<'a>>,
    ctx: impl Into<FloatsMut<'a>>,
    lse: &mut [f32],
) {
    let (qkv, ctx) = (qkv.into(), ctx.into());
    a.check_packed("attention::forward", qkv.len(), ctx.len(), lse);
    forward::attend(a, &a.packed_layout(qkv, None), 0, ctx, lse);
}

/// Computes [`forward`] with `transform` applied to the projection `qkv`: rows are normalized and rotated when
/// attention reads them, and never stored.
///
/// # Panics
///
/// If a norm spans several heads, see [`QkvTransform::is_per_head`], or values are not as wide as keys.
pub fn forward_transformed<'a>(
    a: &AttentionConfig,
    transform: &BoundQkvTransform,
    qkv: impl Into<Floats<'a>>,
    ctx: impl Into<FloatsMut<'a>>,
    lse: &mut [f32],
) {
    let (qkv, ctx) = (qkv.into(), ctx.into());
    a.check_packed("attention::forward_transformed", qkv.len(), ctx.len(), lse);
    a.check_transform("attention::forward_transformed", transform);
    forward::attend(a, &a.packed_layout(qkv, Some(transform)), 0, ctx, lse);
}

/// Computes attention of new queries to a key/value cache, for generation.
///
/// `a.seq` is the number of new positions per sequence. `qkv`, packed as for [`forward`], holds the
/// new rows, of which only the queries are read; `cache` (batch, capacity, kv_heads * (head_dim +
/// value_dim)), rows `[k heads | v heads]`, already holds the new keys and values.
/// New query i attends to the cache rows up to `past + i`, as far as the window reaches. `ctx` is (batch, new, heads * value_dim);
/// `lse` (batch, heads, new) is scratch.
pub fn cached<'a>(
    a: &AttentionConfig,
    qkv: impl Into<Floats<'a>>,
    cache: &'a [f32],
    past: usize,
    ctx: impl Into<FloatsMut<'a>>,
    lse: &mut [f32],
) {
    let (qkv, ctx) = (qkv.into(), ctx.into());
    a.check_packed("attention::cached", qkv.len(), ctx.len(), lse);
    let row_stride = a.kv_heads * (a.head_dim + a.value_dim);
    let capacity = capacity(
        "attention::cached",
        cache,
        a.batch,
        row_stride,
        past + a.seq,
    );
    let packed = a.packed_layout(qkv, None);
    let layout = QkvLayout {
        kv: cache.into(),
        rows_per_sequence: capacity,
        row_stride,
        key: HeadOffsets {
            first: 0,
            ..packed.key
        },
        value: HeadOffsets {
            first: a.kv_heads * a.head_dim,
            ..packed.value
        },
        ..packed
    };
    match (a.seq, ctx) {
        (1, FloatsMut::F32(ctx)) => single_query::attend(a, &layout, past, ctx),
        (1, FloatsMut::Bf16(ctx)) => single_query::attend(a, &layout, past, ctx),
        (_, ctx) => forward::attend(a, &layout, past, ctx, lse),
    }
}

/// Checks a cache (batch, capacity, width); returns its capacity, which is at least `rows`.
pub(crate) fn capacity(
    name: &str,
    cache: &[f32],
    batch: usize,
    width: usize,
    rows: usize,
) -> usize {
    assert!(
        cache.len().is_multiple_of((batch * width).max(1)),
        "{name}: cache is not (batch, capacity, {width})"
    );
    let capacity = cache.len() / (batch * width).max(1);
    assert!(
        batch == 0 || rows <= capacity,
        "{name}: {rows} past and new rows exceed the capacity {capacity}"
    );
    capacity
}

impl AttentionConfig {
    /// Returns an upper bound on the bytes that [`forward`] allocates on `threads` threads. [`forward_transformed`]
    /// needs a few more rows per thread, [`cached`] packed tiles of all cached positions.
    pub fn forward_workspace(&self, threads: usize) -> usize {
        let rows = self.batch * self.seq * self.heads;
        threads * forward::scratch_bytes(self) + 2 * rows * size_of::<&mut [f32]>()
    }

    /// Returns an upper bound on the bytes that the backward functions allocate on `threads` threads.
    pub fn backward_workspace(&self, threads: usize) -> usize {
        let rows = self.batch * self.seq * (self.heads + 2 * self.kv_heads);
        threads * backward::scratch_bytes(self) + rows * size_of::<&mut [f32]>()
    }

    fn packed_width(&self) -> usize {
        (self.heads + self.kv_heads) * self.head_dim + self.kv_heads * self.value_dim
    }

    /// Checks the packed projection; returns its number of rows.
    fn check_qkv(&self, name: &str, qkv: usize) -> usize {
        let AttentionConfig {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            ..
        } = *self;
        assert!(
            head_dim > 0 && value_dim > 0 && kv_heads > 0 && heads > 0,
            "{name}: heads, kv_heads, head_dim and value_dim must be at least 1"
        );
        assert_eq!(
            heads % kv_heads,
            0,
            "{name}: heads, {heads}, is not a multiple of kv_heads, {kv_heads}"
        );
        let rows = batch * seq;
        let width = self.packed_width();
        assert_eq!(
            qkv,
            rows * width,
            "{name}: qkv is not ({batch}, {seq}, {width})"
        );
        rows
    }

    fn check_packed(&self, name: &str, qkv: usize, ctx: usize, lse: &[f32]) {
        let AttentionConfig {
            batch, seq, heads, ..
        } = *self;
        let rows = self.check_qkv(name, qkv);
        let width = heads * self.value_dim;
        assert_eq!(
            ctx,
            rows * width,
            "{name}: ctx is not ({batch}, {seq}, {width})"
        );
        assert_eq!(
            lse.len(),
            rows * heads,
            "{name}: lse is not ({batch}, {heads}, {seq})"
        );
    }

    fn check_transform(&self, name: &str, transform: &BoundQkvTransform) {
        let QkvTransform {
            heads,
            kv_heads,
            head_dim,
            ..
        } = *transform.config();
        assert_eq!(
            (heads, kv_heads, head_dim),
            (self.heads, self.kv_heads, self.head_dim),
            "{name}: (heads, kv_heads, head_dim) of the transform differ from those of the attention"
        );
        assert_eq!(
            self.value_dim, head_dim,
            "{name}: a fused transform requires value_dim = head_dim"
        );
        assert!(
            transform.positions() >= self.seq,
            "{name}: the RoPE table has {} positions, expected at least {}",
            transform.positions(),
            self.seq
        );
        assert!(
            transform.config().is_per_head(),
            "{name}: a norm spans several heads"
        );
    }

    /// Returns the layout of queries, keys and values in one packed projection.
    fn packed_layout<'a>(
        &self,
        qkv: Floats<'a>,
        transform: Option<&'a BoundQkvTransform<'a>>,
    ) -> QkvLayout<'a> {
        QkvLayout {
            queries: qkv,
            query_stride: self.packed_width(),
            kv: qkv,
            rows_per_sequence: self.seq,
            row_stride: self.packed_width(),
            key: HeadOffsets {
                first: self.heads * self.head_dim,
                step: self.head_dim,
            },
            value: HeadOffsets {
                first: (self.heads + self.kv_heads) * self.head_dim,
                step: self.value_dim,
            },
            transform,
            precision: self.precision,
        }
    }

    /// Returns the first key that the query at this position attends to.
    #[inline(always)]
    pub fn first_key(&self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Returns the first key of the first tile that the query at this position attends to.
    fn first_key_tile(&self, position: usize) -> usize {
        self.first_key(position) / KEY_TILE * KEY_TILE
    }

    /// Returns the factor on `q k` before the tanh, or of the logits without a soft cap.
    fn logit_scale(&self) -> f32 {
        self.scale / self.softcap.unwrap_or(1.0)
    }
}

/// Memory layout of queries, keys and values.
struct QkvLayout<'a> {
    /// Rows that start with the queries, and their stride.
    queries: Floats<'a>,
    query_stride: usize,
    kv: Floats<'a>,
    /// Key/value rows per sequence, their stride, and the offsets of keys and values in a row.
    rows_per_sequence: usize,
    row_stride: usize,
    key: HeadOffsets,
    value: HeadOffsets,
    transform: Option<&'a BoundQkvTransform<'a>>,
    precision: Precision,
}

/// Offsets of the heads in a part of a row.
#[derive(Clone, Copy)]
struct HeadOffsets {
    /// Offset of the first head.
    first: usize,
    /// Stride between heads; 0 if all heads share one.
    step: usize,
}

impl<'a> QkvLayout<'a> {
    /// Returns the queries of head `h` of a sequence.
    fn queries(&self, a: &AttentionConfig, sequence: usize, h: usize) -> HeadRows<'a> {
        let stride = self.query_stride;
        HeadRows {
            rows: Rows::new(
                self.queries
                    .skip(sequence * a.seq * stride + h * a.head_dim),
                stride,
            ),
            packed_head: h,
            precision: self.precision,
            transform: self.transform,
        }
    }

    /// Returns the keys and values of one head of a sequence.
    fn keys_and_values(
        &self,
        a: &AttentionConfig,
        sequence: usize,
        kv_head: usize,
    ) -> [HeadRows<'a>; 2] {
        let start = sequence * self.rows_per_sequence * self.row_stride;
        let head = |layout: HeadOffsets, packed_head: usize| HeadRows {
            rows: Rows::new(
                self.kv.skip(start + layout.first + kv_head * layout.step),
                self.row_stride,
            ),
            packed_head: packed_head + kv_head,
            precision: self.precision,
            transform: self.transform,
        };
        [
            head(self.key, a.heads),
            head(self.value, a.heads + a.kv_heads),
        ]
    }
}

#[cfg(test)]
mod tests;
