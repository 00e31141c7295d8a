//! Causal self-attention of packed queries, keys and values.

use hybridnorm_cuda::{self as cuda, ElementType, Elements};
use hybridnorm_kernels::attention::{self, AttentionConfig};
use hybridnorm_kernels::floats::FloatsMut;
use hybridnorm_kernels::matmul::Precision;

use super::device::{Grid, element_type_of};
use super::reference_math::softmax;
use super::{BackwardContext, DeviceOperands, Operands, Operation, QkvTransform};
use crate::graph::{Type, Value};

/// Causal self-attention from packed q, k, v to the context, with the log-sum-exp of every query's logits,
/// saved for backward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention(pub(crate) AttentionConfig);

/// Gradient of the packed q, k, v.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionGrad(pub(crate) AttentionConfig);

/// [`QkvTransform`] and [`Attention`] in one op: normalized and rotated heads are materialized one tile at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkvAttention {
    pub(crate) transform: QkvTransform,
    pub(crate) attention: AttentionConfig,
}

/// Gradients of [`QkvAttention`], which recompute the normalized and rotated heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkvAttentionGrad(pub(crate) QkvAttention);

/// Computes causal self-attention from packed q, k, v (b, t, (h + g)·k + g·value) to the context (b, t, h·value).
///
/// # Panics
/// If the shapes are not those of the config.
pub fn attention(qkv_btc: Value<'_>, config: AttentionConfig) -> Value<'_> {
    let [context, _] = qkv_btc.builder().op(Attention(config), &[qkv_btc]);
    context
}

/// Returns the types of context and log-sum-exp.
fn output_types(config: &AttentionConfig) -> Vec<Type> {
    vec![
        Type::f32([config.batch, config.seq, config.heads * config.value_dim]),
        Type::f32([config.batch, config.heads, config.seq]),
    ]
}

/// Returns the FLOPs of the forward pass's two matmuls, over the unmasked logits.
fn matmul_flops(config: &AttentionConfig) -> u64 {
    let per_sequence: usize = match config.window {
        Some(window) => (0..config.seq).map(|t| (t + 1).min(window)).sum(),
        None => config.seq * (config.seq + 1) / 2,
    };
    let pairs = config.batch * config.heads * per_sequence;
    2 * (pairs * (config.head_dim + config.value_dim)) as u64
}

/// Appends `AttentionConfig` of the kernels.
pub(super) fn device_config(arguments: cuda::Arguments, config: &AttentionConfig) -> cuda::Arguments {
    arguments
        .count(config.batch)
        .count(config.seq)
        .count(config.heads)
        .count(config.kv_heads)
        .count(config.head_dim)
        .count(config.value_dim)
        .count(config.window.map_or(0, |window| window.min(config.seq)))
        .float(config.scale)
        .float(config.softcap.unwrap_or(0.0))
}

/// Keys, or queries, of a tile of the kernels; queries, or keys, of a warp; and warps of a block.
const TILE: usize = 32;
const ROWS: usize = 4;
const WARPS: usize = 4;

/// Returns a grid of tiles for each of `heads` heads, with `floats` numbers in shared memory.
///
/// # Errors
/// If the heads are too wide.
fn tile_grid(config: &AttentionConfig, heads: usize, floats: usize) -> Result<Grid, String> {
    const MAX_WIDTH: usize = 256;
    let width = config.head_dim.max(config.value_dim);
    if width > MAX_WIDTH {
        return Err(format!("heads of {width} channels, of at most {MAX_WIDTH}"));
    }
    let blocks = config.seq.div_ceil(ROWS * WARPS) * config.batch * heads;
    Grid::with_shared_memory(blocks, WARPS, floats * size_of::<f32>())
}

/// Kernels on tensor cores, for heads of one width.
struct MmaKernels {
    forward: &'static str,
    query_gradients: &'static str,
    key_gradients: &'static str,
}

/// Returns the kernels on tensor cores, if there are any for these heads and the types of all `operands`.
fn mma_kernels<const N: usize>(config: &AttentionConfig, operands: [Elements; N]) -> Option<MmaKernels> {
    let is_bf16 = operands.iter().all(|x| x.element_type == ElementType::Bf16);
    if config.precision != Precision::Bf16 || !is_bf16 {
        return None;
    }
    match (config.head_dim, config.value_dim) {
        (64, 64) => Some(MmaKernels {
            forward: "attention_mma_forward_64",
            query_gradients: "attention_mma_queries_64",
            key_gradients: "attention_mma_keys_64",
        }),
        (128, 128) => Some(MmaKernels {
            forward: "attention_mma_forward_128",
            query_gradients: "attention_mma_queries_128",
            key_gradients: "attention_mma_keys_128",
        }),
        _ => None,
    }
}

/// Queries, or keys, of a block on tensor cores; keys of a tile of the forward pass; and keys, or queries, of a tile of the
/// backward pass.
const MMA_ROWS: usize = 16 * WARPS;
const MMA_KEYS: usize = 64;
const MMA_GRAD_TILE: usize = 32;

/// Returns the grid of a kernel on tensor cores: a block for each 64 positions of a head, with `rows` rows of a head in
/// shared memory.
///
/// # Errors
/// If a card has less shared memory.
fn mma_grid(config: &AttentionConfig, heads: usize, rows: usize) -> Result<Grid, String> {
    const PADDING: usize = 8;
    let blocks = config.seq.div_ceil(MMA_ROWS) * config.batch * heads;
    Grid::with_shared_memory(blocks, WARPS, rows * (config.head_dim + PADDING) * size_of::<u16>())
}

/// Records context and log-sum-exp of packed q, k, v.
fn record_forward(
    io: &mut DeviceOperands,
    config: &AttentionConfig,
    [qkv, ctx, lse]: [Elements; 3],
) -> Result<(), String> {
    if qkv.is_empty() {
        return Ok(());
    }
    let (d, e) = (config.head_dim, config.value_dim);
    let (kernel, grid) = match mma_kernels(config, [qkv]) {
        Some(kernels) => (kernels.forward, mma_grid(config, config.heads, 2 * MMA_KEYS)?),
        None => {
            let floats = ROWS * WARPS * d + TILE * (d + 1) + TILE * e;
            ("attention_forward", tile_grid(config, config.heads, floats)?)
        }
    };
    let arguments = cuda::Arguments::default().floats(qkv).floats(ctx).address(lse.span);
    io.launch(kernel, grid, device_config(arguments, config));
    Ok(())
}

/// Records the gradient of packed q, k, v.
fn record_backward(
    io: &mut DeviceOperands,
    config: &AttentionConfig,
    [qkv, ctx, lse, dctx, dqkv]: [Elements; 5],
) -> Result<(), String> {
    if qkv.is_empty() {
        return Ok(());
    }
    let floats = (ROWS * WARPS + TILE) * (config.head_dim + config.value_dim) + 2 * TILE;
    let delta = io.scratch(ElementType::F32, lse.len());
    let arguments = cuda::Arguments::default()
        .floats(qkv)
        .floats(ctx)
        .floats(dctx)
        .address(lse.span)
        .address(delta.span)
        .floats(dqkv);
    let arguments = device_config(arguments, config);
    // Queries go first, since they also write delta.
    if let Some(kernels) = mma_kernels(config, [qkv, dctx]) {
        let rows = 2 * (MMA_ROWS + MMA_GRAD_TILE);
        let [queries, keys] = [config.heads, config.kv_heads].map(|heads| mma_grid(config, heads, rows));
        io.launch(kernels.query_gradients, queries?, arguments.clone());
        io.launch(kernels.key_gradients, keys?, arguments);
        return Ok(());
    }
    let queries = tile_grid(config, config.heads, floats)?;
    io.launch("attention_backward_queries", queries, arguments.clone());
    let keys = tile_grid(config, config.kv_heads, floats)?;
    io.launch("attention_backward_keys", keys, arguments);
    Ok(())
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let AttentionConfig { batch, seq, heads, kv_heads, head_dim, value_dim, .. } = self.0;
        let width = (heads + kv_heads) * head_dim + kv_heads * value_dim;
        assert_eq!(inputs[0], Type::f32([batch, seq, width]), "attention: packed q, k, v");
        output_types(&self.0)
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let inputs = [at.input(0), at.output(0), at.output(1), at.gradient()];
        let [dx] = at.graph().op(AttentionGrad(self.0), &inputs);
        vec![Some(dx)]
    }

    fn flops(&self, _inputs: &[Type]) -> u64 {
        matmul_flops(&self.0)
    }

    fn workspace(&self, _inputs: &[Type], threads: usize) -> usize {
        self.0.forward_workspace(threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        forward(&self.0, io.read(0), io.write(), io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        attention::forward(&self.0, io.floats(0), io.write_floats(), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (qkv, ctx, lse) = (io.read(0), io.write(), io.write());
        record_forward(io, &self.0, [qkv, ctx, lse])?;
        Ok(())
    }
}

impl Operation for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention, gradient"
    }

    /// Reads packed q, k, v, context, log-sum-exp, and the gradient of the context.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0]]
    }

    fn flops(&self, _inputs: &[Type]) -> u64 {
        // The logits are recomputed, and each matmul of the forward pass has two in the backward pass.
        5 * matmul_flops(&self.0) / 2
    }

    fn workspace(&self, _inputs: &[Type], threads: usize) -> usize {
        self.0.backward_workspace(threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        backward(&self.0, io.read(0), io.read(3), io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (qkv, ctx, lse, dctx) = (io.floats(0), io.floats(1), io.read(2), io.floats(3));
        attention::backward(&self.0, qkv, ctx, lse, dctx, io.write_floats());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (qkv, ctx, lse, dctx) = (io.read(0), io.read(1), io.read(2), io.read(3));
        let dqkv = io.write();
        record_backward(io, &self.0, [qkv, ctx, lse, dctx, dqkv])?;
        Ok(())
    }
}

impl QkvAttention {
    /// True if the kernel normalizes heads one by one, without the whole packed row.
    fn is_per_head(&self) -> bool {
        self.transform.config.is_per_head()
    }

    /// Returns the scratch elements of the packed q, k, v, if they must be materialized; in the precision of the
    /// attention, as if another op had stored them.
    fn materialized_elements(&self, inputs: &[Type]) -> usize {
        match self.is_per_head() {
            true => 0,
            false => FloatsMut::scratch_len(self.attention.precision, inputs[0].elements()),
        }
    }
}

impl Operation for QkvAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    /// Reads the inputs of [`QkvTransform`].
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        self.transform.check(inputs);
        output_types(&self.attention)
    }

    fn flops(&self, _inputs: &[Type]) -> u64 {
        matmul_flops(&self.attention)
    }

    fn scratch(&self, inputs: &[Type]) -> usize {
        self.materialized_elements(inputs)
    }

    fn workspace(&self, _inputs: &[Type], threads: usize) -> usize {
        self.attention.forward_workspace(threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let mut rows = vec![0.0; io.read(0).len()];
        self.transform.reference_forward(io, &mut rows);
        forward(&self.attention, &rows, io.write(), io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (ctx, lse) = (io.write_floats(), io.write());
        let (transform, qkv) = (self.transform.bind(io), io.floats(0));
        if self.is_per_head() {
            return attention::forward_transformed(&self.attention, &transform, qkv, ctx, lse);
        }
        let (mut rows, _) = FloatsMut::of_scratch(self.attention.precision, io.write(), qkv.len());
        hybridnorm_kernels::qkv::forward(&transform, qkv, rows.reborrow());
        attention::forward(&self.attention, rows.as_floats(), ctx, lse);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (ctx, lse) = (io.write(), io.write());
        let rows = io.scratch(element_type_of(self.attention.precision), io.read(0).len());
        self.transform.record_forward(io, rows);
        record_forward(io, &self.attention, [rows, ctx, lse])?;
        Ok(())
    }
}

impl Operation for QkvAttentionGrad {
    fn name(&self) -> &'static str {
        "attention, gradient"
    }

    /// Reads the inputs of [`QkvTransform`], context, log-sum-exp, and the gradient of the context.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0], inputs[2], inputs[3], inputs[4]]
    }

    fn flops(&self, _inputs: &[Type]) -> u64 {
        5 * matmul_flops(&self.0.attention) / 2
    }

    fn scratch(&self, inputs: &[Type]) -> usize {
        2 * self.0.materialized_elements(inputs)
    }

    fn workspace(&self, _inputs: &[Type], threads: usize) -> usize {
        self.0.attention.backward_workspace(threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (dx, dparams) = (io.write(), [io.write(), io.write(), io.write()]);
        let mut rows = vec![0.0; dx.len()];
        self.0.transform.reference_forward(io, &mut rows);
        let mut drows = vec![0.0; dx.len()];
        backward(&self.0.attention, &rows, io.read(7), &mut drows);
        self.0.transform.reference_backward(io, &drows, dx, dparams);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (dx, dparams) = (io.write_floats(), [io.write(), io.write(), io.write()]);
        let (transform, config, qkv) = (self.0.transform.bind(io), &self.0.attention, io.floats(0));
        let (ctx, lse, dctx) = (io.floats(5), io.read(6), io.floats(7));
        if self.0.is_per_head() {
            return attention::backward_transformed(config, &transform, qkv, ctx, lse, dctx, dx, dparams);
        }
        let (mut rows, scratch) = FloatsMut::of_scratch(config.precision, io.write(), qkv.len());
        let (mut drows, _) = FloatsMut::of_scratch(config.precision, scratch, qkv.len());
        hybridnorm_kernels::qkv::forward(&transform, qkv, rows.reborrow());
        attention::backward(config, rows.as_floats(), ctx, lse, dctx, drows.reborrow());
        hybridnorm_kernels::qkv::backward(&transform, qkv, drows.as_floats(), dx, dparams);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (dx, dparams) = (io.write(), [io.write(), io.write(), io.write()]);
        let (ctx, lse, dctx) = (io.read(5), io.read(6), io.read(7));
        let QkvAttention { transform, attention } = self.0;
        let [rows, drows] = [(); 2].map(|()| io.scratch(element_type_of(attention.precision), io.read(0).len()));
        transform.record_forward(io, rows);
        record_backward(io, &attention, [rows, ctx, lse, dctx, drows])?;
        transform.record_backward(io, drows, dx, dparams)?;
        Ok(())
    }
}

/// Offsets of queries, keys and values by head in row (b, t).
struct HeadOffsets<'a> {
    config: &'a AttentionConfig,
    width: usize,
}

