//! Muon update: momentum with orthogonalized matrices (Jordan et al. 2024,
//! <https://kellerjordan.github.io/posts/muon/>), scaled and decayed as in arXiv 2502.16982.

use std::ops::Range;

use hybridnorm_cuda::{self as cuda, ElementType, Elements};
use hybridnorm_kernels::matmul::Precision;
use hybridnorm_kernels::{adamw, muon};

use super::device::{Grid, Matrix};
use super::gradient_norm::{
    check_parameters, finite_norm, record_coefficients, record_norm, record_update,
    states_by_parameter, sum_doubles,
};
use super::{Arguments, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// A Muon step on any number of stacks of matrices, in place. The learning rate is a run-time
/// argument.
///
/// With `g'` the gradient clipped to the global norm: `m = momentum m + g'`, `u = g' + momentum m`, or
/// `u = m` without `nesterov`, and for each matrix of a stack
/// `p -= lr (0.2 √max(rows, columns) O(u) + weight_decay p)`. O starts from `X = u / (|u| + 1e-7)` and
/// applies `iterations` times `X = a X + (b A + c A²) X` with `A = X Xᵀ`, a Newton–Schulz iteration that
/// drives the singular values towards 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Muon {
    /// Decay rate of the momentum, a sum of gradients.
    pub momentum: f64,
    /// True for Nesterov momentum.
    pub nesterov: bool,
    /// Newton–Schulz iterations.
    pub iterations: usize,
    /// Maximum global gradient norm, to which larger gradients are scaled down; 0 disables clipping.
    pub max_grad_norm: f64,
    /// Parameters to update.
    pub parameters: Vec<MuonParameter>,
}

/// A parameter that is a stack of matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct MuonParameter {
    /// Columns of the matrices.
    pub columns: usize,
    /// Rows of each matrix.
    pub rows: Vec<usize>,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

/// Updates n parameters: gradient, values and momentum of each, of equal shape; the last two are state.
///
/// `squares` are the [squared norms](super::squared_norms) of all gradients of the step, including those
/// that another op applies. Nothing is changed unless their global norm and all `losses` are finite.
///
/// Returns (n, 2) in double precision: Euclidean norms of the update of each parameter, and of its values
/// before; zeros if nothing was changed.
///
/// # Panics
/// If the number of parameters is not the op's, gradient, values and momentum of a parameter differ in
/// shape, or a parameter does not consist of its matrices.
pub fn muon<'g>(
    op: Muon,
    losses: Value<'g>,
    squares: Value<'g>,
    parameters: &[[Value<'g>; 3]],
) -> Value<'g> {
    record_update(op, losses, squares, parameters)
}

impl Muon {
    /// Returns the scratch elements of the kernel, in single precision.
    fn scratch_elements(&self) -> usize {
        let sizes = self
            .parameters
            .iter()
            .map(|parameter| muon::scratch_len(parameter.columns, &parameter.rows));
        sizes.max().unwrap_or(0)
    }
}

