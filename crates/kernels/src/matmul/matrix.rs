//! Row-major matrices: operands and results of a matmul.

use super::panels::Rows;
use crate::floats::{Floats, FloatsMut};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// A row-major matrix.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(super) data: Floats<'a>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) stride: usize,
}

/// A row-major matrix that is written.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    pub(super) data: FloatsMut<'a>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) stride: usize,
}

impl<'a> Matrix<'a> {
    /// Creates a matrix (rows, columns) of contiguous elements.
    ///
    /// # Panics
    /// If there are more or fewer elements.
    pub fn new(data: impl Into<Floats<'a>>, rows: usize, columns: usize) -> Self {
        let data = data.into();
        check_len(data.len(), rows, columns);
        Self::with_stride(data, rows, columns, columns)
    }

    /// Creates a matrix whose row i starts at `i * stride` of a slice that may be longer.
    ///
    /// # Panics
    /// If the slice is too short, or rows overlap.
    pub fn with_stride(
        data: impl Into<Floats<'a>>,
        rows: usize,
        columns: usize,
        stride: usize,
    ) -> Self {
        let data = data.into();
        check_stride(data.len(), rows, columns, stride);
        Self {
            data,
            rows,
            columns,
            stride,
        }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns some of the columns.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        let width = columns.len();
        assert!(columns.end <= self.columns, "matmul: no such columns");
        let data = self.data.skip(columns.start.min(self.data.len()));
        Self::with_stride(data, self.rows, width, self.stride)
    }

    /// Copies the matrix, rounded to bfloat16.
    pub(super) fn narrowed(self) -> Vec<bf16> {
        let mut out = vec![bf16::ZERO; self.rows * self.columns];
        let rows = out.par_chunks_mut(self.columns.max(1)).enumerate();
        rows.for_each(|(i, out)| {
            FloatsMut::from(out).copy_from(self.from(i, 0).row(0, self.columns));
        });
        out
    }

    /// Returns the rows from `row` on, and their elements from `column` on.
    pub(super) fn from(self, row: usize, column: usize) -> Rows<'a> {
        let start = (row * self.stride + column).min(self.data.len());
        Rows::new(self.data.skip(start), self.stride)
    }
}

impl<'a> MatrixMut<'a> {
    /// Creates a matrix as [`Matrix::new`] does.
    pub fn new(data: impl Into<FloatsMut<'a>>, rows: usize, columns: usize) -> Self {
        let data = data.into();
        check_len(data.len(), rows, columns);
        Self::with_stride(data, rows, columns, columns)
    }

    /// Creates a matrix as [`Matrix::with_stride`] does.
    pub fn with_stride(
        data: impl Into<FloatsMut<'a>>,
        rows: usize,
        columns: usize,
        stride: usize,
    ) -> Self {
        let data = data.into();
        check_stride(data.len(), rows, columns, stride);
        Self {
            data,
            rows,
            columns,
            stride,
        }
    }
}

fn check_len(len: usize, rows: usize, columns: usize) {
    assert_eq!(
        len,
        rows * columns,
        "matmul: a matrix is not ({rows}, {columns})"
    );
}

fn check_stride(len: usize, rows: usize, columns: usize, stride: usize) {
    if rows == 0 {
        return;
    }
    assert!(
        columns <= stride,
        "matmul: rows of {columns} with stride {stride} overlap"
    );
    let last = (rows - 1)
        .checked_mul(stride)
        .and_then(|last| last.checked_add(columns));
    assert!(
        last.is_some_and(|last| last <= len),
        "matmul: a matrix ({rows}, {columns}) with stride {stride} does not fit a slice of {len}"
    );
}
