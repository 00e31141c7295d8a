//! AdamW, or Muon with AdamW for the rest, with parameter groups.

mod config;

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};

use super::gradients::{GradientSum, larger_or_nan};
use super::metrics::QkClip;
use crate::eager::{self as ops, AdamW, Muon, MuonUpdate, SlotNorms, Update};
use crate::error::{Error, Result};
use crate::model::{
    Decoder,
    matrices::Matrices,
    params::{self, Kind, Values},
};
use crate::tensors::{self, Handle};

pub use config::{OptimizerConfig, OptimizerKind};

/// Euclidean norms of an optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepNorms {
    /// Of all gradients together, before clipping.
    pub gradient: f64,
    /// Of everything that was added to the weights, decay included.
    pub update: f64,
    /// The same of each parameter.
    pub by_name: BTreeMap<String, SlotNorms>,
    /// What QK-clip did afterwards, where it is on.
    pub qk_clip: Option<QkClip>,
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
            qk_clip: None,
        }
    }
}

/// Iterations of Muon's orthogonalization.
const NEWTON_SCHULZ: usize = 5;
const COUNT: &str = "as many moments as the rule has";

/// What an optimizer remembers of a parameter between steps: AdamW's two moments or Muon's one, flat.
type Moments = Vec<Tensor<1>>;

/// Their names in files. They differ by rule, so that a run that goes on with another one begins with none
/// instead of taking a sum of gradients for a mean.
fn prefixes(moments: &Moments) -> &'static [&'static str] {
    match moments.len() {
        1 => &["sum"],
        _ => &["m", "v"],
    }
}

