//! AdamW, or Muon with AdamW for all other parameters, with parameter groups.

mod config;

use std::collections::BTreeMap;

use super::metrics::QkClipMetrics;
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::graph::{Buffer, Builder, DType, Type, Value, ValueId};
use crate::model::{Model, ParamSpec, Registry};
use crate::ops::{self, Arguments, MuonParameter};
use crate::plan::Program;
use crate::tensors::{TensorFile, TensorHandle};

pub use config::{OptimizerConfig, OptimizerKind};

/// Euclidean norms of a parameter in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct ParameterNorms {
    /// Gradient norm, before clipping.
    pub gradient: f64,
    /// Update norm; 0 if no update was applied.
    pub update: f64,
    /// Weight norm before the update; 0 if no update was applied.
    pub weight: f64,
}

/// Euclidean norms of an optimizer step.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct StepNorms {
    /// Global gradient norm, before clipping.
    pub gradient: f64,
    /// Global norm of the update, including weight decay.
    pub update: f64,
    /// Norms of each parameter, by name.
    pub by_name: BTreeMap<String, ParameterNorms>,
    /// Outcome of QK-clip after the update, if enabled.
    pub qk_clip: Option<QkClipMetrics>,
}

/// Optimizer of a model: the moments of every parameter, and the number of updates.
///
/// Its buffers are on the model's executor until [`Optimizer::free`] returns them.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::model::{Model, ModelConfig};
/// use hybridnorm::train::{Optimizer, OptimizerConfig};
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
/// let optimizer = Optimizer::new(OptimizerConfig::default(), &mut model)?;
/// let moments = optimizer.moment_handles();
/// assert!(moments.contains_key("m.embedding") && moments.contains_key("v.embedding"));
/// optimizer.free(&mut model);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
pub struct Optimizer {
    layout: Layout,
    /// First and second moments, at the offsets of [`Layout`].
    buffers: [Buffer; 2],
    updates: u64,
    /// Sums of gradients over micro-batches, allocated if there are several.
    sums: Option<Buffer>,
}

/// Settings of every parameter's update, and the offsets of its moments in two buffers: AdamW's first moments and
/// Muon's momentum in the first, AdamW's second moments in the second.
#[derive(Debug)]
pub(super) struct Layout {
    config: OptimizerConfig,
    /// Parameters of AdamW, then of Muon; each by name.
    parameters: Vec<ParameterState>,
    elements: [usize; 2],
}

/// A parameter and the offsets of its moments.
#[derive(Debug)]
struct ParameterState {
    spec: ParamSpec,
    first: usize,
    /// Absent if Muon updates it.
    second: Option<usize>,
}

/// A moment of a parameter.
struct Moment<'a> {
    spec: &'a ParamSpec,
    /// Tensor name in files.
    name: String,
    handle: TensorHandle,
}

/// Program outputs with the norms of gradients and update.
#[derive(Debug, Clone)]
pub(super) struct UpdateTaps {
    squares: ValueId,
    /// Norms of AdamW's parameters, then of Muon's.
    norms: Vec<ValueId>,
}

impl UpdateTaps {
    /// Returns the values that the program must output.
    pub(super) fn outputs(&self) -> Vec<ValueId> {
        std::iter::once(self.squares)
            .chain(self.norms.iter().copied())
            .collect()
    }
}

impl Layout {
    /// Lays out the moments of every trained parameter.
    pub(super) fn new(config: OptimizerConfig, registry: &Registry) -> Self {
        let trained = registry
            .sorted_by_name()
            .into_iter()
            .filter(|spec| spec.role.is_trained());
        let (muon, adamw): (Vec<_>, Vec<_>) = trained
            .cloned()
            .partition(|spec| config.orthogonalizes(spec.role));
        let [mut first, mut second] = [0, 0];
        let n_adamw = adamw.len();
        let parameters = adamw
            .into_iter()
            .chain(muon)
            .enumerate()
            .map(|(index, spec)| {
                let elements = spec.elements();
                let parameter = ParameterState {
                    spec,
                    first,
                    second: (index < n_adamw).then_some(second),
                };
                first += elements;
                second += if index < n_adamw { elements } else { 0 };
                parameter
            });
        let parameters = parameters.collect();
        Self {
            config,
            parameters,
            elements: [first, second],
        }
    }

    /// Returns the sizes of the two buffers, in elements.
    pub(super) fn elements(&self) -> [usize; 2] {
        self.elements
    }

