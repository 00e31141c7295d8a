//! AdamW update (Loshchilov, Hutter, arXiv 1711.05101, algorithm 2, with the learning rate
//! multiplying the decay). Clips gradients by their global norm.

use std::ops::Range;

use hybridnorm_cuda as cuda;
use hybridnorm_kernels::adamw::{self, ParameterState};

use super::device::Grid;
use super::gradient_norm::{
    check_parameters, finite_norm, record_coefficients, record_update, states_by_parameter,
    sum_doubles,
};
use super::{Arguments, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Settings of an AdamW step on any number of parameters, in place. Learning rate and step number are run-time arguments.
///
/// With `g'` the gradient clipped to the global norm, in step t:
/// `m = beta1 m + (1 - beta1) g'`, `v = beta2 v + (1 - beta2) g'²`,
/// `p -= lr (m / (1 - beta1^t) / (√(v / (1 - beta2^t)) + eps) + weight_decay p)`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Term added to the denominator.
    pub eps: f64,
    /// Maximum global gradient norm, to which larger gradients are scaled down; 0 disables clipping.
    pub max_grad_norm: f64,
    /// Decoupled weight decay of each parameter, per unit of learning rate.
    pub weight_decay: Vec<f64>,
}

/// An AdamW step, in place, on the parameters and on rounded copies of some of them.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamWUpdate {
    settings: AdamW,
    /// True for each parameter whose copy, rounded to bfloat16, is updated too.
    has_copy: Vec<bool>,
}

/// Updates n parameters: gradient, values, first and second moment of each, of equal shape; the last three
/// are state.
///
/// `squares` are the [squared norms](super::squared_norms) of all gradients of the step, including those
/// that another op applies. Nothing is changed unless their global norm and all `losses` are finite.
///
/// Returns (n, 2) in double precision: Euclidean norms of the update of each parameter, and of its values
/// before; zeros if nothing was changed.
///
/// # Panics
/// If there is not one weight decay per parameter, or gradient, values and moments of a parameter differ in shape.
pub fn adamw<'g>(
    op: AdamW,
    losses: Value<'g>,
    squares: Value<'g>,
    parameters: &[[Value<'g>; 4]],
) -> Value<'g> {
    let op = AdamWUpdate {
        has_copy: vec![false; op.weight_decay.len()],
        settings: op,
    };
    record_update(op, losses, squares, parameters)
}

impl AdamWUpdate {
    /// Returns the number of parameters.
    fn parameters(&self) -> usize {
        self.settings.weight_decay.len()
    }

    /// Returns the inputs that are values of the parameters.
    pub(crate) fn values(&self) -> Range<usize> {
        let n = self.parameters();
        2 + n..2 + 2 * n
    }

    /// Updates copies of these parameters too; their values rounded to bfloat16 are further inputs in the same order.
    ///
    /// # Panics
    /// If it already updates copies.
    pub(crate) fn set_copied(&mut self, parameters: &[usize]) {
        assert_eq!(self.copies(), 0, "adamw: copies are set once");
        for parameter in parameters {
            self.has_copy[*parameter] = true;
        }
    }

    /// Returns the number of copies.
    fn copies(&self) -> usize {
        self.has_copy.iter().filter(|has_copy| **has_copy).count()
    }

    /// Returns the bias correction `1 - beta^step` of both moments.
    fn corrections(&self, step: u64) -> [f64; 2] {
        assert!(step > 0, "adamw: steps are counted from 1");
        [self.settings.beta1, self.settings.beta2].map(|beta| 1.0 - beta.powf(step as f64))
    }
}

