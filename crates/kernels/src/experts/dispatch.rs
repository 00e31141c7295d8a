//! Dispatch of tokens to experts, stored as one slice of integers.

use std::ops::Range;

/// Sizes that determine the integer layout of a dispatch.
///
/// For n tokens, one slice holds in order: the number of slots of each expert (experts), the first slot
/// of each expert and the end (experts + 1), the assignment `token * top_k + j` of each slot (n * top_k), the
/// slot of each assignment (n, top_k), and the expert of each assignment (n, top_k).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatchLayout {
    /// Number of experts, including those without rows.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
}

/// Dispatch of tokens to experts: slots sorted by expert, then by token. A view of the integers written
/// by [`DispatchLayout::fill`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dispatch<'a> {
    top_k: usize,
    load: &'a [i32],
    offsets: &'a [i32],
    assignment_of_slot: &'a [i32],
    slot_of_assignment: &'a [i32],
    expert_of_assignment: &'a [i32],
}

impl DispatchLayout {
    /// Returns the length of the dispatch of `tokens` tokens.
    pub fn elements(self, tokens: usize) -> usize {
        2 * self.experts + 1 + 3 * tokens * self.top_k
    }

    /// Returns the range of the selected experts (n, top_k), which are at the end of a dispatch of `elements` elements.
    ///
    /// # Panics
    ///
    /// If no number of tokens has a dispatch of this length.
    pub fn selected(self, elements: usize) -> Range<usize> {
        let Self { experts, top_k } = self;
        assert!(top_k > 0, "DispatchLayout: top_k is 0");
        let assignments = elements.checked_sub(2 * experts + 1);
        let assignments = assignments.filter(|assignments| assignments.is_multiple_of(3 * top_k));
        let Some(assignments) = assignments else {
            panic!(
                "DispatchLayout: length {elements} matches no dispatch with top_k {top_k} of {experts} experts"
            )
        };
        elements - assignments / 3..elements
    }

    /// Fills `dispatch` from the selected experts, which are at its end.
    ///
    /// # Panics
    ///
    /// If the slice has an invalid length, or a selected expert is not below `experts`.
    pub fn fill(self, dispatch: &mut [i32]) {
        let experts = self.experts;
        let selected = self.selected(dispatch.len());
        let m = selected.len();
        assert!(
            i32::try_from(m).is_ok(),
            "DispatchLayout::fill: the number of slots, {m}, does not fit into an i32"
        );
        let (rest, selected) = dispatch.split_at_mut(selected.start);
        let (load, rest) = rest.split_at_mut(experts);
        let (offsets, rest) = rest.split_at_mut(experts + 1);
        let (assignment_of_slot, slot_of_assignment) = rest.split_at_mut(m);
        load.fill(0);
        for &expert in &*selected {
            let known = (expert as usize) < experts;
            assert!(
                known,
                "DispatchLayout::fill: expert {expert} is not in 0..{experts}"
            );
            load[expert as usize] += 1;
        }
        // While slots are assigned, the entry after an expert's is its next free slot; it ends as the first
        // slot of the next expert.
        let mut first = 0;
        offsets[0] = 0;
        for (next, &load) in offsets[1..].iter_mut().zip(&*load) {
            *next = first;
            first += load;
        }
        for (assignment, (&expert, slot)) in selected.iter().zip(slot_of_assignment).enumerate() {
            let next = &mut offsets[expert as usize + 1];
            assignment_of_slot[*next as usize] = assignment as i32;
            *slot = *next;
            *next += 1;
        }
    }
}

impl<'a> Dispatch<'a> {
    /// Creates a view of the integers written by [`DispatchLayout::fill`].
    ///
    /// # Panics
    ///
    /// If the slice has an invalid length, or its offsets do not end at the number of slots.
    pub fn new(layout: DispatchLayout, dispatch: &'a [i32]) -> Self {
        let selected = layout.selected(dispatch.len());
        let m = selected.len();
        let (rest, expert_of_assignment) = dispatch.split_at(selected.start);
        let (load, rest) = rest.split_at(layout.experts);
        let (offsets, rest) = rest.split_at(layout.experts + 1);
        let (assignment_of_slot, slot_of_assignment) = rest.split_at(m);
        let end = offsets[layout.experts];
        assert!(
            end as usize == m,
            "Dispatch::new: offsets end at {end}, expected {m}, the number of slots"
        );
        Self {
            top_k: layout.top_k,
            load,
            offsets,
            assignment_of_slot,
            slot_of_assignment,
            expert_of_assignment,
        }
    }

    /// Returns the number of tokens n.
    pub fn tokens(&self) -> usize {
        self.slot_of_assignment.len() / self.top_k
    }

    /// Returns the number of experts per token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Returns the number of slots, `n * top_k`.
    pub fn slots(&self) -> usize {
        self.slot_of_assignment.len()
    }

    /// Returns the number of experts, including those without rows.
    pub fn experts(&self) -> usize {
        self.load.len()
    }

    /// Returns the number of slots of each expert.
    pub fn load(&self) -> &'a [i32] {
        self.load
    }

    /// Returns the assignment, `token * top_k + j`, of each slot.
    pub fn assignment_of_slot(&self) -> &'a [i32] {
        self.assignment_of_slot
    }

    /// Returns the slot of each assignment.
    pub fn slot_of_assignment(&self) -> &'a [i32] {
        self.slot_of_assignment
    }

    /// Returns the expert of each assignment, (n, top_k).
    pub fn expert_of_assignment(&self) -> &'a [i32] {
        self.expert_of_assignment
    }

    /// Returns the slots of an expert.
    pub fn slots_of_expert(&self, expert: usize) -> Range<usize> {
        self.offsets[expert] as usize..self.offsets[expert + 1] as usize
    }

    /// Returns the token of each slot from `first` on.
    pub(super) fn tokens_from(&self, first: usize) -> impl Iterator<Item = usize> {
        let assignments = self.assignment_of_slot[first..].iter();
        assignments.map(|&assignment| assignment as usize / self.top_k)
    }
}
