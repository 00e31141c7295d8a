//! Position embeddings: rotary (RoPE, arXiv 2104.09864) with its frequencies and their scaling for longer contexts,
//! learned, or none.

use std::f64::consts::PI;

use hybridnorm_kernels::qkv::rope_frequencies;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Embedding of positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionEmbedding {
    /// Rotary embedding of queries and keys.
    #[default]
    Rope,
    /// A learned vector per position, added to the token embedding (GPT-2).
    Learned,
    /// None: only the causal mask distinguishes positions (NoPE, arXiv 2305.19466).
    None,
}

impl PositionEmbedding {
    /// True for the default.
    pub(crate) fn is_rope(&self) -> bool {
        *self == Self::Rope
    }
}

/// Rotary embedding of a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rope {
    /// None.
    Off,
    /// Frequencies `theta^(-2i/channels)`, scaled.
    On {
        /// Base.
        theta: f64,
        /// Scaling of the frequencies.
        scaling: Option<RopeScaling>,
    },
}

impl Rope {
    /// Returns the frequencies of the pairs (i, i + head_dim/2) of a head's channels, of which `channels` are rotated,
    /// and the factor of their cosines and sines. Pairs with frequency 0 are not rotated.
    pub fn frequencies(&self, channels: usize, head_dim: usize) -> (Vec<f64>, f64) {
        let (mut frequencies, magnitude) = match self {
            Self::Off => (Vec::new(), 1.0),
            Self::On {
                theta,
                scaling: None,
            } => (rope_frequencies(*theta, channels), 1.0),
            Self::On {
                theta,
                scaling: Some(scaling),
            } => scaling.apply(*theta, channels),
        };
        frequencies.resize(head_dim / 2, 0.0);
        (frequencies, magnitude)
    }

    pub(super) fn theta(&self) -> Option<f64> {
        match self {
            Self::Off => None,
            Self::On { theta, .. } => Some(*theta),
        }
    }
}

/// Checks a base of the rotary embedding.
pub(super) fn check_theta(key: &str, theta: f64) -> Result<()> {
    match theta.is_finite() && theta > 1.0 {
        true => Ok(()),
        false => Err(Error::out_of_range(key, theta, "a finite number above 1")),
    }
}

/// Scaling of the rotary frequencies, by which a model trained on `original_max_seq_len` positions is used or trained
/// further on more. The formulas are those of `modeling_rope_utils.py` in `transformers`.
///
/// ```
/// use hybridnorm::model::RopeScaling;
///
/// let linear = RopeScaling::Linear { factor: 4.0 };
/// let (frequencies, magnitude) = linear.apply(10_000.0, 2);
/// assert_eq!((frequencies, magnitude), (vec![0.25], 1.0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Position interpolation (arXiv 2306.15595): all frequencies divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1 (arXiv 2407.21783): low frequencies divided by `factor`, high ones unchanged, those between
    /// interpolated.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Low frequencies make at most this many turns in `original_max_seq_len` positions.
        low_freq_factor: f64,
        /// High frequencies make at least this many turns; above `low_freq_factor`.
        high_freq_factor: f64,
        /// Sequence length of the original training, in tokens.
        original_max_seq_len: usize,
    },
    /// YaRN (arXiv 2309.00071): as [`RopeScaling::Llama3`], interpolated by channel instead of wavelength; cosines and
    /// sines are multiplied by `attention_factor`.
    Yarn {
        /// At least 1.
        factor: f64,
        /// High frequencies make at least this many turns; above `beta_slow`.
        beta_fast: f64,
        /// Low frequencies make at most this many turns.
        beta_slow: f64,
        /// Sequence length of the original training, in tokens.
        original_max_seq_len: usize,
        /// Factor of cosines and sines, usually `0.1 ln(factor) + 1`.
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// Returns the scaled frequencies of `channels` rotary channels, and the factor of cosines and sines.
    pub fn apply(&self, theta: f64, channels: usize) -> (Vec<f64>, f64) {
        let frequencies = rope_frequencies(theta, channels);
        match *self {
            Self::Linear { factor } => (frequencies.iter().map(|f| f / factor).collect(), 1.0),
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_seq_len,
            } => {
                let scaled = |frequency: &f64| {
                    let turns = original_max_seq_len as f64 * frequency / (2.0 * PI);
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    interpolated(*frequency, factor, kept)
                };
                (frequencies.iter().map(scaled).collect(), 1.0)
            }
            Self::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_seq_len,
                attention_factor,
            } => {
                let [low, width] = yarn_ramp(
                    [beta_fast, beta_slow],
                    original_max_seq_len,
                    theta,
                    channels,
                );
                let pairs = frequencies.iter().enumerate();
                let scaled =
                    pairs.map(|(i, f)| interpolated(*f, factor, 1.0 - (i as f64 - low) / width));
                (scaled.collect(), attention_factor)
            }
        }
    }

    /// Checks all values; `key` is the path of this table.
    pub(super) fn check(&self, key: &str) -> Result<()> {
        const POSITIVE: &str = "a finite positive number";
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        let of_factor = |value: f64| {
            let is_valid = value.is_finite() && value >= 1.0;
            ("factor", value, is_valid, "a finite number of at least 1")
        };
        let of_length = |length: usize| {
            (
                "original_max_seq_len",
                length as f64,
                length > 0,
                "at least 1",
            )
        };
        let values = match *self {
            Self::Linear { factor } => vec![of_factor(factor)],
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_seq_len,
            } => vec![
                of_factor(factor),
                ("low_freq_factor", low, is_positive(low), POSITIVE),
                (
                    "high_freq_factor",
                    high,
                    high.is_finite() && high > low,
                    "a finite number above low_freq_factor",
                ),
                of_length(original_max_seq_len),
            ],
            Self::Yarn {
                factor,
                beta_fast: fast,
                beta_slow: slow,
                original_max_seq_len,
                attention_factor,
            } => vec![
                of_factor(factor),
                ("beta_slow", slow, is_positive(slow), POSITIVE),
                (
                    "beta_fast",
                    fast,
                    fast.is_finite() && fast > slow,
                    "a finite number above beta_slow",
                ),
                of_length(original_max_seq_len),
                (
                    "attention_factor",
                    attention_factor,
                    is_positive(attention_factor),
                    POSITIVE,
                ),
            ],
        };
        match values.into_iter().find(|(_, _, is_valid, _)| !is_valid) {
            None => Ok(()),
            Some((name, value, _, expected)) => Err(Error::out_of_range(
                format!("{key}.{name}"),
                value,
                expected,
            )),
        }
    }
}

