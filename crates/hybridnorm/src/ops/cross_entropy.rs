//! The training loss: cross-entropy of logits, with the z-loss.

use hybridnorm_cuda::{self as cuda, ElementType, Elements};
use hybridnorm_kernels::matmul::Precision;
use hybridnorm_kernels::cross_entropy::{self, LossSpec as Spec, LossSums};

use super::device::{Grid, Matrix, element_type_of};
use super::reference_math::{log_sum_exp, operand};
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// `objective` and `cross-entropy` of given logits: sums over rows, divided by [`Spec::divisor`]; the
/// objective adds `z_loss · logsumexp²`. Scale and cap of the spec do not apply: they are separate ops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropy(pub(crate) Spec);

/// Gradient of the logits from that of the objective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropyGrad(pub(crate) Spec);

/// Output projection and [`CrossEntropy`] in one op: logits are materialized for one chunk of rows at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearCrossEntropy(pub(crate) Spec);

/// [`LinearCrossEntropy`] and the gradients of its inputs, computed while a chunk of logits is available.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearCrossEntropyGrad(pub(crate) Spec);

/// Computes `[objective, cross-entropy]` in nats, one element each, from logits (.., v) and targets (n). Targets
/// of -1 are ignored. Only the objective has gradients.
///
/// # Panics
/// If the number of targets is not that of the rows of logits.
pub fn cross_entropy<'g>(
    logits: Value<'g>,
    targets_n: Value<'g>,
    z_loss: f64,
    divisor: f64,
) -> [Value<'g>; 2] {
    let spec = Spec {
        width: 1,
        vocab: logits.shape().width(),
        logit_scale: 1.0,
        softcap: None,
        z_loss: z_loss as f32,
        divisor: divisor as f32,
        precision: Precision::F32,
    };
    logits.builder().op(CrossEntropy(spec), &[logits, targets_n])
}

/// Returns `[objective, cross-entropy]` from sums over rows.
fn mean_losses(spec: &Spec, sums: &LossSums) -> [f64; 2] {
    let divisor = f64::from(spec.divisor);
    let cross_entropy = sums.cross_entropy / divisor;
    [cross_entropy + f64::from(spec.z_loss) * sums.z / divisor, cross_entropy]
}

fn write(spec: &Spec, sums: &LossSums, io: &mut Operands<'_, f32>) {
    for loss in mean_losses(spec, sums) {
        io.write()[0] = loss as f32;
    }
}

fn check_targets(rows: usize, targets: Type) {
    assert_eq!(targets, Type::i32(targets.shape), "cross-entropy: targets");
    assert_eq!(rows, targets.elements(), "cross-entropy: a target for every row");
}

/// Computes [`CrossEntropy`] in double precision.
fn forward(spec: &Spec, logits: &[f64], targets: &[i32]) -> [f64; 2] {
    let mut sums = LossSums::default();
    for (z, &target) in logits.chunks(spec.vocab).zip(targets) {
        if let Ok(target) = usize::try_from(target) {
            let lse = log_sum_exp(z);
            sums.cross_entropy += lse - z[target];
            sums.z += lse * lse;
        }
    }
    mean_losses(spec, &sums)
}

/// Replaces the logits with their gradient.
fn backward(spec: &Spec, logits: &mut [f64], targets: &[i32], upstream: f64) {
    let factor = upstream / f64::from(spec.divisor);
    for (z, &target) in logits.chunks_mut(spec.vocab).zip(targets) {
        let Ok(target) = usize::try_from(target) else {
            z.fill(0.0);
            continue;
        };
        let lse = log_sum_exp(z);
        let weight = 1.0 + 2.0 * f64::from(spec.z_loss) * lse;
        z.iter_mut().for_each(|z| *z = (*z - lse).exp() * weight * factor);
        z[target] -= factor;
    }
}

