//! Packed right operands that outlive a matmul.

use super::panels::{PANEL, PanelRow, Precision, pack, pack_transposed, panels};
use super::{Matrix, is_parallel};
use rayon::prelude::*;

/// Panels that a task packs: reads of a row cover whole cache lines.
const PANELS: usize = 8;

/// Right operand of a matmul, (inner, columns), packed into panels of 16 columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    precision: Precision,
    inner: usize,
    columns: usize,
    rows: Vec<PanelRow>,
}

impl Packed {
    /// Packs the matrix (inner, columns), rounded to the precision.
    pub fn new(precision: Precision, b: Matrix) -> Self {
        let mut packed = Self::zeros(precision, b.rows, b.columns);
        packed.fill(|first, count, out, steps| {
            let columns = (b.columns - first).min(count);
            pack(precision, b.from(0, first), b.rows, columns, out, steps);
        });
        packed
    }

    /// Packs the transpose of the matrix (columns, inner), rounded to the precision.
    pub fn transposed(precision: Precision, b: Matrix) -> Self {
        let mut packed = Self::zeros(precision, b.columns, b.rows);
        packed.fill(|first, count, out, steps| {
            let rows = (b.rows - first).min(count);
            pack_transposed(precision, b.from(first, 0), rows, b.columns, out, steps);
        });
        packed
    }

    fn zeros(precision: Precision, inner: usize, columns: usize) -> Self {
        let rows = precision.steps(inner) * panels(columns);
        Self {
            precision,
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
        self.precision
    }

    /// Returns the number of rows of the matrix.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Returns the number of columns of the matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the rows of a panel.
    pub(super) fn steps(&self) -> usize {
        self.precision.steps(self.inner)
    }

    /// Returns the panels from the one of a column on.
    pub(super) fn panels_from(&self, column: usize) -> &[PanelRow] {
        &self.rows[column / PANEL * self.steps()..]
    }
}
