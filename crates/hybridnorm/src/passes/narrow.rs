//! Narrowing to last positions: if only the last position of every sequence is needed, it is selected as early as
//! possible, and other positions are not computed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use crate::graph::{Graph, Node, Source, Type, ValueId};
use crate::ops::{LastPosition, Op};

/// Moves [`LastPosition`] before ops that compute [each position
/// independently](crate::ops::Operation::positionwise_inputs):
/// `last(f(x, y))` becomes `f(last(x), last(y))`. After the last attention of a prompt, the rest of a model then
/// runs on one position of each sequence.
///
/// Matmuls of another number of rows may sum in another order, so the last bits of results may differ.
pub(crate) fn narrow(graph: &mut Graph, outputs: &[ValueId]) {
    let is_last = |node: &Node| matches!(node.op, Op::LastPosition(_));
    if !graph.nodes.iter().any(is_last) {
        return;
    }
    let mut readers = vec![0; graph.values.len()];
    let ops = graph.nodes.iter().filter(|node| !is_last(node));
    let read = ops.flat_map(|node| &node.inputs).chain(outputs);
    read.for_each(|id| readers[id.0] += 1);
    let nodes = std::mem::take(&mut graph.nodes);
    let mut pass = Pass {
        reversed: Vec::with_capacity(nodes.len()),
        graph,
        readers,
        last: BTreeMap::new(),
    };
    // In reverse, so that all readers of a value precede the op that computes it.
    for node in nodes.into_iter().rev() {
        match is_last(&node) {
            true => pass.defer(node),
            false => pass.visit(node),
        }
    }
    pass.finish();
}

/// Nodes in reverse order, and the last positions that they read.
struct Pass<'a> {
    graph: &'a mut Graph,
    /// Number of readers of all positions of a value: ops, and the host.
    readers: Vec<usize>,
    /// Maps a value to the value that holds its last position, where only that is needed.
    last: BTreeMap<ValueId, ValueId>,
    reversed: Vec<Node>,
}

impl Pass<'_> {
    /// Defers a selection of the last position to the op that computes the value.
    fn defer(&mut self, node: Node) {
        let (value, last) = (node.inputs[0], node.outputs[0]);
        match self.last.entry(value) {
            // State may be updated before it is read, so the read keeps its position in the order.
            Entry::Vacant(entry) if !is_state(self.graph, value) => {
                entry.insert(last);
            }
            // Otherwise the selection stays and counts as a reader; so does a second selection of the same value.
            _ => {
                self.readers[value.0] += 1;
                self.reversed.push(node);
            }
        }
    }

    /// Narrows an op to last positions if it can be, or selects those of its outputs after it.
    fn visit(&mut self, mut node: Node) {
        let types: Vec<Type> = node.inputs.iter().map(|id| self.graph.ty(*id)).collect();
        let narrowed = node.op.operation().positionwise_inputs(&types);
        if self.can_narrow(&node, &narrowed) {
            for output in &mut node.outputs {
                let last = self.last_of(*output);
                self.last.remove(output);
                *output = last;
            }
            for input in &mut node.inputs[narrowed] {
                self.readers[input.0] -= 1;
                *input = self.last_of(*input);
            }
        } else {
            for value in &node.outputs {
                let last = self.last.remove(value);
                let selection =
                    last.map(|last| last_position_node(self.graph, *value, last, Some(&node)));
                self.reversed.extend(selection);
            }
        }
        self.reversed.push(node);
    }

    /// True if only last positions of the outputs are needed, and those of the inputs `narrowed` suffice.
    fn can_narrow(&self, node: &Node, narrowed: &Range<usize>) -> bool {
        let has_last = |id: &ValueId| {
            !is_state(self.graph, *id) && LastPosition::of(self.graph.ty(*id)).is_some()
        };
        !narrowed.is_empty()
            && node.inputs[narrowed.clone()].iter().all(has_last)
            && node.outputs.iter().all(|id| self.readers[id.0] == 0)
            && node.outputs.iter().any(|id| self.last.contains_key(id))
    }

    /// Returns the value that holds the last position of `value`; adds it unless an op already reads that position.
    fn last_of(&mut self, value: ValueId) -> ValueId {
        let (_, ty) = LastPosition::of(self.graph.ty(value)).expect("positions");
        let add_value = || self.graph.add_value(ty, Source::Computed);
        *self.last.entry(value).or_insert_with(add_value)
    }

    /// Selects the last positions of values that no op computes, and restores the order.
    fn finish(mut self) {
        for (value, last) in std::mem::take(&mut self.last) {
            let selection = last_position_node(self.graph, value, last, None);
            self.reversed.push(selection);
        }
        self.reversed.reverse();
        self.graph.nodes = self.reversed;
    }
}

fn is_state(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.value(value).source, Source::State(..))
}

