//! The reference executor: every op in plain loops and double precision, without a memory plan. All other
//! executors are tested against it; it is not optimized for speed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::data::input;
use super::profile::Profile;
use super::{Executor, Tensor, TensorRef};
use crate::error::Result;
use crate::graph::{Buffer, DType, Node, Source, ValueId};
use crate::ops::{Arguments, InputOperand, Operands, OutputOperand, round_to_bf16};
use crate::plan::Program;

/// Executor in double precision, without a memory plan.
#[derive(Debug, Default)]
pub struct Reference {
    values: Vec<Option<Value>>,
    buffers: Vec<Option<(DType, Value)>>,
    profile: Profile,
}

/// Elements of a value; single precision is stored as double precision.
#[derive(Debug, Clone)]
enum Value {
    Float(Vec<f64>),
    Int(Vec<i32>),
}

impl Value {
    fn zeros(dtype: DType, elements: usize) -> Self {
        match dtype {
            DType::F32 | DType::Bf16 | DType::F64 => Self::Float(vec![0.0; elements]),
            DType::I32 => Self::Int(vec![0; elements]),
        }
    }

    fn from(data: TensorRef<'_>) -> Self {
        match data {
            TensorRef::F32(x) => Self::Float(x.iter().map(|&x| f64::from(x)).collect()),
            TensorRef::F64(x) => Self::Float(x.to_vec()),
            TensorRef::I32(x) => Self::Int(x.to_vec()),
        }
    }

    fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::Float(x) => Self::Float(x[range].to_vec()),
            Self::Int(x) => Self::Int(x[range].to_vec()),
        }
    }

    fn overwrite(&mut self, offset: usize, with: Self) {
        match (self, with) {
            (Self::Float(to), Self::Float(from)) => {
                to[offset..offset + from.len()].copy_from_slice(&from);
            }
            (Self::Int(to), Self::Int(from)) => {
                to[offset..offset + from.len()].copy_from_slice(&from);
            }
            _ => panic!("elements of a different type"),
        }
    }

    /// Rounds numbers to bfloat16 if that is the type of the value.
    fn rounded_to(mut self, dtype: DType) -> Self {
        if let (Self::Float(x), DType::Bf16) = (&mut self, dtype) {
            round_to_bf16(x);
        }
        self
    }

    fn into_tensor(self) -> Tensor {
        match self {
            Self::Float(x) => Tensor::F64(x),
            Self::Int(x) => Tensor::I32(x),
        }
    }

    fn read(&self, dtype: DType) -> InputOperand<'_, f64> {
        match (self, dtype) {
            (Self::Float(x), DType::F64) => InputOperand::Double(x),
            (Self::Float(x), _) => InputOperand::Float(x),
            (Self::Int(x), _) => InputOperand::Int(x),
        }
    }

    fn write(&mut self, dtype: DType) -> OutputOperand<'_, f64> {
        match (self, dtype) {
            (Self::Float(x), DType::F64) => OutputOperand::Double(x),
            (Self::Float(x), _) => OutputOperand::Float(x),
            (Self::Int(x), _) => OutputOperand::Int(x),
        }
    }
}

impl Reference {
    /// Creates an executor without state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the elements of a value of the running program.
    fn value(&self, program: &Program, id: ValueId) -> Value {
        let info = program.graph().value(id);
        match info.source {
            Source::State(buffer, offset) => {
                let (_, all) = self.buffers[buffer.0].as_ref().expect("a buffer");
                all.slice(offset..offset + info.ty.elements())
            }
            Source::RoundedState(buffer, offset) => {
                let (_, all) = self.buffers[buffer.0].as_ref().expect("a buffer");
                let slice = all.slice(offset..offset + info.ty.elements());
                slice.rounded_to(DType::Bf16)
            }
            _ => self.values[id.0]
                .clone()
                .expect("computed before it is read"),
        }
    }

