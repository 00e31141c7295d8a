//! Sampling of tokens from a model.

use derive_setters::Setters;
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::model::{KvCache, Model};
use crate::omissions::{Omissions, Unit};

/// Sampling parameters.
///
/// ```
/// use hybridnorm::eval::Sampling;
///
/// Sampling::default().with_top_k(40).with_seed(1).check()?;
/// let greedy = Sampling::default().with_temperature(0.0);
/// greedy.check()?;
/// // Greedy decoding does not sample, so a seed has no effect.
/// assert!(greedy.with_seed(1).check().is_err());
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Setters)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct Sampling {
    /// Sampling temperature, which divides the logits; 0 is greedy. 0.8 by default.
    pub temperature: f64,
    /// Top-k: keep only this many of the most likely tokens; 0 or `None` keeps all.
    pub top_k: Option<usize>,
    /// Top-p: keep the most likely tokens that together reach this probability; 1 keeps all. `None`:
    /// [`Sampling::DEFAULT_TOP_P`].
    pub top_p: Option<f64>,
    /// Random seed; `None`: 0.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: None,
            top_p: None,
            seed: None,
        }
    }
}

impl Sampling {
    /// Top-p if none is given.
    pub const DEFAULT_TOP_P: f64 = 0.95;

    /// Checks the ranges of the fields, and that each has an effect.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] naming the field; [`Error::NoEffect`] for fields that greedy decoding ignores.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::out_of_range(
                "temperature",
                self.temperature,
                "a finite non-negative number",
            ));
        }
        match self.top_p {
            Some(top_p) if !(top_p > 0.0 && top_p <= 1.0) => {
                Err(Error::out_of_range("top_p", top_p, "above 0 and at most 1"))
            }
            _ => self.check_greedy(),
        }
    }

    /// Rejects fields that greedy decoding ignores.
    fn check_greedy(&self) -> Result<()> {
        let is_top_1 = self.top_k == Some(1);
        let greedy = match self.temperature == 0.0 {
            true => "temperature = 0",
            false if is_top_1 => "top_k = 1",
            false => return Ok(()),
        };
        let ignored: Vec<&str> = [
            ("top_k", self.top_k.is_some() && !is_top_1),
            ("top_p", self.top_p.is_some()),
            ("seed", self.seed.is_some()),
        ]
        .into_iter()
        .filter_map(|(field, is_ignored)| is_ignored.then_some(field))
        .collect();
        match ignored.is_empty() {
            true => Ok(()),
            false => Err(Error::no_effect(
                ignored.join(" and "),
                format!(" with greedy decoding ({greedy}); remove one of them"),
            )),
        }
    }
}

/// Random sampling of tokens from logits, with a generator of its own.
///
/// ```
/// use hybridnorm::eval::{Sampler, Sampling};
///
/// let sampling = Sampling::default().with_top_k(2).with_seed(1);
/// let mut sampler = Sampler::new(sampling)?;
/// let token = sampler.sample(&[0.1, 2.0, -1.0, 1.9])?;
/// assert!(token == 1 || token == 3);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// Creates a sampler, whose generator is keyed by the seed.
    ///
    /// # Errors
    /// As [`Sampling::check`].
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.check()?;
        Ok(Self {
            random: ChaCha8Rng::seed_from_u64(sampling.seed.unwrap_or(0)),
            sampling,
        })
    }

    /// Samples a token from the logits of a vocabulary.
    ///
    /// # Errors
    /// If a logit is NaN or positive infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<i32> {
        sample_token(logits, &self.sampling, &mut self.random)
    }
}

/// Autoregressive generation of tokens with a KV cache.
///
/// A prompt that does not fit into the context of `max_seq_len` tokens is truncated at its start. When the
/// context is full, its later half becomes the new context. [`Generator::omissions`] counts the dropped tokens.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::eval::{Generator, Sampling};
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
/// let sampling = Sampling::default().with_top_k(4).with_seed(1);
/// let mut generator = Generator::new(&mut model, &[1, 2, 3], sampling)?;
/// let tokens = (0..5).map(|_| generator.next_token()).collect::<Result<Vec<_>, _>>()?;
/// assert!(tokens.iter().all(|token| (0..8).contains(token)));
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub struct Generator<'a> {
    model: &'a mut Model,
    sampler: Sampler,
    cache: KvCache,
    context: Vec<i32>,
    n_uncached: usize,
    vocab: usize,
    /// Number of tokens truncated from the start of the prompt.
    truncated_prompt: usize,
    /// Tokens that were dropped from the context.
    dropped: usize,
}

