//! Queries, keys and values of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), whose heads
//! have two parts: channels without rotary embedding (nope) and rotary channels.
//!
//! Shape suffix: r rotated channels.

use hybridnorm_cuda::{self as cuda, Elements};
use hybridnorm_kernels::latent::{self, MlaHeads};

use super::device::Grid;
use super::rotate::{check_rope_table, rotated};
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Packed rows `[q heads | k heads | v heads]`; see [`latent_heads`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentHeads {
    heads: MlaHeads,
    seq: usize,
}

/// Gradients of queries, keys' nope part and values, and the shared key from that of [`LatentHeads`]'
/// output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentHeadsGrad(LatentHeads);

/// Assembles packed `[q heads | k heads | v heads]`, (b, t, h·(2·(nope + r) + value)), with the last r channels
/// of every query and key rotated by the position.
///
/// `q` is (b, t, h·(nope + r)), heads of `[nope | rotary]` before rotation; `kv` is (b, t, h·(nope + value)),
/// heads of `[nope part of the key | value]`; `key_btr` is the rotary part of the keys, shared by all heads;
/// `rope_table` is (t, r) and has no gradient.
///
/// # Panics
/// If the shapes do not match, or r is odd.
pub fn latent_heads<'g>(
    q: Value<'g>,
    kv: Value<'g>,
    key_btr: Value<'g>,
    rope_table: Value<'g>,
    heads: MlaHeads,
) -> Value<'g> {
    let &[_, seq, _] = q.shape().sizes() else {
        panic!(
            "latent heads: the queries are not (b, t, ..), but {:?}",
            q.shape()
        )
    };
    let inputs = [q, kv, key_btr, rope_table];
    let [packed] = q.builder().op(LatentHeads { heads, seq }, &inputs);
    packed
}

impl LatentHeads {
    /// Returns the types of queries, keys' nope part and values, shared key, and packed output.
    fn types(&self, batch: usize) -> [Type; 4] {
        let widths = self.heads.widths();
        widths.map(|width| Type::f32([batch, self.seq, width]))
    }
}

/// Returns `LatentHeads` of the kernels: queries, keys' nope part and values, shared key, rotary table, and packed rows.
fn device_arguments(op: &LatentHeads, operands: [Elements; 5]) -> cuda::Arguments {
    let MlaHeads { heads, nope, rope, value } = op.heads;
    let all = operands.iter().fold(cuda::Arguments::default(), |all, x| all.address(x.span));
    let tokens = operands[2].len() / rope;
    all.long(tokens as i64)
        .count(op.seq)
        .count(heads)
        .count(nope)
        .count(rope)
        .count(value)
}

impl Operation for LatentHeads {
    fn name(&self) -> &'static str {
        "latent heads"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [q, kv, key, rope_table] = inputs else {
            panic!(
                "latent heads: expected queries, keys and values, the shared key and a rotary table"
            )
        };
        let batch = q.shape.sizes().first().copied().unwrap_or(1);
        let [q_type, kv_type, key_type, packed] = self.types(batch);
        assert_eq!(*q, q_type, "latent heads: queries");
        assert_eq!(*kv, kv_type, "latent heads: nope part of keys, and values");
        assert_eq!(*key, key_type, "latent heads: shared key");
        check_rope_table(self.name(), *rope_table, self.seq, self.heads.rope);
        vec![packed]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let inputs = [at.gradient(), at.input(3)];
        let [dq, dkv, dkey] = at.graph().op(LatentHeadsGrad(*self), &inputs);
        vec![Some(dq), Some(dkv), Some(dkey), None]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let MlaHeads {
            heads,
            nope,
            rope,
            value,
        } = self.heads;
        let (d, e) = (nope + rope, nope + value);
        let (q, kv, key) = (io.read(0), io.read(1), io.read(2));
        let rope_table = io.read(3);
        let packed = io.write().chunks_mut(heads * (2 * d + value));
        for (i, packed) in packed.enumerate() {
            let rotation = &rope_table[i % self.seq * rope..][..rope];
            let rotated_key = rotated(&key[i * rope..][..rope], rotation, 1.0);
            let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
            for h in 0..heads {
                let (nope_part, rotary) = q[(i * heads + h) * d..][..d].split_at(nope);
                queries.extend(nope_part);
                queries.extend(rotated(rotary, rotation, 1.0));
                let (nope_part, value_part) = kv[(i * heads + h) * e..][..e].split_at(nope);
                keys.extend(nope_part);
                keys.extend(&rotated_key);
                values.extend(value_part);
            }
            packed.copy_from_slice(&[queries, keys, values].concat());
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (q, kv, key) = (io.read(0), io.read(1), io.read(2));
        let rope_table = io.read(3);
        latent::assemble(&self.heads, q, kv, key, rope_table, io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let packed = io.write();
        let operands = [io.read(0), io.read(1), io.read(2), io.read(3), packed];
        io.launch("latent_heads", Grid::elements(packed.len()), device_arguments(self, operands));
        Ok(())
    }
}

impl Operation for LatentHeadsGrad {
    fn name(&self) -> &'static str {
        "latent heads, gradients"
    }

