//! Operands of an op at run time.

/// Numbers that change from run to run of a program.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Arguments {
    /// Positions before the first of this run, held by the caches.
    pub past: usize,
    /// Learning rate.
    pub lr: f64,
    /// The optimizer step, counted from 1.
    pub step: u64,
}

/// Elements that are read.
#[derive(Debug, Clone, Copy)]
pub enum Read<'a, T> {
    /// Numbers.
    Float(&'a [T]),
    /// Numbers in double precision.
    Double(&'a [f64]),
    /// Integers.
    Int(&'a [i32]),
    /// Nothing to read: they are where the op writes.
    InPlace,
}

/// Elements that are written.
#[derive(Debug)]
pub enum Write<'a, T> {
    /// Numbers.
    Float(&'a mut [T]),
    /// Numbers in double precision.
    Double(&'a mut [f64]),
    /// Integers.
    Int(&'a mut [i32]),
}

/// The operands of one op. Lengths are those of the op's types.
#[derive(Debug)]
pub struct Io<'a, T> {
    reads: Vec<Read<'a, T>>,
    writes: std::vec::IntoIter<Write<'a, T>>,
    arguments: Arguments,
}

impl<'a, T> Io<'a, T> {
    /// The operands: inputs in order; outputs, updated inputs and scratch in this order.
    pub fn new(reads: Vec<Read<'a, T>>, writes: Vec<Write<'a, T>>, arguments: Arguments) -> Self {
        Self {
            reads,
            writes: writes.into_iter(),
            arguments,
        }
    }

    /// Numbers that change from run to run.
    pub fn arguments(&self) -> Arguments {
        self.arguments
    }

    /// Elements of an input.
    ///
    /// # Panics
    /// If it holds no numbers, or is updated in place.
    pub fn read(&self, index: usize) -> &'a [T] {
        match self.reads[index] {
            Read::Float(x) => x,
            _ => panic!("input {index} is not one of numbers to be read"),
        }
    }

    /// Integers of an input.
    ///
    /// # Panics
    /// If it holds none.
    pub fn ints(&self, index: usize) -> &'a [i32] {
        match self.reads[index] {
            Read::Int(x) => x,
            _ => panic!("input {index} is not one of integers"),
        }
    }

    /// Numbers in double precision of an input.
    ///
    /// # Panics
    /// If it holds none.
    pub fn doubles(&self, index: usize) -> &'a [f64] {
        match self.reads[index] {
            Read::Double(x) => x,
            _ => panic!("input {index} is not one in double precision"),
        }
    }

    /// The next of what is written: outputs, then updated inputs, then scratch.
    ///
    /// # Panics
    /// If there is no further one of numbers.
    pub fn write(&mut self) -> &'a mut [T] {
        match self.writes.next() {
            Some(Write::Float(y)) => y,
            _ => panic!("the next output is not one of numbers"),
        }
    }

    /// The next of what is written.
    ///
    /// # Panics
    /// If it holds no integers.
    pub fn write_ints(&mut self) -> &'a mut [i32] {
        match self.writes.next() {
            Some(Write::Int(y)) => y,
            _ => panic!("the next output is not one of integers"),
        }
    }

    /// The next of what is written.
    ///
    /// # Panics
    /// If it is not in double precision.
    pub fn write_doubles(&mut self) -> &'a mut [f64] {
        match self.writes.next() {
            Some(Write::Double(y)) => y,
            _ => panic!("the next output is not one in double precision"),
        }
    }
}
