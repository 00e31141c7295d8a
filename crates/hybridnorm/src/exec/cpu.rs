//! The CPU executor: every op is a kernel call.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::time::Duration;

use half::bf16;
use hybridnorm_kernels::floats::FloatsMut;
use memmap2::MmapMut;
use rayon::prelude::*;

use super::data::input;
use super::profile::Profile;
use super::{Executor, Tensor, TensorRef};
use crate::error::{Error, Result};
use crate::graph::{Buffer, DType, ValueId};
use crate::memory;
use crate::ops::{Arguments, InputOperand, Operands, Operation, OutputOperand};
use crate::plan::{Operand, Program, Region, RoundedRange, Step, Storage};

/// Executor on the current thread pool, in the precision of its programs.
///
/// ```
/// use hybridnorm::exec::{Cpu, Executor, TensorRef};
/// use hybridnorm::graph::DType;
///
/// let mut cpu = Cpu::new();
/// let weights = cpu.allocate(DType::F32, 4)?;
/// cpu.write(weights, 1, TensorRef::F32(&[0.5, 0.25]));
/// assert_eq!(cpu.read(weights, 0..4).into_f32(), [0.0, 0.5, 0.25, 0.0]);
/// cpu.free(weights);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Cpu {
    arena: Memory,
    buffers: Vec<Option<(DType, Memory)>>,
    /// One for each buffer.
    rounded: Vec<RoundedCopy>,
    profile: Profile,
}

/// Copy of a buffer, rounded to bfloat16; without memory until a program reads or updates it.
#[derive(Debug, Default)]
struct RoundedCopy {
    /// As many elements as the buffer; pages that no program accesses are never touched, and take no memory.
    memory: Memory,
    /// Ranges, of those that programs read or update, that were rounded after the last change of their elements.
    current: HashSet<RoundedRange>,
}

impl Cpu {
    /// Creates an executor without state.
    pub fn new() -> Self {
        Self::default()
    }

    fn buffer(&self, buffer: Buffer) -> &(DType, Memory) {
        self.buffers[buffer.0].as_ref().expect(FREED_BUFFER)
    }

    /// Rounds the elements again that a program reads from copies and that may have changed.
    fn renew_rounded_copies(&mut self, program: &Program) {
        for range in program.rounded_ranges() {
            let copy = &mut self.rounded[range.buffer.0];
            if !copy.current.insert(*range) {
                continue;
            }
            let (_, memory) = self.buffers[range.buffer.0].as_ref().expect(FREED_BUFFER);
            let [start, end] = range.single();
            let from: &[f32] = elements(&memory.bytes()[start..end]);
            let to: &mut [bf16] =
                elements_mut(&mut copy.memory.bytes_mut()[range.start..range.end]);
            let parts = to
                .par_chunks_mut(ROUNDED_PER_TASK)
                .zip(from.par_chunks(ROUNDED_PER_TASK));
            parts.for_each(|(to, from)| FloatsMut::from(to).copy_from(from));
        }
    }
}

/// Name in profiles of the rounding of weights that have changed.
const ROUNDED_WEIGHTS: &str = "rounding of weights";
/// Elements that a task rounds.
const ROUNDED_PER_TASK: usize = 1 << 16;

/// Minimum bytes of memory in huge pages.
const HUGE_PAGE_MIN_BYTES: usize = 16 << 20;
const FREED_BUFFER: &str = "the buffer was freed";

impl Executor for Cpu {
    fn allocate(&mut self, dtype: DType, elements: usize) -> Result<Buffer> {
        let memory = Memory::zeros(elements.saturating_mul(dtype.bytes()))?;
        self.buffers.push(Some((dtype, memory)));
        self.rounded.push(RoundedCopy::default());
        Ok(Buffer(self.buffers.len() - 1))
    }

    fn free(&mut self, buffer: Buffer) {
        self.buffers[buffer.0] = None;
        self.rounded[buffer.0] = RoundedCopy::default();
    }

    fn write(&mut self, buffer: Buffer, offset: usize, data: TensorRef<'_>) {
        let (dtype, memory) = self.buffers[buffer.0].as_mut().expect(FREED_BUFFER);
        let size = dtype.bytes();
        let (start, end) = (size * offset, size * (offset + data.len()));
        let written = RoundedRange::of_single(buffer, start, end);
        let current = &mut self.rounded[buffer.0].current;
        current.retain(|range| !range.overlaps(&written));
        let to = &mut memory.bytes_mut()[start..end];
        write_elements(data, *dtype, to);
    }

    fn read(&self, buffer: Buffer, elements: Range<usize>) -> Tensor {
        let (dtype, memory) = self.buffer(buffer);
        let size = dtype.bytes();
        tensor(
            *dtype,
            &memory.bytes()[size * elements.start..size * elements.end],
        )
    }

