//! Key/value or latent cache for generation.

use crate::attention::capacity;
use crate::floats::Floats;
use crate::parallel::rows_per_chunk;
use rayon::prelude::*;

/// Columns of new rows that a cache stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append {
    /// Sequences.
    pub batch: usize,
    /// Columns of a new row.
    pub width: usize,
    /// First stored column.
    pub first_column: usize,
    /// Number of stored columns, the width of a cache row.
    pub columns: usize,
}

/// Copies columns of `rows` (batch, new, width) to the rows `past..past + new` of each sequence of `cache`
/// (batch, capacity, columns). All other rows stay unchanged.
pub fn append<'a>(a: &Append, rows: impl Into<Floats<'a>>, past: usize, cache: &mut [f32]) {
    let rows = rows.into();
    let name = "cache::append";
    let Append {
        batch,
        width,
        first_column,
        columns,
    } = *a;
    assert!(columns > 0, "{name}: columns must be at least 1");
    assert!(
        first_column + columns <= width,
        "{name}: columns {first_column}..{} exceed the row width {width}",
        first_column + columns
    );
    if batch == 0 {
        return;
    }
    assert!(
        rows.len().is_multiple_of(batch * width),
        "{name}: rows are not ({batch}, new, {width})"
    );
    let new = rows.len() / (batch * width);
    let capacity = capacity(name, cache, batch, columns, past + new);
    if new == 0 {
        return;
    }
    let chunk = rows_per_chunk(new, columns);
    let sequences = cache.par_chunks_exact_mut(capacity * columns).enumerate();
    sequences
        .flat_map(|(sequence, cache)| {
            let cache = &mut cache[past * columns..][..new * columns];
            let chunks = cache.par_chunks_mut(chunk * columns).enumerate();
            chunks.map(move |(c, cache)| (sequence * new + c * chunk, cache))
        })
        .for_each(|(first, cache)| {
            for (row, cached) in (first..).zip(cache.chunks_exact_mut(columns)) {
                let start = row * width + first_column;
                rows.slice(start..start + columns).widen(cached);
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn rows_are_appended_after_the_past_ones() {
        for (batch, new, past, capacity) in [(1, 1, 0, 1), (2, 3, 4, 9), (3, 700, 5, 705)] {
            let a = Append {
                batch,
                width: 11,
                first_column: 4,
                columns: 5,
            };
            let mut rng = Rng::new(61);
            let rows = rng.normal(batch * new * a.width);
            let before = rng.normal(batch * capacity * a.columns);
            let mut cache = before.clone();
            append(&a, &rows, past, &mut cache);
            for (i, (cached, before)) in cache.iter().zip(before).enumerate() {
                let (row, column) = (i / a.columns, i % a.columns);
                let (sequence, position) = (row / capacity, row % capacity);
                let expected = match position.checked_sub(past) {
                    Some(p) if p < new => {
                        rows[(sequence * new + p) * a.width + a.first_column + column]
                    }
                    _ => before,
                };
                assert_eq!(*cached, expected);
            }
        }
    }

    #[test]
    #[should_panic(expected = "cache::append: 4 past and new rows exceed the capacity 3")]
    fn append_beyond_the_capacity_is_rejected() {
        let a = Append {
            batch: 2,
            width: 5,
            first_column: 0,
            columns: 5,
        };
        append(&a, &[0.0f32; 20], 2, &mut [0.0; 30]);
    }
}
