//! A device: memory, and commands that become calls of a driver.

use std::collections::HashMap;

use crate::command::{Command, Copy, Fill, Launch, Matmul, Memory, Span};
use crate::driver::{Address, DeviceError, Driver, Graph, Kernel, LaunchShape, Product};

/// Memory and commands of a device. Commands run in the order in which they are given.
///
/// Commands of a program that runs many times are [recorded](Device::record): they become one graph, which the driver
/// starts with one call.
#[derive(Debug)]
pub struct Device<D> {
    driver: D,
    allocations: Vec<Option<Allocation>>,
    kernels: HashMap<&'static str, Kernel>,
}

#[derive(Debug, Clone, Copy)]
struct Allocation {
    address: Address,
    bytes: usize,
}

/// Commands that a device has recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recording(Graph);

/// A command with addresses.
enum Call {
    Launch(Kernel, LaunchShape, Vec<u8>),
    Multiply(Product, [Address; 3]),
    Copy(Address, Address, usize),
    Fill(Address, u32, usize),
}

impl<D: Driver> Device<D> {
    /// Creates a device without memory.
    pub fn new(driver: D) -> Self {
        Self {
            driver,
            allocations: Vec::new(),
            kernels: HashMap::new(),
        }
    }

    /// Returns the driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// Allocates memory, filled with zeros.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or if the driver fails.
    pub fn allocate(&mut self, bytes: usize) -> Result<Memory, DeviceError> {
        // Filled in words.
        let bytes = bytes.next_multiple_of(size_of::<u32>());
        let address = self.driver.allocate(bytes)?;
        self.driver.fill(address, 0, bytes / size_of::<u32>())?;
        self.allocations.push(Some(Allocation { address, bytes }));
        Ok(Memory(self.allocations.len() - 1))
    }

