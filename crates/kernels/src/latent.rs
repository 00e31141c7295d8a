//! Multi-head latent attention, except the attention op (DeepSeek-V2, arXiv 2405.04434, section 2.1):
//! heads with a nope part (no positional embedding) and a rotary part, and projections that are absorbed for
//! generation.
//!
//! Only the rotary part of a query or key is rotated, and all heads share that of the key. In generation
//! the cache holds latents instead of keys and values: since `q (W_UK c) = (q W_UK) c`, the key
//! projection is absorbed into the query ([`absorb`]), and the value projection is applied after
//! attention ([`project_values`]); [`cached_latent`](crate::attention::cached_latent) runs in between.

use crate::linear::matvec;
use crate::matmul::{Matrix, MatrixMut, Packed, Precision, multiply};
use crate::parallel::rows_per_chunk;
use crate::qkv::rotate;
use crate::simd::{AccumulateRows, SimdKernel, dispatch, run_simd};
use pulp::Simd;
use rayon::prelude::*;

/// Head sizes of multi-head latent attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlaHeads {
    /// Number of query, key and value heads.
    pub heads: usize,
    /// Channels of a query or key head without positional embedding.
    pub nope: usize,
    /// Rotary channels of a query or key head; even.
    pub rope: usize,
    /// Channels of a value head.
    pub value: usize,
}

/// Assembles packed rows `[q heads | k heads | v heads]` for
/// [`attention::forward`](crate::attention::forward), (n, heads * (2 (nope + rope) + value)), each query
/// and key head `[nope part | rotated part]`.
///
/// `q` is (n, heads * (nope + rope)), in the same layout but not rotated; `kv` is (n, heads *
/// (nope + value)), for each head `[nope part of the key | value]`; `key` (n, rope) is the unrotated rotary key
/// shared by all heads. `table` is a [`rope_table`](crate::qkv::rope_table), (t, rope); row i is at
/// position `i % t`.
pub fn assemble(
    l: &MlaHeads,
    q: &[f32],
    kv: &[f32],
    key: &[f32],
    table: &[f32],
    packed: &mut [f32],
) {
    let name = "latent::assemble";
    let lengths = [q.len(), kv.len(), key.len(), packed.len()];
    let n = l.check_rows(name, ["q", "kv", "key", "packed"], lengths);
    let positions = positions(name, n, l.rope, table);
    let [q_width, kv_width, key_width, width] = l.widths();
    let chunk = rows_per_chunk(n, width);
    packed
        .par_chunks_mut(chunk * width)
        .zip(q.par_chunks(chunk * q_width))
        .zip(kv.par_chunks(chunk * kv_width))
        .zip(key.par_chunks(chunk * key_width))
        .enumerate()
        .for_each(|(c, (((packed, q), kv), key))| {
            let inputs = q.chunks_exact(q_width).zip(kv.chunks_exact(kv_width));
            let inputs = inputs.zip(key.chunks_exact(key_width));
            let rows = inputs.zip(packed.chunks_exact_mut(width));
            dispatch(
                #[inline(always)]
                || {
                    for (i, (((q, kv), key), packed)) in (c * chunk..).zip(rows) {
                        let cos_sin = &table[i % positions * l.rope..][..l.rope];
                        assemble_row(l, q, kv, key, cos_sin, packed);
                    }
                },
            );
        });
}

#[inline(always)]
fn assemble_row(
    l: &MlaHeads,
    q: &[f32],
    kv: &[f32],
    key: &[f32],
    cos_sin: &[f32],
    packed: &mut [f32],
) {
    let d = l.head_dim();
    let (queries, packed) = packed.split_at_mut(l.heads * d);
    let (keys, values) = packed.split_at_mut(l.heads * d);
    for (x, y) in q.chunks_exact(d).zip(queries.chunks_exact_mut(d)) {
        y[..l.nope].copy_from_slice(&x[..l.nope]);
        rotate(&x[l.nope..], cos_sin, 1.0, 1.0, &mut y[l.nope..]);
    }
    let heads = keys.chunks_exact_mut(d);
    let heads = heads.zip(values.chunks_exact_mut(l.value));
    for (kv, (k, v)) in kv.chunks_exact(l.nope + l.value).zip(heads) {
        k[..l.nope].copy_from_slice(&kv[..l.nope]);
        v.copy_from_slice(&kv[l.nope..]);
        rotate(key, cos_sin, 1.0, 1.0, &mut k[l.nope..]);
    }
}

