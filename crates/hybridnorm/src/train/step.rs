//! An optimizer step as programs: forward and backward passes of micro-batches, then the update.

use std::collections::BTreeMap;

use derive_setters::Setters;

use super::gradients::{self, PassStats, PassTaps};
use super::metrics::QkClipMetrics;
use super::optimizer::{Layout, Optimizer, StepNorms, UpdateTaps};
use crate::error::Result;
use crate::exec::TensorRef;
use crate::graph::{Buffer, Builder, Type, Value};
use crate::model::{BatchLosses, Decoder, Model, ParamSpec, RouterStatistics};
use crate::ops;
use crate::plan::{Options, Precision, Program, Recompute, Target};
use hybridnorm_kernels::tensor_stats::larger_or_nan;

/// Shape of an optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Setters)]
#[setters(prefix = "with_")]
#[non_exhaustive]
pub struct StepShape {
    /// Sequences per micro-batch.
    pub micro_batch: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Micro-batches per step.
    pub grad_accum_steps: usize,
    /// Activations that the backward pass recomputes.
    pub recompute: Recompute,
    /// Precision of matmuls and activations.
    pub precision: Precision,
    /// True if the executor keeps rounded copies of the weights of matmuls, which AdamW updates, see
    /// [`Options::keep_rounded_weights`]. On a card it does in any case.
    pub keep_rounded_weights: bool,
}

impl StepShape {
    /// Returns the shape of a step of one micro-batch in single precision that recomputes only cheap activations.
    pub fn new(micro_batch: usize, seq_len: usize) -> Self {
        Self {
            micro_batch,
            seq_len,
            grad_accum_steps: 1,
            recompute: Recompute::None,
            precision: Precision::F32,
            keep_rounded_weights: false,
        }
    }
}

/// Programs of a step. Without gradient accumulation there is one, in which gradients share the arena with
/// activations; with it, gradients are summed in a separate buffer.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::model::{Model, ModelConfig};
/// use hybridnorm::train::{Optimizer, OptimizerConfig, StepShape, TrainingStep};
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
/// let mut optimizer = Optimizer::new(OptimizerConfig::default(), &mut model)?;
/// // Two micro-batches of one sequence of 4 tokens.
/// let shape = StepShape::new(1, 4).with_grad_accum_steps(2);
/// let mut step = TrainingStep::new(shape, &mut model, &mut optimizer)?;
/// for [inputs, targets] in [[[0, 1, 2, 3], [1, 2, 3, 4]], [[4, 5, 6, 7], [5, 6, 7, 0]]] {
///     step.run_micro_batch(&mut model, &mut optimizer, &inputs, &targets, 1e-3)?;
/// }
/// let outcome = step.finish(&mut model, &mut optimizer, 1e-3)?;
/// assert!(outcome.losses.cross_entropy > 0.0 && outcome.norms.update > 0.0);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub struct TrainingStep {
    shape: StepShape,
    programs: Programs,
    /// Losses and statistics of the current step's passes.
    passes: Vec<PassStats>,
    norms: Option<StepNorms>,
}

pub(super) enum Programs {
    Fused(Box<Fused>),
    Accumulated(Box<Accumulated>),
}

/// A forward and backward pass followed by the update.
pub(super) struct Fused {
    program: Program,
    pass: PassTaps,
    update: UpdateTaps,
}

/// Passes that accumulate gradients, and the update that uses the sums.
pub(super) struct Accumulated {
    /// Pass that overwrites the sums.
    first: (Program, PassTaps),
    /// Pass that adds to the sums.
    accumulate: (Program, PassTaps),
    update: (Program, UpdateTaps),
}

/// Outcome of an optimizer step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepOutcome {
    /// Losses, summed over micro-batches.
    pub losses: BatchLosses,
    /// Norms of gradients and updates.
    pub norms: StepNorms,
    /// Router statistics, one entry per mixture-of-experts block.
    pub routing: Vec<RouterStatistics>,
}

/// Buffers that a step updates, besides the parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepBuffers {
    /// Moments of the optimizer, see [`Layout`].
    pub(super) moments: [Buffer; 2],
    /// Gradient sums, if there are several micro-batches.
    pub(super) sums: Option<Buffer>,
}

