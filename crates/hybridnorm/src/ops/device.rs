//! Operands of an op in device memory, and the commands that compute it there.

mod decode;

use hybridnorm_cuda::{
    Arguments, Command, Copy, ElementType, Elements, Fill, Launch, Matmul, MatrixOperand, Memory,
    Span,
};
use hybridnorm_kernels::matmul::Precision;

use crate::graph::{DType, Type};
pub(super) use decode::{Appended, Block, CacheAttention, CacheRows, Rotated, multiply_blocks};

/// Operands of one op in device memory. The op takes them as those of [`Operands`](super::Operands), and records the
/// commands that compute it.
#[derive(Debug)]
pub struct DeviceOperands {
    reads: Vec<Option<Elements>>,
    writes: std::vec::IntoIter<Elements>,
    scratch: Span,
    used_scratch: usize,
    run_arguments: Span,
    commands: Vec<Command>,
}

/// Threads of a block of kernels that do not need a certain number.
const THREADS: usize = 256;
/// Threads of a warp.
const WARP: usize = 32;
/// Maximum blocks of a launch: its threads go through more elements than one.
/// Few in tests, so that they do so there.
const MAX_BLOCKS: usize = if cfg!(test) { 2 } else { 4096 };
/// Blocks whose partial sums another launch adds. A constant, so that the order of the sums is the same on all cards.
const SUM_BLOCKS: usize = if cfg!(test) { 2 } else { 256 };
/// Shared memory of a block in bytes, which every card has without asking for more.
const SHARED_BYTES: usize = 48 << 10;
/// Maximum shared memory of a block in bytes on sm_86 and sm_89; sm_80 and sm_90 have more.
const MAX_SHARED_BYTES: usize = 99 << 10;
/// Alignment of parts of the scratch memory.
const ALIGNMENT: usize = 256;

/// Blocks and threads of a launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    blocks: usize,
    threads: usize,
    shared_bytes: usize,
}

impl Grid {
    /// One thread per element, or fewer.
    pub(super) fn elements(count: usize) -> Self {
        Self {
            blocks: count.div_ceil(THREADS).clamp(1, MAX_BLOCKS),
            threads: THREADS,
            shared_bytes: 0,
        }
    }

    /// One warp per row, or fewer.
    pub(super) fn warps(rows: usize) -> Self {
        Self {
            blocks: rows.div_ceil(THREADS / WARP).clamp(1, MAX_BLOCKS),
            ..Self::elements(0)
        }
    }

    /// One block per row, or fewer, with an `f64` of shared memory for each of its warps.
    pub(super) fn blocks(rows: usize) -> Self {
        Self {
            blocks: rows.clamp(1, MAX_BLOCKS),
            threads: THREADS,
            shared_bytes: THREADS / WARP * size_of::<f64>(),
        }
    }

    /// This many blocks of `warps` warps with shared memory.
    ///
    /// # Errors
    /// If a card has less shared memory.
    pub(super) fn with_shared_memory(
        blocks: usize,
        warps: usize,
        shared_bytes: usize,
    ) -> Result<Self, String> {
        if shared_bytes > MAX_SHARED_BYTES {
            return Err(format!(
                "needs {shared_bytes} bytes of shared memory, of {MAX_SHARED_BYTES}"
            ));
        }
        Ok(Self {
            blocks: blocks.max(1),
            threads: warps * WARP,
            shared_bytes,
        })
    }

    /// One warp per row, or fewer, with `floats` numbers in shared memory for each warp.
    ///
    /// # Errors
    /// If a card has less shared memory.
    pub(super) fn warps_with_memory(rows: usize, floats: usize) -> Result<Self, String> {
        let bytes = floats * size_of::<f32>();
        let warps = (SHARED_BYTES / bytes.max(1)).clamp(1, THREADS / WARP);
        let blocks = rows.div_ceil(warps).clamp(1, MAX_BLOCKS);
        Self::with_shared_memory(blocks, warps, warps * bytes)
    }

    /// One block of 256 threads per tile, with `floats` numbers in shared memory.
    ///
    /// # Errors
    /// If a card has less shared memory.
    pub(super) fn tiles(count: usize, floats: usize) -> Result<Self, String> {
        Self::with_shared_memory(count, THREADS / WARP, floats * size_of::<f32>())
    }