/// Optimizer state: the moments of every parameter, and the number of updates done.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    updates: u64,
    moments: BTreeMap<String, Moments>,
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
            let count = if config.orthogonalizes(Kind::of(name)) {
                1
            } else {
                2
            };
            moments.insert(name.to_owned(), (0..count).map(|_| zeros()).collect());
        });
        Self {
            config,
            updates: 0,
            moments,
        }
    }

    /// Goes on by other settings. What is remembered stays.
    ///
    /// # Errors
    /// If another rule is asked for, which remembers something else.
    pub(super) fn set_config(&mut self, config: OptimizerConfig) -> Result<()> {
        if config.kind != self.config.kind {
            return Err(Error::config(
                "optimizer.kind: a run goes on with the one it began with",
            ));
        }
        self.config = config;
        Ok(())
    }

    /// Updates done so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// No gradients yet, to be accumulated for [`Optimizer::step`].
    pub fn gradients(&self) -> GradientSum {
        match self.config.qk_clip {
            Some(_) => GradientSum::looking_at_scores(),
            None => GradientSum::default(),
        }
    }

    /// Applies one update with learning rate `lr`; gives the model and the norms of the step. Nothing is
    /// updated if the gradients' global norm is not finite.
    ///
    /// What belongs to an update besides follows it: selection biases of mixtures move against the load,
    /// QK-clip scales queries and keys down where it is on, unit weights are brought back to their length.
    pub fn step(
        &mut self,
        model: Decoder,
        mut gradients: GradientSum,
        lr: f64,
    ) -> (Decoder, StepNorms) {
        // Taken out of the model and put back, so that all are updated at once and in place.
        let shape = model.config().clone();
        let (mut adamw, mut muon) = (BTreeMap::new(), BTreeMap::new());
        let model = params::map(model, |name, tensor| {
            let Some(gradient) = gradients.take(name) else {
                return tensor;
            };
            let kind = Kind::of(name);
            let sizes = tensor.shape();
            let (empty, value) = tensor.take();
            let moments = self.moments.remove(name);
            let moments = moments.expect("moments of every parameter");
            let weight_decay = match self.config.decays(kind) {
                true => self.config.weight_decay,
                false => 0.0,
            };
            if self.config.orthogonalizes(kind) {
                let [moment] = moments.try_into().expect(COUNT);
                let [rows, columns] = sizes.as_slice().try_into().expect("a matrix");
                let update = MuonUpdate {
                    value,
                    gradient,
                    moment,
                    columns,
                    rows: Matrices::of(name, rows, &shape).rows,
                    weight_decay,
                };
                muon.insert(name.to_owned(), update);
            } else {
                let update = Update {
                    value,
                    gradient,
                    moments: moments.try_into().expect(COUNT),
                    weight_decay,
                };
                adamw.insert(name.to_owned(), update);
            }
            empty
        });
        let (mut norms, mut values) = self.update_all(adamw, muon, lr);
        let model = params::map(model, |name, tensor| match values.remove(name) {
            Some(value) => tensor.put(value),
            None => tensor,
        });
        if !norms.gradient.is_finite() {
            return (model, norms);
        }
        let mut model = model;
        model.rebalance(gradients.routing());
        norms.qk_clip = self.config.qk_clip.map(|most| {
            let maxima = gradients.head_maxima();
            let largest = maxima.iter().flatten().copied().reduce(larger_or_nan);
            QkClip {
                largest_score: largest.map_or(f64::NAN, f64::from),
                clipped_heads: model.clip_scores(maxima, most),
            }
        });
        (model.with_unit_weights(), norms)
    }

    /// Updates values and moments; gives the values.
    fn update_all(
        &mut self,
        adamw: BTreeMap<String, Update>,
        muon: BTreeMap<String, MuonUpdate>,
        lr: f64,
    ) -> (StepNorms, BTreeMap<String, Tensor<1>>) {
        let (beta1, beta2) = self.config.betas;
        let exponent = (self.updates + 1) as f64;
        let of_muon = muon
            .values()
            .map(|slot| ops::sum_squares(slot.gradient.clone()));
        let step = AdamW {
            lr,
            beta1,
            beta2,
            eps: self.config.eps,
            clip: self.config.clip_grad_norm,
            others: of_muon.sum(),
            bias_correction1: (1.0 - beta1.powf(exponent)) as f32,
            bias_correction2: (1.0 - beta2.powf(exponent)) as f32,
        };
        let (mut names, slots): (Vec<String>, Vec<Update>) = adamw.into_iter().unzip();
        let (norms, updated) = ops::adamw(slots, &step);
        let mut states: Vec<(Tensor<1>, Moments)> = updated
            .into_iter()
            .map(|[value, m, v]| (value, vec![m, v]))
            .collect();
        let mut slots = norms.slots;
        if !muon.is_empty() {
            let step = Muon {
                lr,
                momentum: self.config.momentum(),
                nesterov: true,
                steps: NEWTON_SCHULZ,
                grad_scale: step.grad_scale(norms.gradient) as f32,
            };
            let (others, updates): (Vec<String>, Vec<MuonUpdate>) = muon.into_iter().unzip();
            names.extend(others);
            let (found, updated) = match norms.gradient.is_finite() {
                true => ops::muon(updates, &step),
                false => updates.into_iter().map(unchanged).unzip(),
            };
            slots.extend(found);
            states.extend(updated.into_iter().map(|[value, m]| (value, vec![m])));
        }
        self.updates += u64::from(norms.gradient.is_finite());
        let squares = slots.iter().map(|slot| slot.update.powi(2));
        let norms = StepNorms {
            gradient: norms.gradient,
            update: squares.sum::<f64>().sqrt(),
            by_name: names.iter().cloned().zip(slots).collect(),
            qk_clip: None,
        };
        let mut values = BTreeMap::new();
        for (name, (value, moments)) in names.into_iter().zip(states) {
            self.moments.insert(name.clone(), moments);
            values.insert(name, value);
        }
        (norms, values)
    }

    /// The name of a moment that is not finite, if there is one.
    pub fn broken(&self) -> Option<String> {
        let is_broken = |moments: &Moments| !moments.iter().all(tensors::is_finite);
        let (name, _) = self.moments.iter().find(|(_, m)| is_broken(m))?;
        Some(format!("a moment of {name}"))
    }

    /// The moments, named `m.NAME` and `v.NAME`; Muon's is `sum.NAME`.
    pub fn handles(&self) -> BTreeMap<String, Handle> {
        let mut all = BTreeMap::new();
        for (name, moments) in &self.moments {
            for (prefix, moment) in prefixes(moments).iter().zip(moments) {
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
            for (prefix, moment) in prefixes(moments).iter().zip(moments) {
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
            for (prefix, moment) in prefixes(moments).iter().zip(moments) {
                let key = format!("{prefix}.{name}");
                let found = values.remove(&key).ok_or_else(|| {
                    Error::config(format!(
                        "optimizer state {key} is missing; a run goes on with the \
                             optimizer.kind it began with"
                    ))
                })?;
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

/// A slot whose gradient, or another's, is not finite.
fn unchanged(slot: MuonUpdate) -> (SlotNorms, [Tensor<1>; 2]) {
    let norms = SlotNorms {
        gradient: ops::sum_squares(slot.gradient).sqrt(),
        ..SlotNorms::default()
    };
    (norms, [slot.value, slot.moment])
}
