//! Log-likelihoods of continuations given contexts.
//!
//! Tokens at the start of several requests - a context with several continuations, an introduction of several
//! contexts - run once. Sequences of different lengths run side by side, without padding. Only positions that predict a
//! token of a continuation pass through the output head.

mod schedule;
mod tree;

use std::collections::BTreeMap;

use hybridnorm_kernels::cross_entropy::summarize_rows;

use self::schedule::Schedule;
use self::tree::{Node, Prediction, Sequence, Trees};
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig, SlotCache, SlotTokens};

/// Maximum bytes of the cached keys and values, unless two sequences take more.
const CACHE_BYTES: usize = 1 << 30;
/// Maximum number of nodes on a path of a tree.
const MAX_DEPTH: usize = 8;
/// Longest context of the class of the shortest sequences; each further class has four times as long ones.
const SHORTEST_CLASS: usize = 64;

/// A continuation whose log-likelihood is computed, and the context before it; both at least one token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Tokens of the context.
    pub context: Vec<u32>,
    /// Tokens of the continuation.
    pub continuation: Vec<u32>,
}

/// Log-probability of one token of a continuation, given all tokens before it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TokenScore {
    /// Natural logarithm of its probability.
    pub log_prob: f64,
    /// True if greedy decoding yields this token; of equally likely ones, the one with the lowest id.
    pub is_greedy: bool,
}

/// Result of one request.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Score {
    /// Tokens of the continuation, in order.
    pub tokens: Vec<TokenScore>,
    /// Number of tokens cut from the start of the context, because context and continuation together are longer than
    /// the model's maximum sequence length plus one.
    pub cut_tokens: usize,
}

impl Score {
    /// Returns the log-likelihood of the continuation, in nats.
    pub fn log_likelihood(&self) -> f64 {
        self.tokens.iter().map(|token| token.log_prob).sum()
    }

    /// True if greedy decoding yields the continuation.
    pub fn is_greedy(&self) -> bool {
        self.tokens.iter().all(|token| token.is_greedy)
    }
}

/// Computes the log-likelihoods of continuations, in the order of the requests.
///
/// The last token of a continuation is predicted but not an input, so context and continuation may have one token more
/// than the model's maximum sequence length. Contexts that exceed it are cut at their start, as
/// lm-evaluation-harness does. `progress` receives the number of finished requests.
///
/// # Errors
/// [`Error::InvalidValue`] if a context or continuation is empty or has a token outside the vocabulary;
/// [`Error::OutOfRange`] if a continuation is longer than the maximum sequence length; [`Error::Diverged`] if a
/// log-probability is not finite; or if there is not enough memory. The message names the index of the request.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::eval::{Request, score};
/// use hybridnorm::model::{Model, ModelConfig};
///
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8)
/// #     .with_max_seq_len(8);
/// # let mut model = Model::new(&config, 0, Device::Cpu)?;
/// let request = |continuation: &[u32]| Request {
///     context: vec![1, 2, 3],
///     continuation: continuation.to_vec(),
/// };
/// let requests: Vec<Request> = (0..8).map(|token| request(&[token])).collect();
/// let scores = score(&mut model, &requests, &mut |_| ())?;
/// // The probabilities of all possible next tokens sum to one.
/// let total: f64 = scores.iter().map(|score| score.log_likelihood().exp()).sum();
/// assert!((total - 1.0).abs() < 1e-5);
/// assert_eq!(scores.iter().filter(|score| score.is_greedy()).count(), 1);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn score(
    model: &mut Model,
    requests: &[Request],
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Score>> {
    let longest = model.config().max_seq_len;
    let mut scores = Vec::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        check(model, request).map_err(|problem| in_request(index, problem))?;
        let total = request.context.len() + request.continuation.len();
        scores.push(Score {
            tokens: Vec::with_capacity(request.continuation.len()),
            cut_tokens: total.saturating_sub(longest + 1),
        });
    }
    let mut scorer = Scorer {
        model,
        requests,
        scores,
        done: 0,
        progress,
    };
    for class in classes(requests, longest) {
        scorer.run_class(class)?;
    }
    Ok(scorer.scores)
}

/// Returns the inputs of requests in classes of contexts of similar length, so that the cache of a class has little
/// unused memory.
fn classes(requests: &[Request], longest: usize) -> impl Iterator<Item = Vec<Sequence>> {
    let mut classes: BTreeMap<usize, Vec<Sequence>> = BTreeMap::new();
    for (index, request) in requests.iter().enumerate() {
        let sequence = Sequence::new(index, request, longest);
        let class = sequence.context_len().div_ceil(SHORTEST_CLASS);
        let class = class.next_power_of_two().ilog2().div_ceil(2);
        classes.entry(class as usize).or_default().push(sequence);
    }
    classes.into_values()
}

/// Returns the maximum bytes of the keys and values that requests need.
#[cfg(feature = "data")]
pub(crate) fn cache_bytes(config: &ModelConfig, requests: &[Request]) -> u64 {
    let bytes = classes(requests, config.max_seq_len).map(|class| {
        let (_, [slots, capacity]) = plan(config, class);
        (slots * capacity * config.cache_width() * config.n_layers * size_of::<f32>()) as u64
    });
    bytes.max().unwrap_or(0)
}

