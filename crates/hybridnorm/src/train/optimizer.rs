//! AdamW, or Muon with AdamW for the rest, with parameter groups.

mod config;

use std::collections::BTreeMap;

use super::metrics::QkClip;
use crate::error::{Error, Result};
use crate::exec::{Data, Executor};
use crate::graph::{Buffer, Builder, DType, Type, Value, ValueId};
use crate::model::{Model, PARAMETERS, ParamSpec, Registry};
use crate::ops::{self, Arguments, MuonSlot};
use crate::plan::Program;
use crate::tensors::{Handle, Values};

pub use config::{OptimizerConfig, OptimizerKind};

/// Iterations of Muon's orthogonalization.
const NEWTON_SCHULZ: usize = 5;

/// Euclidean norms of a parameter in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SlotNorms {
    /// Of its gradient, before clipping.
    pub gradient: f64,
    /// Of what the step added to it; 0 where nothing was changed.
    pub update: f64,
    /// Of its values before the step; 0 where nothing was changed.
    pub value: f64,
}

/// Euclidean norms of an optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepNorms {
    /// Of all gradients together, before clipping.
    pub gradient: f64,
    /// Of everything that was added to the weights, decay included.
    pub update: f64,
    /// The same of each parameter.
    pub by_name: BTreeMap<String, SlotNorms>,
    /// Outcome of QK-clip after the update, where it is on.
    pub qk_clip: Option<QkClip>,
}

/// The optimizer of a model: the moments of every parameter, and the number of updates done.
#[derive(Debug)]
pub struct Optimizer {
    layout: Layout,
    updates: u64,
    /// Sums of gradients over micro-batches, allocated where there are several.
    sums: Option<Buffer>,
}

/// How parameters are updated, and where their moments lie.
#[derive(Debug)]
pub(super) struct Layout {
    config: OptimizerConfig,
    /// AdamW's first, then Muon's; each by name.
    slots: Vec<Slot>,
    /// First moments of AdamW and Muon's only ones, and second moments of AdamW.
    buffers: [Buffer; 2],
    elements: [usize; 2],
}

/// A parameter and where its moments lie.
#[derive(Debug)]
struct Slot {
    spec: ParamSpec,
    first: usize,
    /// Absent where Muon updates it.
    second: Option<usize>,
}

/// The values of a program that tell what an update did.
#[derive(Debug, Clone)]
pub(super) struct UpdateTaps {
    squares: ValueId,
    /// Of AdamW's slots, then of Muon's.
    norms: Vec<ValueId>,
}

impl UpdateTaps {
    /// The values that a program must give.
    pub(super) fn outputs(&self) -> Vec<ValueId> {
        std::iter::once(self.squares)
            .chain(self.norms.iter().copied())
            .collect()
    }
}

impl Slot {
    /// Its moments' names in files. They differ by rule, so that a run that goes on with another one begins
    /// with none instead of taking a sum of gradients for a mean.
    fn moments(&self) -> Vec<(&'static str, usize)> {
        match self.second {
            None => vec![("sum", self.first)],
            Some(second) => vec![("m", self.first), ("v", second)],
        }
    }

    fn keys(&self) -> impl Iterator<Item = String> {
        self.moments()
            .into_iter()
            .map(|(prefix, _)| format!("{prefix}.{}", self.spec.name))
    }
}

impl Layout {
    /// Lays out the moments of every trained parameter in two buffers.
    pub(super) fn new(config: OptimizerConfig, registry: &Registry, buffers: [Buffer; 2]) -> Self {
        let trained = registry
            .by_name()
            .into_iter()
            .filter(|spec| spec.role.is_trained());
        let (muon, adamw): (Vec<_>, Vec<_>) = trained
            .cloned()
            .partition(|spec| config.orthogonalizes(spec.role));
        let [mut first, mut second] = [0, 0];
        let of_adamw = adamw.len();
        let slots = adamw
            .into_iter()
            .chain(muon)
            .enumerate()
            .map(|(index, spec)| {
                let elements = spec.elements();
                let slot = Slot {
                    spec,
                    first,
                    second: (index < of_adamw).then_some(second),
                };
                first += elements;
                second += if index < of_adamw { elements } else { 0 };
                slot
            });
        let slots = slots.collect();
        Self {
            config,
            slots,
            buffers,
            elements: [first, second],
        }
    }

