//! Mixed precision: which values of a program are stored in bfloat16, and which matmuls read their operands in it.
//!
//! The policy, with a reason for every kind of value, is the table in DESIGN.md ("Mixed precision"); here it is
//! [`output_roles`], [`reads_bf16`] and [`round_operands`]. It is applied to the recorded graph, before recomputation and
//! fusion, so that neither changes a result.

use std::collections::{HashMap, HashSet};

use hybridnorm_kernels::matmul;

use crate::graph::{Buffer, DType, Graph, Node, Source, ValueId};
use crate::ops::Op;
use crate::plan::Precision;

/// Input of a matmul that is its weight.
const WEIGHT: usize = 1;

/// Role of a value in the policy.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Role {
    /// Between ops of a block.
    Activation,
    /// Sum of the residual stream and a branch.
    Residual,
    /// The role of the op's first input.
    LikeFirst,
    /// In single precision.
    Single,
}

/// Stores values in bfloat16 as the policy says, and lets matmuls round their operands.
pub(crate) fn precision(graph: &mut Graph, outputs: &[ValueId], precision: Precision) {
    // A projection that the host reads is one to logits.
    let projections = graph.nodes.iter().filter(|node| {
        let is_projection = matches!(node.op, Op::Linear(_) | Op::Scale(_));
        is_projection && node.outputs.iter().any(|id| outputs.contains(id))
    });
    let logits: Vec<ValueId> = projections.flat_map(|node| node.outputs.clone()).collect();
    apply(graph, &[], &logits, precision);
}

/// Applies the policy to a program of single ops: stores operands that the host provides as it stores the outputs of ops,
/// which they are in a model, but the values in `single` in single precision.
#[cfg(feature = "bench")]
pub(crate) fn precision_of_single_ops(graph: &mut Graph, single: &[ValueId], precision: Precision) {
    let is_operand = |id: &ValueId| {
        let value = graph.value(*id);
        value.ty.dtype == DType::F32 && value.source != Source::Computed
    };
    let operands = (0..graph.values.len()).map(ValueId).filter(is_operand);
    let operands: Vec<ValueId> = operands.collect();
    apply(graph, &operands, single, precision);
}

/// Stores outputs of ops and `operands` in bfloat16 as the policy says, but not those in `single`.
fn apply(graph: &mut Graph, operands: &[ValueId], single: &[ValueId], precision: Precision) {
    let Precision::Bf16 { residual } = precision else {
        return;
    };
    let of_router = router_values(graph);
    for node in &mut graph.nodes {
        let is_of_router = |id: &ValueId| of_router.contains(id);
        if !node.inputs.iter().chain(&node.outputs).any(is_of_router) {
            round_operands(&mut node.op);
        }
    }
    let mut is_narrow = narrow_values(graph, operands, residual);
    for id in single {
        is_narrow[id.0] = false;
    }
    for node in &graph.nodes {
        for (input, id) in node.inputs.iter().enumerate() {
            is_narrow[id.0] &= reads_bf16(&node.op).contains(&input);
        }
    }
    unify(graph, &mut is_narrow);
    for (value, is_narrow) in graph.values.iter_mut().zip(is_narrow) {
        if is_narrow {
            value.ty.dtype = DType::Bf16;
        }
    }
}

/// True if the residual stream is stored in bfloat16 for at least half. False for a stream between ops that have no
/// bfloat16 kernel.
pub(crate) fn has_bf16_residual(graph: &Graph) -> bool {
    let of_matmuls: HashSet<ValueId> = (graph.nodes.iter())
        .filter(|node| matches!(node.op, Op::Linear(_) | Op::ExpertDown(_)))
        .map(|node| node.outputs[0])
        .collect();
    let [mut narrow, mut single] = [0, 0];
    for node in &graph.nodes {
        // A sum of outputs of matmuls, those of shared and of routed experts, is a branch.
        let is_branch = node.inputs.iter().all(|id| of_matmuls.contains(id));
        if output_roles(node).first() == Some(&Role::Residual) && !is_branch {
            match graph.ty(node.outputs[0]).dtype {
                DType::Bf16 => narrow += 1,
                _ => single += 1,
            }
        }
    }
    narrow > 0 && narrow >= single
}

