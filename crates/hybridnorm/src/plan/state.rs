//! Access of a program to state: buffers that it writes, and rounded copies that it reads or updates.

use std::collections::BTreeSet;

use super::step::{Region, Step, Storage};
use crate::graph::{Buffer, DType};

/// Part of the copy of a buffer, rounded to bfloat16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RoundedRange {
    pub(crate) buffer: Buffer,
    /// First byte of the copy.
    pub(crate) start: usize,
    /// Byte behind the last.
    pub(crate) end: usize,
}

impl RoundedRange {
    /// Returns the range of the copy of elements in single precision.
    pub(crate) fn of_single(buffer: Buffer, start: usize, end: usize) -> Self {
        let of_copy = |at: usize| at / DType::F32.bytes() * DType::Bf16.bytes();
        Self {
            buffer,
            start: of_copy(start),
            end: of_copy(end),
        }
    }

    /// Returns the range of the elements in single precision.
    pub(crate) fn single(&self) -> [usize; 2] {
        [self.start, self.end].map(|at| at / DType::Bf16.bytes() * DType::F32.bytes())
    }

    /// Returns the buffer, and its first element of which the range is a copy.
    pub(crate) fn state(&self) -> (Buffer, usize) {
        (self.buffer, self.start / DType::Bf16.bytes())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.buffer == other.buffer && self.start < other.end && other.start < self.end
    }
}

/// State that the steps of a program access.
#[derive(Debug, Default)]
pub(crate) struct StateAccess {
    /// Copies that it reads or updates.
    pub(crate) rounded: BTreeSet<RoundedRange>,
    /// Buffers that it writes.
    pub(crate) updated: BTreeSet<Buffer>,
    /// Copies that an op updates together with the elements, which no later op changes.
    pub(crate) updated_copies: BTreeSet<RoundedRange>,
}

impl StateAccess {
    /// Collects the access of steps in this order.
    ///
    /// # Panics
    /// If an op reads the copy of elements that another one has changed before without their copy, a defect of the program.
    pub(crate) fn of(steps: &[Step]) -> Self {
        let mut access = Self::default();
        let regions = || steps.iter().flat_map(|step| &step.regions);
        let copied = regions().filter_map(|(region, _)| match region.storage {
            Storage::Rounded(buffer) => Some(buffer),
            _ => None,
        });
        let copied: BTreeSet<Buffer> = copied.collect();
        let mut changed: Vec<RoundedRange> = Vec::new();
        for (region, is_written) in regions() {
            let &Region {
                storage,
                start,
                end,
            } = region;
            match (storage, is_written) {
                (Storage::Buffer(buffer), true) => {
                    access.updated.insert(buffer);
                    if copied.contains(&buffer) {
                        let range = RoundedRange::of_single(buffer, start, end);
                        access.updated_copies.retain(|copy| !copy.overlaps(&range));
                        changed.push(range);
                    }
                }
                (Storage::Rounded(buffer), is_written) => {
                    let range = RoundedRange { buffer, start, end };
                    access.rounded.insert(range);
                    // The regions of a step are ordered: those of buffers come first.
                    if *is_written {
                        changed.retain(|changed| *changed != range);
                        access.updated_copies.insert(range);
                    }
                    let is_stale = changed.iter().any(|changed| changed.overlaps(&range));
                    assert!(
                        !is_stale,
                        "a program reads a rounded copy after an update of its buffer"
                    );
                }
                (Storage::Arena | Storage::Buffer(_), _) => {}
            }
        }
        access
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Precision, Program};
    use super::*;
    use crate::graph::{Builder, Type, Value, ValueId};
    use crate::ops::{AdamW, adamw, linear, squared_norms, unit_rows};

    const WEIGHT: Buffer = Buffer(0);
    const COLUMNS: usize = 3;

    /// Returns the rounded copy of rows of the weight.
    fn copy_of(rows: std::ops::Range<usize>) -> RoundedRange {
        let [start, end] = [rows.start, rows.end].map(|row| 4 * COLUMNS * row);
        RoundedRange::of_single(WEIGHT, start, end)
    }

