//! A driver that runs the kernels on the processor, compiled for it by a C++ compiler.
//!
//! It finds operands beyond their allocation, shared memory that was never written (it holds NaN), barriers that some
//! threads of a block do not reach, and races that an order of the threads exposes. It does not find other races.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use half::bf16;

use crate::command::ElementType;
use crate::driver::{Address, DeviceError, Driver, Graph, Kernel, LaunchShape, Product};

/// Order in which the threads of a block take turns; results must not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FiberOrder {
    /// From the first to the last.
    #[default]
    Forward,
    /// From the last to the first.
    Backward,
    /// Pseudorandom, another one at each turn.
    Shuffled,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Emulator {
    order: FiberOrder,
    /// By their addresses, in units of eight bytes, so that every element type is aligned.
    allocations: BTreeMap<Address, Vec<u64>>,
    /// Kernels that were loaded.
    kernels: Vec<EmulatedKernel>,
    prepared: Vec<Product>,
    /// Calls since the start of a capture.
    captured: Option<Vec<EmulatorCall>>,
    graphs: Vec<Option<Vec<EmulatorCall>>>,
    calls: CallCounts,
}

/// Calls that the driver was asked for. Those of a graph do not count again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCounts {
    /// Launches of kernels, products, copies and fills; captured or not.
    pub commands: usize,
    /// Copies from the host.
    pub uploads: usize,
    /// Graphs that were captured.
    pub captures: usize,
    /// Graphs that were started.
    pub replays: usize,
}

/// A call that can be captured.
#[derive(Clone, Debug)]
enum EmulatorCall {
    Launch(Kernel, LaunchShape, Vec<u8>),
    Multiply(Product, [Address; 3]),
    Copy(Address, Address, usize),
    Fill(Address, u32, usize),
}

#[derive(Clone, Copy, Debug)]
struct EmulatedKernel {
    name: &'static str,
    function: extern "C" fn(*const c_void),
}

#[repr(C)]
struct Entry {
    name: *const c_char,
    function: extern "C" fn(*const c_void),
}

unsafe extern "C" {
    /// Returns the kernel with this index, a null name after the last.
    safe fn hybridnorm_cuda_kernel(index: c_uint) -> Entry;

    /// Runs a kernel; returns 0 if it completes, 1 if threads wait for others that have ended, 2 if it writes behind its shared
    /// memory.
    fn hybridnorm_cuda_run(
        function: extern "C" fn(*const c_void),
        arguments: *const c_void,
        blocks: c_uint,
        threads: c_uint,
        shared_bytes: c_uint,
        order: c_int,
    ) -> c_int;
}

/// Returns names and functions of all kernels.
fn kernels() -> impl Iterator<Item = (&'static CStr, extern "C" fn(*const c_void))> {
    (0..).map_while(|index| {
        let kernel = hybridnorm_cuda_kernel(index);
        if kernel.name.is_null() {
            return None;
        }
        // SAFETY: names are string literals.
        Some((unsafe { CStr::from_ptr(kernel.name) }, kernel.function))
    })
}

/// Maximum threads of a block, as on all cards.
const MAX_THREADS: u32 = 1024;
/// Maximum shared memory of a block of sm_86 and sm_89, in bytes; sm_80 and sm_90 have more.
const MAX_SHARED_BYTES: u32 = 99 << 10;

impl Emulator {
    /// Creates a driver without memory.
    pub fn new(order: FiberOrder) -> Self {
        Self {
            order,
            ..Self::default()
        }
    }

    /// Returns the names of all kernels.
    pub fn kernel_names() -> Vec<String> {
        kernels()
            .map(|(name, _)| name.to_string_lossy().into_owned())
            .collect()
    }

    /// Returns the calls so far.
    pub fn calls(&self) -> CallCounts {
        self.calls
    }

    /// Returns the bytes from an address to the end of its allocation.
    fn bytes(&self, address: Address) -> &[u8] {
        let (start, all) = self
            .allocations
            .range(..=address)
            .next_back()
            .expect(UNKNOWN);
        // SAFETY: any bytes may be read, and the slice is the whole allocation.
        let bytes = unsafe { std::slice::from_raw_parts(all.as_ptr().cast::<u8>(), 8 * all.len()) };
        &bytes[(address.0 - start.0) as usize..]
    }

