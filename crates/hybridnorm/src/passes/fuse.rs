//! Fusion of neighbouring ops into one kernel, by a table of patterns.
//!
//! Patterns apply to the whole graph, forward and backward. Results are bit-identical, with two documented
//! exceptions: [`head_loss`] and [`qkv_attention`].

use crate::graph::{Graph, Node, Source, ValueId};
use crate::ops::{self, Op};
use hybridnorm_kernels::cross_entropy::LossSpec;

use super::remove_unused;

/// Replacement of ops, by index: a new op, nothing, or the op itself followed by a moved one.
type Rewrite = Vec<(usize, Vec<Node>)>;

/// A pattern at an op: returns the replacement of it and of other ops, if it applies.
type Pattern = fn(&DefUse<'_>, usize) -> Option<Rewrite>;

/// All patterns, in the order in which they are tried.
const PATTERNS: &[Pattern] = &[
    add_norm,
    norm_grad_add,
    qkv_attention,
    expert_activation,
    reuse_recomputed_activation,
    embedding_grad_add,
    head_loss,
    linear_grad,
];

/// Replaces ops with fused ones, by the table of patterns.
pub(crate) fn fuse(graph: &mut Graph, outputs: &[ValueId]) {
    for pattern in PATTERNS {
        while apply_pattern(graph, outputs, *pattern) {
            remove_unused(graph, outputs);
        }
    }
}

/// Applies a pattern wherever it does not overlap with a previous match; returns true if there was one.
fn apply_pattern(graph: &mut Graph, outputs: &[ValueId], pattern: Pattern) -> bool {
    let uses = DefUse::new(graph, outputs);
    let mut touched = vec![false; graph.nodes.len()];
    let mut all: Rewrite = Vec::new();
    for index in 0..graph.nodes.len() {
        let Some(rewrite) = pattern(&uses, index) else {
            continue;
        };
        if rewrite.iter().any(|(at, _)| touched[*at]) {
            continue;
        }
        rewrite.iter().for_each(|(at, _)| touched[*at] = true);
        all.extend(rewrite);
    }
    let found = !all.is_empty();
    apply(graph, all);
    found
}

/// Replaces nodes; those with an empty replacement are removed.
fn apply(graph: &mut Graph, rewrite: Rewrite) {
    let mut replacements: Vec<Option<Vec<Node>>> = vec![None; graph.nodes.len()];
    for (index, nodes) in rewrite {
        replacements[index] = Some(nodes);
    }
    let old = std::mem::take(&mut graph.nodes)
        .into_iter()
        .zip(replacements);
    graph.nodes = old
        .flat_map(|(node, replacement)| replacement.unwrap_or_else(|| vec![node]))
        .collect();
}

/// A graph with the producer and the consumers of each value.
struct DefUse<'a> {
    graph: &'a Graph,
    producers: Vec<Option<usize>>,
    consumers: Vec<Vec<usize>>,
    is_output: Vec<bool>,
}

impl<'a> DefUse<'a> {
    fn new(graph: &'a Graph, outputs: &[ValueId]) -> Self {
        let mut is_output = vec![false; graph.values.len()];
        outputs.iter().for_each(|id| is_output[id.0] = true);
        Self {
            graph,
            producers: graph.producers(),
            consumers: graph.consumers(),
            is_output,
        }
    }

    fn node(&self, index: usize) -> &'a Node {
        &self.graph.nodes[index]
    }

    /// Returns the op that computes a value.
    fn producer(&self, id: ValueId) -> Option<(usize, &'a Node)> {
        let index = self.producers[id.0]?;
        Some((index, self.node(index)))
    }

    /// Returns the ops that read a value.
    fn consumers(&self, id: ValueId) -> impl Iterator<Item = (usize, &'a Node)> {
        self.consumers[id.0]
            .iter()
            .map(|&index| (index, self.node(index)))
    }

    /// True if only these ops read the value.
    fn is_read_only_by(&self, id: ValueId, ops: &[usize]) -> bool {
        !self.is_output[id.0] && self.consumers[id.0].iter().all(|index| ops.contains(index))
    }

    /// True if a value is available before op `index`.
    fn is_available(&self, id: ValueId, index: usize) -> bool {
        let is_leaf = self.graph.value(id).source != Source::Computed;
        is_leaf || self.producers[id.0].is_some_and(|made| made < index)
    }
}

impl Node {
    /// Returns this node with another op and other values.
    fn replaced(&self, op: impl Into<Op>, inputs: Vec<ValueId>, outputs: Vec<ValueId>) -> Self {
        Self {
            op: op.into(),
            inputs,
            outputs,
            ..self.clone()
        }
    }
}

