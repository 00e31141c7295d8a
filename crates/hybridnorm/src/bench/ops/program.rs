//! Execution of a problem on an executor.

use super::Bound;
use super::case::{Operand, OutputRole, Problem};
use crate::error::Result;
use crate::exec::{Executor, Tensor, TensorRef};
use crate::graph::{Builder, DType, Graph, Node, Type, Value, ValueId};
use crate::ops::{Arguments, Op};
use crate::passes;
use crate::plan::{Options, Precision, Program};

/// A program that computes copies of a problem, each on separate operands.
///
/// Overwritten operands are inputs of the program, all others are state of the executor. All operands are allocated
/// before the first op runs and all outputs stay allocated until the last op has run, so the copies use disjoint
/// memory.
pub struct BenchmarkProgram<E> {
    executor: E,
    program: Program,
    arguments: Arguments,
    /// Name of each input, and the index of its elements in `overwritten`.
    inputs: Vec<(String, usize)>,
    overwritten: Vec<Tensor>,
    copies: usize,
    /// Name of the op that produces the outputs.
    op: &'static str,
}

impl<E: Executor + Default> BenchmarkProgram<E> {
    /// Plans the program as in training, including fused ops and the types of operands.
    ///
    /// # Errors
    /// If there is not enough memory.
    ///
    /// # Panics
    /// Unless the outputs of a copy are produced by a single op.
    pub fn new(problem: &Problem, copies: usize, precision: Precision) -> Result<Self> {
        let mut executor = E::default();
        let stored = stored_types(problem, precision);
        let graph = Builder::new();
        let (mut inputs, mut overwritten) = (Vec::new(), Vec::new());
        let mut operands: Vec<Vec<Value>> = vec![Vec::new(); copies];
        for (index, operand) in problem.operands.iter().enumerate() {
            let (ty, elements) = (operand.ty, operand.elements(index));
            let size = ty.elements();
            if operand.is_overwritten {
                for (copy, values) in operands.iter_mut().enumerate() {
                    let name = format!("operand {index} of copy {copy}");
                    values.push(graph.input(&name, ty));
                    inputs.push((name, overwritten.len()));
                }
                overwritten.push(elements);
                continue;
            }
            let buffer = executor.allocate(stored[index], copies * size)?;
            for (copy, values) in operands.iter_mut().enumerate() {
                executor.write(buffer, copy * size, elements.as_tensor_ref());
                values.push(graph.state(buffer, copy * size, ty));
            }
        }
        let (mut outputs, mut single) = (Vec::new(), Vec::new());
        for values in &operands {
            let recorded = record(problem, values, precision);
            outputs.extend(recorded.outputs);
            single.extend(recorded.single);
        }
        let mut graph = graph.finish();
        passes::precision_of_single_ops(&mut graph, &single, precision);
        let keeps_weights = problem.outputs == OutputRole::Logits;
        let options = Options::default().with_keep_rounded_weights(keeps_weights);
        let program = Program::new(graph, &outputs, options);
        let measured = measured(&program);
        let names: Vec<&'static str> = measured
            .iter()
            .map(|node| node.op.operation().name())
            .collect();
        assert_eq!(
            names.len(),
            copies,
            "expected one op per copy, but the outputs are produced by {names:?}"
        );
        Ok(Self {
            op: names[0],
            executor,
            arguments: problem.arguments,
            inputs,
            overwritten,
            copies,
            program,
        })
    }
}

