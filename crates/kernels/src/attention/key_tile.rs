//! Keys of a tile that queries attend to.

use std::ops::Range;

use super::AttentionConfig;

/// A tile of keys, as a tile of queries attends to it.
#[derive(Clone, Copy)]
pub(super) struct KeyTile {
    /// First key.
    pub(super) start: usize,
    /// Number of keys.
    pub(super) count: usize,
    /// Position of the first query.
    pub(super) first_query: usize,
    /// True for the first tile that the queries attend to.
    pub(super) is_first: bool,
}

impl KeyTile {
    /// Returns the unmasked keys of a query of the tile, relative to `start`; empty if there are none.
    #[inline(always)]
    pub(super) fn visible_to(&self, a: &AttentionConfig, query: usize) -> Range<usize> {
        let position = self.first_query + query;
        let end = (position + 1).saturating_sub(self.start).min(self.count);
        a.first_key(position).saturating_sub(self.start).min(end)..end
    }

    /// Returns the keys from the first to the last that any of these consecutive queries attends to.
    #[inline(always)]
    pub(super) fn visible_to_any(
        &self,
        a: &AttentionConfig,
        queries: Range<usize>,
    ) -> Range<usize> {
        let end = self.visible_to(a, queries.end - 1).end;
        self.visible_to(a, queries.start).start.min(end)..end
    }

    /// Returns the first query of the tile that attends to a key.
    #[inline(always)]
    pub(super) fn first_query_of(&self, key: usize) -> usize {
        (self.start + key).saturating_sub(self.first_query)
    }
}
