//! Benchmark of token generation.

use std::time::Instant;

use derive_setters::Setters;
use half::bf16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::machine;
use super::timing::{check_seconds, median};
use crate::Device;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::counts::counts;
use crate::model::{KvCache, Model, ModelConfig, ParamSpec, Role};
use crate::plan::{Options, Precision};
use crate::train::Config;

/// Minimum number of measured tokens.
const MIN_TOKENS: usize = 8;
/// Warm-up tokens before the measurement.
const WARM_UP: usize = 2;
/// Bytes of an f32.
const F32: u64 = size_of::<f32>() as u64;
/// Bytes of a bfloat16 number.
const BF16: u64 = size_of::<bf16>() as u64;
/// Embedding of tokens.
const EMBEDDING: &str = "embedding";
/// Weight of latent attention that decoding absorbs into queries and outputs, in single precision.
const ABSORBED: &str = "attention.kv_up";

/// Options of the decoding benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Setters)]
#[setters(prefix = "with_", strip_option, into)]
#[non_exhaustive]
pub struct DecodeOptions {
    /// Positions of the KV cache, at least 2. The prompt fills half of it.
    pub seq_len: usize,
    /// Precision of activations and matmuls, and of the weights that are read.
    pub precision: Precision,
    /// Approximate duration of the measurement in seconds; at least 8 tokens are measured.
    pub seconds: f64,
}

impl DecodeOptions {
    /// Returns options that measure for about 5 seconds.
    pub fn new(seq_len: usize) -> Self {
        Self {
            seq_len,
            precision: Precision::F32,
            seconds: 5.0,
        }
    }

    /// Returns options with the sequence length and precision of a configuration.
    pub fn of(config: &Config, seconds: f64) -> Self {
        Self {
            seq_len: config.train.seq_len,
            precision: config.train.program_precision(),
            seconds,
        }
    }
}

/// Results of the decoding benchmark, at batch size 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DecodeReport {
    /// Number of compute threads.
    pub threads: usize,
    /// Precision, such as `bf16, residual stream in f32`.
    pub precision: String,
    /// Number of parameters of the model.
    pub parameters: u64,
    /// Number of prompt tokens.
    pub prompt_tokens: usize,
    /// Number of measured tokens.
    pub tokens: usize,
    /// Median wall time of a token, in seconds.
    pub token_seconds: f64,
    /// Tokens per second at the median time.
    pub tokens_per_second: f64,
    /// Bytes of weights read per token: all of them, but only one row of an untied embedding table, and only the
    /// active experts.
    pub bytes_per_token: u64,
    /// Bytes of keys and values read per token, the median over the tokens.
    pub cache_bytes_per_token: f64,
    /// Read bandwidth of memory in bytes per second, the best of two measurements: halfway through the tokens and after
    /// them.
    pub bandwidth_bytes_per_second: f64,
    /// Memory bandwidth utilization (MBU): `bytes_per_token · tokens_per_second / bandwidth_bytes_per_second`.
    /// Above 1 if a processor cache holds the weights.
    pub bandwidth_share: f64,
    /// Peak resident memory of the process during generation, where the system reports it, without the
    /// buffer of the bandwidth measurement.
    pub peak_rss_bytes: Option<u64>,
}

