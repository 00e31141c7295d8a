//! Rotary embedding of the shared key of latent attention, as its cache stores it.
//!
//! Shape suffix: r rotated channels.

use hybridnorm_kernels::latent;

use super::device::Rotated;
use super::{DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Keys rotated by the angles of their positions. Inference-only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotate {
    seq: usize,
    channels: usize,
}

/// Rotates keys (b, t, r) by their positions; `rope_table` (t, r) contains the cosines, then the sines, of r/2
/// angles each. Not differentiable.
///
/// # Panics
/// If the shapes do not match, r is odd, or the table does not have t positions.
pub fn rotate<'g>(keys_btr: Value<'g>, rope_table: Value<'g>) -> Value<'g> {
    let &[_, seq, channels] = keys_btr.shape().sizes() else {
        panic!(
            "rotate: the keys are not (b, t, r), but {:?}",
            keys_btr.shape()
        )
    };
    let op = Rotate { seq, channels };
    let [rotated] = keys_btr.builder().op(op, &[keys_btr, rope_table]);
    rotated
}

impl Operation for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [keys, rope_table] = inputs else {
            panic!("rotate: expected keys and a rotary table")
        };
        let &[batch, ..] = keys.shape.sizes() else {
            panic!("rotate: the keys are not (b, t, r)")
        };
        let expected = Type::f32([batch, self.seq, self.channels]);
        assert_eq!(*keys, expected, "rotate: keys");
        check_rope_table(self.name(), *rope_table, self.seq, self.channels);
        vec![*keys]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let rope_table = io.read(1);
        let keys = io.write().chunks_mut(self.channels);
        for (key, rotation) in keys.zip(rope_table.chunks(self.channels).cycle()) {
            let rotated = rotated(key, rotation, 1.0);
            key.copy_from_slice(&rotated);
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let rope_table = io.read(1);
        latent::rotate_keys(io.write(), self.channels, rope_table);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (keys, rope_table) = (io.write(), io.read(1));
        let rotated = Rotated {
            width: self.channels,
            first: 0,
            channels: self.channels,
            rows_per_position: 1,
        };
        rotated.record(io, keys, rope_table);
        Ok(())
    }
}

/// Checks the type of the rotary table of an op on `seq` positions.
pub(super) fn check_rope_table(op: &str, rope_table: Type, seq: usize, channels: usize) {
    assert!(
        channels > 0 && channels.is_multiple_of(2),
        "{op}: the number of rotated channels, {channels}, must be even and at least 2"
    );
    let expected = Type::f32([seq, channels]);
    assert_eq!(rope_table, expected, "{op}: rotary table");
}

/// Rotates one row: channels i and r/2 + i are a point of the plane, rotated by the angle whose cosine and sine
/// are these channels of `rotation`; inversely for a `sign` of -1.
pub(super) fn rotated(x: &[f64], rotation: &[f64], sign: f64) -> Vec<f64> {
    let half = x.len() / 2;
    let mut y = vec![0.0; x.len()];
    for i in 0..half {
        let (cos, sin) = (rotation[i], sign * rotation[half + i]);
        y[i] = cos * x[i] - sin * x[half + i];
        y[half + i] = sin * x[i] + cos * x[half + i];
    }
    y
}

#[cfg(test)]
mod tests {
    use hybridnorm_kernels::qkv::rope_frequencies;

    use super::super::rope_table;
    use super::super::stateful::{Executors, arguments_after};
    use super::super::testing::floats;
    use super::*;

    #[test]
    fn keys_are_rotated_by_their_positions() {
        for (b, t, r) in [(1, 1, 2), (3, 5, 6), (2, 7, 10)] {
            let mut executors = Executors::new(&[]);
            for past in [0, 1, 13] {
                let keys = floats(1, [b, t, r]);
                executors.run(arguments_after(past), &[keys], |g, _, x| {
                    let table = rope_table(g, &rope_frequencies(100.0, r), 1.0, t);
                    let rotated = rotate(x[0], table);
                    // Other readers of the keys must see them unchanged.
                    vec![rotated, x[0] * 0.5]
                });
            }
        }
    }

    #[test]
    fn rotation_by_a_quarter_turn() {
        assert_eq!(
            rotated(&[1.0, 2.0, 3.0, 4.0], &[0.0, 1.0, 1.0, 0.0], 1.0),
            [-3.0, 2.0, 1.0, 4.0]
        );
        assert_eq!(
            rotated(&[1.0, 2.0, 3.0, 4.0], &[0.0, 1.0, 1.0, 0.0], -1.0),
            [3.0, 2.0, -1.0, 4.0]
        );
    }

    #[test]
    #[should_panic(expected = "rotate: rotary table")]
    fn rope_table_of_wrong_length_is_rejected() {
        let keys = floats(1, [1, 5, 2]);
        Executors::new(&[]).run(arguments_after(4), &[keys], |g, _, x| vec![rotate(x[0], rope_table(g, &rope_frequencies(100.0, 2), 1.0, 4))]);
    }
}