    fn prepare(&mut self, program: &Program) -> Result<()> {
        let is_missing = |buffer: Buffer| self.rounded[buffer.0].memory.bytes == 0;
        let missing = program.rounded_ranges().iter();
        let missing = missing.filter(|range| is_missing(range.buffer));
        let copies: usize = missing.clone().map(RoundedRange::bytes).sum();
        let arena = match program.arena_bytes() {
            bytes if bytes > self.arena.bytes => bytes,
            _ => 0,
        };
        if arena > 0 {
            // The former one does not count.
            self.arena = Memory::default();
        }
        if copies + arena > 0 {
            let contents = match copies {
                0 => "activations and scratch",
                _ => "activations, scratch and a bfloat16 copy of the weights",
            };
            memory::check_available((copies + arena) as u64, contents)?;
        }
        let buffers: BTreeSet<Buffer> = missing.map(|range| range.buffer).collect();
        for buffer in buffers {
            let (dtype, memory) = self.buffer(buffer);
            assert_eq!(*dtype, DType::F32, "only single precision is rounded");
            let bytes = memory.bytes / dtype.bytes() * DType::Bf16.bytes();
            self.rounded[buffer.0].memory = Memory::zeros(bytes)?;
        }
        if arena > 0 {
            self.arena = Memory::zeros(arena)?;
        }
        Ok(())
    }

    fn run(
        &mut self,
        program: &Program,
        arguments: Arguments,
        inputs: &[(&str, TensorRef<'_>)],
    ) -> Result<()> {
        self.prepare(program)?;
        let mut ranges = program.rounded_ranges().iter();
        if ranges.any(|range| !self.rounded[range.buffer.0].current.contains(range)) {
            let mut profile = std::mem::take(&mut self.profile);
            profile.run(ROUNDED_WEIGHTS, || self.renew_rounded_copies(program));
            self.profile = profile;
        }
        for buffer in program.updated_buffers() {
            self.rounded[buffer.0].current.clear();
        }
        for (name, id) in program.inputs() {
            let ty = program.ty(id);
            let data = input(inputs, name, ty);
            let region = program
                .region(id)
                .expect("every program input has an arena region");
            let to = &mut self.arena.bytes_mut()[region.start..region.end];
            write_elements(data, ty.dtype, to);
        }
        for (step, node) in program.steps().iter().zip(program.graph().nodes()) {
            let operation = node.op.operation();
            let (arena, buffers) = (&mut self.arena, &mut self.buffers);
            let parts = split(arena, buffers, &mut self.rounded, &step.regions);
            let run = || run_step(step, operation, parts, arguments);
            self.profile.run(operation.name(), run);
        }
        for range in program.updated_copies() {
            self.rounded[range.buffer.0].current.insert(*range);
        }
        Ok(())
    }

    fn output(&self, program: &Program, output: ValueId) -> Tensor {
        let region = program.region(output).expect("an output of the program");
        let bytes = match region.storage {
            Storage::Arena => self.arena.bytes(),
            Storage::Buffer(buffer) => self.buffer(buffer).1.bytes(),
            Storage::Rounded(buffer) => self.rounded[buffer.0].memory.bytes(),
        };
        tensor(program.ty(output).dtype, &bytes[region.start..region.end])
    }

    fn start_profile(&mut self) {
        self.profile.start();
    }

    fn take_profile(&mut self) -> BTreeMap<&'static str, Duration> {
        self.profile.finish()
    }
}

/// Copies elements of the host into memory of a type, see [`Executor::write`].
fn write_elements(data: TensorRef<'_>, dtype: DType, to: &mut [u8]) {
    match (dtype, data) {
        (DType::F32, TensorRef::F64(x)) => {
            let to: &mut [f32] = elements_mut(to);
            to.iter_mut().zip(x).for_each(|(to, x)| *to = *x as f32);
        }
        (DType::Bf16, TensorRef::F32(x)) => {
            FloatsMut::from(elements_mut::<bf16>(to)).copy_from(x);
        }
        (dtype, data) => {
            assert_eq!(dtype, data.dtype(), "elements of a different type");
            to.copy_from_slice(data.bytes());
        }
    }
}

/// Runs an op on its regions.
fn run_step(
    step: &Step,
    op: &dyn Operation,
    mut parts: Vec<RegionSlice<'_>>,
    arguments: Arguments,
) {
    for &(from, to) in &step.copies {
        let [from, to] = parts.get_disjoint_mut([from, to]).expect("two regions");
        to.as_mut().copy_from_slice(from.shared());
    }
    let mut writes = Vec::with_capacity(step.writes.len());
    for operand in &step.writes {
        let bytes = match operand.region {
            Step::EMPTY => &mut [],
            region => parts[region].take_mut(),
        };
        writes.push(match operand.dtype {
            DType::F32 => OutputOperand::Float(elements_mut(bytes)),
            DType::Bf16 => OutputOperand::Bf16(elements_mut(bytes)),
            DType::F64 => OutputOperand::Double(elements_mut(bytes)),
            DType::I32 => OutputOperand::Int(elements_mut(bytes)),
        });
    }
    let read = |operand: &Option<Operand>| {
        let Some(operand) = operand else {
            return InputOperand::InPlace;
        };
        let bytes = match operand.region {
            Step::EMPTY => &[],
            region => parts[region].shared(),
        };
        match operand.dtype {
            DType::F32 => InputOperand::Float(elements(bytes)),
            DType::Bf16 => InputOperand::Bf16(elements(bytes)),
            DType::F64 => InputOperand::Double(elements(bytes)),
            DType::I32 => InputOperand::Int(elements(bytes)),
        }
    };
    let reads = step.reads.iter().map(read).collect();
    op.cpu(&mut Operands::new(reads, writes, arguments));
}

/// Memory of a region of an op.
enum RegionSlice<'a> {
    Shared(&'a [u8]),
    Written(&'a mut [u8]),
}

impl<'a> RegionSlice<'a> {
    fn shared(&self) -> &'a [u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Written(_) => unreachable!("a region is read or written"),
        }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Written(bytes) => bytes,
            Self::Shared(_) => unreachable!("a region is read or written"),
        }
    }

    fn take_mut(&mut self) -> &'a mut [u8] {
        match self {
            Self::Written(bytes) => std::mem::take(bytes),
            Self::Shared(_) => unreachable!("a region is read or written"),
        }
    }
}