impl<'a> Generator<'a> {
    /// Creates a generator for a prompt of at least one token.
    ///
    /// # Errors
    /// If the prompt is empty or contains token ids outside the vocabulary, a sampling parameter is out of range, or
    /// the cache of `max_seq_len` positions does not fit into memory.
    pub fn new(model: &'a mut Model, prompt: &[i32], sampling: Sampling) -> Result<Self> {
        let sampler = Sampler::new(sampling)?;
        if prompt.is_empty() {
            return Err(Error::invalid_value(
                "prompt",
                "the prompt contains no token",
            ));
        }
        model.check_ids(prompt, 1, prompt.len())?;
        let longest = model.config().max_seq_len;
        // Leaves space for at least one new token.
        let kept = prompt.len().min(longest.max(2) - 1);
        let context = prompt[prompt.len() - kept..].to_vec();
        Ok(Self {
            cache: model.new_cache(1, longest)?,
            n_uncached: context.len(),
            truncated_prompt: prompt.len() - kept,
            dropped: 0,
            context,
            vocab: model.config().vocab_size,
            model,
            sampler,
        })
    }

    /// Samples only ids below `vocab`: a model may have more embedding rows than its tokenizer has tokens.
    pub fn with_vocab_size(mut self, vocab: usize) -> Self {
        self.vocab = vocab.clamp(1, self.vocab);
        self
    }

    /// Returns the tokens that the last sample did not depend on: truncated tokens of the prompt, and earlier
    /// ones dropped when the context was full.
    pub fn omissions(&self) -> Omissions {
        let longest = self.model.config().max_seq_len;
        let mut omissions = Omissions::default();
        let mut add = |count: usize, reason: &str| {
            let reason = format!("{reason} the context of {longest} tokens");
            omissions.add(Unit::Tokens, &reason, count as u64, None);
        };
        add(
            self.truncated_prompt,
            "beginning of the prompt, which does not fit into",
        );
        add(
            self.dropped,
            "first half of the context, dropped whenever the text filled",
        );
        omissions
    }

    /// Samples the next token.
    ///
    /// # Errors
    /// If the model's output is not finite.
    pub fn next_token(&mut self) -> Result<i32> {
        let longest = self.model.config().max_seq_len;
        if self.context.len() > longest {
            let keep = (longest / 2).max(1);
            self.dropped += self.context.len() - keep;
            self.context.drain(..self.context.len() - keep);
            self.cache.clear();
            self.n_uncached = keep;
        }
        let new = &self.context[self.context.len() - self.n_uncached..];
        let logits = self.model.next_logits(new, &mut self.cache, false)?;
        let token = self.sampler.sample(&logits[..self.vocab])?;
        self.context.push(token);
        self.n_uncached = 1;
        Ok(token)
    }
}

/// Samples a token from logits.
fn sample_token(logits: &[f32], sampling: &Sampling, random: &mut ChaCha8Rng) -> Result<i32> {
    if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        return Err(Error::not_finite(
            "the model's logits are not finite; its weights may be corrupt",
        ));
    }
    if sampling.temperature == 0.0 {
        return Ok(first_largest(logits) as i32);
    }
    let mut order = descending(logits);
    if let Some(k @ 1..) = sampling.top_k {
        order.truncate(k);
    }
    let top_p = sampling.top_p.unwrap_or(Sampling::DEFAULT_TOP_P);
    let largest = f64::from(logits[order[0]]);
    let mut weights: Vec<f64> = order
        .iter()
        .map(|&id| ((f64::from(logits[id]) - largest) / sampling.temperature).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let mut reached = 0.0;
    let kept = weights
        .iter()
        .position(|weight| {
            reached += weight / total;
            reached >= top_p
        })
        .map_or(weights.len(), |last| last + 1);
    weights.truncate(kept);
    let sampled = WeightedIndex::new(&weights)
        .map_err(|error| Error::not_finite(format!("cannot sample a token: {error}")))?
        .sample(random);
    Ok(order[sampled] as i32)
}

/// Returns the id of the largest logit; of equal ones, the lowest.
fn first_largest(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, id| {
        match logits[id].total_cmp(&logits[best]).is_gt() {
            true => id,
            false => best,
        }
    })
}

/// Returns the ids in descending order of their logits; equal logits keep the order of their ids.
fn descending(logits: &[f32]) -> Vec<usize> {
    // Integers that compare as `f32::total_cmp` does are faster to sort than indices.
    let key = |(id, logit): (usize, &f32)| {
        let bits = logit.to_bits();
        let ascending = if logit.is_sign_negative() {
            !bits
        } else {
            bits | 1 << 31
        };
        u64::from(!ascending) << 32 | id as u64
    };
    let mut keys: Vec<u64> = logits.iter().enumerate().map(key).collect();
    keys.sort_unstable();
    keys.into_iter().map(|key| key as u32 as usize).collect()
}