    fn bytes_mut(&mut self, address: Address) -> &mut [u8] {
        let mut before = self.allocations.range_mut(..=address);
        let (start, all) = before.next_back().expect(UNKNOWN);
        // SAFETY: as in `bytes`; the borrow is exclusive.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(all.as_mut_ptr().cast::<u8>(), 8 * all.len()) };
        &mut bytes[(address.0 - start.0) as usize..]
    }

    /// Makes a call, or captures it.
    fn make(&mut self, call: EmulatorCall) -> Result<(), DeviceError> {
        self.calls.commands += 1;
        match &mut self.captured {
            Some(captured) => {
                captured.push(call);
                Ok(())
            }
            None => self.run(&call),
        }
    }

    fn run(&mut self, call: &EmulatorCall) -> Result<(), DeviceError> {
        match call {
            EmulatorCall::Launch(kernel, shape, arguments) => {
                return self.run_kernel(*kernel, *shape, arguments);
            }
            EmulatorCall::Multiply(product, operands) => self.run_product(product, *operands),
            &EmulatorCall::Copy(from, to, bytes) => {
                let copied = self.bytes(from)[..bytes].to_vec();
                self.bytes_mut(to)[..bytes].copy_from_slice(&copied);
            }
            &EmulatorCall::Fill(to, pattern, copies) => {
                let to = self.bytes_mut(to).as_chunks_mut().0;
                to[..copies].fill(pattern.to_le_bytes());
            }
        }
        Ok(())
    }

    fn run_kernel(
        &self,
        kernel: Kernel,
        shape: LaunchShape,
        arguments: &[u8],
    ) -> Result<(), DeviceError> {
        let EmulatedKernel { name, function } = self.kernels[kernel.0];
        // Aligned as the struct.
        let words = arguments.as_chunks().0.iter();
        let words: Vec<u64> = words.map(|word| u64::from_ne_bytes(*word)).collect();
        // SAFETY: the kernel reads the struct of its arguments, whose layout `Arguments` has, and accesses the elements
        // whose addresses it contains, as the commands of the ops describe them.
        let result = unsafe {
            hybridnorm_cuda_run(
                function,
                words.as_ptr().cast(),
                shape.blocks,
                shape.threads,
                shape.shared_bytes,
                self.order as c_int,
            )
        };
        match result {
            0 => Ok(()),
            1 => Err(failed(
                name,
                "threads wait at a barrier that others do not reach",
            )),
            _ => Err(failed(name, "writes behind its shared memory")),
        }
    }

    /// Returns the elements at an address.
    fn numbers(&self, address: Address, element_type: ElementType, count: usize) -> Vec<f32> {
        let bytes = &self.bytes(address)[..count * element_type.bytes()];
        match element_type {
            ElementType::F32 => {
                let numbers = bytes.as_chunks().0.iter();
                numbers.map(|x| f32::from_le_bytes(*x)).collect()
            }
            ElementType::Bf16 => {
                let numbers = bytes.as_chunks().0.iter();
                numbers.map(|x| bf16::from_le_bytes(*x).to_f32()).collect()
            }
            other => panic!("a matrix of {other:?}"),
        }
    }

    fn run_product(&mut self, product: &Product, [a, b, c]: [Address; 3]) {
        let Product { m, n, k, .. } = *product;
        let [of_a, of_b, of_c] = product.leading;
        let [transposes_a, transposes_b] = product.transposed;
        // Rows and columns as they are stored.
        let (rows, columns) = if transposes_a { (k, m) } else { (m, k) };
        let left = self.numbers(a, product.operands, of_a * (columns - 1) + rows);
        let (rows, columns) = if transposes_b { (n, k) } else { (k, n) };
        let right = self.numbers(b, product.operands, of_b * (columns - 1) + rows);
        let at = |i: usize, j: usize, leading: usize, is_transposed: bool| match is_transposed {
            true => j + i * leading,
            false => i + j * leading,
        };
        let mut result = self.numbers(c, product.result, of_c * (n - 1) + m);
        for j in 0..n {
            for i in 0..m {
                let products = (0..k).map(|l| {
                    left[at(i, l, of_a, transposes_a)] * right[at(l, j, of_b, transposes_b)]
                });
                let sum = products.fold(0.0, |sum: f32, product| sum + product);
                let element = &mut result[i + j * of_c];
                *element = if product.accumulate {
                    *element + sum
                } else {
                    sum
                };
            }
        }
        let out = self.bytes_mut(c);
        for j in 0..n {
            for i in 0..m {
                let (index, size) = (i + j * of_c, product.result.bytes());
                let out = &mut out[index * size..][..size];
                match product.result {
                    ElementType::F32 => out.copy_from_slice(&result[index].to_le_bytes()),
                    _ => out.copy_from_slice(&bf16::from_f32(result[index]).to_le_bytes()),
                }
            }
        }
    }
}