    fn weight(g: &Builder) -> Value<'_> {
        g.state(WEIGHT, 0, Type::f32([2, COLUMNS]))
    }

    /// Adds a matmul with the weight; returns its output.
    fn read(g: &Builder) -> ValueId {
        linear(g.input("x", Type::f32([4, COLUMNS])), weight(g)).id()
    }

    /// Adds an update of the weight.
    fn update(g: &Builder) {
        let w = weight(g);
        let gradient = g.input("gradient", w.ty());
        let [m, v] = [1, 2].map(|buffer| g.state(Buffer(buffer), 0, w.ty()));
        let settings = AdamW {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            max_grad_norm: 1.0,
            weight_decay: vec![0.0],
        };
        let squares = squared_norms(g, &[gradient]);
        adamw(settings, gradient, squares, &[[gradient, w, m, v]]);
    }

    fn plan(g: Builder, output: ValueId) -> Program {
        let residual = DType::F32;
        let options = Options::default()
            .with_precision(Precision::Bf16 { residual })
            .with_keep_rounded_weights(true);
        Program::new(g.finish(), &[output], options)
    }

    #[test]
    fn copies_that_are_updated_with_their_weights_are_current_afterwards() {
        let g = Builder::new();
        let y = read(&g);
        update(&g);
        let program = plan(g, y);
        assert_eq!(program.rounded_ranges(), [copy_of(0..2)]);
        assert_eq!(program.updated_copies(), [copy_of(0..2)]);
        assert_eq!(program.updated_buffers(), [0, 1, 2].map(Buffer));
    }

    #[test]
    fn copies_of_weights_that_another_op_changes_too_are_not_current() {
        for normalizes_first in [false, true] {
            let g = Builder::new();
            let y = read(&g);
            if normalizes_first {
                unit_rows(weight(&g), COLUMNS);
            }
            update(&g);
            if !normalizes_first {
                unit_rows(weight(&g), COLUMNS);
            }
            let program = plan(g, y);
            assert_eq!(program.rounded_ranges(), [copy_of(0..2)]);
            assert_eq!(program.updated_copies(), []);
        }
    }

    #[test]
    fn weights_that_have_changed_in_the_program_are_rounded_where_they_are_used() {
        let g = Builder::new();
        unit_rows(weight(&g), COLUMNS);
        let y = read(&g);
        let program = plan(g, y);
        assert_eq!(program.rounded_ranges(), []);
        assert_eq!(program.updated_buffers(), [WEIGHT]);
    }

    #[test]
    fn an_update_alone_writes_the_copies_that_another_program_reads() {
        let g = Builder::new();
        let y = read(&g);
        let reading = plan(g, y);
        let g = Builder::new();
        update(&g);
        let options = Options::default().with_keep_rounded_weights(true);
        let program = Program::with_copies(g.finish(), &[], options, reading.rounded_ranges());
        assert_eq!(program.updated_copies(), [copy_of(0..2)]);
        let options = options.with_keep_rounded_weights(false);
        let g = Builder::new();
        update(&g);
        let program = Program::with_copies(g.finish(), &[], options, reading.rounded_ranges());
        assert_eq!(program.rounded_ranges(), []);
    }

    #[test]
    fn ranges_overlap_unless_they_only_touch() {
        assert!(copy_of(0..2).overlaps(&copy_of(1..3)));
        assert!(!copy_of(0..2).overlaps(&copy_of(2..3)));
        let other = RoundedRange {
            buffer: Buffer(1),
            ..copy_of(0..2)
        };
        assert!(!copy_of(0..2).overlaps(&other));
        assert_eq!(copy_of(1..2).single(), [4 * COLUMNS, 8 * COLUMNS]);
        assert_eq!(copy_of(1..2).bytes(), 2 * COLUMNS);
    }
}
