//! Global gradient norm and gradient clipping, and shared parts of optimizer ops.
//!
//! [`SquaredNorms`] computes `Σ g²` of every gradient; the update ops, [`AdamW`](super::AdamW) and
//! [`Muon`](super::Muon), compute the global norm from it and scale gradients by [`clip_coefficient`](hybridnorm_kernels::adamw::clip_coefficient).

use hybridnorm_kernels::adamw::sum_squares;
use rayon::prelude::*;

use hybridnorm_cuda as cuda;

use super::device::Grid;
use super::{DeviceOperands, Operands, Op, Operation};
use crate::graph::{Builder, DType, Type, Value};

/// `Σ x²` of each input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SquaredNorms;

/// Computes `Σ x²` of each of n values, in double precision and in a fixed order: (n).
pub fn squared_norms<'g>(graph: &'g Builder, values: &[Value<'g>]) -> Value<'g> {
    let [squares] = graph.op(SquaredNorms, values);
    squares
}

impl Operation for SquaredNorms {
    fn name(&self) -> &'static str {
        "squared norms"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let is_single = |x: &Type| x.dtype == DType::F32;
        assert!(inputs.iter().all(is_single), "squared norms: element type");
        vec![Type::f64([inputs.len()])]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        for (i, square) in io.write_doubles().iter_mut().enumerate() {
            *square = io.read(i).iter().map(|x| x * x).sum();
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let squares = io.write_doubles();
        let values: Vec<&[f32]> = (0..squares.len()).map(|i| io.read(i)).collect();
        let pairs = squares.par_iter_mut().zip(values);
        pairs.for_each(|(square, x)| *square = sum_squares(x));
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let squares = io.write();
        let blocks = norm_grid().block_count();
        let partials = io.scratch(cuda::ElementType::F64, squares.len() * blocks);
        for i in 0..squares.len() {
            record_squares(io, io.read(i), partials.part(i * blocks, blocks));
        }
        sum_doubles(io, partials, squares, false);
        Ok(())
    }
}

/// Records what all parameters of a step share, `StepCoefficients` of the kernels: learning rate, clip coefficient, bias
/// corrections for these decay rates, and whether losses and gradients are finite.
pub(super) fn record_coefficients(
    io: &mut DeviceOperands,
    losses: cuda::Elements,
    squares: cuda::Elements,
    decay_rates: [f64; 2],
    max_grad_norm: f64,
) -> cuda::Elements {
    let coefficients = io.scratch(cuda::ElementType::F32, 8);
    let arguments = cuda::Arguments::default()
        .address(io.run_arguments())
        .address(losses.span)
        .address(squares.span)
        .address(coefficients.span)
        .count(losses.len())
        .count(squares.len())
        .double(decay_rates[0])
        .double(decay_rates[1])
        .double(max_grad_norm);
    io.launch("adamw_coefficients", Grid::warps(1), arguments);
    coefficients
}

/// Returns the grid of a sum of squares: of any value the same, as the order of its sums is.
fn norm_grid() -> Grid {
    Grid::blocks(64)
}

/// Records partial sums of squares, to be summed.
pub(super) fn record_squares(io: &mut DeviceOperands, x: cuda::Elements, partials: cuda::Elements) {
    let arguments = cuda::Arguments::default()
        .address(x.span)
        .address(partials.span)
        .long(x.len() as i64);
    io.launch("squared_norm", norm_grid(), arguments);
}

/// Records the Euclidean norm of a value, one element in double precision.
pub(super) fn record_norm(io: &mut DeviceOperands, x: cuda::Elements) -> cuda::Elements {
    let partials = io.scratch(cuda::ElementType::F64, norm_grid().block_count());
    let norm = io.scratch(cuda::ElementType::F64, 1);
    record_squares(io, x, partials);
    sum_doubles(io, partials, norm, true);
    norm
}

/// Records the sums of the rows of `partials` (len, parts), or their square roots.
pub(super) fn sum_doubles(io: &mut DeviceOperands, partials: cuda::Elements, to: cuda::Elements, is_root: bool) {
    if to.is_empty() {
        return;
    }
    let arguments = cuda::Arguments::default()
        .address(partials.span)
        .address(to.span)
        .long(to.len() as i64)
        .count(partials.len() / to.len())
        .int(is_root.into());
    io.launch("sum_doubles", Grid::elements(to.len()), arguments);
}

/// Checks the inputs that optimizer ops share: losses (which must be finite for the update), squared norms,
/// a gradient per parameter, and `states` values per parameter, with the shape of its gradient.
pub(super) fn check_parameters(name: &str, inputs: &[Type], parameters: usize, states: usize) {
    let [losses, squares, values @ ..] = inputs else {
        panic!("{name}: expected losses and squared norms")
    };
    assert_eq!(losses.dtype, DType::F32, "{name}: element type of the losses");
    assert_eq!(
        squares.dtype,
        DType::F64,
        "{name}: element type of the squared norms"
    );
    let count = (1 + states) * parameters;
    assert_eq!(values.len(), count, "{name}: values of {parameters} parameters");
    for (i, value) in values.iter().enumerate() {
        let gradient = values[i % parameters];
        assert_eq!(
            gradient.dtype,
            DType::F32,
            "{name}: element type of a gradient"
        );
        assert_eq!(*value, gradient, "{name}: state of parameter {}", i % parameters);
    }
}

/// Records an update of parameters, each given by its gradient and N - 1 states: the op's inputs are the losses, the
/// squared norms, all gradients, then the first state of every parameter, then the second, ... Returns the norms of
/// updates and of parameters.
pub(super) fn record_update<'g, const N: usize>(
    op: impl Into<Op>,
    losses: Value<'g>,
    squares: Value<'g>,
    parameters: &[[Value<'g>; N]],
) -> Value<'g> {
    let parameters = (0..N).flat_map(|part| parameters.iter().map(move |parameter| parameter[part]));
    let inputs: Vec<Value> = [losses, squares].into_iter().chain(parameters).collect();
    let [norms] = losses.builder().op(op, &inputs);
    norms
}

/// Groups the states that an op updates by parameter. They are written in the order of the inputs: the first state of
/// every parameter, then the second, ...
pub(super) fn states_by_parameter<'a, T, const N: usize>(
    io: &mut Operands<'a, T>,
    parameters: usize,
) -> Vec<[&'a mut [T]; N]> {
    let mut parts: [_; N] = std::array::from_fn(|_| {
        let part: Vec<_> = (0..parameters).map(|_| io.write()).collect();
        part.into_iter()
    });
    let mut next = || {
        parts
            .each_mut()
            .map(|part| part.next().expect("a state of every parameter"))
    };
    (0..parameters).map(|_| next()).collect()
}

