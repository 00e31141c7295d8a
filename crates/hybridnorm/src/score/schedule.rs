//! Order in which the nodes of trees run, and the slots of a cache that hold their keys and values.

use super::tree::{Node, Trees};
use crate::error::Result;
use crate::model::{Model, SlotCache};

/// New positions of a run, unless one node has more.
const MAX_POSITIONS: usize = 1024;

/// Nodes of trees that wait for a run, and the slots of those that ran and have children that did not.
pub(super) struct Schedule<'t> {
    nodes: &'t [Node],
    /// Nodes whose parent ran, with the parent's slot. The last one is the next, so that paths are finished before
    /// others begin.
    ready: Vec<(usize, Option<usize>)>,
    /// Slots that hold nothing.
    free: Vec<usize>,
    /// By slot, the number of ready nodes that follow its sequence.
    followers: Vec<usize>,
}

impl<'t> Schedule<'t> {
    pub(super) fn new(trees: &'t Trees, slots: usize) -> Self {
        Self {
            nodes: &trees.nodes,
            ready: trees.roots.iter().rev().map(|&root| (root, None)).collect(),
            free: (0..slots).rev().collect(),
            followers: vec![0; slots],
        }
    }

    /// Returns the next nodes, with their slots, after their ancestors' keys and values were copied to these.
    pub(super) fn next_batch(
        &mut self,
        model: &mut Model,
        cache: &mut SlotCache,
    ) -> Result<Vec<(&'t Node, usize)>> {
        let (mut batch, mut positions) = (Vec::new(), 0);
        while let Some(&(index, parent)) = self.ready.last() {
            let node = &self.nodes[index];
            let is_full = positions + node.ids.len() > MAX_POSITIONS;
            // Slots for a path below each node remain free, so that the next batch has at least one node.
            if !batch.is_empty() && (is_full || self.free.len() <= node.height) {
                break;
            }
            self.ready.pop();
            let slot = self.slot_after(parent, node.past, model, cache)?;
            positions += node.ids.len();
            batch.push((node, slot));
        }
        Ok(batch)
    }

    /// Returns a slot with the first `past` positions of the sequence in the slot `parent`, which is that slot for its
    /// last follower.
    fn slot_after(
        &mut self,
        parent: Option<usize>,
        past: usize,
        model: &mut Model,
        cache: &mut SlotCache,
    ) -> Result<usize> {
        if let Some(parent) = parent {
            self.followers[parent] -= 1;
            if self.followers[parent] == 0 {
                return Ok(parent);
            }
        }
        let slot = self.free.pop().expect("a slot for each node of a path");
        match parent {
            Some(parent) => model.copy_slot(cache, parent, slot, past)?,
            None => cache.clear(slot),
        }
        Ok(slot)
    }

    /// Releases the slots of nodes that ran, or makes their children ready.
    pub(super) fn finish(&mut self, batch: &[(&'t Node, usize)]) {
        for (node, slot) in batch {
            match node.children.is_empty() {
                true => self.free.push(*slot),
                false => {
                    self.followers[*slot] = node.children.len();
                    let children = node.children.iter().rev();
                    self.ready
                        .extend(children.map(|&child| (child, Some(*slot))));
                }
            }
        }
    }
}
