//! Normalization of rows or columns of weight matrices to unit norm (nGPT, arXiv 2410.01131).

use std::ops::Range;

use hybridnorm_kernels::unit;

use hybridnorm_cuda as cuda;

use super::device::Grid;
use super::{DeviceOperands, Operands, Operation};
use crate::graph::{DType, Type, Value};

/// Division of every row by its Euclidean norm, in place; zero rows are unchanged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UnitRows {
    columns: usize,
}

/// Division of every column of stacked matrices by its Euclidean norm, in place; zero columns are unchanged.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitColumns {
    columns: usize,
    /// Rows of each matrix.
    rows: Vec<usize>,
}

/// Normalizes the rows of a matrix, which is state, to unit norm.
///
/// # Panics
/// If it does not consist of rows of `columns` elements.
pub fn unit_rows(matrix: Value<'_>, columns: usize) {
    let [] = matrix.builder().op(UnitRows { columns }, &[matrix]);
}

/// Normalizes the columns of stacked matrices, which are state, to unit norm; `rows` is the number of rows of each
/// matrix.
///
/// # Panics
/// If they do not consist of this many rows of `columns` elements.
pub fn unit_columns(matrices: Value<'_>, columns: usize, rows: Vec<usize>) {
    let [] = matrices
        .builder()
        .op(UnitColumns { columns, rows }, &[matrices]);
}

/// Divides elements by their Euclidean norm.
fn normalize<'a>(vector: impl Iterator<Item = &'a mut f64>) {
    let vector: Vec<&mut f64> = vector.collect();
    let norm = vector.iter().map(|x| x.powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        vector.into_iter().for_each(|x| *x /= norm);
    }
}

impl Operation for UnitRows {
    fn name(&self) -> &'static str {
        "unit rows"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [matrix] = inputs else {
            panic!("unit rows: expected a matrix")
        };
        assert_eq!(matrix.dtype, DType::F32, "unit rows: element type");
        let is_made_of_rows = self.columns > 0 && matrix.elements() % self.columns == 0;
        assert!(is_made_of_rows, "unit rows: {} elements do not form rows of {}", matrix.elements(), self.columns);
        Vec::new()
    }

    fn state_inputs(&self, inputs: usize) -> Range<usize> {
        0..inputs
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        for row in io.write().chunks_mut(self.columns) {
            normalize(row.iter_mut());
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        unit::normalize_rows(io.write(), self.columns);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let matrix = io.write();
        let rows = matrix.len() / self.columns;
        let arguments = cuda::Arguments::default().address(matrix.span).long(rows as i64).count(self.columns);
        io.launch("unit_rows", Grid::blocks(rows), arguments);
        Ok(())
    }
}

