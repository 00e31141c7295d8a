//! Log-likelihoods of continuations given contexts.
//!
//! Requests with the same context share its forward pass; the others run in batches of similar length. Only positions
//! that predict a token of a continuation pass through the output head.

mod plan;

use hybridnorm_kernels::cross_entropy::summarize_rows;

use self::plan::{Batch, Group, Plan, Positions};
use crate::error::{Error, Result};
use crate::model::{Model, PrefixCache};

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
    let plan = Plan::new(requests, longest);
    let mut scorer = Scorer {
        model,
        requests,
        scores,
        done: 0,
        progress,
    };
    for batch in &plan.batches {
        scorer.run_batch(batch)?;
    }
    scorer.run_groups(&plan)?;
    Ok(scorer.scores)
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
        model.check_ids(&plan::ids(ids), 1, ids.len())?;
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
    /// Scores requests that share no context, side by side.
    fn run_batch(&mut self, batch: &Batch) -> Result<()> {
        let [b, t] = batch.shape();
        let hidden = self.model.hidden(&batch.ids, b, t)?.into_f32();
        self.record(&hidden, &batch.positions)?;
        self.finish(batch.positions.len());
        Ok(())
    }

    /// Scores the requests of each group after running its context once.
    fn run_groups(&mut self, plan: &Plan) -> Result<()> {
        let Some([sequences, capacity]) = plan.cache_shape(self.model.config()) else {
            return Ok(());
        };
        let mut cache = self.model.new_prefix_cache(sequences, capacity)?;
        let finished = plan
            .groups
            .iter()
            .try_for_each(|group| self.run_group(group, &mut cache));
        self.model.free_prefix_cache(cache);
        finished
    }

    fn run_group(&mut self, group: &Group, cache: &mut PrefixCache) -> Result<()> {
        let hidden = self.model.run_prefix(&group.padded_ids, group.len, cache)?;
        let d = self.model.config().d_model;
        let last = &hidden[(group.len - 1) * d..][..d];
        self.record_first_tokens(last, &group.requests)?;
        let longest = self.model.config().max_seq_len;
        for batch in group.continuations(self.requests, cache.sequences(), longest) {
            let hidden = self
                .model
                .run_continuations(&batch.ids, batch.shape(), cache)?;
            self.record(&hidden, &batch.positions)?;
        }
        self.finish(group.requests.len());
        Ok(())
    }

    /// Records the first token of the continuations of a context, given its last hidden state (d).
    fn record_first_tokens(&mut self, hidden: &[f32], requests: &[usize]) -> Result<()> {
        let logits = self.model.logits_of_hidden(hidden)?;
        let row = &summarize_rows(&logits, logits.len())[0];
        for &request in requests {
            let target = self.requests[request].continuation[0];
            self.push(
                request,
                logits[target as usize],
                row.log_sum_exp,
                row.argmax,
                target,
            )?;
        }
        Ok(())
    }

    /// Records the tokens that positions of a batch predict, given its hidden states (b, t, d).
    fn record(&mut self, hidden: &[f32], positions: &[Positions]) -> Result<()> {
        /// Rows of logits that are in memory at a time.
        const ROWS: usize = 64;
        let config = self.model.config();
        let (d, v) = (config.d_model, config.vocab_size);
        let all: Vec<(usize, usize, u32)> = positions
            .iter()
            .flat_map(|at| {
                let continuation = &self.requests[at.request].continuation;
                let targets = continuation[at.first_token..].iter();
                targets
                    .zip(at.first_row..)
                    .map(|(&target, row)| (at.request, row, target))
            })
            .collect();
        let mut selected = Vec::with_capacity(ROWS * d);
        for chunk in all.chunks(ROWS) {
            selected.clear();
            for &(_, row, _) in chunk {
                selected.extend_from_slice(&hidden[row * d..][..d]);
            }
            let logits = self.model.logits_of_hidden(&selected)?;
            let rows = summarize_rows(&logits, v);
            for ((&(request, _, target), logits), row) in
                chunk.iter().zip(logits.chunks(v)).zip(rows)
            {
                self.push(
                    request,
                    logits[target as usize],
                    row.log_sum_exp,
                    row.argmax,
                    target,
                )?;
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        request: usize,
        logit: f32,
        log_sum_exp: f64,
        argmax: usize,
        target: u32,
    ) -> Result<()> {
        let log_prob = f64::from(logit) - log_sum_exp;
        if !log_prob.is_finite() {
            let problem = format!(
                "the log-probability of a token is {log_prob}; the model's weights may be corrupt"
            );
            return Err(in_request(request, Error::not_finite(problem)));
        }
        self.scores[request].tokens.push(TokenScore {
            log_prob,
            is_greedy: argmax == target as usize,
        });
        Ok(())
    }

    fn finish(&mut self, requests: usize) {
        self.done += requests;
        (self.progress)(self.done);
    }
}

#[cfg(test)]
mod tests;
