//! Tiles of the left operand.

use super::{ROWS, TILE};
use crate::matmul::panels::{PANEL, PanelRow};
use crate::matmul::tiles::{Left, LeftLayout, SUM_STEPS};
use crate::matmul::transpose::transposed;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Blocks of steps of up to 32 rows.
pub(super) struct LeftTiles<'a> {
    pub(super) data: *const u32,
    /// Steps from a row to the next, and from a block to the next.
    pub(super) stride: usize,
    pub(super) block: usize,
    /// Numbers of rows and blocks that may be read.
    pub(super) rows: usize,
    pub(super) blocks: usize,
    operand: PhantomData<&'a [u32]>,
}

impl<'a> LeftTiles<'a> {
    /// Returns the tiles of rows in row-major layout; `steps` are whole blocks.
    #[inline(always)]
    pub(super) fn in_place(left: &Left<'a>, rows: &Range<usize>, steps: &Range<usize>) -> Self {
        let data = &left.data[rows.start * left.stride + steps.start..];
        let last = &data[(rows.len() - 1) * left.stride..];
        assert!(
            steps.len() <= last.len(),
            "matmul: the left operand is too short"
        );
        Self {
            data: data.as_ptr(),
            stride: left.stride,
            block: TILE,
            rows: rows.len(),
            blocks: steps.len() / TILE,
            operand: PhantomData,
        }
    }
}

/// Copy of the blocks of a group of rows that cannot be read in place.
pub(super) struct LeftCopy {
    /// Rows of a block one after another. Not initialized, since small matmuls use little of it.
    rows: [MaybeUninit<PanelRow>; SUM_STEPS / TILE * ROWS],
    /// First row and first step of the copy.
    held: Option<(usize, usize)>,
}

impl LeftCopy {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self {
            rows: [MaybeUninit::uninit(); _],
            held: None,
        }
    }

    /// Copies the blocks that cannot be read in place, unless they are held: once for all panels if the inner dimension
    /// is one sum. `parts` are the consecutive steps before, in and after whole blocks.
    pub(super) fn copy(&mut self, left: &Left, rows: &Range<usize>, parts: &[Range<usize>; 3]) {
        let start = parts[0].start;
        if self.held == Some((rows.start, start)) {
            return;
        }
        self.held = Some((rows.start, start));
        let [head, whole, tail] = parts;
        let whole = match left.layout {
            LeftLayout::RowMajor => 0..0,
            LeftLayout::StepMajor => whole.clone(),
        };
        for part in [head.clone(), whole, tail.clone()] {
            for first in part.clone().step_by(TILE) {
                let steps = first..part.end.min(first + TILE);
                let out = &mut self.rows[(first / TILE - start / TILE) * ROWS..][..ROWS];
                match left.layout {
                    LeftLayout::RowMajor => copy_rows(left, rows.clone(), steps, out),
                    LeftLayout::StepMajor => copy_transposed(left, rows.clone(), steps, out),
                }
            }
        }
    }

    /// Returns the tiles from a step on.
    #[inline(always)]
    pub(super) fn tiles(&self, step: usize) -> LeftTiles<'_> {
        let start = self.held.map_or(step, |(_, start)| start);
        let rows = &self.rows[(step / TILE - start / TILE) * ROWS..];
        LeftTiles {
            data: rows.as_ptr().cast(),
            stride: PANEL,
            block: ROWS * PANEL,
            rows: ROWS,
            blocks: rows.len() / ROWS,
            operand: PhantomData,
        }
    }
}

/// Writes steps of a block of rows, filled up with zeros.
fn copy_rows(
    left: &Left,
    rows: Range<usize>,
    steps: Range<usize>,
    out: &mut [MaybeUninit<PanelRow>],
) {
    for (row, out) in rows.zip(out) {
        let mut padded = PanelRow::ZERO;
        padded.0[..steps.len()].copy_from_slice(&left.data[row * left.stride..][steps.clone()]);
        out.write(padded);
    }
}

/// Writes steps of a block of rows of an operand in step-major layout, filled up with zeros.
fn copy_transposed(
    left: &Left,
    rows: Range<usize>,
    steps: Range<usize>,
    out: &mut [MaybeUninit<PanelRow>],
) {
    for (row, out) in rows.clone().step_by(TILE).zip(out.chunks_mut(TILE)) {
        let count = TILE.min(rows.end - row);
        let mut square = [[0; PANEL]; PANEL];
        for (step, square) in steps.clone().zip(&mut square) {
            let data = &left.data[step * left.stride + row..];
            match data.first_chunk::<TILE>() {
                // May include elements of other rows, which are not used.
                Some(whole) => *square = *whole,
                None => square[..count].copy_from_slice(&data[..count]),
            }
        }
        for (out, row) in out.iter_mut().zip(transposed(&square)) {
            out.write(row);
        }
    }
}
