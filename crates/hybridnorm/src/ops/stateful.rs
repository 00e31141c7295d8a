//! How ops that read or update state are tested: the CPU kernel against the reference, run after run.

use super::testing::numbers;
use crate::exec::{Cpu, Data, Executor, Reference};
use crate::graph::{Buffer, Builder, DType, Type, Value};
use crate::ops::Arguments;
use crate::plan::{Options, Program};

/// Largest error, relative to the largest element.
const TOLERANCE: f64 = 1e-5;

/// An executor with a buffer for each piece of state.
pub(crate) struct Session {
    executor: Box<dyn Executor>,
    buffers: Vec<(Buffer, usize)>,
    narrow: bool,
}

impl Session {
    /// In double precision.
    pub(crate) fn reference(state: &[Vec<f64>]) -> Self {
        Self::new(Box::new(Reference::new()), state, false)
    }

    fn new(mut executor: Box<dyn Executor>, state: &[Vec<f64>], narrow: bool) -> Self {
        let mut buffers = Vec::new();
        for values in state {
            let buffer = executor.allocate(DType::F32, values.len());
            executor.write(buffer, 0, Data::F64(values));
            buffers.push((buffer, values.len()));
        }
        Self {
            executor,
            buffers,
            narrow,
        }
    }

    /// Runs what `build` makes of the buffers and the inputs; gives its outputs, then what the buffers
    /// hold afterwards.
    pub(crate) fn run(
        &mut self,
        past: usize,
        inputs: &[(Type, Vec<f64>)],
        build: impl for<'g> Fn(&'g Builder, &[Buffer], &[Value<'g>]) -> Vec<Value<'g>>,
    ) -> Vec<Vec<f64>> {
        let g = Builder::new();
        let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
        let given = names.iter().zip(inputs);
        let values: Vec<Value> = given.map(|(name, (ty, _))| g.input(name, *ty)).collect();
        let buffers: Vec<Buffer> = self.buffers.iter().map(|(buffer, _)| *buffer).collect();
        let outputs: Vec<_> = build(&g, &buffers, &values).iter().map(Value::id).collect();
        let program = Program::new(g.finish(), &outputs, Options::default());
        let singles = |x: &[f64]| x.iter().map(|&x| x as f32).collect();
        let narrowed: Vec<Vec<f32>> = inputs.iter().map(|(_, x)| singles(x)).collect();
        let data = names.iter().zip(inputs.iter().zip(&narrowed));
        let data: Vec<(&str, Data)> = data
            .map(|(name, ((_, wide), narrow))| {
                let data = match self.narrow {
                    true => Data::F32(narrow),
                    false => Data::F64(wide),
                };
                (&**name, data)
            })
            .collect();
        let arguments = Arguments {
            past,
            ..Arguments::default()
        };
        self.executor.run(&program, arguments, &data);
        let outputs = outputs.iter().map(|&id| self.executor.output(&program, id));
        let state = self
            .buffers
            .iter()
            .map(|&(buffer, len)| self.executor.read(buffer, 0..len));
        outputs
            .chain(state)
            .map(|tensor| tensor.into_f64())
            .collect()
    }
}

/// The reference and the CPU side by side, with the same state.
pub(crate) struct Executors {
    reference: Session,
    cpu: Session,
}

impl Executors {
    pub(crate) fn new(state: &[Vec<f64>]) -> Self {
        Self {
            reference: Session::reference(state),
            cpu: Session::new(Box::new(Cpu::new()), state, true),
        }
    }

    /// As [`Session::run`], and checks that both give the same.
    pub(crate) fn run(
        &mut self,
        past: usize,
        inputs: &[(Type, Vec<f64>)],
        build: impl for<'g> Fn(&'g Builder, &[Buffer], &[Value<'g>]) -> Vec<Value<'g>>,
    ) -> Vec<Vec<f64>> {
        let exact = self.reference.run(past, inputs, &build);
        let found = self.cpu.run(past, inputs, &build);
        for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
            assert_eq!(
                found.len(),
                exact.len(),
                "past {past}, result {i}: elements"
            );
            let size = exact.iter().fold(0.1f64, |m, x| m.max(x.abs()));
            for (j, (a, b)) in found.iter().zip(exact).enumerate() {
                assert!(
                    (a - b).abs() <= TOLERANCE * size,
                    "past {past}, result {i}, element {j}: {a}, reference {b}"
                );
            }
        }
        exact
    }
}

/// Inputs of these shapes, each with other numbers.
pub(crate) fn inputs<const N: usize>(seed: u64, shapes: [[usize; 3]; N]) -> [(Type, Vec<f64>); N] {
    let mut seeds = seed..;
    shapes.map(|shape| {
        let seed = seeds.next().unwrap_or(seed);
        (Type::f32(shape), numbers(seed, shape.iter().product()))
    })
}
