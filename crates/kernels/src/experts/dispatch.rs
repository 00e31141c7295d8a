//! The dispatch of tokens to experts, as one slice of integers.

use std::ops::Range;

/// Sizes that the integers of a dispatch are laid out by.
///
/// For n tokens, one slice holds in turn: the slots of each expert (experts), the first slot of each
/// expert and the end (experts + 1), the choice `token * top_k + j` of each slot (n * top_k), the slot
/// of each choice (n, top_k), and the expert of each choice (n, top_k).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Experts, with and without rows.
    pub experts: usize,
    /// Experts of each token.
    pub top_k: usize,
}

/// Which rows go to which expert: slots sorted by expert, within one by token. A view of what
/// [`Layout::fill`] wrote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dispatch<'a> {
    top_k: usize,
    load: &'a [i32],
    offsets: &'a [i32],
    choices: &'a [i32],
    slots: &'a [i32],
    chosen: &'a [i32],
}

impl Layout {
    /// Elements of the dispatch of so many tokens.
    pub fn elements(self, tokens: usize) -> usize {
        2 * self.experts + 1 + 3 * tokens * self.top_k
    }

    /// Range of the chosen experts (n, top_k) in a dispatch of `elements` elements: its end.
    ///
    /// # Panics
    ///
    /// If no number of tokens takes so many elements.
    pub fn chosen(self, elements: usize) -> Range<usize> {
        let Self { experts, top_k } = self;
        assert!(top_k > 0, "Layout: top_k is 0");
        let choices = elements.checked_sub(2 * experts + 1);
        let choices = choices.filter(|choices| choices.is_multiple_of(3 * top_k));
        let Some(choices) = choices else {
            panic!("Layout: {elements} elements hold no dispatch to {top_k} of {experts} experts")
        };
        elements - choices / 3..elements
    }

    /// Fills `dispatch` up to the chosen experts, which it ends with.
    ///
    /// # Panics
    ///
    /// If the slice has no such length, or a chosen expert is not below `experts`.
    pub fn fill(self, dispatch: &mut [i32]) {
        let experts = self.experts;
        let chosen = self.chosen(dispatch.len());
        let m = chosen.len();
        assert!(
            i32::try_from(m).is_ok(),
            "Layout::fill: {m} slots do not fit 31 bits"
        );
        let (rest, chosen) = dispatch.split_at_mut(chosen.start);
        let (load, rest) = rest.split_at_mut(experts);
        let (offsets, rest) = rest.split_at_mut(experts + 1);
        let (choices, slots) = rest.split_at_mut(m);
        load.fill(0);
        for &expert in &*chosen {
            let known = (expert as usize) < experts;
            assert!(
                known,
                "Layout::fill: expert {expert} is outside of {experts} experts"
            );
            load[expert as usize] += 1;
        }
        // Until all choices have their slots, what follows an expert's entry is its next free slot,
        // which ends as the first slot of the next expert.
        let mut first = 0;
        offsets[0] = 0;
        for (next, &load) in offsets[1..].iter_mut().zip(&*load) {
            *next = first;
            first += load;
        }
        for (choice, (&expert, slot)) in chosen.iter().zip(slots).enumerate() {
            let next = &mut offsets[expert as usize + 1];
            choices[*next as usize] = choice as i32;
            *slot = *next;
            *next += 1;
        }
    }
}

impl<'a> Dispatch<'a> {
    /// Views what [`Layout::fill`] wrote.
    ///
    /// # Panics
    ///
    /// If the slice has no such length, or its offsets do not end at the number of slots.
    pub fn new(layout: Layout, dispatch: &'a [i32]) -> Self {
        let chosen = layout.chosen(dispatch.len());
        let m = chosen.len();
        let (rest, chosen) = dispatch.split_at(chosen.start);
        let (load, rest) = rest.split_at(layout.experts);
        let (offsets, rest) = rest.split_at(layout.experts + 1);
        let (choices, slots) = rest.split_at(m);
        let end = offsets[layout.experts];
        assert!(
            end as usize == m,
            "Dispatch::new: offsets end at {end} of {m} slots"
        );
        Self {
            top_k: layout.top_k,
            load,
            offsets,
            choices,
            slots,
            chosen,
        }
    }

    /// Tokens n.
    pub fn tokens(&self) -> usize {
        self.slots.len() / self.top_k
    }

    /// Experts of each token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Slots, `n * top_k`.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Experts, with and without rows.
    pub fn experts(&self) -> usize {
        self.load.len()
    }

    /// Slots of each expert.
    pub fn load(&self) -> &'a [i32] {
        self.load
    }

    /// The choice, `token * top_k + j`, that each slot is for.
    pub fn choices(&self) -> &'a [i32] {
        self.choices
    }

    /// The slot of each choice.
    pub fn slot_of_choice(&self) -> &'a [i32] {
        self.slots
    }

    /// The expert of each choice, (n, top_k).
    pub fn chosen(&self) -> &'a [i32] {
        self.chosen
    }

    /// The slots of an expert.
    pub fn rows(&self, expert: usize) -> Range<usize> {
        self.offsets[expert] as usize..self.offsets[expert + 1] as usize
    }

    /// The token of each of the slots from `first` on.
    pub(super) fn tokens_from(&self, first: usize) -> impl Iterator<Item = usize> {
        let choices = self.choices[first..].iter();
        choices.map(|&choice| choice as usize / self.top_k)
    }
}
