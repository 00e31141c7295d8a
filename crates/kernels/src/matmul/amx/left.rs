//! Tiles of the left operand.

use super::{ROWS, TILE};
use crate::matmul::panels::{PANEL, PanelRow};
use crate::matmul::tiles::Left;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Blocks of steps of up to 32 rows.
pub(super) struct LeftTiles<'a> {
    pub(super) data: *const u32,
    /// Steps from a row to the next; a block follows the one before.
    pub(super) stride: usize,
    /// Numbers of rows and blocks that may be read.
    pub(super) rows: usize,
    pub(super) blocks: usize,
    operand: PhantomData<&'a [u32]>,
}

impl<'a> LeftTiles<'a> {
    /// Returns the tiles of rows in place; `steps` are whole blocks.
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
            rows: rows.len(),
            blocks: steps.len() / TILE,
            operand: PhantomData,
        }
    }
}

/// Copies of the blocks of a group of rows that are active in part: the first and the last one.
pub(super) struct LeftCopy {
    /// Not initialized, since most matmuls do not use it.
    rows: [[MaybeUninit<PanelRow>; ROWS]; 2],
    /// Rows, and first step of the copies.
    held: Option<(Range<usize>, usize)>,
}

impl LeftCopy {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self {
            rows: [[MaybeUninit::uninit(); _]; _],
            held: None,
        }
    }

    /// Copies steps that are parts of blocks, filled up with zeros, unless they are held: once for all panels if the
    /// inner dimension is one sum.
    #[inline(always)]
    pub(super) fn copy(&mut self, left: &Left, rows: &Range<usize>, parts: [&Range<usize>; 2]) {
        let key = Some((rows.clone(), parts[0].start));
        if self.held == key {
            return;
        }
        self.held = key;
        for (steps, copy) in parts.into_iter().zip(&mut self.rows) {
            if steps.is_empty() {
                continue;
            }
            for (row, out) in rows.clone().zip(copy) {
                let mut padded = PanelRow::ZERO;
                let data = &left.data[row * left.stride..][steps.clone()];
                padded.0[..data.len()].copy_from_slice(data);
                out.write(padded);
            }
        }
    }

    /// Returns the copy of the first or the last block.
    #[inline(always)]
    pub(super) fn tiles(&self, part: usize) -> LeftTiles<'_> {
        LeftTiles {
            data: self.rows[part].as_ptr().cast(),
            stride: PANEL,
            rows: self.held.as_ref().map_or(0, |(rows, _)| rows.len()),
            blocks: 1,
            operand: PhantomData,
        }
    }
}
