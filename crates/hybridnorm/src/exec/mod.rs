//! Executors of programs.

mod cpu;
mod data;
mod profile;
mod reference;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::error::Result;
use crate::graph::{Buffer, DType, ValueId};
use crate::ops::Arguments;
use crate::plan::Program;

pub use cpu::Cpu;
pub use data::{Tensor, TensorRef};
pub use reference::Reference;

/// Executor of programs, with the state that outlives a run: parameters, moments, caches.
pub trait Executor: Send {
    /// Allocates a buffer of zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if there is not enough memory.
    fn allocate(&mut self, dtype: DType, elements: usize) -> Result<Buffer>;

    /// Frees the memory of a buffer; programs that read it must not be run afterwards.
    fn free(&mut self, buffer: Buffer);

    /// Overwrites elements of a buffer from `offset` on.
    ///
    /// # Panics
    /// If their type differs or they exceed the buffer.
    fn write(&mut self, buffer: Buffer, offset: usize, data: TensorRef<'_>);

    /// Copies elements of a buffer to the host.
    fn read(&self, buffer: Buffer, elements: Range<usize>) -> Tensor;

    /// Allocates the memory that runs of a program need, so that later runs cannot run out of memory. Outputs of
    /// the last program run are lost.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if there is not enough memory.
    fn prepare(&mut self, program: &Program) -> Result<()>;

    /// Runs a program with its inputs, by name.
    ///
    /// # Errors
    /// As [`Executor::prepare`].
    ///
    /// # Panics
    /// If an input is missing, or has another type or length.
    fn run(
        &mut self,
        program: &Program,
        arguments: Arguments,
        inputs: &[(&str, TensorRef<'_>)],
    ) -> Result<()>;

    /// Copies an output of the last program run to the host.
    fn output(&self, program: &Program, output: ValueId) -> Tensor;

    /// Starts to measure the wall time of ops, from zero.
    fn start_profile(&mut self);

    /// Ends the measurement; returns the wall time by [name](crate::ops::Operation::name) of the op.
    fn take_profile(&mut self) -> BTreeMap<&'static str, Duration>;
}
