//! A kernel, its reference, and what both work on.

use super::Bound;
use crate::model::ModelConfig;

/// Sizes that the ops of a model have.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub batch: usize,
    pub seq: usize,
    pub d_model: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Inner width of a dense feed-forward; 0 where there is none.
    pub d_ff: usize,
    /// Width of the feed-forward's first projection.
    pub up: usize,
    pub vocab: usize,
    pub experts: Option<Experts>,
}

/// Sizes of a mixture of experts.
#[derive(Debug, Clone, Copy)]
pub struct Experts {
    pub count: usize,
    /// Experts a token.
    pub top_k: usize,
    /// Inner width of each.
    pub width: usize,
    /// Width of its first projection.
    pub up: usize,
}

impl Shape {
    pub fn new(config: &ModelConfig, batch: usize, seq: usize) -> Self {
        Self {
            batch,
            seq,
            d_model: config.d_model,
            heads: config.n_heads,
            kv_heads: config.n_kv_heads,
            head_dim: config.head_dim(),
            d_ff: config.d_ff,
            up: config.ffn_in_width(config.d_ff),
            vocab: config.vocab_size,
            experts: config.moe.as_ref().map(|moe| Experts {
                count: moe.n_experts,
                top_k: moe.top_k,
                width: moe.d_expert,
                up: config.ffn_in_width(moe.d_expert),
            }),
        }
    }

    /// Tokens at a time.
    pub fn rows(&self) -> usize {
        self.batch * self.seq
    }

    /// Channels of a token's hidden activations.
    pub fn hidden(&self) -> usize {
        let routed = self
            .experts
            .map_or(0, |experts| experts.top_k * experts.width);
        self.d_ff.max(routed)
    }

    /// Width of the packed q, k and v.
    pub fn packed(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Bytes that the largest op takes: three copies of its inputs and outputs, of which there are
    /// four as large as the embedding or as a gated feed-forward's projection at most.
    pub fn largest_bytes(&self) -> u64 {
        let widest = (2 * self.hidden()).max(self.packed()) as u64;
        let stacks = self.experts.map_or(0, |experts| experts.count * experts.up);
        let table = (self.vocab.max(stacks) * self.d_model) as u64;
        let largest = table.max((self.rows() as u64).saturating_mul(widest));
        largest.saturating_mul(3 * 4 * size_of::<f32>() as u64)
    }
}

/// A kernel at sizes that can be made smaller.
pub struct Case {
    pub op: &'static str,
    pub direction: &'static str,
    pub bound: Bound,
    /// How many independent pieces there are: rows, sequences or elements.
    pub units: usize,
    /// The problem of so many of them.
    pub problem: Box<dyn Fn(usize) -> Problem>,
}

impl Case {
    pub fn new(
        op: &'static str,
        direction: &'static str,
        bound: Bound,
        units: usize,
        problem: impl Fn(usize) -> Problem + 'static,
    ) -> Self {
        Self {
            op,
            direction,
            bound,
            units,
            problem: Box::new(problem),
        }
    }
}

/// Computes outputs from inputs.
pub type Run = Box<dyn Fn(&[Vec<f32>], &mut [Vec<f32>])>;

/// Buffers, and two ways from the inputs to the outputs.
pub struct Problem {
    pub inputs: Vec<Vec<f32>>,
    pub outputs: Vec<Vec<f32>>,
    pub kernel: Run,
    pub naive: Run,
    /// Floating-point operations, or bytes that have to be moved.
    pub work: f64,
    /// Buffers among the outputs, at their end, that hold no result.
    scratch: usize,
}

/// A problem whose work is to read the inputs and to write the outputs.
pub fn problem<const I: usize, const O: usize>(
    inputs: [Vec<f32>; I],
    outputs: [Vec<f32>; O],
    kernel: impl Fn(&[Vec<f32>; I], &mut [Vec<f32>; O]) + 'static,
    naive: impl Fn(&[Vec<f32>; I], &mut [Vec<f32>; O]) + 'static,
) -> Problem {
    let work = (bytes(&inputs) + bytes(&outputs)) as f64;
    Problem {
        inputs: inputs.into(),
        outputs: outputs.into(),
        kernel: boxed(kernel),
        naive: boxed(naive),
        work,
        scratch: 0,
    }
}

impl Problem {
    /// The outputs are read as well.
    pub fn in_place(mut self) -> Self {
        self.work += bytes(&self.outputs) as f64;
        self
    }

    /// The work is another one.
    pub fn work(mut self, work: f64) -> Self {
        self.work = work;
        self
    }

    /// The last output is a place to work on.
    pub fn with_scratch(mut self) -> Self {
        self.scratch = 1;
        self
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        bytes(&self.inputs) + bytes(&self.outputs)
    }

    /// Runs both; the largest difference of an output relative to the reference's largest number.
    pub fn largest_difference(&self) -> f64 {
        let run = |run: &Run| {
            let mut outputs = self.outputs.clone();
            run(&self.inputs, &mut outputs);
            outputs.truncate(outputs.len() - self.scratch);
            outputs
        };
        let (found, expected) = (run(&self.kernel), run(&self.naive));
        let differences = found
            .iter()
            .zip(&expected)
            .map(|(found, expected)| difference(found, expected));
        differences.fold(0.0, |most, one| if one <= most { most } else { one })
    }
}

fn difference(found: &[f32], expected: &[f32]) -> f64 {
    let size = |values: &mut dyn Iterator<Item = f64>| {
        // A NaN stays.
        values.fold(
            0.0f64,
            |most, x| if x.abs() <= most { most } else { x.abs() },
        )
    };
    let wide = |x: &f32| f64::from(*x);
    let largest = size(&mut expected.iter().map(wide));
    let apart = size(&mut found.iter().zip(expected).map(|(a, b)| wide(a) - wide(b)));
    if apart == 0.0 { 0.0 } else { apart / largest }
}

fn bytes(buffers: &[Vec<f32>]) -> usize {
    buffers.iter().map(|b| size_of_val(b.as_slice())).sum()
}

fn boxed<const I: usize, const O: usize>(
    run: impl Fn(&[Vec<f32>; I], &mut [Vec<f32>; O]) + 'static,
) -> Run {
    Box::new(move |inputs, outputs| {
        run(
            inputs.try_into().expect("as many inputs as were given"),
            outputs.try_into().expect("as many outputs as were given"),
        );
    })
}

/// Numbers without a visible pattern (a linear congruential generator).
pub struct Draw(u32);

impl Draw {
    pub fn new() -> Self {
        Self(1)
    }

    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    /// Between -1 and 1.
    pub fn values(&mut self, len: usize) -> Vec<f32> {
        let mut one = || self.next() as f32 / (1 << 23) as f32 - 1.0;
        (0..len).map(|_| one()).collect()
    }

    /// Whole numbers below `end`.
    pub fn ids(&mut self, len: usize, end: usize) -> Vec<i32> {
        (0..len)
            .map(|_| (self.next() as usize % end) as i32)
            .collect()
    }
}
