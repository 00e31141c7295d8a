//! Packed right operands that outlive a matmul.

use super::kernel::Kernel;
use super::panels::{PANEL, PanelRow, pack, pack_transposed, panels};
use super::{Matrix, Precision, is_parallel};
use rayon::prelude::*;

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
        let mut packed = Self::zeros(kernel, b.rows, b.columns);
        packed.fill(|first, count, out, steps| {
            let columns = (b.columns - first).min(count);
            pack(kernel, b.from(0, first), b.rows, columns, out, steps);
        });
        packed
    }

    /// Packs the transpose of the matrix (columns, inner), rounded to the precision.
    pub fn transposed(precision: Precision, b: Matrix) -> Self {
        let kernel = precision.into();
        let mut packed = Self::zeros(kernel, b.columns, b.rows);
        packed.fill(|first, count, out, steps| {
            let rows = (b.rows - first).min(count);
            pack_transposed(kernel, b.from(first, 0), rows, b.columns, out, steps);
        });
        packed
    }

    fn zeros(kernel: Kernel, inner: usize, columns: usize) -> Self {
        let rows = kernel.steps(inner) * panels(columns);
        Self {
            kernel,
            inner,
            columns,
            rows: vec![PanelRow::ZERO; rows],
        }
    }

    /// Calls `pack` with the first column of each group of panels, their number of columns, the panels and the steps.
    fn fill(&mut self, pack: impl Fn(usize, usize, &mut [PanelRow], usize) + Sync) {
        let steps = self.steps();
        if steps == 0 {
            return;
        }
        let run = |(group, out): (usize, &mut [PanelRow])| {
            pack(group * PANELS * PANEL, PANELS * PANEL, out, steps);
        };
        let is_parallel = is_parallel(self.inner, self.columns, PANEL);
        let size = PANELS * steps;
        match is_parallel {
            true => self.rows.par_chunks_mut(size).enumerate().for_each(run),
            false => self.rows.chunks_mut(size).enumerate().for_each(run),
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