impl Drop for Generator<'_> {
    fn drop(&mut self) {
        self.model.free_cache(std::mem::take(&mut self.cache));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Buffer;
    use crate::model::Device;
    use crate::model::testing::tiny;

    const LOGITS: [f32; 4] = [0.0, 3.0, 1.0, 2.0];

    fn sample_n(sampling: Sampling, n: usize) -> Vec<i32> {
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed.unwrap_or(0));
        (0..n)
            .map(|_| sample_token(&LOGITS, &sampling, &mut random).unwrap())
            .collect()
    }

    fn plain() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: None,
            top_p: Some(1.0),
            seed: Some(1),
        }
    }

    #[test]
    fn a_cache_that_cannot_fit_is_refused() {
        let mut model = Model::new(&tiny(), 0, Device::Cpu).unwrap();
        let error = model.new_cache(1, usize::MAX / 8).unwrap_err().to_string();
        assert!(error.contains("keys and values of up to"), "{error}");
    }

    #[test]
    #[should_panic(expected = "freed")]
    fn dropping_a_generator_frees_its_cache() {
        let mut model = Model::new(&tiny(), 0, Device::Cpu).unwrap();
        let mut generator = Generator::new(&mut model, &[1, 2], plain()).unwrap();
        generator.next_token().unwrap();
        let cache: Vec<Buffer> = generator.cache.buffers().to_vec();
        drop(generator);
        model.executor().read(cache[0], 0..1);
    }

    #[test]
    fn tokens_are_ordered_by_logit_and_then_by_id() {
        let logits = [0.5, -0.0, 0.0, -2.0, 0.5, f32::NEG_INFINITY, 1e-40, 3.0];
        let mut expected: Vec<usize> = (0..logits.len()).collect();
        expected.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        assert_eq!(descending(&logits), expected);
        for end in 1..=logits.len() {
            assert_eq!(first_largest(&logits[..end]), descending(&logits[..end])[0]);
        }
    }

    #[test]
    fn temperature_zero_is_greedy() {
        let greedy = Sampling {
            temperature: 0.0,
            ..plain()
        };
        assert_eq!(sample_n(greedy, 3), [1, 1, 1]);
    }

    #[test]
    fn top_k_and_top_p_remove_the_tail() {
        let top_k = Sampling {
            top_k: Some(2),
            ..plain()
        };
        assert!(sample_n(top_k, 500).iter().all(|id| [1, 3].contains(id)));
        // p(1) = 0.644, p(1) + p(3) = 0.881
        let top_p = Sampling {
            top_p: Some(0.8),
            ..plain()
        };
        let ids = sample_n(top_p, 500);
        assert!(ids.contains(&3) && ids.iter().all(|id| [1, 3].contains(id)));
        let narrow = Sampling {
            top_p: Some(0.5),
            ..plain()
        };
        assert!(sample_n(narrow, 100).iter().all(|&id| id == 1));
    }

    #[test]
    fn samples_follow_the_softmax() {
        let n = 20_000;
        let ids = sample_n(plain(), n);
        let total: f64 = LOGITS.iter().map(|&x| f64::from(x).exp()).sum();
        for (id, logit) in LOGITS.iter().enumerate() {
            let expected = f64::from(*logit).exp() / total;
            let found = ids.iter().filter(|&&x| x as usize == id).count() as f64 / n as f64;
            assert!((found - expected).abs() < 0.015, "{id}: {found} {expected}");
        }
    }

    #[test]
    fn equal_seeds_give_equal_samples() {
        assert_eq!(sample_n(plain(), 50), sample_n(plain(), 50));
        assert_ne!(sample_n(plain(), 50), sample_n(plain().with_seed(2), 50));
    }

    #[test]
    fn settings_out_of_range_are_errors() {
        for broken in [
            Sampling {
                temperature: -1.0,
                ..plain()
            },
            Sampling {
                temperature: f64::NAN,
                ..plain()
            },
            Sampling {
                top_p: Some(0.0),
                ..plain()
            },
            Sampling {
                top_p: Some(1.5),
                ..plain()
            },
        ] {
            assert!(broken.check().is_err(), "{broken:?}");
        }
    }

    #[test]
    fn settings_that_greedy_decoding_ignores_are_errors() {
        let greedy = Sampling::default().with_temperature(0.0);
        for ignored in [
            greedy.clone().with_top_k(5),
            greedy.clone().with_top_p(0.5),
            greedy.clone().with_seed(0),
            Sampling::default().with_top_k(1).with_seed(0),
        ] {
            let error = ignored.check().unwrap_err();
            assert!(matches!(error, Error::NoEffect { .. }), "{error}");
        }
        greedy.with_top_k(1).check().unwrap();
        Sampling::default().with_top_k(1).check().unwrap();
    }
}
