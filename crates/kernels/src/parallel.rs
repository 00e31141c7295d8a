//! Chunking rules. They depend on shapes only, never on the number of threads.

/// Elements per chunk of an element-wise op: small enough for the L2 cache.
pub(crate) const ELEMENTS: usize = 16 * 1024;

/// Maximum number of chunks of a set of rows, which bounds the partial parameter gradients.
const MAX_CHUNKS: usize = 128;

/// Minimum number of elements per chunk.
const MIN_ELEMENTS: usize = 4 * 1024;

/// Returns the rows per chunk for `rows` rows of `width` values; at least 1.
pub(crate) fn rows_per_chunk(rows: usize, width: usize) -> usize {
    rows.div_ceil(MAX_CHUNKS)
        .max(MIN_ELEMENTS.div_ceil(width.max(1)))
}

/// Sums partial gradients, each as long as `total`, in order.
pub(crate) fn sum_partials(partials: &[Vec<f32>], total: &mut [f32]) {
    total.fill(0.0);
    for partial in partials {
        for (t, p) in total.iter_mut().zip(partial) {
            *t += p;
        }
    }
}
