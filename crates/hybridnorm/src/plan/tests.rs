//! Tests of plans.

use hybridnorm_kernels::activation::Activation;
use hybridnorm_kernels::attention::AttentionConfig;
use hybridnorm_kernels::norm::{Gain, NormConfig, NormFn};
use hybridnorm_kernels::qkv::{QkOrder, QkvTransform, rope_frequencies};
use proptest::prelude::*;

use super::*;
use crate::exec::{Cpu, Executor, TensorRef};
use crate::graph::{Buffer, Builder, DType, Type, Value};
use crate::ops::{self, Arguments, linear};
use crate::passes::gradients;

/// Positions and width of the test values: (1, t, d).
const SEQ: usize = 3;
const WIDTH: usize = 4;

/// State of a random graph: a norm's gain (d), sums of its gradients (d), keys and values (1, t, 2d).
const GAIN: Buffer = Buffer(0);
const SUMS: Buffer = Buffer(1);
const CACHE: Buffer = Buffer(2);
const ELEMENTS: [usize; 3] = [WIDTH, WIDTH, 2 * SEQ * WIDTH];

const NORM: NormConfig = NormConfig {
    function: NormFn::Rmsnorm,
    eps: 1e-5,
    gain: Gain::OnePlus,
    bias: false,
    width: WIDTH,
    groups: 1,
};

/// Two heads with a norm over the queries of both, for which the fused op needs scratch memory.
const TRANSFORM: QkvTransform = QkvTransform {
    heads: 2,
    kv_heads: 2,
    head_dim: WIDTH / 2,
    q: Some(NORM),
    k: None,
    v: None,
    order: QkOrder::BeforeRope,
    qk_scale: 1.0,
    clip: None,
};

const ATTENTION: AttentionConfig = AttentionConfig {
    batch: 1,
    seq: SEQ,
    heads: 2,
    kv_heads: 2,
    head_dim: WIDTH / 2,
    value_dim: WIDTH / 2,
    scale: 0.5,
    softcap: None,
    window: None,
    precision: hybridnorm_kernels::matmul::Precision::F32,
};

/// An op of a random graph: its kind, and indices of the earlier values that it reads.
type Choice = (u8, usize, usize);

/// Number of kinds of ops with gradients, which come first.
const DIFFERENTIABLE: u8 = 8;
const KINDS: u8 = 9;

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    prop::collection::vec((any::<u8>(), any::<usize>(), any::<usize>()), 1..40)
}

fn indices() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<usize>(), 1..4)
}

fn options(fuse: bool, recompute: Recompute) -> Options {
    Options {
        fuse,
        recompute,
        ..Options::default()
    }
}

fn rows<'g>(g: &'g Builder, name: &str) -> Value<'g> {
    g.input(name, Type::f32([1, SEQ, WIDTH]))
}

/// Returns the parameters of random graphs: a square matrix, a packed projection to q, k and v, a gain.
fn parameters(g: &Builder) -> [Value<'_>; 3] {
    [
        g.input("w", Type::f32([WIDTH, WIDTH])),
        g.input("w_qkv", Type::f32([3 * WIDTH, WIDTH])),
        g.state(GAIN, 0, Type::f32([WIDTH])),
    ]
}