/// Returns the op that selects the last position of `value`, with the path and segment of the op that computes it.
fn last_position_node(
    graph: &Graph,
    value: ValueId,
    last: ValueId,
    producer: Option<&Node>,
) -> Node {
    let (op, _) = LastPosition::of(graph.ty(value)).expect("a value with positions");
    Node {
        op: op.into(),
        inputs: vec![value],
        outputs: vec![last],
        path: producer.map_or_else(|| "".into(), |node| node.path.clone()),
        segment: producer.and_then(|node| node.segment),
        is_backward: producer.is_some_and(|node| node.is_backward),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{Cpu, Executor, TensorRef};
    use crate::graph::{Builder, DType, Value};
    use crate::ops::{self, Arguments};
    use crate::plan::{Options, Program};
    use hybridnorm_kernels::norm::{Gain, NormConfig, NormFn};

    const POSITIONS: usize = 5;

    /// Records `build` on inputs x (2, 5, 4) and w (4, 4); returns the planned program and the values of its outputs.
    fn run(
        build: impl for<'g> Fn(Value<'g>, Value<'g>) -> Vec<Value<'g>>,
    ) -> (Program, Vec<Vec<f32>>) {
        let g = Builder::new();
        let x = g.input("x", Type::f32([2, POSITIONS, 4]));
        let w = g.input("w", Type::f32([4, 4]));
        let outputs: Vec<_> = build(x, w).iter().map(Value::id).collect();
        let program = Program::new(g.finish(), &outputs, Options::default());
        let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
        let (x, w) = (numbers(2 * POSITIONS * 4), numbers(16));
        let mut cpu = Cpu::new();
        cpu.run(
            &program,
            Arguments::default(),
            &[("x", TensorRef::F32(&x)), ("w", TensorRef::F32(&w))],
        )
        .unwrap();
        let values = outputs
            .iter()
            .map(|&id| cpu.output(&program, id).into_f32());
        let values = values.collect();
        (program, values)
    }

    /// Returns the numbers of rows that ops of this name read.
    fn rows(program: &Program, name: &str) -> Vec<usize> {
        let graph = program.graph();
        let nodes = graph
            .nodes()
            .iter()
            .filter(|node| node.op.operation().name() == name);
        nodes
            .map(|node| graph.ty(node.inputs[0]).shape.rows())
            .collect()
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
        }
    }

    #[test]
    fn ops_after_the_last_full_reader_are_narrowed() {
        let (program, narrow) = run(|x, w| {
            let y = ops::linear(x, w);
            vec![ops::last_position(
                y + ops::softcap(ops::linear(y, w) * 0.5, 2.0),
            )]
        });
        let (_, all) = run(|x, w| {
            let y = ops::linear(x, w);
            vec![y + ops::softcap(ops::linear(y, w) * 0.5, 2.0)]
        });
        assert_eq!(rows(&program, "linear"), [2, 2]);
        assert_eq!(rows(&program, "last position"), [2 * POSITIONS]);
        let ends = all[0].chunks(4 * POSITIONS).flat_map(|x| &x[x.len() - 4..]);
        assert_close(&narrow[0], &ends.copied().collect::<Vec<_>>());
    }

    #[test]
    fn values_that_are_read_at_all_positions_stay() {
        let (program, values) = run(|x, w| {
            let y = ops::linear(x, w);
            let z = ops::linear(y, w);
            let last = ops::last_position(z);
            vec![last, y, ops::last_position(y), ops::last_position(z) + last]
        });
        assert_eq!(rows(&program, "linear"), [2 * POSITIONS, 2 * POSITIONS]);
        let ends = values[1]
            .chunks(4 * POSITIONS)
            .flat_map(|x| &x[x.len() - 4..]);
        assert_eq!(values[2], ends.copied().collect::<Vec<_>>());
        assert_eq!(
            values[3],
            values[0].iter().map(|x| x + x).collect::<Vec<_>>()
        );
    }

    #[test]
    fn values_are_narrowed_after_their_last_full_reader() {
        let (program, values) = run(|x, w| {
            let y = ops::linear(x, w);
            vec![ops::last_position(ops::linear(y, w)), y]
        });
        assert_eq!(rows(&program, "linear"), [2 * POSITIONS, 2]);
        assert_eq!(values[0].len(), 8);
    }

    #[test]
    fn column_slices_are_narrowed_and_per_position_norms_are_not() {
        let (program, _) = run(|x, w| {
            let [gate, _] = ops::split(ops::linear(x, w), [2, 2]);
            vec![ops::last_position(ops::softcap(gate, 2.0))]
        });
        assert_eq!(rows(&program, "linear"), [2]);
        let norm = NormConfig {
            function: NormFn::Rmsnorm,
            eps: 1e-5,
            gain: Gain::Plain,
            bias: false,
            width: 4,
            groups: POSITIONS,
        };
        let (program, narrow) = run(|x, _| {
            let g = x.builder();
            let gain = ops::concat(&[
                ops::fill(g, 1.0, Type::f32([16])),
                ops::fill(g, 3.0, Type::f32([4])),
            ]);
            let y = ops::norm(x, gain, norm);
            vec![ops::last_position(y), y]
        });
        assert_eq!(rows(&program, "norm"), [2 * POSITIONS]);
        let (program, alone) = run(|x, _| {
            let g = x.builder();
            let gain = ops::concat(&[
                ops::fill(g, 1.0, Type::f32([16])),
                ops::fill(g, 3.0, Type::f32([4])),
            ]);
            vec![ops::last_position(ops::norm(x, gain, norm))]
        });
        assert_eq!(rows(&program, "norm"), [2 * POSITIONS]);
        assert_eq!(alone[0], narrow[0]);
    }

    #[test]
    fn state_is_read_after_its_update() {
        let mut cpu = Cpu::new();
        let ty = Type::f32([1, 2, 3]);
        let buffer = cpu.allocate(DType::F32, 6).unwrap();
        let g = Builder::new();
        let (x, state) = (g.input("x", ty), g.state(buffer, 0, ty));
        ops::accumulate(x, state, true);
        let last = ops::last_position(state).id();
        let program = Program::new(g.finish(), &[last], Options::default());
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        cpu.run(&program, Arguments::default(), &[("x", TensorRef::F32(&x))])
            .unwrap();
        assert_eq!(cpu.output(&program, last).into_f32(), [4.0, 5.0, 6.0]);
    }
}
