//! Trees of token sequences: tokens at the start that several requests share are one node, which runs once.

use std::ops::Range;

use super::Request;

/// Tokens at the start of sequences are shared if that saves at least this many positions; fewer are not worth a node.
const MIN_SAVED: usize = 32;

/// A run of tokens that follows its parent's, or starts a sequence.
#[derive(Debug)]
pub(super) struct Node {
    /// Number of tokens of all its ancestors.
    pub(super) past: usize,
    /// Token ids, at least one.
    pub(super) ids: Vec<i32>,
    /// Tokens of requests that its positions predict, sorted by position.
    pub(super) predictions: Vec<Prediction>,
    /// Nodes that follow it.
    pub(super) children: Vec<usize>,
    /// Number of nodes below it on the longest path.
    pub(super) height: usize,
}

/// A token of a continuation, and the position that predicts it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prediction {
    /// Position in the node.
    pub(super) position: usize,
    /// Index of the request.
    pub(super) request: usize,
    /// Index in its continuation.
    pub(super) token: usize,
}

/// Trees of the inputs of requests.
#[derive(Debug, Default)]
pub(super) struct Trees {
    pub(super) nodes: Vec<Node>,
    /// Nodes without a parent.
    pub(super) roots: Vec<usize>,
}

/// Inputs of a request: its context, if necessary cut at its start, and its continuation without the last token.
#[derive(Debug)]
pub(super) struct Sequence {
    request: usize,
    ids: Vec<i32>,
    /// Position that predicts the first token of the continuation.
    first: usize,
}

/// Converts token ids; an id that is too large becomes -1, which no vocabulary has.
pub(super) fn ids(tokens: &[u32]) -> Vec<i32> {
    let convert = |&id: &u32| i32::try_from(id).unwrap_or(-1);
    tokens.iter().map(convert).collect()
}

impl Sequence {
    /// Returns the inputs of a checked request for a model of up to `longest` positions.
    pub(super) fn new(request: usize, tokens: &Request, longest: usize) -> Self {
        let Request {
            context,
            continuation,
        } = tokens;
        let cut = (context.len() + continuation.len()).saturating_sub(longest + 1);
        let mut all = ids(&context[cut..]);
        let first = all.len() - 1;
        all.extend(ids(&continuation[..continuation.len() - 1]));
        Self {
            request,
            ids: all,
            first,
        }
    }

    /// Returns the number of positions.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns the number of positions of the context.
    pub(super) fn context_len(&self) -> usize {
        self.first + 1
    }
}

impl Trees {
    /// Returns the trees of sequences, with paths of up to `max_depth` nodes, at least one.
    pub(super) fn new(mut sequences: Vec<Sequence>, max_depth: usize) -> Self {
        sequences.sort_by(|a, b| (&a.ids, a.request).cmp(&(&b.ids, b.request)));
        let mut trees = Self::default();
        trees.roots = trees.grow(&sequences, 0, 0, max_depth);
        trees
    }

    /// Returns the number of nodes on the longest path.
    pub(super) fn depth(&self) -> usize {
        let heights = self.roots.iter().map(|&root| self.nodes[root].height + 1);
        heights.max().unwrap_or(0)
    }

    /// Adds the nodes, from position `past` on, of sorted sequences that agree in their first `same` >= `past` tokens;
    /// returns those without a parent among them.
    fn grow(
        &mut self,
        sequences: &[Sequence],
        past: usize,
        same: usize,
        max_depth: usize,
    ) -> Vec<usize> {
        let ended = sequences.partition_point(|sequence| sequence.len() <= same);
        let (ended, others) = sequences.split_at(ended);
        let mut added = Vec::new();
        if same > past && !ended.is_empty() {
            added.push(self.add(ended, past..same, Vec::new()));
        }
        for branch in others.chunk_by(|a, b| a.ids[same] == b.ids[same]) {
            let [first, last] = [&branch[0], &branch[branch.len() - 1]];
            let pairs = first.ids.iter().zip(&last.ids);
            let end = pairs.take_while(|(a, b)| a == b).count();
            let is_one = end == last.len();
            let saved = (end - past) * (branch.len() - 1);
            if is_one || (max_depth > 1 && saved >= MIN_SAVED) {
                let children = match is_one {
                    true => Vec::new(),
                    false => self.grow(branch, end, end, max_depth - 1),
                };
                added.push(self.add(branch, past..end, children));
            } else {
                added.extend(self.grow(branch, past, end, max_depth));
            }
        }
        added
    }

