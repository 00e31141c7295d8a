//! How ops are tested: the CPU kernel against the reference, the reference against central differences,
//! fused programs against unfused ones.

use crate::exec::{Cpu, Data, Executor, Reference};
use crate::graph::{Buffer, Builder, DType, Type, Value};
use crate::ops::Arguments;
use crate::passes::vector_jacobian_product;
use crate::plan::{Options, Program};

/// An input of a test.
pub(crate) struct Given {
    ty: Type,
    floats: Vec<f64>,
    ints: Vec<i32>,
    is_source: bool,
}

impl Given {
    /// Its numbers.
    pub(crate) fn elements(&self) -> &[f64] {
        &self.floats
    }

    /// The same with another number at `index`.
    pub(crate) fn with(mut self, index: usize, number: f64) -> Self {
        self.floats[index] = number;
        self
    }
}

/// Numbers between -1 and 1.
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

/// An input of numbers between -1 and 1, whose gradient is checked.
pub(crate) fn floats<const N: usize>(seed: u64, shape: [usize; N]) -> Given {
    let ty = Type::f32(shape);
    Given {
        ty,
        floats: numbers(seed, ty.elements()),
        ints: Vec::new(),
        is_source: true,
    }
}

/// The same, each number changed.
pub(crate) fn floats_by<const N: usize>(
    seed: u64,
    shape: [usize; N],
    f: impl Fn(f64) -> f64,
) -> Given {
    let mut given = floats(seed, shape);
    // Rounded, so that both executors begin with the same numbers.
    given
        .floats
        .iter_mut()
        .for_each(|x| *x = f64::from(f(*x) as f32));
    given
}

/// An input of integers.
pub(crate) fn ints<const N: usize>(shape: [usize; N], values: &[i32]) -> Given {
    Given {
        ty: Type::i32(shape),
        floats: Vec::new(),
        ints: values.to_vec(),
        is_source: false,
    }
}

/// An input of given numbers that nothing is differentiated by.
pub(crate) fn constant<const N: usize>(shape: [usize; N], values: &[f32]) -> Given {
    Given {
        ty: Type::f32(shape),
        floats: values.iter().map(|&x| f64::from(x)).collect(),
        ints: Vec::new(),
        is_source: false,
    }
}

/// Largest error of outputs, relative to the largest element.
const OUTPUT: f64 = 1e-5;
/// Largest error of gradients.
const GRADIENT: f64 = 1e-4;
/// Largest error of the reference's gradients against central differences.
const DIFFERENCE: f64 = 1e-6;
const STEP: f64 = 1e-5;

/// Checks the value and the gradients of what `build` makes of the inputs.
pub(crate) fn check(
    given: &[Given],
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Value<'g>,
) {
    check_with(given, &[], |g, x| vec![build(g, x)]);
}

/// As [`check`], for several outputs; gradients only through those that are not listed in `plain`.
pub(crate) fn check_with(
    given: &[Given],
    plain: &[usize],
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Vec<Value<'g>>,
) {
    check_all(given, plain, true, build);
}

