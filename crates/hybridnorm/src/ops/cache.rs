//! KV cache for decoding, and attention over it. Inference-only: no gradients.

use hybridnorm_kernels::attention::{self, AttentionConfig};
use hybridnorm_kernels::cache::{self, Append};

use super::reference_math::softmax;
use super::device::{Appended, CacheAttention, CacheRows};
use super::{DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Copy of columns of new rows to a cache; see [`cache_append_columns`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheAppend(pub(crate) Append);

/// Attention of new queries over a cache of keys and values; see [`cached_attention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CachedAttention(pub(crate) AttentionConfig);

/// Writes rows (b, t, c) to a cache (b, capacity, c), state that is updated, after the rows of past
/// positions.
///
/// # Panics
/// If the shapes do not match, or t exceeds the capacity.
pub fn cache_append<'g>(rows_btc: Value<'g>, cache: Value<'g>) {
    let (width, columns) = (rows_btc.shape().width(), cache.shape().width());
    assert_eq!(width, columns, "cache append: width of the rows");
    cache_append_columns(rows_btc, 0, cache);
}

/// Appends c columns of wider rows (b, t, w), from `first_column` on, as [`cache_append`] does: the keys and
/// values of packed `[q heads | k heads | v heads]`.
///
/// # Panics
/// If the shapes do not match, t exceeds the capacity, or the columns exceed the rows.
pub fn cache_append_columns<'g>(rows_btw: Value<'g>, first_column: usize, cache: Value<'g>) {
    let op = CacheAppend(Append {
        batch: rows_btw.shape().sizes().first().copied().unwrap_or(1),
        width: rows_btw.shape().width(),
        first_column,
        columns: cache.shape().width(),
    });
    let [] = rows_btw.builder().op(op, &[rows_btw, cache]);
}

/// Computes attention of the queries of packed `[q heads | k heads | v heads]`, (b, t, (h + g)·k + g·value), over
/// a cache (b, capacity, g·(k + value)) of rows `[k heads | v heads]`: query i of this run attends to rows up to
/// its own, `past + i`, as far as the window reaches. Returns the context (b, t, h·value). Not differentiable.
///
/// # Panics
/// If the shapes are not those of `config`.
pub fn cached_attention<'g>(packed_btw: Value<'g>, cache: Value<'g>, config: AttentionConfig) -> Value<'g> {
    let op = CachedAttention(config);
    let [ctx] = packed_btw.builder().op(op, &[packed_btw, cache]);
    ctx
}