/// Splits memory into the regions, which are ordered and disjoint.
fn split<'a>(
    arena: &'a mut Memory,
    buffers: &'a mut [Option<(DType, Memory)>],
    rounded: &'a mut [RoundedCopy],
    regions: &[(Region, bool)],
) -> Vec<RegionSlice<'a>> {
    let mut parts = Vec::with_capacity(regions.len());
    let mut buffers = buffers.iter_mut();
    let mut rounded = rounded.iter_mut();
    let [mut passed, mut passed_copies] = [0, 0];
    let mut arena = Some(arena);
    for group in regions.chunk_by(|(a, _), (b, _)| a.storage == b.storage) {
        let mut rest = match group[0].0.storage {
            Storage::Arena => arena.take().expect("regions are in order").bytes_mut(),
            Storage::Buffer(buffer) => {
                let memory = buffers.nth(buffer.0 - passed).and_then(Option::as_mut);
                passed = buffer.0 + 1;
                memory.expect(FREED_BUFFER).1.bytes_mut()
            }
            Storage::Rounded(buffer) => {
                let copy = rounded.nth(buffer.0 - passed_copies);
                passed_copies = buffer.0 + 1;
                copy.expect("a copy for each buffer").memory.bytes_mut()
            }
        };
        let mut at = 0;
        for (region, is_written) in group {
            let (bytes, behind) = rest.split_at_mut(region.end - at);
            let bytes = &mut bytes[region.start - at..];
            parts.push(match is_written {
                true => RegionSlice::Written(bytes),
                false => RegionSlice::Shared(bytes),
            });
            (rest, at) = (behind, region.end);
        }
    }
    parts
}

/// Casts bytes to elements; an empty slice may be unaligned.
fn elements<T: bytemuck::Pod>(bytes: &[u8]) -> &[T] {
    match bytes {
        [] => &[],
        bytes => bytemuck::cast_slice(bytes),
    }
}

fn elements_mut<T: bytemuck::Pod>(bytes: &mut [u8]) -> &mut [T] {
    match bytes {
        [] => &mut [],
        bytes => bytemuck::cast_slice_mut(bytes),
    }
}

fn tensor(dtype: DType, bytes: &[u8]) -> Tensor {
    match dtype {
        DType::F32 => Tensor::F32(elements(bytes).to_vec()),
        DType::Bf16 => {
            let all: &[bf16] = elements(bytes);
            Tensor::F32(all.iter().map(|x| x.to_f32()).collect())
        }
        DType::F64 => Tensor::F64(elements(bytes).to_vec()),
        DType::I32 => Tensor::I32(elements(bytes).to_vec()),
    }
}

/// Anonymous memory mapping, which is aligned to a cache line.
#[derive(Debug, Default)]
struct Memory {
    pages: Option<MmapMut>,
    bytes: usize,
}

impl Memory {
    /// # Errors
    /// If the allocation fails.
    fn zeros(bytes: usize) -> Result<Self> {
        if bytes == 0 {
            return Ok(Self::default());
        }
        let pages = MmapMut::map_anon(bytes).map_err(|error| {
            let mib = bytes.div_ceil(1 << 20);
            Error::OutOfMemory {
                needed: bytes as u64,
                available: None,
                problem: format!("cannot allocate {mib} MiB of memory: {error}"),
            }
        })?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_PAGE_MIN_BYTES {
            // Best effort: if the system has no huge pages, normal pages are used.
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        Ok(Self {
            pages: Some(pages),
            bytes,
        })
    }

    fn bytes(&self) -> &[u8] {
        self.pages.as_deref().unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.as_deref_mut().unwrap_or_default()
    }
}
