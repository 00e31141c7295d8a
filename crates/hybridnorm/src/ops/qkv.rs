//! Transform of the packed projection `[q heads | k heads | v heads]` to normalized, rotated and scaled queries,
//! keys and values.

use hybridnorm_cuda::{self as cuda, ElementType, Elements};
use hybridnorm_kernels::norm::NormConfig;
use hybridnorm_kernels::qkv::{self, BoundQkvTransform, QkOrder, QkvTransform as QkvConfig};

use super::device::Grid;
use super::rotate::rotated;
use super::{BackwardContext, DeviceOperands, Operands, Operation, fill, norm};
use crate::graph::{Type, Value};

/// Clamp, norms, rotation and scale of packed q, k, v; see [`QkvConfig`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkvTransform {
    pub(crate) config: QkvConfig,
    /// Positions per sequence.
    pub(crate) seq: usize,
}

/// Gradients of the projection and of the parameters of the three norms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkvTransformGrad(pub(crate) QkvTransform);

/// Applies all transforms between the packed projection (b, t, c) and the attention logits; c is
/// `(h + 2g)·k`.
///
/// `rope_table` (t, k) is that of [`rope_table`](super::rope_table()). `params` are those of
/// the norms of q, k and v, `None` if a norm is absent or has none.
///
/// # Panics
/// If a shape does not match the config.
pub fn qkv_transform<'g>(
    qkv_btc: Value<'g>,
    rope_table: Value<'g>,
    params: [Option<Value<'g>>; 3],
    config: QkvConfig,
) -> Value<'g> {
    let g = qkv_btc.builder();
    let [q, k, v] = params.map(|p| p.unwrap_or_else(|| fill(g, 0.0, Type::f32([0]))));
    let &[_, seq, _] = qkv_btc.shape().sizes() else {
        panic!("qkv transform: the projection is not (b, t, c), but {:?}", qkv_btc.shape())
    };
    let [y] = g.op(QkvTransform { config, seq }, &[qkv_btc, rope_table, q, k, v]);
    y
}

/// Returns the number of parameters of the norms of q, k and v.
fn params_len(config: &QkvConfig) -> [usize; 3] {
    [config.q, config.k, config.v].map(|norm| norm.map_or(0, |norm| norm.params_len()))
}

impl QkvTransform {
    /// Checks the operands of the forward pass.
    pub(super) fn check(&self, inputs: &[Type]) {
        let config = &self.config;
        let width = (config.heads + 2 * config.kv_heads) * config.head_dim;
        assert_eq!(inputs[0].shape.width(), width, "qkv transform: width of the rows");
        assert_eq!(inputs[1].shape.width(), config.head_dim, "qkv transform: width of the rotary table");
        for (params, len) in inputs[2..5].iter().zip(params_len(config)) {
            assert_eq!(*params, Type::f32([len]), "qkv transform: parameters of a norm");
        }
    }

