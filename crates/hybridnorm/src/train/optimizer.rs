//! AdamW with parameter groups.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::gradients::GradientSum;
use crate::error::{Error, Result};
use crate::model::{
    Decoder,
    params::{self, Kind, Values},
};
use crate::ops::{self, AdamW, SlotNorms, Update};
use crate::tensors::{self, Handle};

/// `[optimizer]`: how weights are updated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The rule.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the first and second moment per step.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// Whether norm parameters decay: gains, biases, α and shift of DyT and Derf (official
    /// HybridNorm: yes). Learned scales never do.
    pub decay_norms: bool,
    /// Whether the embedding decays (official: dense no, MoE yes).
    pub decay_embeddings: bool,
    /// Gradients are scaled down to this global norm; 0 turns clipping off.
    pub clip_grad_norm: f64,
}

/// The update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (arXiv 1711.05101).
    AdamW,
}

impl Default for OptimizerConfig {
    /// The official dense settings.
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            lr: 3e-4,
            betas: (0.9, 0.95),
            eps: 1e-8,
            weight_decay: 0.1,
            decay_norms: true,
            decay_embeddings: false,
            clip_grad_norm: 1.0,
        }
    }
}

impl OptimizerConfig {
    /// Checks ranges; of what may not be 0, in the single precision that updates are computed in.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn check(&self) -> Result<()> {
        let (beta1, beta2) = self.betas;
        let rules = [
            ("lr", self.lr, self.lr as f32 > 0.0),
            ("betas[0]", beta1, (0.0..1.0).contains(&beta1)),
            ("betas[1]", beta2, (0.0..1.0).contains(&beta2)),
            (
                "eps",
                self.eps,
                (f32::MIN_POSITIVE..=f32::MAX).contains(&(self.eps as f32)),
            ),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0.0),
            (
                "clip_grad_norm",
                self.clip_grad_norm,
                self.clip_grad_norm >= 0.0,
            ),
        ];
        match rules
            .iter()
            .find(|(_, value, holds)| !(*holds && value.is_finite()))
        {
            Some((key, value, _)) => Err(Error::config(format!(
                "optimizer.{key} = {value} is out of range"
            ))),
            None => Ok(()),
        }
    }

    fn decays(&self, kind: Kind) -> bool {
        match kind {
            Kind::Head | Kind::Attention | Kind::FeedForward | Kind::Router => true,
            Kind::Embedding => self.decay_embeddings,
            Kind::Norm => self.decay_norms,
            // A decayed residual scale would be pulled towards another placement.
            Kind::Scale => false,
            Kind::SelectionBias => false,
        }
    }
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
}

impl StepNorms {
    /// The norms of gradients with which no step is made.
    pub(super) fn of_gradients(gradients: &GradientSum) -> Self {
        let by_name: BTreeMap<_, _> = gradients
            .norms()
            .map(|(name, gradient)| {
                let norms = SlotNorms {
                    gradient,
                    ..SlotNorms::default()
                };
                (name.to_owned(), norms)
            })
            .collect();
        let squares = by_name.values().map(|norms| norms.gradient.powi(2));
        Self {
            gradient: squares.sum::<f64>().sqrt(),
            update: 0.0,
            by_name,
        }
    }
}

/// Optimizer state: two moments for every parameter, and the number of updates done.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    updates: u64,
    moments: BTreeMap<String, [Tensor<1>; 2]>,
}

impl Optimizer {
    /// Zero moments for every parameter of `model`.
    pub fn new(config: OptimizerConfig, model: &Decoder) -> Self {
        let mut moments = BTreeMap::new();
        params::for_each(model, |name, param| {
            if !Kind::of(name).is_trained() {
                return;
            }
            let flat = param.flat().without_autodiff();
            let zeros = || Tensor::zeros(flat.shape(), (&flat.device(), flat.dtype()));
            moments.insert(name.to_owned(), [zeros(), zeros()]);
        });
        Self {
            config,
            updates: 0,
            moments,
        }
    }

