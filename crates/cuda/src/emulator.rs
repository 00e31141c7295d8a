//! A device that runs the kernels on the processor, compiled for it by a C++ compiler.
//!
//! It finds operands beyond their allocation, shared memory that was never written (it holds NaN), barriers that some
//! threads of a block do not reach, and races that an order of the threads exposes. It does not find other races.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use half::bf16;

use crate::command::{
    Command, Copy, ElementType, Fill, Launch, Matmul, MatrixOperand, Memory, Span,
};
use crate::device::{Device, DeviceError};

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
    /// In units of eight bytes, so that every element type is aligned.
    allocations: Vec<Option<Vec<u64>>>,
}

#[repr(C)]
struct Kernel {
    name: *const c_char,
    function: extern "C" fn(*const c_void),
}

unsafe extern "C" {
    /// Returns the kernel with this index, a null name after the last.
    safe fn hybridnorm_cuda_kernel(index: c_uint) -> Kernel;

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
    /// Creates a device without memory.
    pub fn new(order: FiberOrder) -> Self {
        Self {
            order,
            allocations: Vec::new(),
        }
    }

    /// Returns the names of all kernels.
    pub fn kernel_names() -> Vec<String> {
        kernels()
            .map(|(name, _)| name.to_string_lossy().into_owned())
            .collect()
    }

    fn allocation(&self, memory: Memory) -> &[u64] {
        self.allocations[memory.0]
            .as_deref()
            .expect("memory that was freed")
    }

    fn bytes(&self, span: Span) -> &[u8] {
        let all = self.allocation(span.memory);
        // SAFETY: any bytes may be read, and the slice lies within the allocation or the slicing panics.
        let bytes = unsafe { std::slice::from_raw_parts(all.as_ptr().cast::<u8>(), 8 * all.len()) };
        &bytes[span.start..span.start + span.bytes]
    }

    fn bytes_mut(&mut self, span: Span) -> &mut [u8] {
        let all = self.allocations[span.memory.0]
            .as_deref_mut()
            .expect("memory that was freed");
        // SAFETY: as in `bytes`; the borrow is exclusive.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(all.as_mut_ptr().cast::<u8>(), 8 * all.len()) };
        &mut bytes[span.start..span.start + span.bytes]
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DeviceError> {
        let failed = |problem: String| DeviceError::Command {
            command: launch.kernel,
            problem,
        };
        let found = kernels().find(|(name, _)| name.to_bytes() == launch.kernel.as_bytes());
        let (_, function) = found.ok_or_else(|| failed("there is no such kernel".to_owned()))?;
        let Launch {
            blocks,
            threads,
            shared_bytes,
            ..
        } = *launch;
        if threads == 0 || threads > MAX_THREADS || !threads.is_multiple_of(32) {
            return Err(failed(format!("blocks of {threads} threads")));
        }
        if shared_bytes > MAX_SHARED_BYTES {
            return Err(failed(format!("{shared_bytes} bytes of shared memory")));
        }
        for span in launch.arguments.spans() {
            // Panics beyond the allocation.
            let _ = self.bytes(span);
        }
        let address = |span: Span| self.bytes(span).as_ptr() as u64;
        let bytes = launch.arguments.to_bytes(address);
        // Aligned as the struct.
        let words = bytes.as_chunks().0.iter();
        let arguments: Vec<u64> = words.map(|word| u64::from_ne_bytes(*word)).collect();
        // SAFETY: the kernel reads the struct of its arguments, whose layout `Arguments` has, and accesses the elements
        // whose addresses it contains, as the commands of the ops describe them.
        let result = unsafe {
            hybridnorm_cuda_run(
                function,
                arguments.as_ptr().cast(),
                blocks,
                threads,
                shared_bytes,
                self.order as c_int,
            )
        };
        match result {
            0 => Ok(()),
            1 => Err(failed(
                "threads wait at a barrier that others do not reach".to_owned(),
            )),
            _ => Err(failed("writes behind its shared memory".to_owned())),
        }
    }

    /// Returns the elements of a matrix (rows, columns) after transposition.
    fn matrix(&self, operand: &MatrixOperand, rows: usize, columns: usize) -> Vec<f32> {
        let all: Vec<f32> = match operand.elements.element_type {
            ElementType::F32 => self
                .bytes(operand.elements.span)
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect(),
            ElementType::Bf16 => self
                .bytes(operand.elements.span)
                .as_chunks()
                .0
                .iter()
                .map(|bytes| bf16::from_le_bytes(*bytes).to_f32())
                .collect(),
            other => panic!("a matrix of {other:?}"),
        };
        let at = |i: usize, j: usize| match operand.is_transposed {
            true => all[j * operand.stride + i],
            false => all[i * operand.stride + j],
        };
        (0..rows)
            .flat_map(|i| (0..columns).map(move |j| (i, j)))
            .map(|(i, j)| at(i, j))
            .collect()
    }

    fn matmul(&mut self, matmul: &Matmul) {
        let Matmul {
            m, n, k, a, b, c, ..
        } = *matmul;
        assert_eq!(
            a.elements.element_type, b.elements.element_type,
            "operands of a matrix product differ in type"
        );
        assert!(
            !c.is_transposed,
            "the result of a matrix product is not transposed"
        );
        let (left, right) = (self.matrix(&a, m, k), self.matrix(&b, k, n));
        let before = match matmul.accumulate {
            true => self.matrix(&c, m, n),
            false => vec![0.0; m * n],
        };
        let size = c.elements.element_type.bytes();
        let out = self.bytes_mut(c.elements.span);
        for i in 0..m {
            for j in 0..n {
                let products = (0..k).map(|l| left[i * k + l] * right[l * n + j]);
                let sum = products.fold(0.0f32, |sum, product| sum + product) + before[i * n + j];
                let at = size * (i * c.stride + j);
                match c.elements.element_type {
                    ElementType::F32 => out[at..at + 4].copy_from_slice(&sum.to_le_bytes()),
                    ElementType::Bf16 => {
                        out[at..at + 2].copy_from_slice(&bf16::from_f32(sum).to_le_bytes());
                    }
                    other => panic!("a matrix of {other:?}"),
                }
            }
        }
    }
}

impl Device for Emulator {
    fn allocate(&mut self, bytes: usize) -> Result<Memory, DeviceError> {
        self.allocations.push(Some(vec![0; bytes.div_ceil(8)]));
        Ok(Memory(self.allocations.len() - 1))
    }

    fn free(&mut self, memory: Memory) {
        self.allocations[memory.0] = None;
    }

    fn upload(&mut self, to: Span, bytes: &[u8]) {
        self.bytes_mut(to).copy_from_slice(bytes);
    }

    fn download(&self, from: Span) -> Vec<u8> {
        self.bytes(from).to_vec()
    }

    fn run(&mut self, commands: &[Command]) -> Result<(), DeviceError> {
        for command in commands {
            match command {
                Command::Launch(launch) => self.launch(launch)?,
                Command::Matmul(matmul) => self.matmul(matmul),
                Command::Copy(Copy { from, to }) => {
                    let bytes = self.download(*from);
                    self.upload(*to, &bytes);
                }
                Command::Fill(Fill { to, pattern }) => {
                    for chunk in self.bytes_mut(*to).chunks_exact_mut(4) {
                        chunk.copy_from_slice(&pattern.to_le_bytes());
                    }
                }
            }
        }
        Ok(())
    }
}