impl<'a> HeadOffsets<'a> {
    fn new(config: &'a AttentionConfig) -> Self {
        let width = (config.heads + config.kv_heads) * config.head_dim + config.kv_heads * config.value_dim;
        Self { config, width }
    }

    fn query(&self, b: usize, t: usize, h: usize) -> usize {
        (b * self.config.seq + t) * self.width + h * self.config.head_dim
    }

    fn key(&self, b: usize, t: usize, h: usize) -> usize {
        let group = h / (self.config.heads / self.config.kv_heads);
        self.query(b, t, self.config.heads + group)
    }

    fn value(&self, b: usize, t: usize, h: usize) -> usize {
        let group = h / (self.config.heads / self.config.kv_heads);
        let all_keys = self.query(b, t, self.config.heads + self.config.kv_heads);
        all_keys + group * self.config.value_dim
    }

    fn context(&self, b: usize, t: usize, h: usize) -> usize {
        ((b * self.config.seq + t) * self.config.heads + h) * self.config.value_dim
    }

    /// Calls `f(b, t, h)` for every query.
    fn for_each(&self, mut f: impl FnMut(usize, usize, usize)) {
        for b in 0..self.config.batch {
            for t in 0..self.config.seq {
                (0..self.config.heads).for_each(|h| f(b, t, h));
            }
        }
    }