/// Returns the logits of [`LinearCrossEntropy`] in double precision, and the derivative of each with respect to
/// `x · w`.
fn logits(spec: &Spec, x: &[f64], w: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let scale = f64::from(spec.logit_scale);
    let each = x.chunks(spec.width).flat_map(|x| {
        w.chunks(spec.width).map(move |w| {
            let z = scale * x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            match spec.softcap.map(f64::from) {
                None => (z, scale),
                Some(cap) => (cap * (z / cap).tanh(), scale * (1.0 - (z / cap).tanh().powi(2))),
            }
        })
    });
    each.unzip()
}

/// Operands of the rows of logits on a device.
struct LogitRows {
    logits: Elements,
    targets: Elements,
    /// Gradient of the logits, which it may overwrite.
    dlogits: Option<Elements>,
    /// Gradient of the objective; 1 without.
    upstream: Option<Elements>,
    /// Cross-entropy and squared log-sum-exp of each row.
    losses: Option<Elements>,
}

impl LogitRows {
    fn record(&self, io: &mut DeviceOperands, spec: &Spec) {
        let rows = self.targets.len();
        let address = |x: Option<Elements>| x.map(|x| x.span);
        let arguments = cuda::Arguments::default().address(self.logits.span).address(self.targets.span);
        let arguments = match self.dlogits {
            Some(dlogits) => arguments.floats(dlogits),
            None => arguments.no_floats(),
        };
        let arguments = arguments
            .optional_address(address(self.upstream))
            .optional_address(address(self.losses))
            .long(rows as i64)
            .count(spec.vocab)
            .float(spec.logit_scale)
            .float(spec.softcap.unwrap_or(0.0))
            .float(spec.z_loss)
            .float(spec.divisor);
        io.launch("cross_entropy_rows", Grid::blocks(rows), arguments);
    }
}

/// Records objective and cross-entropy from the losses of rows.
fn record_losses(io: &mut DeviceOperands, spec: &Spec, losses: Elements, objective: Elements, loss: Elements) {
    let arguments = cuda::Arguments::default()
        .address(losses.span)
        .address(objective.span)
        .address(loss.span)
        .long(losses.len() as i64 / 2)
        .float(spec.z_loss)
        .float(spec.divisor);
    io.launch("cross_entropy_total", Grid::blocks(1), arguments);
}

/// Records [`LinearCrossEntropy`], with the gradients of rows and weight if given.
fn record_head(io: &mut DeviceOperands, spec: &Spec, outputs: [Elements; 2], gradients: Option<[Elements; 2]>) {
    /// Logits that are in memory at a time: 512 MiB in single precision. Few in tests, so that there are several parts.
    const MAX_LOGITS: usize = if cfg!(test) { 256 } else { 128 << 20 };
    let (x, w, targets) = (io.read(0), io.read(1), io.read(2));
    let rows = targets.len();
    let Spec { width, vocab, precision, .. } = *spec;
    let chunk = (MAX_LOGITS / vocab).clamp(1, rows.max(1));
    let operand = element_type_of(precision);
    let w = io.converted(w, operand);
    let logits = io.scratch(ElementType::F32, chunk * vocab);
    let dlogits = match (gradients, operand) {
        (None, _) => None,
        (Some(_), ElementType::F32) => Some(logits),
        (Some(_), operand) => Some(io.scratch(operand, chunk * vocab)),
    };
    let losses = io.scratch(ElementType::F32, 2 * rows);
    let x = io.converted(x, operand);
    if let (Some([_, dw]), 0) = (gradients, rows) {
        io.clear(dw);
    }
    for first in (0..rows).step_by(chunk) {
        let n = chunk.min(rows - first);
        let part = |all: Elements, width: usize| all.part(0, n * width);
        let x = Matrix::new(x.part(first * width, n * width), width);
        let w = Matrix::new(w, width);
        let logits = part(logits, vocab);
        io.matmul(precision, x, w.transposed(), logits, false);
        let dlogits = dlogits.map(|d| part(d, vocab));
        LogitRows {
            logits,
            targets: targets.part(first, n),
            dlogits,
            upstream: None,
            losses: Some(losses.part(2 * first, 2 * n)),
        }
        .record(io, spec);
        if let (Some([dx, dw]), Some(dlogits)) = (gradients, dlogits) {
            let dlogits = Matrix::new(dlogits, vocab);
            io.matmul(precision, dlogits, w, dx.part(first * width, n * width), false);
            io.matmul(precision, dlogits.transposed(), x, dw, first > 0);
        }
    }
    record_losses(io, spec, losses, outputs[0], outputs[1]);
}