    /// Frees memory that was allocated and not freed; recordings that access it must not be replayed afterwards.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn free(&mut self, memory: Memory) -> Result<(), DeviceError> {
        let allocation = self.allocations[memory.0].take();
        self.driver
            .free(allocation.expect("memory that was freed").address)
    }

    /// Copies bytes of the host to a span.
    ///
    /// # Errors
    /// If the driver fails.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn upload(&mut self, to: Span, bytes: &[u8]) -> Result<(), DeviceError> {
        assert_eq!(to.bytes, bytes.len(), "upload: bytes");
        match bytes {
            [] => Ok(()),
            bytes => self.driver.upload(self.address(to), bytes),
        }
    }

    /// Copies a span to the host, after all commands that were given before.
    ///
    /// # Errors
    /// If the driver fails, or one of these commands has failed.
    pub fn download(&self, from: Span) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0; from.bytes];
        if !bytes.is_empty() {
            self.driver.download(self.address(from), &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Runs commands.
    ///
    /// # Errors
    /// If one fails, for example because a kernel has no such name. Failures within a kernel are found later, by
    /// [`Device::download`] and [`Device::synchronize`].
    pub fn run(&mut self, commands: &[Command]) -> Result<(), DeviceError> {
        for command in commands {
            if let Some(call) = self.prepare(command)? {
                self.call(&call)?;
            }
        }
        Ok(())
    }

    /// Records commands, without running them.
    ///
    /// # Errors
    /// As [`Device::run`].
    pub fn record(&mut self, commands: &[Command]) -> Result<Recording, DeviceError> {
        let calls = commands.iter().map(|command| self.prepare(command));
        let calls: Vec<Option<Call>> = calls.collect::<Result<_, _>>()?;
        self.driver.begin_capture()?;
        let mut calls = calls.iter().flatten();
        let result = calls.try_for_each(|call| self.call(call));
        // Also after a failure, so that later calls are made.
        let graph = self.driver.end_capture();
        match (result, graph) {
            (Ok(()), graph) => Ok(Recording(graph?)),
            (Err(error), graph) => {
                if let Ok(graph) = graph {
                    self.driver.forget(graph);
                }
                Err(error)
            }
        }
    }

    /// Runs the commands of a recording.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn replay(&mut self, recording: Recording) -> Result<(), DeviceError> {
        self.driver.replay(recording.0)
    }

    /// Drops a recording.
    pub fn forget(&mut self, recording: Recording) {
        self.driver.forget(recording.0);
    }

    /// Waits for all commands that were given before.
    ///
    /// # Errors
    /// If one of them has failed.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.driver.synchronize()
    }

    /// Returns the address of a span.
    ///
    /// # Panics
    /// If it exceeds its allocation, or that was freed.
    fn address(&self, span: Span) -> Address {
        if span.bytes == 0 {
            return Address(0);
        }
        let allocation = self.allocations[span.memory.0].expect("memory that was freed");
        assert!(
            span.start + span.bytes <= allocation.bytes,
            "bytes {}..{} of an allocation of {}",
            span.start,
            span.start + span.bytes,
            allocation.bytes
        );
        Address(allocation.address.0 + span.start as u64)
    }

    /// Loads the kernel of a command, or prepares its product; `None` if it does nothing.
    fn prepare(&mut self, command: &Command) -> Result<Option<Call>, DeviceError> {
        Ok(match command {
            Command::Launch(launch) => Some(self.prepare_launch(launch)?),
            Command::Matmul(matmul) => self.prepare_product(matmul)?,
            Command::Copy(Copy { from, to }) => {
                assert_eq!(from.bytes, to.bytes, "copy: bytes");
                let (bytes, [from, to]) = (from.bytes, [*from, *to].map(|span| self.address(span)));
                (bytes > 0).then_some(Call::Copy(from, to, bytes))
            }
            Command::Fill(Fill { to, pattern }) => self.fill(*to, *pattern),
        })
    }

    fn fill(&self, to: Span, pattern: u32) -> Option<Call> {
        let size = size_of::<u32>();
        assert!(to.bytes.is_multiple_of(size), "fill: bytes");
        let copies = to.bytes / size;
        (copies > 0).then(|| Call::Fill(self.address(to), pattern, copies))
    }

    fn prepare_launch(&mut self, launch: &Launch) -> Result<Call, DeviceError> {
        let kernel = match self.kernels.get(launch.kernel) {
            Some(kernel) => *kernel,
            None => {
                let kernel = self.driver.load(launch.kernel)?;
                self.kernels.insert(launch.kernel, kernel);
                kernel
            }
        };
        let shape = LaunchShape {
            blocks: launch.blocks,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
        };
        let address = |span: Span| self.address(span).0;
        Ok(Call::Launch(
            kernel,
            shape,
            launch.arguments.to_bytes(address),
        ))
    }

    /// A row-major matrix is the transpose of a column-major one with the same elements: `C = A B` becomes `Cᵀ = Bᵀ Aᵀ`.
    fn prepare_product(&mut self, matmul: &Matmul) -> Result<Option<Call>, DeviceError> {
        let Matmul {
            m,
            n,
            k,
            a,
            b,
            c,
            accumulate,
        } = *matmul;
        let operands = a.elements.element_type;
        assert_eq!(
            operands, b.elements.element_type,
            "matrix product: types of the operands"
        );
        assert!(
            !c.is_transposed,
            "matrix product: the result is not transposed"
        );
        if m == 0 || n == 0 || (k == 0 && accumulate) {
            return Ok(None);
        }
        if k == 0 {
            assert_eq!(
                c.stride, n,
                "matrix product: an empty sum is stored without gaps"
            );
            return Ok(self.fill(c.elements.span, 0));
        }
        let product = Product {
            m: n,
            n: m,
            k,
            transposed: [b.is_transposed, a.is_transposed],
            leading: [b.stride, a.stride, c.stride],
            operands,
            result: c.elements.element_type,
            accumulate,
        };
        let addresses = [b, a, c].map(|operand| self.address(operand.elements.span));
        self.driver.prepare(&product, addresses)?;
        Ok(Some(Call::Multiply(product, addresses)))
    }

    fn call(&mut self, call: &Call) -> Result<(), DeviceError> {
        match call {
            Call::Launch(kernel, shape, arguments) => {
                self.driver.launch(*kernel, *shape, arguments)
            }
            Call::Multiply(product, operands) => self.driver.multiply(product, *operands),
            Call::Copy(from, to, bytes) => self.driver.copy(*from, *to, *bytes),
            Call::Fill(to, pattern, copies) => self.driver.fill(*to, *pattern, *copies),
        }
    }
}