    /// Returns the settings.
    pub(super) fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Adds the update of parameters and `moments` from `gradients`, by name, to the graph. Nothing is changed unless
    /// all gradients and `losses` are finite.
    pub(super) fn build_update<'g>(
        &self,
        g: &'g Builder,
        moments: [Buffer; 2],
        gradients: &BTreeMap<String, Value<'g>>,
        losses: Value<'g>,
    ) -> UpdateTaps {
        let gradient_of = |parameter: &ParameterState| gradients[&parameter.spec.name];
        let all: Vec<Value> = self.parameters.iter().map(gradient_of).collect();
        let squares = ops::squared_norms(g, &all);
        let state = |buffer, offset, gradient: Value<'g>| {
            g.state(buffer, offset, Type::f32(gradient.shape()))
        };
        let (mut adamw, mut decays) = (Vec::new(), Vec::new());
        let (mut muon, mut muon_parameters) = (Vec::new(), Vec::new());
        for (parameter, &gradient) in self.parameters.iter().zip(&all) {
            let weight_decay = self.config.weight_decay_of(parameter.spec.role);
            let value = parameter.spec.param().value(g);
            let first = state(moments[0], parameter.first, gradient);
            match parameter.second {
                Some(second) => {
                    adamw.push([gradient, value, first, state(moments[1], second, gradient)]);
                    decays.push(weight_decay);
                }
                None => {
                    muon.push([gradient, value, first]);
                    muon_parameters.push(MuonParameter {
                        columns: parameter.spec.columns(),
                        rows: parameter.spec.matrices.clone(),
                        weight_decay,
                    });
                }
            }
        }
        let mut norms = Vec::new();
        if !adamw.is_empty() {
            let op = self.config.adamw(decays);
            norms.push(ops::adamw(op, losses, squares, &adamw).id());
        }
        if !muon.is_empty() {
            let op = self.config.muon(muon_parameters);
            norms.push(ops::muon(op, losses, squares, &muon).id());
        }
        UpdateTaps {
            squares: squares.id(),
            norms,
        }
    }
}

impl Optimizer {
    /// Allocates zero moments for every trained parameter of `model`, on its executor.
    ///
    /// # Errors
    /// If a setting is out of range or has no effect, or there is not enough memory.
    pub fn new(config: OptimizerConfig, model: &mut Model) -> Result<Self> {
        config.check()?;
        let layout = Layout::new(config, model.decoder().registry());
        let executor = model.executor_mut();
        let [first, second] = layout.elements();
        Ok(Self {
            buffers: [
                executor.allocate(DType::F32, first)?,
                executor.allocate(DType::F32, second)?,
            ],
            layout,
            updates: 0,
            sums: None,
        })
    }

    /// Returns the memory of moments and gradient sums to the executor of `model`, the one that the optimizer was
    /// created for. Its [`TrainingStep`](super::TrainingStep)s must not be run afterwards.
    pub fn free(self, model: &mut Model) {
        for buffer in self.buffers.into_iter().chain(self.sums) {
            model.executor_mut().free(buffer);
        }
    }