    /// One warp per row, or fewer, with `count` sums in shared memory for each warp, and so few blocks that another launch
    /// adds their sums.
    ///
    /// # Errors
    /// If a card has less shared memory.
    pub(super) fn summing_warps(rows: usize, count: usize) -> Result<Self, String> {
        let bytes = count * size_of::<f32>();
        let warps = (SHARED_BYTES / bytes.max(1)).clamp(1, THREADS / WARP);
        let blocks = rows.div_ceil(warps).clamp(1, SUM_BLOCKS);
        Self::with_shared_memory(blocks, warps, warps * bytes)
    }

    /// Number of blocks.
    pub(super) fn block_count(self) -> usize {
        self.blocks
    }
}

impl DeviceOperands {
    /// Creates the operands: inputs in order, `None` for those computed in place; outputs and updated inputs in this
    /// order; scratch memory, of the size that [`scratch_bytes`] returns; and the memory of
    /// [`Arguments`](super::Arguments), as kernels read them.
    pub(crate) fn new(
        reads: Vec<Option<Elements>>,
        writes: Vec<Elements>,
        scratch: Span,
        run_arguments: Span,
    ) -> Self {
        Self {
            reads,
            writes: writes.into_iter(),
            scratch,
            used_scratch: 0,
            run_arguments,
            commands: Vec::new(),
        }
    }

    /// Returns the commands that were recorded.
    pub(crate) fn into_commands(self) -> Vec<Command> {
        self.commands
    }

    /// Returns an input.
    ///
    /// # Panics
    /// If it is updated in place.
    pub(super) fn read(&self, index: usize) -> Elements {
        self.reads[index].unwrap_or_else(|| panic!("input {index} is updated in place"))
    }