/// Fuses `s = x + o; norm(s)`.
fn add_norm(uses: &DefUse<'_>, index: usize) -> Option<Rewrite> {
    let add = uses.node(index);
    let (Op::Add(_), [sum]) = (&add.op, &add.outputs[..]) else {
        return None;
    };
    let (norm_at, norm, config) = uses.consumers(*sum).find_map(|(at, node)| match node.op {
        Op::Norm(ops::Norm(config)) => Some((at, node, config)),
        _ => None,
    })?;
    let mut rewrite = vec![(norm_at, vec![])];
    let mut nodes = Vec::new();
    if !uses.is_available(norm.inputs[1], index) {
        // A norm without parameters reads an empty constant, which can be moved.
        let (at, params) = uses.producer(norm.inputs[1])?;
        if !params.inputs.is_empty() {
            return None;
        }
        nodes.push(params.clone());
        rewrite.push((at, vec![]));
    }
    let inputs = vec![add.inputs[0], add.inputs[1], norm.inputs[1]];
    nodes.push(add.replaced(ops::AddNorm(config), inputs, vec![*sum, norm.outputs[0]]));
    rewrite.push((index, nodes));
    Some(rewrite)
}

/// Fuses a norm's gradient with its addition to another one.
fn norm_grad_add(uses: &DefUse<'_>, index: usize) -> Option<Rewrite> {
    let grad = uses.node(index);
    let (Op::NormGrad(ops::NormGrad(config)), &[dx, dparams]) = (&grad.op, &grad.outputs[..])
    else {
        return None;
    };
    let (add_at, add) = uses.consumers(dx).next()?;
    let Op::Add(_) = add.op else { return None };
    if !uses.is_read_only_by(dx, &[add_at]) || add.inputs[0] == add.inputs[1] {
        return None;
    }
    if uses.consumers(dparams).any(|(at, _)| at < add_at) {
        return None;
    }
    let other = add.inputs[usize::from(add.inputs[0] == dx)];
    let mut inputs = grad.inputs.clone();
    inputs.push(other);
    let fused = add.replaced(
        ops::NormGradAdd(*config),
        inputs,
        vec![add.outputs[0], dparams],
    );
    Some(vec![(index, vec![]), (add_at, vec![fused])])
}

/// Fuses the norms and rotations directly before attention into the attention op, which then reads the output of the
/// projection.
///
/// The last bits of the norm parameters' gradients may differ, since they are summed head by head.
fn qkv_attention(uses: &DefUse<'_>, index: usize) -> Option<Rewrite> {
    let attention = uses.node(index);
    let Op::Attention(ops::Attention(config)) = attention.op else {
        return None;
    };
    let transformed = attention.inputs[0];
    let (_, transform_node) = uses.producer(transformed)?;
    let Op::QkvTransform(transform) = transform_node.op else {
        return None;
    };
    let fused = ops::QkvAttention {
        transform,
        attention: config,
    };
    let forward = attention.replaced(
        fused,
        transform_node.inputs.clone(),
        attention.outputs.clone(),
    );
    let mut rewrite = vec![(index, vec![forward])];
    // The gradient of this attention, with that of the op before it.
    let context = attention.outputs[0];
    let gradient = uses
        .consumers(transformed)
        .find(|(_, node)| matches!(node.op, Op::AttentionGrad(_)) && node.inputs[1] == context);
    if let Some((grad_at, grad)) = gradient {
        let dtransformed = grad.outputs[0];
        let (transform_at, transform_grad) = uses.consumers(dtransformed).next()?;
        let Op::QkvTransformGrad(_) = transform_grad.op else {
            return None;
        };
        if !uses.is_read_only_by(dtransformed, &[transform_at]) {
            return None;
        }
        let mut inputs = transform_node.inputs.clone();
        inputs.extend(&grad.inputs[1..]);
        let outputs = transform_grad.outputs.clone();
        let backward = transform_grad.replaced(ops::QkvAttentionGrad(fused), inputs, outputs);
        rewrite.extend([(grad_at, vec![]), (transform_at, vec![backward])]);
    }
    Some(rewrite)
}