/// Returns values (1, t, d), each computed from earlier ones by ops of the first `kinds` kinds, four per segment.
fn random_values<'g>(
    [w, w_qkv, gain]: [Value<'g>; 3],
    choices: &[Choice],
    kinds: u8,
) -> Vec<Value<'g>> {
    let g = w.builder();
    let cache = g.state(CACHE, 0, Type::f32([1, SEQ, 2 * WIDTH]));
    let mut values = vec![rows(g, "x"), rows(g, "y")];
    for (index, &(kind, a, b)) in choices.iter().enumerate() {
        let (a, b) = (values[a % values.len()], values[b % values.len()]);
        let value = g.segment(index / 4, || match kind % kinds {
            0 => a + b,
            1 => a * 0.5,
            2 => linear(a, w),
            3 => ops::activation(a, Activation::Gelu),
            4 => ops::norm(a, gain, NORM),
            5 => ops::softcap(a, 3.0),
            6 => {
                let [left, right] = ops::split(a, [1, WIDTH - 1]);
                ops::concat(&[right, left])
            }
            7 => {
                let rope_table =
                    ops::rope_table(g, &rope_frequencies(100.0, TRANSFORM.head_dim), 1.0, SEQ);
                let norms = [Some(gain), None, None];
                let transformed =
                    ops::qkv_transform(linear(a, w_qkv), rope_table, norms, TRANSFORM);
                ops::attention(transformed, ATTENTION)
            }
            _ => {
                // Each one reads the cache as of the last append.
                let packed = linear(a, w_qkv);
                ops::cache_append_columns(packed, WIDTH, cache);
                ops::cached_attention(packed, cache, ATTENTION)
            }
        });
        values.push(value);
    }
    values
}

/// Records the loss of the sum of `values` and its gradients with respect to the parameters; that of the gain is
/// also accumulated in a buffer. Returns the loss and the gradients.
fn loss_and_gradients<'g>(parameters: [Value<'g>; 3], values: &[Value<'g>]) -> Vec<ValueId> {
    let (g, w) = (parameters[0].builder(), parameters[0]);
    let sum = values
        .iter()
        .copied()
        .reduce(|a, b| a + b)
        .expect("a value");
    let targets = g.input("targets", Type::i32([1, SEQ]));
    let [loss, _] = ops::cross_entropy(linear(sum, w), targets, 0.0, SEQ as f64);
    let found = gradients(loss, &parameters);
    if let Some(dgain) = found[2] {
        ops::accumulate(dgain, g.state(SUMS, 0, dgain.ty()), false);
    }
    let found = found.into_iter().flatten().map(|value| value.id());
    [loss.id()].into_iter().chain(found).collect()
}

proptest! {
    /// Values with overlapping lifetimes share no byte, and their regions do not affect results.
    #[test]
    fn live_values_never_overlap(choices in choices(), outputs in indices()) {
        let g = Builder::new();
        let values = random_values(parameters(&g), &choices, KINDS);
        let outputs: Vec<_> = outputs.iter().map(|i| values[i % values.len()].id()).collect();
        let graph = g.finish();
        for fuse in [false, true] {
            let program = Program::new(graph.clone(), &outputs, options(fuse, Recompute::None));
            assert_disjoint(&program);
            prop_assert!(run(&program, &outputs) == run(&without_sharing(&program), &outputs));
        }
    }

    /// As above, with gradients; recomputation does not affect results either.
    #[test]
    fn live_values_never_overlap_where_segments_are_recomputed(
        choices in choices(),
        summed in indices(),
    ) {
        let g = Builder::new();
        let parameters = parameters(&g);
        let values = random_values(parameters, &choices, DIFFERENTIABLE);
        let summed: Vec<_> = summed.iter().map(|i| values[i % values.len()]).collect();
        let outputs = loss_and_gradients(parameters, &summed);
        let graph = g.finish();
        for fuse in [false, true] {
            let plan = |recompute| Program::new(graph.clone(), &outputs, options(fuse, recompute));
            let (plain, blocks) = (plan(Recompute::None), plan(Recompute::Block));
            let between = (plain.arena_bytes() + blocks.arena_bytes()) as u64 / 2;
            let found = run(&plain, &outputs);
            for program in [&plain, &blocks, &plan(Recompute::Budget(between))] {
                assert_disjoint(program);
                prop_assert!(run(program, &outputs) == found);
                prop_assert!(run(&without_sharing(program), &outputs) == found);
            }
        }
    }
}

/// A value or the scratch memory of an op, with its region and the first and the last op that need it.
#[derive(Debug)]
struct Allocation {
    value: Option<ValueId>,
    first: usize,
    last: usize,
    region: Region,
}