    /// Returns the next operand to be written: outputs, then updated inputs.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn write(&mut self) -> Elements {
        self.writes.next().expect("an operand to be written")
    }

    /// Returns the arguments of the run, `RunArguments` of the kernels.
    pub(super) fn run_arguments(&self) -> Span {
        self.run_arguments
    }

    /// Returns scratch memory that no other part of the op uses.
    pub(super) fn scratch(&mut self, element_type: ElementType, len: usize) -> Elements {
        let bytes = len * element_type.bytes();
        let span = self.scratch.part(self.used_scratch, bytes);
        self.used_scratch = (self.used_scratch + bytes).next_multiple_of(ALIGNMENT);
        Elements { span, element_type }
    }

    /// Runs a kernel.
    pub(super) fn launch(&mut self, kernel: &'static str, grid: Grid, arguments: Arguments) {
        self.commands.push(launch(kernel, grid, arguments));
    }

    /// Copies elements to others of the same type.
    pub(super) fn copy(&mut self, from: Elements, to: Elements) {
        let (from, to) = (from.span, to.span);
        self.commands.push(Command::Copy(Copy { from, to }));
    }

    /// Sets single-precision elements to a number.
    pub(super) fn fill(&mut self, to: Elements, value: f32) {
        assert_eq!(
            to.element_type,
            ElementType::F32,
            "only single precision is filled"
        );
        let (to, pattern) = (to.span, value.to_bits());
        self.commands.push(Command::Fill(Fill { to, pattern }));
    }

    /// Sets elements of any type to zero.
    pub(super) fn clear(&mut self, to: Elements) {
        assert!(
            to.span.bytes.is_multiple_of(4),
            "cleared memory consists of 32-bit patterns"
        );
        let (to, pattern) = (to.span, 0);
        self.commands.push(Command::Fill(Fill { to, pattern }));
    }

    /// Copies `width` columns of rows, or adds them.
    pub(super) fn copy_columns(
        &mut self,
        from: Columns,
        to: Columns,
        width: usize,
        accumulate: bool,
    ) {
        let rows = from.elements.len() / from.width.max(1);
        let arguments = Arguments::default()
            .floats(from.elements)
            .floats(to.elements)
            .long(rows as i64)
            .count(width)
            .count(from.width)
            .count(from.first)
            .count(to.width)
            .count(to.first)
            .int(accumulate.into());
        self.launch("copy_columns", Grid::elements(rows * width), arguments);
    }

    /// Applies a function to the next operand that is written: in place, or to `x`.
    pub(super) fn pointwise(&mut self, function: Pointwise, parameter: f32, x: Option<Elements>) {
        let y = self.write();
        self.pointwise_to(function, parameter, x.unwrap_or(y), y);
    }

    /// Applies a function of `Pointwise` of the kernels.
    pub(super) fn pointwise_to(
        &mut self,
        function: Pointwise,
        parameter: f32,
        x: Elements,
        y: Elements,
    ) {
        let arguments = Arguments::default()
            .address(x.span)
            .address(y.span)
            .long(y.len() as i64)
            .int(function as i32)
            .float(parameter);
        self.launch("pointwise_function", Grid::elements(y.len()), arguments);
    }

    /// Adds the rows of partial sums (parts, len) of single-precision numbers.
    pub(super) fn sum_partials(&mut self, partials: Elements, to: Elements) {
        if to.is_empty() {
            return;
        }
        let arguments = Arguments::default()
            .address(partials.span)
            .address(to.span)
            .long(to.len() as i64)
            .count(partials.len() / to.len());
        self.launch("sum_partials", Grid::elements(to.len()), arguments);
    }

    /// Converts floating-point elements to the type of others.
    pub(super) fn convert(&mut self, from: Elements, to: Elements) {
        self.commands.push(convert(from, to));
    }

    /// Returns floating-point elements in another type: themselves, or a converted copy in scratch memory.
    pub(super) fn converted(&mut self, x: Elements, element_type: ElementType) -> Elements {
        if x.element_type == element_type {
            return x;
        }
        let y = self.scratch(element_type, x.len());
        self.commands.push(convert(x, y));
        y
    }

    /// Computes `c = a b`, or adds it to `c`, for matrices (m, k), (k, n) and (m, n), rounded to a precision first.
    pub(super) fn matmul(
        &mut self,
        precision: Precision,
        a: Matrix,
        b: Matrix,
        c: Elements,
        accumulate: bool,
    ) {
        let element_type = element_type_of(precision);
        let mut operand = |x: Matrix| MatrixOperand {
            elements: self.converted(x.elements, element_type),
            stride: if x.is_transposed { x.rows } else { x.columns },
            is_transposed: x.is_transposed,
        };
        let (m, k, n) = (a.rows, a.columns, b.columns);
        assert_eq!(b.rows, k, "matrix product: inner dimension");
        let matmul = Matmul {
            m,
            n,
            k,
            a: operand(a),
            b: operand(b),
            c: MatrixOperand {
                elements: c,
                stride: n,
                is_transposed: false,
            },
            accumulate,
        };
        self.commands.push(Command::Matmul(matmul));
    }
}

/// Returns the command that runs a kernel.
fn launch(kernel: &'static str, grid: Grid, arguments: Arguments) -> Command {
    // Kernels compute with `int`.
    let small = |x: usize| {
        i32::try_from(x)
            .map(i32::cast_unsigned)
            .expect("fewer than 2^31 blocks")
    };
    Command::Launch(Launch {
        kernel,
        blocks: small(grid.blocks),
        threads: small(grid.threads),
        shared_bytes: small(grid.shared_bytes),
        arguments,
    })
}

/// Returns the command that converts floating-point elements to another type.
pub(crate) fn convert(x: Elements, y: Elements) -> Command {
    let arguments = Arguments::default()
        .floats(x)
        .floats(y)
        .long(x.len() as i64);
    launch("convert", Grid::elements(x.len()), arguments)
}

/// Records `sum += x`.
pub(super) fn add_to(io: &mut DeviceOperands, x: Elements, sum: Elements) {
    let arguments = Arguments::default()
        .floats(x)
        .floats(sum)
        .long(x.len() as i64);
    io.launch("add_to", Grid::elements(x.len()), arguments);
}

/// `Pointwise` of the kernels.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pointwise {
    Clamp,
    ClampGradient,
    Softcap,
    SoftcapGradient,
    Reciprocal,
    ReciprocalGradient,
}

/// Columns of rows, from a first one on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    elements: Elements,
    width: usize,
    first: usize,
}

