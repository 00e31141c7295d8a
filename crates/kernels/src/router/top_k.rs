//! Top-k selection of the experts of each token.

use super::{Router, scores};
use crate::parallel::rows_per_chunk;
use crate::simd::{LANES, dispatch, max};
use rayon::prelude::*;
use std::ops::Range;

/// Selects `selected` (n, k), the experts of each token in descending order of score plus bias, from
/// `logits` (n, E) and `bias` (E). Ties go to the lower index.
///
/// A group is ranked by its best expert, with a bias by the sum of its two best; only experts of the best
/// groups are selected. NaN counts as the largest number, so that it propagates to the weights.
pub fn select_top_k(r: &Router, logits: &[f32], bias: Option<&[f32]>, selected: &mut [i32]) {
    let n = r.check("router::select_top_k", logits);
    r.check_assignments("router::select_top_k: selected", n, selected.len());
    if let Some(bias) = bias {
        let experts = r.experts;
        assert_eq!(
            bias.len(),
            experts,
            "router::select_top_k: bias is not ({experts})"
        );
    }
    let Router { experts, top_k, .. } = *r;
    let chunk = rows_per_chunk(n, experts);
    selected
        .par_chunks_mut(chunk * top_k)
        .zip(logits.par_chunks(chunk * experts))
        .for_each(|(selected, logits)| {
            let mut scratch = Scratch::new(r);
            dispatch(
                #[inline(always)]
                || {
                    let tokens = logits.chunks_exact(experts);
                    for (logits, selected) in tokens.zip(selected.chunks_exact_mut(top_k)) {
                        scratch.keys.copy_from_slice(logits);
                        scores(r.scoring, &mut scratch.keys);
                        select(r, bias, &mut scratch, selected);
                    }
                },
            );
        });
}

/// Buffers for one token at a time.
struct Scratch {
    keys: Vec<f32>,
    group_keys: Vec<f32>,
    groups: Vec<i32>,
    best: Vec<f32>,
}

impl Scratch {
    fn new(r: &Router) -> Self {
        Self {
            keys: vec![0.0; r.experts],
            group_keys: vec![0.0; r.groups],
            groups: vec![0; r.top_groups],
            best: vec![0.0; r.top_k.max(r.top_groups)],
        }
    }
}

#[inline(always)]
fn select(r: &Router, bias: Option<&[f32]>, scratch: &mut Scratch, selected: &mut [i32]) {
    let Scratch {
        keys,
        group_keys,
        groups,
        best,
    } = scratch;
    if let Some(bias) = bias {
        for (key, bias) in keys.iter_mut().zip(bias) {
            *key += bias;
        }
    }
    for key in &mut *keys {
        *key = nan_first(*key);
    }
    if r.top_groups == r.groups {
        return TopK::new(best, selected).scan(keys, 0..r.experts);
    }
    let size = r.experts / r.groups;
    for (key, group) in group_keys.iter_mut().zip(keys.chunks_exact(size)) {
        *key = match bias {
            Some(_) => nan_first(sum_of_two_largest(group)),
            None => max(group),
        };
    }
    TopK::new(best, groups).scan(group_keys, 0..r.groups);
    groups.sort_unstable();
    let mut found = TopK::new(best, selected);
    for &group in &*groups {
        let first = group as usize * size;
        found.scan(keys, first..first + size);
    }
}

#[inline(always)]
fn nan_first(key: f32) -> f32 {
    if key.is_nan() { f32::INFINITY } else { key }
}

/// Returns the sum of the two largest keys, or the only one.
#[inline(always)]
fn sum_of_two_largest(keys: &[f32]) -> f32 {
    let (mut first, mut second) = (keys[0], None);
    for &key in &keys[1..] {
        if key > first {
            second = Some(first);
            first = key;
        } else if second.is_none_or(|second| key > second) {
            second = Some(key);
        }
    }
    second.map_or(first, |second| first + second)
}

/// The largest keys so far, in descending order.
struct TopK<'a> {
    keys: &'a mut [f32],
    ids: &'a mut [i32],
    found: usize,
}

impl<'a> TopK<'a> {
    /// Keeps as many keys as `ids` holds; `keys` is at least as long.
    #[inline(always)]
    fn new(keys: &'a mut [f32], ids: &'a mut [i32]) -> Self {
        let keys = &mut keys[..ids.len()];
        Self {
            keys,
            ids,
            found: 0,
        }
    }

    #[inline(always)]
    fn scan(&mut self, keys: &[f32], range: Range<usize>) {
        let first = range.start;
        for (c, keys) in keys[range].chunks(LANES).enumerate() {
            if self.found == self.ids.len() {
                // Usually no key of a block is larger.
                let last = self.keys[self.found - 1];
                let better = keys.iter().fold(false, |any, &key| any | (key > last));
                if !better {
                    continue;
                }
            }
            for (i, &key) in keys.iter().enumerate() {
                self.insert(key, (first + c * LANES + i) as i32);
            }
        }
    }

    #[inline(always)]
    fn insert(&mut self, key: f32, id: i32) {
        if self.found < self.ids.len() {
            self.found += 1;
        } else if key <= self.keys[self.found - 1] {
            return;
        }
        let mut at = self.found - 1;
        while at > 0 && key > self.keys[at - 1] {
            self.keys[at] = self.keys[at - 1];
            self.ids[at] = self.ids[at - 1];
            at -= 1;
        }
        self.keys[at] = key;
        self.ids[at] = id;
    }
}
