//! Decoding with multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1.2): the cache stores a
//! latent and a rotated key per position, and instead of projecting latents to keys and values, their up-projection
//! is absorbed into queries and context. Inference-only.
//!
//! Shape suffixes: l width of the key/value latent, r rotated channels.

use hybridnorm_kernels::attention::{self, LatentAttentionConfig};
use hybridnorm_kernels::latent::{self, MlaHeads};

use hybridnorm_cuda::Elements;

use super::cache::attention_weights;
use super::rotate::{check_rope_table, rotated};
use super::device::{Block, CacheAttention, CacheRows, Columns, Rotated, multiply_blocks};
use super::{DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Absorbed queries, which attend to latents; see [`absorbed_queries`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AbsorbQueries {
    heads: MlaHeads,
    latent: usize,
    seq: usize,
}

/// Attention of absorbed queries over a cache of latents; see [`latent_attention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentAttention(pub(crate) LatentAttentionConfig);

/// Context of the heads from the latent context: applies the absorbed value up-projection; see
/// [`project_latent_context`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProjectLatentContext {
    heads: MlaHeads,
    latent: usize,
}

/// Computes absorbed queries, (b, t, h·(l + r)): per head `[nope part · its rows of kv_up | rotated]`.
/// Not differentiable.
///
/// `q` is (b, t, h·(nope + r)), heads of `[nope | rotary]` before rotation; `kv_up` is (h·(nope + value), l),
/// per head the rows for the nope part of keys, then those for values; `rope_table` is (t, r).
///
/// # Panics
/// If the shapes do not match, or r is odd.
pub fn absorbed_queries<'g>(
    q: Value<'g>,
    kv_up: Value<'g>,
    rope_table: Value<'g>,
    heads: MlaHeads,
) -> Value<'g> {
    let &[_, seq, _] = q.shape().sizes() else {
        panic!(
            "absorbed queries: the queries are not (b, t, ..), but {:?}",
            q.shape()
        )
    };
    let op = AbsorbQueries {
        heads,
        latent: kv_up.shape().width(),
        seq,
    };
    let [_, absorbed] = q.builder().op(op, &[q, kv_up, rope_table]);
    absorbed
}

/// Computes attention of [`absorbed_queries`] over a cache (b, capacity, l + r) of rows `[latent | rotated key]`:
/// query i of this run attends to rows up to its own, `past + i`. Returns the latent context (b, t, h·l).
/// Not differentiable.
///
/// # Panics
/// If the shapes are not those of `config`.
pub fn latent_attention<'g>(queries: Value<'g>, cache: Value<'g>, config: LatentAttentionConfig) -> Value<'g> {
    let [ctx] = queries
        .builder()
        .op(LatentAttention(config), &[queries, cache]);
    ctx
}

/// Computes the context of heads (b, t, h·value) from the latent context (b, t, h·l) of [`latent_attention`];
/// `kv_up` as for [`absorbed_queries`]. Not differentiable.
///
/// # Panics
/// If the shapes do not match.
pub fn project_latent_context<'g>(ctx: Value<'g>, kv_up: Value<'g>, heads: MlaHeads) -> Value<'g> {
    let latent = kv_up.shape().width();
    let [values] = ctx
        .builder()
        .op(ProjectLatentContext { heads, latent }, &[ctx, kv_up]);
    values
}

/// Returns the type of the up-projection from latents to keys' nope part and values.
fn kv_up_type(heads: &MlaHeads, latent: usize) -> Type {
    Type::f32([heads.heads * (heads.nope + heads.value), latent])
}

/// Returns the rows of the projection for a head: those for the nope part of its keys, and for its values.
fn rows_of_head<'a>(heads: &MlaHeads, latent: usize, kv_up: &'a [f64], h: usize) -> [&'a [f64]; 2] {
    let len = (heads.nope + heads.value) * latent;
    kv_up[h * len..][..len].split_at(heads.nope * latent).into()
}

