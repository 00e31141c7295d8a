//! Properties of plans.

use proptest::prelude::*;

use super::*;
use crate::exec::{Cpu, Data, Executor};
use crate::graph::{Builder, Type, Value};
use crate::ops::{Arguments, linear, scale};
use crate::passes::gradients;

fn options(fuse: bool) -> Options {
    Options {
        fuse,
        ..Options::default()
    }
}

/// A graph of sums, scales and products of what was made before, at random.
fn random_graph<'g>(g: &'g Builder, choices: &[(u8, usize, usize)]) -> Vec<Value<'g>> {
    let mut values = vec![
        g.input("x", Type::f32([3, 4])),
        g.input("y", Type::f32([3, 4])),
    ];
    let w = g.input("w", Type::f32([4, 4]));
    for &(kind, a, b) in choices {
        let (a, b) = (values[a % values.len()], values[b % values.len()]);
        values.push(match kind % 3 {
            0 => a + b,
            1 => scale(a, 0.5),
            _ => linear(a, w),
        });
    }
    values
}

proptest! {
    /// No two values that are needed at the same time share a byte.
    #[test]
    fn live_values_never_overlap(
        choices in prop::collection::vec((any::<u8>(), any::<usize>(), any::<usize>()), 1..40),
        outputs in prop::collection::vec(any::<usize>(), 1..4),
    ) {
        let g = Builder::new();
        let values = random_graph(&g, &choices);
        let outputs: Vec<_> = outputs.iter().map(|i| values[i % values.len()].id()).collect();
        let graph = g.finish();
        for fuse in [false, true] {
            let program = Program::new(graph.clone(), &outputs, options(fuse));
            assert_apart(&program);
            prop_assert!(run(&program) == run_apart(&graph, &outputs, fuse));
        }
    }
}

/// The first and the last op at which each value is needed.
fn lifetimes(program: &Program) -> Vec<(ValueId, usize, usize)> {
    let graph = program.graph();
    let end = graph.nodes().len();
    let needed = |id: ValueId| {
        let readers = graph.nodes().iter().enumerate();
        let last = readers
            .filter(|(_, node)| node.inputs.contains(&id))
            .map(|(at, _)| at)
            .next_back();
        if program.outputs().contains(&id) {
            Some(end)
        } else {
            last
        }
    };
    let made = graph.nodes().iter().enumerate();
    let made = made.flat_map(|(at, node)| node.outputs.iter().map(move |&id| (id, at)));
    let given = program.inputs().map(|(_, id)| (id, 0));
    made.chain(given)
        .map(|(id, first)| (id, first, needed(id).unwrap_or(first)))
        .collect()
}

fn assert_apart(program: &Program) {
    let all = lifetimes(program);
    for (i, &(a, a_first, a_last)) in all.iter().enumerate() {
        for &(b, b_first, b_last) in &all[..i] {
            let (one, other) = (program.place(a).unwrap(), program.place(b).unwrap());
            // An op may write where it reads for the last time.
            let meet = a_first < b_last && b_first < a_last;
            let overlap = one.start < other.end && other.start < one.end;
            assert!(!(meet && overlap), "{a:?} at {one:?}, {b:?} at {other:?}");
            assert!(one.end <= program.arena_bytes());
        }
    }
}

fn run(program: &Program) -> Vec<Vec<f32>> {
    let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
    let (x, y, w) = (numbers(12), numbers(12), numbers(16));
    let mut cpu = Cpu::new();
    let given = [
        ("x", Data::F32(&x)),
        ("y", Data::F32(&y)),
        ("w", Data::F32(&w)),
    ];
    cpu.run(program, Arguments::default(), &given);
    program
        .outputs()
        .iter()
        .map(|&id| cpu.output(program, id).into_f32())
        .collect()
}

/// The same with a place of its own for every value: all of them are outputs.
fn run_apart(graph: &Graph, outputs: &[ValueId], fuse: bool) -> Vec<Vec<f32>> {
    let program = Program::new(graph.clone(), outputs, options(fuse));
    let mut all: Vec<ValueId> = lifetimes(&program).into_iter().map(|(id, ..)| id).collect();
    all.extend(outputs);
    let apart = Program::new(graph.clone(), &all, options(false));
    let found = run(&apart);
    let of = |output: &ValueId| all.iter().position(|id| id == output).unwrap();
    outputs
        .iter()
        .map(|output| found[of(output)].clone())
        .collect()
}

#[test]
fn recomputed_segments_give_the_same_bits_in_less_memory() {
    let g = Builder::new();
    let mut x = g.input("x", Type::f32([3, 4]));
    let w = g.input("w", Type::f32([4, 4]));
    let y = g.input("y", Type::f32([3, 4]));
    for block in 0..6 {
        x = g.segment(block, || {
            let hidden = linear(linear(x, w), w);
            x + linear(hidden + y, w)
        });
    }
    let targets = g.input("targets", Type::i32([3]));
    let [loss, _] = crate::ops::cross_entropy(x, targets, 0.0, 3.0);
    let dw = gradients(loss, &[w])[0].unwrap();
    let outputs = [loss.id(), dw.id()];
    let graph = g.finish();
    let program = |recompute| {
        let options = Options {
            recompute,
            ..Options::default()
        };
        Program::new(graph.clone(), &outputs, options)
    };
    let (plain, again) = (program(Recompute::None), program(Recompute::Block));
    assert!(again.arena_bytes() < plain.arena_bytes());
    let between = (plain.arena_bytes() + again.arena_bytes()) as u64 / 2;
    let some = program(Recompute::Budget(between));
    assert!(some.arena_bytes() as u64 <= between);
    assert!(some.graph().nodes().len() < again.graph().nodes().len());
    let enough = program(Recompute::Budget(u64::MAX));
    assert_eq!(enough.arena_bytes(), plain.arena_bytes());
    let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
    let (x, y, w) = (numbers(12), numbers(12), numbers(16));
    let given = [
        ("x", Data::F32(&x)),
        ("y", Data::F32(&y)),
        ("w", Data::F32(&w)),
        ("targets", Data::I32(&[0, 3, 1])),
    ];
    let run = |program: &Program| {
        let mut cpu = Cpu::new();
        cpu.run(program, Arguments::default(), &given);
        outputs.map(|id| cpu.output(program, id).into_f32())
    };
    assert!(run(&plain) == run(&again));
    assert!(run(&plain) == run(&some));
}