impl Operation for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        assert_eq!(inputs[0].shape.width(), self.0.vocab, "cross-entropy: logits");
        check_targets(inputs[0].shape.rows(), inputs[1]);
        vec![Type::f32([1]); 2]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        // The second output, the cross-entropy, is a statistic.
        let Some(dobjective) = at.gradient_of(0) else { return vec![None; 2] };
        let inputs = [at.input(0), at.input(1), dobjective];
        let [dlogits] = at.graph().op(CrossEntropyGrad(self.0), &inputs);
        vec![Some(dlogits), None]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        for loss in forward(&self.0, io.read(0), io.ints(1)) {
            io.write()[0] = loss;
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let sums = cross_entropy::loss_from_logits(&self.0, io.read(0), io.ints(1));
        write(&self.0, &sums, io);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (logits, targets, objective, loss) = (io.read(0), io.read(1), io.write(), io.write());
        let losses = io.scratch(ElementType::F32, 2 * targets.len());
        let rows = LogitRows {
            logits,
            targets,
            dlogits: None,
            upstream: None,
            losses: Some(losses),
        };
        rows.record(io, &self.0);
        record_losses(io, &self.0, losses, objective, loss);
        Ok(())
    }
}

impl Operation for CrossEntropyGrad {
    fn name(&self) -> &'static str {
        "cross-entropy, gradient"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0]]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        backward(&self.0, io.write(), io.ints(1), io.read(2)[0]);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        cross_entropy::logits_backward(&self.0, io.write(), io.ints(1), io.read(2)[0]);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (logits, targets, upstream) = (io.write(), io.read(1), io.read(2));
        let rows = LogitRows {
            logits,
            targets,
            dlogits: Some(logits),
            upstream: Some(upstream),
            losses: None,
        };
        rows.record(io, &self.0);
        Ok(())
    }
}

impl LinearCrossEntropy {
    fn check(&self, inputs: &[Type]) {
        let Spec { width, vocab, .. } = self.0;
        assert_eq!(inputs[0].shape.width(), width, "head and loss: width of the rows");
        assert_eq!(inputs[1], Type::f32([vocab, width]), "head and loss: weight");
        check_targets(inputs[0].shape.rows(), inputs[2]);
    }

    fn matmul_flops(&self, inputs: &[Type]) -> u64 {
        2 * (inputs[0].elements() * self.0.vocab) as u64
    }
}

impl Operation for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "head and loss"
    }

    /// Reads rows, the head's weight and targets.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        self.check(inputs);
        vec![Type::f32([1]); 2]
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        self.matmul_flops(inputs)
    }

    fn scratch(&self, inputs: &[Type]) -> usize {
        self.0.scratch_len(inputs[0].shape.rows())
    }

    fn workspace(&self, inputs: &[Type], threads: usize) -> usize {
        self.0.workspace(inputs[0].shape.rows(), threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let [x, w] = [0, 1].map(|i| operand(self.0.precision, io.read(i)));
        let (logits, _) = logits(&self.0, &x, &w);
        for loss in forward(&self.0, &logits, io.ints(2)) {
            io.write()[0] = loss;
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, w, targets) = (io.floats(0), io.floats(1), io.ints(2));
        let (objective, loss, scratch) = (io.write(), io.write(), io.write());
        let sums = cross_entropy::loss(&self.0, x, w, targets, None, scratch);
        let losses = mean_losses(&self.0, &sums);
        (objective[0], loss[0]) = (losses[0] as f32, losses[1] as f32);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let outputs = [io.write(), io.write()];
        record_head(io, &self.0, outputs, None);
        Ok(())
    }
}