/// Returns the global norm of all gradients; `None`, so that nothing is updated, if it or one of the
/// losses is not finite.
pub(super) fn finite_norm<T: Copy + Into<f64>>(losses: &[T], squares: &[f64]) -> Option<f64> {
    let norm = squares.iter().sum::<f64>().sqrt();
    let is_finite = losses.iter().all(|&x| x.into().is_finite());
    (is_finite && norm.is_finite()).then_some(norm)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_with, floats, mapped_floats};
    use super::*;

    #[test]
    fn squares_of_values_of_all_shapes() {
        let given = [
            floats(1, [1]),
            mapped_floats(2, [3, 0], |x| x),
            mapped_floats(3, [257, 129], |x| 1e3 * x),
            mapped_floats(4, [2, 3, 5], |x| 1e-3 * x),
        ];
        check_with(&given, &[0], |g, x| vec![squared_norms(g, x)]);
        for i in 0..given.len() {
            check_with(&given, &[0], |g, x| vec![squared_norms(g, &x[i..=i])]);
        }
        check_with(&[], &[0], |g, x| vec![squared_norms(g, x)]);
    }

    #[test]
    fn nothing_is_updated_unless_all_is_finite() {
        assert_eq!(finite_norm(&[1f32, -2.0], &[9.0, 16.0]), Some(5.0));
        assert_eq!(finite_norm::<f32>(&[], &[]), Some(0.0));
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(finite_norm(&[1.0, broken], &[9.0]), None);
        }
        for broken in [f64::NAN, f64::INFINITY] {
            assert_eq!(finite_norm(&[1f32], &[9.0, broken]), None);
        }
    }

    #[test]
    #[should_panic(expected = "squared norms: element type")]
    fn integers_are_rejected() {
        let g = Builder::new();
        squared_norms(&g, &[g.input("ids", Type::i32([3]))]);
    }
}
