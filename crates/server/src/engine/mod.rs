//! Continuous batching: one thread owns the model and runs steps of all active sequences.
//!
//! A request waits until a slot of the KV cache is free. Each iteration of [`Engine::run`] evaluates up to
//! [`EngineOptions::prefill_chunk`] tokens of prompts, one sequence per run, and then one token of every sequence whose
//! prompt is complete, all in one run. Requests take turns for free slots.
//!
//! **Reproducibility.** Prompts are evaluated apart from other sequences, so that their log-probabilities, and the first
//! token, do not depend on other requests at all. Each continuation has a random generator of its own. In a step of
//! several sequences, the rounding of a matmul depends on the number of sequences, hence the last bits of logits do:
//! a request with a seed gives the same tokens whatever else runs, unless two tokens are within that rounding.

mod jobs;
mod logprobs;
mod request;
mod sequence;
mod stop;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use derive_setters::Setters;
use hybridnorm::data::Tokenizer;
use hybridnorm::model::{Model, SlotCache};
use hybridnorm::{Error, Result};

pub use request::{Event, EventSink, Failure, FinishReason, Rejection, Request, TokenLogprob};
use worker::Worker;

/// Options of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Setters)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Sequences that are evaluated at the same time. 16 by default.
    pub slots: usize,
    /// Maximum number of tokens of a sequence, prompt and continuation; `None`: the model's `max_seq_len`.
    pub context: Option<usize>,
    /// Requests that wait, in addition to one per slot. 64 by default.
    pub queue: usize,
    /// Maximum number of prompt tokens that are evaluated between two steps. 256 by default.
    pub prefill_chunk: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            slots: 16,
            context: None,
            queue: 64,
            prefill_chunk: 256,
        }
    }
}

/// Counters of an engine.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that wait or run.
    pub requests: AtomicUsize,
    /// Sequences in slots.
    pub active: AtomicUsize,
    /// Evaluated tokens of prompts.
    pub prompt_tokens: AtomicUsize,
    /// New tokens.
    pub generated_tokens: AtomicUsize,
    /// Runs of one token of every sequence.
    pub steps: AtomicUsize,
    /// Requests whose receiver was gone.
    pub cancelled: AtomicUsize,
    /// True after the engine has ended.
    has_stopped: AtomicBool,
}

/// Sender of requests to an engine. Cheap to clone; the engine ends when the last one is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    sender: mpsc::Sender<Message>,
    counters: Arc<Counters>,
    max_requests: usize,
    context: usize,
    vocab: usize,
}

/// A message to the engine.
enum Message {
    Request(Request, Box<dyn EventSink>),
    Stop,
}

/// Memory of an engine in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineMemory {
    /// Weights.
    pub weights: u64,
    /// KV cache of all slots.
    pub cache: u64,
    /// Values and workspace of the largest run, with its logits.
    pub run: u64,
}

/// An engine, to be run on a thread of its own.
///
/// ```
/// use std::sync::mpsc;
///
/// use hybridnorm::Device;
/// use hybridnorm::data::Tokenizer;
/// use hybridnorm::model::Model;
/// use hybridnorm_server::engine::{Engine, EngineOptions, Event, Request};
/// # use hybridnorm::model::ModelConfig;
///
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(257)
/// #     .with_max_seq_len(32)
/// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
/// let model = Model::new(&config, 0, Device::Cpu)?;
/// let (engine, handle) = Engine::new(model, Tokenizer::bytes(), &EngineOptions::default())?;
/// let thread = std::thread::spawn(|| engine.run());
/// let (sender, events) = mpsc::channel();
/// handle.submit(Request::new(vec![72, 105], 3), Box::new(sender)).unwrap();
/// let last = events.iter().last().unwrap();
/// assert!(matches!(last, (0, Event::Finished { .. })));
/// drop(handle);
/// thread.join().unwrap();
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub struct Engine {
    model: Model,
    cache: SlotCache,
    tokenizer: Tokenizer,
    prefill_chunk: usize,
    receiver: mpsc::Receiver<Message>,
    counters: Arc<Counters>,
    memory: EngineMemory,
}