/// Plans the programs of a step.
///
/// # Errors
/// If a parameter would get no gradient, the precision of the residual stream has no effect, or the arena exceeds the
/// recomputation budget.
pub(super) fn plan(
    shape: StepShape,
    decoder: &Decoder,
    layout: &Layout,
    buffers: StepBuffers,
) -> Result<Programs> {
    let divisor = (shape.micro_batch * shape.seq_len * shape.grad_accum_steps) as f64;
    let batch_shape = [shape.micro_batch, shape.seq_len];
    let target = decoder.plan_options().target;
    let options = Options {
        recompute: shape.recompute,
        precision: shape.precision,
        target,
        keep_rounded_weights: shape.keep_rounded_weights || target == Target::Device,
        ..Options::default()
    };
    let with_max_attention_logits = layout.config().qk_clip.is_some();
    let StepBuffers { moments, sums } = buffers;
    let programs = if let Some(sums) = sums {
        let micro = |overwrites: bool| -> Result<(Program, PassTaps)> {
            let g = Builder::new();
            let pass = gradients::build_pass(&g, decoder, batch_shape, divisor)?;
            let taps = PassTaps::new(decoder, &pass, with_max_attention_logits);
            for (spec, gradient) in &pass.gradients {
                ops::accumulate(*gradient, spec.param().value_in(sums, &g), overwrites);
            }
            Ok((Program::new(g.finish(), &taps.outputs(), options), taps))
        };
        let (first, accumulate) = (micro(true)?, micro(false)?);
        let g = Builder::new();
        let trained = decoder
            .registry()
            .iter()
            .filter(|spec| spec.role.is_trained());
        let by_name = trained.map(|spec| (spec.name.clone(), spec.param().value_in(sums, &g)));
        let guard = g.input("guard", Type::f32([1]));
        let update = layout.build_update(&g, moments, &by_name.collect(), guard);
        decoder.normalize_unit_weights(&g);
        let copies = accumulate.0.rounded_ranges();
        let updating = Program::with_copies(g.finish(), &update.outputs(), options, copies);
        Programs::Accumulated(Box::new(Accumulated {
            update: (updating, update),
            first,
            accumulate,
        }))
    } else {
        let g = Builder::new();
        let pass = gradients::build_pass(&g, decoder, batch_shape, divisor)?;
        let taps = PassTaps::new(decoder, &pass, with_max_attention_logits);
        let by_name = named(&pass.gradients);
        let update = layout.build_update(&g, moments, &by_name, pass.objective);
        decoder.normalize_unit_weights(&g);
        let outputs = [taps.outputs(), update.outputs()].concat();
        Programs::Fused(Box::new(Fused {
            program: Program::new(g.finish(), &outputs, options),
            pass: taps,
            update,
        }))
    };
    programs.forward().check_residual(shape.precision)?;
    shape.recompute.check(programs.arena_bytes())?;
    Ok(programs)
}

impl Programs {
    pub(super) fn all(&self) -> Vec<&Program> {
        match self {
            Self::Fused(single) => vec![&single.program],
            Self::Accumulated(all) => vec![&all.first.0, &all.accumulate.0, &all.update.0],
        }
    }

    /// Returns the size of the largest arena in bytes: activations, gradients and scratch.
    pub(super) fn arena_bytes(&self) -> usize {
        let programs = self.all().into_iter();
        programs.map(Program::arena_bytes).max().unwrap_or(0)
    }

    /// Returns the program that begins with a forward pass.
    fn forward(&self) -> &Program {
        match self {
            Self::Fused(single) => &single.program,
            Self::Accumulated(all) => &all.first.0,
        }
    }
}

impl TrainingStep {
    /// Plans a step of this shape and allocates its memory.
    ///
    /// # Errors
    /// If a parameter would get no gradient, the precision of the residual stream has no effect, the arena exceeds the
    /// recomputation budget, or there is not enough memory.
    pub fn new(shape: StepShape, model: &mut Model, optimizer: &mut Optimizer) -> Result<Self> {
        let buffers = StepBuffers {
            moments: optimizer.buffers(),
            sums: match shape.grad_accum_steps > 1 {
                true => Some(optimizer.gradient_sums(model)?),
                false => None,
            },
        };
        let programs = plan(shape, model.decoder(), optimizer.layout(), buffers)?;
        for program in programs.all() {
            model.executor_mut().prepare(program)?;
        }
        Ok(Self {
            shape,
            programs,
            passes: Vec::new(),
            norms: None,
        })
    }

    /// Returns the planned shape.
    pub fn shape(&self) -> StepShape {
        self.shape
    }

    /// Returns the bytes of activations and gradients of a pass, without parameters and moments.
    pub fn arena_bytes(&self) -> usize {
        self.programs.arena_bytes()
    }