/// Returns the first channel pair of the frequencies that YaRN interpolates, and the number of pairs up to the first
/// that it divides; `turns` are `beta_fast` and `beta_slow`.
pub(crate) fn yarn_ramp(
    [fast, slow]: [f64; 2],
    original_max_seq_len: usize,
    theta: f64,
    channels: usize,
) -> [f64; 2] {
    // The channel pair, as a real number, that makes this many turns.
    let pair_of = |turns: f64| {
        let wavelength = original_max_seq_len as f64 / (turns * 2.0 * PI);
        channels as f64 * wavelength.ln() / (2.0 * theta.ln())
    };
    let low = pair_of(fast).floor().max(0.0);
    let high = pair_of(slow).ceil().min(channels as f64 - 1.0);
    [low, if low == high { 0.001 } else { high - low }]
}

/// Returns the frequency divided by `factor`, or the part `kept` of the way back to the unscaled one.
fn interpolated(frequency: f64, factor: f64, kept: f64) -> f64 {
    let kept = kept.clamp(0.0, 1.0);
    frequency / factor * (1.0 - kept) + frequency * kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_frequencies_follow_their_definitions() {
        let unscaled = rope_frequencies(10_000.0, 8);
        assert_eq!(unscaled, [1.0, 0.1, 0.01, 0.001]);
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_seq_len: 1024,
        };
        let (frequencies, magnitude) = llama3.apply(10_000.0, 8);
        assert_eq!(magnitude, 1.0);
        // 163, 16, 1.63 and 0.163 turns.
        let kept = (1024.0 * 0.01 / (2.0 * PI) - 1.0) / 3.0;
        let middle = 0.01 / 8.0 * (1.0 - kept) + 0.01 * kept;
        for (found, expected) in frequencies.iter().zip([1.0, 0.1, middle, 0.001 / 8.0]) {
            assert!((found / expected - 1.0).abs() < 1e-14, "{frequencies:?}");
        }
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_seq_len: 1024,
            attention_factor: 1.5,
        };
        // Pairs 0.707 and 2.21 make 32 turns and 1: the ramp begins at pair 0 and ends at pair 3.
        let (frequencies, magnitude) = yarn.apply(10_000.0, 8);
        assert_eq!(magnitude, 1.5);
        let ramp = [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0];
        for ((found, f), ramp) in frequencies.iter().zip(&unscaled).zip(ramp) {
            let expected = f / 4.0 * ramp + f * (1.0 - ramp);
            assert!((found / expected - 1.0).abs() < 1e-14, "{frequencies:?}");
        }
    }

    #[test]
    fn values_out_of_range_are_rejected() {
        let llama3 = |factor, low, high, original| RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_seq_len: original,
        };
        let yarn = |beta_fast, attention_factor| RopeScaling::Yarn {
            factor: 4.0,
            beta_fast,
            beta_slow: 1.0,
            original_max_seq_len: 16,
            attention_factor,
        };
        assert!(yarn(32.0, 1.0).check("model.rope_scaling").is_ok());
        let error =
            |scaling: RopeScaling| scaling.check("model.rope_scaling").unwrap_err().to_string();
        assert!(
            llama3(8.0, 1.0, 4.0, 8192)
                .check("model.rope_scaling")
                .is_ok()
        );
        for (scaling, key) in [
            (
                llama3(0.5, 1.0, 4.0, 8192),
                "model.rope_scaling.factor = 0.5",
            ),
            (
                llama3(f64::NAN, 1.0, 4.0, 8192),
                "model.rope_scaling.factor",
            ),
            (
                llama3(8.0, 0.0, 4.0, 8192),
                "model.rope_scaling.low_freq_factor = 0",
            ),
            (
                llama3(8.0, 4.0, 4.0, 8192),
                "model.rope_scaling.high_freq_factor = 4",
            ),
            (
                llama3(8.0, 1.0, 4.0, 0),
                "model.rope_scaling.original_max_seq_len = 0",
            ),
            (yarn(1.0, 1.0), "model.rope_scaling.beta_fast = 1"),
            (yarn(32.0, 0.0), "model.rope_scaling.attention_factor = 0"),
            (
                RopeScaling::Linear {
                    factor: f64::INFINITY,
                },
                "model.rope_scaling.factor",
            ),
        ] {
            assert!(error(scaling).contains(key), "{}", error(scaling));
        }
    }
}
