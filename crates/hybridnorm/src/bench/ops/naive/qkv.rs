//! Norms on every head's queries, keys and values, then the rotation of queries and keys.

use hybridnorm_kernels::norm::Norm;
use hybridnorm_kernels::qkv::QkvPrep;

use super::norm;

/// Turns each head of a row by the angles of its position; `sign` -1 turns back.
fn rotate(heads: &mut [f32], turn: &[f32], sign: f32) {
    let half = turn.len() / 2;
    for head in heads.chunks_mut(turn.len()) {
        for i in 0..half {
            let (cos, sin) = (turn[i], sign * turn[half + i]);
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * cos - b * sin;
            head[i + half] = b * cos + a * sin;
        }
    }
}

/// First channel, width, norm, and whether it is rotated, of queries, keys and values.
fn segments(p: &QkvPrep) -> [(usize, usize, Norm, bool); 3] {
    let (q, kv) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
    let there = |norm: Option<Norm>| norm.expect("q, k and v are normed");
    [
        (0, q, there(p.q), true),
        (q, kv, there(p.k), true),
        (q + kv, kv, there(p.v), false),
    ]
}

/// `y` (rows, packed) from `x` (rows, packed).
pub fn forward(p: &QkvPrep, x: &[f32], rope: &[f32], params: [&[f32]; 3], y: &mut [f32]) {
    let width = (p.heads + 2 * p.kv_heads) * p.head_dim;
    let positions = rope.len() / p.head_dim;
    for (r, (x, y)) in x.chunks(width).zip(y.chunks_mut(width)).enumerate() {
        let turn = &rope[r % positions * p.head_dim..][..p.head_dim];
        for ((first, size, n, rotated), params) in segments(p).into_iter().zip(params) {
            let y = &mut y[first..first + size];
            norm::forward(&n, &x[first..first + size], params, y);
            if rotated {
                rotate(y, turn, 1.0);
            }
        }
    }
}

/// `dx` and the gradients of the three gains from `dy`.
pub fn backward(
    p: &QkvPrep,
    x: &[f32],
    rope: &[f32],
    params: [&[f32]; 3],
    dy: &[f32],
    dx: &mut [f32],
    mut dparams: [&mut [f32]; 3],
) {
    let width = (p.heads + 2 * p.kv_heads) * p.head_dim;
    let positions = rope.len() / p.head_dim;
    for dparams in &mut dparams {
        dparams.fill(0.0);
    }
    let mut turned = vec![0.0; width];
    let rows = x.chunks(width).zip(dy.chunks(width));
    for (r, ((x, dy), dx)) in rows.zip(dx.chunks_mut(width)).enumerate() {
        let turn = &rope[r % positions * p.head_dim..][..p.head_dim];
        let all = segments(p).into_iter().zip(params).zip(&mut dparams);
        for (((first, size, n, rotated), params), dparams) in all {
            let part = first..first + size;
            let turned = &mut turned[part.clone()];
            turned.copy_from_slice(&dy[part.clone()]);
            if rotated {
                rotate(turned, turn, -1.0);
            }
            norm::add_gradients(&n, &x[part.clone()], params, turned, &mut dx[part], dparams);
        }
    }
}
