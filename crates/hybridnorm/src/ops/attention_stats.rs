//! Statistics of attention logits, for taps: attention itself never stores the logits.

use hybridnorm_cuda as cuda;
use hybridnorm_kernels::attention::{self, AttentionConfig};

use super::attention::device_config;
use super::device::Grid;
use super::tensor_stats::larger_or_nan;
use super::{DeviceOperands, Operands, Operation};
use crate::graph::{DType, Type, Value};

/// Max attention logit after any soft cap, and mean attention entropy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionStats(pub(crate) AttentionConfig);

/// Max attention logit of every query head before any soft cap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaxAttentionLogits(pub(crate) AttentionConfig);

/// Computes the max attention logit of causal attention, after the soft cap, if any, and the mean entropy
/// `-Σ p ln p` of its weights over sequences, heads and queries, in nats: (2) in double precision. `qkv` is packed and
/// transformed, as attention reads it. Not differentiable.
///
/// NaN if a logit is not finite.
///
/// # Panics
/// If `qkv` is not packed as in `config`.
pub fn attention_stats(qkv: Value<'_>, config: AttentionConfig) -> Value<'_> {
    let [found] = qkv.builder().op(AttentionStats(config), &[qkv]);
    found
}

/// Computes the maximum of `scale q k` for each of h query heads, over all sequences and the keys that the causal
/// mask leaves, before any soft cap: (h). `qkv` is packed and transformed, as attention reads it. Not
/// differentiable.
///
/// NaN for a head with a NaN logit, negative infinity without logits.
///
/// # Panics
/// If `qkv` is not packed as in `config`.
pub fn max_attention_logits(qkv: Value<'_>, config: AttentionConfig) -> Value<'_> {
    let [maxima] = qkv.builder().op(MaxAttentionLogits(config), &[qkv]);
    maxima
}

/// Returns the elements per position.
fn width(config: &AttentionConfig) -> usize {
    (config.heads + config.kv_heads) * config.head_dim + config.kv_heads * config.value_dim
}

fn check(name: &str, config: &AttentionConfig, inputs: &[Type]) {
    let [qkv] = inputs else {
        panic!("{name}: expected packed queries, keys and values")
    };
    assert!(config.heads > 0 && config.kv_heads > 0, "{name}: heads and kv_heads must be at least 1");
    assert_eq!(
        config.heads % config.kv_heads,
        0,
        "{name}: the number of heads is not a multiple of kv_heads"
    );
    let packed = Type::f32([config.batch, config.seq, width(config)]);
    assert_eq!(*qkv, packed, "{name}: packed q, k, v");
}

/// Returns the bytes of a copy of an operand in bfloat16 in single precision.
fn widened_bytes(inputs: &[Type]) -> usize {
    match inputs[0].dtype {
        DType::Bf16 => DType::F32.bytes() * inputs[0].elements(),
        _ => 0,
    }
}

/// Returns `scale q k` of a query with every unmasked key.
fn logits(config: &AttentionConfig, qkv: &[f64], sequence: usize, head: usize, query: usize) -> Vec<f64> {
    let row = |position: usize| &qkv[(sequence * config.seq + position) * width(config)..];
    let kv_head = head / (config.heads / config.kv_heads);
    let q = &row(query)[head * config.head_dim..][..config.head_dim];
    let keys = (config.first_key(query)..=query).map(|key| {
        let k = &row(key)[(config.heads + kv_head) * config.head_dim..];
        let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
        f64::from(config.scale) * dot
    });
    keys.collect()
}

impl Operation for AttentionStats {
    fn is_scheduled_early(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "attention statistics"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        check(self.name(), &self.0, inputs);
        assert!(self.0.seq > 0, "attention statistics: no positions");
        vec![Type::f64([2])]
    }

    fn workspace(&self, inputs: &[Type], _threads: usize) -> usize {
        widened_bytes(inputs)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (config, qkv) = (&self.0, io.read(0));
        let (mut largest, mut entropies, mut queries) = (f64::NEG_INFINITY, 0.0, 0);
        for sequence in 0..config.batch {
            for head in 0..config.heads {
                for query in 0..config.seq {
                    let mut logits = logits(config, qkv, sequence, head, query);
                    if let Some(cap) = config.softcap.map(f64::from) {
                        logits.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
                    }
                    let is_finite = logits.iter().all(|s| s.is_finite());
                    let max_logit = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let max_logit = if is_finite { max_logit } else { f64::NAN };
                    let total: f64 = logits.iter().map(|s| (s - max_logit).exp()).sum();
                    for s in logits {
                        let log_p = s - max_logit - total.ln();
                        entropies -= log_p.exp() * log_p;
                    }
                    largest = larger_or_nan(largest, max_logit);
                    queries += 1;
                }
            }
        }
        io.write_doubles()
            .copy_from_slice(&[largest, entropies / f64::from(queries)]);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let found = attention::attention_stats(&self.0, io.floats(0));
        io.write_doubles()
            .copy_from_slice(&[f64::from(found.max), found.entropy]);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (qkv, found) = (io.read(0), io.write());
        let AttentionConfig { batch, heads, seq, .. } = self.0;
        let queries = batch * heads * seq;
        let [logits, entropies] = [(); 2].map(|()| io.scratch(cuda::ElementType::F32, queries));
        let arguments = cuda::Arguments::default()
            .floats(qkv)
            .optional_address(None)
            .address(logits.span)
            .address(entropies.span);
        io.launch("attention_query_stats", Grid::warps(queries), device_config(arguments, &self.0));
        let arguments = cuda::Arguments::default()
            .address(logits.span)
            .address(entropies.span)
            .address(found.span)
            .long(queries as i64);
        io.launch("attention_stats_total", Grid::blocks(1), arguments);
        Ok(())
    }
}

impl Operation for MaxAttentionLogits {
    fn is_scheduled_early(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "largest scores of heads"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        check(self.name(), &self.0, inputs);
        vec![Type::f32([self.0.heads])]
    }

    fn workspace(&self, inputs: &[Type], _threads: usize) -> usize {
        widened_bytes(inputs)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (config, qkv) = (&self.0, io.read(0));
        for (head, largest) in io.write().iter_mut().enumerate() {
            *largest = f64::NEG_INFINITY;
            for sequence in 0..config.batch {
                for query in 0..config.seq {
                    let logits = logits(config, qkv, sequence, head, query);
                    *largest = logits.into_iter().fold(*largest, larger_or_nan);
                }
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        io.write()
            .copy_from_slice(&attention::max_attention_logits(&self.0, io.floats(0)));
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (qkv, maxima) = (io.read(0), io.write());
        let AttentionConfig { batch, heads, seq, .. } = self.0;
        let queries = batch * heads * seq;
        let dots = io.scratch(cuda::ElementType::F32, queries);
        let arguments = cuda::Arguments::default()
            .floats(qkv)
            .address(dots.span)
            .optional_address(None)
            .optional_address(None);
        io.launch("attention_query_stats", Grid::warps(queries), device_config(arguments, &self.0));
        let arguments = cuda::Arguments::default()
            .address(dots.span)
            .address(maxima.span)
            .count(batch)
            .count(heads)
            .count(seq);
        io.launch("max_logits_of_heads", Grid::blocks(heads), arguments);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::stateful::Executors;
    use super::super::testing::{TestInput, check_with, floats, mapped_floats};
    use super::*;
    use crate::graph::Builder;
    use crate::ops::Arguments;

    fn config(batch: usize, seq: usize, heads: usize, kv_heads: usize) -> AttentionConfig {
        AttentionConfig {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim: 6,
            value_dim: 10,
            scale: 0.7,
            softcap: None,
            window: None,
            precision: hybridnorm_kernels::matmul::Precision::F32,
        }
    }

    #[test]
    fn stats_of_values_with_other_readers() {
        for (batch, seq, heads, kv_heads) in
            [(1, 1, 1, 1), (2, 7, 6, 3), (3, 33, 4, 1), (1, 261, 3, 3)]
        {
            for softcap in [None, Some(1.5)] {
                let config = AttentionConfig {
                    softcap,
                    ..config(batch, seq, heads, kv_heads)
                };
                let qkv = mapped_floats(1, [batch, seq, width(&config)], |x| 3.0 * x);
                check_with(&[qkv], &[1, 2], |_, x| {
                    let y = x[0] * 0.5;
                    vec![y + x[0], attention_stats(y, config), max_attention_logits(y, config)]
                });
            }
        }
    }

    /// Returns the outputs of both ops.
    fn find(config: AttentionConfig, qkv: TestInput) -> [Vec<f64>; 2] {
        let after = Executors::new(&[]).run(Arguments::default(), &[qkv], |_, _, x| {
            vec![attention_stats(x[0], config), max_attention_logits(x[0], config)]
        });
        after.cpu.outputs.try_into().expect("two outputs")
    }

    #[test]
    fn non_finite_values_propagate() {
        let config = config(2, 5, 3, 3);
        // A query of the second head, at the last position of the first sequence.
        let query = 4 * width(&config) + config.head_dim;
        for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let qkv = floats(1, [2, 5, width(&config)]).with(query, broken);
            let [stats, maxima] = find(config, qkv);
            assert!(stats.iter().all(|x| x.is_nan()), "{stats:?}");
            assert!(maxima[0].is_finite() && maxima[2].is_finite(), "{maxima:?}");
            assert!(!maxima[1].is_finite());
            assert_eq!(maxima[1].is_nan(), broken.is_nan());
        }
    }

    #[test]
    fn empty_batch_has_no_max_attention_logit() {
        let config = config(0, 3, 2, 1);
        let [stats, maxima] = find(config, floats(1, [0, 3, width(&config)]));
        assert!(stats[0] == f64::NEG_INFINITY && stats[1].is_nan());
        assert_eq!(maxima, [f64::NEG_INFINITY; 2]);
    }

    #[test]
    #[should_panic(expected = "attention statistics: packed q, k, v")]
    fn wrong_row_width_is_rejected() {
        let (g, config) = (Builder::new(), config(2, 5, 3, 3));
        attention_stats(g.input("qkv", Type::f32([2, 5, width(&config) + 1])), config);
    }
}
