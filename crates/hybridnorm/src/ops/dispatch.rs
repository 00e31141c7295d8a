//! Top-k expert selection, and the dispatch of tokens to experts.

use hybridnorm_cuda as cuda;
use hybridnorm_kernels::experts::DispatchLayout;
use hybridnorm_kernels::router::{self, Router};

use super::device::Grid;
use super::router::{device_config, scores};
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Dispatch of tokens to the experts with the highest scores, as [`DispatchLayout`] lays it out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopKDispatch {
    pub(crate) router: Router,
    /// True if a second input, a bias, is added to the scores.
    pub(crate) has_bias: bool,
}

/// Selects the `router.top_k` experts of each token by their scores, plus a bias of the experts (e) if given: from
/// logits (.., e) to the integers of a dispatch as [`DispatchLayout`] lays them out, which start with the load of every
/// expert. The selection is not differentiated; see [`Router`] for groups of experts.
///
/// # Panics
/// If logits or bias have another number of experts.
pub fn top_k_dispatch<'g>(logits: Value<'g>, bias_e: Option<Value<'g>>, router: Router) -> Value<'g> {
    let has_bias = bias_e.is_some();
    let inputs: Vec<Value> = [logits].into_iter().chain(bias_e).collect();
    let [dispatch] = logits.builder().op(TopKDispatch { router, has_bias }, &inputs);
    dispatch
}

/// Returns the type of the dispatch of this many tokens.
pub(super) fn dispatch_type(layout: DispatchLayout, tokens: usize) -> Type {
    Type::i32([layout.elements(tokens)])
}

impl Operation for TopKDispatch {
    fn name(&self) -> &'static str {
        "choice of experts"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let experts = self.router.experts;
        let (logits, bias) = match (inputs, self.has_bias) {
            ([logits], false) => (logits, None),
            ([logits, bias], true) => (logits, Some(bias)),
            _ => panic!("top-k dispatch: expected logits, and a bias if it has one"),
        };
        assert_eq!(logits.shape.width(), experts, "top-k dispatch: logits");
        if let Some(bias) = bias {
            assert_eq!(*bias, Type::f32([experts]), "top-k dispatch: bias");
        }
        vec![dispatch_type(self.router.layout(), logits.shape.rows())]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        vec![None; at.inputs().len()]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (r, logits, dispatch) = (&self.router, io.read(0), io.write_ints());
        let bias = if self.has_bias { io.read(1) } else { &[] };
        let mut selected: Vec<usize> = Vec::new();
        for logits in logits.chunks(r.experts) {
            let mut keys = scores(r.scoring, logits);
            for (key, bias) in keys.iter_mut().zip(bias) {
                *key += bias;
            }
            selected.extend(top_k_experts(r, keys, self.has_bias));
        }
        let mut assignment_of_slot: Vec<usize> = (0..selected.len()).collect();
        assignment_of_slot.sort_by_key(|&assignment| (selected[assignment], assignment));
        let mut slot_of_assignment = vec![0; selected.len()];
        for (slot, &assignment) in assignment_of_slot.iter().enumerate() {
            slot_of_assignment[assignment] = slot;
        }
        let below = |expert| selected.iter().filter(|&&c| c < expert).count();
        let offsets: Vec<usize> = (0..=r.experts).map(below).collect();
        let load = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let parts = [load, offsets, assignment_of_slot, slot_of_assignment, selected].concat();
        for (to, from) in dispatch.iter_mut().zip(parts) {
            *to = from as i32;
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (layout, logits, dispatch) = (self.router.layout(), io.read(0), io.write_ints());
        let bias = self.has_bias.then(|| io.read(1));
        let selected = layout.selected(dispatch.len());
        router::select_top_k(&self.router, logits, bias, &mut dispatch[selected]);
        layout.fill(dispatch);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let Router { experts, top_k, groups, .. } = self.router;
        let (logits, dispatch) = (io.read(0), io.write());
        let bias = self.has_bias.then(|| io.read(1).span);
        let selected = self.router.layout().selected(dispatch.len());
        let (tokens, assignments) = (selected.len() / top_k, selected.len());
        let arguments = cuda::Arguments::default()
            .address(logits.span)
            .optional_address(bias)
            .address(dispatch.part(selected.start, assignments).span)
            .long(tokens as i64);
        let grid = Grid::warps_with_memory(tokens, 2 * (experts + groups))?;
        io.launch("select_experts", grid, device_config(arguments, &self.router));
        let arguments = cuda::Arguments::default()
            .address(dispatch.span)
            .long(assignments as i64)
            .count(experts);
        io.launch("dispatch_load", Grid::warps(experts), arguments.clone());
        io.launch("dispatch_offsets", Grid::warps(1), arguments.clone());
        io.launch("dispatch_slots", Grid::warps(experts), arguments);
        Ok(())
    }
}

/// Returns the top-k experts of one token in descending order of their keys, from the best groups only.
fn top_k_experts(r: &Router, mut keys: Vec<f64>, has_bias: bool) -> Vec<usize> {
    let size = r.experts / r.groups;
    // A group is ranked by its best expert, with a bias by the sum of its two best.
    let counted = if has_bias { 2 } else { 1 };
    let groups = keys.chunks(size).map(|keys| {
        let best = argsort_descending(keys).into_iter().take(counted);
        best.map(|expert| keys[expert]).sum()
    });
    let groups: Vec<f64> = groups.collect();
    for &group in &argsort_descending(&groups)[r.top_groups..] {
        keys[group * size..][..size].fill(f64::NEG_INFINITY);
    }
    argsort_descending(&keys)[..r.top_k].to_vec()
}

/// Returns the indices in descending order of the keys, the lower index first for equal keys.
fn argsort_descending(keys: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]));
    order
}

#[cfg(test)]
mod tests {
    use hybridnorm_kernels::router::Scoring;

    use super::super::testing::{check_with, floats};
    use super::*;

    #[test]
    fn tokens_are_dispatched_to_the_best_experts() {
        let shapes = [
            (1, 1, 1, 1, 1),
            (7, 5, 2, 1, 1),
            (33, 12, 3, 4, 2),
            (129, 30, 4, 5, 3),
            (65, 9, 9, 3, 3),
        ];
        for (n, experts, top_k, groups, top_groups) in shapes {
            for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
                let router = Router {
                    experts,
                    top_k,
                    scoring,
                    renormalize: false,
                    groups,
                    top_groups,
                    scaling: 1.0,
                };
                let given = [floats(1, [1, n, experts]), floats(2, [experts])];
                check_with(&given[..1], &[0], |_, x| vec![top_k_dispatch(x[0], None, router)]);
                check_with(&given, &[0], |_, x| vec![top_k_dispatch(x[0], Some(x[1]), router)]);
            }
        }
    }
}
