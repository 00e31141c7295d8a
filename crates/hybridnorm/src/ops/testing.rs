//! Tests of ops: the CPU kernel against the reference, the reference against central differences,
//! fused programs against unfused ones.

use hybridnorm_kernels::splitmix64::SplitMix64;

use hybridnorm_cuda::{Emulator, FiberOrder};

use crate::exec::{Cpu, Executor, OnDevice, Reference, Tensor};
use crate::graph::{Builder, DType, Graph, Type, Value, ValueId};
use crate::ops::Arguments;
use crate::passes::vector_jacobian_product;
use crate::plan::{Options, Program, Target};

/// An input of a test.
#[derive(Clone)]
pub(crate) struct TestInput {
    ty: Type,
    floats: Vec<f64>,
    ints: Vec<i32>,
    is_source: bool,
}

impl TestInput {
    /// Returns its type.
    pub(crate) fn ty(&self) -> Type {
        self.ty
    }

    /// Returns its elements as an executor of this precision reads them.
    pub(crate) fn tensor(&self, precision: DType) -> Tensor {
        match (self.ty.dtype, precision) {
            (DType::I32, _) => Tensor::I32(self.ints.clone()),
            (_, DType::F64) => Tensor::F64(self.floats.clone()),
            _ => Tensor::F32(self.floats.iter().map(|&x| x as f32).collect()),
        }
    }

    /// Returns its floating-point elements.
    pub(crate) fn elements(&self) -> &[f64] {
        &self.floats
    }

    /// Replaces the number at `index`.
    pub(crate) fn with(mut self, index: usize, number: f64) -> Self {
        self.floats[index] = number;
        self
    }
}

/// Returns pseudorandom numbers between -1 and 1.
pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f64> {
    let mut random = SplitMix64::new(seed);
    (0..n)
        .map(|_| f64::from(random.uniform_symmetric()))
        .collect()
}

/// Returns an input of numbers between -1 and 1, whose gradient is checked.
pub(crate) fn floats<const N: usize>(seed: u64, shape: [usize; N]) -> TestInput {
    let ty = Type::f32(shape);
    TestInput {
        ty,
        floats: numbers(seed, ty.elements()),
        ints: Vec::new(),
        is_source: true,
    }
}

/// Returns [`floats`] with `f` applied to each number.
pub(crate) fn mapped_floats<const N: usize>(
    seed: u64,
    shape: [usize; N],
    f: impl Fn(f64) -> f64,
) -> TestInput {
    let mut given = floats(seed, shape);
    // Rounded, so that both executors start from the same numbers.
    given
        .floats
        .iter_mut()
        .for_each(|x| *x = f64::from(f(*x) as f32));
    given
}

/// Returns an input of integers.
pub(crate) fn ints<const N: usize>(shape: [usize; N], values: &[i32]) -> TestInput {
    TestInput {
        ty: Type::i32(shape),
        floats: Vec::new(),
        ints: values.to_vec(),
        is_source: false,
    }
}

/// Returns an input of given numbers, whose gradient is not checked.
pub(crate) fn fixed_input<const N: usize>(shape: [usize; N], values: Vec<f64>) -> TestInput {
    TestInput {
        ty: Type::f32(shape),
        floats: values,
        ints: Vec::new(),
        is_source: false,
    }
}

/// Maximum error of outputs, relative to the largest element.
pub(crate) const OUTPUT_TOLERANCE: f64 = 1e-5;
/// Maximum error of gradients.
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Maximum error of the reference's gradients against central differences.
const DIFFERENCE_TOLERANCE: f64 = 1e-6;
const STEP: f64 = 1e-5;
/// Seed of the direction of the differences.
const DIRECTION: u64 = 77;

/// Checks the value and the gradients of the output that `build` records.
pub(crate) fn check(
    given: &[TestInput],
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Value<'g>,
) {
    check_with(given, &[], |g, x| vec![build(g, x)]);
}