/// Lets matmuls in bfloat16 read copies of their weights that are rounded already; not of weights that an op before them
/// changes.
pub(crate) fn rounded_weights(graph: &mut Graph) {
    let mut rounded: HashMap<ValueId, ValueId> = HashMap::new();
    let mut changed: HashSet<Buffer> = HashSet::new();
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let precision = match &node.op {
            Op::Linear(op) => op.0.precision,
            Op::LinearInputGrad(op) => op.0.0.precision,
            Op::ExpertUp(op) => op.0.precision,
            Op::ExpertUpGrad(op) => op.0.precision,
            Op::ExpertDown(op) => op.linear.precision,
            Op::ExpertDownGrad(op) => op.0.linear.precision,
            op => {
                let updated = op.operation().state_inputs(node.inputs.len());
                let updated = node.inputs[updated].iter();
                changed.extend(updated.filter_map(|id| state(graph, *id)).map(|at| at.0));
                continue;
            }
        };
        let weight = node.inputs[WEIGHT];
        let Some((buffer, offset)) = state(graph, weight) else {
            continue;
        };
        if precision == matmul::Precision::Bf16 && !changed.contains(&buffer) {
            let copy = rounded
                .entry(weight)
                .or_insert_with(|| add_rounded_state(graph, weight, buffer, offset));
            graph.nodes[index].inputs[WEIGHT] = *copy;
        }
    }
}

/// Returns buffer and offset of each rounded copy that a graph reads.
pub(crate) fn rounded_copies(graph: &Graph) -> HashSet<(Buffer, usize)> {
    let inputs = graph.nodes.iter().flat_map(|node| {
        let updated = node.op.operation().state_inputs(node.inputs.len());
        let inputs = node.inputs.iter().enumerate();
        inputs.filter_map(move |(input, id)| (!updated.contains(&input)).then_some(id))
    });
    let copies = inputs.filter_map(|id| match graph.value(*id).source {
        Source::RoundedState(buffer, offset) => Some((buffer, offset)),
        _ => None,
    });
    copies.collect()
}

/// Lets AdamW update the rounded copies at these buffers and offsets together with the values; not of parameters that
/// another op changes too, whose copies would be stale.
pub(crate) fn update_rounded_weights(graph: &mut Graph, copies: &HashSet<(Buffer, usize)>) {
    let mut changes: HashMap<(Buffer, usize), usize> = HashMap::new();
    for node in &graph.nodes {
        let updated = node.op.operation().state_inputs(node.inputs.len());
        for at in node.inputs[updated]
            .iter()
            .filter_map(|id| state(graph, *id))
        {
            *changes.entry(at).or_default() += 1;
        }
    }
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let Op::AdamWUpdate(op) = &node.op else {
            continue;
        };
        let values = node.inputs[op.values()].iter().enumerate();
        let copied = values.filter_map(|(parameter, id)| {
            let at = state(graph, *id)?;
            let is_copied = copies.contains(&at) && changes[&at] == 1;
            is_copied.then_some((parameter, *id, at))
        });
        let copied: Vec<_> = copied.collect();
        if copied.is_empty() {
            continue;
        }
        let parameters: Vec<usize> = copied.iter().map(|(parameter, ..)| *parameter).collect();
        for (_, value, (buffer, offset)) in copied {
            let copy = add_rounded_state(graph, value, buffer, offset);
            graph.nodes[index].inputs.push(copy);
        }
        if let Op::AdamWUpdate(op) = &mut graph.nodes[index].op {
            op.set_copied(&parameters);
        }
    }
}

/// Returns buffer and offset of a value that is state.
fn state(graph: &Graph, id: ValueId) -> Option<(Buffer, usize)> {
    match graph.value(id).source {
        Source::State(buffer, offset) => Some((buffer, offset)),
        _ => None,
    }
}

/// Adds the rounded copy of a value that is state.
fn add_rounded_state(graph: &mut Graph, value: ValueId, buffer: Buffer, offset: usize) -> ValueId {
    let mut ty = graph.ty(value);
    ty.dtype = DType::Bf16;
    graph.add_value(ty, Source::RoundedState(buffer, offset))
}

/// Returns the logits of routers, the weights of their projections, and the gradients of the logits.
fn router_values(graph: &Graph) -> HashSet<ValueId> {
    let is_router = |op: &Op| {
        matches!(
            op,
            Op::TopKDispatch(_) | Op::GateWeights(_) | Op::RouterLosses(_)
        )
    };
    let routers = graph.nodes.iter().filter(|node| is_router(&node.op));
    let mut found: HashSet<ValueId> = routers.map(|node| node.inputs[0]).collect();
    for node in &graph.nodes {
        match node.op {
            Op::Linear(_) if found.contains(&node.outputs[0]) => found.insert(node.inputs[1]),
            Op::LinearInputGrad(_) if found.contains(&node.inputs[1]) => {
                found.insert(node.inputs[0])
            }
            _ => continue,
        };
    }
    found
}

/// True for each output of an op, and each of `operands`, that its role and its type allow in bfloat16.
fn narrow_values(graph: &Graph, operands: &[ValueId], residual: DType) -> Vec<bool> {
    let mut is_narrow = vec![false; graph.values.len()];
    for id in operands {
        is_narrow[id.0] = true;
    }
    for node in &graph.nodes {
        for (id, role) in node.outputs.iter().zip(output_roles(node)) {
            let is_float = graph.ty(*id).dtype == DType::F32;
            is_narrow[id.0] = is_float
                && match role {
                    Role::Activation => true,
                    Role::Residual => residual == DType::Bf16,
                    Role::LikeFirst => is_narrow[node.inputs[0].0],
                    Role::Single => false,
                };
        }
    }
    is_narrow
}

