//! Commands of decoding with a cache.

use hybridnorm_cuda::{Arguments, Command, ElementType, Elements, Matmul, MatrixOperand};

use super::{DeviceOperands, Grid, THREADS, WARP};

/// New rows with their places in a cache: `CacheRow` of the kernels.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct CacheRows {
    rows: Elements,
}

/// Integers of a `CacheRow`.
const ROW_INTS: usize = 2;

impl CacheRows {
    /// Records the places of `count` rows of sequences of equal length, one in each slot.
    pub(in crate::ops) fn of_sequences(
        io: &mut DeviceOperands,
        count: usize,
        length: usize,
    ) -> Self {
        let rows = io.scratch(ElementType::I32, ROW_INTS * count);
        let arguments = Arguments::default()
            .address(io.run_arguments())
            .address(rows.span)
            .long(count as i64)
            .count(length.max(1));
        io.launch("sequence_rows", Grid::elements(count), arguments);
        Self { rows }
    }

    /// Records the places of `count` rows of segments (s, 3).
    pub(in crate::ops) fn of_segments(
        io: &mut DeviceOperands,
        segments: Elements,
        count: usize,
    ) -> Self {
        let rows = io.scratch(ElementType::I32, ROW_INTS * count);
        let arguments = Arguments::default()
            .address(segments.span)
            .address(rows.span)
            .long(count as i64)
            .count(segments.len() / crate::ops::Segment::WIDTH);
        io.launch("segment_rows", Grid::elements(count), arguments);
        Self { rows }
    }

    fn count(self) -> usize {
        self.rows.len() / ROW_INTS
    }

    /// Records the positions of the rows.
    pub(in crate::ops) fn positions(self, io: &mut DeviceOperands, positions: Elements) {
        let arguments = Arguments::default()
            .address(self.rows.span)
            .address(positions.span)
            .long(self.count() as i64);
        io.launch("row_positions", Grid::elements(self.count()), arguments);
    }

    /// Records the copy of columns of rows to a cache (slots, capacity, columns).
    pub(in crate::ops) fn append(
        self,
        io: &mut DeviceOperands,
        x: Elements,
        cache: Elements,
        layout: Appended,
    ) {
        let Appended {
            width,
            first,
            columns,
            capacity,
        } = layout;
        let arguments = Arguments::default()
            .address(self.rows.span)
            .floats(x)
            .address(cache.span)
            .long(self.count() as i64)
            .long(capacity as i64)
            .count(width)
            .count(first)
            .count(columns);
        io.launch(
            "append_rows",
            Grid::elements(self.count() * columns),
            arguments,
        );
    }

    /// Records attention of the queries of rows to a cache.
    ///
    /// # Errors
    /// If values are too wide for the shared memory of a card.
    pub(in crate::ops) fn attend(
        self,
        io: &mut DeviceOperands,
        [q, cache, y]: [Elements; 3],
        layout: CacheAttention,
    ) -> Result<(), String> {
        let arguments = Arguments::default()
            .address(self.rows.span)
            .floats(q)
            .address(cache.span)
            .floats(y)
            .long(self.count() as i64)
            .long(layout.capacity as i64)
            .count(layout.heads)
            .count(layout.kv_heads)
            .count(layout.key_dim)
            .count(layout.value_dim)
            .count(layout.q_width)
            .count(layout.columns)
            .count(layout.first_value)
            .count(layout.window.unwrap_or(0))
            .float(layout.scale)
            .float(layout.softcap.unwrap_or(0.0));
        let floats = THREADS / WARP * (2 + layout.value_dim);
        let grid = Grid::tiles(self.count() * layout.heads, floats)?;
        io.launch("cached_attention", grid, arguments);
        Ok(())
    }
}

/// Columns of rows that are copied to a cache.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Appended {
    /// Width of a row.
    pub(in crate::ops) width: usize,
    /// First column.
    pub(in crate::ops) first: usize,
    /// Number of columns.
    pub(in crate::ops) columns: usize,
    /// Positions of a slot.
    pub(in crate::ops) capacity: usize,
}

/// Sizes of attention to a cache, `CachedAttention` of the kernels.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct CacheAttention {
    /// Positions of a slot.
    pub(in crate::ops) capacity: usize,
    /// Query heads.
    pub(in crate::ops) heads: usize,
    /// Key/value heads.
    pub(in crate::ops) kv_heads: usize,
    /// Width of a query or key head.
    pub(in crate::ops) key_dim: usize,
    /// Width of a value head.
    pub(in crate::ops) value_dim: usize,
    /// Width of a row that begins with the queries.
    pub(in crate::ops) q_width: usize,
    /// Width of a cached row, which begins with the keys.
    pub(in crate::ops) columns: usize,
    /// First column of the values.
    pub(in crate::ops) first_value: usize,
    /// Keys that a query attends to, itself included.
    pub(in crate::ops) window: Option<usize>,
    /// Factor on the products of queries and keys.
    pub(in crate::ops) scale: f32,
    /// Soft cap of the logits.
    pub(in crate::ops) softcap: Option<f32>,
}

/// Channels of rows that are rotated.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Rotated {
    /// Width of a row.
    pub(in crate::ops) width: usize,
    /// First channel.
    pub(in crate::ops) first: usize,
    /// Number of channels.
    pub(in crate::ops) channels: usize,
    /// Rows that share a position.
    pub(in crate::ops) rows_per_position: usize,
}

impl Rotated {
    /// Records the rotation of rows, in place, by the positions of a table (t, channels).
    pub(in crate::ops) fn record(self, io: &mut DeviceOperands, x: Elements, table: Elements) {
        let rows = x.len() / self.width;
        let arguments = Arguments::default()
            .address(x.span)
            .address(table.span)
            .long(rows as i64)
            .count(self.width)
            .count(self.first)
            .count(self.channels)
            .count(self.rows_per_position)
            .count(table.len() / self.channels);
        io.launch(
            "rotate_channels",
            Grid::elements(rows * self.channels / 2),
            arguments,
        );
    }
}

/// Columns of a matrix, from a first one on, or the transpose of them.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Block {
    /// All elements, in single precision.
    pub(in crate::ops) elements: Elements,
    /// Index of the first element.
    pub(in crate::ops) first: usize,
    /// Elements from a row to the next.
    pub(in crate::ops) stride: usize,
    /// True for the transpose.
    pub(in crate::ops) is_transposed: bool,
}

impl Block {
    fn operand(self) -> MatrixOperand {
        let len = self.elements.len().saturating_sub(self.first);
        MatrixOperand {
            elements: self.elements.part(self.elements.len() - len, len),
            stride: self.stride,
            is_transposed: self.is_transposed,
        }
    }
}

/// Records `c = a b` for blocks (m, k), (k, n) and (m, n) in single precision.
pub(in crate::ops) fn multiply_blocks(
    io: &mut DeviceOperands,
    [m, n, k]: [usize; 3],
    [a, b, c]: [Block; 3],
) {
    io.commands.push(Command::Matmul(Matmul {
        m,
        n,
        k,
        a: a.operand(),
        b: b.operand(),
        c: c.operand(),
        accumulate: false,
    }));
}