impl Engine {
    /// Allocates the cache of a model and the memory of its runs.
    ///
    /// # Errors
    /// If an option is out of range, the tokenizer's vocabulary is larger than the model's, or there is not enough
    /// memory.
    pub fn new(
        mut model: Model,
        tokenizer: Tokenizer,
        options: &EngineOptions,
    ) -> Result<(Self, EngineHandle)> {
        let vocab = model.config().vocab_size;
        if tokenizer.vocab_size() > vocab {
            let problem = format!(
                "the tokenizer has {} tokens, the model only {vocab}",
                tokenizer.vocab_size()
            );
            return Err(Error::conflict(["tokenizer"], problem));
        }
        let longest = model.config().max_seq_len;
        let context = options.context.unwrap_or(longest);
        if !(1..=longest).contains(&context) {
            let expected = format!("1 to {longest}, the model's max_seq_len");
            return Err(Error::out_of_range("context", context, expected));
        }
        if options.prefill_chunk == 0 {
            return Err(Error::out_of_range("prefill_chunk", 0, "at least 1"));
        }
        let chunk = options.prefill_chunk.min(context);
        let mut cache = model.new_slot_cache(options.slots, context)?;
        let values = model.prepare_slot_logits(&mut cache, chunk)?;
        // Logits of a run leave the arena as a copy.
        let logits = 4 * (vocab * chunk.max(options.slots)) as u64;
        let memory = EngineMemory {
            weights: model.weight_bytes(),
            cache: model.slot_cache_bytes(options.slots, context),
            run: values + 2 * logits,
        };
        let counters = Arc::<Counters>::default();
        let (sender, receiver) = mpsc::channel();
        let handle = EngineHandle {
            sender,
            counters: counters.clone(),
            max_requests: options.slots + options.queue,
            context,
            vocab: tokenizer.vocab_size(),
        };
        let engine = Self {
            model,
            cache,
            tokenizer,
            prefill_chunk: chunk,
            receiver,
            counters,
            memory,
        };
        Ok((engine, handle))
    }

    /// Returns the memory that the engine uses.
    pub fn memory(&self) -> EngineMemory {
        self.memory
    }

    /// Runs until every [`EngineHandle`] is dropped or [`EngineHandle::stop`] is called. Blocks; kernels are fastest if
    /// it is called on a thread of the compute pool ([`hybridnorm::threads::run`]).
    pub fn run(self) {
        let _stopped = SetOnDrop(self.counters.clone());
        Worker::new(self).run();
    }
}

/// Marks the engine as stopped, also if it panics.
struct SetOnDrop(Arc<Counters>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.has_stopped.store(true, Ordering::Release);
    }
}

impl EngineHandle {
    /// Submits a request, whose events `sink` receives.
    ///
    /// # Errors
    /// If the request is invalid, the queue is full, or the engine has stopped.
    pub fn submit(
        &self,
        request: Request,
        sink: Box<dyn EventSink>,
    ) -> std::result::Result<(), Rejection> {
        self.check(&request)?;
        if self.has_stopped() {
            return Err(Rejection::Stopped);
        }
        let waiting = &self.counters.requests;
        let add = |n: usize| (n < self.max_requests).then_some(n + 1);
        if waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add)
            .is_err()
        {
            return Err(Rejection::QueueFull);
        }
        self.sender
            .send(Message::Request(request, sink))
            .map_err(|_| {
                waiting.fetch_sub(1, Ordering::AcqRel);
                Rejection::Stopped
            })
    }

    /// Checks a request.
    ///
    /// # Errors
    /// [`Rejection::Invalid`] naming the field.
    pub fn check(&self, request: &Request) -> std::result::Result<(), Rejection> {
        let invalid = |field, problem: String| Err(Rejection::Invalid(field, problem));
        if request.prompts.is_empty() {
            return invalid("prompt", "there is no prompt".into());
        }
        if request.n == 0 {
            return invalid("n", "n = 0, expected at least 1".into());
        }
        if request.prompt_logprobs && request.logprobs.is_none() {
            return invalid(
                "logprobs",
                "log-probabilities of prompts require logprobs".into(),
            );
        }
        for (index, prompt) in request.prompts.iter().enumerate() {
            if prompt.is_empty() {
                return invalid("prompt", format!("prompt {index} contains no token"));
            }
            if let Some(id) = prompt
                .iter()
                .find(|&&id| id < 0 || id as usize >= self.vocab)
            {
                let problem = format!(
                    "token id {id} of prompt {index} is outside the vocabulary of {}",
                    self.vocab
                );
                return invalid("prompt", problem);
            }
            // The last new token is not evaluated.
            let needed = prompt
                .len()
                .saturating_add(request.max_tokens.saturating_sub(1));
            if needed > self.context {
                let problem = format!(
                    "this model's maximum context length is {} tokens; {} were requested ({} in prompt {index}, {} for \
                     the completion): reduce the prompt or max_tokens",
                    self.context,
                    prompt.len().saturating_add(request.max_tokens),
                    prompt.len(),
                    request.max_tokens
                );
                return invalid("prompt", problem);
            }
        }
        let sampling = request.sampling.check();
        sampling.or_else(|error| invalid("sampling", error.to_string()))
    }

    /// Ends the engine: running requests fail with [`Failure::Stopped`].
    pub fn stop(&self) {
        // If the engine has ended, there is nothing to stop.
        let _ = self.sender.send(Message::Stop);
    }

    /// True if the engine has ended.
    pub fn has_stopped(&self) -> bool {
        self.counters.has_stopped.load(Ordering::Acquire)
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the maximum number of requests that wait or run.
    pub fn max_requests(&self) -> usize {
        self.max_requests
    }

    /// Returns the maximum number of tokens of a sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns the number of token ids that prompts may contain.
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }
}

#[cfg(test)]
mod tests;
