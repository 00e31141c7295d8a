//! Devices that run commands.

use crate::command::{Command, Memory, Span};

/// A failure of a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// There is not enough memory for an allocation.
    #[error("the device has not enough memory for {bytes} bytes more")]
    OutOfMemory {
        /// Size of the allocation.
        bytes: usize,
    },
    /// A command failed.
    #[error("{command}: {problem}")]
    Command {
        /// Name of the kernel, or kind of command.
        command: &'static str,
        /// The problem.
        problem: String,
    },
}

/// Memory and commands of a device. Commands run in the order in which they are given.
pub trait Device: Send {
    /// Allocates memory, filled with zeros.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn allocate(&mut self, bytes: usize) -> Result<Memory, DeviceError>;

    /// Frees memory that was allocated and not freed.
    fn free(&mut self, memory: Memory);

    /// Copies bytes of the host to the start of a span.
    ///
    /// # Panics
    /// If the lengths differ.
    fn upload(&mut self, to: Span, bytes: &[u8]);

    /// Copies a span to the host, after all commands that were given before.
    fn download(&self, from: Span) -> Vec<u8>;

    /// Runs commands.
    ///
    /// # Errors
    /// If one fails, for example because a kernel has no such name.
    fn run(&mut self, commands: &[Command]) -> Result<(), DeviceError>;
}
