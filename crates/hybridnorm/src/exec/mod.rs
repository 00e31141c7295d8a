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
pub use data::{Data, Tensor};
pub use reference::Reference;

/// Runs programs, and holds the state that outlives a run: parameters, moments, caches.
pub trait Executor: Send {
    /// Makes a buffer of zeros.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if there is not as much memory.
    fn allocate(&mut self, dtype: DType, elements: usize) -> Result<Buffer>;

    /// Gives the memory of a buffer back; programs that read it must not run any more.
    fn free(&mut self, buffer: Buffer);

    /// Overwrites elements of a buffer from `offset` on.
    ///
    /// # Panics
    /// If they are of another type or there are not as many.
    fn write(&mut self, buffer: Buffer, offset: usize, data: Data<'_>);

    /// Copies elements of a buffer to the host.
    fn read(&self, buffer: Buffer, elements: Range<usize>) -> Tensor;

    /// Takes the memory that runs of a program need, so that no later one can be refused. Outputs of the
    /// program that ran last are lost.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if there is not as much memory.
    fn prepare(&mut self, program: &Program) -> Result<()>;

    /// Runs a program with the inputs that it asks for, by name.
    ///
    /// # Errors
    /// As [`Executor::prepare`].
    ///
    /// # Panics
    /// If an input is missing, or of another type or length.
    fn run(
        &mut self,
        program: &Program,
        arguments: Arguments,
        inputs: &[(&str, Data<'_>)],
    ) -> Result<()>;

    /// Copies an output of the program that ran last to the host.
    fn output(&self, program: &Program, output: ValueId) -> Tensor;

    /// Starts to measure the wall time of ops, from nothing.
    fn start_profile(&mut self);

    /// Ends that; returns the wall time by [name](crate::ops::Operation::name) of the op.
    fn take_profile(&mut self) -> BTreeMap<&'static str, Duration>;
}