/// Returns the trees of the sequences of a class, and the slots and capacity of their cache.
fn plan(config: &ModelConfig, sequences: Vec<Sequence>) -> (Trees, [usize; 2]) {
    let capacity = sequences.iter().map(Sequence::len).max().unwrap_or(1);
    let max_slots = max_slots(config, capacity);
    let trees = Trees::new(sequences, MAX_DEPTH.min(max_slots));
    let slots = max_slots.min(trees.nodes.len()).max(trees.depth());
    (trees, [slots, capacity])
}

/// Returns the maximum number of cached sequences of up to `capacity` positions.
fn max_slots(config: &ModelConfig, capacity: usize) -> usize {
    let bytes = 4 * capacity * config.cache_width() * config.n_layers;
    (CACHE_BYTES / bytes.max(1)).max(2)
}

fn check(model: &Model, request: &Request) -> Result<()> {
    let longest = model.config().max_seq_len;
    let Request {
        context,
        continuation,
    } = request;
    for (name, ids) in [("context", context), ("continuation", continuation)] {
        if ids.is_empty() {
            return Err(Error::invalid_value(
                name,
                format!("the {name} has no token"),
            ));
        }
        model.check_ids(&tree::ids(ids), 1, ids.len())?;
    }
    if continuation.len() > longest {
        return Err(Error::out_of_range(
            "tokens of the continuation",
            continuation.len(),
            format!("at most max_seq_len = {longest}"),
        ));
    }
    Ok(())
}

fn in_request(index: usize, error: Error) -> Error {
    let number = index + 1;
    match error {
        Error::Diverged { step, problem } => Error::Diverged {
            step,
            problem: format!("request {number}: {problem}"),
        },
        error => Error::invalid_value("request", format!("request {number}: {error}")),
    }
}

/// State of a call of [`score`].
struct Scorer<'a> {
    model: &'a mut Model,
    requests: &'a [Request],
    scores: Vec<Score>,
    done: usize,
    progress: &'a mut dyn FnMut(usize),
}

impl Scorer<'_> {
    /// Scores the requests of a class.
    fn run_class(&mut self, sequences: Vec<Sequence>) -> Result<()> {
        let (trees, [slots, capacity]) = plan(self.model.config(), sequences);
        let mut cache = self.model.new_slot_cache(slots, capacity)?;
        let finished = self.run_trees(&trees, &mut cache);
        self.model.free_slot_cache(cache);
        finished
    }

    fn run_trees(&mut self, trees: &Trees, cache: &mut SlotCache) -> Result<()> {
        let mut schedule = Schedule::new(trees, cache.slots());
        loop {
            let batch = schedule.next_batch(self.model, cache)?;
            if batch.is_empty() {
                return Ok(());
            }
            let tokens: Vec<SlotTokens<'_>> = batch
                .iter()
                .map(|&(node, slot)| SlotTokens {
                    slot,
                    ids: &node.ids,
                })
                .collect();
            let hidden = self.model.slot_hidden(cache, &tokens)?;
            self.record(&hidden, batch.iter().map(|(node, _)| *node))?;
            schedule.finish(&batch);
            (self.progress)(self.done);
        }
    }

    /// Records the tokens that nodes predict, given the hidden states (n, d) of their positions.
    fn record<'t>(&mut self, hidden: &[f32], nodes: impl Iterator<Item = &'t Node>) -> Result<()> {
        /// Rows of logits that are in memory at a time.
        const ROWS: usize = 64;
        let config = self.model.config();
        let (d, v) = (config.d_model, config.vocab_size);
        let mut end = 0;
        let rows: Vec<(&[f32], &[Prediction])> = nodes
            .flat_map(|node| {
                let first = end;
                end += node.ids.len();
                let of_row = node.predictions.chunk_by(|a, b| a.position == b.position);
                of_row.map(move |same| (&hidden[(first + same[0].position) * d..][..d], same))
            })
            .collect();
        for chunk in rows.chunks(ROWS) {
            let selected: Vec<&[f32]> = chunk.iter().map(|(hidden, _)| *hidden).collect();
            let logits = self.model.logits_of_hidden(&selected.concat())?;
            let summaries = summarize_rows(&logits, v);
            for (((_, predictions), logits), row) in
                chunk.iter().zip(logits.chunks(v)).zip(summaries)
            {
                for prediction in *predictions {
                    self.push(*prediction, logits, row.log_sum_exp, row.argmax)?;
                }
            }
        }
        Ok(())
    }

    /// Records a predicted token, given the logits (v) of its position, and their log-sum-exp and argmax.
    fn push(
        &mut self,
        prediction: Prediction,
        logits: &[f32],
        log_sum_exp: f64,
        argmax: usize,
    ) -> Result<()> {
        let Prediction { request, token, .. } = prediction;
        let continuation = &self.requests[request].continuation;
        let target = continuation[token] as usize;
        let log_prob = f64::from(logits[target]) - log_sum_exp;
        if !log_prob.is_finite() {
            let problem = format!(
                "the log-probability of a token is {log_prob}; the model's weights may be corrupt"
            );
            return Err(in_request(request, Error::not_finite(problem)));
        }
        self.done += usize::from(token + 1 == continuation.len());
        self.scores[request].tokens.push(TokenScore {
            log_prob,
            is_greedy: argmax == target,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
