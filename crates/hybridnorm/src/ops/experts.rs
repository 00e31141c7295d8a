//! Shared parts of the experts' grouped GEMMs.

use std::ops::Range;

use hybridnorm_cuda::{self as cuda, ElementType, Elements};
use hybridnorm_kernels::experts::{self, Dispatch, DispatchLayout};
use hybridnorm_kernels::floats::FloatsMut;
use hybridnorm_kernels::linear::Linear;
use hybridnorm_kernels::matmul::Precision;

use super::DeviceOperands;
use super::device::{Grid, element_type_of};
use crate::graph::{Type, Value};

/// One matrix (out, in) per expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ExpertLinear {
    pub(super) layout: DispatchLayout,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(crate) precision: Precision,
}

/// Order of the rows of an operand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RowOrder {
    Slot,
    Token,
}

/// Rows, columns and steps of a tile of the kernels, and numbers in shared memory of its two operands.
const TILE: usize = 32;
const TILE_MEMORY: usize = 2 * TILE * (TILE + 1);
/// Rows and columns of a tile of the kernels on tensor cores.
const MMA_TILE: usize = 64;

/// Returns the grid of kernels with tiles of this size.
///
/// # Errors
/// If a card has less shared memory.
fn tile_grid(tiles: usize, tile: usize) -> Result<Grid, String> {
    /// Warps of a block on tensor cores, steps of a tile, and elements between rows.
    const WARPS: usize = 4;
    const STEPS: usize = 32;
    const PADDING: usize = 8;
    match tile {
        MMA_TILE => {
            let bytes = 2 * MMA_TILE * (STEPS + PADDING) * size_of::<u16>();
            Grid::with_shared_memory(tiles, WARPS, bytes)
        }
        _ => Grid::tiles(tiles, TILE_MEMORY),
    }
}

/// A selected expert of a token.
pub(super) struct Assignment {
    /// Index among all assignments, `token · top_k + j`.
    pub(super) index: usize,
    pub(super) token: usize,
    pub(super) expert: usize,
    /// Index in expert order.
    pub(super) slot: usize,
}

impl ExpertLinear {
    pub(super) fn new(name: &str, layout: DispatchLayout, w: Value<'_>) -> Self {
        let shape = w.shape();
        let (experts, &[rows, inputs]) = (layout.experts, shape.sizes()) else {
            panic!("{name}: the weight is not a matrix but {shape:?}")
        };
        let fits = experts > 0 && rows.is_multiple_of(experts);
        assert!(
            fits,
            "{name}: the {rows} rows of the weight are not a multiple of {experts} experts"
        );
        Self {
            layout,
            inputs,
            outputs: rows / experts,
            precision: Precision::F32,
        }
    }

    pub(super) fn weight(&self) -> Type {
        Type::f32([self.layout.experts * self.outputs, self.inputs])
    }

    pub(super) fn slots(&self, tokens: usize) -> usize {
        tokens * self.layout.top_k
    }

    pub(super) fn flops(&self, tokens: usize) -> u64 {
        2 * (self.slots(tokens) * self.inputs * self.outputs) as u64
    }

    /// Returns the maximum bytes that a kernel allocates for this many tokens.
    pub(super) fn workspace(&self, tokens: usize, threads: usize) -> usize {
        experts::workspace(self.slots(tokens), &self.of_expert(), threads)
    }

    /// Returns the layer of one expert.
    pub(super) fn of_expert(&self) -> Linear {
        Linear {
            inputs: self.inputs,
            outputs: self.outputs,
            precision: self.precision,
        }
    }

