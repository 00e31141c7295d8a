//! Matmuls with TDPBF16PS of AMX.
//!
//! A tile register holds 16 rows of 64 bytes: 16 steps of a panel, or of 16 rows of the left operand. A group of 32
//! rows and two panels take four registers of sums, so that each tile that is loaded is multiplied twice.
//!
//! Steps are added in blocks of 16 that begin at multiples of 16, for any active region: the sums of a row are the same
//! in any group of rows. Blocks that are active in part are copied and filled up with zeros on both sides, since what is
//! there may not be finite. Rows of the left operand are read in place, so that it has to be in row-major layout.

#[cfg(any(test, feature = "testing"))]
mod emulator;
mod left;
#[cfg(any(test, feature = "testing"))]
mod model;
mod registers;
#[cfg(test)]
mod tests;

use super::panels::{PANEL, PanelRow, panels};
use super::tiles::{Left, LeftLayout, Output, SUM_STEPS, TiledMatmul};
use crate::simd::dispatch;
use left::{LeftCopy, LeftTiles};
use registers::{Registers, Sums};
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::array;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

/// Rows of a tile, and steps of a block.
const TILE: usize = 16;
/// Rows of a group.
pub(super) const ROWS: usize = 2 * TILE;

/// Proof that the process may use the instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Token(());

impl Token {
    /// Returns a token if the processor has the instructions and the system permits them.
    #[inline]
    pub(crate) fn new() -> Option<Self> {
        static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
        let is_available = *IS_AVAILABLE.get_or_init(|| is_supported() && is_permitted());
        is_available.then_some(Self(()))
    }

    /// Returns a token whose instructions are emulated if the processor lacks them.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn emulated() -> Self {
        Self::new().unwrap_or_else(|| {
            emulator::install();
            Self(())
        })
    }

    /// Runs a matmul.
    #[inline(always)]
    pub(super) fn run<O: Output>(
        self,
        matmul: TiledMatmul<'_, O>,
        active: impl Fn(Range<usize>) -> (Range<usize>, usize),
    ) {
        dispatch(
            #[inline(always)]
            || run(self, matmul, active),
        );
    }
}

/// Iterates over groups of rows and pairs of panels.
#[inline(always)]
fn run<O: Output>(
    token: Token,
    mut matmul: TiledMatmul<'_, O>,
    active: impl Fn(Range<usize>) -> (Range<usize>, usize),
) {
    let mut kernel = Kernel::new(token, matmul.left, matmul.right, matmul.steps);
    let mut buffer = Sums::new();
    for row in (0..matmul.rows).step_by(ROWS) {
        let rows = row..matmul.rows.min(row + ROWS);
        let (steps, columns) = active(rows.clone());
        let count = panels(columns.min(matmul.columns));
        for panel in (0..count).step_by(2) {
            let pair = panel..count.min(panel + 2);
            let column = panel * PANEL;
            let count = (pair.len() * PANEL).min(matmul.columns - column);
            for row in rows.clone() {
                matmul.out.prefetch(row, column, count);
            }
            let totals = kernel.total(&rows, &pair, &steps, &mut buffer);
            let totals = totals.chunks_exact(pair.len());
            for (row, totals) in rows.clone().zip(totals) {
                matmul.out.put(row, column, count, totals);
            }
        }
    }
}

/// True if the processor has AMX for bfloat16, and the system saves its registers.
fn is_supported() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AMX: u32 = 1 << 22 | 1 << 24;
    const TILES: u64 = 1 << 17 | 1 << 18;

    let has_instructions = __cpuid(0).eax >= 7
        && __cpuid(1).ecx & OSXSAVE != 0
        && __cpuid_count(7, 0).edx & AMX == AMX;
    // SAFETY: the system has enabled XGETBV if the bit OSXSAVE is set.
    has_instructions && unsafe { enabled_states() } & TILES == TILES
}

/// Returns the register states that the system saves, XCR0.
#[target_feature(enable = "xsave")]
fn enabled_states() -> u64 {
    // SAFETY: the register 0 exists.
    unsafe { _xgetbv(0) }
}

/// Requests the permission to use tile registers, which Linux demands of each process.
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;

    // SAFETY: the call reads and writes no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

