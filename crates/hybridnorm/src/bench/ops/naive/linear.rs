//! Linear maps, the weight as (outputs, inputs). Of the orders of the loops the one is taken that
//! reads memory in a row.

use super::{add_scaled, dot};

/// `y = x wᵀ`: `y` (rows, outputs) from `x` (rows, inputs).
pub fn forward(x: &[f32], w: &[f32], y: &mut [f32], inputs: usize, outputs: usize) {
    for (x, y) in x.chunks(inputs).zip(y.chunks_mut(outputs)) {
        for (w, y) in w.chunks(inputs).zip(y) {
            *y = dot(x, w);
        }
    }
}

/// `dx = dy w`.
pub fn backward_input(dy: &[f32], w: &[f32], dx: &mut [f32], inputs: usize, outputs: usize) {
    for (dy, dx) in dy.chunks(outputs).zip(dx.chunks_mut(inputs)) {
        dx.fill(0.0);
        for (w, dy) in w.chunks(inputs).zip(dy) {
            add_scaled(*dy, w, dx);
        }
    }
}

/// `dw = dyᵀ x`.
pub fn backward_weight(dy: &[f32], x: &[f32], dw: &mut [f32], inputs: usize, outputs: usize) {
    dw.fill(0.0);
    for (dy, x) in dy.chunks(outputs).zip(x.chunks(inputs)) {
        for (dw, dy) in dw.chunks_mut(inputs).zip(dy) {
            add_scaled(*dy, x, dw);
        }
    }
}