/// Computes the gradients of [`assemble`]: `dq`, `dkv` and `dkey`, shaped like its inputs, from `dpacked`,
/// shaped like `packed`.
pub fn assemble_backward(
    l: &MlaHeads,
    dpacked: &[f32],
    table: &[f32],
    dq: &mut [f32],
    dkv: &mut [f32],
    dkey: &mut [f32],
) {
    let name = "latent::assemble_backward";
    let lengths = [dq.len(), dkv.len(), dkey.len(), dpacked.len()];
    let n = l.check_rows(name, ["dq", "dkv", "dkey", "dpacked"], lengths);
    let positions = positions(name, n, l.rope, table);
    let [q_width, kv_width, key_width, width] = l.widths();
    let chunk = rows_per_chunk(n, width);
    dpacked
        .par_chunks(chunk * width)
        .zip(dq.par_chunks_mut(chunk * q_width))
        .zip(dkv.par_chunks_mut(chunk * kv_width))
        .zip(dkey.par_chunks_mut(chunk * key_width))
        .enumerate()
        .for_each(|(c, (((dpacked, dq), dkv), dkey))| {
            let outputs = dq
                .chunks_exact_mut(q_width)
                .zip(dkv.chunks_exact_mut(kv_width));
            let outputs = outputs.zip(dkey.chunks_exact_mut(key_width));
            let rows = dpacked.chunks_exact(width).zip(outputs);
            let mut sum = vec![0.0; l.rope];
            dispatch(
                #[inline(always)]
                || {
                    for (i, (dpacked, ((dq, dkv), dkey))) in (c * chunk..).zip(rows) {
                        let cos_sin = &table[i % positions * l.rope..][..l.rope];
                        assemble_row_backward(l, dpacked, cos_sin, dq, dkv, &mut sum);
                        rotate(&sum, cos_sin, -1.0, 1.0, dkey);
                    }
                },
            );
        });
}

/// Computes the gradients of a row; `sum` receives that of the rotated key.
#[inline(always)]
fn assemble_row_backward(
    l: &MlaHeads,
    dpacked: &[f32],
    cos_sin: &[f32],
    dq: &mut [f32],
    dkv: &mut [f32],
    sum: &mut [f32],
) {
    let d = l.head_dim();
    let (queries, dpacked) = dpacked.split_at(l.heads * d);
    let (keys, values) = dpacked.split_at(l.heads * d);
    for (dy, dx) in queries.chunks_exact(d).zip(dq.chunks_exact_mut(d)) {
        dx[..l.nope].copy_from_slice(&dy[..l.nope]);
        rotate(&dy[l.nope..], cos_sin, -1.0, 1.0, &mut dx[l.nope..]);
    }
    sum.fill(0.0);
    let heads = keys.chunks_exact(d).zip(values.chunks_exact(l.value));
    for (dkv, (dk, dv)) in dkv.chunks_exact_mut(l.nope + l.value).zip(heads) {
        dkv[..l.nope].copy_from_slice(&dk[..l.nope]);
        dkv[l.nope..].copy_from_slice(dv);
        for (sum, dk) in sum.iter_mut().zip(&dk[l.nope..]) {
            *sum += dk;
        }
    }
}

/// Rotates the rotary part of each head of `q` (n, heads * (nope + rope)) in place, with a table as in
/// [`assemble`].
pub fn rotate_queries(l: &MlaHeads, q: &mut [f32], table: &[f32]) {
    let name = "latent::rotate_queries";
    l.check(name);
    let width = l.heads * l.head_dim();
    assert!(
        q.len().is_multiple_of(width),
        "{name}: the length of q is not a multiple of {width}"
    );
    rotate_in_place(name, q, width, l.nope, l.rope, table);
}