impl Operation for AdamWUpdate {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let states = inputs.len() - self.copies();
        check_parameters("adamw", &inputs[..states], self.parameters(), 3);
        vec![Type::f64([self.parameters(), 2])]
    }

    fn state_inputs(&self, inputs: usize) -> Range<usize> {
        inputs - 3 * self.parameters() - self.copies()..inputs
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let AdamW { beta1, beta2, eps, max_grad_norm, .. } = self.settings;
        let norms = io.write_doubles();
        norms.fill(0.0);
        let Some(norm) = finite_norm(io.read(0), io.doubles(1)) else {
            return;
        };
        let scale = adamw::clip_coefficient(max_grad_norm, norm);
        let Arguments { lr, step, .. } = io.arguments();
        let [correction1, correction2] = self.corrections(step);
        let parameters = states_by_parameter(io, self.parameters()).into_iter().zip(&self.settings.weight_decay);
        for (i, ([p, m, v], weight_decay)) in parameters.enumerate() {
            let (mut update, mut value) = (0.0, 0.0);
            let moments = m.iter_mut().zip(v);
            for ((p, g), (m, v)) in p.iter_mut().zip(io.read(2 + i)).zip(moments) {
                let g = scale * g;
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                let direction = *m / correction1 / ((*v / correction2).sqrt() + eps);
                let added = -lr * (direction + weight_decay * *p);
                update += added * added;
                value += *p * *p;
                *p += added;
            }
            norms[2 * i] = update.sqrt();
            norms[2 * i + 1] = value.sqrt();
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let AdamW { beta1, beta2, eps, max_grad_norm, .. } = self.settings;
        let norms = io.write_doubles();
        norms.fill(0.0);
        let Some(norm) = finite_norm(io.read(0), io.doubles(1)) else {
            return;
        };
        let Arguments { lr, step, .. } = io.arguments();
        let [bias_correction1, bias_correction2] = self.corrections(step).map(|x| x as f32);
        let hyperparameters = adamw::AdamW {
            lr,
            beta1,
            beta2,
            eps,
            clip_coefficient: adamw::clip_coefficient(max_grad_norm, norm) as f32,
            bias_correction1,
            bias_correction2,
        };
        let parameters = states_by_parameter(io, self.parameters()).into_iter().zip(&self.settings.weight_decay);
        let parameters: Vec<_> = parameters.zip(&self.has_copy).collect();
        let mut parameters: Vec<ParameterState> = (2..)
            .zip(parameters)
            .map(|(gradient, (([p, m, v], &weight_decay), has_copy))| ParameterState {
                p,
                g: io.read(gradient),
                m,
                v,
                copy: match has_copy {
                    true => io.write_bf16(),
                    false => &mut [],
                },
                weight_decay,
            })
            .collect();
        let found = adamw::step(&hyperparameters, &mut parameters);
        for (norms, found) in norms.chunks_exact_mut(2).zip(found) {
            norms.copy_from_slice(&[found.update, found.value]);
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        /// Elements of a thread.
        const PER_THREAD: usize = 4;
        let AdamW { beta1, beta2, eps, max_grad_norm, .. } = self.settings;
        let (losses, squares) = (io.read(0), io.read(1));
        let norms = io.write();
        let coefficients =
            record_coefficients(io, losses, squares, [beta1, beta2], max_grad_norm);
        let n = self.parameters();
        let [p, m, v] = [(); 3].map(|()| (0..n).map(|_| io.write()).collect::<Vec<_>>());
        let copies: Vec<_> = self.has_copy.iter().map(|has_copy| has_copy.then(|| io.write())).collect();
        for (i, weight_decay) in self.settings.weight_decay.iter().enumerate() {
            let count = p[i].len();
            let grid = Grid::blocks(count.div_ceil(PER_THREAD * 256));
            let blocks = grid.block_count();
            let partials = io.scratch(cuda::ElementType::F64, 2 * blocks);
            let arguments = cuda::Arguments::default()
                .address(coefficients.span)
                .address(io.read(2 + i).span)
                .address(p[i].span)
                .address(m[i].span)
                .address(v[i].span)
                .optional_address(copies[i].map(|copy| copy.span))
                .address(partials.span)
                .long(count as i64)
                .double(beta1)
                .double(beta2)
                .float(eps as f32)
                .float(*weight_decay as f32);
            io.launch("adamw_step", grid, arguments);
            sum_doubles(io, partials, norms.part(2 * i, 2), true);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::stateful::{Executors, RunResult};
    use super::super::testing::{TestInput, floats, numbers};
    use super::super::{linear, squared_norms};
    use super::*;
    use std::collections::HashSet;

    use half::bf16;
    use hybridnorm_cuda::{Emulator, FiberOrder};

    use crate::exec::{Cpu, Executor, OnDevice, TensorRef};
    use crate::graph::{Builder, DType};
    use crate::passes::{update_rounded_weights, vector_jacobian_product};
    use crate::plan::{Options, Precision, Program, Target};

    const SHAPES: [[usize; 2]; 4] = [[3, 5], [1, 1], [0, 7], [129, 257]];

    type Run = (Arguments, Vec<TestInput>);

    fn hyperparameters(clip: f64) -> AdamW {
        AdamW {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            max_grad_norm: clip,
            weight_decay: vec![0.1, 0.0, 0.2, 0.3],
        }
    }

    /// Returns three losses and the gradients of a step.
    fn run(step: u64) -> Run {
        let arguments = Arguments {
            lr: 1e-2 / step as f64,
            step,
            ..Arguments::default()
        };
        let gradients = (1..)
            .zip(SHAPES)
            .map(|(i, shape)| floats(10 * step + i, shape));
        let given = [floats(step, [3])].into_iter().chain(gradients);
        (arguments, given.collect())
    }

    /// Returns [`run`] with a non-finite element in input `index`.
    fn broken(step: u64, index: usize, element: f64) -> Run {
        let (arguments, given) = run(step);
        let given = given
            .into_iter()
            .enumerate()
            .map(|(i, x)| match i == index {
                true => x.with(0, element),
                false => x,
            });
        (arguments, given.collect())
    }

    /// Runs steps on parameters and moments in one buffer, or each in a separate one.
    fn steps(clip: f64, in_one: bool, runs: &[Run]) -> Vec<RunResult> {
        let states = (1..).zip(SHAPES).flat_map(|(seed, [rows, columns])| {
            let zeros = vec![0.0; rows * columns];
            [numbers(seed, rows * columns), zeros.clone(), zeros]
        });
        let mut states: Vec<Vec<f64>> = states.collect();
        if in_one {
            states = vec![states.concat()];
        }
        let mut executors = Executors::new(&states);
        let each = runs.iter();
        let after = each.map(|(arguments, given)| executors.run(*arguments, given, |g, buffers, x| {
            let (mut next, mut offset) = (0, 0);
            let parameters = x[1..].iter().map(|gradient| {
                let mut state = || {
                    let at = if in_one { (0, offset) } else { (next, 0) };
                    next += 1;
                    offset += gradient.ty().elements();
                    g.state(buffers[at.0], at.1, gradient.ty())
                };
                [*gradient, state(), state(), state()]
            });
            let parameters: Vec<[Value; 4]> = parameters.collect();
            vec![adamw(hyperparameters(clip), x[0], squared_norms(g, &x[1..]), &parameters)]
        }).cpu);
        after.collect()
    }

    #[test]
    fn steps_are_those_of_the_reference() {
        let runs = [1, 2, 3].map(run);
        let mut without_clipping = Vec::new();
        for clip in [0.0, 0.7, 1e4] {
            let after = steps(clip, false, &runs);
            let in_one = steps(clip, true, &runs);
            for (apart, in_one) in after.iter().zip(in_one) {
                assert_eq!(apart.outputs, in_one.outputs);
                assert_eq!(apart.buffers.concat(), in_one.buffers.concat());
            }
            match clip {
                0.0 => without_clipping = after,
                0.7 => assert_ne!(after, without_clipping),
                _ => assert_eq!(after, without_clipping),
            }
        }
    }

    #[test]
    fn non_finite_gradients_skip_the_update() {
        for element in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for index in [0, 1, 4] {
                let runs = [run(1), broken(2, index, element), run(2)];
                let after = steps(0.7, true, &runs);
                assert_eq!(after[1].buffers, after[0].buffers);
                assert_eq!(after[1].outputs, [[0.0; 8]]);
                // As if that step had not run.
                let others = steps(0.7, true, &[run(1), run(2)]);
                assert_eq!(after[2], others[1]);
            }
        }
    }

    #[test]
    fn first_update_has_the_size_of_the_learning_rate() {
        let after = &steps(0.0, false, &[run(1)])[0];
        let (_, given) = run(1);
        let before = numbers(1, 15);
        for ((p, before), g) in after.buffers[0]
            .iter()
            .zip(&before)
            .zip(given[1].elements())
        {
            let want = before * (1.0 - 1e-2 * 0.1) - 1e-2 * g.signum();
            assert!((p - want).abs() < 1e-6, "{p}, want {want}");
        }
        let norm = before.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!((after.outputs[0][1] - norm).abs() < 1e-6);
    }

    #[test]
    fn gradients_are_computed_in_the_same_program() {
        let state = [numbers(1, 3 * 5), vec![0.0; 15], vec![0.0; 15]];
        let mut executors = Executors::new(&state);
        let after = [1, 2, 3].map(|step| {
            let (arguments, _) = run(step);
            let given = [floats(step, [1, 7, 5]), floats(step + 9, [1, 7, 3])];
            executors.run(arguments, &given, |g, buffers, x| {
            let [w, m, v] = [0, 1, 2].map(|i| g.state(buffers[i], 0, Type::f32([3, 5])));
            let y = linear(x[0], w);
            let [Some(dw)] = vector_jacobian_product(y, x[1], &[w])[..] else {
                panic!("a gradient of the weight")
            };
            let op = AdamW {
                weight_decay: vec![0.1],
                ..hyperparameters(1.0)
            };
            vec![y, adamw(op, y, squared_norms(g, &[dw]), &[[dw, w, m, v]])]
            }).cpu
        });
        assert_ne!(after[0].outputs[1], after[1].outputs[1]);
    }

    /// Runs steps that also update the copy of a parameter, the last one with a gradient that is not finite after the host
    /// has changed the parameter; returns the parameter and its rounded copy, as matmuls read it, after each.
    fn copies(mut executor: impl Executor, target: Target) -> Vec<[Vec<f32>; 2]> {
        const N: usize = 5;
        let ty = Type::f32([N, N]);
        let buffers = [(); 3].map(|()| executor.allocate(DType::F32, N * N).unwrap());
        executor.write(buffers[0], 0, TensorRef::F64(&numbers(1, N * N)));
        let residual = DType::F32;
        let options = Options::default()
            .with_target(target)
            .with_precision(Precision::Bf16 { residual })
            .with_keep_rounded_weights(true);
        let plan = |g: Builder, output| {
            let mut graph = g.finish();
            update_rounded_weights(&mut graph, &HashSet::from([(buffers[0], 0)]));
            Program::new(graph, &[output], options)
        };
        let g = Builder::new();
        let gradient = g.input("gradient", ty);
        let [p, m, v] = buffers.map(|buffer| g.state(buffer, 0, ty));
        let op = AdamW {
            weight_decay: vec![0.1],
            ..hyperparameters(1.0)
        };
        let squares = squared_norms(&g, &[gradient]);
        let norms = adamw(op, gradient, squares, &[[gradient, p, m, v]]).id();
        let update = plan(g, norms);
        let g = Builder::new();
        // Times the identity.
        let copy = linear(g.input("x", ty), g.state(buffers[0], 0, ty)).id();
        let read = plan(g, copy);
        let identity: Vec<f32> = (0..N * N).map(|i| if i % (N + 1) == 0 { 1.0 } else { 0.0 }).collect();
        let mut found = Vec::new();
        for step in 1..=3 {
            let mut gradient: Vec<f64> = numbers(step, N * N);
            if step == 3 {
                gradient[7] = f64::NAN;
                executor.write(buffers[0], 3, TensorRef::F64(&numbers(9, N)));
            }
            let arguments = Arguments {
                lr: 0.1,
                step,
                ..Arguments::default()
            };
            executor.run(&update, arguments, &[("gradient", TensorRef::F64(&gradient))]).unwrap();
            let p = executor.read(buffers[0], 0..N * N).into_f32();
            executor.run(&read, Arguments::default(), &[("x", TensorRef::F32(&identity))]).unwrap();
            // The output is the transpose.
            let copy = executor.output(&read, copy).into_f32();
            let copy = (0..N * N).map(|i| copy[i % N * N + i / N]).collect();
            found.push([p, copy]);
        }
        found
    }

    #[test]
    fn copies_are_the_rounded_values() {
        let device = OnDevice::new(Emulator::new(FiberOrder::Shuffled)).unwrap();
        for found in [copies(Cpu::new(), Target::Cpu), copies(device, Target::Device)] {
            let mut before = Vec::new();
            for [p, copy] in found {
                let rounded: Vec<f32> = p.iter().map(|p| bf16::from_f32(*p).to_f32()).collect();
                assert_eq!(copy, rounded);
                assert_ne!(p, before);
                before = p;
            }
        }
    }

    #[test]
    #[should_panic(expected = "adamw: state of parameter 1")]
    fn states_of_wrong_shape_are_rejected() {
        let g = Builder::new();
        let x = [[2, 3], [3, 2], [2, 3], [2, 3]].map(|shape| g.input("x", Type::f32(shape)));
        let op = AdamW {
            weight_decay: vec![0.0; 2],
            ..hyperparameters(0.0)
        };
        adamw(op, x[0], squared_norms(&g, &x), &[[x[0]; 4], x]);
    }

    #[test]
    #[should_panic(expected = "adamw: values of 4 parameters")]
    fn missing_weight_decays_are_rejected() {
        let g = Builder::new();
        let x = g.input("x", Type::f32([2, 3]));
        adamw(hyperparameters(0.0), x, squared_norms(&g, &[x]), &[[x; 4]]);
    }
}