    /// Runs the pass of a micro-batch, inputs and targets (b, t); returns its losses, each a sum over targets
    /// divided by the number of targets of the step.
    ///
    /// # Errors
    /// If an input or target id is outside the vocabulary (targets of -1 are allowed and ignored); nothing is run in
    /// this case.
    ///
    /// # Panics
    /// If all micro-batches of the step have already run.
    pub fn run_micro_batch(
        &mut self,
        model: &mut Model,
        optimizer: &mut Optimizer,
        inputs: &[i32],
        targets: &[i32],
        lr: f64,
    ) -> Result<BatchLosses> {
        let StepShape {
            micro_batch,
            seq_len,
            ..
        } = self.shape;
        model.check_batch(inputs, micro_batch, seq_len)?;
        model.check_targets(targets, micro_batch, seq_len)?;
        assert!(
            self.passes.len() < self.shape.grad_accum_steps,
            "all {} micro-batches of the step have already run",
            self.shape.grad_accum_steps
        );
        let given = [
            ("ids", TensorRef::I32(inputs)),
            ("targets", TensorRef::I32(targets)),
        ];
        let arguments = optimizer.arguments(lr);
        let (program, pass) = match &self.programs {
            Programs::Fused(single) => (&single.program, &single.pass),
            Programs::Accumulated(all) => {
                let (program, pass) = match self.passes.is_empty() {
                    true => &all.first,
                    false => &all.accumulate,
                };
                (program, pass)
            }
        };
        model.executor_mut().run(program, arguments, &given)?;
        let found = pass.read(model, program);
        if let Programs::Fused(single) = &self.programs {
            let is_finite = found.losses.objective.is_finite();
            let (program, update) = (&single.program, &single.update);
            self.norms = Some(optimizer.read_update(model.executor(), program, update, is_finite));
        }
        let losses = found.losses;
        self.passes.push(found);
        Ok(losses)
    }

    /// Completes the step after the passes of all its micro-batches. Nothing is updated if a loss or the global
    /// gradient norm is not finite.
    ///
    /// Updates outside the optimizer follow: balancing biases of routers move against the load, QK-clip, if
    /// enabled, scales queries and keys down, and unit weights are renormalized.
    ///
    /// # Errors
    /// If there is not enough memory.
    ///
    /// # Panics
    /// If a micro-batch has not run yet.
    pub fn finish(
        &mut self,
        model: &mut Model,
        optimizer: &mut Optimizer,
        lr: f64,
    ) -> Result<StepOutcome> {
        let found = std::mem::take(&mut self.passes);
        assert_eq!(
            found.len(),
            self.shape.grad_accum_steps,
            "all micro-batches run before the end of the step"
        );
        let losses = summed_losses(&found);
        if let Programs::Accumulated(all) = &self.programs {
            let (program, update) = &all.update;
            let arguments = optimizer.arguments(lr);
            let guard = [losses.objective as f32];
            model
                .executor_mut()
                .run(program, arguments, &[("guard", TensorRef::F32(&guard))])?;
            let is_finite = losses.objective.is_finite();
            let norms = optimizer.read_update(model.executor(), program, update, is_finite);
            self.norms = Some(norms);
        }
        let mut norms = self
            .norms
            .take()
            .expect("the last pass or the update sets them");
        let routing = merged_routing(&found);
        if norms.gradient.is_finite() && losses.objective.is_finite() {
            model.update_balancing_biases(&routing);
            norms.qk_clip = optimizer.config().qk_clip.map(|threshold| {
                let maxima = max_attention_logits(&found);
                let largest = maxima.iter().flatten().copied().reduce(larger_or_nan);
                QkClipMetrics {
                    max_attention_logit: largest.map_or(f64::NAN, f64::from),
                    clipped_heads: model.apply_qk_clip(&maxima, threshold),
                }
            });
        }
        Ok(StepOutcome {
            losses,
            norms,
            routing,
        })
    }
}

/// Returns the losses of a step: sums over its passes, each of which divides by the number of targets of the step.
fn summed_losses(passes: &[PassStats]) -> BatchLosses {
    let sum = |loss: fn(&BatchLosses) -> f64| passes.iter().map(|pass| loss(&pass.losses)).sum();
    BatchLosses {
        objective: sum(|losses| losses.objective),
        cross_entropy: sum(|losses| losses.cross_entropy),
    }
}

/// Returns the router statistics over all passes, by block.
fn merged_routing(passes: &[PassStats]) -> Vec<RouterStatistics> {
    let mut merged: Vec<RouterStatistics> = Vec::new();
    for pass in passes {
        merged.resize_with(pass.routing.len(), RouterStatistics::default);
        for (all, new) in merged.iter_mut().zip(&pass.routing) {
            all.merge(new);
        }
    }
    merged
}

/// Returns the max attention logits over all passes, by block and head.
fn max_attention_logits(passes: &[PassStats]) -> Vec<Vec<f32>> {
    let mut maxima: Vec<Vec<f32>> = Vec::new();
    for pass in passes {
        if maxima.is_empty() {
            maxima.clone_from(&pass.max_attention_logits);
        }
        let new = pass.max_attention_logits.iter().flatten();
        for (all, new) in maxima.iter_mut().flatten().zip(new) {
            *all = larger_or_nan(*all, *new);
        }
    }
    maxima
}

fn named<'g>(gradients: &[(ParamSpec, Value<'g>)]) -> BTreeMap<String, Value<'g>> {
    let pairs = gradients.iter();
    pairs
        .map(|(spec, gradient)| (spec.name.clone(), *gradient))
        .collect()
}
