//! The cost of generating a token.

use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::machine;
use super::timing::{check_seconds, median};
use crate::Device;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::inventory::counts;
use crate::model::{KvCache, Model, ModelConfig};
use crate::train::Config;

/// Fewest tokens to measure.
const LEAST: usize = 8;
/// Tokens before the measurement begins.
const WARM_UP: usize = 2;
/// Bytes of a number.
const F32: u64 = size_of::<f32>() as u64;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeOptions {
    /// Positions of the cache, at least 2. The prompt fills half of it.
    pub seq_len: usize,
    /// Measure for about this many seconds, 8 tokens at least.
    pub seconds: f64,
}

impl DecodeOptions {
    /// Decoding at the sequence length of a configuration.
    pub fn of(config: &Config, seconds: f64) -> Self {
        Self {
            seq_len: config.train.seq_len,
            seconds,
        }
    }
}

/// What was measured, with one sequence at a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecodeReport {
    /// Threads that computed.
    pub threads: usize,
    /// Parameters of the model.
    pub parameters: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens measured.
    pub tokens: usize,
    /// Median wall time of a token.
    pub token_seconds: f64,
    /// Tokens a second at that time.
    pub tokens_per_second: f64,
    /// Bytes of weights that a token reads: all of them, but of an embedding table that is not the
    /// head as well one row only, and of experts those that it passes through.
    pub bytes_per_token: u64,
    /// Bytes of keys and values that a token reads, the median over the tokens.
    pub cache_bytes_per_token: f64,
    /// Bytes a second at which the machine reads memory, the best of two measurements amid and
    /// after the tokens.
    pub bandwidth_bytes_per_second: f64,
    /// `bytes_per_token · tokens_per_second / bandwidth_bytes_per_second`. Above 1 where a cache
    /// of the processor holds the weights.
    pub bandwidth_share: f64,
    /// Largest resident memory of the process while it generated, where the system tells. The
    /// buffer that the bandwidth is measured with is not in it.
    pub peak_rss_bytes: Option<u64>,
}

/// Generates the most likely tokens after a random prompt and measures; begins again with the
/// prompt whenever the cache is full.
///
/// # Errors
/// If the configuration is not valid or does not fit into memory, the sequence is shorter than 2
/// or longer than the model's, or the time is no number.
pub fn decode(
    config: &ModelConfig,
    options: &DecodeOptions,
    device: Device,
) -> Result<DecodeReport> {
    let DecodeOptions { seq_len, seconds } = *options;
    check_seconds(seconds)?;
    if seq_len < 2 || seq_len > config.max_seq_len {
        return Err(Error::config(format!(
            "sequences of {seq_len} tokens, expected 2 to model.max_seq_len = {} to decode",
            config.max_seq_len
        )));
    }
    let counts = counts(config, seq_len)?;
    memory::require(
        4 * counts.total + machine::Bandwidth::BYTES as u64,
        "the model's weights and the buffer to measure the memory's bandwidth with",
    )?;
    let mut model = Model::new(config, 1, device)?;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let prompt: Vec<i32> = (0..seq_len / 2)
        .map(|_| random.random_range(0..config.vocab_size as i32))
        .collect();

    memory::reset_peak();
    let mut text = Text::begin(&mut model, &prompt, seq_len)?;
    let mut tokens = Tokens::default();
    for _ in 0..WARM_UP {
        text.next(&mut Tokens::default())?;
    }
    // Two halves with the bandwidth between them: its buffer is kept by some allocators and would
    // count as memory of the model from then on.
    text.generate(&mut tokens, LEAST / 2, 0.5 * seconds)?;
    let peak_rss_bytes = memory::peak_bytes();
    let between = machine::read_bandwidth();
    text.generate(&mut tokens, LEAST, seconds)?;
    let bandwidth = between.max(machine::read_bandwidth());

    let token_seconds = median(&tokens.seconds);
    let bytes_per_token = weight_bytes(config, counts.active);
    let position = (config.n_layers * config.cache_width()) as f64;
    Ok(DecodeReport {
        threads: crate::threads::count(),
        parameters: counts.total,
        prompt_tokens: prompt.len(),
        tokens: tokens.seconds.len(),
        token_seconds,
        tokens_per_second: 1.0 / token_seconds,
        bytes_per_token,
        cache_bytes_per_token: F32 as f64 * position * median(&tokens.positions),
        bandwidth_bytes_per_second: bandwidth,
        bandwidth_share: bytes_per_token as f64 / token_seconds / bandwidth,
        peak_rss_bytes,
    })
}

/// Bytes of weights that one token reads.
fn weight_bytes(config: &ModelConfig, parameters: u64) -> u64 {
    let unread = match config.tie_embeddings {
        true => 0,
        false => (config.vocab_size as u64 - 1) * config.d_model as u64,
    };
    F32 * (parameters - unread)
}

/// What each token took and saw.
#[derive(Default)]
struct Tokens {
    seconds: Vec<f64>,
    positions: Vec<f64>,
}

/// A prompt and what follows it.
struct Text<'a> {
    model: &'a mut Model,
    prompt: &'a [i32],
    cache: KvCache,
    newest: i32,
}

impl<'a> Text<'a> {
    /// Reads the prompt.
    fn begin(model: &'a mut Model, prompt: &'a [i32], capacity: usize) -> Result<Self> {
        let mut text = Self {
            cache: model.new_cache(1, capacity)?,
            model,
            prompt,
            newest: 0,
        };
        text.read(prompt)?;
        Ok(text)
    }

    /// Generates until there are `least` tokens and `seconds` have been spent on them.
    fn generate(&mut self, tokens: &mut Tokens, least: usize, seconds: f64) -> Result<()> {
        let mut spent: f64 = tokens.seconds.iter().sum();
        while tokens.seconds.len() < least || spent < seconds {
            spent += self.next(tokens)?;
        }
        Ok(())
    }

    /// Generates a token; returns the seconds it took.
    fn next(&mut self, tokens: &mut Tokens) -> Result<f64> {
        if self.cache.len() == self.cache.capacity() {
            self.cache.clear();
            self.read(self.prompt)?;
        }
        let started = Instant::now();
        self.read(&[self.newest])?;
        let seconds = started.elapsed().as_secs_f64();
        tokens.seconds.push(seconds);
        tokens.positions.push(self.cache.len() as f64);
        Ok(seconds)
    }

    /// Reads new tokens and chooses the one after them.
    fn read(&mut self, new: &[i32]) -> Result<()> {
        let logits = self.model.next_logits(new, &mut self.cache, false)?;
        let largest = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        self.newest = largest.expect("a vocabulary is not empty") as i32;
        Ok(())
    }
}
