//! Transposition of squares of panel rows.

use super::panels::{PANEL, PanelRow};

/// Returns the columns of a square as rows.
#[inline(always)]
pub(super) fn transposed(square: &[[u32; PANEL]; PANEL]) -> [PanelRow; PANEL] {
    let mut out = [PanelRow::ZERO; PANEL];
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the instructions.
        unsafe { avx512(square, &mut out) };
        return out;
    }
    plain(square, &mut out);
    out
}

/// Writes the columns of a square as rows.
#[inline(always)]
fn plain(square: &[[u32; PANEL]; PANEL], out: &mut [PanelRow; PANEL]) {
    for (c, out) in out.iter_mut().enumerate() {
        for (out, row) in out.0.iter_mut().zip(square) {
            *out = row[c];
        }
    }
}

/// Writes the columns of a square as rows. Compilers turn loops over elements into scattered stores, which take as long
/// as the multiplications by many panels.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(square: &[[u32; PANEL]; PANEL], out: &mut [PanelRow; PANEL]) {
    use std::arch::x86_64::{
        _mm512_add_epi32, _mm512_loadu_si512, _mm512_permutex2var_epi32, _mm512_set1_epi32,
        _mm512_setr_epi32, _mm512_storeu_si512,
    };
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    // Not `map`, whose closure would pass vectors through memory.
    let mut rows = [low; PANEL];
    for (out, row) in rows.iter_mut().zip(square) {
        // SAFETY: a row has the 64 bytes that are read.
        *out = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    }
    // Interleaving the first half of the rows with the second rotates the bits of an element's index by one.
    for _ in 0..4 {
        let before = rows;
        for i in 0..PANEL / 2 {
            let [first, second] = [before[i], before[i + PANEL / 2]];
            rows[2 * i] = _mm512_permutex2var_epi32(first, low, second);
            rows[2 * i + 1] = _mm512_permutex2var_epi32(first, high, second);
        }
    }
    for (out, row) in out.iter_mut().zip(rows) {
        // SAFETY: a row has the 64 bytes that are written.
        unsafe { _mm512_storeu_si512(out.0.as_mut_ptr().cast(), row) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let mut square = [[0; PANEL]; PANEL];
        for (i, x) in (0..).zip(square.as_flattened_mut()) {
            *x = i;
        }
        let mut out = [PanelRow::ZERO; PANEL];
        plain(&square, &mut out);
        for out in [out, transposed(&square)] {
            for (i, row) in out.iter().enumerate() {
                for (j, x) in row.0.iter().enumerate() {
                    assert_eq!(*x, square[j][i]);
                }
            }
        }
    }
}