    /// Updates done so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Applies one update with learning rate `lr`; gives the model and the norms of the step. Nothing is
    /// updated if the gradients' global norm is not finite.
    pub fn step(
        &mut self,
        model: Decoder,
        mut gradients: GradientSum,
        lr: f64,
    ) -> (Decoder, StepNorms) {
        let (beta1, beta2) = self.config.betas;
        let exponent = (self.updates + 1) as f64;
        let adamw = AdamW {
            lr,
            beta1,
            beta2,
            eps: self.config.eps,
            clip: self.config.clip_grad_norm,
            bias_correction1: (1.0 - beta1.powf(exponent)) as f32,
            bias_correction2: (1.0 - beta2.powf(exponent)) as f32,
        };
        // Taken out of the model and put back, so that all are updated at once and in place.
        let mut updates = BTreeMap::new();
        let model = params::map(model, |name, tensor| {
            let Some(gradient) = gradients.take(name) else {
                return tensor;
            };
            let (empty, value) = tensor.take();
            let update = Update {
                value,
                gradient,
                moments: self
                    .moments
                    .remove(name)
                    .expect("moments of every parameter"),
                weight_decay: match self.config.decays(Kind::of(name)) {
                    true => self.config.weight_decay,
                    false => 0.0,
                },
            };
            updates.insert(name.to_owned(), update);
            empty
        });
        let (names, updates): (Vec<String>, Vec<Update>) = updates.into_iter().unzip();
        let (norms, updated) = ops::adamw(updates, &adamw);
        self.updates += u64::from(norms.gradient.is_finite());
        let squares = norms.slots.iter().map(|slot| slot.update.powi(2));
        let norms = StepNorms {
            gradient: norms.gradient,
            update: squares.sum::<f64>().sqrt(),
            by_name: names.iter().cloned().zip(norms.slots).collect(),
        };
        let mut values = BTreeMap::new();
        for (name, [value, m, v]) in names.into_iter().zip(updated) {
            self.moments.insert(name.clone(), [m, v]);
            values.insert(name, value);
        }
        let model = params::map(model, |name, tensor| match values.remove(name) {
            Some(value) => tensor.put(value),
            None => tensor,
        });
        (model, norms)
    }

    /// The name of a moment that is not finite, if there is one.
    pub fn broken(&self) -> Option<String> {
        let is_broken = |moments: &[Tensor<1>; 2]| !moments.iter().all(tensors::is_finite);
        let (name, _) = self.moments.iter().find(|(_, m)| is_broken(m))?;
        Some(format!("a moment of {name}"))
    }

    /// The moments, named `m.NAME` and `v.NAME`.
    pub fn handles(&self) -> BTreeMap<String, Handle> {
        let mut all = BTreeMap::new();
        for (name, moments) in &self.moments {
            for (prefix, moment) in ["m", "v"].iter().zip(moments) {
                let handle = Handle::new(moment.clone(), moment.dims().to_vec());
                all.insert(format!("{prefix}.{name}"), handle);
            }
        }
        all
    }

    /// Puts back those moments that belong to parameters of this model; others stay zero.
    ///
    /// # Errors
    /// As [`Optimizer::restore`].
    pub fn restore_shared(
        &mut self,
        updates: u64,
        mut values: BTreeMap<String, Values>,
        device: &Device,
    ) -> Result<()> {
        for (name, moments) in &self.moments {
            for (prefix, moment) in ["m", "v"].iter().zip(moments) {
                let shape = moment.dims();
                let zeros = || Values {
                    shape: shape.to_vec(),
                    data: vec![0.0; shape[0]],
                };
                let found = values.entry(format!("{prefix}.{name}"));
                let found = found.or_insert_with(zeros);
                if found.data.len() != shape[0] {
                    *found = zeros();
                }
            }
        }
        self.restore(updates, values, device)
    }

    /// Puts back what [`Optimizer::handles`] gave.
    ///
    /// # Errors
    /// If a moment is missing or of another size.
    pub fn restore(
        &mut self,
        updates: u64,
        mut values: BTreeMap<String, Values>,
        device: &Device,
    ) -> Result<()> {
        for (name, moments) in &mut self.moments {
            for (prefix, moment) in ["m", "v"].iter().zip(moments) {
                let key = format!("{prefix}.{name}");
                let found = values
                    .remove(&key)
                    .ok_or_else(|| Error::config(format!("optimizer state {key} is missing")))?;
                if found.data.len() != moment.dims()[0] {
                    return Err(Error::config(format!(
                        "optimizer state {key} has {} elements, expected {}",
                        found.data.len(),
                        moment.dims()[0]
                    )));
                }
                let n = found.data.len();
                *moment = Tensor::from_data(TensorData::new(found.data, [n]), device);
            }
        }
        self.updates = updates;
        Ok(())
    }
}