const UNKNOWN: &str = "an address outside of all allocations";

fn failed(command: &'static str, problem: impl Into<String>) -> DeviceError {
    DeviceError::Command {
        command,
        problem: problem.into(),
    }
}

impl Driver for Emulator {
    fn allocate(&mut self, bytes: usize) -> Result<Address, DeviceError> {
        // Any contents.
        let memory = vec![u64::MAX; bytes.div_ceil(8).max(1)];
        let address = Address(memory.as_ptr() as u64);
        self.allocations.insert(address, memory);
        Ok(address)
    }

    fn free(&mut self, address: Address) -> Result<(), DeviceError> {
        self.allocations.remove(&address).expect(UNKNOWN);
        Ok(())
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.calls.uploads += 1;
        self.bytes_mut(to)[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.copy_from_slice(&self.bytes(from)[..bytes.len()]);
        Ok(())
    }

    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.make(EmulatorCall::Copy(from, to, bytes))
    }

    fn fill(&mut self, to: Address, pattern: u32, copies: usize) -> Result<(), DeviceError> {
        self.make(EmulatorCall::Fill(to, pattern, copies))
    }

    fn load(&mut self, name: &'static str) -> Result<Kernel, DeviceError> {
        assert!(
            self.captured.is_none(),
            "a kernel is loaded during a capture"
        );
        let found = kernels().find(|(other, _)| other.to_bytes() == name.as_bytes());
        let (_, function) = found.ok_or_else(|| failed(name, "there is no such kernel"))?;
        self.kernels.push(EmulatedKernel { name, function });
        Ok(Kernel(self.kernels.len() - 1))
    }

    fn launch(
        &mut self,
        kernel: Kernel,
        shape: LaunchShape,
        arguments: &[u8],
    ) -> Result<(), DeviceError> {
        let LaunchShape {
            threads,
            shared_bytes,
            ..
        } = shape;
        let name = self.kernels[kernel.0].name;
        if threads == 0 || threads > MAX_THREADS || !threads.is_multiple_of(32) {
            return Err(failed(name, format!("blocks of {threads} threads")));
        }
        if shared_bytes > MAX_SHARED_BYTES {
            return Err(failed(
                name,
                format!("{shared_bytes} bytes of shared memory"),
            ));
        }
        self.make(EmulatorCall::Launch(kernel, shape, arguments.to_vec()))
    }

    fn prepare(&mut self, product: &Product, _operands: [Address; 3]) -> Result<(), DeviceError> {
        assert!(
            self.captured.is_none(),
            "a product is prepared during a capture"
        );
        if !self.prepared.contains(product) {
            self.prepared.push(*product);
        }
        Ok(())
    }

    fn multiply(&mut self, product: &Product, operands: [Address; 3]) -> Result<(), DeviceError> {
        assert!(self.prepared.contains(product), "a product is not prepared");
        self.make(EmulatorCall::Multiply(*product, operands))
    }

    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        assert!(self.captured.is_none(), "a capture within another");
        self.captured = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Graph, DeviceError> {
        self.calls.captures += 1;
        self.graphs.push(self.captured.take());
        Ok(Graph(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError> {
        self.calls.replays += 1;
        let calls = self.graphs[graph.0]
            .take()
            .expect("a graph that was forgotten");
        let result = calls.iter().try_for_each(|call| self.run(call));
        self.graphs[graph.0] = Some(calls);
        result
    }

    fn forget(&mut self, graph: Graph) {
        self.graphs[graph.0] = None;
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