/// Rotates `key` (n, rope), the rotary key shared by all heads, in place.
pub fn rotate_keys(key: &mut [f32], rope: usize, table: &[f32]) {
    let name = "latent::rotate_keys";
    assert!(
        rope > 0 && rope.is_multiple_of(2),
        "{name}: rope must be even and at least 2"
    );
    assert!(
        key.len().is_multiple_of(rope),
        "{name}: the length of key is not a multiple of {rope}"
    );
    rotate_in_place(name, key, rope, 0, rope, table);
}

/// Rotates the last `rope` channels of each head of `nope + rope` in rows of `width`.
fn rotate_in_place(
    name: &str,
    x: &mut [f32],
    width: usize,
    nope: usize,
    rope: usize,
    table: &[f32],
) {
    let n = x.len() / width;
    let positions = positions(name, n, rope, table);
    let chunk = rows_per_chunk(n, width);
    x.par_chunks_mut(chunk * width)
        .enumerate()
        .for_each(|(c, x)| {
            let mut before = vec![0.0; rope];
            dispatch(
                #[inline(always)]
                || {
                    for (i, row) in (c * chunk..).zip(x.chunks_exact_mut(width)) {
                        let cos_sin = &table[i % positions * rope..][..rope];
                        for head in row.chunks_exact_mut(nope + rope) {
                            before.copy_from_slice(&head[nope..]);
                            rotate(&before, cos_sin, 1.0, 1.0, &mut head[nope..]);
                        }
                    }
                },
            );
        });
}

/// Computes queries for a cache of latents: `out` (n, heads * (latent + rope)), for each head
/// `[nope part times its key projection | rotated part]`.
///
/// `q` is (n, heads * (nope + rope)), rotated; `kv_up` (heads * (nope + value), latent) is the up
/// projection of latents, for each head the rows of the nope part of the key, then those of the value.
pub fn absorb(l: &MlaHeads, latent: usize, q: &[f32], kv_up: &[f32], out: &mut [f32]) {
    let name = "latent::absorb";
    l.check_up(name, latent, kv_up);
    let (d, e, up) = (l.head_dim(), latent + l.rope, (l.nope + l.value) * latent);
    let n = rows(
        name,
        ["q", "out"],
        [q.len(), out.len()],
        [l.heads * d, l.heads * e],
    );
    let heads = out.par_chunks_exact_mut(e).zip(q.par_chunks_exact(d));
    if n == 1 {
        return heads
            .zip(kv_up.par_chunks_exact(up))
            .for_each(|((out, q), w)| {
                let (absorbed, rotated) = out.split_at_mut(latent);
                let (nope_part, rotary_part) = q.split_at(l.nope);
                rotated.copy_from_slice(rotary_part);
                run_simd(WeightedSum {
                    weights: nope_part,
                    rows: w,
                    sum: absorbed,
                });
            });
    }
    heads.for_each(|(out, q)| out[latent..].copy_from_slice(&q[l.nope..]));
    if n == 0 {
        return;
    }
    for (h, w) in kv_up.chunks_exact(up).enumerate() {
        let q = Matrix::with_stride(&q[h * d..], n, l.nope, l.heads * d);
        let w = Packed::new(
            Precision::F32,
            Matrix::new(&w[..l.nope * latent], l.nope, latent),
        );
        let out = MatrixMut::with_stride(&mut out[h * e..], n, latent, l.heads * e);
        multiply(q, &w, out, 1.0);
    }
}