/// Returns all values and scratch memory in the arena.
fn allocations(program: &Program) -> Vec<Allocation> {
    let nodes = program.graph().nodes();
    let last = |id: ValueId| match program.outputs().contains(&id) {
        true => Some(nodes.len()),
        false => nodes.iter().rposition(|node| node.inputs.contains(&id)),
    };
    let of_value = |id: ValueId, first: usize| Allocation {
        value: Some(id),
        first,
        last: last(id).unwrap_or(first),
        region: program.region(id).expect("a region"),
    };
    let mut all: Vec<Allocation> = program.inputs().map(|(_, id)| of_value(id, 0)).collect();
    for (at, node) in nodes.iter().enumerate() {
        all.extend(node.outputs.iter().map(|&id| of_value(id, at)));
        all.extend(scratch(program, at).map(|region| Allocation {
            value: None,
            first: at,
            last: at,
            region,
        }));
    }
    all
}

/// Returns the scratch region of op `at`: written besides outputs and updated inputs.
fn scratch(program: &Program, at: usize) -> Option<Region> {
    let (node, step) = (&program.graph().nodes()[at], &program.steps()[at]);
    let types: Vec<Type> = node.inputs.iter().map(|&id| program.ty(id)).collect();
    let updates = node.op.operation().state_inputs(node.inputs.len());
    let found = step.writes.get(node.outputs.len() + updates.len());
    let region = found.map(|operand| step.regions[operand.region].0);
    let bytes = region.map_or(0, |region| region.end - region.start);
    assert_eq!(
        bytes,
        4 * node.op.operation().scratch(&types),
        "scratch of op {at}"
    );
    region
}

fn overlap(a: Region, b: Region) -> bool {
    a.storage == b.storage && a.start < b.end && b.start < a.end
}

/// True if op `at` declares to compute `to` in place of `from`, and does not read `from` otherwise.
fn is_in_place(program: &Program, at: usize, from: ValueId, to: ValueId) -> bool {
    let node = &program.graph().nodes()[at];
    let mut pairs = node.op.operation().in_place().iter();
    let reads = node.inputs.iter().filter(|&&id| id == from).count();
    reads == 1 && pairs.any(|&(i, o)| node.inputs[i] == from && node.outputs[o] == to)
}

/// Asserts that regions with overlapping lifetimes are disjoint. An output may reuse the region of an input at its
/// last read only if its op declares so.
fn assert_disjoint(program: &Program) {
    let all = allocations(program);
    for (i, a) in all.iter().enumerate() {
        assert!(a.region.storage == Storage::Arena && a.region.end <= program.arena_bytes());
        for b in &all[..i] {
            if a.first > b.last || b.first > a.last || !overlap(a.region, b.region) {
                continue;
            }
            let (from, to) = if a.first < b.first { (a, b) } else { (b, a) };
            let is_declared = match (from.value, to.value) {
                (Some(x), Some(y)) => is_in_place(program, to.first, x, y),
                _ => false,
            };
            let is_reused_in_place = from.last == to.first && from.region == to.region;
            assert!(
                is_declared && is_reused_in_place,
                "{from:?} overlaps {to:?}"
            );
        }
    }
    for at in 0..program.graph().nodes().len() {
        assert_writes_disjoint(program, at);
    }
}