    /// Returns the sums of gradients over micro-batches, laid out like the parameters; allocates them on first use.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(super) fn gradient_sums(&mut self, model: &mut Model) -> Result<Buffer> {
        if let Some(sums) = self.sums {
            return Ok(sums);
        }
        let elements = model.decoder().registry().elements();
        let sums = model.executor_mut().allocate(DType::F32, elements)?;
        self.sums = Some(sums);
        Ok(sums)
    }

    /// Returns the layout of the moments.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the buffers of the first and the second moments, at the offsets of [`Layout`].
    pub(super) fn buffers(&self) -> [Buffer; 2] {
        self.buffers
    }

    /// Replaces the settings; the moments are kept.
    ///
    /// # Errors
    /// If the kind differs, since its moments do.
    pub(super) fn set_config(&mut self, config: OptimizerConfig) -> Result<()> {
        if config.kind != self.layout.config.kind {
            return Err(Error::conflict(
                ["optimizer.kind"],
                "optimizer.kind cannot change within a run; to change it, start a new run from a checkpoint with \
                 [init] from",
            ));
        }
        self.layout.config = config;
        Ok(())
    }

    /// Returns the settings.
    pub fn config(&self) -> &OptimizerConfig {
        &self.layout.config
    }

    /// Returns the arguments for running the next update.
    pub(super) fn arguments(&self, lr: f64) -> Arguments {
        Arguments {
            lr,
            step: self.updates + 1,
            ..Arguments::default()
        }
    }

    /// Returns the number of updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Reads the norms of the last update, and counts the update if it changed anything.
    pub(super) fn read_update(
        &mut self,
        executor: &dyn Executor,
        program: &Program,
        taps: &UpdateTaps,
        losses_are_finite: bool,
    ) -> StepNorms {
        let squares = executor.output(program, taps.squares).into_f64();
        let norms = taps
            .norms
            .iter()
            .map(|&id| executor.output(program, id).into_f64());
        let norms: Vec<f64> = norms.collect::<Vec<_>>().concat();
        let parameters =
            squares
                .iter()
                .zip(norms.chunks(2))
                .map(|(square, norms)| ParameterNorms {
                    gradient: square.sqrt(),
                    update: norms[0],
                    weight: norms[1],
                });
        let parameters: Vec<ParameterNorms> = parameters.collect();
        let gradient = squares.iter().sum::<f64>().sqrt();
        let update = parameters
            .iter()
            .map(|parameter| parameter.update.powi(2))
            .sum::<f64>()
            .sqrt();
        self.updates += u64::from(gradient.is_finite() && losses_are_finite);
        let names = self
            .layout
            .parameters
            .iter()
            .map(|parameter| parameter.spec.name.clone());
        StepNorms {
            gradient,
            update,
            by_name: names.zip(parameters).collect(),
            qk_clip: None,
        }
    }

    /// Returns all moments, in the order of [`Layout`].
    fn moments(&self) -> impl Iterator<Item = Moment<'_>> {
        let [first, second] = self.buffers;
        self.layout.parameters.iter().flat_map(move |parameter| {
            // Names differ by optimizer kind, so that a run that branches off with a different kind starts from zero
            // moments instead of reading Muon's momentum (a sum of gradients) as AdamW's first moment (a mean).
            let moments = match parameter.second {
                None => vec![("sum", first, parameter.first)],
                Some(offset) => vec![("m", first, parameter.first), ("v", second, offset)],
            };
            let spec = &parameter.spec;
            let elements = spec.elements();
            moments
                .into_iter()
                .map(move |(prefix, buffer, offset)| Moment {
                    spec,
                    name: format!("{prefix}.{}", spec.name),
                    handle: TensorHandle::new(buffer, offset..offset + elements, vec![elements]),
                })
        })
    }

    /// Returns the name of a moment that is not finite, if any.
    pub fn first_non_finite(&self, model: &Model) -> Option<String> {
        let is_non_finite = |moment: &Moment<'_>| !moment.handle.is_finite(model.executor());
        let found = self.moments().find(is_non_finite)?;
        Some(format!("a moment of {}", found.spec.name))
    }

    /// Returns the moments, named `m.NAME` and `v.NAME`; Muon's are `sum.NAME`.
    pub fn moment_handles(&self) -> BTreeMap<String, TensorHandle> {
        let moments = self.moments();
        moments.map(|moment| (moment.name, moment.handle)).collect()
    }

    /// Restores the moments that `file` contains in the same size, except those of `new_parameters`; all others are set
    /// to zero.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn restore_matching(
        &mut self,
        updates: u64,
        file: &TensorFile,
        new_parameters: &[String],
        model: &mut Model,
    ) -> Result<()> {
        for Moment { spec, name, handle } in self.moments() {
            let is_shared = file.has(&name)
                && !new_parameters.contains(&spec.name)
                && file.elements(&name)? == handle.elements();
            let executor = model.executor_mut();
            match is_shared {
                true => handle.load(executor, file, &name)?,
                false => handle.clear(executor),
            }
        }
        self.updates = updates;
        Ok(())
    }

    /// Restores the moments of [`Optimizer::moment_handles`] from a file.
    ///
    /// # Errors
    /// If a moment is missing or has a different size, or the file cannot be read.
    pub fn restore(&mut self, updates: u64, file: &TensorFile, model: &mut Model) -> Result<()> {
        for Moment { name, handle, .. } in self.moments() {
            if !file.has(&name) {
                return Err(Error::format(
                    file.path(),
                    format!(
                        "optimizer state {name} is missing; optimizer.kind must not change when a run is resumed"
                    ),
                ));
            }
            handle.load(model.executor_mut(), file, &name)?;
        }
        self.updates = updates;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::Device;
    use crate::model::testing::tiny;

    #[test]
    fn freeing_an_optimizer_frees_its_buffers_and_no_others() {
        let mut model = Model::new(&tiny(), 0, Device::Cpu).unwrap();
        let weights = model.values();
        let mut first = Optimizer::new(OptimizerConfig::default(), &mut model).unwrap();
        let second = Optimizer::new(OptimizerConfig::default(), &mut model).unwrap();
        let sums = first.gradient_sums(&mut model).unwrap();
        let buffers = [first.buffers[0], first.buffers[1], sums];
        first.free(&mut model);
        for buffer in buffers {
            let read = || model.executor().read(buffer, 0..1);
            assert!(catch_unwind(AssertUnwindSafe(read)).is_err(), "{buffer:?}");
        }
        assert_eq!(second.first_non_finite(&model), None);
        assert_eq!(model.values(), weights);
    }

    #[test]
    fn invalid_settings_are_errors() {
        let mut model = Model::new(&tiny(), 0, Device::Cpu).unwrap();
        for config in [
            OptimizerConfig::default().with_momentum(0.9),
            OptimizerConfig::default().with_betas((0.9, 1.0)),
            OptimizerConfig::default().with_lr(-1.0),
        ] {
            assert!(Optimizer::new(config, &mut model).is_err());
        }
    }
}
