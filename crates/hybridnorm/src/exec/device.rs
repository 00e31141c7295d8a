//! The executor on a device: a program becomes commands, which the device records at the first run and replays
//! afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use half::bf16;
#[cfg(test)]
use hybridnorm_cuda::Fill;
use hybridnorm_cuda::{
    Command, Copy, Device, DeviceError, Driver, ElementType, Elements, Memory, Recording, Span,
};

use super::data::input;
use super::profile::Profile;
use super::{Executor, Tensor, TensorRef};
use crate::error::{Error, Result};
use crate::graph::{Buffer, DType, Type, ValueId};
use crate::ops::device::{RUN_ARGUMENTS_BYTES, convert, scratch_bytes};
use crate::ops::{Arguments, DeviceOperands};
use crate::plan::{Operand, Program, ProgramId, Region, RoundedRange, Step, Storage};

/// Executor of [programs planned for a device](crate::plan::Target::Device).
#[derive(Debug)]
pub struct OnDevice<D> {
    device: Device<D>,
    /// Of the programs that were run last, in this order, on memory that was not freed since.
    recordings: Vec<(ProgramId, Recording)>,
    arena: Allocation,
    buffers: Vec<Option<State>>,
    run_arguments: Allocation,
    profile: Profile,
}

/// Memory of the device; none until bytes are needed.
#[derive(Debug, Clone, Copy, Default)]
struct Allocation {
    memory: Option<Memory>,
    bytes: usize,
}

/// A buffer, and its copy rounded to bfloat16.
#[derive(Debug)]
struct State {
    dtype: DType,
    values: Allocation,
    /// Without memory until a program reads or updates it; as many elements as the buffer.
    rounded: Allocation,
    /// Ranges, of those that programs read or update, that were rounded after the last change of their elements.
    current: BTreeSet<RoundedRange>,
}

impl Allocation {
    /// # Errors
    /// If the device has not enough memory.
    fn new(device: &mut Device<impl Driver>, bytes: usize) -> Result<Self> {
        let memory = match bytes {
            0 => None,
            bytes => Some(device.allocate(bytes).map_err(device_error)?),
        };
        Ok(Self { memory, bytes })
    }

    fn free(self, device: &mut Device<impl Driver>) {
        if let Some(memory) = self.memory {
            expect_device(device.free(memory));
        }
    }

    /// Returns a range of its bytes.
    fn span(self, start: usize, end: usize) -> Span {
        Span {
            // An empty span is never accessed.
            memory: self.memory.unwrap_or(Memory(0)),
            start: 0,
            bytes: self.bytes,
        }
        .part(start, end - start)
    }

    fn all(self) -> Span {
        self.span(0, self.bytes)
    }
}

const FREED_BUFFER: &str = "the buffer was freed";

/// Maximum number of programs whose recordings are kept.
const MAX_RECORDINGS: usize = 64;

/// Returns the result of a call that fails only if the device itself does, such as after an access to unknown memory.
///
/// # Panics
/// In this case: nothing that the device computes can be trusted afterwards.
fn expect_device<T>(result: std::result::Result<T, DeviceError>) -> T {
    result.unwrap_or_else(|error| panic!("the device failed: {error}"))
}