impl Operation for Muon {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        check_parameters("muon", inputs, self.parameters.len(), 2);
        for (i, (parameter, gradient)) in self.parameters.iter().zip(&inputs[2..]).enumerate() {
            let elements = parameter.rows.iter().sum::<usize>() * parameter.columns;
            assert_eq!(gradient.elements(), elements, "muon: matrices of parameter {i}");
        }
        vec![Type::f64([self.parameters.len(), 2])]
    }

    fn state_inputs(&self, inputs: usize) -> Range<usize> {
        inputs - 2 * self.parameters.len()..inputs
    }

    fn scratch(&self, _inputs: &[Type]) -> usize {
        self.scratch_elements()
    }

    fn flops(&self, _inputs: &[Type]) -> u64 {
        let matrices = self.parameters.iter();
        let matrices = matrices.flat_map(|parameter| parameter.rows.iter().map(|&rows| (rows, parameter.columns)));
        let flops = matrices.map(|(rows, columns)| {
            let (long, short) = (rows.max(columns), rows.min(columns));
            // A and A² are symmetric: only half of each is computed.
            long * short * short + short * short * short + 2 * long * short * short
        });
        (self.iterations * flops.sum::<usize>()) as u64
    }

    fn workspace(&self, _inputs: &[Type], threads: usize) -> usize {
        let parameters = self.parameters.iter();
        let bytes = parameters.map(|parameter| muon::workspace(parameter.columns, &parameter.rows, threads));
        bytes.max().unwrap_or(0)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let norms = io.write_doubles();
        norms.fill(0.0);
        let Some(norm) = finite_norm(io.read(0), io.doubles(1)) else {
            return;
        };
        let scale = adamw::clip_coefficient(self.max_grad_norm, norm);
        let Arguments { lr, .. } = io.arguments();
        let parameters = states_by_parameter(io, self.parameters.len()).into_iter().zip(&self.parameters);
        for (i, ([p, m], parameter)) in parameters.enumerate() {
            let mut u = Vec::with_capacity(m.len());
            for (m, g) in m.iter_mut().zip(io.read(2 + i)) {
                let g = scale * g;
                *m = self.momentum * *m + g;
                u.push(match self.nesterov {
                    true => g + self.momentum * *m,
                    false => *m,
                });
            }
            let (mut update, mut value) = (0.0, 0.0);
            let mut first = 0;
            for &rows in &parameter.rows {
                let matrix = first..first + rows * parameter.columns;
                let size = 0.2 * (rows.max(parameter.columns) as f64).sqrt();
                let o = orthogonalized(&u[matrix.clone()], parameter.columns, self.iterations);
                first = matrix.end;
                for (p, o) in p[matrix].iter_mut().zip(o) {
                    let added = -lr * (size * o + parameter.weight_decay * *p);
                    update += added * added;
                    value += *p * *p;
                    *p += added;
                }
            }
            norms[2 * i] = update.sqrt();
            norms[2 * i + 1] = value.sqrt();
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let norms = io.write_doubles();
        norms.fill(0.0);
        let Some(norm) = finite_norm(io.read(0), io.doubles(1)) else {
            return;
        };
        let hyperparameters = muon::Muon {
            lr: io.arguments().lr,
            momentum: self.momentum,
            nesterov: self.nesterov,
            iterations: self.iterations,
            clip_coefficient: adamw::clip_coefficient(self.max_grad_norm, norm) as f32,
        };
        let parameters = states_by_parameter(io, self.parameters.len()).into_iter().zip(&self.parameters);
        let scratch: &mut [f32] = match self.scratch_elements() {
            0 => &mut [],
            _ => io.write(),
        };
        let mut parameters: Vec<muon::ParameterState> = parameters
            .enumerate()
            .map(|(i, ([p, m], parameter))| muon::ParameterState {
                p,
                g: io.read(2 + i),
                m,
                columns: parameter.columns,
                rows_per_matrix: &parameter.rows,
                weight_decay: parameter.weight_decay,
            })
            .collect();
        let found = muon::step(&hyperparameters, &mut parameters, scratch);
        for (norms, found) in norms.chunks_exact_mut(2).zip(found) {
            norms.copy_from_slice(&[found.update, found.value]);
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        /// Elements of a thread.
        const PER_THREAD: usize = 4;
        let (losses, squares, norms) = (io.read(0), io.read(1), io.write());
        let coefficients = record_coefficients(io, losses, squares, [0.0, 0.0], self.max_grad_norm);
        let n = self.parameters.len();
        let [p, m] = [(); 2].map(|()| (0..n).map(|_| io.write()).collect::<Vec<_>>());
        let matrices = || self.parameters.iter().flat_map(|parameter| {
            parameter.rows.iter().map(|&rows| (rows, parameter.columns))
        });
        let largest = matrices().map(|(rows, columns)| rows * columns).max().unwrap_or(0);
        let shortest = matrices().map(|(rows, columns)| rows.min(columns)).max().unwrap_or(0);
        let product = io.scratch(ElementType::F32, largest);
        let [a, b] = [(); 2].map(|()| io.scratch(ElementType::F32, shortest * shortest));
        let all = p.iter().map(|p| p.len()).max().unwrap_or(0);
        let u = io.scratch(ElementType::F32, all);
        for (i, parameter) in self.parameters.iter().enumerate() {
            let u = u.part(0, p[i].len());
            let arguments = cuda::Arguments::default()
                .address(coefficients.span)
                .address(io.read(2 + i).span)
                .address(m[i].span)
                .address(u.span)
                .long(u.len() as i64)
                .float(self.momentum as f32)
                .int(self.nesterov.into());
            io.launch("muon_momentum", Grid::elements(u.len()), arguments);
            let columns = parameter.columns;
            let grids = parameter.rows.iter().map(|rows| Grid::blocks((rows * columns).div_ceil(PER_THREAD * 256)));
            let blocks: usize = grids.clone().map(Grid::block_count).sum();
            let partials = io.scratch(ElementType::F64, 2 * blocks);
            let (mut first, mut first_block) = (0, 0);
            for (&rows, grid) in parameter.rows.iter().zip(grids) {
                let [o, p] = [u, p[i]].map(|all| all.part(first, rows * columns));
                first += rows * columns;
                if !o.is_empty() {
                record_orthogonalization(io, o, columns, self.iterations, [product, a, b]);
            }
                let arguments = cuda::Arguments::default()
                    .address(coefficients.span)
                    .address(o.span)
                    .address(p.span)
                    .address(partials.part(first_block, 2 * blocks - first_block).span)
                    .long(o.len() as i64)
                    .long(blocks as i64)
                    .float(0.2 * (rows.max(columns) as f32).sqrt())
                    .float(parameter.weight_decay as f32);
                io.launch("muon_update", grid, arguments);
                first_block += grid.block_count();
            }
            sum_doubles(io, partials, norms.part(2 * i, 2), true);
        }
        Ok(())
    }
}

/// Coefficients of the Newton–Schulz iteration, of X, A X and A² X.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Records `y = alpha x + beta y`.
fn record_combination(io: &mut DeviceOperands, alpha: f32, x: Elements, beta: f32, y: Elements) {
    let arguments = cuda::Arguments::default()
        .address(x.span)
        .address(y.span)
        .long(y.len() as i64)
        .float(alpha)
        .float(beta);
    io.launch("linear_combination", Grid::elements(y.len()), arguments);
}

/// Records the Newton–Schulz iterations of a matrix in place, with scratch memory for a matrix of its size, and two of its
/// shorter side.
fn record_orthogonalization(
    io: &mut DeviceOperands,
    x: Elements,
    columns: usize,
    iterations: usize,
    [product, a, b]: [Elements; 3],
) {
    let rows = x.len() / columns;
    let short = rows.min(columns);
    let [product, a, b] = [
        product.part(0, x.len()),
        a.part(0, short * short),
        b.part(0, short * short),
    ];
    let norm = record_norm(io, x);
    let arguments = cuda::Arguments::default()
        .address(x.span)
        .address(norm.span)
        .long(x.len() as i64)
        .double(1e-7);
    io.launch("divide_by_norm", Grid::elements(x.len()), arguments);
    let [of_x, of_ax, of_aax] = COEFFICIENTS;
    let matrix = Matrix::new(x, columns);
    let square = |elements| Matrix::new(elements, short);
    for _ in 0..iterations {
        // A matrix with more rows than columns is iterated as its transpose would be, from the other side.
        let [left, right] = match rows <= columns {
            true => [matrix, matrix.transposed()],
            false => [matrix.transposed(), matrix],
        };
        io.matmul(Precision::F32, left, right, a, false);
        io.matmul(Precision::F32, square(a), square(a), b, false);
        record_combination(io, of_ax, a, of_aax, b);
        let [left, right] = match rows <= columns {
            true => [square(b), matrix],
            false => [matrix, square(b)],
        };
        io.matmul(Precision::F32, left, right, product, false);
        record_combination(io, 1.0, product, of_x, x);
    }
}

/// Returns a matrix with rows of `columns` elements after the Newton–Schulz iterations.
fn orthogonalized(u: &[f64], columns: usize, iterations: usize) -> Vec<f64> {
    if u.is_empty() {
        return Vec::new();
    }
    let rows = u.len() / columns;
    if rows > columns {
        // The iteration commutes with transposition, which makes A smaller.
        let o = orthogonalized(&transposed(u, columns), rows, iterations);
        return transposed(&o, rows);
    }
    let norm = u.iter().map(|u| u * u).sum::<f64>().sqrt() + 1e-7;
    let mut x: Vec<f64> = u.iter().map(|u| u / norm).collect();
    for _ in 0..iterations {
        let a = matmul(&x, &transposed(&x, columns), columns);
        let square = matmul(&a, &a, rows);
        let b: Vec<f64> = a
            .iter()
            .zip(&square)
            .map(|(a, square)| -4.7750 * a + 2.0315 * square)
            .collect();
        let change = matmul(&b, &x, rows);
        for (x, change) in x.iter_mut().zip(change) {
            *x = 3.4445 * *x + change;
        }
    }
    x
}

fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
    (0..columns)
        .flat_map(|c| x.iter().skip(c).step_by(columns).copied())
        .collect()
}