impl Columns {
    /// Columns from `first` on, of rows of `width` elements.
    pub(super) fn new(elements: Elements, width: usize, first: usize) -> Self {
        Self {
            elements,
            width,
            first,
        }
    }
}

/// Numbers for elements: element i belongs to number `i / repeat % values.len()`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factors {
    pub(super) values: Elements,
    pub(super) repeat: usize,
}

impl Factors {
    /// Records `y = x · factor`.
    pub(super) fn multiply(self, io: &mut DeviceOperands, x: Elements, y: Elements) {
        self.apply(io, x, y, false);
    }

    /// Records `y += factor`.
    pub(super) fn add(self, io: &mut DeviceOperands, y: Elements) {
        self.apply(io, y, y, true);
    }

    fn apply(self, io: &mut DeviceOperands, x: Elements, y: Elements, is_bias: bool) {
        let arguments = Arguments::default()
            .address(x.span)
            .address(y.span)
            .address(self.values.span)
            .count(self.values.len())
            .count(self.repeat)
            .long(y.len() as i64)
            .int(is_bias.into());
        io.launch("apply_factors", Grid::elements(y.len()), arguments);
    }

    /// Records the gradients of the numbers, in place of them: the sum over the elements of each of x, or of the products of
    /// x and y.
    pub(super) fn write_gradients(self, io: &mut DeviceOperands, x: Elements, y: Option<Elements>) {
        /// Partial sums of each number. A constant, as their order is.
        const PARTS: usize = 64;
        let count = self.values.len();
        if count == 0 {
            return;
        }
        let partials = io.scratch(ElementType::F32, PARTS * count);
        let arguments = Arguments::default()
            .address(x.span)
            .optional_address(y.map(|y| y.span))
            .address(partials.span)
            .long(x.len() as i64)
            .count(count)
            .count(self.repeat)
            .count(PARTS);
        match self.repeat < WARP {
            true => io.launch("factor_gradients", Grid::elements(PARTS * count), arguments),
            false => io.launch(
                "factor_gradients_long",
                Grid::warps(PARTS * count),
                arguments,
            ),
        }
        io.sum_partials(partials, self.values);
    }
}

/// Returns the type of operands of a matrix product.
pub(super) fn element_type_of(precision: Precision) -> ElementType {
    match precision {
        Precision::F32 => ElementType::F32,
        Precision::Bf16 => ElementType::Bf16,
    }
}

/// A dense matrix, or the transpose of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    elements: Elements,
    rows: usize,
    columns: usize,
    is_transposed: bool,
}

impl Matrix {
    /// Rows of `columns` elements.
    pub(super) fn new(elements: Elements, columns: usize) -> Self {
        Self {
            elements,
            rows: elements.len() / columns.max(1),
            columns,
            is_transposed: false,
        }
    }

    /// Returns its transpose.
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            is_transposed: !self.is_transposed,
            ..self
        }
    }
}

impl From<DType> for ElementType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::Bf16 => Self::Bf16,
            DType::F64 => Self::F64,
            DType::I32 => Self::I32,
        }
    }
}

/// Returns the bytes of scratch memory that an op needs on a device: those that its commands use.
///
/// # Errors
/// If a device cannot compute it.
pub(crate) fn scratch_bytes(
    op: &dyn super::Operation,
    inputs: &[Type],
    outputs: &[Type],
) -> Result<usize, String> {
    let nowhere = |bytes| Span {
        memory: Memory(0),
        start: 0,
        bytes,
    };
    let elements = |ty: &Type| Elements {
        span: nowhere(ty.bytes()),
        element_type: ty.dtype.into(),
    };
    let updated = &inputs[op.state_inputs(inputs.len())];
    let mut io = DeviceOperands::new(
        inputs.iter().map(|ty| Some(elements(ty))).collect(),
        outputs.iter().chain(updated).map(elements).collect(),
        nowhere(usize::MAX),
        nowhere(RUN_ARGUMENTS_BYTES),
    );
    op.device(&mut io)?;
    Ok(io.used_scratch)
}

/// Bytes of `RunArguments` of the kernels.
pub(crate) const RUN_ARGUMENTS_BYTES: usize = 24;

#[cfg(test)]
mod tests;