    /// Reads the gradient of the packed rows and the rotary table.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let batch = inputs[0].shape.sizes().first().copied().unwrap_or(1);
        let [q_type, kv_type, key_type, packed] = self.0.types(batch);
        assert_eq!(inputs[0], packed, "latent heads: gradient");
        vec![q_type, kv_type, key_type]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let MlaHeads {
            heads,
            nope,
            rope,
            value,
        } = self.0.heads;
        let (d, e) = (nope + rope, nope + value);
        let dpacked = io.read(0).chunks(heads * (2 * d + value));
        let rope_table = io.read(1);
        let (dq, dkv, dkey) = (io.write(), io.write(), io.write());
        for (i, dpacked) in dpacked.enumerate() {
            let rotation = &rope_table[i % self.0.seq * rope..][..rope];
            let (queries, rest) = dpacked.split_at(heads * d);
            let (keys, values) = rest.split_at(heads * d);
            let mut drotated_key = vec![0.0; rope];
            for h in 0..heads {
                let (nope_part, rotary) = queries[h * d..][..d].split_at(nope);
                let dq = &mut dq[(i * heads + h) * d..][..d];
                dq[..nope].copy_from_slice(nope_part);
                dq[nope..].copy_from_slice(&rotated(rotary, rotation, -1.0));
                let (nope_part, rotary) = keys[h * d..][..d].split_at(nope);
                let dkv = &mut dkv[(i * heads + h) * e..][..e];
                dkv[..nope].copy_from_slice(nope_part);
                dkv[nope..].copy_from_slice(&values[h * value..][..value]);
                for (sum, dk) in drotated_key.iter_mut().zip(rotary) {
                    *sum += dk;
                }
            }
            let dkey = &mut dkey[i * rope..][..rope];
            dkey.copy_from_slice(&rotated(&drotated_key, rotation, -1.0));
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let rope_table = io.read(1);
        let (dpacked, dq, dkv, dkey) = (io.read(0), io.write(), io.write(), io.write());
        latent::assemble_backward(&self.0.heads, dpacked, rope_table, dq, dkv, dkey);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let [dq, dkv, dkey] = [(); 3].map(|()| io.write());
        let operands = [dq, dkv, dkey, io.read(1), io.read(0)];
        let grid = Grid::elements(dq.len() + dkv.len() + dkey.len());
        io.launch("latent_head_gradients", grid, device_arguments(&self.0, operands));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fill;
    use hybridnorm_kernels::qkv::rope_frequencies;

    use super::super::rope_table;
    use super::super::stateful::{Executors, arguments_after, inputs};
    use super::super::testing::{check, floats, mapped_floats};
    use super::*;
    use crate::passes::vector_jacobian_product;

    const CONFIGS: [(usize, usize, MlaHeads); 3] = [
        (
            1,
            1,
            MlaHeads {
                heads: 1,
                nope: 1,
                rope: 2,
                value: 1,
            },
        ),
        (
            2,
            5,
            MlaHeads {
                heads: 3,
                nope: 5,
                rope: 4,
                value: 7,
            },
        ),
        (
            3,
            7,
            MlaHeads {
                heads: 2,
                nope: 9,
                rope: 6,
                value: 3,
            },
        ),
    ];

    #[test]
    fn values_and_gradients() {
        for (b, t, heads) in CONFIGS {
            let [q, kv, key, _] = heads.widths();
            let given = [
                floats(1, [b, t, q]),
                floats(2, [b, t, kv]),
                floats(3, [b, t, key]),
            ];
            check(&given, |g, x| {
                // A constant, since the rotary table has no gradient.
                let rope_table = fill(g, 0.75, Type::f32([t, heads.rope]));
                latent_heads(x[0], x[1], x[2], rope_table, heads)
            });
        }
    }

    #[test]
    fn rotations_are_those_of_the_positions() {
        for (b, t, heads) in CONFIGS {
            let mut executors = Executors::new(&[]);
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            for past in [0, 4, 13] {
                let shapes = heads.widths().map(|width| [b, t, width]);
                // One part at a time, the others zero: the packed rows are linear in each.
                for part in 0..3 {
                    let mut given = inputs(past as u64, shapes);
                    for other in (0..3).filter(|other| *other != part) {
                        given[other] = mapped_floats(0, shapes[other], |_| 0.0);
                    }
                    let results = executors.run(arguments_after(past), &given, |g, _, x| {
                        let table = rope_table(g, &rope_frequencies(100.0, heads.rope), 1.0, t);
                        let packed = latent_heads(x[0], x[1], x[2], table, heads);
                        let sources = [x[0], x[1], x[2], table];
                        let gradients = vector_jacobian_product(packed, x[3], &sources);
                        assert!(gradients[3].is_none(), "the rotary table has no gradient");
                        [packed]
                            .into_iter()
                            .chain(gradients.into_iter().flatten())
                            .collect()
                    });
                    let found = &results.reference.outputs;
                    let forward = dot(&found[0], given[3].elements());
                    let backward = dot(&found[1 + part], given[part].elements());
                    assert!(
                        (forward - backward).abs() < 1e-12,
                        "{forward}, transposed {backward}"
                    );
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "latent heads: shared key")]
    fn wrong_width_of_the_shared_key_is_rejected() {
        let heads = CONFIGS[1].2;
        let [q, kv, key, _] = heads.widths();
        let given = [
            floats(1, [1, 2, q]),
            floats(2, [1, 2, kv]),
            floats(3, [1, 2, key + 1]),
        ];
        check(&given, |g, x| {
            let rope_table = fill(g, 1.0, Type::f32([2, heads.rope]));
            latent_heads(x[0], x[1], x[2], rope_table, heads)
        });
    }
}
