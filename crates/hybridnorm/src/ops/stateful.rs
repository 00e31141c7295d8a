//! Tests of ops that read or update state: the CPU kernel against the reference, run after run.

use super::testing::{OUTPUT_TOLERANCE, TestInput, floats};
use hybridnorm_cuda::{Emulator, FiberOrder};

use crate::exec::{Cpu, Executor, OnDevice, Reference, TensorRef};
use crate::graph::{Buffer, Builder, DType, Value};
use crate::ops::Arguments;
use crate::plan::{Options, Program, Target};

/// Outputs of a run, and contents of the buffers after it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunResult {
    pub(crate) outputs: Vec<Vec<f64>>,
    pub(crate) buffers: Vec<Vec<f64>>,
}

/// An executor with one buffer per piece of state.
pub(crate) struct Session {
    executor: Box<dyn Executor>,
    precision: DType,
    target: Target,
    buffers: Vec<Buffer>,
    sizes: Vec<usize>,
}

impl Session {
    /// Creates a session of the reference executor, in double precision.
    pub(crate) fn reference(state: &[Vec<f64>]) -> Self {
        Self::new(Box::new(Reference::new()), DType::F64, Target::Cpu, state)
    }

    fn new(
        mut executor: Box<dyn Executor>,
        precision: DType,
        target: Target,
        state: &[Vec<f64>],
    ) -> Self {
        let mut allocate = |values: &Vec<f64>| {
            let buffer = executor.allocate(DType::F32, values.len()).unwrap();
            executor.write(buffer, 0, TensorRef::F64(values));
            buffer
        };
        Self {
            buffers: state.iter().map(&mut allocate).collect(),
            sizes: state.iter().map(Vec::len).collect(),
            executor,
            precision,
            target,
        }
    }

    /// Runs the program that `record` records from the buffers and the inputs.
    pub(crate) fn run(
        &mut self,
        arguments: Arguments,
        given: &[TestInput],
        record: impl for<'g> Fn(&'g Builder, &[Buffer], &[Value<'g>]) -> Vec<Value<'g>>,
    ) -> RunResult {
        let g = Builder::new();
        let names: Vec<String> = (0..given.len()).map(|i| format!("x{i}")).collect();
        let inputs = names.iter().zip(given);
        let inputs: Vec<Value> = inputs.map(|(name, x)| g.input(name, x.ty())).collect();
        let outputs = record(&g, &self.buffers, &inputs);
        let outputs: Vec<_> = outputs.iter().map(Value::id).collect();
        let program = Program::new(
            g.finish(),
            &outputs,
            Options::default().with_target(self.target),
        );
        let tensors: Vec<_> = given.iter().map(|x| x.tensor(self.precision)).collect();
        let data = names.iter().zip(&tensors);
        let data: Vec<_> = data.map(|(name, x)| (&**name, x.as_tensor_ref())).collect();
        self.executor.run(&program, arguments, &data).unwrap();
        let output = |&id| self.executor.output(&program, id).into_f64();
        let buffer = |(&buffer, &size)| self.executor.read(buffer, 0..size).into_f64();
        RunResult {
            outputs: outputs.iter().map(output).collect(),
            buffers: self.buffers.iter().zip(&self.sizes).map(buffer).collect(),
        }
    }
}

/// The reference, the CPU executor and one of an emulated device with the same state.
pub(crate) struct Executors {
    reference: Session,
    cpu: Session,
    device: Session,
}

/// Results of a run on each executor.
pub(crate) struct BothResults {
    pub(crate) reference: RunResult,
    pub(crate) cpu: RunResult,
}

impl Executors {
    pub(crate) fn new(state: &[Vec<f64>]) -> Self {
        Self {
            reference: Session::reference(state),
            cpu: Session::new(Box::new(Cpu::new()), DType::F32, Target::Cpu, state),
            device: {
                let device = OnDevice::new(Emulator::new(FiberOrder::Shuffled)).unwrap();
                Session::new(Box::new(device), DType::F32, Target::Device, state)
            },
        }
    }

    /// Runs both as [`Session::run`] does, and checks that their outputs and buffers agree.
    pub(crate) fn run(
        &mut self,
        arguments: Arguments,
        given: &[TestInput],
        record: impl for<'g> Fn(&'g Builder, &[Buffer], &[Value<'g>]) -> Vec<Value<'g>>,
    ) -> BothResults {
        let reference = self.reference.run(arguments, given, &record);
        let cpu = self.cpu.run(arguments, given, &record);
        check_equal(arguments, &cpu, &reference);
        let device = self.device.run(arguments, given, &record);
        check_equal(arguments, &device, &reference);
        BothResults { reference, cpu }
    }
}

/// Checks outputs and buffers against those of the reference.
fn check_equal(arguments: Arguments, found: &RunResult, reference: &RunResult) {
    let all = |after: &RunResult| [&after.outputs[..], &after.buffers].concat();
    for (i, (found, exact)) in all(found).iter().zip(all(reference)).enumerate() {
        assert_eq!(
            found.len(),
            exact.len(),
            "{arguments:?}, value {i}: elements"
        );
        let finite = exact.iter().filter(|x| x.is_finite());
        let size = finite.fold(0.1f64, |m, x| m.max(x.abs()));
        for (j, (a, b)) in found.iter().zip(&exact).enumerate() {
            let is_close = (a - b).abs() <= OUTPUT_TOLERANCE * size;
            assert!(
                is_close || a == b || (a.is_nan() && b.is_nan()),
                "{arguments:?}, value {i}, element {j}: {a}, reference {b}"
            );
        }
    }
}

/// Returns the arguments of a run after this many positions.
pub(crate) fn arguments_after(past: usize) -> Arguments {
    Arguments {
        past,
        ..Arguments::default()
    }
}

/// Returns inputs of these shapes, each with different numbers.
pub(crate) fn inputs<const N: usize>(seed: u64, shapes: [[usize; 3]; N]) -> [TestInput; N] {
    let mut seeds = seed..;
    shapes.map(|shape| floats(seeds.next().unwrap_or(seed), shape))
}