impl Operation for LinearCrossEntropyGrad {
    fn name(&self) -> &'static str {
        "head and loss"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        LinearCrossEntropy(self.0).check(inputs);
        vec![Type::f32([1]), Type::f32([1]), inputs[0], inputs[1]]
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        3 * LinearCrossEntropy(self.0).matmul_flops(inputs)
    }

    fn scratch(&self, inputs: &[Type]) -> usize {
        self.0.scratch_len(inputs[0].shape.rows())
    }

    fn workspace(&self, inputs: &[Type], threads: usize) -> usize {
        self.0.workspace(inputs[0].shape.rows(), threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let [x, w] = [0, 1].map(|i| operand(self.0.precision, io.read(i)));
        let targets = io.ints(2);
        let (mut z, derivatives) = logits(&self.0, &x, &w);
        for loss in forward(&self.0, &z, targets) {
            io.write()[0] = loss;
        }
        let (dx, dw) = (io.write(), io.write());
        backward(&self.0, &mut z, targets, 1.0);
        dx.fill(0.0);
        dw.fill(0.0);
        let Spec { width, vocab, .. } = self.0;
        for (at, (dz, derivative)) in z.iter().zip(derivatives).enumerate() {
            let (row, entry) = (at / vocab * width, at % vocab * width);
            for i in 0..width {
                dx[row + i] += dz * derivative * w[entry + i];
                dw[entry + i] += dz * derivative * x[row + i];
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, w, targets) = (io.floats(0), io.floats(1), io.ints(2));
        let (objective, loss, dx, dw) = (io.write(), io.write(), io.write_floats(), io.write());
        let scratch = io.write();
        let sums = cross_entropy::loss_and_gradients(&self.0, x, w, targets, dx, dw, scratch);
        let losses = mean_losses(&self.0, &sums);
        (objective[0], loss[0]) = (losses[0] as f32, losses[1] as f32);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (outputs, gradients) = ([io.write(), io.write()], [io.write(), io.write()]);
        record_head(io, &self.0, outputs, Some(gradients));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_reordered, check_with, floats, ints, mapped_floats};
    use super::super::{linear, scale, softcap};
    use super::*;

    #[test]
    fn losses_of_logits() {
        let targets = || ints([4], &[2, -1, 0, 6]);
        for z_loss in [0.0, 0.1] {
            let given = [mapped_floats(1, [2, 2, 7], |x| 4.0 * x), targets()];
            check_with(&given, &[1], |_, x| cross_entropy(x[0], x[1], z_loss, 3.0).to_vec());
        }
    }

    #[test]
    fn cross_entropy_has_no_gradient() {
        let g = crate::graph::Builder::new();
        let logits = g.input("logits", Type::f32([4, 7]));
        let targets = g.input("targets", Type::i32([4]));
        let [_, cross_entropy_value] = cross_entropy(logits, targets, 0.1, 4.0);
        assert!(crate::passes::gradients(cross_entropy_value, &[logits])[0].is_none());
    }

    #[test]
    fn output_projections_with_their_losses() {
        let given = || [floats(1, [4, 5]), floats(2, [7, 5]), ints([4], &[2, -1, 0, 6])];
        for (factor, cap) in [(1.0, None), (3.0, Some(2.0)), (0.5, None)] {
            check_reordered(&given(), &[1], |_, x| {
                let logits = scale(linear(x[0], x[1]), factor);
                let logits = match cap {
                    Some(cap) => softcap(logits, cap),
                    None => logits,
                };
                cross_entropy(logits, x[2], 0.05, 4.0).to_vec()
            });
        }
    }
}
