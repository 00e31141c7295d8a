//! Batches of requests: groups that share a context, and the rest by length.

use std::collections::BTreeMap;

use super::Request;
use crate::model::ModelConfig;

/// Lengths are padded to multiples of this, so that few shapes occur: each is planned once.
const LENGTH_STEP: usize = 16;
/// Tokens of a batch, unless one sequence is longer.
const BATCH_TOKENS: usize = 1024;
/// Continuations of a context that run side by side.
const SEQUENCES: usize = 8;
/// A context is shared if that saves at least this many tokens; below, a batch of whole requests is as fast.
const MIN_SAVED_TOKENS: usize = 32;
/// Maximum size of the keys and values of a group in bytes, unless one sequence takes more.
const CACHE_BYTES: usize = 1 << 30;

/// All batches of a list of requests.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) batches: Vec<Batch>,
    pub(super) groups: Vec<Group>,
    /// Maximum positions of a group: the padded context, and the padded rest of a continuation.
    positions: usize,
    /// Maximum number of continuations of a group that have more than one token.
    sequences: usize,
}

/// Sequences (b, t) that run side by side, padded at their end.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) ids: Vec<i32>,
    pub(super) positions: Vec<Positions>,
}

/// Positions of a batch that predict tokens of a request.
#[derive(Debug)]
pub(super) struct Positions {
    pub(super) request: usize,
    /// First of them, counted over all sequences of the batch.
    pub(super) first_row: usize,
    /// Token of the continuation that it predicts.
    pub(super) first_token: usize,
}

/// Requests with the same context.
#[derive(Debug)]
pub(super) struct Group {
    /// The context and its padding.
    pub(super) padded_ids: Vec<i32>,
    /// Length of the context.
    pub(super) len: usize,
    /// Indices of the requests.
    pub(super) requests: Vec<usize>,
}

impl Batch {
    /// Returns the number of sequences, and their length.
    pub(super) fn shape(&self) -> [usize; 2] {
        let b = self.positions.len();
        [b, self.ids.len() / b]
    }
}

/// Converts token ids; an id that is too large becomes -1, which no vocabulary has.
pub(super) fn ids(tokens: &[u32]) -> Vec<i32> {
    let convert = |&id: &u32| i32::try_from(id).unwrap_or(-1);
    tokens.iter().map(convert).collect()
}

fn padded(len: usize, longest: usize) -> usize {
    len.next_multiple_of(LENGTH_STEP).min(longest.max(len))
}

/// Returns the context of a request without the tokens that exceed `longest` inputs.
fn context(request: &Request, longest: usize) -> &[u32] {
    let total = request.context.len() + request.continuation.len();
    &request.context[total.saturating_sub(longest + 1)..]
}

impl Plan {
    /// Plans requests that were checked, for inputs of up to `longest` tokens.
    pub(super) fn new(requests: &[Request], longest: usize) -> Self {
        let mut by_context: BTreeMap<&[u32], Vec<usize>> = BTreeMap::new();
        for (index, request) in requests.iter().enumerate() {
            by_context
                .entry(context(request, longest))
                .or_default()
                .push(index);
        }
        let (mut alone, mut groups) = (Vec::new(), Vec::new());
        let (mut positions, mut sequences) = (0, 0);
        for (context, members) in by_context {
            if context.len() * (members.len() - 1) < MIN_SAVED_TOKENS {
                alone.extend(members);
                continue;
            }
            let mut padded_ids = ids(context);
            padded_ids.resize(padded(context.len(), longest), 0);
            let rest = |&index: &usize| requests[index].continuation.len() - 1;
            let longest_rest = members.iter().map(rest).max().unwrap_or(0);
            let end = context.len() + padded(longest_rest, longest);
            positions = positions.max(end).max(padded_ids.len());
            sequences = sequences.max(members.iter().filter(|index| rest(index) > 0).count());
            groups.push(Group {
                len: context.len(),
                padded_ids,
                requests: members,
            });
        }
        // Neighbours of equal length share a plan of their shape.
        groups.sort_by_key(|group| group.padded_ids.len());
        Self {
            batches: batches(requests, alone, longest),
            groups,
            positions,
            sequences,
        }
    }

    /// Returns the number of sequences and positions of the cache for the groups; `None` without groups.
    pub(super) fn cache_shape(&self, config: &ModelConfig) -> Option<[usize; 2]> {
        if self.groups.is_empty() {
            return None;
        }
        let bytes = 4 * self.positions * config.cache_width() * config.n_layers;
        let sequences = (CACHE_BYTES / bytes.max(1))
            .min(SEQUENCES)
            .min(self.sequences);
        Some([sequences.max(1), self.positions])
    }
}

/// Returns batches of whole requests, sorted by length.
fn batches(requests: &[Request], mut alone: Vec<usize>, longest: usize) -> Vec<Batch> {
    let len = |index: usize| {
        let request = &requests[index];
        context(request, longest).len() + request.continuation.len() - 1
    };
    alone.sort_by_key(|&index| (len(index), index));
    let mut batches = Vec::new();
    let mut rest = alone.as_slice();
    while let Some(&first) = rest.first() {
        let seq = padded(len(first), longest);
        let fits = rest.iter().take_while(|&&index| len(index) <= seq).count();
        let count = fits.min((BATCH_TOKENS / seq).max(1));
        let (members, later) = rest.split_at(count);
        rest = later;
        let sequences = members.iter().map(|&index| {
            let context = context(&requests[index], longest);
            let continuation = &requests[index].continuation;
            let sequence = [context, &continuation[..continuation.len() - 1]].concat();
            (index, sequence, context.len() - 1)
        });
        batches.push(batch(sequences, seq, 0));
    }
    batches
}

/// Returns a batch of sequences of up to `seq` tokens: each with its request, and the position that predicts the token
/// `first_token` of the continuation.
fn batch(
    sequences: impl Iterator<Item = (usize, Vec<u32>, usize)>,
    seq: usize,
    first_token: usize,
) -> Batch {
    let mut batch = Batch {
        ids: Vec::new(),
        positions: Vec::new(),
    };
    for (row, (request, tokens, position)) in sequences.enumerate() {
        batch.ids.extend(ids(&tokens));
        batch.ids.resize((row + 1) * seq, 0);
        batch.positions.push(Positions {
            request,
            first_row: row * seq + position,
            first_token,
        });
    }
    batch
}

impl Group {
    /// Returns batches of the tokens after the context, without the last one of each continuation. The context itself
    /// predicts their first tokens.
    pub(super) fn continuations(
        &self,
        requests: &[Request],
        sequences: usize,
        longest: usize,
    ) -> Vec<Batch> {
        let rest = |index: usize| {
            let continuation = &requests[index].continuation;
            &continuation[..continuation.len() - 1]
        };
        let mut members: Vec<usize> = self.requests.clone();
        members.retain(|&index| !rest(index).is_empty());
        members.sort_by_key(|&index| (rest(index).len(), index));
        let batches = members.chunks(sequences).map(|members| {
            let len = members.iter().map(|&index| rest(index).len()).max();
            let seq = padded(len.unwrap_or(0), longest);
            let sequences = members
                .iter()
                .map(|&index| (index, rest(index).to_vec(), 0));
            batch(sequences, seq, 1)
        });
        batches.collect()
    }
}
