//! Requests to the engine, and the events that answer them.

use std::time::Instant;

use hybridnorm::eval::Sampling;

/// A request: prompts, each of which is continued `n` times.
///
/// Choice `c` continues prompt `c / n`.
#[derive(Debug, Clone)]
pub struct Request {
    /// Prompts, token ids; at least one, each with at least one token.
    pub prompts: Vec<Vec<i32>>,
    /// Continuations of each prompt, at least 1.
    pub n: usize,
    /// Maximum number of new tokens of a choice; 0 only evaluates the prompt.
    pub max_tokens: usize,
    /// Sampling parameters. The seed of continuation `i` of a prompt is `seed + i`, wrapping.
    pub sampling: Sampling,
    /// Strings before which the text of a choice ends.
    pub stop: Vec<String>,
    /// Log-probabilities of new tokens, and of this many of the most likely alternatives.
    pub logprobs: Option<usize>,
    /// True if the log-probabilities of prompt tokens are returned, too; requires `logprobs`.
    pub prompt_logprobs: bool,
    /// Time by which the request must be complete.
    pub deadline: Option<Instant>,
}

impl Request {
    /// Creates a request for one greedy continuation of a prompt.
    pub fn new(prompt: Vec<i32>, max_tokens: usize) -> Self {
        Self {
            prompts: vec![prompt],
            n: 1,
            max_tokens,
            sampling: Sampling::default().with_temperature(0.0),
            stop: Vec::new(),
            logprobs: None,
            prompt_logprobs: false,
            deadline: None,
        }
    }

    /// Returns the number of choices.
    pub fn choices(&self) -> usize {
        self.prompts.len().saturating_mul(self.n)
    }

    /// Returns the number of prompt tokens.
    pub fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(Vec::len).sum()
    }
}

/// A token with log-probabilities in nats: of the softmax of the model's logits, before temperature, top-k and top-p.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: i32,
    /// Its log-probability; `None` for the first token of a prompt, which nothing precedes.
    pub logprob: Option<f32>,
    /// The most likely tokens at its position, in descending order.
    pub top: Vec<(i32, f32)>,
}

/// Reason why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A token that ends the text, or a stop string.
    Stop,
    /// The maximum number of tokens.
    Length,
}

impl FinishReason {
    /// Returns the name in OpenAI's API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// An event of a choice.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Log-probabilities of the next prompt tokens.
    Prompt(Vec<TokenLogprob>),
    /// A new token.
    Token {
        /// The token.
        id: i32,
        /// Text that is complete with it; empty while a character or a possible stop string is incomplete.
        text: String,
        /// Its log-probabilities, if requested.
        logprob: Option<TokenLogprob>,
    },
    /// The choice is complete.
    Finished {
        /// The reason.
        reason: FinishReason,
        /// The rest of its text.
        text: String,
    },
    /// The request failed; no event of any choice follows.
    Failed(Failure),
}

/// Reason why a running request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Its deadline has passed.
    TimedOut,
    /// The server stops.
    Stopped,
    /// The model could not be evaluated.
    Model(String),
}

/// Receiver of the events of a request: choice and event.
pub trait EventSink: Send {
    /// Sends an event; returns false if nobody receives it, which cancels the request.
    fn send(&mut self, choice: usize, event: Event) -> bool;

    /// True if nobody receives events.
    fn is_closed(&self) -> bool {
        false
    }
}

impl EventSink for std::sync::mpsc::Sender<(usize, Event)> {
    fn send(&mut self, choice: usize, event: Event) -> bool {
        std::sync::mpsc::Sender::send(self, (choice, event)).is_ok()
    }
}

/// Reason why a request was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// As many requests as the engine accepts are waiting or running.
    QueueFull,
    /// The engine has stopped.
    Stopped,
    /// The request is invalid: field and problem.
    Invalid(&'static str, String),
}