/// Measures greedy decoding after a random prompt; restarts from the prompt whenever the cache is
/// full.
///
/// # Errors
/// If the configuration is not valid or does not fit into memory, `seq_len` is less than 2 or exceeds `max_seq_len`, or
/// `seconds` is negative or not finite.
///
/// ```no_run
/// use hybridnorm::Device;
/// use hybridnorm::bench::{self, DecodeOptions};
/// use hybridnorm::model::ModelConfig;
///
/// let mut config = ModelConfig::default();
/// (config.d_model, config.n_layers, config.d_ff) = (16, 1, 32);
/// (config.n_heads, config.n_kv_heads) = (2, 2);
/// config.placement = hybridnorm::placement::named("pre-norm")?;
/// (config.vocab_size, config.max_seq_len) = (64, 16);
/// // The bandwidth measurement reads a large buffer, which takes about a second.
/// let report = bench::decode(&config, &DecodeOptions::new(16).with_seconds(0.0), Device::Cpu)?;
/// println!("{:.1} tokens/s", report.tokens_per_second);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn decode(
    config: &ModelConfig,
    options: &DecodeOptions,
    device: Device,
) -> Result<DecodeReport> {
    let DecodeOptions {
        seq_len,
        precision,
        seconds,
    } = *options;
    check_seconds(seconds)?;
    if seq_len < 2 || seq_len > config.max_seq_len {
        return Err(Error::out_of_range(
            "train.seq_len",
            seq_len,
            format!(
                "2 to model.max_seq_len = {} for decoding",
                config.max_seq_len
            ),
        ));
    }
    let counts = counts(config, seq_len)?;
    let bytes_per_parameter = match precision {
        Precision::F32 => F32,
        Precision::Bf16 { .. } => F32 + BF16,
    };
    memory::check_available(
        bytes_per_parameter * counts.total + machine::BandwidthBenchmark::BYTES as u64,
        "the model's weights and the buffer of the bandwidth benchmark",
    )?;
    let mut model = Model::new(config, 1, device)?;
    let plan_options = Options::default().with_precision(precision);
    model.set_plan_options(plan_options.with_keep_rounded_weights(true))?;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let prompt: Vec<i32> = (0..seq_len / 2)
        .map(|_| random.random_range(0..config.vocab_size as i32))
        .collect();

    memory::reset_peak();
    let mut decoder = Decoder::new(&mut model, &prompt, seq_len)?;
    let mut tokens = TokenSamples::default();
    for _ in 0..WARM_UP {
        decoder.next(&mut TokenSamples::default())?;
    }
    // Two halves with the bandwidth measurement between them: some allocators retain its buffer, which would
    // then count as memory of the model.
    decoder.generate(&mut tokens, MIN_TOKENS / 2, 0.5 * seconds)?;
    let peak_rss_bytes = memory::peak_bytes();
    let between = machine::read_bandwidth();
    decoder.generate(&mut tokens, MIN_TOKENS, seconds)?;
    let bandwidth = between.max(machine::read_bandwidth());

    let token_seconds = median(&tokens.seconds);
    let bytes_per_token = weight_bytes_read(&model);
    let cached_floats_per_position = (config.n_layers * config.cache_width()) as f64;
    Ok(DecodeReport {
        threads: crate::threads::count(),
        precision: precision.to_string(),
        parameters: counts.total,
        prompt_tokens: prompt.len(),
        tokens: tokens.seconds.len(),
        token_seconds,
        tokens_per_second: 1.0 / token_seconds,
        bytes_per_token,
        cache_bytes_per_token: F32 as f64 * cached_floats_per_position * median(&tokens.positions),
        bandwidth_bytes_per_second: bandwidth,
        bandwidth_share: bytes_per_token as f64 / token_seconds / bandwidth,
        peak_rss_bytes,
    })
}

/// Returns the bytes of weights read per token.
fn weight_bytes_read(model: &Model) -> u64 {
    let config = model.config();
    let is_bf16 = model.precision() != Precision::F32;
    let bytes = |spec: &ParamSpec| {
        let elements = spec.elements() as u64;
        let is_head = spec.role == Role::Head
            || spec.role == Role::Embedding && config.tie_embeddings && spec.name == EMBEDDING;
        let read = match (&config.moe, spec.role) {
            (_, Role::Embedding) if !is_head => config.d_model as u64,
            (Some(moe), _) if spec.experts > 1 => {
                elements / moe.n_experts as u64 * moe.top_k as u64
            }
            _ => elements,
        };
        let is_rounded = match spec.role {
            Role::Attention => !spec.name.ends_with(ABSORBED),
            Role::FeedForward => true,
            _ => is_head,
        };
        match is_bf16 && is_rounded {
            true => BF16 * read,
            false => F32 * read,
        }
    };
    model.parameters().map(bytes).sum()
}

/// Measurements of the generated tokens: wall time and number of cached positions of each.
#[derive(Default)]
struct TokenSamples {
    seconds: Vec<f64>,
    positions: Vec<f64>,
}

/// Greedy decoder, which starts from one prompt.
struct Decoder<'a> {
    model: &'a mut Model,
    prompt: &'a [i32],
    cache: KvCache,
    last_token: i32,
}

impl<'a> Decoder<'a> {
    /// Creates the KV cache and runs the prefill.
    fn new(model: &'a mut Model, prompt: &'a [i32], capacity: usize) -> Result<Self> {
        let mut decoder = Self {
            cache: model.new_cache(1, capacity)?,
            model,
            prompt,
            last_token: 0,
        };
        decoder.forward(prompt)?;
        Ok(decoder)
    }

    /// Generates until there are `min_tokens` tokens and they have taken `seconds`.
    fn generate(
        &mut self,
        tokens: &mut TokenSamples,
        min_tokens: usize,
        seconds: f64,
    ) -> Result<()> {
        let mut spent: f64 = tokens.seconds.iter().sum();
        while tokens.seconds.len() < min_tokens || spent < seconds {
            spent += self.next(tokens)?;
        }
        Ok(())
    }

    /// Generates a token; returns the seconds it took.
    fn next(&mut self, tokens: &mut TokenSamples) -> Result<f64> {
        if self.cache.len() == self.cache.capacity() {
            self.cache.clear();
            self.forward(self.prompt)?;
        }
        let started = Instant::now();
        self.forward(&[self.last_token])?;
        let seconds = started.elapsed().as_secs_f64();
        tokens.seconds.push(seconds);
        tokens.positions.push(self.cache.len() as f64);
        Ok(seconds)
    }

    /// Processes new tokens and selects the most likely next one.
    fn forward(&mut self, new: &[i32]) -> Result<()> {
        let logits = self.model.next_logits(new, &mut self.cache, false)?;
        let largest = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        self.last_token = largest.expect("a vocabulary is not empty") as i32;
        Ok(())
    }
}
