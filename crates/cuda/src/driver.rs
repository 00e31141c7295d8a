//! Calls of a CUDA driver and its libraries.

use crate::command::ElementType;

/// A failure of a driver, or of a command.
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

/// Address in the memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub u64);

/// A kernel that a driver has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel(pub usize);

/// Calls that a driver has captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub usize);

/// Threads of a launch, in one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchShape {
    /// Number of blocks.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
}

/// A matrix product as BLAS states it: column-major, `C = op(A) op(B)` or `C += op(A) op(B)` for `op(A)` (m, k), `op(B)`
/// (k, n) and C (m, n), with sums in single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Inner dimension.
    pub k: usize,
    /// True if `op` transposes A, and B.
    pub transposed: [bool; 2],
    /// Elements from a column of A, B and C to the next.
    pub leading: [usize; 3],
    /// Type of the elements of A and B.
    pub operands: ElementType,
    /// Type of the elements of C.
    pub result: ElementType,
    /// True if the product is added to C.
    pub accumulate: bool,
}

/// Interface of a driver to [`Device`](crate::Device). Calls take effect in the order in which they are made; those that
/// do not return data may return before they do.
pub trait Driver: Send {
    /// Allocates memory with any contents, aligned to 256 bytes.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or if the driver fails.
    fn allocate(&mut self, bytes: usize) -> Result<Address, DeviceError>;

    /// Frees memory, after all calls before.
    ///
    /// # Errors
    /// If the driver fails.
    fn free(&mut self, address: Address) -> Result<(), DeviceError>;

    /// Copies bytes of the host, which may change after the call.
    ///
    /// # Errors
    /// If the driver fails.
    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Copies bytes to the host, after all calls before.
    ///
    /// # Errors
    /// If the driver fails, or a call before has failed.
    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies bytes.
    ///
    /// # Errors
    /// If the driver fails.
    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError>;

    /// Fills memory with copies of a 32-bit pattern.
    ///
    /// # Errors
    /// If the driver fails.
    fn fill(&mut self, to: Address, pattern: u32, copies: usize) -> Result<(), DeviceError>;

    /// Loads the kernel with this name. Not while calls are captured.
    ///
    /// # Errors
    /// If there is none, or it cannot be compiled.
    fn load(&mut self, name: &'static str) -> Result<Kernel, DeviceError>;

    /// Runs a kernel with a struct of arguments.
    ///
    /// # Errors
    /// If the driver fails, or rejects the shape.
    fn launch(
        &mut self,
        kernel: Kernel,
        shape: LaunchShape,
        arguments: &[u8],
    ) -> Result<(), DeviceError>;

    /// Prepares a matrix product, of operands at these addresses: chooses how to compute it. Not while calls are captured.
    ///
    /// # Errors
    /// If it cannot be computed.
    fn prepare(&mut self, product: &Product, operands: [Address; 3]) -> Result<(), DeviceError>;

    /// Computes a matrix product that was prepared, with operands A, B and C.
    ///
    /// # Errors
    /// If the driver fails.
    fn multiply(&mut self, product: &Product, operands: [Address; 3]) -> Result<(), DeviceError>;

    /// Captures the calls from now on, instead of making them: copies, fills, launches and matrix products.
    ///
    /// # Errors
    /// If the driver fails.
    fn begin_capture(&mut self) -> Result<(), DeviceError>;

    /// Ends capturing.
    ///
    /// # Errors
    /// If the driver fails.
    fn end_capture(&mut self) -> Result<Graph, DeviceError>;

    /// Makes the calls of a graph.
    ///
    /// # Errors
    /// If the driver fails.
    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError>;

    /// Drops a graph.
    fn forget(&mut self, graph: Graph);

    /// Waits until all calls have taken effect.
    ///
    /// # Errors
    /// If one of them has failed.
    fn synchronize(&self) -> Result<(), DeviceError>;
}
