//! Taps: reductions of activations, as outputs of a program.

use super::decoder::{Decoder, ForwardOutput};
use super::feed_forward::RouterOutputs;
use crate::error::Result;
use crate::exec::{Executor, TensorRef};
use crate::graph::{Builder, ValueId};
use crate::model::RouterStatistics;
use crate::ops::{self, Arguments};
use crate::plan::Program;
use hybridnorm_kernels::attention::AttentionStats;
use hybridnorm_kernels::tensor_stats::TensorStats;

/// Statistics of one block's activations.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BlockActivationStats {
    /// Residual stream that enters the block.
    pub residual: TensorStats,
    /// Output of the attention branch, after its output norm and scale; with `lerp_unit` the interpolation step.
    pub attn: TensorStats,
    /// Output of the feed-forward branch, after its output norm and scale; with `lerp_unit` the interpolation step.
    pub ffn: TensorStats,
    /// Max attention logit and attention entropy.
    pub attention_logits: AttentionStats,
    /// Routing statistics, in a mixture of experts.
    pub routing: Option<RouterStatistics>,
}

/// A forward pass with taps in every block.
pub(super) struct TapProgram {
    program: Program,
    blocks: Vec<BlockTaps>,
}

struct BlockTaps {
    tensor_stats: [ValueId; 3],
    attention_stats: ValueId,
    routing: Option<RoutingTap>,
}

/// Program outputs with the statistics of one router.
#[derive(Debug, Clone)]
pub(crate) struct RoutingTap {
    dispatch: ValueId,
    statistics: ValueId,
    experts: usize,
    top_k: usize,
}

impl RoutingTap {
    /// Taps the statistics of a block's router.
    pub(crate) fn new(decoder: &Decoder, routed: &RouterOutputs<'_>) -> Self {
        let moe = decoder
            .config()
            .moe
            .as_ref()
            .expect("routing exists only in mixture-of-experts blocks");
        Self {
            dispatch: routed.dispatch.id(),
            statistics: routed.statistics.id(),
            experts: moe.n_experts,
            top_k: moe.top_k,
        }
    }

    /// Returns the values that the program must output.
    pub(crate) fn outputs(&self) -> [ValueId; 2] {
        [self.dispatch, self.statistics]
    }

    /// Reads the routing statistics of the last run.
    pub(crate) fn read(&self, executor: &dyn Executor, program: &Program) -> RouterStatistics {
        let dispatch = executor.output(program, self.dispatch).into_i32();
        let statistics = executor.output(program, self.statistics).into_f64();
        let load: Vec<u64> = dispatch[..self.experts].iter().map(|&n| n as u64).collect();
        RouterStatistics {
            tokens: load.iter().sum::<u64>() / self.top_k as u64,
            load,
            top_k: self.top_k as u64,
            load_balancing_loss: statistics[0],
            z_loss: statistics[1],
            entropy: statistics[2],
        }
    }
}

impl TapProgram {
    /// Plans a forward pass over ids (b, t).
    pub(super) fn new(decoder: &Decoder, batch: usize, seq: usize) -> Self {
        let g = Builder::new();
        let ForwardOutput { blocks, .. } =
            decoder.forward(Decoder::tokens(&g, "ids", batch, seq), None);
        let taps: Vec<BlockTaps> = blocks
            .iter()
            .map(|block| {
                let (packed, spec) = block
                    .packed_qkv
                    .expect("q, k and v are packed without a KV cache");
                let values = [block.input.x, block.attention, block.feed_forward];
                BlockTaps {
                    tensor_stats: values.map(|value| ops::tensor_stats(value).id()),
                    attention_stats: ops::attention_stats(packed, spec).id(),
                    routing: block
                        .routing
                        .map(|routed| RoutingTap::new(decoder, &routed)),
                }
            })
            .collect();
        let outputs: Vec<ValueId> = taps
            .iter()
            .flat_map(|taps| {
                let routing = taps.routing.iter().flat_map(RoutingTap::outputs);
                let own = taps.tensor_stats.into_iter().chain([taps.attention_stats]);
                own.chain(routing).collect::<Vec<_>>()
            })
            .collect();
        Self {
            program: Program::new(g.finish(), &outputs, decoder.plan_options()),
            blocks: taps,
        }
    }

    /// Runs the program; returns the statistics of the activations of every block.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(super) fn run(
        &self,
        executor: &mut dyn Executor,
        ids: &[i32],
    ) -> Result<Vec<BlockActivationStats>> {
        executor.run(
            &self.program,
            Arguments::default(),
            &[("ids", TensorRef::I32(ids))],
        )?;
        let pair = |id| {
            let found = executor.output(&self.program, id).into_f64();
            (found[0], found[1])
        };
        let tensor_stats = |id| {
            let (rms, max) = pair(id);
            TensorStats {
                rms,
                max: max as f32,
            }
        };
        let blocks = self.blocks.iter();
        let blocks = blocks.map(|taps| {
            let [residual, attn, ffn] = taps.tensor_stats.map(tensor_stats);
            let (max, entropy) = pair(taps.attention_stats);
            let routing = taps.routing.as_ref();
            BlockActivationStats {
                residual,
                attn,
                ffn,
                attention_logits: AttentionStats {
                    max: max as f32,
                    entropy,
                },
                routing: routing.map(|tap| tap.read(executor, &self.program)),
            }
        });
        Ok(blocks.collect())
    }
}
