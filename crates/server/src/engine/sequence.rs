//! A sequence that occupies a slot: prompt evaluation, then one token after another.

use std::ops::Range;

use hybridnorm::data::{StreamDecoder, Tokenizer};
use hybridnorm::eval::Sampler;
use hybridnorm::{Error, Result};

use super::logprobs::token_logprob;
use super::request::{Event, FinishReason, Request, TokenLogprob};
use super::stop::StopMatcher;

/// Sequence in a slot.
pub(super) struct Sequence {
    /// Job that it belongs to.
    pub(super) job: u64,
    pub(super) choice: usize,
    pub(super) slot: usize,
    prompt: Vec<i32>,
    /// Number of cached tokens of the prompt.
    n_cached: usize,
    /// The newest token, which is not cached yet.
    newest: i32,
    n_generated: usize,
    max_tokens: usize,
    logprobs: Option<usize>,
    prompt_logprobs: bool,
    sampler: Sampler,
    decoder: Option<StreamDecoder>,
    stop: StopMatcher,
    vocab: usize,
}

/// New tokens of a sequence in one run.
pub(super) struct Run<'a> {
    pub(super) ids: &'a [i32],
    /// True if the logits of every position are needed.
    pub(super) all_positions: bool,
}

impl Sequence {
    /// Creates the sequence of a choice in a slot.
    pub(super) fn new(
        job: u64,
        choice: usize,
        slot: usize,
        request: &Request,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let prompt = request.prompts[choice / request.n].clone();
        let mut sampling = request.sampling.clone();
        sampling.seed = sampling
            .seed
            .map(|seed| seed.wrapping_add((choice % request.n) as u64));
        let context: Vec<u32> = prompt.iter().map(|&id| id as u32).collect();
        Ok(Self {
            job,
            choice,
            slot,
            prompt,
            n_cached: 0,
            newest: 0,
            n_generated: 0,
            max_tokens: request.max_tokens,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            sampler: Sampler::new(sampling)?,
            decoder: Some(tokenizer.stream_decoder_with_context(&context)),
            stop: StopMatcher::new(request.stop.clone()),
            vocab: tokenizer.vocab_size(),
        })
    }

    /// True until the whole prompt is cached.
    pub(super) fn is_prefilling(&self) -> bool {
        self.n_cached < self.prompt.len()
    }

    /// Returns the next tokens to run: up to `chunk` of the prompt, or the newest token.
    pub(super) fn next_run(&self, chunk: usize) -> Run<'_> {
        match self.is_prefilling() {
            true => Run {
                ids: &self.prompt[self.next_chunk(chunk)],
                all_positions: self.prompt_logprobs,
            },
            false => Run {
                ids: std::slice::from_ref(&self.newest),
                all_positions: false,
            },
        }
    }

    fn next_chunk(&self, chunk: usize) -> Range<usize> {
        self.n_cached..self.prompt.len().min(self.n_cached + chunk)
    }

    /// Takes the logits of a run of the prompt: of every position or of the last one.
    ///
    /// # Errors
    /// If logits are not finite.
    pub(super) fn take_prompt(
        &mut self,
        len: usize,
        logits: &[f32],
        tokenizer: &Tokenizer,
    ) -> Result<Vec<Event>> {
        let width = logits.len() / if self.prompt_logprobs { len } else { 1 };
        let positions = self.n_cached..self.n_cached + len;
        self.n_cached += len;
        let mut events = Vec::new();
        if self.prompt_logprobs {
            let mut evaluated = Vec::with_capacity(len + 1);
            if positions.start == 0 {
                evaluated.push(first_token(self.prompt[0]));
            }
            for (position, logits) in positions.zip(logits.chunks_exact(width)) {
                check_finite(logits)?;
                if let Some(&next) = self.prompt.get(position + 1) {
                    evaluated.push(token_logprob(
                        logits,
                        next,
                        self.logprobs.unwrap_or(0),
                        self.vocab,
                    ));
                }
            }
            events.push(Event::Prompt(evaluated));
        }
        if !self.is_prefilling() {
            match self.max_tokens {
                0 => events.push(self.finished(FinishReason::Length)),
                _ => events.extend(self.take_logits(&logits[logits.len() - width..], tokenizer)?),
            }
        }
        Ok(events)
    }

    /// Samples the next token from the logits of the newest position.
    ///
    /// # Errors
    /// If they are not finite.
    pub(super) fn take_logits(
        &mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
    ) -> Result<Vec<Event>> {
        debug_assert_eq!(self.vocab, tokenizer.vocab_size());
        let id = self.sampler.sample(&logits[..self.vocab])?;
        self.newest = id;
        self.n_generated += 1;
        let logprob = self
            .logprobs
            .map(|n| token_logprob(logits, id, n, self.vocab));
        let is_end = tokenizer.end_ids().contains(&(id as u32));
        let text = match &mut self.decoder {
            Some(decoder) if !is_end => self.stop.push(&decoder.push(id as u32)),
            _ => String::new(),
        };
        let mut events = vec![Event::Token { id, text, logprob }];
        if is_end || self.stop.is_stopped() {
            events.push(self.finished(FinishReason::Stop));
        } else if self.n_generated == self.max_tokens {
            events.push(self.finished(FinishReason::Length));
        }
        Ok(events)
    }

    /// Ends the text.
    fn finished(&mut self, reason: FinishReason) -> Event {
        let rest = self
            .decoder
            .take()
            .map(StreamDecoder::finish)
            .unwrap_or_default();
        let mut text = self.stop.push(&rest);
        // The rest of an incomplete character can complete a stop string, too.
        let reason = match self.stop.is_stopped() {
            true => FinishReason::Stop,
            false => reason,
        };
        text.push_str(&self.stop.finish());
        Event::Finished { reason, text }
    }
}

fn first_token(id: i32) -> TokenLogprob {
    TokenLogprob {
        id,
        logprob: None,
        top: Vec::new(),
    }
}

fn check_finite(logits: &[f32]) -> Result<()> {
    match logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        true => Err(Error::not_finite(
            "the model's logits are not finite; its weights may be corrupt",
        )),
        false => Ok(()),
    }
}
