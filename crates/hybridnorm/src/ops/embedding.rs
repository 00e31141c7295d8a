//! Embedding: rows of a table by token id.

use hybridnorm_kernels::embedding;

use hybridnorm_cuda as cuda;

use super::device::Grid;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Rows of a table (v, d) by id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Embedding {
    rows: usize,
    width: usize,
}

/// Gradient of the table: for each id, the sum of the gradients of its outputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingGrad(Embedding);

/// [`EmbeddingGrad`] added to another gradient of the table, such as that of a tied head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingGradAdd(pub(crate) EmbeddingGrad);

/// Looks up rows of `w_vd` by token id: ids (b, t) to (b, t, d).
///
/// # Panics
/// If the table is not a matrix, or the ids are not (b, t).
pub fn embedding<'g>(ids_bt: Value<'g>, w_vd: Value<'g>) -> Value<'g> {
    let &[rows, width] = w_vd.shape().sizes() else {
        panic!("embedding: the table is not a matrix but {:?}", w_vd.shape())
    };
    let [y] = ids_bt.builder().op(Embedding { rows, width }, &[ids_bt, w_vd]);
    y
}

impl Operation for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let &[b, t] = inputs[0].shape.sizes() else {
            panic!("embedding: ids are not (b, t), but {:?}", inputs[0].shape)
        };
        assert_eq!(inputs[0], Type::i32([b, t]), "embedding: ids");
        vec![Type::f32([b, t, self.width])]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let [dw] = at.graph().op(EmbeddingGrad(*self), &[at.input(0), at.gradient()]);
        vec![None, Some(dw)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (ids, w, y) = (io.ints(0), io.read(1), io.write());
        for (&id, y) in ids.iter().zip(y.chunks_mut(self.width)) {
            y.copy_from_slice(&w[id as usize * self.width..][..self.width]);
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        embedding::forward(io.ints(0), io.read(1), io.write_floats());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (ids, w, y) = (io.read(0), io.read(1), io.write());
        let arguments = cuda::Arguments::default()
            .address(ids.span)
            .address(w.span)
            .floats(y)
            .long(ids.len() as i64)
            .count(self.width);
        io.launch("embedding_forward", Grid::elements(y.len()), arguments);
        Ok(())
    }
}

impl EmbeddingGrad {
    /// Records the command that overwrites the gradient, or adds to it.
    fn record(&self, io: &mut DeviceOperands, accumulate: bool) {
        let (ids, dy, dw) = (io.read(0), io.read(1), io.write());
        let arguments = cuda::Arguments::default()
            .address(ids.span)
            .floats(dy)
            .address(dw.span)
            .long(ids.len() as i64)
            .count(self.0.rows)
            .count(self.0.width)
            .int(accumulate.into());
        io.launch("embedding_backward", Grid::warps(self.0.rows), arguments);
    }

    /// Adds to the gradient `dw`, in double precision.
    fn add_to(&self, ids: &[i32], dy: &[f64], dw: &mut [f64]) {
        let width = self.0.width;
        for (&id, dy) in ids.iter().zip(dy.chunks(width)) {
            let row = &mut dw[id as usize * width..][..width];
            row.iter_mut().zip(dy).for_each(|(dw, dy)| *dw += dy);
        }
    }
}

impl Operation for EmbeddingGrad {
    fn name(&self) -> &'static str {
        "embedding, gradient"
    }

    fn outputs(&self, _inputs: &[Type]) -> Vec<Type> {
        vec![Type::f32([self.0.rows, self.0.width])]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let dw = io.write();
        dw.fill(0.0);
        self.add_to(io.ints(0), io.read(1), dw);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        embedding::backward(io.ints(0), io.floats(1), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        self.record(io, false);
        Ok(())
    }
}

impl Operation for EmbeddingGradAdd {
    fn name(&self) -> &'static str {
        "embedding, gradient added"
    }

    /// Reads ids, the gradient of the output, and the gradient to add to.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[2]]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(2, 0)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.0.add_to(io.ints(0), io.read(1), io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        embedding::backward_add(io.ints(0), io.floats(1), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        self.0.record(io, true);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, floats, ints};
    use super::*;

    #[test]
    fn rows_and_the_sums_of_their_gradients() {
        let ids = || ints([2, 3], &[4, 0, 2, 0, 0, 3]);
        check(&[ids(), floats(1, [6, 5])], |_, x| embedding(x[0], x[1]));
        // A table with another reader.
        let given = [ids(), floats(1, [6, 5]), floats(2, [1, 4, 5])];
        super::super::testing::check_with(&given, &[], |_, x| {
            vec![super::super::linear(embedding(x[0], x[1]), x[1])]
        });
    }
}