/// Computes `x y` for rows of `inner` elements in x.
fn matmul(x: &[f64], y: &[f64], inner: usize) -> Vec<f64> {
    let columns = y.len() / inner;
    let rows = x.chunks(inner).flat_map(|x| {
        let mut row = vec![0.0; columns];
        for (x, y) in x.iter().zip(y.chunks(columns)) {
            for (row, y) in row.iter_mut().zip(y) {
                *row += x * y;
            }
        }
        row
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::super::stateful::{Executors, RunResult};
    use super::super::testing::{TestInput, mapped_floats, numbers};
    use super::super::{AdamW, adamw, squared_norms};
    use super::*;
    use crate::graph::{Buffer, Builder};

    fn parameter(columns: usize, rows: &[usize], weight_decay: f64) -> MuonParameter {
        MuonParameter {
            columns,
            rows: rows.to_vec(),
            weight_decay,
        }
    }

    fn hyperparameters(clip: f64) -> Muon {
        Muon {
            momentum: 0.95,
            nesterov: true,
            iterations: 5,
            max_grad_norm: clip,
            parameters: vec![
                parameter(5, &[3, 7, 1], 0.1),
                parameter(33, &[17], 0.0),
                parameter(1, &[1], 0.3),
                parameter(9, &[0, 4], 0.2),
                parameter(70, &[65, 130], 0.2),
            ],
        }
    }

    /// Runs steps with gradients scaled by these factors, with all parameters in one buffer and their momentum in
    /// another. The last input, (3, 7), is the gradient of a parameter that AdamW updates.
    fn steps(op: &Muon, factors: &[f64], losses: &[f64]) -> Vec<RunResult> {
        let shapes = op
            .parameters
            .iter()
            .map(|parameter| [parameter.rows.iter().sum(), parameter.columns]);
        let shapes: Vec<[usize; 2]> = shapes.chain([[3, 7]]).collect();
        let total = shapes.iter().map(|[rows, columns]| rows * columns).sum();
        let state = [numbers(1, total), vec![0.0; total], vec![0.0; 3 * 7]];
        let mut executors = Executors::new(&state);
        let mut run = |step: u64, factor: f64, loss: f64| {
            let arguments = Arguments {
                lr: 0.02 / step as f64,
                step,
                ..Arguments::default()
            };
            let gradients = (10 * step..).zip(&shapes);
            let gradients = gradients.map(|(seed, shape)| mapped_floats(seed, *shape, |x| factor * x));
            let loss = mapped_floats(step, [1], |_| loss);
            let given: Vec<TestInput> = [loss].into_iter().chain(gradients).collect();
            executors.run(arguments, &given, |g, buffers, x| record(op, g, buffers, x)).cpu
        };
        let each = (1..).zip(factors.iter().zip(losses));
        each.map(|(step, (factor, loss))| run(step, *factor, *loss)).collect()
    }

    /// Updates parameters with Muon and the last one with AdamW.
    fn record<'g>(op: &Muon, g: &'g Builder, buffers: &[Buffer], x: &[Value<'g>]) -> Vec<Value<'g>> {
        let mut offset = 0;
        let parameters = x[1..].iter().map(|gradient| {
            let ty = gradient.ty();
            offset += ty.elements();
            [0, 1].map(|i| g.state(buffers[i], offset - ty.elements(), ty))
        });
        let parameters: Vec<[Value; 2]> = parameters.collect();
        let (matrices, rest) = parameters.split_at(op.parameters.len());
        let matrices = x[1..].iter().zip(matrices);
        let matrices: Vec<[Value; 3]> = matrices.map(|(g, [p, m])| [*g, *p, *m]).collect();
        let squares = squared_norms(g, &x[1..]);
        let other = AdamW {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            max_grad_norm: op.max_grad_norm,
            weight_decay: vec![0.1],
        };
        let [[p, m]] = rest[..] else {
            panic!("one parameter that AdamW updates")
        };
        let v = g.state(buffers[2], 0, p.ty());
        vec![
            muon(op.clone(), x[0], squares, &matrices),
            adamw(other, x[0], squares, &[[x[x.len() - 1], p, m, v]]),
        ]
    }

    #[test]
    fn steps_are_those_of_the_reference() {
        for (clip, nesterov, iterations) in [
            (0.0, true, 5),
            (0.5, true, 5),
            (1e4, false, 5),
            (0.5, false, 0),
            (0.0, true, 1),
        ] {
            let op = Muon {
                nesterov,
                iterations,
                ..hyperparameters(clip)
            };
            let after = steps(&op, &[1.0, 0.1, 3.0], &[1.0; 3]);
            assert_ne!(after[0].buffers[1], after[1].buffers[1]);
        }
    }

    #[test]
    fn large_matrices_use_scratch() {
        let op = Muon {
            parameters: vec![parameter(3, &[7], 0.1), parameter(8, &[131_101, 5], 0.1)],
            ..hyperparameters(0.5)
        };
        assert!(op.scratch_elements() > 0);
        assert_eq!(hyperparameters(0.5).scratch_elements(), 0);
        steps(&op, &[1.0], &[1.0]);
        let op = Muon {
            parameters: vec![parameter(131_101, &[2, 8], 0.1)],
            ..op
        };
        steps(&op, &[1.0], &[1.0]);
    }

    #[test]
    fn non_finite_gradients_skip_the_update() {
        for broken in [f64::NAN, f64::INFINITY] {
            for (factor, loss) in [(broken, 1.0), (1.0, broken)] {
                let after = steps(&hyperparameters(0.5), &[1.0, factor], &[1.0, loss]);
                assert_eq!(after[0].buffers, after[1].buffers);
                assert!(after[1].outputs.concat().iter().all(|x| *x == 0.0));
            }
        }
    }

    #[test]
    fn clipping_includes_gradients_that_another_op_applies() {
        let op = hyperparameters(0.5);
        let moments = |factors: &[f64]| {
            let after = steps(&op, factors, &[1.0]).remove(0);
            let squares = after.buffers[1].iter().take(55).map(|m| m * m);
            squares.sum::<f64>().sqrt()
        };
        let gradient: f64 = numbers(10, 55).iter().map(|g| g * g).sum::<f64>().sqrt();
        let all: f64 = (10..)
            .zip([55, 17 * 33, 1, 36, 195 * 70, 21])
            .flat_map(|(seed, n)| numbers(seed, n))
            .map(|g| g * g)
            .sum::<f64>()
            .sqrt();
        assert!((moments(&[1.0]) - 0.5 * gradient / all).abs() < 1e-6);
    }

    #[test]
    fn singular_values_are_iterated() {
        // The matrix is first divided by its norm, which is 5.
        for (u, columns) in [
            ([3.0, 0.0, 0.0, 0.0, 0.0, -4.0], 3),
            ([3.0, 0.0, 0.0, 0.0, 0.0, -4.0], 2),
        ] {
            let o = orthogonalized(&u, columns, 5);
            for (u, o) in u.iter().zip(o) {
                let want = (0..5).fold(u / (5.0 + 1e-7), |x: f64, _| {
                    3.4445 * x - 4.7750 * x.powi(3) + 2.0315 * x.powi(5)
                });
                assert!((o - want).abs() < 1e-12, "{o}, want {want}");
            }
        }
    }

    #[test]
    fn symmetric_matmuls_count_half_of_the_flops() {
        let op = Muon {
            parameters: vec![parameter(3, &[2, 5], 0.0)],
            ..hyperparameters(0.0)
        };
        assert_eq!(op.flops(&[]), 5 * (3 * 3 * 4 + 8 + 3 * 5 * 9 + 27));
    }

    #[test]
    #[should_panic(expected = "muon: matrices of parameter 1")]
    fn mismatched_row_counts_are_rejected() {
        let g = Builder::new();
        let x = g.input("x", Type::f32([4, 3]));
        let op = Muon {
            parameters: vec![parameter(3, &[2, 2], 0.0), parameter(3, &[2, 1], 0.0)],
            ..hyperparameters(0.0)
        };
        muon(op, x, squared_norms(&g, &[x]), &[[x; 3]; 2]);
    }
}