/// Checks several outputs as [`check`] does; those listed in `without_gradient` have no gradients.
pub(crate) fn check_with(
    given: &[TestInput],
    without_gradient: &[usize],
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Vec<Value<'g>>,
) {
    check_all(given, without_gradient, true, build);
}

/// Checks as [`check_with`] does, for fused ops that sum in a different order.
pub(crate) fn check_reordered(
    given: &[TestInput],
    without_gradient: &[usize],
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Vec<Value<'g>>,
) {
    check_all(given, without_gradient, false, build);
}

fn check_all(
    given: &[TestInput],
    without_gradient: &[usize],
    is_exact: bool,
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Vec<Value<'g>>,
) {
    let case = Case::record(given, without_gradient, build);
    let reference = case.run(DType::F64, true, None);
    let unfused = case.run(DType::F32, false, None);
    let fused = case.run(DType::F32, true, None);
    if is_exact {
        for (i, (a, b)) in fused.iter().zip(&unfused).enumerate() {
            assert!(a == b, "output {i} is not bit-identical with fused ops");
        }
    }
    case.check_values(&fused, &reference);
    case.check_values(&unfused, &reference);
    case.check_gradients(&reference);
    case.check_device(&reference);
}

/// Outputs of a graph, and their vector-Jacobian products with random vectors.
struct Case<'a> {
    given: &'a [TestInput],
    names: Vec<String>,
    /// Inputs whose gradient is checked.
    sources: Vec<usize>,
    /// Output, name and elements of each vector.
    vectors: Vec<(usize, String, TestInput)>,
    graph: Graph,
    /// Outputs of the graph, then the gradients.
    outputs: Vec<ValueId>,
    n_outputs: usize,
    /// Output, source, and index of the gradient in `outputs`.
    gradients: Vec<(usize, usize, usize)>,
}

impl<'a> Case<'a> {
    fn record(
        given: &'a [TestInput],
        without_gradient: &[usize],
        build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Vec<Value<'g>>,
    ) -> Self {
        let g = Builder::new();
        let names: Vec<String> = (0..given.len()).map(|i| format!("x{i}")).collect();
        let pairs = names.iter().zip(given);
        let inputs: Vec<Value> = pairs.map(|(name, x)| g.input(name, x.ty)).collect();
        let results = build(&g, &inputs);
        let sources: Vec<usize> = (0..given.len()).filter(|&at| given[at].is_source).collect();
        let source_values: Vec<Value> = sources.iter().map(|&at| inputs[at]).collect();
        let mut outputs: Vec<_> = results.iter().map(Value::id).collect();
        let n_outputs = outputs.len();
        let (mut vectors, mut gradients) = (Vec::new(), Vec::new());
        for (i, y) in results
            .iter()
            .enumerate()
            .filter(|(i, _)| !without_gradient.contains(i))
        {
            let name = format!("seed{i}");
            let seed = g.input(&name, y.ty());
            let vector = TestInput {
                ty: y.ty(),
                floats: numbers(1000 + i as u64, y.ty().elements()),
                ints: Vec::new(),
                is_source: false,
            };
            vectors.push((i, name, vector));
            let found = vector_jacobian_product(*y, seed, &source_values);
            for (source, gradient) in found.into_iter().enumerate() {
                if let Some(gradient) = gradient {
                    gradients.push((i, source, outputs.len()));
                    outputs.push(gradient.id());
                }
            }
        }
        Self {
            given,
            names,
            sources,
            vectors,
            graph: g.finish(),
            outputs,
            n_outputs,
            gradients,
        }
    }

    /// Runs the program, with an input moved by a step in a random direction if given; returns its outputs.
    fn run(&self, precision: DType, fuse: bool, moved: Option<(usize, f64)>) -> Vec<Vec<f64>> {
        let mut executor: Box<dyn Executor> = match precision {
            DType::F64 => Box::new(Reference::new()),
            _ => Box::new(Cpu::new()),
        };
        let options = Options {
            fuse,
            ..Options::default()
        };
        self.run_with(&mut *executor, options, precision, moved)
    }

