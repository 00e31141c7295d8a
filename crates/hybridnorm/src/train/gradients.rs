//! Gradients of the training objective.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::exec::{Tensor, TensorRef};
use crate::graph::{Builder, Value, ValueId};
use crate::model::taps::RoutingTap;
use crate::model::{BatchLosses, BlockOutput, Decoder, Model, ParamSpec, RouterStatistics};
use crate::ops::{self, Arguments};
use crate::passes;
use crate::plan::{Options, Program, Recompute};

/// Symbolic values of a forward and backward pass.
pub(super) struct Pass<'g> {
    pub(super) objective: Value<'g>,
    pub(super) cross_entropy: Value<'g>,
    /// Gradient of every trained parameter, in registry order.
    pub(super) gradients: Vec<(ParamSpec, Value<'g>)>,
    pub(super) blocks: Vec<BlockOutput<'g>>,
}

/// Program outputs of a pass besides gradients.
#[derive(Debug, Clone)]
pub(super) struct PassTaps {
    objective: ValueId,
    cross_entropy: ValueId,
    routing: Vec<RoutingTap>,
    /// Max attention logits of every block's heads, if tapped.
    max_attention_logits: Vec<ValueId>,
}

/// Adds the objective and its gradients to the graph, for inputs `ids` and `targets`, each (b, t).
///
/// # Errors
/// If a parameter would get no gradient, which is a bug.
pub(super) fn build_pass<'g>(
    g: &'g Builder,
    decoder: &Decoder,
    [batch, seq]: [usize; 2],
    divisor: f64,
) -> Result<Pass<'g>> {
    let ids = Decoder::tokens(g, "ids", batch, seq);
    let targets = Decoder::tokens(g, "targets", batch, seq);
    let losses = decoder.losses(ids, targets, divisor);
    let handles = decoder.registry().handles();
    let handles: Vec<_> = handles
        .filter(|(_, specs)| specs[0].role.is_trained())
        .collect();
    let values: Vec<Value> = handles.iter().map(|(param, _)| param.value(g)).collect();
    let found = passes::gradients(losses.objective, &values);
    let mut gradients = Vec::new();
    for ((_, specs), gradient) in handles.into_iter().zip(found) {
        let gradient = gradient.ok_or_else(|| {
            Error::External(format!(
                "no gradient for {}; this is a bug in hybridnorm",
                specs[0].name
            ))
        })?;
        match specs {
            [spec] => gradients.push((spec.clone(), gradient)),
            specs => {
                let widths = specs.iter().map(ParamSpec::elements).collect();
                let parts = ops::split_into(gradient, widths);
                gradients.extend(specs.iter().cloned().zip(parts));
            }
        }
    }
    Ok(Pass {
        objective: losses.objective,
        cross_entropy: losses.cross_entropy,
        gradients,
        blocks: losses.blocks,
    })
}

impl PassTaps {
    /// Taps the losses of a pass, its router statistics and, if requested, the max attention logits of its heads.
    pub(super) fn new(decoder: &Decoder, pass: &Pass<'_>, with_max_attention_logits: bool) -> Self {
        let routed = pass
            .blocks
            .iter()
            .filter_map(|block| block.routing.as_ref());
        let packed = pass.blocks.iter().filter_map(|block| block.packed_qkv);
        Self {
            objective: pass.objective.id(),
            cross_entropy: pass.cross_entropy.id(),
            routing: routed
                .map(|routed| RoutingTap::new(decoder, routed))
                .collect(),
            max_attention_logits: match with_max_attention_logits {
                true => packed
                    .map(|(packed, spec)| ops::max_attention_logits(packed, spec).id())
                    .collect(),
                false => Vec::new(),
            },
        }
    }

    /// Returns the values that the program must output.
    pub(super) fn outputs(&self) -> Vec<ValueId> {
        let routing = self.routing.iter().flat_map(RoutingTap::outputs);
        let losses = [self.objective, self.cross_entropy];
        losses
            .into_iter()
            .chain(routing)
            .chain(self.max_attention_logits.iter().copied())
            .collect()
    }

    /// Reads the values of the last run.
    pub(super) fn read(&self, model: &Model, program: &Program) -> PassStats {
        let executor = model.executor();
        let one = |id| executor.output(program, id).into_f64()[0];
        let losses = BatchLosses {
            objective: one(self.objective),
            cross_entropy: one(self.cross_entropy),
        };
        let routing = self.routing.iter().map(|tap| tap.read(executor, program));
        let max_attention_logits = self
            .max_attention_logits
            .iter()
            .map(|&id| executor.output(program, id).into_f32());
        PassStats {
            losses,
            routing: routing.collect(),
            max_attention_logits: max_attention_logits.collect(),
        }
    }
}

/// Losses and statistics of a pass.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PassStats {
    /// The losses.
    pub losses: BatchLosses,
    /// Router statistics, one entry per mixture-of-experts block.
    pub routing: Vec<RouterStatistics>,
    /// Max attention logits of every head in every block, if tapped.
    pub max_attention_logits: Vec<Vec<f32>>,
}