    /// Elements of the two buffers.
    pub(super) fn elements(&self) -> [usize; 2] {
        self.elements
    }

    /// Its settings.
    pub(super) fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Records an update by `gradients`, by name. Nothing is changed unless all of them and `guard`, the
    /// losses, are finite.
    pub(super) fn record<'g>(
        &self,
        g: &'g Builder,
        gradients: &BTreeMap<String, Value<'g>>,
        guard: Value<'g>,
    ) -> UpdateTaps {
        let of_slot = |slot: &Slot| gradients[&slot.spec.name];
        let all: Vec<Value> = self.slots.iter().map(of_slot).collect();
        let squares = ops::squared_norms(g, &all);
        let state = |buffer, offset, gradient: Value<'g>| {
            g.state(buffer, offset, Type::f32(gradient.shape()))
        };
        let (mut adamw, mut decays) = (Vec::new(), Vec::new());
        let (mut muon, mut forms) = (Vec::new(), Vec::new());
        for (slot, &gradient) in self.slots.iter().zip(&all) {
            let weight_decay = match self.config.decays(slot.spec.role) {
                true => self.config.weight_decay,
                false => 0.0,
            };
            let value = state(PARAMETERS, slot.spec.offset, gradient);
            let first = state(self.buffers[0], slot.first, gradient);
            match slot.second {
                Some(second) => {
                    adamw.push([
                        gradient,
                        value,
                        first,
                        state(self.buffers[1], second, gradient),
                    ]);
                    decays.push(weight_decay);
                }
                None => {
                    muon.push([gradient, value, first]);
                    forms.push(MuonSlot {
                        columns: slot.spec.columns(),
                        rows: slot.spec.matrices.clone(),
                        weight_decay,
                    });
                }
            }
        }
        let mut norms = Vec::new();
        let clip = self.config.clip_grad_norm;
        if !adamw.is_empty() {
            let (beta1, beta2) = self.config.betas;
            let op = ops::AdamW {
                beta1,
                beta2,
                eps: self.config.eps,
                clip,
                weight_decay: decays,
            };
            norms.push(ops::adamw(op, guard, squares, &adamw).id());
        }
        if !muon.is_empty() {
            let op = ops::Muon {
                momentum: self.config.momentum(),
                nesterov: true,
                iterations: NEWTON_SCHULZ,
                clip,
                slots: forms,
            };
            norms.push(ops::muon(op, guard, squares, &muon).id());
        }
        UpdateTaps {
            squares: squares.id(),
            norms,
        }
    }
}

impl Optimizer {
    /// Allocates zero moments for every trained parameter of `model`, on its executor.
    pub fn new(config: OptimizerConfig, model: &mut Model) -> Self {
        let buffers = [PARAMETERS; 2];
        let mut layout = Layout::new(config, model.decoder().registry(), buffers);
        let elements = layout.elements();
        layout.buffers = elements.map(|n| model.executor_mut().allocate(DType::F32, n));
        Self {
            layout,
            updates: 0,
            sums: None,
        }
    }

    /// Sums of gradients over micro-batches, laid out like the parameters.
    pub(super) fn sums(&mut self, model: &mut Model) -> Buffer {
        let elements = model.decoder().registry().elements();
        *self
            .sums
            .get_or_insert_with(|| model.executor_mut().allocate(DType::F32, elements))
    }

    /// How parameters are updated.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Goes on by other settings. What is remembered stays.
    ///
    /// # Errors
    /// If another rule is asked for, which remembers something else.
    pub(super) fn set_config(&mut self, config: OptimizerConfig) -> Result<()> {
        if config.kind != self.layout.config.kind {
            return Err(Error::config(
                "optimizer.kind: a run goes on with the one it began with",
            ));
        }
        self.layout.config = config;
        Ok(())
    }