    /// Checks the commands for a device, on an emulator of one; the results must not depend on the order of the threads.
    fn check_device(&self, reference: &[Vec<f64>]) {
        let options = |fuse| {
            Options::default()
                .with_fuse(fuse)
                .with_target(Target::Device)
        };
        let device = |order| OnDevice::new(Emulator::new(order)).unwrap();
        for fuse in [false, true] {
            let [forward, backward, shuffled] = [
                FiberOrder::Forward,
                FiberOrder::Backward,
                FiberOrder::Shuffled,
            ]
            .map(|order| {
                let mut executor = device(order);
                self.run_with(&mut executor, options(fuse), DType::F32, None)
            });
            assert!(
                forward == backward && forward == shuffled,
                "the order of the threads changes results"
            );
            self.check_values(&forward, reference);
        }
    }

    fn run_with(
        &self,
        executor: &mut dyn Executor,
        options: Options,
        precision: DType,
        moved: Option<(usize, f64)>,
    ) -> Vec<Vec<f64>> {
        let program = Program::new(self.graph.clone(), &self.outputs, options);
        let mut given = self.given.to_vec();
        if let Some((source, step)) = moved {
            let floats = &mut given[source].floats;
            let direction = numbers(DIRECTION, floats.len());
            floats
                .iter_mut()
                .zip(direction)
                .for_each(|(x, d)| *x += step * d);
        }
        let vectors = self.vectors.iter().map(|(_, name, vector)| (name, vector));
        let all = self.names.iter().zip(&given).chain(vectors);
        let tensors: Vec<_> = all
            .map(|(name, x)| (&**name, x.tensor(precision)))
            .collect();
        let data: Vec<_> = tensors
            .iter()
            .map(|(name, x)| (*name, x.as_tensor_ref()))
            .collect();
        executor.run(&program, Arguments::default(), &data).unwrap();
        let output = |&id| executor.output(&program, id).into_f64();
        self.outputs.iter().map(output).collect()
    }

    /// Checks outputs and gradients against the reference.
    fn check_values(&self, found: &[Vec<f64>], reference: &[Vec<f64>]) {
        for (i, (found, expected)) in found.iter().zip(reference).enumerate() {
            let tolerance = if i < self.n_outputs {
                OUTPUT_TOLERANCE
            } else {
                GRADIENT_TOLERANCE
            };
            let size = expected.iter().fold(0.1f64, |m, x| m.max(x.abs()));
            for (j, (a, b)) in found.iter().zip(expected).enumerate() {
                assert!(
                    (a - b).abs() <= tolerance * size,
                    "output {i}, element {j}: {a}, reference {b}"
                );
            }
        }
    }

    /// Checks the reference's gradients against central differences.
    fn check_gradients(&self, reference: &[Vec<f64>]) {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for (source, at) in self.sources.iter().enumerate() {
            let [up, down] =
                [STEP, -STEP].map(|step| self.run(DType::F64, true, Some((*at, step))));
            for (i, _, vector) in &self.vectors {
                let (i, seed) = (*i, vector.elements());
                let difference = (dot(&up[i], seed) - dot(&down[i], seed)) / (2.0 * STEP);
                let gradient = self
                    .gradients
                    .iter()
                    .find(|(y, s, _)| (*y, *s) == (i, source));
                let directional_derivative = gradient.map_or(0.0, |(.., at)| {
                    let gradient = &reference[*at];
                    dot(gradient, &numbers(DIRECTION, gradient.len()))
                });
                let size = difference.abs().max(1.0);
                assert!(
                    (directional_derivative - difference).abs() < DIFFERENCE_TOLERANCE * size,
                    "output {i}, input {source}: derivative {directional_derivative}, difference {difference}"
                );
            }
        }
    }
}
