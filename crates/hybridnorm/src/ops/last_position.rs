//! Last position of every sequence: the input of the output head in decoding, or of a classifier.

use hybridnorm_kernels::floats::{Floats, FloatsMut};

use super::device::Columns;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// The last row of every `seq` rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LastPosition {
    seq: usize,
    width: usize,
}

/// Gradient of x from that of [`LastPosition`]'s output: zero at all other positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LastPositionGrad(LastPosition);

/// Selects the last position of every sequence: (b, t, d) to (b, 1, d); returns x itself if t is 1.
///
/// # Panics
/// If x has another rank or no positions.
pub fn last_position(x_btd: Value<'_>) -> Value<'_> {
    let &[_, seq, width] = x_btd.shape().sizes() else {
        panic!("last position: x is not (b, t, d), but {:?}", x_btd.shape())
    };
    assert!(seq > 0, "last position: there are no positions");
    if seq == 1 {
        return x_btd;
    }
    let [last] = x_btd.builder().op(LastPosition { seq, width }, &[x_btd]);
    last
}

impl LastPosition {
    /// Returns the op for values of a type, and the type of its output; `None` if the type is not (b, t, d) with more
    /// than one position.
    pub(crate) fn of(ty: Type) -> Option<(Self, Type)> {
        match ty.shape.sizes() {
            &[batch, seq, width] if seq > 1 => {
                Some((Self { seq, width }, Type::f32([batch, 1, width])))
            }
            _ => None,
        }
    }

    /// Returns the types of x and of its last position.
    fn types(&self, batch: usize) -> [Type; 2] {
        [self.seq, 1].map(|seq| Type::f32([batch, seq, self.width]))
    }

    fn forward<T: Copy>(&self, x: &[T], last: &mut [T]) {
        let sequences = x.chunks_exact(self.seq * self.width);
        for (x, last) in sequences.zip(last.chunks_exact_mut(self.width)) {
            last.copy_from_slice(&x[x.len() - self.width..]);
        }
    }

    fn backward<T: Copy + Default>(&self, dlast: &[T], dx: &mut [T]) {
        let sequences = dx.chunks_exact_mut(self.seq * self.width);
        for (dx, dlast) in sequences.zip(dlast.chunks_exact(self.width)) {
            let (others, last) = dx.split_at_mut(dx.len() - self.width);
            others.fill(T::default());
            last.copy_from_slice(dlast);
        }
    }
}

impl Operation for LastPosition {
    fn name(&self) -> &'static str {
        "last position"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [x] = inputs else {
            panic!("last position: expected one value")
        };
        let batch = x.shape.sizes().first().copied().unwrap_or(1);
        let [x_type, last] = self.types(batch);
        assert_eq!(*x, x_type, "last position: x");
        vec![last]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let [dx] = at.graph().op(LastPositionGrad(*self), &[at.gradient()]);
        vec![Some(dx)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.forward(io.read(0), io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        match (io.floats(0), io.write_floats()) {
            (Floats::F32(x), FloatsMut::F32(last)) => self.forward(x, last),
            (Floats::Bf16(x), FloatsMut::Bf16(last)) => self.forward(x, last),
            _ => panic!("last position: types differ"),
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, last) = (io.read(0), io.write());
        let LastPosition { seq, width } = *self;
        let [from, to] = [Columns::new(x, seq * width, (seq - 1) * width), Columns::new(last, width, 0)];
        io.copy_columns(from, to, width, false);
        Ok(())
    }
}

impl Operation for LastPositionGrad {
    fn name(&self) -> &'static str {
        "last position, gradient"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let batch = inputs[0].shape.sizes().first().copied().unwrap_or(1);
        let [x_type, last] = self.0.types(batch);
        assert_eq!(inputs[0], last, "last position: gradient");
        vec![x_type]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.0.backward(io.read(0), io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        match (io.floats(0), io.write_floats()) {
            (Floats::F32(dlast), FloatsMut::F32(dx)) => self.0.backward(dlast, dx),
            (Floats::Bf16(dlast), FloatsMut::Bf16(dx)) => self.0.backward(dlast, dx),
            _ => panic!("last position, gradient: types differ"),
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (dlast, dx) = (io.read(0), io.write());
        let LastPosition { seq, width } = self.0;
        io.clear(dx);
        let [from, to] = [Columns::new(dlast, width, 0), Columns::new(dx, seq * width, (seq - 1) * width)];
        io.copy_columns(from, to, width, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, floats};
    use super::*;
    use crate::exec::{Cpu, Executor, TensorRef};
    use crate::graph::Builder;
    use crate::ops::Arguments;
    use crate::plan::{Options, Program};

    #[test]
    fn values_and_gradients() {
        for (b, t, d) in [(1, 1, 1), (3, 1, 5), (1, 7, 3), (5, 3, 7)] {
            check(&[floats(1, [b, t, d])], |_, x| last_position(x[0]));
            // Another reader, whose gradient is added.
            check(&[floats(1, [b, t, d])], |_, x| {
                last_position(x[0] + x[0]) + last_position(x[0])
            });
        }
    }

    #[test]
    fn the_last_of_three_positions() {
        let g = Builder::new();
        let x = g.input("x", Type::f32([2, 3, 2]));
        let last = last_position(x);
        assert_eq!(last.shape().sizes(), [2, 1, 2]);
        let id = last.id();
        let program = Program::new(g.finish(), &[id], Options::default());
        let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let mut cpu = Cpu::new();
        cpu.run(&program, Arguments::default(), &[("x", TensorRef::F32(&x))]).unwrap();
        assert_eq!(cpu.output(&program, id).into_f32(), [4.0, 5.0, 10.0, 11.0]);
    }
}