impl<D: Driver> OnDevice<D> {
    /// Creates an executor without state.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn new(driver: D) -> Result<Self> {
        let mut device = Device::new(driver);
        Ok(Self {
            recordings: Vec::new(),
            run_arguments: Allocation::new(&mut device, RUN_ARGUMENTS_BYTES)?,
            device,
            arena: Allocation::default(),
            buffers: Vec::new(),
            profile: Profile::default(),
        })
    }

    fn state(&self, buffer: Buffer) -> &State {
        self.buffers[buffer.0].as_ref().expect(FREED_BUFFER)
    }

    fn state_mut(&mut self, buffer: Buffer) -> &mut State {
        self.buffers[buffer.0].as_mut().expect(FREED_BUFFER)
    }

    /// Returns the memory of a region of a program.
    fn span(&self, region: Region) -> Span {
        let allocation = match region.storage {
            Storage::Arena => self.arena,
            Storage::Buffer(buffer) => self.state(buffer).values,
            Storage::Rounded(buffer) => self.state(buffer).rounded,
        };
        allocation.span(region.start, region.end)
    }

    /// Returns the commands of an op.
    ///
    /// # Errors
    /// If a device cannot compute it.
    fn commands(&self, program: &Program, index: usize) -> Result<Vec<Command>> {
        let (step, node) = (&program.steps()[index], &program.graph().nodes()[index]);
        let operation = node.op.operation();
        let elements = |operand: &Operand| Elements {
            span: match operand.region {
                Step::EMPTY => self.arena.span(0, 0),
                region => self.span(step.regions[region].0),
            },
            element_type: operand.dtype.into(),
        };
        let copies = step.copies.iter().map(|&(from, to)| {
            let [from, to] = [from, to].map(|region| self.span(step.regions[region].0));
            Command::Copy(Copy { from, to })
        });
        let updated = operation.state_inputs(node.inputs.len()).len();
        let (writes, scratch) = step.writes.split_at(node.outputs.len() + updated);
        let scratch = scratch
            .first()
            .map_or(self.arena.span(0, 0), |operand| elements(operand).span);
        let mut operands = DeviceOperands::new(
            step.reads
                .iter()
                .map(|read| read.as_ref().map(elements))
                .collect(),
            writes.iter().map(elements).collect(),
            scratch,
            self.run_arguments.all(),
        );
        operation
            .device(&mut operands)
            .map_err(|problem| Error::External(format!("{} {problem}", operation.name())))?;
        Ok(copies.chain(operands.into_commands()).collect())
    }

    /// Runs one op after the other, and measures each.
    ///
    /// # Errors
    /// If a device cannot compute one.
    fn run_each(&mut self, program: &Program) -> Result<()> {
        for (index, node) in program.graph().nodes().iter().enumerate() {
            let commands = self.commands(program, index)?;
            let device = &mut self.device;
            let mut result = Ok(());
            let run = || result = device.run(&commands).and_then(|()| device.synchronize());
            self.profile.run(node.op.operation().name(), run);
            result.map_err(device_error)?;
        }
        Ok(())
    }

    /// Returns the recording of a program, from its last run if there is one.
    ///
    /// # Errors
    /// If a device cannot compute an op.
    fn recording(&mut self, program: &Program) -> Result<Recording> {
        let found = self
            .recordings
            .iter()
            .position(|(id, _)| id == program.id());
        if let Some(index) = found {
            self.recordings[index..].rotate_left(1);
            return Ok(self.recordings[self.recordings.len() - 1].1);
        }
        let ops = 0..program.graph().nodes().len();
        let commands = ops.map(|index| self.commands(program, index));
        let commands: Vec<Vec<Command>> = commands.collect::<Result<_>>()?;
        let recording = self
            .device
            .record(&commands.concat())
            .map_err(device_error)?;
        if self.recordings.len() == MAX_RECORDINGS {
            let (_, oldest) = self.recordings.remove(0);
            self.device.forget(oldest);
        }
        self.recordings.push((program.id().clone(), recording));
        Ok(recording)
    }

    /// Drops all recordings, since they refer to memory that is about to be freed.
    fn forget_recordings(&mut self) {
        for (_, recording) in self.recordings.drain(..) {
            self.device.forget(recording);
        }
    }

    /// Rounds the elements again that a program reads from copies and that may have changed.
    ///
    /// # Errors
    /// If the device fails.
    fn renew_rounded_copies(&mut self, program: &Program) -> Result<()> {
        let mut commands = Vec::new();
        for range in program.rounded_ranges() {
            let state = self.state(range.buffer);
            if state.current.contains(range) {
                continue;
            }
            let [start, end] = range.single();
            let [from, to] = [
                (state.values.span(start, end), ElementType::F32),
                (
                    state.rounded.span(range.start, range.end),
                    ElementType::Bf16,
                ),
            ]
            .map(|(span, element_type)| Elements { span, element_type });
            commands.push(convert(from, to));
        }
        self.device.run(&commands).map_err(device_error)?;
        for range in program.rounded_ranges() {
            self.state_mut(range.buffer).current.insert(*range);
        }
        Ok(())
    }
}

fn device_error(error: DeviceError) -> Error {
    match error {
        DeviceError::OutOfMemory { bytes } => Error::OutOfMemory {
            needed: bytes as u64,
            available: None,
            problem: error.to_string(),
        },
        error => Error::External(error.to_string()),
    }
}

impl<D: Driver> Executor for OnDevice<D> {
    fn allocate(&mut self, dtype: DType, elements: usize) -> Result<Buffer> {
        let values = Allocation::new(&mut self.device, elements.saturating_mul(dtype.bytes()))?;
        self.buffers.push(Some(State {
            dtype,
            values,
            rounded: Allocation::default(),
            current: BTreeSet::new(),
        }));
        Ok(Buffer(self.buffers.len() - 1))
    }