/// Fuses the activation directly before the experts' output projection into that op.
fn expert_activation(uses: &DefUse<'_>, index: usize) -> Option<Rewrite> {
    let down = uses.node(index);
    let Op::ExpertDown(spec) = down.op else {
        return None;
    };
    let hidden = down.inputs[0];
    let (_, activation) = uses.producer(hidden)?;
    let Op::Activation(ops::Activation { function, .. }) = activation.op else {
        return None;
    };
    let fused = ops::ExpertDown {
        activation: Some(function),
        ..spec
    };
    let x = activation.inputs[0];
    let reading = |node: &Node| [&[x], &node.inputs[1..]].concat();
    let forward = down.replaced(fused, reading(down), down.outputs.clone());
    let mut rewrite = vec![(index, vec![forward])];
    let gradient = uses
        .consumers(hidden)
        .find(|(_, node)| matches!(node.op, Op::ExpertDownGrad(_)));
    if let Some((grad_at, grad)) = gradient {
        let dhidden = grad.outputs[0];
        let (at, of_activation) = uses.consumers(dhidden).next()?;
        let Op::ActivationGrad(_) = of_activation.op else {
            return None;
        };
        if !uses.is_read_only_by(dhidden, &[at]) {
            return None;
        }
        let mut outputs = grad.outputs.clone();
        outputs[0] = of_activation.outputs[0];
        let backward = grad.replaced(ops::ExpertDownGrad(fused), reading(grad), outputs);
        rewrite.extend([(grad_at, vec![backward]), (at, vec![])]);
    }
    Some(rewrite)
}

/// Lets the weight-gradient op read the activation recomputed by the activation-gradient op, so that it need not be
/// saved for backward. The weight-gradient op moves after the activation-gradient op.
fn reuse_recomputed_activation(uses: &DefUse<'_>, index: usize) -> Option<Rewrite> {
    let grad = uses.node(index);
    let (Op::ActivationGrad(of), &[_, recomputed]) = (&grad.op, &grad.outputs[..]) else {
        return None;
    };
    let (_, forward) = uses
        .consumers(grad.inputs[0])
        .find(|(_, node)| matches!(&node.op, Op::Activation(op) if *op == of.0))?;
    let hidden = forward.outputs[0];
    let backward: Vec<_> = uses
        .consumers(hidden)
        .filter(|(_, node)| node.is_backward)
        .collect();
    let &[(weight_at, weight)] = &backward[..] else {
        return None;
    };
    let Op::LinearWeightGrad(_) = weight.op else {
        return None;
    };
    let reads_it_once = weight.inputs[1] == hidden && weight.inputs[0] != hidden;
    if weight_at > index || !reads_it_once || uses.is_output[hidden.0] {
        return None;
    }
    let is_needed_before = uses.consumers(weight.outputs[0]).any(|(at, _)| at < index);
    if is_needed_before {
        return None;
    }
    let inputs = vec![weight.inputs[0], recomputed];
    let moved = weight.replaced(weight.op.clone(), inputs, weight.outputs.clone());
    Some(vec![
        (weight_at, vec![]),
        (index, vec![grad.clone(), moved]),
    ])
}

/// Fuses the input gradient and the weight gradient of a linear layer if the two ops are adjacent.
fn linear_grad(uses: &DefUse<'_>, index: usize) -> Option<Rewrite> {
    let (one, other) = (uses.node(index), uses.graph.nodes.get(index + 1)?);
    let (Op::LinearInputGrad(ops::LinearInputGrad(spec)), Op::LinearWeightGrad(same)) =
        (&one.op, &other.op)
    else {
        return None;
    };
    let (dy, w) = (one.inputs[0], one.inputs[1]);
    if *spec != same.0 || other.inputs[0] != dy {
        return None;
    }
    let inputs = vec![dy, other.inputs[1], w];
    let outputs = vec![one.outputs[0], other.outputs[0]];
    let fused = one.replaced(ops::LinearGrad(*spec), inputs, outputs);
    Some(vec![(index, vec![fused]), (index + 1, vec![])])
}

/// Fuses the gradient of an embedding with its addition to another one of the same table.
fn embedding_grad_add(uses: &DefUse<'_>, index: usize) -> Option<Rewrite> {
    let grad = uses.node(index);
    let Op::EmbeddingGrad(spec) = grad.op else {
        return None;
    };
    let dw = grad.outputs[0];
    let (add_at, add) = uses.consumers(dw).next()?;
    let Op::Add(_) = add.op else { return None };
    if !uses.is_read_only_by(dw, &[add_at]) || add.inputs[0] == add.inputs[1] {
        return None;
    }
    let other = add.inputs[usize::from(add.inputs[0] == dw)];
    let inputs = vec![grad.inputs[0], grad.inputs[1], other];
    let fused = add.replaced(ops::EmbeddingGradAdd(spec), inputs, add.outputs.clone());
    Some(vec![(index, vec![]), (add_at, vec![fused])])
}