impl Operation for AbsorbQueries {
    fn name(&self) -> &'static str {
        "absorb queries"
    }

    /// Outputs the rotated queries, which no other op reads, and the absorbed ones.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [q, kv_up, rope_table] = inputs else {
            panic!("absorbed queries: expected queries, kv_up and a rotary table")
        };
        let MlaHeads { heads, rope, .. } = self.heads;
        let batch = q.shape.sizes().first().copied().unwrap_or(1);
        let expected = Type::f32([batch, self.seq, heads * self.heads.head_dim()]);
        assert_eq!(*q, expected, "absorbed queries: queries");
        let expected = kv_up_type(&self.heads, self.latent);
        assert_eq!(*kv_up, expected, "absorbed queries: projection");
        check_rope_table(self.name(), *rope_table, self.seq, rope);
        vec![
            *q,
            Type::f32([batch, self.seq, heads * (self.latent + rope)]),
        ]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        let rows = inputs[0].shape.rows() * self.heads.heads;
        2 * (rows * self.heads.nope * self.latent) as u64
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let MlaHeads {
            heads, nope, rope, ..
        } = self.heads;
        let (kv_up, rope_table) = (io.read(1), io.read(2));
        let (q, absorbed) = (io.write(), io.write());
        let pairs = q
            .chunks_mut(nope + rope)
            .zip(absorbed.chunks_mut(self.latent + rope));
        for (index, (q, absorbed)) in pairs.enumerate() {
            let (position, h) = (index / heads % self.seq, index % heads);
            let (nope_part, rotary) = q.split_at_mut(nope);
            let rotated = rotated(rotary, &rope_table[position * rope..][..rope], 1.0);
            rotary.copy_from_slice(&rotated);
            let [keys, _] = rows_of_head(&self.heads, self.latent, kv_up, h);
            let (sum, rotary_part) = absorbed.split_at_mut(self.latent);
            sum.fill(0.0);
            for (x, row) in nope_part.iter().zip(keys.chunks(self.latent)) {
                for (sum, w) in sum.iter_mut().zip(row) {
                    *sum += x * w;
                }
            }
            rotary_part.copy_from_slice(&rotated);
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (kv_up, rope_table) = (io.read(1), io.read(2));
        let (q, absorbed) = (io.write(), io.write());
        latent::rotate_queries(&self.heads, q, rope_table);
        latent::absorb(&self.heads, self.latent, q, kv_up, absorbed);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let MlaHeads {
            heads, nope, rope, ..
        } = self.heads;
        let (kv_up, rope_table) = (io.read(1), io.read(2));
        let (q, absorbed) = (io.write(), io.write());
        let (width, absorbed_width) = (nope + rope, self.latent + rope);
        let rotated = Rotated {
            width,
            first: nope,
            channels: rope,
            rows_per_position: heads,
        };
        rotated.record(io, q, rope_table);
        let [from, to] = [
            Columns::new(q, width, nope),
            Columns::new(absorbed, absorbed_width, self.latent),
        ];
        io.copy_columns(from, to, rope, false);
        let rows = q.len() / (heads * width);
        for h in 0..heads {
            let blocks = [
                block(q, h * width, heads * width),
                self.keys_of_head(kv_up, h),
                block(absorbed, h * absorbed_width, heads * absorbed_width),
            ];
            multiply_blocks(io, [rows, self.latent, nope], blocks);
        }
        Ok(())
    }
}

/// Returns the part of a matrix from an element on.
fn block(elements: Elements, first: usize, stride: usize) -> Block {
    Block {
        elements,
        first,
        stride,
        is_transposed: false,
    }
}

impl AbsorbQueries {
    /// Returns the rows of the projection for the nope part of the keys of a head.
    fn keys_of_head(&self, kv_up: Elements, h: usize) -> Block {
        let rows = self.heads.nope + self.heads.value;
        block(kv_up, h * rows * self.latent, self.latent)
    }
}

/// Returns the sizes of attention to slots of this many elements: keys are whole rows of the cache, values their latents.
pub(super) fn latent_cache_attention(config: &LatentAttentionConfig, slot_elements: usize) -> CacheAttention {
    let LatentAttentionConfig {
        heads,
        latent,
        rope,
        ..
    } = *config;
    let columns = latent + rope;
    CacheAttention {
        capacity: slot_elements / columns,
        heads,
        kv_heads: 1,
        key_dim: columns,
        value_dim: latent,
        q_width: heads * columns,
        columns,
        first_value: 0,
        window: None,
        scale: config.scale,
        softcap: config.softcap,
    }
}