    fn free(&mut self, buffer: Buffer) {
        self.forget_recordings();
        let state = self.buffers[buffer.0].take().expect(FREED_BUFFER);
        state.values.free(&mut self.device);
        state.rounded.free(&mut self.device);
    }

    fn write(&mut self, buffer: Buffer, offset: usize, data: TensorRef<'_>) {
        let state = self.state_mut(buffer);
        let size = state.dtype.bytes();
        let (start, end) = (size * offset, size * (offset + data.len()));
        let written = RoundedRange::of_single(buffer, start, end);
        state.current.retain(|range| !range.overlaps(&written));
        let to = state.values.span(start, end);
        let bytes = bytes_as(data, state.dtype);
        expect_device(self.device.upload(to, &bytes));
    }

    fn read(&self, buffer: Buffer, elements: Range<usize>) -> Tensor {
        let state = self.state(buffer);
        let size = state.dtype.bytes();
        let from = state
            .values
            .span(size * elements.start, size * elements.end);
        tensor(state.dtype, &expect_device(self.device.download(from)))
    }

    fn prepare(&mut self, program: &Program) -> Result<()> {
        for node in program.graph().nodes() {
            let types =
                |ids: &[ValueId]| ids.iter().map(|id| program.ty(*id)).collect::<Vec<Type>>();
            let operation = node.op.operation();
            scratch_bytes(operation, &types(&node.inputs), &types(&node.outputs))
                .map_err(|problem| Error::External(format!("{} {problem}", operation.name())))?;
        }
        let buffers: BTreeSet<Buffer> = program
            .rounded_ranges()
            .iter()
            .map(|range| range.buffer)
            .collect();
        for buffer in buffers {
            let state = self.buffers[buffer.0].as_mut().expect(FREED_BUFFER);
            assert_eq!(state.dtype, DType::F32, "only single precision is rounded");
            if state.rounded.memory.is_none() {
                state.rounded = Allocation::new(&mut self.device, state.values.bytes / 2)?;
            }
        }
        if program.arena_bytes() > self.arena.bytes {
            self.forget_recordings();
            std::mem::take(&mut self.arena).free(&mut self.device);
            self.arena = Allocation::new(&mut self.device, program.arena_bytes())?;
            // Not numbers, so that reads of what no op has written change results.
            #[cfg(test)]
            let poison = Fill {
                to: self.arena.all(),
                pattern: u32::MAX,
            };
            #[cfg(test)]
            self.device
                .run(&[Command::Fill(poison)])
                .map_err(device_error)?;
        }
        Ok(())
    }