impl Operation for UnitColumns {
    fn name(&self) -> &'static str {
        "unit columns"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [matrices] = inputs else {
            panic!("unit columns: expected stacked matrices")
        };
        assert_eq!(matrices.dtype, DType::F32, "unit columns: element type");
        let elements = self.rows.iter().sum::<usize>() * self.columns;
        assert!(self.columns > 0, "unit columns: columns must be at least 1");
        assert_eq!(matrices.elements(), elements, "unit columns: elements");
        Vec::new()
    }

    fn state_inputs(&self, inputs: usize) -> Range<usize> {
        0..inputs
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let mut rest = io.write();
        for rows in &self.rows {
            let (matrix, others) = rest.split_at_mut(rows * self.columns);
            rest = others;
            for c in 0..self.columns {
                normalize(matrix.iter_mut().skip(c).step_by(self.columns));
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let mut rest = io.write();
        for rows in &self.rows {
            let (matrix, others) = rest.split_at_mut(rows * self.columns);
            unit::normalize_columns(matrix, self.columns);
            rest = others;
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (all, mut first) = (io.write(), 0);
        for rows in &self.rows {
            let matrix = all.part(first, rows * self.columns);
            first += matrix.len();
            let arguments = cuda::Arguments::default().address(matrix.span).long(*rows as i64).count(self.columns);
            io.launch("unit_columns", Grid::elements(self.columns), arguments);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::stateful::Executors;
    use super::super::testing::{floats, numbers};
    use super::super::{AdamW, adamw, squared_norms};
    use super::*;
    use crate::graph::Builder;
    use crate::ops::Arguments;

    /// Returns `matrix` after an in-place op on it, and checks that the three elements before it and the two
    /// after it are unchanged.
    fn apply(matrix: &[f64], record: impl Fn(Value<'_>)) -> Vec<f64> {
        let ty = Type::f32([matrix.len()]);
        let around = [numbers(1, 3), numbers(2, 2)];
        let state = [&around[0], matrix, &around[1]].concat();
        let after = Executors::new(&[state]).run(Arguments::default(), &[], |g, buffers, _| {
            record(g.state(buffers[0], 3, ty));
            Vec::new()
        });
        let (first, rest) = after.cpu.buffers[0].split_at(3);
        let (found, last) = rest.split_at(matrix.len());
        assert_eq!([first, last], [&around[0][..], &around[1][..]]);
        found.to_vec()
    }

    fn norm<'a>(vector: impl Iterator<Item = &'a f64>) -> f64 {
        vector.map(|x| x * x).sum::<f64>().sqrt()
    }

    #[test]
    fn rows_have_unit_norm() {
        for (rows, columns) in [(1, 1), (0, 5), (7, 13), (129, 257)] {
            let found = apply(&numbers(3, rows * columns), |x| unit_rows(x, columns));
            for row in found.chunks(columns) {
                assert!((norm(row.iter()) - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn columns_of_every_matrix_have_unit_norm() {
        for (rows, columns) in [
            (vec![1], 1),
            (vec![], 5),
            (vec![7, 0, 2], 13),
            (vec![65, 64], 257),
        ] {
            let n = rows.iter().sum::<usize>() * columns;
            let found = apply(&numbers(3, n), |x| unit_columns(x, columns, rows.clone()));
            let mut rest = &found[..];
            for rows in rows.into_iter().filter(|rows| *rows > 0) {
                let (matrix, others) = rest.split_at(rows * columns);
                rest = others;
                for c in 0..columns {
                    let column = matrix.iter().skip(c).step_by(columns);
                    assert!((norm(column) - 1.0).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn zero_vectors_are_unchanged() {
        let matrix = [0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0];
        let by_row = apply(&matrix, |x| unit_rows(x, 3));
        assert_eq!(by_row, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        let by_column = apply(&matrix, |x| unit_columns(x, 3, vec![1, 2]));
        assert_eq!(by_column, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn a_parameter_is_updated_and_then_normalized() {
        let state = [numbers(1, 21), vec![0.0; 21], vec![0.0; 21]];
        let arguments = |step| Arguments {
            lr: 0.1,
            step,
            ..Arguments::default()
        };
        let mut executors = Executors::new(&state);
        let mut run = |step| executors.run(arguments(step), &[floats(step, [3, 7])], |g, buffers, x| {
            let [p, m, v] = [0, 1, 2].map(|i| g.state(buffers[i], 0, x[0].ty()));
            let op = AdamW {
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                max_grad_norm: 1.0,
                weight_decay: vec![0.0],
            };
            let norms = adamw(op, x[0], squared_norms(g, x), &[[x[0], p, m, v]]);
            unit_rows(p, 7);
            vec![norms]
        });
        run(1);
        let after = run(2).cpu;
        for row in after.buffers[0].chunks(7) {
            assert!((norm(row.iter()) - 1.0).abs() < 1e-6);
        }
        // The norm of three unit-norm rows, before the second update.
        assert!((after.outputs[0][1] - 3f64.sqrt()).abs() < 1e-6);
    }

    #[test]
    #[should_panic(expected = "unit columns: elements")]
    fn mismatched_row_counts_are_rejected() {
        let g = Builder::new();
        unit_columns(g.input("x", Type::f32([4, 3])), 3, vec![2, 1]);
    }

    #[test]
    #[should_panic(expected = "unit rows: 12 elements do not form rows of 5")]
    fn wrong_row_width_is_rejected() {
        let g = Builder::new();
        unit_rows(g.input("x", Type::f32([4, 3])), 5);
    }
}
