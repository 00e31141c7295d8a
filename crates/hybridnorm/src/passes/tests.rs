//! Tests of passes: graphs with fusion and recomputation against plain ones.

use hybridnorm_kernels::activation::Activation;
use hybridnorm_kernels::attention::AttentionConfig;
use hybridnorm_kernels::norm::{Gain, NormConfig, NormFn};

use super::gradients;
use crate::exec::{Cpu, Executor, TensorRef};
use crate::graph::{Buffer, Builder, DType, Graph, Type, Value, ValueId};
use crate::ops::{self, Arguments, Op};
use crate::plan::{Options, Precision, Program, Recompute};

const WIDTH: usize = 8;
const ROWS: usize = 64;
/// A norm without parameters.
const RMSNORM: NormConfig = NormConfig {
    function: NormFn::Rmsnorm,
    eps: 1e-5,
    gain: Gain::None,
    bias: false,
    width: WIDTH,
    groups: 1,
};

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// Runs a graph that reads x (64, 8), w (8, 8) and targets (64), with buffers of zeros as state.
fn run(program: &Program, outputs: &[ValueId], state: &[usize]) -> (Vec<Vec<f32>>, Cpu) {
    let mut cpu = Cpu::new();
    for &elements in state {
        cpu.allocate(DType::F32, elements).unwrap();
    }
    let (x, w, targets) = (numbers(ROWS * WIDTH), numbers(WIDTH * WIDTH), vec![3; ROWS]);
    let all = [
        ("x", TensorRef::F32(&x)),
        ("w", TensorRef::F32(&w)),
        ("targets", TensorRef::I32(&targets)),
    ];
    let is_read = |name: &str| program.inputs().any(|(found, _)| found == name);
    let given: Vec<_> = all.into_iter().filter(|(name, _)| is_read(name)).collect();
    cpu.run(program, Arguments::default(), &given).unwrap();
    let values = outputs.iter().map(|&id| cpu.output(program, id).into_f32());
    (values.collect(), cpu)
}

fn inputs(g: &Builder) -> [Value<'_>; 2] {
    [
        g.input("x", Type::f32([ROWS, WIDTH])),
        g.input("w", Type::f32([WIDTH, WIDTH])),
    ]
}

fn targets(g: &Builder) -> Value<'_> {
    g.input("targets", Type::i32([ROWS]))
}

fn loss<'g>(logits: Value<'g>) -> Value<'g> {
    ops::cross_entropy(logits, targets(logits.builder()), 0.0, ROWS as f64)[0]
}

fn count(program: &Program, matches_op: impl Fn(&Op) -> bool) -> usize {
    let nodes = program.graph().nodes().iter();
    nodes.filter(|node| matches_op(&node.op)).count()
}

/// Asserts that outputs are bit-identical with and without fusion; returns the fused program.
fn assert_fusion_changes_nothing(graph: &Graph, outputs: &[ValueId]) -> Program {
    let plan = |fuse| {
        let options = Options {
            fuse,
            ..Options::default()
        };
        Program::new(graph.clone(), outputs, options)
    };
    let fused = plan(true);
    let (found, _) = run(&fused, outputs, &[]);
    let (expected, _) = run(&plan(false), outputs, &[]);
    assert_eq!(found, expected);
    fused
}

#[test]
fn gradients_that_are_accumulated_are_fused_like_others() {
    let g = Builder::new();
    let [x, w] = inputs(&g);
    let gain = g.state(Buffer(0), 0, Type::f32([WIDTH]));
    let norm = NormConfig {
        function: NormFn::Rmsnorm,
        eps: 1e-5,
        gain: Gain::OnePlus,
        bias: false,
        width: WIDTH,
        groups: 1,
    };
    let hidden = ops::activation(ops::linear(ops::norm(x, gain, norm), w), Activation::Gelu);
    let objective = loss(x + ops::linear(hidden, w));
    let found = gradients(objective, &[x, w, gain]);
    let [dx, dw, dgain] = [0, 1, 2].map(|at| found[at].expect("a gradient"));
    let sums = g.state(Buffer(1), 0, Type::f32([WIDTH]));
    ops::accumulate(dgain, sums, false);
    let outputs = [dx.id(), dw.id()];
    let program = Program::new(g.finish(), &outputs, Options::default());
    assert_eq!(count(&program, |op| matches!(op, Op::NormGradAdd(_))), 1);
    assert_eq!(count(&program, |op| matches!(op, Op::NormGrad(_))), 0);
    let (_, cpu) = run(&program, &outputs, &[WIDTH, WIDTH]);
    let sums = cpu.read(Buffer(1), 0..WIDTH).into_f32();
    assert!(sums.iter().any(|sum| *sum != 0.0));
}