    /// Binds the transform to its rotary table and norm parameters.
    pub(super) fn bind<'a>(&self, io: &Operands<'a, f32>) -> BoundQkvTransform<'a> {
        let rope_table = &io.read(1)[..self.seq * self.config.head_dim];
        BoundQkvTransform::new(&self.config, rope_table, [io.read(2), io.read(3), io.read(4)])
    }

    /// Returns first column, number of heads and norm of queries, keys and values.
    fn segments(&self) -> [(usize, usize, Option<NormConfig>); 3] {
        let QkvConfig { heads, kv_heads, head_dim, q, k, v, .. } = self.config;
        [
            (0, heads, q),
            (heads * head_dim, kv_heads, k),
            ((heads + kv_heads) * head_dim, kv_heads, v),
        ]
    }

    /// Rotates all heads by the angles of a position; inversely for a `sign` of -1.
    fn rotate(&self, rotation: &[f64], heads: &mut [f64], sign: f64) {
        for head in heads.chunks_mut(self.config.head_dim) {
            head.copy_from_slice(&rotated(head, rotation, sign));
        }
    }

    /// Appends `QkvConfig` of the kernels.
    fn device_config(&self, arguments: cuda::Arguments) -> cuda::Arguments {
        let QkvConfig { heads, kv_heads, head_dim, q, k, v, order, qk_scale, clip } = self.config;
        let norms = [q, k, v].iter().fold(arguments, |all, norm| match norm {
            Some(norm) => norm::device_config(all, norm),
            None => (0..5).fold(all, |all, _| all.int(0)).float(0.0),
        });
        norms
            .count(heads)
            .count(kv_heads)
            .count(head_dim)
            .count(self.seq)
            .float(clip.unwrap_or(f32::INFINITY))
            .float(qk_scale)
            .int((order == QkOrder::AfterRope).into())
    }

    /// Returns the norm rows of a token.
    fn norm_rows(&self) -> usize {
        let head_dim = self.config.head_dim;
        let rows = self.segments().map(|(_, heads, norm)| heads * head_dim / norm.map_or(head_dim, |norm| norm.width));
        rows.iter().sum()
    }

    /// Records `y = transform(x)`; the inputs of the op follow x.
    pub(super) fn record_forward(&self, io: &mut DeviceOperands, y: Elements) {
        let x = io.read(0);
        let rows = x.len() / self.width();
        let arguments = cuda::Arguments::default().floats(x).floats(y);
        let arguments = (1..5).fold(arguments, |all, i| all.address(io.read(i).span));
        let arguments = self.device_config(arguments.long(rows as i64));
        io.launch("qkv_forward", Grid::warps(rows * self.norm_rows()), arguments);
    }

    /// Records the gradients of x and of the parameters.
    pub(super) fn record_backward(
        &self,
        io: &mut DeviceOperands,
        dy: Elements,
        dx: Elements,
        dparams: [Elements; 3],
    ) -> Result<(), String> {
        let x = io.read(0);
        let rows = x.len() / self.width();
        let count = dparams.iter().map(|d| d.len()).sum();
        let grid = Grid::summing_warps(rows * self.norm_rows(), count)?;
        let partials = io.scratch(ElementType::F32, grid.block_count() * count);
        let arguments = cuda::Arguments::default().floats(x).floats(dy).floats(dx);
        let arguments = (1..5).fold(arguments, |all, i| all.address(io.read(i).span));
        let arguments = arguments.address(partials.span).long(rows as i64);
        io.launch("qkv_backward", grid, self.device_config(arguments));
        let all = io.scratch(ElementType::F32, count);
        io.sum_partials(partials, all);
        let mut at = 0;
        for to in dparams.into_iter().filter(|to| !to.is_empty()) {
            io.copy(all.part(at, to.len()), to);
            at += to.len();
        }
        Ok(())
    }

    /// Returns the width of a packed row.
    fn width(&self) -> usize {
        (self.config.heads + 2 * self.config.kv_heads) * self.config.head_dim
    }

    fn clamped(&self, x: &[f64]) -> Vec<f64> {
        let limit = self.config.clip.map_or(f64::INFINITY, f64::from);
        x.iter().map(|x| x.clamp(-limit, limit)).collect()
    }

    /// Computes the forward pass in double precision.
    pub(super) fn reference_forward(&self, io: &Operands<'_, f64>, y: &mut [f64]) {
        let (x, k) = (io.read(0), self.config.head_dim);
        let width = (self.config.heads + 2 * self.config.kv_heads) * k;
        for (r, (x, y)) in x.chunks(width).zip(y.chunks_mut(width)).enumerate() {
            let rotation = &io.read(1)[(r % self.seq) * k..][..k];
            for (part, (first, heads, norm_config)) in self.segments().into_iter().enumerate() {
                let mut h = self.clamped(&x[first..first + heads * k]);
                let rotates = part < 2;
                let after = self.config.order == QkOrder::AfterRope;
                if rotates && after {
                    self.rotate(rotation, &mut h, 1.0);
                }
                if let Some(norm_config) = norm_config {
                    let before = h.clone();
                    norm::forward(&norm_config, &before, io.read(2 + part), &mut h);
                }
                if rotates {
                    if !after {
                        self.rotate(rotation, &mut h, 1.0);
                    }
                    h.iter_mut().for_each(|h| *h *= f64::from(self.config.qk_scale));
                }
                y[first..first + heads * k].copy_from_slice(&h);
            }
        }
    }

    /// Computes the gradients in double precision.
    pub(super) fn reference_backward(
        &self,
        io: &Operands<'_, f64>,
        dy: &[f64],
        dx: &mut [f64],
        dparams: [&mut [f64]; 3],
    ) {
        let (x, k) = (io.read(0), self.config.head_dim);
        let width = (self.config.heads + 2 * self.config.kv_heads) * k;
        let mut dparams = dparams;
        dparams.iter_mut().for_each(|d| d.fill(0.0));
        let rows = x.chunks(width).zip(dy.chunks(width)).zip(dx.chunks_mut(width));
        for (r, ((x, dy), dx)) in rows.enumerate() {
            let rotation = &io.read(1)[(r % self.seq) * k..][..k];
            for (part, (first, heads, norm_config)) in self.segments().into_iter().enumerate() {
                let columns = first..first + heads * k;
                let mut h = self.clamped(&x[columns.clone()]);
                let mut d = dy[columns.clone()].to_vec();
                let rotates = part < 2;
                let after = self.config.order == QkOrder::AfterRope;
                if rotates {
                    d.iter_mut().for_each(|d| *d *= f64::from(self.config.qk_scale));
                    match after {
                        true => self.rotate(rotation, &mut h, 1.0),
                        false => self.rotate(rotation, &mut d, -1.0),
                    }
                }
                if let Some(norm_config) = norm_config {
                    let mut partial = vec![0.0; norm_config.params_len()];
                    let mut dh = vec![0.0; d.len()];
                    norm::backward(&norm_config, &h, io.read(2 + part), &d, &mut dh, &mut partial);
                    dparams[part].iter_mut().zip(partial).for_each(|(sum, partial)| *sum += partial);
                    d = dh;
                }
                if rotates && after {
                    self.rotate(rotation, &mut d, -1.0);
                }
                let limit = self.config.clip.map_or(f64::INFINITY, f64::from);
                for ((dx, d), x) in dx[columns.clone()].iter_mut().zip(d).zip(&x[columns]) {
                    *dx = if x.abs() > limit { 0.0 } else { d };
                }
            }
        }
    }
}