/// Fuses output projection, scale, soft cap and cross-entropy, with their gradients if needed.
///
/// The last bits of results may differ: the matmuls run over chunks of rows and apply the logit scale, including the
/// division by the cap; the derivative of the soft cap is multiplied into the gradient of the softmax.
fn head_loss(uses: &DefUse<'_>, index: usize) -> Option<Rewrite> {
    let loss = uses.node(index);
    let (Op::CrossEntropy(ops::CrossEntropy(spec)), &[logits, targets]) =
        (loss.op.clone(), &loss.inputs[..])
    else {
        return None;
    };
    let mut chain = LogitChain {
        spec,
        value: logits,
        gradient: None,
        removed: Vec::new(),
    };
    chain.find_gradient(uses, index)?;
    let projection = chain.follow_to_projection(uses)?;
    let &[x, w] = &projection.inputs[..] else {
        return None;
    };
    let Op::Linear(ops::Linear(layer)) = projection.op else {
        return None;
    };
    let LogitChain {
        mut spec,
        gradient,
        mut removed,
        ..
    } = chain;
    (spec.width, spec.precision) = (layer.inputs, layer.precision);
    let inputs = vec![x, w, targets];
    let Some(gradient) = gradient else {
        let fused = loss.replaced(ops::LinearCrossEntropy(spec), inputs, loss.outputs.clone());
        return replace_with(uses, index, fused, &removed);
    };
    let (mut dx, mut dw) = (None, None);
    for (at, node) in uses.consumers(gradient) {
        match node.op {
            Op::LinearInputGrad(_) => dx = Some(node.outputs[0]),
            Op::LinearWeightGrad(_) => dw = Some(node.outputs[0]),
            _ => return None,
        }
        removed.push(at);
    }
    let (dx, dw) = (dx?, dw?);
    let outputs = [&loss.outputs[..], &[dx, dw]].concat();
    let fused = loss.replaced(ops::LinearCrossEntropyGrad(spec), inputs, outputs);
    replace_with(uses, index, fused, &removed)
}

/// Ops between the output projection and the loss, followed from the loss backwards.
struct LogitChain {
    /// Loss, with the scale and the soft cap found so far.
    spec: LossSpec,
    /// Logits at this point of the chain.
    value: ValueId,
    /// Gradient of these, if there is one.
    gradient: Option<ValueId>,
    /// Ops that the fused op replaces.
    removed: Vec<usize>,
}

impl LogitChain {
    /// Finds the gradient of the loss at op `index`; `None` if other ops read the logits, or the gradient is not seeded
    /// with 1.
    fn find_gradient(&mut self, uses: &DefUse<'_>, index: usize) -> Option<()> {
        let mut found: Option<(usize, &Node)> = None;
        for (at, node) in uses.consumers(self.value) {
            match node.op {
                Op::CrossEntropyGrad(_) => found = Some((at, node)),
                _ if at == index => {}
                Op::SoftcapGrad(_) => {}
                _ => return None,
            }
        }
        if let Some((at, node)) = found {
            let (_, seed) = uses.producer(node.inputs[2])?;
            if !matches!(seed.op, Op::Fill(ops::Fill { value: 1.0, .. })) {
                return None;
            }
            self.removed.push(at);
            self.gradient = Some(node.outputs[0]);
        }
        Some(())
    }

    /// Follows scales and a soft cap back to the projection, together with their gradients.
    fn follow_to_projection<'a>(&mut self, uses: &DefUse<'a>) -> Option<&'a Node> {
        loop {
            let (at, node) = uses.producer(self.value)?;
            if uses.is_output[self.value.0] {
                return None;
            }
            self.removed.push(at);
            match &node.op {
                Op::Linear(_) => return Some(node),
                Op::Softcap(op) if self.spec.softcap.is_none() && self.spec.logit_scale == 1.0 => {
                    self.spec.softcap = Some(op.cap);
                }
                Op::Scale(op) => self.spec.logit_scale *= op.factor,
                _ => return None,
            }
            self.value = node.inputs[0];
            if let Some(gradient) = self.gradient {
                let (at, node) = uses.consumers(gradient).next()?;
                if !matches!(node.op, Op::SoftcapGrad(_) | Op::Scale(_)) {
                    return None;
                }
                self.removed.push(at);
                self.gradient = Some(node.outputs[0]);
            }
        }
    }
}

/// Replaces several ops with one, unless another op reads a value that it does not output.
fn replace_with(uses: &DefUse<'_>, index: usize, by: Node, removed: &[usize]) -> Option<Rewrite> {
    let readers = [removed, &[index]].concat();
    let mut lost = removed.iter().flat_map(|at| &uses.node(*at).outputs);
    let is_free = lost.all(|id| by.outputs.contains(id) || uses.is_read_only_by(*id, &readers));
    let removed = removed.iter().map(|&at| (at, vec![]));
    is_free.then(|| removed.chain([(index, vec![by])]).collect())
}