#[test]
fn norms_without_parameters_are_fused_with_the_sum_before_them() {
    let g = Builder::new();
    let [x, w] = inputs(&g);
    let sum = x + ops::linear(x, w);
    let objective = loss(sum + ops::linear(ops::norm(sum, None, RMSNORM), w));
    let found = gradients(objective, &[x, w]);
    let outputs: Vec<_> = found.iter().map(|d| d.expect("a gradient").id()).collect();
    let program = assert_fusion_changes_nothing(&g.finish(), &outputs);
    assert_eq!(count(&program, |op| matches!(op, Op::AddNorm(_))), 1);
}

/// The feed-forward block of HybridNorm: its skip, the output of a norm, is the residual stream.
#[test]
fn sums_with_a_normed_skip_have_the_type_of_the_residual_stream() {
    for residual in [DType::F32, DType::Bf16] {
        let g = Builder::new();
        let [x, w] = inputs(&g);
        let normed = ops::norm(ops::linear(x, w), None, RMSNORM);
        let branch = ops::activation(ops::linear(normed, w), Activation::Gelu);
        let sum = normed + ops::linear(branch, w);
        let ids = [normed, branch, sum].map(|value| value.id());
        let objective = loss(ops::linear(sum, w)).id();
        let options = Options::default()
            .with_fuse(false)
            .with_precision(Precision::Bf16 { residual });
        let program = Program::new(g.finish(), &[objective], options);
        let types = ids.map(|id| program.graph().ty(id).dtype);
        assert_eq!(types, [residual, DType::Bf16, residual]);
    }
}

#[test]
fn a_tap_does_not_save_what_is_recomputed() {
    let arena = |with_taps: bool| {
        let g = Builder::new();
        let [mut x, w] = inputs(&g);
        let mut hidden = Vec::new();
        for block in 0..4 {
            x = g.segment(block, || {
                let wide = ops::activation(ops::linear(x, w), Activation::Gelu);
                hidden.push(wide);
                x + ops::activation(ops::linear(wide, w), Activation::Gelu)
            });
        }
        let dw = gradients(loss(x), &[w])[0].expect("a gradient");
        let mut outputs = vec![dw.id()];
        if with_taps {
            outputs.extend(hidden.iter().map(|x| ops::tensor_stats(*x).id()));
        }
        let options = Options {
            recompute: Recompute::Block,
            ..Options::default()
        };
        Program::new(g.finish(), &outputs, options).arena_bytes()
    };
    assert!(arena(true) < arena(false) + 4 * ROWS * WIDTH);
}

#[test]
fn two_activations_of_one_value_are_told_apart() {
    let g = Builder::new();
    let [x, w] = inputs(&g);
    let w2 = ops::scale(w, 0.5);
    let a = ops::activation(x, Activation::Gelu);
    let b = ops::activation(x, Activation::Relu2);
    let objective = loss(ops::linear(b, w2) + ops::linear(a, w));
    let found = gradients(objective, &[x, w]);
    let outputs: Vec<_> = found.iter().map(|d| d.expect("a gradient").id()).collect();
    assert_fusion_changes_nothing(&g.finish(), &outputs);
}

#[test]
fn logits_that_are_read_besides_the_loss_stay() {
    let g = Builder::new();
    let [x, w] = inputs(&g);
    let raw = ops::linear(x, w);
    let objective = loss(ops::softcap(raw * 0.5, 2.0));
    let dw = gradients(objective, &[w])[0].expect("a gradient");
    let outputs = [objective.id(), dw.id(), ops::tensor_stats(raw).id()];
    let program = assert_fusion_changes_nothing(&g.finish(), &outputs);
    assert_eq!(
        count(&program, |op| matches!(op, Op::LinearCrossEntropyGrad(_))),
        0
    );
}

#[test]
fn accumulation_of_a_tap_runs_right_after_it() {
    let (heads, positions) = (6, ROWS);
    let config = AttentionConfig {
        batch: 1,
        seq: positions,
        heads,
        kv_heads: 1,
        head_dim: 1,
        value_dim: 1,
        scale: 1.0,
        softcap: None,
        window: None,
        precision: hybridnorm_kernels::matmul::Precision::F32,
    };
    let g = Builder::new();
    let x = g.input("x", Type::f32([1, positions, WIDTH]));
    let w = g.input("w", Type::f32([WIDTH, WIDTH]));
    let packed = ops::linear(x, w);
    let further = ops::linear(packed, w);
    let sum = g.state(Buffer(0), 0, Type::f32([heads]));
    ops::accumulate(ops::max_attention_logits(packed, config), sum, true);
    let output = [further.id()];
    let program = Program::new(g.finish(), &output, Options::default());
    let nodes = program.graph().nodes().iter();
    let names: Vec<_> = nodes.map(|node| node.op.operation().name()).collect();
    let expected = ["linear", "largest scores of heads", "accumulate", "linear"];
    assert_eq!(names, expected);
    let (_, cpu) = run(&program, &output, &[heads]);
    let sums = cpu.read(Buffer(0), 0..heads).into_f32();
    assert!(sums.iter().all(|sum| *sum > 0.0), "{sums:?}");
}