    /// Adds the node of positions that sequences share.
    fn add(
        &mut self,
        sequences: &[Sequence],
        positions: Range<usize>,
        children: Vec<usize>,
    ) -> usize {
        let mut predictions: Vec<Prediction> = sequences
            .iter()
            .flat_map(|sequence| {
                let predicting = positions.start.max(sequence.first)..positions.end;
                predicting.map(|position| Prediction {
                    position: position - positions.start,
                    request: sequence.request,
                    token: position - sequence.first,
                })
            })
            .collect();
        predictions.sort_by_key(|prediction| prediction.position);
        let heights = children.iter().map(|&child| self.nodes[child].height + 1);
        self.nodes.push(Node {
            past: positions.start,
            ids: sequences[0].ids[positions].to_vec(),
            predictions,
            height: heights.max().unwrap_or(0),
            children,
        });
        self.nodes.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a context and continuation of these tokens, split after the first `context`.
    fn request(tokens: &[u32], context: usize) -> Request {
        Request {
            context: tokens[..context].to_vec(),
            continuation: tokens[context..].to_vec(),
        }
    }

    fn trees(requests: &[Request], max_depth: usize) -> Trees {
        let sequences = requests.iter().enumerate();
        Trees::new(
            sequences.map(|(i, r)| Sequence::new(i, r, 1000)).collect(),
            max_depth,
        )
    }

    /// Returns the inputs of requests as their predictions in the trees see them, with the predicted tokens.
    fn read_back(trees: &Trees, requests: &[Request]) -> Vec<Vec<(Vec<i32>, u32)>> {
        let mut found = vec![Vec::new(); requests.len()];
        let mut pending: Vec<(usize, Vec<i32>)> =
            trees.roots.iter().map(|&root| (root, vec![])).collect();
        while let Some((node, before)) = pending.pop() {
            let node = &trees.nodes[node];
            assert_eq!(node.past, before.len());
            for prediction in &node.predictions {
                let inputs = [&before, &node.ids[..=prediction.position]].concat();
                let target = requests[prediction.request].continuation[prediction.token];
                found[prediction.request].push((inputs, target));
            }
            let after = [before, node.ids.clone()].concat();
            pending.extend(node.children.iter().map(|&child| (child, after.clone())));
        }
        found
    }

    fn positions(trees: &Trees) -> usize {
        trees.nodes.iter().map(|node| node.ids.len()).sum()
    }

    #[test]
    fn every_token_of_a_continuation_is_predicted_from_all_tokens_before_it() {
        let header: Vec<u32> = (100..140).collect();
        let tokens = |rest: &[u32]| [header.as_slice(), rest].concat();
        let requests = [
            request(&tokens(&[1, 2, 3]), 41),
            request(&tokens(&[1, 2, 4]), 41),
            request(&tokens(&[1, 2, 4]), 41),
            request(&tokens(&[1]), 40),
            request(&tokens(&[1, 2, 4, 5, 6]), 41),
            request(&[7, 8], 1),
            request(&tokens(&[9; 30]), 60),
            request(&tokens(&[9; 35]), 50),
        ];
        for max_depth in 1..5 {
            let trees = trees(&requests, max_depth);
            assert!(trees.depth() <= max_depth);
            for (request, found) in requests.iter().zip(read_back(&trees, &requests)) {
                let all = [request.context.clone(), request.continuation.clone()].concat();
                let expected: Vec<_> = (request.context.len()..all.len())
                    .map(|end| (ids(&all[..end]), all[end]))
                    .collect();
                assert_eq!(found, expected, "{request:?}, depth {max_depth}");
            }
        }
    }

    #[test]
    fn shared_tokens_run_once() {
        // Ten documents of one header, each with its own question and four answers.
        let requests: Vec<Request> = (0..10)
            .flat_map(|question: u32| {
                (0..4).map(move |answer| {
                    let mut tokens: Vec<u32> = (0..50).collect();
                    tokens.extend([100 + question; 20]);
                    tokens.extend([200 + answer, 3, 4, 5]);
                    request(&tokens, 70)
                })
            })
            .collect();
        let trees = trees(&requests, 3);
        assert_eq!(positions(&trees), 50 + 10 * (20 + 4 * 3));
        assert_eq!((trees.roots.len(), trees.depth()), (1, 3));
    }

    #[test]
    fn sequences_that_differ_soon_or_may_not_branch_run_alone() {
        let requests: Vec<Request> = (0..4).map(|i| request(&[1, 2, 3 + i, 9, 9], 3)).collect();
        assert_eq!(positions(&trees(&requests, 4)), 4 * 4);
        let long: Vec<Request> = (0..4)
            .map(|i| request(&[vec![1; 40], vec![3 + i, 9]].concat(), 41))
            .collect();
        assert_eq!(positions(&trees(&long, 2)), 40 + 4);
        assert_eq!(positions(&trees(&long, 1)), 4 * 41);
    }
}