    /// Returns the logits of a query with the keys that it attends to, and their derivatives under the soft cap.
    fn logits(&self, qkv: &[f64], b: usize, t: usize, h: usize) -> [Vec<f64>; 2] {
        let q = &qkv[self.query(b, t, h)..][..self.config.head_dim];
        let logit = |s| {
            let k = &qkv[self.key(b, s, h)..][..self.config.head_dim];
            let u = f64::from(self.config.scale) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
            match self.config.softcap.map(f64::from) {
                None => (u, 1.0),
                Some(cap) => (cap * (u / cap).tanh(), 1.0 - (u / cap).tanh().powi(2)),
            }
        };
        let (logits, derivatives) = (self.config.first_key(t)..=t).map(logit).unzip();
        [logits, derivatives]
    }
}

/// Computes [`Attention`] in double precision.
pub(super) fn forward(config: &AttentionConfig, qkv: &[f64], ctx: &mut [f64], lse: &mut [f64]) {
    let at = HeadOffsets::new(config);
    ctx.fill(0.0);
    at.for_each(|b, t, h| {
        let (weights, query_lse) = softmax(&at.logits(qkv, b, t, h)[0]);
        lse[(b * config.heads + h) * config.seq + t] = query_lse;
        let ctx = &mut ctx[at.context(b, t, h)..][..config.value_dim];
        for (s, p) in (config.first_key(t)..).zip(&weights) {
            let v = &qkv[at.value(b, s, h)..][..config.value_dim];
            ctx.iter_mut().zip(v).for_each(|(ctx, v)| *ctx += p * v);
        }
    });
}