/// Gradients of a batch.
#[derive(Debug)]
#[non_exhaustive]
pub struct Gradients {
    /// Gradient of every trained parameter, by name, flat.
    pub by_name: BTreeMap<String, Tensor>,
    /// Losses and statistics of the pass.
    pub stats: PassStats,
}

impl Gradients {
    /// Returns the gradient of a parameter in single precision.
    pub fn get(&self, name: &str) -> Option<Vec<f32>> {
        self.by_name.get(name).cloned().map(Tensor::into_f32)
    }

    /// Returns the gradient of a parameter in double precision, as computed by the reference executor.
    pub fn get_f64(&self, name: &str) -> Option<Vec<f64>> {
        self.by_name.get(name).cloned().map(Tensor::into_f64)
    }
}

/// Computes the gradients of a batch, inputs and targets (b, t), whose losses are sums over targets divided by
/// `divisor`, and the max attention logits of every head.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::model::{Model, ModelConfig};
/// use hybridnorm::plan::Options;
/// use hybridnorm::train::gradients;
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
/// let (inputs, targets) = ([0, 1, 2, 3], [1, 2, 3, 4]);
/// // The mean over 4 targets.
/// let gradients = gradients(&mut model, &inputs, &targets, [1, 4], 4.0, Options::default())?;
/// let head = gradients.get("head").expect("the head has a gradient");
/// assert_eq!(head.len(), 8 * 16);
/// assert!(gradients.stats.losses.cross_entropy > 0.0);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
///
/// # Errors
/// If an input or target id is outside the vocabulary (targets of -1 are allowed and ignored), or if there are not b ·
/// t of each.
pub fn gradients(
    model: &mut Model,
    inputs: &[i32],
    targets: &[i32],
    shape: [usize; 2],
    divisor: f64,
    options: Options,
) -> Result<Gradients> {
    model.check_batch(inputs, shape[0], shape[1])?;
    model.check_targets(targets, shape[0], shape[1])?;
    let g = Builder::new();
    let pass = build_pass(&g, model.decoder(), shape, divisor)?;
    let taps = PassTaps::new(model.decoder(), &pass, true);
    let gradients: Vec<(String, ValueId)> = pass
        .gradients
        .into_iter()
        .map(|(spec, gradient)| (spec.name, gradient.id()))
        .collect();
    let mut outputs = taps.outputs();
    outputs.extend(gradients.iter().map(|(_, id)| *id));
    let options = options.with_target(model.device().target());
    let program = Program::new(g.finish(), &outputs, options);
    let given = [
        ("ids", TensorRef::I32(inputs)),
        ("targets", TensorRef::I32(targets)),
    ];
    model
        .executor_mut()
        .run(&program, Arguments::default(), &given)?;
    let executor = model.executor();
    let by_name = gradients
        .into_iter()
        .map(|(name, id)| (name, executor.output(&program, id)))
        .collect();
    Ok(Gradients {
        by_name,
        stats: taps.read(model, &program),
    })
}

/// Returns, for each block, the Euclidean norm of the gradient of the training objective (router losses and z-loss
/// included) with respect to the residual stream at its input; with two streams, of both together.
///
/// # Errors
/// As [`gradients`].
pub(super) fn residual_gradient_norms(
    model: &mut Model,
    inputs: &[i32],
    targets: &[i32],
    [batch, seq]: [usize; 2],
    recompute: Recompute,
) -> Result<Vec<f64>> {
    model.check_batch(inputs, batch, seq)?;
    model.check_targets(targets, batch, seq)?;
    let g = Builder::new();
    let ids = Decoder::tokens(&g, "ids", batch, seq);
    let target_ids = Decoder::tokens(&g, "targets", batch, seq);
    let losses = model
        .decoder()
        .losses(ids, target_ids, (batch * seq) as f64);
    let streams: Vec<Vec<Value>> = losses
        .blocks
        .iter()
        .map(|block| {
            [Some(block.input.x), block.input.y]
                .into_iter()
                .flatten()
                .collect()
        })
        .collect();
    let found = passes::gradients(losses.objective, &streams.concat());
    let mut squares = Vec::new();
    let mut found = found.into_iter();
    for streams in &streams {
        let block_gradients: Vec<Value> = found.by_ref().take(streams.len()).flatten().collect();
        squares.push(ops::squared_norms(&g, &block_gradients).id());
    }
    let options = Options {
        recompute,
        ..model.decoder().plan_options()
    };
    let program = Program::new(g.finish(), &squares, options);
    let given = [
        ("ids", TensorRef::I32(inputs)),
        ("targets", TensorRef::I32(targets)),
    ];
    let executor = model.executor_mut();
    executor.run(&program, Arguments::default(), &given)?;
    let norm = |id: &ValueId| {
        executor
            .output(&program, *id)
            .into_f64()
            .iter()
            .sum::<f64>()
            .sqrt()
    };
    Ok(squares.iter().map(norm).collect())
}