/// Asserts that the regions that op `at` writes, in the arena or in a buffer, are disjoint from those that it reads,
/// except where it declares to compute in place, and from each other.
fn assert_writes_disjoint(program: &Program, at: usize) {
    let node = &program.graph().nodes()[at];
    let region_of = |id: ValueId| program.region(id).expect("a region");
    let (updates, in_place) = (
        node.op.operation().state_inputs(node.inputs.len()),
        node.op.operation().in_place(),
    );
    let outputs = node.outputs.iter().map(|&id| region_of(id));
    let updated = node.inputs[updates.clone()].iter().map(|&id| region_of(id));
    let written: Vec<Region> = outputs.chain(updated).chain(scratch(program, at)).collect();
    for (i, &region) in written.iter().enumerate() {
        for (j, &id) in node.inputs.iter().enumerate() {
            let is_updated = updates.contains(&j) && i == node.outputs.len() + j - updates.start;
            let is_free = is_updated || in_place.contains(&(j, i));
            assert!(
                is_free || !overlap(region, region_of(id)),
                "op {at}: {region:?}, input {j}"
            );
        }
        let twice = written[..i].iter().any(|&other| overlap(region, other));
        assert!(!twice, "op {at}: {region:?} is written twice");
    }
}

/// Plans the ops of a program with a separate region for every value: all of them are outputs.
fn without_sharing(program: &Program) -> Program {
    let all: Vec<ValueId> = allocations(program)
        .iter()
        .filter_map(|allocations| allocations.value)
        .collect();
    Program::from_graph(
        program.graph().clone(),
        &all,
        options(false, Recompute::None),
    )
}

/// Returns the bits of the outputs, then of the buffers after the run.
fn run(program: &Program, outputs: &[ValueId]) -> Vec<Vec<u32>> {
    let numbers = |id: ValueId| {
        let elements = 0..program.ty(id).elements();
        elements
            .map(move |i| (i as f32 * 0.37 + id.0 as f32).sin())
            .collect::<Vec<_>>()
    };
    let mut cpu = Cpu::new();
    let buffers = ELEMENTS.map(|elements| (cpu.allocate(DType::F32, elements).unwrap(), elements));
    cpu.write(GAIN, 0, TensorRef::F32(&[0.3, -0.2, 0.1, 0.4]));
    let floats: Vec<_> = program
        .inputs()
        .map(|(name, id)| (name, id, numbers(id)))
        .collect();
    let given = floats
        .iter()
        .map(|(name, id, numbers)| match program.ty(*id).dtype {
            DType::I32 => (*name, TensorRef::I32(&[0, 3, 1])),
            _ => (*name, TensorRef::F32(numbers)),
        });
    cpu.run(program, Arguments::default(), &given.collect::<Vec<_>>())
        .unwrap();
    let outputs = outputs.iter().map(|&id| cpu.output(program, id));
    let state = buffers
        .into_iter()
        .map(|(buffer, elements)| cpu.read(buffer, 0..elements));
    let all = outputs.chain(state).map(|tensor| tensor.into_f32());
    all.map(|values| values.into_iter().map(f32::to_bits).collect())
        .collect()
}

#[test]
fn recompute_is_bit_identical_and_saves_memory() {
    let g = Builder::new();
    let parameters = parameters(&g);
    let w = parameters[0];
    let (mut x, y) = (rows(&g, "x"), rows(&g, "y"));
    for block in 0..6 {
        x = g.segment(block, || {
            let hidden = linear(linear(x, w), w);
            x + linear(hidden + y, w)
        });
    }
    let outputs = loss_and_gradients(parameters, &[x]);
    let graph = g.finish();
    let plan = |recompute| Program::new(graph.clone(), &outputs, options(true, recompute));
    let (plain, recomputed) = (plan(Recompute::None), plan(Recompute::Block));
    assert!(recomputed.arena_bytes() < plain.arena_bytes());
    let between = (plain.arena_bytes() + recomputed.arena_bytes()) as u64 / 2;
    let some = plan(Recompute::Budget(between));
    assert!(some.arena_bytes() as u64 <= between);
    assert!(some.graph().nodes().len() < recomputed.graph().nodes().len());
    let enough = plan(Recompute::Budget(u64::MAX));
    assert_eq!(enough.arena_bytes(), plain.arena_bytes());
    assert!(run(&plain, &outputs) == run(&recomputed, &outputs));
    assert!(run(&plain, &outputs) == run(&some, &outputs));
}