impl<E: Executor> BenchmarkProgram<E> {
    /// Runs the program; returns the mean wall time of the op, in seconds.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn run(&mut self) -> Result<f64> {
        let inputs = self.inputs.iter();
        let inputs: Vec<(&str, TensorRef)> = inputs
            .map(|(name, index)| (&**name, self.overwritten[*index].as_tensor_ref()))
            .collect();
        self.executor.start_profile();
        self.executor.run(&self.program, self.arguments, &inputs)?;
        let profile = self.executor.take_profile();
        Ok(profile[self.op].as_secs_f64() / self.copies as f64)
    }

    /// Returns the outputs of all copies.
    pub fn outputs(&self) -> Vec<Vec<f64>> {
        let outputs = self.program.outputs().iter();
        let output = |&id| self.executor.output(&self.program, id).into_f64();
        outputs.map(output).collect()
    }

    pub fn copies(&self) -> usize {
        self.copies
    }

    /// Returns the program.
    #[cfg(test)]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// True if the measured op reads or writes bfloat16.
    pub fn is_bf16(&self) -> bool {
        let graph = self.program.graph();
        let nodes = measured(&self.program).into_iter();
        let mut values = nodes.flat_map(|node| node.inputs.iter().chain(&node.outputs));
        values.any(|id| graph.ty(*id).dtype == DType::Bf16)
    }

    /// Returns the FLOPs of a copy's matmuls, or the bytes that it has to move.
    pub fn flops_or_bytes(&self, bound: Bound) -> f64 {
        let graph = self.program.graph();
        let work = |node: &&Node| match bound {
            Bound::Compute => node.op.operation().flops(&types(graph, &node.inputs)),
            Bound::Read | Bound::ReadWrite => moved_bytes(graph, node),
        };
        let all: u64 = measured(&self.program).iter().map(work).sum();
        all as f64 / self.copies as f64
    }
}

/// Outputs of a recorded problem, and its values that mixed precision keeps in single precision.
struct Recorded {
    outputs: Vec<ValueId>,
    single: Vec<ValueId>,
}

fn record(problem: &Problem, operands: &[Value], precision: Precision) -> Recorded {
    let outputs = problem.record(operands);
    let outputs: Vec<ValueId> = outputs.iter().map(Value::id).collect();
    let is_single_residual =
        matches!(precision, Precision::Bf16 { residual } if residual == DType::F32);
    let is_single = |is_residual: bool| is_residual && is_single_residual;
    let mut single = match problem.outputs {
        OutputRole::Logits => outputs.clone(),
        role if is_single(role == OutputRole::Residual) => outputs.clone(),
        _ => Vec::new(),
    };
    let all = problem.operands.iter().zip(operands);
    let residual = all.filter(|(operand, _)| is_single(operand.is_residual));
    single.extend(residual.map(|(_, value)| value.id()));
    Recorded { outputs, single }
}

/// Returns the types in which a problem's operands are stored.
fn stored_types(problem: &Problem, precision: Precision) -> Vec<DType> {
    let graph = Builder::new();
    let input = |operand: &Operand| graph.input("", operand.ty);
    let operands: Vec<Value> = problem.operands.iter().map(input).collect();
    let single = record(problem, &operands, precision).single;
    let ids: Vec<ValueId> = operands.iter().map(Value::id).collect();
    let mut graph = graph.finish();
    passes::precision_of_single_ops(&mut graph, &single, precision);
    ids.into_iter().map(|id| graph.ty(id).dtype).collect()
}

/// Returns the ops that produce the outputs of a program.
fn measured(program: &Program) -> Vec<&Node> {
    let produces_output = |node: &&Node| {
        let mut outputs = node.outputs.iter();
        outputs.any(|id| program.outputs().contains(id))
    };
    program
        .graph()
        .nodes()
        .iter()
        .filter(produces_output)
        .collect()
}

fn types(graph: &Graph, values: &[ValueId]) -> Vec<Type> {
    values.iter().map(|&id| graph.ty(id)).collect()
}

/// Returns the bytes of an op's operands: inputs read once, outputs and updated inputs written once.
fn moved_bytes(graph: &Graph, node: &Node) -> u64 {
    let bytes = |values| {
        let types = types(graph, values).into_iter();
        types.map(|ty| ty.bytes() as u64).sum::<u64>()
    };
    let read = match node.op {
        // Only the rows of the table that are looked up.
        Op::Embedding(_) => {
            let table = graph.ty(node.inputs[1]).dtype.bytes();
            bytes(&node.inputs[..1]) + (graph.ty(node.outputs[0]).elements() * table) as u64
        }
        _ => bytes(&node.inputs),
    };
    let updated = node.op.operation().state_inputs(node.inputs.len());
    read + bytes(&node.outputs) + bytes(&node.inputs[updated])
}
