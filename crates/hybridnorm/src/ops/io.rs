//! Operands of an op at run time.

use std::ops::Range;

use half::bf16;
use hybridnorm_kernels::floats::{Floats, FloatsMut};

/// Run-time arguments of a program.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Arguments {
    /// Number of cached positions, which precede those of this run (the length of `past_key_values` in transformers).
    pub past: usize,
    /// Learning rate.
    pub lr: f64,
    /// Optimizer step, counted from 1.
    pub step: u64,
}

/// Elements that are read, by type.
#[derive(Debug, Clone, Copy)]
pub enum InputOperand<'a, T> {
    /// Elements of the executor's precision.
    Float(&'a [T]),
    /// Elements in bfloat16.
    Bf16(&'a [bf16]),
    /// Elements in double precision.
    Double(&'a [f64]),
    /// Integers.
    Int(&'a [i32]),
    /// Not readable: the op updates them in place.
    InPlace,
}

/// Elements that are written, by type.
#[derive(Debug)]
pub enum OutputOperand<'a, T> {
    /// Elements of the executor's precision.
    Float(&'a mut [T]),
    /// Elements in bfloat16.
    Bf16(&'a mut [bf16]),
    /// Elements in double precision.
    Double(&'a mut [f64]),
    /// Integers.
    Int(&'a mut [i32]),
}

impl<T> InputOperand<'_, T> {
    /// Returns the number of floating-point elements.
    ///
    /// # Panics
    /// If it is not of the executor's precision or bfloat16.
    pub fn floats_len(&self) -> usize {
        match self {
            Self::Float(x) => x.len(),
            Self::Bf16(x) => x.len(),
            _ => panic!("{NO_FLOATS}"),
        }
    }

    /// Returns a part of the floating-point elements.
    ///
    /// # Panics
    /// If it is not of the executor's precision or bfloat16.
    pub fn floats_slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::Float(x) => Self::Float(&x[range]),
            Self::Bf16(x) => Self::Bf16(&x[range]),
            _ => panic!("{NO_FLOATS}"),
        }
    }
}

impl<'a, T> OutputOperand<'a, T> {
    /// Splits floating-point elements into parts of these lengths.
    ///
    /// # Panics
    /// If it is not of the executor's precision or bfloat16, or has fewer elements.
    pub fn split_floats(self, lengths: impl Iterator<Item = usize>) -> Vec<Self> {
        fn parts<E>(mut rest: &mut [E], lengths: impl Iterator<Item = usize>) -> Vec<&mut [E]> {
            let part = |len| rest.split_off_mut(..len).expect("enough elements");
            lengths.map(part).collect()
        }
        match self {
            Self::Float(y) => parts(y, lengths).into_iter().map(Self::Float).collect(),
            Self::Bf16(y) => parts(y, lengths).into_iter().map(Self::Bf16).collect(),
            _ => panic!("{NO_FLOATS}"),
        }
    }
}

const NO_FLOATS: &str = "an operand is not of the executor's precision or bfloat16";

/// Operands of one op. Lengths are those of the op's types.
#[derive(Debug)]
pub struct Operands<'a, T> {
    reads: Vec<InputOperand<'a, T>>,
    writes: std::vec::IntoIter<OutputOperand<'a, T>>,
    arguments: Arguments,
}

impl<'a, T> Operands<'a, T> {
    /// Creates the operands: inputs in order; outputs, updated inputs and scratch in this order.
    pub fn new(
        reads: Vec<InputOperand<'a, T>>,
        writes: Vec<OutputOperand<'a, T>>,
        arguments: Arguments,
    ) -> Self {
        Self {
            reads,
            writes: writes.into_iter(),
            arguments,
        }
    }

    /// Returns the run-time arguments.
    pub fn arguments(&self) -> Arguments {
        self.arguments
    }

    /// Returns an input.
    pub fn input(&self, index: usize) -> &InputOperand<'a, T> {
        &self.reads[index]
    }

    /// Returns the next operand to be written.
    ///
    /// # Panics
    /// If there is none.
    pub fn next_output(&mut self) -> OutputOperand<'a, T> {
        self.writes.next().expect("an operand to be written")
    }

    /// Returns the elements of an input.
    ///
    /// # Panics
    /// If it is not of floating-point type, or is updated in place.
    pub fn read(&self, index: usize) -> &'a [T] {
        match self.reads[index] {
            InputOperand::Float(x) => x,
            _ => panic!("input {index} is not a readable float operand"),
        }
    }

    /// Returns the integers of an input.
    ///
    /// # Panics
    /// If it is not of integer type.
    pub fn ints(&self, index: usize) -> &'a [i32] {
        match self.reads[index] {
            InputOperand::Int(x) => x,
            _ => panic!("input {index} is not an integer operand"),
        }
    }

    /// Returns the double-precision elements of an input.
    ///
    /// # Panics
    /// If it is not in double precision.
    pub fn doubles(&self, index: usize) -> &'a [f64] {
        match self.reads[index] {
            InputOperand::Double(x) => x,
            _ => panic!("input {index} is not a double-precision operand"),
        }
    }

    /// Returns the next operand to be written: outputs, then updated inputs, then scratch.
    ///
    /// # Panics
    /// If there is none, or it is not of floating-point type.
    pub fn write(&mut self) -> &'a mut [T] {
        match self.writes.next() {
            Some(OutputOperand::Float(y)) => y,
            _ => panic!("the next output is not a float operand"),
        }
    }

    /// Returns the next operand to be written.
    ///
    /// # Panics
    /// If it is not of integer type.
    pub fn write_ints(&mut self) -> &'a mut [i32] {
        match self.writes.next() {
            Some(OutputOperand::Int(y)) => y,
            _ => panic!("the next output is not an integer operand"),
        }
    }

    /// Returns the next operand to be written.
    ///
    /// # Panics
    /// If it is not in double precision.
    pub fn write_doubles(&mut self) -> &'a mut [f64] {
        match self.writes.next() {
            Some(OutputOperand::Double(y)) => y,
            _ => panic!("the next output is not a double-precision operand"),
        }
    }
}

impl<'a> Operands<'a, f32> {
    /// Returns the elements of an input in single precision or bfloat16.
    ///
    /// # Panics
    /// If it is of another type, or is updated in place.
    pub fn floats(&self, index: usize) -> Floats<'a> {
        match self.reads[index] {
            InputOperand::Float(x) => Floats::F32(x),
            InputOperand::Bf16(x) => Floats::Bf16(x),
            _ => panic!("input {index} is not a readable float operand"),
        }
    }

    /// Returns the next operand to be written.
    ///
    /// # Panics
    /// If there is none, or it is not in bfloat16.
    pub fn write_bf16(&mut self) -> &'a mut [bf16] {
        match self.writes.next() {
            Some(OutputOperand::Bf16(y)) => y,
            _ => panic!("the next output is not a bfloat16 operand"),
        }
    }

    /// Returns the next operand to be written, in single precision or bfloat16.
    ///
    /// # Panics
    /// If there is none, or it is of another type.
    pub fn write_floats(&mut self) -> FloatsMut<'a> {
        match self.writes.next() {
            Some(OutputOperand::Float(y)) => FloatsMut::F32(y),
            Some(OutputOperand::Bf16(y)) => FloatsMut::Bf16(y),
            _ => panic!("the next output is not a float operand"),
        }
    }
}