    /// Its settings.
    pub fn config(&self) -> &OptimizerConfig {
        &self.layout.config
    }

    /// Arguments of a run of the next update.
    pub(super) fn arguments(&self, lr: f64) -> Arguments {
        Arguments {
            lr,
            step: self.updates + 1,
            ..Arguments::default()
        }
    }

    /// Updates done so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The norms of an update that ran last, and counts it if it changed something.
    pub(super) fn updated(
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
        let slots = squares
            .iter()
            .zip(norms.chunks(2))
            .map(|(square, norms)| SlotNorms {
                gradient: square.sqrt(),
                update: norms[0],
                value: norms[1],
            });
        let slots: Vec<SlotNorms> = slots.collect();
        let gradient = squares.iter().sum::<f64>().sqrt();
        let update = slots
            .iter()
            .map(|slot| slot.update.powi(2))
            .sum::<f64>()
            .sqrt();
        self.updates += u64::from(gradient.is_finite() && losses_are_finite);
        let names = self.layout.slots.iter().map(|slot| slot.spec.name.clone());
        StepNorms {
            gradient,
            update,
            by_name: names.zip(slots).collect(),
            qk_clip: None,
        }
    }

    /// The name of a moment that is not finite, if there is one.
    pub fn broken(&self, model: &mut Model) -> Option<String> {
        let executor = model.executor();
        let is_broken = |slot: &&Slot| {
            let moments = slot.moments().into_iter();
            moments
                .zip(self.layout.buffers)
                .any(|((_, offset), buffer)| {
                    let range = offset..offset + slot.spec.elements();
                    let values = executor.read(buffer, range).into_f32();
                    !values.iter().all(|x| x.is_finite())
                })
        };
        let found = self.layout.slots.iter().find(is_broken)?;
        Some(format!("a moment of {}", found.spec.name))
    }

    /// The moments, named `m.NAME` and `v.NAME`; Muon's is `sum.NAME`.
    pub fn handles(&self) -> BTreeMap<String, Handle> {
        let mut all = BTreeMap::new();
        for slot in &self.layout.slots {
            let elements = slot.spec.elements();
            for ((prefix, offset), buffer) in slot.moments().into_iter().zip(self.layout.buffers) {
                let handle = Handle::new(buffer, offset..offset + elements, vec![elements]);
                all.insert(format!("{prefix}.{}", slot.spec.name), handle);
            }
        }
        all
    }

    /// Puts back those moments that belong to parameters of this model; others stay zero.
    pub fn restore_shared(
        &mut self,
        updates: u64,
        mut values: BTreeMap<String, Values>,
        model: &mut Model,
    ) -> Result<()> {
        for slot in &self.layout.slots {
            let elements = slot.spec.elements();
            for key in slot.keys() {
                let zeros = || Values {
                    shape: vec![elements],
                    data: vec![0.0; elements],
                };
                let found = values.entry(key).or_insert_with(zeros);
                if found.data.len() != elements {
                    *found = zeros();
                }
            }
        }
        self.restore(updates, values, model)
    }

    /// Puts back what [`Optimizer::handles`] gave.
    ///
    /// # Errors
    /// If a moment is missing or of another size.
    pub fn restore(
        &mut self,
        updates: u64,
        mut values: BTreeMap<String, Values>,
        model: &mut Model,
    ) -> Result<()> {
        for slot in &self.layout.slots {
            let elements = slot.spec.elements();
            for ((prefix, offset), buffer) in slot.moments().into_iter().zip(self.layout.buffers) {
                let key = format!("{prefix}.{}", slot.spec.name);
                let found = values.remove(&key).ok_or_else(|| {
                    Error::config(format!(
                        "optimizer state {key} is missing; a run goes on with the \
                             optimizer.kind it began with"
                    ))
                })?;
                if found.data.len() != elements {
                    return Err(Error::config(format!(
                        "optimizer state {key} has {} elements, expected {elements}",
                        found.data.len(),
                    )));
                }
                model
                    .executor_mut()
                    .write(buffer, offset, Data::F32(&found.data));
            }
        }
        self.updates = updates;
        Ok(())
    }
}
