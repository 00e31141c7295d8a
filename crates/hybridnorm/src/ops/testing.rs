//! Tests of ops: the CPU kernel against the reference, the reference against central differences,
//! fused programs against unfused ones.

use crate::exec::{Cpu, Executor, Reference, Tensor};
use crate::graph::{Builder, DType, Type, Value};
use crate::ops::Arguments;
use crate::passes::vector_jacobian_product;
use crate::plan::{Options, Program};

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
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // As many bits as single precision holds.
        f64::from(((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0)
    };
    (0..n).map(|_| next()).collect()
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
pub(crate) const OUTPUT: f64 = 1e-5;
/// Maximum error of gradients.
const GRADIENT: f64 = 1e-4;
/// Maximum error of the reference's gradients against central differences.
const DIFFERENCE: f64 = 1e-6;
const STEP: f64 = 1e-5;

/// Checks the value and the gradients of the output that `build` records.
pub(crate) fn check(
    given: &[TestInput],
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Value<'g>,
) {
    check_with(given, &[], |g, x| vec![build(g, x)]);
}

/// Checks several outputs as [`check`] does; those listed in `plain` have no gradients.
pub(crate) fn check_with(
    given: &[TestInput],
    plain: &[usize],
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Vec<Value<'g>>,
) {
    check_all(given, plain, true, build);
}

/// Checks as [`check_with`] does, if fused ops sum in a different order.
pub(crate) fn check_reordered(
    given: &[TestInput],
    plain: &[usize],
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Vec<Value<'g>>,
) {
    check_all(given, plain, false, build);
}

fn check_all(
    given: &[TestInput],
    plain: &[usize],
    is_exact: bool,
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Vec<Value<'g>>,
) {
    let g = Builder::new();
    let names: Vec<String> = (0..given.len()).map(|i| format!("x{i}")).collect();
    let inputs: Vec<Value> = names
        .iter()
        .zip(given)
        .map(|(n, x)| g.input(n, x.ty))
        .collect();
    let made = build(&g, &inputs);
    let pairs = inputs.iter().zip(given);
    let sources: Vec<Value> = pairs
        .filter(|(_, x)| x.is_source)
        .map(|(x, _)| *x)
        .collect();
    let mut outputs: Vec<_> = made.iter().map(Value::id).collect();
    let n_outputs = outputs.len();
    let mut seeds: Vec<(usize, String, TestInput)> = Vec::new();
    let mut gradients = Vec::new();
    for (i, y) in made.iter().enumerate().filter(|(i, _)| !plain.contains(i)) {
        let name = format!("seed{i}");
        let seed = g.input(&name, y.ty());
        let vector = TestInput {
            ty: y.ty(),
            floats: numbers(1000 + i as u64, y.ty().elements()),
            ints: Vec::new(),
            is_source: false,
        };
        seeds.push((i, name, vector));
        for (s, gradient) in vector_jacobian_product(*y, seed, &sources)
            .into_iter()
            .enumerate()
        {
            if let Some(gradient) = gradient {
                gradients.push((i, s, outputs.len()));
                outputs.push(gradient.id());
            }
        }
    }
    let graph = g.finish();
    let is_source = |at: &usize| given[*at].is_source;
    let sources: Vec<usize> = (0..given.len()).filter(is_source).collect();
    let run = |precision: DType, fuse: bool, moved: Option<(usize, f64)>| {
        let mut executor: Box<dyn Executor> = match precision {
            DType::F64 => Box::new(Reference::new()),
            _ => Box::new(Cpu::new()),
        };
        let options = Options {
            fuse,
            ..Options::default()
        };
        let program = Program::new(graph.clone(), &outputs, options);
        let mut given = given.to_vec();
        if let Some((source, step)) = moved {
            let floats = &mut given[source].floats;
            let direction = numbers(77, floats.len());
            let pairs = floats.iter_mut().zip(direction);
            pairs.for_each(|(x, d)| *x += step * d);
        }
        let seeds = seeds.iter().map(|(_, name, vector)| (name, vector));
        let all = names.iter().zip(&given).chain(seeds);
        let tensors: Vec<_> = all
            .map(|(name, x)| (&**name, x.tensor(precision)))
            .collect();
        let data: Vec<_> = tensors
            .iter()
            .map(|(name, x)| (*name, x.as_data()))
            .collect();
        executor.run(&program, Arguments::default(), &data).unwrap();
        let output = |&id| executor.output(&program, id).into_f64();
        outputs.iter().map(output).collect::<Vec<_>>()
    };
    let exact = run(DType::F64, true, None);
    let unfused = run(DType::F32, false, None);
    let found = run(DType::F32, true, None);
    if is_exact {
        for (i, (a, b)) in found.iter().zip(&unfused).enumerate() {
            assert!(a == b, "output {i} has other bits where ops are fused");
        }
    }
    let both = found.iter().zip(&exact).chain(unfused.iter().zip(&exact));
    for (i, (found, exact)) in both.enumerate() {
        let i = i % outputs.len();
        let tolerance = if i < n_outputs { OUTPUT } else { GRADIENT };
        let size = exact.iter().fold(0.1f64, |m, x| m.max(x.abs()));
        for (j, (a, b)) in found.iter().zip(exact).enumerate() {
            assert!(
                (a - b).abs() <= tolerance * size,
                "output {i}, element {j}: {a}, reference {b}"
            );
        }
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for (source, at) in sources.into_iter().enumerate() {
        let [up, down] = [STEP, -STEP].map(|step| run(DType::F64, true, Some((at, step))));
        for (i, _, vector) in &seeds {
            let (i, seed) = (*i, vector.elements());
            let difference = (dot(&up[i], seed) - dot(&down[i], seed)) / (2.0 * STEP);
            let slope = gradients
                .iter()
                .find(|(y, s, _)| (*y, *s) == (i, source))
                .map_or(0.0, |(.., at)| {
                    dot(&exact[*at], &numbers(77, exact[*at].len()))
                });
            let size = difference.abs().max(1.0);
            assert!(
                (slope - difference).abs() < DIFFERENCE * size,
                "output {i}, input {source}: slope {slope}, difference {difference}"
            );
        }
    }
}