impl Operation for LatentAttention {
    fn name(&self) -> &'static str {
        "latent attention"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [queries, cache] = inputs else {
            panic!("latent attention: expected queries and a cache")
        };
        let LatentAttentionConfig {
            batch,
            seq,
            heads,
            latent,
            rope,
            ..
        } = self.0;
        let expected = Type::f32([batch, seq, heads * (latent + rope)]);
        assert_eq!(*queries, expected, "latent attention: queries");
        let &[_, capacity, _] = cache.shape.sizes() else {
            panic!(
                "latent attention: the cache is not (b, capacity, {})",
                latent + rope
            )
        };
        let expected = Type::f32([batch, capacity, latent + rope]);
        assert_eq!(*cache, expected, "latent attention: cache");
        assert!(
            seq <= capacity,
            "latent attention: {seq} positions, capacity {capacity}"
        );
        vec![Type::f32([batch, seq, heads * latent])]
    }

    fn scratch(&self, inputs: &[Type]) -> usize {
        let capacity = inputs[1].shape.sizes()[1];
        self.0.scratch_len(capacity)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let LatentAttentionConfig {
            batch,
            seq,
            heads,
            latent,
            rope,
            scale,
            softcap,
        } = self.0;
        let (q, cache, past) = (io.read(0), io.read(1), io.arguments().past);
        let capacity = cache.len() / (batch * (latent + rope));
        let pairs = q.chunks(latent + rope).zip(io.write().chunks_mut(latent));
        for (index, (q, ctx)) in pairs.enumerate() {
            let (sequence, i) = (index / heads / seq, index / heads % seq);
            let rows = cache.chunks(latent + rope);
            let visible_rows: Vec<&[f64]> = rows.skip(sequence * capacity).take(past + i + 1).collect();
            ctx.fill(0.0);
            for (weight, row) in attention_weights(q, &visible_rows, scale, softcap).iter().zip(&visible_rows) {
                for (ctx, x) in ctx.iter_mut().zip(&row[..latent]) {
                    *ctx += weight * x;
                }
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (q, cache, past) = (io.read(0), io.read(1), io.arguments().past);
        let (ctx, scratch) = (io.write(), io.write());
        attention::cached_latent(&self.0, q, cache, past, ctx, scratch);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (q, cache, ctx) = (io.read(0), io.read(1), io.write());
        let LatentAttentionConfig { batch, seq, .. } = self.0;
        let rows = CacheRows::of_sequences(io, batch * seq, seq);
        let layout = latent_cache_attention(&self.0, cache.len() / batch);
        rows.attend(io, [q, cache, ctx], layout)
    }
}

impl Operation for ProjectLatentContext {
    fn name(&self) -> &'static str {
        "expand context"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [ctx, kv_up] = inputs else {
            panic!("project latent context: expected the latent context and kv_up")
        };
        let MlaHeads { heads, value, .. } = self.heads;
        assert_eq!(
            ctx.shape.width(),
            heads * self.latent,
            "project latent context: latent context"
        );
        let expected = kv_up_type(&self.heads, self.latent);
        assert_eq!(*kv_up, expected, "project latent context: kv_up");
        vec![Type::f32(ctx.shape.with_width(heads * value))]
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        let rows = inputs[0].shape.rows() * self.heads.heads;
        2 * (rows * self.latent * self.heads.value) as u64
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let MlaHeads { heads, value, .. } = self.heads;
        let (ctx, kv_up, out) = (io.read(0), io.read(1), io.write());
        let pairs = ctx.chunks(self.latent).zip(out.chunks_mut(value));
        for (index, (ctx, out)) in pairs.enumerate() {
            let [_, rows] = rows_of_head(&self.heads, self.latent, kv_up, index % heads);
            for (out, row) in out.iter_mut().zip(rows.chunks(self.latent)) {
                *out = ctx.iter().zip(row).map(|(x, w)| x * w).sum();
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (ctx, kv_up, out) = (io.read(0), io.read(1), io.write());
        latent::project_values(&self.heads, self.latent, ctx, kv_up, out);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let MlaHeads {
            heads, nope, value, ..
        } = self.heads;
        let (ctx, kv_up, out) = (io.read(0), io.read(1), io.write());
        let rows = ctx.len() / (heads * self.latent);
        for h in 0..heads {
            let first = (h * (nope + value) + nope) * self.latent;
            let values = Block {
                is_transposed: true,
                ..block(kv_up, first, self.latent)
            };
            let blocks = [
                block(ctx, h * self.latent, heads * self.latent),
                values,
                block(out, h * value, heads * value),
            ];
            multiply_blocks(io, [rows, value, self.latent], blocks);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hybridnorm_kernels::qkv::rope_frequencies;

    use super::super::rope_table;
    use super::super::stateful::{Executors, Session, arguments_after, inputs};
    use super::super::testing::{TestInput, fixed_input, numbers};
    use super::super::{latent_heads, linear, rotate};
    use super::*;

    const CONFIGS: [(usize, MlaHeads); 3] = [
        (
            1,
            MlaHeads {
                heads: 1,
                nope: 1,
                rope: 2,
                value: 1,
            },
        ),
        (
            11,
            MlaHeads {
                heads: 3,
                nope: 5,
                rope: 4,
                value: 7,
            },
        ),
        (
            6,
            MlaHeads {
                heads: 4,
                nope: 9,
                rope: 6,
                value: 3,
            },
        ),
    ];

    fn config(batch: usize, seq: usize, latent: usize, heads: MlaHeads, softcap: Option<f32>) -> LatentAttentionConfig {
        LatentAttentionConfig {
            batch,
            seq,
            heads: heads.heads,
            latent,
            rope: heads.rope,
            scale: 0.5,
            softcap,
        }
    }

    #[test]
    fn queries_and_contexts_match_the_reference() {
        for (l, heads) in CONFIGS {
            let kv_up = kv_up_type(&heads, l);
            let state = [numbers(1, kv_up.elements())];
            let mut executors = Executors::new(&state);
            for (batch, past, new) in [(1, 0, 1), (2, 7, 1), (3, 5, 7), (1, 29, 1)] {
                let widths = [heads.heads * heads.head_dim(), heads.heads * l];
                let given = inputs(past as u64, widths.map(|width| [batch, new, width]));
                executors.run(arguments_after(past), &given, |g, state, x| {
                    let table = rope_table(g, &rope_frequencies(100.0, heads.rope), 1.0, new);
                    let kv_up = g.state(state[0], 0, kv_up);
                    let absorbed = absorbed_queries(x[0], kv_up, table, heads);
                    // Queries with another reader must be unchanged.
                    vec![absorbed, project_latent_context(x[1], kv_up, heads), x[0] * 2.0]
                });
            }
        }
    }

    #[test]
    fn attention_to_latents_matches_the_reference() {
        let capacity = 301;
        for (l, heads) in CONFIGS {
            for (batch, past, new, softcap) in [
                (1, 0, 1, None),
                (2, 150, 3, None),
                (2, 257, 4, Some(0.7)),
                (3, 10, 9, Some(2.0)),
                (1, 300, 1, None),
            ] {
                let (config, width) = (config(batch, new, l, heads, softcap), l + heads.rope);
                let mut executors = Executors::new(&[numbers(2, batch * capacity * width)]);
                let given = inputs(3, [[batch, new, heads.heads * width]]);
                executors.run(arguments_after(past), &given, |g, state, x| {
                    let cache = g.state(state[0], 0, Type::f32([batch, capacity, width]));
                    vec![latent_attention(x[0], cache, config)]
                });
            }
        }
    }

    /// Computes plain causal attention of packed rows of one sequence.
    fn causal(packed: &[f64], heads: &MlaHeads, config: &LatentAttentionConfig) -> Vec<f64> {
        let (d, h, value) = (heads.head_dim(), heads.heads, heads.value);
        let rows: Vec<&[f64]> = packed.chunks(h * (2 * d + value)).collect();
        let mut ctx = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            for head in 0..h {
                let q = &row[head * d..][..d];
                let logits = rows[..=i].iter().map(|row| {
                    let k = &row[(h + head) * d..][..d];
                    let u =
                        f64::from(config.scale) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                    config.softcap
                        .map_or(u, |cap| f64::from(cap) * (u / f64::from(cap)).tanh())
                });
                let exponentials: Vec<f64> = logits.map(f64::exp).collect();
                let total: f64 = exponentials.iter().sum();
                ctx.extend((0..value).map(|c| {
                    let values = rows.iter().map(|row| row[2 * h * d + head * value + c]);
                    exponentials
                        .iter()
                        .zip(values)
                        .map(|(e, v)| e * v)
                        .sum::<f64>()
                        / total
                }));
            }
        }
        ctx
    }

    /// Returns the context of each sequence and the cache, computed from assembled heads in one pass.
    fn assembled(
        kv_up: Type,
        projection_values: &[f64],
        given: &[TestInput; 3],
        whole: &LatentAttentionConfig,
        heads: &MlaHeads,
    ) -> (Vec<Vec<f64>>, Vec<f64>) {
        let mut session = Session::reference(&[projection_values.to_vec()]);
        let results = session.run(arguments_after(0), given, |g, state, x| {
            let table = rope_table(g, &rope_frequencies(100.0, heads.rope), 1.0, whole.seq);
            let kv = linear(x[1], g.state(state[0], 0, kv_up));
            vec![
                latent_heads(x[0], kv, x[2], table, *heads),
                rotate(x[2], table),
            ]
        });
        let [packed, rotated] = &results.outputs[..] else {
            panic!("packed rows and rotated keys")
        };
        let sequences = packed.chunks(packed.len() / whole.batch);
        let contexts = sequences.map(|x| causal(x, heads, whole)).collect();
        let rows = given[1].elements().chunks(whole.latent).zip(rotated.chunks(heads.rope));
        let cache = rows.flat_map(|(latent, key)| [latent, key].concat());
        (contexts, cache.collect())
    }

    #[test]
    fn absorbed_projections_give_the_attention_of_assembled_heads() {
        let (batch, len) = (2, 13);
        for ((l, heads), softcap) in CONFIGS.into_iter().zip([None, Some(0.8), None]) {
            let width = l + heads.rope;
            let kv_up = kv_up_type(&heads, l);
            let projection_values = numbers(4, kv_up.elements());
            let query_width = heads.heads * heads.head_dim();
            let given = inputs(5, [query_width, l, heads.rope].map(|w| [batch, len, w]));
            let whole = config(batch, len, l, heads, softcap);
            let (expected, cache) = assembled(kv_up, &projection_values, &given, &whole, &heads);
            let mut session = Session::reference(&[projection_values, cache]);
            let mut past = 0;
            for new in [5, 1, 3, 1, 3] {
                let newest = |x: &[f64], width: usize| x[past * width..][..new * width].to_vec();
                let queries = given[0].elements().chunks(len * query_width);
                let queries = queries.flat_map(|x| newest(x, query_width)).collect();
                let queries = [fixed_input([batch, new, query_width], queries)];
                let results = session.run(arguments_after(past), &queries, |g, state, x| {
                    let table = rope_table(g, &rope_frequencies(100.0, heads.rope), 1.0, new);
                    let kv_up = g.state(state[0], 0, kv_up);
                    let cache = g.state(state[1], 0, Type::f32([batch, len, width]));
                    let q = absorbed_queries(x[0], kv_up, table, heads);
                    let ctx = latent_attention(q, cache, config(batch, new, l, heads, softcap));
                    vec![project_latent_context(ctx, kv_up, heads)]
                });
                let value_width = heads.heads * heads.value;
                let expected = expected.iter().flat_map(|x| newest(x, value_width));
                let expected: Vec<f64> = expected.collect();
                assert_eq!(results.outputs[0].len(), expected.len());
                for (got, expected) in results.outputs[0].iter().zip(expected) {
                    assert!((got - expected).abs() < 1e-12, "got {got}, expected {expected}");
                }
                past += new;
            }
        }
    }
}