    /// Splits rows of `n` elements from scratch memory, in the precision of the matmul.
    pub(super) fn rows<'a>(
        &self,
        scratch: &'a mut [f32],
        n: usize,
    ) -> (FloatsMut<'a>, &'a mut [f32]) {
        FloatsMut::of_scratch(self.precision, scratch, n)
    }

    /// Returns the scratch elements of rows of `n` elements.
    pub(super) fn rows_len(&self, n: usize) -> usize {
        FloatsMut::scratch_len(self.precision, n)
    }

    /// Returns the type of operands of the matrix products on a device.
    pub(super) fn operand_type(&self) -> ElementType {
        element_type_of(self.precision)
    }

    /// Returns the tokens of a dispatch.
    fn tokens_of(&self, dispatch: Elements) -> usize {
        self.layout.selected(dispatch.len()).len() / self.layout.top_k
    }

    /// Records `W_e x` in every slot of `y`, for rows x by slot, or by token; or `W_eᵀ x`. Operands are of the type of the
    /// matrix products.
    pub(super) fn record_product(
        &self,
        io: &mut DeviceOperands,
        [x, w, dispatch, y]: [Elements; 4],
        rows: RowOrder,
        is_transposed: bool,
    ) -> Result<(), String> {
        let slots = self.slots(self.tokens_of(dispatch));
        let (inner, columns) = match is_transposed {
            false => (self.inputs, self.outputs),
            true => (self.outputs, self.inputs),
        };
        let strides = match is_transposed {
            false => [1, self.inputs],
            true => [self.inputs, 1],
        };
        let (kernel, tile) = match (self.uses_tensor_cores([x, w]), is_transposed) {
            (false, _) => ("expert_product", TILE),
            (true, false) => ("expert_product_mma", MMA_TILE),
            (true, true) => ("expert_input_gradient_mma", MMA_TILE),
        };
        let tiles = (slots.div_ceil(tile) + self.layout.experts) * columns.div_ceil(tile);
        let arguments = cuda::Arguments::default()
            .floats(x)
            .floats(w)
            .floats(y)
            .address(dispatch.span)
            .long(slots as i64)
            .count(self.layout.experts)
            .count(self.layout.top_k)
            .int((rows == RowOrder::Token).into())
            .count(inner)
            .count(columns)
            .count(strides[0])
            .count(strides[1]);
        io.launch(kernel, tile_grid(tiles, tile)?, arguments);
        Ok(())
    }

    /// True if the products of operands of these types are computed on tensor cores.
    fn uses_tensor_cores(&self, operands: [Elements; 2]) -> bool {
        /// Elements that a thread loads at once.
        const CHUNK: usize = 8;
        let is_bf16 = operands.iter().all(|x| x.element_type == ElementType::Bf16);
        is_bf16 && self.inputs.is_multiple_of(CHUNK) && self.outputs.is_multiple_of(CHUNK)
    }

    /// Records the gradient of the weight, the sum of `dy xᵀ` over the slots of every expert.
    pub(super) fn record_weight_gradient(
        &self,
        io: &mut DeviceOperands,
        (dy, rows_of_dy): (Elements, RowOrder),
        (x, rows_of_x): (Elements, RowOrder),
        dispatch: Elements,
        dw: Elements,
    ) -> Result<(), String> {
        let slots = self.slots(self.tokens_of(dispatch));
        let (kernel, tile) = match self.uses_tensor_cores([dy, x]) {
            false => ("expert_weight_gradient", TILE),
            true => ("expert_weight_gradient_mma", MMA_TILE),
        };
        let tiles = self.layout.experts * self.outputs.div_ceil(tile) * self.inputs.div_ceil(tile);
        let arguments = cuda::Arguments::default()
            .floats(dy)
            .floats(x)
            .address(dw.span)
            .address(dispatch.span)
            .long(slots as i64)
            .count(self.layout.experts)
            .count(self.layout.top_k)
            .int((rows_of_dy == RowOrder::Token).into())
            .int((rows_of_x == RowOrder::Token).into())
            .count(self.outputs)
            .count(self.inputs);
        io.launch(kernel, tile_grid(tiles, tile)?, arguments);
        Ok(())
    }

    /// Records the sum over the slots of every token of rows of `width` elements, weighted if weights are given.
    pub(super) fn record_combine(
        &self,
        io: &mut DeviceOperands,
        slots: Elements,
        weights: Option<Elements>,
        dispatch: Elements,
        y: Elements,
        width: usize,
    ) {
        let arguments = cuda::Arguments::default()
            .floats(slots)
            .optional_address(weights.map(|weights| weights.span))
            .floats(y)
            .address(dispatch.span)
            .long(self.tokens_of(dispatch) as i64)
            .count(self.layout.experts)
            .count(self.layout.top_k)
            .count(width);
        io.launch("combine_experts", Grid::elements(y.len()), arguments);
    }

    /// Returns the range of an expert's elements in `w`.
    pub(super) fn matrix(&self, expert: usize) -> Range<usize> {
        let size = self.inputs * self.outputs;
        expert * size..(expert + 1) * size
    }

    /// Returns the assignments of a dispatch, in (token, j) order.
    pub(super) fn assignments(&self, dispatch: &[i32]) -> impl Iterator<Item = Assignment> {
        let dispatch = Dispatch::new(self.layout, dispatch);
        let assignments = dispatch
            .expert_of_assignment()
            .iter()
            .zip(dispatch.slot_of_assignment());
        assignments
            .enumerate()
            .map(move |(index, (&expert, &slot))| Assignment {
                index,
                token: index / dispatch.top_k(),
                expert: expert as usize,
                slot: slot as usize,
            })
    }
}

/// Computes `W x`, in double precision.
pub(super) fn matvec(w: &[f64], x: &[f64]) -> Vec<f64> {
    let rows = w.chunks(x.len());
    rows.map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum())
        .collect()
}

/// Computes `Wᵀ y`, in double precision.
pub(super) fn matvec_transposed(w: &[f64], y: &[f64]) -> Vec<f64> {
    let width = w.len() / y.len();
    let column = |c: usize| w.chunks(width).zip(y).map(|(w, y)| w[c] * y).sum();
    (0..width).map(column).collect()
}

/// Adds `factor · y xᵀ`, in double precision.
pub(super) fn add_outer(factor: f64, y: &[f64], x: &[f64], w: &mut [f64]) {
    for (y, w) in y.iter().zip(w.chunks_mut(x.len())) {
        for (w, x) in w.iter_mut().zip(x) {
            *w += factor * y * x;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::testing::numbers;
    use super::*;

    /// Tokens, experts and top-k of tested dispatches.
    pub(in super::super) const SIZES: [(usize, usize, usize); 4] =
        [(1, 1, 1), (7, 4, 2), (33, 5, 3), (151, 3, 1)];

    /// Returns a dispatch from random scores, in which the last of several experts has no tokens.
    pub(in super::super) fn dispatch(n: usize, layout: DispatchLayout) -> Vec<i32> {
        let DispatchLayout { experts, top_k } = layout;
        let mut integers = vec![0; layout.elements(n)];
        let selected = layout.selected(integers.len());
        let scores = numbers(9, n * experts);
        let tokens = integers[selected].chunks_mut(top_k);
        for (selected, scores) in tokens.zip(scores.chunks(experts)) {
            let mut order: Vec<usize> = (0..experts.max(2) - 1).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            for (selected, expert) in selected.iter_mut().zip(order) {
                *selected = expert as i32;
            }
        }
        layout.fill(&mut integers);
        integers
    }
}