/// Makes values that an op keeps in the same type single if one of them is: terms and sum of an addition, and values
/// that share memory.
fn unify(graph: &Graph, is_narrow: &mut [bool]) {
    let mut groups: Vec<Vec<ValueId>> = Vec::new();
    for node in &graph.nodes {
        let in_place = node.op.operation().in_place().iter();
        groups.extend(
            in_place.map(|&(input, output)| vec![node.inputs[input], node.outputs[output]]),
        );
        match node.op {
            Op::Add(_) => groups.push([&node.inputs[..], &node.outputs].concat()),
            Op::LastPosition(_) | Op::LastPositionGrad(_) => {
                groups.push(vec![node.inputs[0], node.outputs[0]])
            }
            _ => {}
        }
    }
    loop {
        let mut changed = false;
        for group in &groups {
            let all = group.iter().all(|id| is_narrow[id.0]);
            for id in group.iter().filter(|_| !all) {
                changed |= std::mem::take(&mut is_narrow[id.0]);
            }
        }
        if !changed {
            return;
        }
    }
}

/// Returns the roles of an op's outputs; none for ops without bfloat16 kernel.
fn output_roles(node: &Node) -> &'static [Role] {
    use Role::{Activation, LikeFirst, Residual, Single};
    match node.op {
        Op::Embedding(_) => &[Residual],
        // Also where its skip is the output of a norm, an activation.
        Op::Add(_) if !node.is_backward => &[Residual],
        Op::Add(_) | Op::Scale(_) | Op::LastPosition(_) | Op::LastPositionGrad(_) => &[LikeFirst],
        Op::Norm(_) | Op::Linear(_) | Op::Activation(_) | Op::QkvTransform(_) => &[Activation],
        Op::NormGrad(_) => &[LikeFirst, Single],
        Op::LinearInputGrad(_) => &[Activation],
        Op::ActivationGrad(_) => &[Activation, Activation],
        Op::QkvTransformGrad(_) => &[Activation, Single, Single, Single],
        Op::Attention(_) => &[Activation, Single],
        Op::AttentionGrad(_) => &[Activation],
        Op::ExpertUp(_) | Op::ExpertDown(_) => &[Activation],
        Op::ExpertUpGrad(_) => &[Activation, Single],
        Op::ExpertDownGrad(_) => &[Activation, Single, Single],
        Op::CachedAttention(_) | Op::SegmentCachedAttention(_) => &[Activation],
        _ => &[],
    }
}

/// Returns the inputs that an op reads in bfloat16.
fn reads_bf16(op: &Op) -> &'static [usize] {
    match op {
        Op::Add(_) | Op::LinearWeightGrad(_) | Op::ActivationGrad(_) => &[0, 1],
        Op::NormGrad(_) => &[0, 2],
        Op::Norm(_) | Op::Scale(_) | Op::Linear(_) | Op::LinearInputGrad(_) => &[0],
        Op::Activation(_) | Op::QkvTransform(_) | Op::Attention(_) => &[0],
        Op::QkvTransformGrad(_) => &[0, 5],
        Op::AttentionGrad(_) => &[0, 1, 3],
        Op::EmbeddingGrad(_) => &[1],
        Op::ExpertUp(_) | Op::ExpertDown(_) => &[0],
        Op::ExpertUpGrad(_) => &[0, 3],
        Op::ExpertDownGrad(_) => &[0, 4],
        Op::LastPosition(_) | Op::LastPositionGrad(_) => &[0],
        Op::CacheAppend(_) | Op::CachedAttention(_) => &[0],
        Op::SegmentCacheAppend(_) | Op::SegmentCachedAttention(_) => &[0],
        Op::TensorStats(_) | Op::AttentionStats(_) | Op::MaxAttentionLogits(_) => &[0],
        _ => &[],
    }
}

/// Lets the matmuls of an op read their operands in bfloat16.
fn round_operands(op: &mut Op) {
    let precision = match op {
        Op::Linear(op) => &mut op.0.precision,
        Op::LinearInputGrad(op) => &mut op.0.0.precision,
        Op::LinearWeightGrad(op) => &mut op.0.0.precision,
        Op::Attention(op) => &mut op.0.precision,
        Op::AttentionGrad(op) => &mut op.0.precision,
        Op::ExpertUp(op) => &mut op.0.precision,
        Op::ExpertUpGrad(op) => &mut op.0.precision,
        Op::ExpertDown(op) => &mut op.linear.precision,
        Op::ExpertDownGrad(op) => &mut op.0.linear.precision,
        Op::CachedAttention(op) => &mut op.0.precision,
        Op::SegmentCachedAttention(op) => &mut op.config.precision,
        _ => return,
    };
    *precision = matmul::Precision::Bf16;
}