/// A matmul in progress.
struct Kernel<'a> {
    left: Left<'a>,
    /// Panels of `steps` rows each.
    right: &'a [PanelRow],
    steps: usize,
    registers: Registers,
    left_copy: LeftCopy,
    /// First and last blocks of two panels, if they are active in part. Not initialized, as that of the left operand.
    right_copy: [[MaybeUninit<[PanelRow; TILE]>; 2]; 2],
}

impl<'a> Kernel<'a> {
    #[inline(always)]
    fn new(token: Token, left: Left<'a>, right: &'a [PanelRow], steps: usize) -> Self {
        assert_eq!(
            left.layout,
            LeftLayout::RowMajor,
            "matmul: a row of a tile is contiguous"
        );
        Self {
            left,
            right,
            steps,
            registers: Registers::new(token),
            left_copy: LeftCopy::new(),
            right_copy: [[MaybeUninit::uninit(); _]; _],
        }
    }

    /// Returns the sums of the products of all active steps, for at most 32 rows and one or two panels.
    #[inline(always)]
    fn total<'b>(
        &mut self,
        rows: &Range<usize>,
        panels: &Range<usize>,
        steps: &Range<usize>,
        buffer: &'b mut Sums,
    ) -> &'b mut [[f32; PANEL]] {
        let end_of_sum = |start: usize| steps.end.min((start / SUM_STEPS + 1) * SUM_STEPS);
        let mut start = end_of_sum(steps.start);
        let totals = self.sum(rows, panels, steps.start.min(start)..start, buffer);
        while start < steps.end {
            let end = end_of_sum(start);
            let mut buffer = Sums::new();
            let sums = self.sum(rows, panels, start..end, &mut buffer);
            for (total, sum) in totals
                .as_flattened_mut()
                .iter_mut()
                .zip(sums.as_flattened())
            {
                *total += sum;
            }
            start = end;
        }
        totals
    }

    /// Returns the sums of the products of at most `SUM_STEPS` steps. Not inlined: it is the same for all outputs.
    #[inline(never)]
    fn sum<'b>(
        &mut self,
        rows: &Range<usize>,
        panels: &Range<usize>,
        steps: Range<usize>,
        buffer: &'b mut Sums,
    ) -> &'b mut [[f32; PANEL]] {
        match panels.len() {
            1 => self.sum_of::<1>(rows, panels.start, steps, buffer),
            _ => self.sum_of::<2>(rows, panels.start, steps, buffer),
        }
    }

    fn sum_of<'b, const P: usize>(
        &mut self,
        rows: &Range<usize>,
        panel: usize,
        steps: Range<usize>,
        buffer: &'b mut Sums,
    ) -> &'b mut [[f32; PANEL]] {
        let left = &self.left;
        let parts = parts(&steps);
        self.registers.configure(rows.len());
        // Not whole panels: the operand may begin and end within one.
        let right = |part: &Range<usize>, p: usize| {
            &self.right[(panel + p) * self.steps + part.start..][..part.len()]
        };
        let [head, _, tail] = &parts;
        self.left_copy.copy(left, rows, [head, tail]);
        let mut copies = [[&[][..]; P]; 2];
        for ((part, slots), copies) in [head, tail]
            .into_iter()
            .zip(&mut self.right_copy)
            .zip(&mut copies)
        {
            if part.is_empty() {
                continue;
            }
            for (p, (slot, copy)) in slots.iter_mut().zip(copies).enumerate() {
                let block = slot.write([PanelRow::ZERO; TILE]);
                block[..part.len()].copy_from_slice(right(part, p));
                *copy = block;
            }
        }
        let segments = array::from_fn(|i| {
            let part = &parts[i];
            let (left, right) = match i {
                1 => (
                    LeftTiles::in_place(left, rows, part),
                    array::from_fn(|p| right(part, p)),
                ),
                _ => (self.left_copy.tiles(i / 2), copies[i / 2]),
            };
            self.registers
                .segment(left, right, part.len().div_ceil(TILE))
        });
        self.registers.multiply::<P>(&segments, buffer)
    }
}

/// Splits steps into those before, in and after whole blocks.
#[inline(always)]
fn parts(steps: &Range<usize>) -> [Range<usize>; 3] {
    let head = steps.end.min(steps.start.next_multiple_of(TILE));
    let whole = head.max(steps.end / TILE * TILE);
    [steps.start..head, head..whole, whole..steps.end]
}
