//! Executors of programs.

mod cpu;
mod data;
mod device;
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
pub use device::OnDevice;
#[cfg(feature = "cuda")]
pub use hybridnorm_cuda::{CardInfo, cards};
pub use reference::Reference;

/// Executor of programs, with the state that outlives a run: parameters, moments, caches.
///
/// ```
/// use hybridnorm::exec::{Cpu, Executor, TensorRef};
/// use hybridnorm::graph::{Builder, DType, Type};
/// use hybridnorm::ops::Arguments;
/// use hybridnorm::plan::{Options, Program};
///
/// // Returns the sum of a buffer and an input.
/// fn sum(executor: &mut dyn Executor) -> hybridnorm::Result<Vec<f32>> {
///     let buffer = executor.allocate(DType::F32, 3)?;
///     executor.write(buffer, 0, TensorRef::F32(&[1.0, 2.0, 3.0]));
///     let g = Builder::new();
///     let y = (g.state(buffer, 0, Type::f32([3])) + g.input("x", Type::f32([3]))).id();
///     let program = Program::new(g.finish(), &[y], Options::default());
///     executor.run(&program, Arguments::default(), &[("x", TensorRef::F32(&[10.0, 20.0, 30.0]))])?;
///     Ok(executor.output(&program, y).into_f32())
/// }
///
/// assert_eq!(sum(&mut Cpu::new())?, [11.0, 22.0, 33.0]);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub trait Executor: Send {
    /// Allocates a buffer of zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if there is not enough memory.
    fn allocate(&mut self, dtype: DType, elements: usize) -> Result<Buffer>;

    /// Frees the memory of a buffer; programs that read it must not be run afterwards.
    fn free(&mut self, buffer: Buffer);

    /// Overwrites elements of a buffer from `offset` on. Double precision is rounded to single, and single precision to
    /// bfloat16, if that is the type of the buffer.
    ///
    /// # Panics
    /// If their type differs otherwise, or they exceed the buffer.
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

    /// Starts profiling: resets and then measures the wall time of each op.
    fn start_profile(&mut self);

    /// Ends profiling; returns the wall time by [name](crate::ops::Operation::name) of the op.
    fn take_profile(&mut self) -> BTreeMap<&'static str, Duration>;
}