    /// Replaces all values by the inputs of a run.
    fn bind_inputs(&mut self, program: &Program, inputs: &[(&str, TensorRef<'_>)]) {
        self.values = vec![None; program.graph().values.len()];
        for (name, id) in program.inputs() {
            let ty = program.ty(id);
            let data = input(inputs, name, ty);
            self.values[id.0] = Some(Value::from(data).rounded_to(ty.dtype));
        }
    }

    /// Runs an op, and stores its outputs and the state that it updates.
    fn run_node(&mut self, program: &Program, node: &Node, arguments: Arguments) {
        let (graph, operation) = (program.graph(), node.op.operation());
        let updates = operation.state_inputs(node.inputs.len());
        let inputs = node.inputs.iter().map(|&id| self.value(program, id));
        let mut inputs: Vec<Value> = inputs.collect();
        let zeros = |&id: &ValueId| Value::zeros(graph.ty(id).dtype, graph.ty(id).elements());
        let mut outputs: Vec<Value> = node.outputs.iter().map(zeros).collect();
        for &(input, output) in operation.in_place() {
            outputs[output] = inputs[input].clone();
        }
        let types: Vec<DType> = node.inputs.iter().map(|&id| graph.ty(id).dtype).collect();
        let mut updated: Vec<Value> = inputs[updates.clone()].to_vec();
        let is_written = |i: usize| {
            updates.contains(&i) || operation.in_place().iter().any(|&(input, _)| input == i)
        };
        let reads = inputs.iter_mut().zip(&types).enumerate();
        let reads = reads.map(|(i, (x, dtype))| match is_written(i) {
            true => InputOperand::InPlace,
            false => x.read(*dtype),
        });
        let written = outputs.iter_mut().zip(&node.outputs);
        let written = written.map(|(y, &id)| y.write(graph.ty(id).dtype));
        let states = updated.iter_mut().zip(&types[updates.clone()]);
        let states = states.map(|(y, dtype)| y.write(*dtype));
        let mut io = Operands::new(reads.collect(), written.chain(states).collect(), arguments);
        self.profile
            .run(operation.name(), || operation.reference(&mut io));
        for (&id, value) in node.outputs.iter().zip(outputs) {
            self.values[id.0] = Some(value.rounded_to(graph.ty(id).dtype));
        }
        for (&id, value) in node.inputs[updates].iter().zip(updated) {
            let (buffer, offset) = match graph.value(id).source {
                Source::State(buffer, offset) => (buffer, offset),
                // Rounded again whenever it is read.
                Source::RoundedState(..) => continue,
                _ => panic!("in-place input is not a state buffer"),
            };
            let (_, all) = self.buffers[buffer.0].as_mut().expect("a buffer");
            all.overwrite(offset, value);
        }
    }
}

impl Executor for Reference {
    fn allocate(&mut self, dtype: DType, elements: usize) -> Result<Buffer> {
        self.buffers
            .push(Some((dtype, Value::zeros(dtype, elements))));
        Ok(Buffer(self.buffers.len() - 1))
    }

    fn free(&mut self, buffer: Buffer) {
        self.buffers[buffer.0] = None;
    }

    fn write(&mut self, buffer: Buffer, offset: usize, data: TensorRef<'_>) {
        let (dtype, to) = self.buffers[buffer.0].as_mut().expect("a buffer");
        assert!(
            data.can_be_stored_as(*dtype),
            "elements of a different type"
        );
        to.overwrite(offset, Value::from(data).rounded_to(*dtype));
    }

    fn read(&self, buffer: Buffer, elements: Range<usize>) -> Tensor {
        let (_, all) = self.buffers[buffer.0].as_ref().expect("a buffer");
        all.slice(elements).into_tensor()
    }

    /// Values are allocated one by one while a program runs.
    fn prepare(&mut self, _program: &Program) -> Result<()> {
        Ok(())
    }

    fn run(
        &mut self,
        program: &Program,
        arguments: Arguments,
        inputs: &[(&str, TensorRef<'_>)],
    ) -> Result<()> {
        self.bind_inputs(program, inputs);
        for node in program.graph().nodes() {
            self.run_node(program, node, arguments);
        }
        Ok(())
    }

    fn output(&self, program: &Program, output: ValueId) -> Tensor {
        self.value(program, output).into_tensor()
    }

    fn start_profile(&mut self) {
        self.profile.start();
    }

    fn take_profile(&mut self) -> BTreeMap<&'static str, Duration> {
        self.profile.finish()
    }
}