/// Applies the value projection to the context of [`cached_latent`](crate::attention::cached_latent), `ctx` (n, heads *
/// latent): `out` is (n, heads * value). `kv_up` is as in [`absorb`].
pub fn project_values(l: &MlaHeads, latent: usize, ctx: &[f32], kv_up: &[f32], out: &mut [f32]) {
    let name = "latent::project_values";
    l.check_up(name, latent, kv_up);
    let up = (l.nope + l.value) * latent;
    let widths = [l.heads * latent, l.heads * l.value];
    let n = rows(name, ["ctx", "out"], [ctx.len(), out.len()], widths);
    if n == 1 {
        return out
            .par_chunks_exact_mut(l.value)
            .zip(ctx.par_chunks_exact(latent))
            .zip(kv_up.par_chunks_exact(up))
            .for_each(|((out, ctx), w)| matvec(&w[l.nope * latent..], ctx, out));
    }
    if n == 0 {
        return;
    }
    for (h, w) in kv_up.chunks_exact(up).enumerate() {
        let ctx = Matrix::with_stride(&ctx[h * latent..], n, latent, l.heads * latent);
        let w = Matrix::new(&w[l.nope * latent..], l.value, latent);
        let w = Packed::transposed(Precision::F32, w);
        let out = MatrixMut::with_stride(&mut out[h * l.value..], n, l.value, l.heads * l.value);
        multiply(ctx, &w, out, 1.0);
    }
}

/// Weighted sum of rows, with one weight per row.
struct WeightedSum<'a> {
    weights: &'a [f32],
    rows: &'a [f32],
    sum: &'a mut [f32],
}

impl SimdKernel for WeightedSum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        const ROWS_AT_ONCE: usize = 8;
        self.sum.fill(0.0);
        let mut rows = self.rows.chunks_exact(self.sum.len());
        let mut next = || rows.next().expect("a row for every weight");
        let (groups, rest) = self.weights.as_chunks::<ROWS_AT_ONCE>();
        for weights in groups {
            AccumulateRows {
                weights: [*weights],
                rows: std::array::from_fn(|_| next()),
                sums: [&mut *self.sum],
            }
            .run::<S, V>(simd);
        }
        for weight in rest {
            AccumulateRows {
                weights: [[*weight]],
                rows: [next()],
                sums: [&mut *self.sum],
            }
            .run::<S, V>(simd);
        }
    }
}

impl MlaHeads {
    /// Returns the channels of a query or key head.
    pub fn head_dim(&self) -> usize {
        self.nope + self.rope
    }

    /// Returns the row widths of queries, of the nope parts of keys together with the values, of the shared rotary key,
    /// and of packed rows.
    pub fn widths(&self) -> [usize; 4] {
        let d = self.head_dim();
        [
            self.heads * d,
            self.heads * (self.nope + self.value),
            self.rope,
            self.heads * (2 * d + self.value),
        ]
    }

    fn check(&self, name: &str) {
        assert!(
            self.heads > 0 && self.nope > 0 && self.value > 0,
            "{name}: heads, nope and value must be at least 1"
        );
        assert!(
            self.rope > 0 && self.rope.is_multiple_of(2),
            "{name}: rope must be even and at least 2"
        );
    }

    /// Checks slices of the widths of [`MlaHeads::widths`]; returns their number of rows.
    fn check_rows(&self, name: &str, which: [&str; 4], lengths: [usize; 4]) -> usize {
        self.check(name);
        rows(name, which, lengths, self.widths())
    }

    fn check_up(&self, name: &str, latent: usize, kv_up: &[f32]) {
        self.check(name);
        assert!(latent > 0, "{name}: latent must be at least 1");
        let outputs = self.heads * (self.nope + self.value);
        assert_eq!(
            kv_up.len(),
            outputs * latent,
            "{name}: kv_up is not ({outputs}, {latent})"
        );
    }
}

/// Checks that slices have as many rows as the first one; returns that number.
fn rows<const N: usize>(
    name: &str,
    which: [&str; N],
    lengths: [usize; N],
    widths: [usize; N],
) -> usize {
    let n = lengths[0] / widths[0];
    for ((which, length), width) in which.iter().zip(lengths).zip(widths) {
        assert_eq!(length, n * width, "{name}: {which} is not ({n}, {width})");
    }
    n
}

/// Checks a RoPE table; returns its number of positions.
fn positions(name: &str, n: usize, rope: usize, table: &[f32]) -> usize {
    assert!(
        !table.is_empty() && table.len().is_multiple_of(rope),
        "{name}: table is not (t, {rope})"
    );
    let positions = table.len() / rope;
    assert!(
        n.is_multiple_of(positions),
        "{name}: {n} rows are not a multiple of the {positions} positions of the table"
    );
    positions
}

#[cfg(test)]
mod tests;
