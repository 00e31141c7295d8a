//! RMS and maximum absolute value of a value's elements, for taps.

use hybridnorm_kernels::tensor_stats::tensor_stats as measure;

use hybridnorm_cuda as cuda;

use super::device::Grid;
use super::{DeviceOperands, Operands, Operation};
use crate::graph::{DType, Type, Value};

/// Root mean square and maximum absolute value of all elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorStats;

/// Computes root mean square and maximum absolute value of all elements, (2) in double precision: zeros for no
/// elements, NaN if an element is NaN. Not differentiable.
pub fn tensor_stats(x: Value<'_>) -> Value<'_> {
    let [found] = x.builder().op(TensorStats, &[x]);
    found
}

/// Returns the larger number; NaN if one is NaN.
pub(super) fn larger_or_nan(x: f64, y: f64) -> f64 {
    if x.is_nan() || x > y { x } else { y }
}

impl Operation for TensorStats {
    fn is_scheduled_early(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "tensor statistics"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [x] = inputs else {
            panic!("tensor statistics: expected one value")
        };
        assert_eq!(x.dtype, DType::F32, "tensor statistics: element type");
        vec![Type::f64([2])]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, found) = (io.read(0), io.write_doubles());
        let squares: f64 = x.iter().map(|x| x * x).sum();
        found[0] = (squares / x.len().max(1) as f64).sqrt();
        found[1] = x.iter().map(|x| x.abs()).fold(0.0, larger_or_nan);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let found = measure(io.floats(0));
        io.write_doubles()
            .copy_from_slice(&[found.rms, f64::from(found.max)]);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let grid = Grid::blocks(64);
        let blocks = grid.block_count();
        let (x, found) = (io.read(0), io.write());
        let partials = io.scratch(cuda::ElementType::F64, 2 * blocks);
        let arguments = cuda::Arguments::default().floats(x).address(partials.span).long(x.len() as i64);
        io.launch("tensor_stats", grid, arguments);
        let arguments = cuda::Arguments::default()
            .address(partials.span)
            .address(found.span)
            .long(x.len() as i64)
            .count(blocks);
        io.launch("tensor_stats_total", Grid::warps(1), arguments);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::stateful::Executors;
    use super::super::testing::{check_with, floats, mapped_floats};
    use super::*;
    use crate::graph::Builder;
    use crate::ops::Arguments;

    #[test]
    fn stats_of_values_with_other_readers() {
        for rows in [0, 1, 7, 1031] {
            let given = [mapped_floats(1, [1, rows, 33], |x| 3.0 * x - 1.0)];
            check_with(&given, &[1, 2], |_, x| {
                let y = x[0] * 0.5;
                vec![y + x[0], tensor_stats(y), tensor_stats(x[0])]
            });
        }
    }

    #[test]
    fn non_finite_values_propagate() {
        for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let x = floats(1, [3, 5]).with(7, broken);
            let mut executors = Executors::new(&[]);
            let after = executors.run(Arguments::default(), &[x], |_, _, x| vec![tensor_stats(x[0])]);
            for found in &after.cpu.outputs[0] {
                assert!(!found.is_finite());
                assert_eq!(found.is_nan(), broken.is_nan());
            }
        }
    }

    #[test]
    #[should_panic(expected = "tensor statistics: element type")]
    fn integers_are_rejected() {
        let g = Builder::new();
        tensor_stats(g.input("ids", Type::i32([3])));
    }
}