impl Operation for QkvTransform {
    fn name(&self) -> &'static str {
        "q·k·v norm and rotation"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        self.check(inputs);
        vec![inputs[0]]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let mut inputs = at.inputs().to_vec();
        inputs.push(at.gradient());
        let [dx, dq, dk, dv] = at.graph().op(QkvTransformGrad(*self), &inputs);
        vec![Some(dx), None, Some(dq), Some(dk), Some(dv)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let y = io.write();
        self.reference_forward(io, y);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let y = io.write_floats();
        qkv::forward(&self.bind(io), io.floats(0), y);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let y = io.write();
        self.record_forward(io, y);
        Ok(())
    }
}

impl Operation for QkvTransformGrad {
    fn name(&self) -> &'static str {
        "q·k·v norm and rotation, gradients"
    }

    /// Reads the inputs of the forward pass, and the gradient of its output.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0], inputs[2], inputs[3], inputs[4]]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (dx, dparams) = (io.write(), [io.write(), io.write(), io.write()]);
        self.0.reference_backward(io, io.read(5), dx, dparams);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (dx, dparams) = (io.write_floats(), [io.write(), io.write(), io.write()]);
        qkv::backward(&self.0.bind(io), io.floats(0), io.floats(5), dx, dparams);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (dx, dparams) = (io.write(), [io.write(), io.write(), io.write()]);
        self.0.record_backward(io, io.read(5), dx, dparams)?;
        Ok(())
    }
}