/// As [`check_with`], where fused ops add in another order.
pub(crate) fn check_close(
    given: &[Given],
    plain: &[usize],
    build: impl for<'g> Fn(&'g Builder, &[Value<'g>]) -> Vec<Value<'g>>,
) {
    check_all(given, plain, false, build);
}

fn check_all(
    given: &[Given],
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
    let is_float: Vec<bool> = given.iter().map(|x| x.ints.is_empty()).collect();
    let pairs = inputs.iter().zip(given);
    let sources: Vec<Value> = pairs
        .filter(|(_, x)| x.is_source)
        .map(|(x, _)| *x)
        .collect();
    let mut outputs: Vec<_> = made.iter().map(Value::id).collect();
    let n_outputs = outputs.len();
    let mut seeds: Vec<(String, Vec<f64>)> = Vec::new();
    let mut gradients = Vec::new();
    for (i, y) in made.iter().enumerate().filter(|(i, _)| !plain.contains(i)) {
        let name = format!("seed{i}");
        let seed = g.input(&name, y.ty());
        seeds.push((name, numbers(1000 + i as u64, y.ty().elements())));
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
    let run =
        |executor: &mut dyn Executor, fuse: bool, moved: Option<(usize, f64)>, narrow: bool| {
            let options = Options {
                fuse,
                ..Options::default()
            };
            let program = Program::new(graph.clone(), &outputs, options);
            let mut floats: Vec<Vec<f64>> = given.iter().map(|x| x.floats.clone()).collect();
            if let Some((source, step)) = moved {
                let index = given
                    .iter()
                    .enumerate()
                    .filter(|(_, x)| x.is_source)
                    .nth(source)
                    .unwrap()
                    .0;
                let direction = numbers(77, floats[index].len());
                for (x, d) in floats[index].iter_mut().zip(direction) {
                    *x += step * d;
                }
            }
            let singles = |x: &[f64]| -> Vec<f32> { x.iter().map(|&x| x as f32).collect() };
            let narrowed: Vec<Vec<f32>> = floats.iter().map(|x| singles(x)).collect();
            let narrow_seeds: Vec<Vec<f32>> = seeds.iter().map(|(_, x)| singles(x)).collect();
            let mut data: Vec<(&str, Data)> = Vec::new();
            for (i, x) in given.iter().enumerate() {
                data.push((
                    &names[i],
                    match (is_float[i], narrow) {
                        (false, _) => Data::I32(&x.ints),
                        (true, true) => Data::F32(&narrowed[i]),
                        (true, false) => Data::F64(&floats[i]),
                    },
                ));
            }
            for (i, (name, seed)) in seeds.iter().enumerate() {
                data.push((
                    name,
                    if narrow {
                        Data::F32(&narrow_seeds[i])
                    } else {
                        Data::F64(seed)
                    },
                ));
            }
            executor.run(&program, Arguments::default(), &data);
            outputs
                .iter()
                .map(|&id| executor.output(&program, id).into_f64())
                .collect::<Vec<_>>()
        };
    let exact = run(&mut Reference::new(), true, None, false);
    let unfused = run(&mut Cpu::new(), false, None, true);
    let found = run(&mut Cpu::new(), true, None, true);
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
    let sources = given.iter().filter(|x| x.is_source).count();
    for source in 0..sources {
        let [up, down] =
            [STEP, -STEP].map(|step| run(&mut Reference::new(), true, Some((source, step)), false));
        for (i, seed) in made_seeds(&seeds) {
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

fn made_seeds(seeds: &[(String, Vec<f64>)]) -> impl Iterator<Item = (usize, &[f64])> {
    seeds
        .iter()
        .map(|(name, seed)| (name["seed".len()..].parse().unwrap(), &seed[..]))
}

/// What a run left in the CPU executor.
#[derive(Debug, PartialEq)]
pub(crate) struct After {
    pub(crate) outputs: Vec<Vec<f64>>,
    pub(crate) buffers: Vec<Vec<f64>>,
}

/// Runs what `record` makes of buffers and inputs once for each of `runs`, and compares the outputs and
/// the buffers of both executors after every run. Each buffer begins with elements of `state`; inputs are
/// of the same types in all runs. Gives what each run left.
pub(crate) fn check_update(
    state: &[Vec<f64>],
    runs: &[(Arguments, Vec<Given>)],
    record: impl for<'g> Fn(&'g Builder, &[Buffer], &[Value<'g>]) -> Vec<Value<'g>>,
) -> Vec<After> {
    let run_all = |executor: &mut dyn Executor, narrow: bool| {
        let allocate = |values: &Vec<f64>| {
            let buffer = executor.allocate(DType::F32, values.len());
            executor.write(buffer, 0, Data::F64(values));
            buffer
        };
        let buffers: Vec<Buffer> = state.iter().map(allocate).collect();
        let g = Builder::new();
        let first: &[Given] = runs.first().map_or(&[], |(_, given)| given);
        let names: Vec<String> = (0..first.len()).map(|i| format!("x{i}")).collect();
        let inputs: Vec<Value> = names
            .iter()
            .zip(first)
            .map(|(n, x)| g.input(n, x.ty))
            .collect();
        let outputs: Vec<_> = record(&g, &buffers, &inputs)
            .iter()
            .map(Value::id)
            .collect();
        let program = Program::new(g.finish(), &outputs, Options::default());
        let mut left = Vec::new();
        for (arguments, given) in runs {
            let singles = |x: &Given| x.floats.iter().map(|&x| x as f32).collect();
            let narrowed: Vec<Vec<f32>> = given.iter().map(singles).collect();
            let mut data: Vec<(&str, Data)> = Vec::new();
            for ((name, x), singles) in names.iter().zip(given).zip(&narrowed) {
                data.push((
                    name,
                    match (x.ty.dtype, narrow) {
                        (DType::I32, _) => Data::I32(&x.ints),
                        (DType::F32, true) => Data::F32(singles),
                        _ => Data::F64(&x.floats),
                    },
                ));
            }
            executor.run(&program, *arguments, &data);
            let read = |(buffer, values): (&Buffer, &Vec<f64>)| {
                executor.read(*buffer, 0..values.len()).into_f64()
            };
            left.push(After {
                outputs: outputs
                    .iter()
                    .map(|&id| executor.output(&program, id).into_f64())
                    .collect(),
                buffers: buffers.iter().zip(state).map(read).collect(),
            });
        }
        left
    };
    let exact = run_all(&mut Reference::new(), false);
    let found = run_all(&mut Cpu::new(), true);
    for (run, (found, exact)) in found.iter().zip(&exact).enumerate() {
        let all = |after: &After| [&after.outputs[..], &after.buffers].concat();
        for (i, (found, exact)) in all(found).iter().zip(all(exact)).enumerate() {
            assert_eq!(found.len(), exact.len(), "run {run}, value {i}: elements");
            let finite = exact.iter().filter(|x| x.is_finite());
            let size = finite.fold(0.1f64, |m, x| m.max(x.abs()));
            for (j, (a, b)) in found.iter().zip(&exact).enumerate() {
                let is_same =
                    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= OUTPUT * size;
                assert!(
                    is_same,
                    "run {run}, value {i}, element {j}: {a}, reference {b}"
                );
            }
        }
    }
    found
}