    fn run(
        &mut self,
        program: &Program,
        arguments: Arguments,
        inputs: &[(&str, TensorRef<'_>)],
    ) -> Result<()> {
        // What was recorded was prepared.
        if !self.recordings.iter().any(|(id, _)| id == program.id()) {
            self.prepare(program)?;
        }
        self.renew_rounded_copies(program)?;
        for &buffer in program.updated_buffers() {
            self.state_mut(buffer).current.clear();
        }
        let Arguments { past, lr, step } = arguments;
        let bytes = [
            lr.to_le_bytes(),
            step.to_le_bytes(),
            (past as u64).to_le_bytes(),
        ];
        let bytes = bytes.as_flattened();
        let result = self.device.upload(self.run_arguments.all(), bytes);
        result.map_err(device_error)?;
        for (name, id) in program.inputs() {
            let ty = program.ty(id);
            let data = input(inputs, name, ty);
            let region = program
                .region(id)
                .expect("every program input has an arena region");
            let to = self.span(region);
            let bytes = bytes_as(data, ty.dtype);
            self.device.upload(to, &bytes).map_err(device_error)?;
        }
        match self.profile.is_running() {
            true => self.run_each(program)?,
            false => {
                let recording = self.recording(program)?;
                self.device.replay(recording).map_err(device_error)?;
            }
        }
        for range in program.updated_copies() {
            self.state_mut(range.buffer).current.insert(*range);
        }
        Ok(())
    }

    fn output(&self, program: &Program, output: ValueId) -> Tensor {
        let region = program.region(output).expect("an output of the program");
        tensor(
            program.ty(output).dtype,
            &expect_device(self.device.download(self.span(region))),
        )
    }

    fn start_profile(&mut self) {
        self.profile.start();
    }

    fn take_profile(&mut self) -> BTreeMap<&'static str, Duration> {
        self.profile.finish()
    }
}

/// Returns the bytes of elements of the host in a type, see [`Executor::write`].
fn bytes_as(data: TensorRef<'_>, dtype: DType) -> Vec<u8> {
    match (dtype, data) {
        (DType::F32, TensorRef::F64(x)) => {
            x.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect()
        }
        (DType::Bf16, TensorRef::F32(x)) => x
            .iter()
            .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
            .collect(),
        (dtype, data) => {
            assert_eq!(dtype, data.dtype(), "elements of a different type");
            data.bytes().to_vec()
        }
    }
}

/// Returns the elements with these bytes.
fn tensor(dtype: DType, bytes: &[u8]) -> Tensor {
    fn all<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|bytes| from(*bytes))
            .collect()
    }
    match dtype {
        DType::F32 => Tensor::F32(all(bytes, f32::from_le_bytes)),
        DType::Bf16 => Tensor::F32(all(bytes, |x| bf16::from_le_bytes(x).to_f32())),
        DType::F64 => Tensor::F64(all(bytes, f64::from_le_bytes)),
        DType::I32 => Tensor::I32(all(bytes, i32::from_le_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use hybridnorm_cuda::Emulator;

    use super::*;
    use crate::graph::{Builder, Type};
    use crate::ops::linear;
    use crate::plan::{Options, Target};

    /// Returns a program that multiplies rows by a weight, which is state, and its output.
    fn product(weight: Buffer, rows: usize) -> (Program, ValueId) {
        let g = Builder::new();
        let x = g.input("x", Type::f32([rows, 2]));
        let y = linear(x, g.state(weight, 0, Type::f32([3, 2]))).id();
        let options = Options::default().with_target(Target::Device);
        (Program::new(g.finish(), &[y], options), y)
    }

    fn run(device: &mut OnDevice<Emulator>, (program, y): &(Program, ValueId)) -> Vec<f32> {
        let region = program.inputs().next().map(|(_, id)| program.ty(id));
        let x = vec![1.0; region.expect("an input").elements()];
        let inputs = [("x", TensorRef::F32(&x))];
        device.run(program, Arguments::default(), &inputs).unwrap();
        device.output(program, *y).into_f32()
    }

    #[test]
    fn programs_are_captured_once_and_replayed() {
        let mut device = OnDevice::new(Emulator::default()).unwrap();
        let weight = device.allocate(DType::F32, 6).unwrap();
        device.write(weight, 0, TensorRef::F32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let small = product(weight, 1);
        assert_eq!(run(&mut device, &small), [3.0, 7.0, 11.0]);
        let first = device.device.driver().calls();
        // State is read anew, and calls are only those of a graph and its inputs.
        device.write(weight, 2, TensorRef::F32(&[0.0, 0.5]));
        let before = device.device.driver().calls();
        assert_eq!(run(&mut device, &small), [3.0, 0.5, 11.0]);
        let second = device.device.driver().calls();
        assert_eq!((first.captures, first.replays), (1, 1));
        assert_eq!((second.captures, second.replays), (1, 2));
        assert_eq!(second.commands, first.commands);
        // The arguments of the run, and its input.
        assert_eq!(second.uploads, before.uploads + 2);
        // A larger arena is other memory.
        let large = product(weight, 1000);
        assert_eq!(run(&mut device, &large).len(), 3000);
        assert_eq!(run(&mut device, &small), [3.0, 0.5, 11.0]);
        let last = device.device.driver().calls();
        assert_eq!((last.captures, last.replays), (3, 4));
        // While a profile is taken, ops run one by one.
        device.start_profile();
        assert_eq!(run(&mut device, &small), [3.0, 0.5, 11.0]);
        assert!(device.take_profile().contains_key("linear"));
        assert_eq!(device.device.driver().calls().replays, last.replays);
    }

    #[test]
    fn the_programs_that_were_used_last_are_kept() {
        let mut device = OnDevice::new(Emulator::default()).unwrap();
        let weight = device.allocate(DType::F32, 6).unwrap();
        let first = product(weight, 1);
        run(&mut device, &first);
        for _ in 0..MAX_RECORDINGS {
            run(&mut device, &product(weight, 1));
            run(&mut device, &first);
        }
        let calls = device.device.driver().calls();
        assert_eq!(calls.captures, MAX_RECORDINGS + 1);
        assert_eq!(device.recordings.len(), MAX_RECORDINGS);
    }
}