impl Operation for CacheAppend {
    fn name(&self) -> &'static str {
        "cache append"
    }

    /// Reads rows and updates a cache; has no outputs.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [rows, cache] = inputs else {
            panic!("cache append: expected rows and a cache")
        };
        let Append {
            batch,
            width,
            first_column,
            columns,
        } = self.0;
        let &[_, new, _] = rows.shape.sizes() else {
            panic!("cache append: the rows are not (b, t, {width})")
        };
        assert_eq!(*rows, Type::f32([batch, new, width]), "cache append: rows");
        let &[_, capacity, _] = cache.shape.sizes() else {
            panic!("cache append: the cache is not (b, capacity, {columns})")
        };
        assert_eq!(
            *cache,
            Type::f32([batch, capacity, columns]),
            "cache append: cache"
        );
        let last = first_column + columns;
        assert!(
            last <= width,
            "cache append: columns {first_column}..{last} exceed the row width {width}"
        );
        assert!(
            new <= capacity,
            "cache append: {new} positions exceed the capacity {capacity}"
        );
        Vec::new()
    }

    fn state_inputs(&self, _inputs: usize) -> std::ops::Range<usize> {
        1..2
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let Append {
            batch,
            width,
            first_column,
            columns,
        } = self.0;
        let (rows, past, cache) = (io.read(0), io.arguments().past, io.write());
        let (new, capacity) = (
            rows.len() / (batch * width),
            cache.len() / (batch * columns),
        );
        assert!(
            past + new <= capacity,
            "{past} past and {new} new rows exceed the capacity {capacity}"
        );
        for sequence in 0..batch {
            for i in 0..new {
                let row = &rows[(sequence * new + i) * width..][..width];
                let cached = &mut cache[(sequence * capacity + past + i) * columns..][..columns];
                cached.copy_from_slice(&row[first_column..][..columns]);
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        cache::append(&self.0, io.floats(0), io.arguments().past, io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, cache) = (io.read(0), io.write());
        let Append { batch, width, .. } = self.0;
        let count = x.len() / width;
        let rows = CacheRows::of_sequences(io, count, count / batch);
        rows.append(io, x, cache, appended(&self.0, cache.len() / batch));
        Ok(())
    }
}

/// Returns the columns that are appended to slots of this many elements.
pub(super) fn appended(append: &Append, slot_elements: usize) -> Appended {
    Appended {
        width: append.width,
        first: append.first_column,
        columns: append.columns,
        capacity: slot_elements / append.columns,
    }
}

impl Operation for CachedAttention {
    fn name(&self) -> &'static str {
        "cached attention"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [packed, cache] = inputs else {
            panic!("cached attention: expected packed rows and a cache")
        };
        let AttentionConfig {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            ..
        } = self.0;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "cached attention: heads, {heads}, is not a multiple of kv_heads, {kv_heads}"
        );
        let columns = kv_heads * (head_dim + value_dim);
        let expected = Type::f32([batch, seq, heads * head_dim + columns]);
        assert_eq!(
            *packed, expected,
            "cached attention: packed queries, keys and values"
        );
        let &[_, capacity, _] = cache.shape.sizes() else {
            panic!("cached attention: the cache is not (b, capacity, {columns})")
        };
        assert_eq!(
            *cache,
            Type::f32([batch, capacity, columns]),
            "cached attention: cache"
        );
        assert!(
            seq <= capacity,
            "cached attention: {seq} positions exceed the capacity {capacity}"
        );
        vec![Type::f32([batch, seq, heads * value_dim])]
    }

    fn scratch(&self, _inputs: &[Type]) -> usize {
        self.0.batch * self.0.heads * self.0.seq
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let AttentionConfig {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            scale,
            softcap,
            ..
        } = self.0;
        let (packed, cache, past) = (io.read(0), io.read(1), io.arguments().past);
        let columns = kv_heads * (head_dim + value_dim);
        let capacity = cache.len() / (batch * columns);
        for (index, ctx) in io.write().chunks_mut(value_dim).enumerate() {
            let (row, h) = (index / heads, index % heads);
            let (sequence, i) = (row / seq, row % seq);
            let kv_head = h / (heads / kv_heads);
            let q = &packed[row * (heads * head_dim + columns) + h * head_dim..][..head_dim];
            let rows = cache
                .chunks(columns)
                .skip(sequence * capacity)
                .take(past + i + 1)
                .skip(self.0.first_key(past + i));
            let (keys, values): (Vec<&[f64]>, Vec<&[f64]>) = rows
                .map(|row| {
                    let (keys, values) = row.split_at(kv_heads * head_dim);
                    let key = &keys[kv_head * head_dim..][..head_dim];
                    (key, &values[kv_head * value_dim..][..value_dim])
                })
                .unzip();
            ctx.fill(0.0);
            for (weight, value) in attention_weights(q, &keys, scale, softcap).iter().zip(values) {
                for (ctx, v) in ctx.iter_mut().zip(value) {
                    *ctx += weight * v;
                }
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (packed, cache, past) = (io.floats(0), io.read(1), io.arguments().past);
        let (ctx, lse) = (io.write_floats(), io.write());
        attention::cached(&self.0, packed, cache, past, ctx, lse);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (packed, cache, ctx) = (io.read(0), io.read(1), io.write());
        let AttentionConfig { batch, seq, .. } = self.0;
        let rows = CacheRows::of_sequences(io, batch * seq, seq);
        let layout = cache_attention(&self.0, cache.len() / batch);
        rows.attend(io, [packed, cache, ctx], layout)
    }
}

/// Returns the sizes of attention to slots of this many elements.
pub(super) fn cache_attention(config: &AttentionConfig, slot_elements: usize) -> CacheAttention {
    let AttentionConfig {
        heads,
        kv_heads,
        head_dim,
        value_dim,
        ..
    } = *config;
    let columns = kv_heads * (head_dim + value_dim);
    CacheAttention {
        capacity: slot_elements / columns,
        heads,
        kv_heads,
        key_dim: head_dim,
        value_dim,
        q_width: heads * head_dim + columns,
        columns,
        first_value: kv_heads * head_dim,
        window: config.window,
        scale: config.scale,
        softcap: config.softcap,
    }
}

/// Returns the softmax of a query's logits with the keys visible to it.
pub(super) fn attention_weights(q: &[f64], keys: &[&[f64]], scale: f32, softcap: Option<f32>) -> Vec<f64> {
    let logit = |key: &&[f64]| {
        let u = f64::from(scale) * q.iter().zip(*key).map(|(q, k)| q * k).sum::<f64>();
        match softcap.map(f64::from) {
            Some(cap) => cap * (u / cap).tanh(),
            None => u,
        }
    };
    softmax(&keys.iter().map(logit).collect::<Vec<_>>()).0
}

#[cfg(test)]
mod tests {
    use super::super::stateful::{Executors, arguments_after, inputs};
    use super::super::testing::numbers;
    use super::*;

    #[test]
    fn rows_are_appended_after_the_past_ones() {
        let (b, c, capacity) = (3, 5, 11);
        for (w, first) in [(c, 0), (8, 3), (9, 1)] {
            let mut executors = Executors::new(&[numbers(1, b * capacity * c)]);
            let mut expected = numbers(1, b * capacity * c);
            let mut past = 0;
            for t in [4, 1, 1, 5] {
                let given = inputs(t as u64, [[b, t, w]]);
                let results = executors.run(arguments_after(past), &given, |g, state, x| {
                    let cache = g.state(state[0], 0, Type::f32([b, capacity, c]));
                    match w == c {
                        true => cache_append(x[0], cache),
                        false => cache_append_columns(x[0], first, cache),
                    }
                    vec![]
                });
                for (row, x) in given[0].elements().chunks(w).enumerate() {
                    let at = row / t * capacity + past + row % t;
                    expected[at * c..][..c].copy_from_slice(&x[first..][..c]);
                }
                assert_eq!(results.reference.buffers, [expected.clone()]);
                past += t;
            }
        }
    }

    /// A prompt, then positions one by one and several at once.
    #[test]
    fn attention_reads_what_was_appended() {
        for (config, capacity) in [
            (config(1, 1, 1, 1), 12),
            (config(4, 2, 5, 7), 12),
            (config(3, 3, 8, 8), 300),
            (
                AttentionConfig {
                    softcap: Some(0.6),
                    ..config(6, 2, 3, 5)
                },
                13,
            ),
            (
                AttentionConfig {
                    window: Some(3),
                    precision: hybridnorm_kernels::matmul::Precision::F32,
                    ..config(4, 2, 3, 5)
                },
                13,
            ),
        ] {
            let AttentionConfig {
                heads,
                kv_heads,
                head_dim,
                value_dim,
                ..
            } = config;
            let (b, c) = (2, kv_heads * (head_dim + value_dim));
            let w = heads * head_dim + c;
            // Previous contents of the cache must not be visible.
            let mut executors = Executors::new(&[vec![1e3; b * capacity * c]]);
            let mut past = 0;
            for t in [capacity - 6, 1, 3, 1, 1] {
                let config = AttentionConfig {
                    batch: b,
                    seq: t,
                    ..config
                };
                let given = inputs(t as u64, [[b, t, w]]);
                let results = executors.run(arguments_after(past), &given, |g, state, x| {
                    let cache = g.state(state[0], 0, Type::f32([b, capacity, c]));
                    let packed = x[0] * 2.0;
                    cache_append_columns(packed, heads * head_dim, cache);
                    vec![cached_attention(packed, cache, config)]
                });
                let contexts = &results.reference.outputs[0];
                assert!(
                    contexts.iter().all(|ctx| ctx.abs() <= 2.0),
                    "means of values"
                );
                past += t;
            }
        }
    }

    /// State that is part of a larger buffer.
    #[test]
    fn two_caches_in_one_buffer() {
        let (b, t, c, capacity) = (2, 3, 4, 5);
        let ty = Type::f32([b, capacity, c]);
        let mut executors = Executors::new(&[vec![0.0; 2 * ty.elements()]]);
        let config = AttentionConfig {
            batch: b,
            seq: t,
            ..config(2, 1, 2, 2)
        };
        executors.run(arguments_after(1), &inputs(7, [[b, t, 8], [b, t, c]]), |g, state, x| {
            let first = g.state(state[0], 0, ty);
            let second = g.state(state[0], ty.elements(), ty);
            cache_append(x[1], second);
            cache_append_columns(x[0], 4, first);
            vec![
                cached_attention(x[0], first, config),
                cached_attention(x[0], second, config),
            ]
        });
    }

    fn config(heads: usize, kv_heads: usize, head_dim: usize, value_dim: usize) -> AttentionConfig {
        AttentionConfig {
            batch: 1,
            seq: 1,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            scale: 0.7,
            softcap: None,
            window: None,
            precision: hybridnorm_kernels::matmul::Precision::F32,
        }
    }

    #[test]
    #[should_panic(expected = "cache append: columns 4..9 exceed the row width 8")]
    fn rows_that_are_too_narrow_are_rejected() {
        let mut executors = Executors::new(&[vec![0.0; 30]]);
        executors.run(arguments_after(0), &inputs(1, [[2, 1, 8]]), |g, state, x| {
            cache_append_columns(x[0], 4, g.state(state[0], 0, Type::f32([2, 3, 5])));
            vec![]
        });
    }

    #[test]
    #[should_panic(expected = "3 past and 1 new rows exceed the capacity 3")]
    fn append_to_a_full_cache_is_rejected() {
        let mut executors = Executors::new(&[vec![0.0; 30]]);
        executors.run(arguments_after(3), &inputs(1, [[2, 1, 5]]), |g, state, x| {
            cache_append(x[0], g.state(state[0], 0, Type::f32([2, 3, 5])));
            vec![]
        });
    }
}
