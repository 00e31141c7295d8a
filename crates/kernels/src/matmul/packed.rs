//! Packed right operands that outlive a matmul.

use super::kernel::Kernel;
use super::panels::{PANEL, PanelRow, pack, pack_transposed, panels};
use super::{Matrix, Precision, is_parallel};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Panels that a task packs: reads of a row cover whole cache lines.
const PANELS: usize = 8;

/// Right operand of a matmul, (inner, columns), packed into panels of 16 columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    kernel: Kernel,
    inner: usize,
    columns: usize,
    rows: Vec<PanelRow>,
}

impl Packed {
    /// Packs the matrix (inner, columns), rounded to the precision.
    pub fn new(precision: Precision, b: Matrix) -> Self {
        Self::for_kernel(precision.into(), b)
    }

    /// Packs the matrix (inner, columns) for a kernel of its own choice.
    pub(super) fn for_kernel(kernel: Kernel, b: Matrix) -> Self {
        Self::filled(kernel, b.rows, b.columns, |first, count, out, steps| {
            let columns = (b.columns - first).min(count);
            pack(kernel, b.from(0, first), b.rows, columns, out, steps);
        })
    }

    /// Packs the transpose of the matrix (columns, inner), rounded to the precision.
    pub fn transposed(precision: Precision, b: Matrix) -> Self {
        let kernel = precision.into();
        Self::filled(kernel, b.columns, b.rows, |first, count, out, steps| {
            let rows = (b.rows - first).min(count);
            pack_transposed(kernel, b.from(first, 0), rows, b.columns, out, steps);
        })
    }

    /// Calls `pack` with the first column of each group of panels, their number of columns, the panels and the steps; it
    /// has to write all of their rows, which are not cleared before: that would take as long.
    fn filled(
        kernel: Kernel,
        inner: usize,
        columns: usize,
        pack: impl Fn(usize, usize, &mut [MaybeUninit<PanelRow>], usize) + Sync,
    ) -> Self {
        let steps = kernel.steps(inner);
        let len = steps * panels(columns);
        let mut rows = Vec::with_capacity(len);
        let run = |(group, out): (usize, &mut [_])| {
            pack(group * PANELS * PANEL, PANELS * PANEL, out, steps);
        };
        let out = &mut rows.spare_capacity_mut()[..len];
        let size = (PANELS * steps).max(1);
        match is_parallel(inner, columns, PANEL) {
            true => out.par_chunks_mut(size).enumerate().for_each(run),
            false => out.chunks_mut(size).enumerate().for_each(run),
        }
        // SAFETY: the chunks are all of these rows, and both callers write each row of a chunk (`panels::tests`).
        unsafe { rows.set_len(len) };
        Self {
            kernel,
            inner,
            columns,
            rows,
        }
    }

    /// Returns the bytes of a packed matrix.
    pub fn bytes(precision: Precision, inner: usize, columns: usize) -> usize {
        size_of::<PanelRow>() * precision.steps(inner) * panels(columns)
    }

    /// Returns the precision of its elements.
    pub fn precision(&self) -> Precision {
        self.kernel.precision()
    }

    /// Returns the number of rows of the matrix.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Returns the number of columns of the matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the kernel that multiplies it.
    pub(super) fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Returns the rows of a panel.
    pub(super) fn steps(&self) -> usize {
        self.kernel.steps(self.inner)
    }

    /// Returns the panels from the one of a column on.
    pub(super) fn panels_from(&self, column: usize) -> &[PanelRow] {
        &self.rows[column / PANEL * self.steps()..]
    }
}