/// Computes the gradient of [`forward`]'s input in double precision.
pub(super) fn backward(config: &AttentionConfig, qkv: &[f64], dctx: &[f64], dqkv: &mut [f64]) {
    let at = HeadOffsets::new(config);
    dqkv.fill(0.0);
    at.for_each(|b, t, h| {
        let [logits, derivatives] = at.logits(qkv, b, t, h);
        let (weights, _) = softmax(&logits);
        let dctx = &dctx[at.context(b, t, h)..][..config.value_dim];
        let first = config.first_key(t);
        let dp: Vec<f64> = (first..=t)
            .map(|s| {
                let v = &qkv[at.value(b, s, h)..][..config.value_dim];
                dctx.iter().zip(v).map(|(d, v)| d * v).sum()
            })
            .collect();
        let delta: f64 = weights.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
        for s in first..=t {
            let at_key = s - first;
            let weight = weights[at_key];
            let du = weight * (dp[at_key] - delta) * derivatives[at_key] * f64::from(config.scale);
            let (q, k, v) = (at.query(b, t, h), at.key(b, s, h), at.value(b, s, h));
            for i in 0..config.head_dim {
                dqkv[q + i] += du * qkv[k + i];
                dqkv[k + i] += du * qkv[q + i];
            }
            for (i, dctx) in dctx.iter().enumerate() {
                dqkv[v + i] += weight * dctx;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use hybridnorm_kernels::norm::{Gain, NormConfig, NormFn};
    use hybridnorm_kernels::qkv::{QkOrder, QkvTransform as QkvConfig, rope_frequencies, rope_table};

    use super::super::qkv_transform;
    use super::super::testing::{check, check_reordered, fixed_input, floats, mapped_floats};
    use super::*;

    fn config(seq: usize, value_dim: usize, softcap: Option<f32>) -> AttentionConfig {
        AttentionConfig {
            batch: 2,
            seq,
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            value_dim,
            scale: 0.4,
            softcap,
            window: None,
            precision: hybridnorm_kernels::matmul::Precision::F32,
        }
    }

    #[test]
    fn attention_is_causal() {
        for (seq, value_dim, softcap) in [(1, 6, None), (5, 6, Some(0.7)), (9, 3, None)] {
            let config = config(seq, value_dim, softcap);
            let width = 6 * 6 + 2 * value_dim;
            let qkv = mapped_floats(1, [2, seq, width], |x| 2.0 * x);
            check(&[qkv], |_, x| attention(x[0], config));
        }
    }

    #[test]
    fn windows_limit_the_keys() {
        for window in [1, 3, 8] {
            let config = AttentionConfig {
                window: Some(window),
                ..config(9, 3, Some(0.7))
            };
            let qkv = mapped_floats(1, [2, 9, 42], |x| 2.0 * x);
            check(&[qkv], |_, x| attention(x[0], config));
        }
    }

    #[test]
    fn norms_and_rotations_before_attention() {
        let per_head = |groups: usize, gain| NormConfig {
            function: NormFn::Rmsnorm,
            eps: 1e-5,
            gain,
            bias: false,
            width: 6,
            groups,
        };
        let full = |heads: usize| NormConfig { width: 6 * heads, ..per_head(1, Gain::Plain) };
        let (plain, own) = (per_head(1, Gain::None), |h| Some(per_head(h, Gain::OnePlus)));
        let norms = [
            [None; 3],
            [Some(per_head(1, Gain::Plain)); 3],
            [own(4), own(2), Some(plain)],
            [Some(full(4)), Some(full(2)), None],
        ];
        for [q, k, v] in norms {
            for (order, clip) in [(QkOrder::BeforeRope, None), (QkOrder::AfterRope, Some(0.7))] {
                let transform = QkvConfig {
                    heads: 4,
                    kv_heads: 2,
                    head_dim: 6,
                    q,
                    k,
                    v,
                    order,
                    qk_scale: 1.2,
                    clip,
                };
                let [q_len, k_len, v_len] = [q, k, v].map(|n| n.map_or(0, |n| n.params_len()));
                let table = rope_table(&rope_frequencies(100.0, 6), 1.0, 0, 5);
                let table: Vec<f64> = table.into_iter().map(f64::from).collect();
                let given = [
                    // No element is at the limit of the clip, where the difference is not the derivative.
                    floats(6, [2, 5, 48]),
                    mapped_floats(2, [q_len], |x| 1.0 + 0.3 * x),
                    mapped_floats(3, [k_len], |x| 1.0 + 0.3 * x),
                    mapped_floats(4, [v_len], |x| 1.0 + 0.3 * x),
                    fixed_input([5, 6], table),
                ];
                check(&given, |_, x| transformed(x, transform));
                // Fused ops sum the gradients of norm parameters head by head.
                check_reordered(&given, &[], |_, x| {
                    vec![attention(transformed(x, transform), config(5, 6, None))]
                });
            }
        }
    }

    fn transformed<'g>(x: &[Value<'g>], transform: QkvConfig) -> Value<'g> {
        qkv_transform(x[0], x[4], [Some(x[1]), Some(x[2]), Some(x[3])], transform)
    }
}
