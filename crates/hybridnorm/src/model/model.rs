//! A decoder with its parameters on an executor.

use std::collections::{BTreeMap, HashMap};

use super::cache::KvCache;
use super::config::ModelConfig;
use super::decoder::{Caches, Decoder};
use super::registry::{PARAMETERS, ParamSpec};
use super::taps::{Activations, TapProgram};
use crate::error::{Error, Result};
use crate::exec::{Cpu, Data, Executor, Reference};
use crate::graph::{Builder, DType, Type, ValueId};
use crate::memory;
use crate::ops::{self, Arguments};
use crate::plan::{Options, Program};
use crate::tensors::Values;

/// What computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor, in single precision.
    #[default]
    Cpu,
    /// Plain loops in double precision: what everything else is tested against, and slow.
    Reference,
}

impl Device {
    fn executor(self) -> Box<dyn Executor> {
        match self {
            Self::Cpu => Box::new(Cpu::new()),
            Self::Reference => Box::new(Reference::new()),
        }
    }
}

/// A decoder language model with its parameters.
///
/// Training, evaluation, prefill and decoding are programs over the same parameters, made once for each
/// shape and kept.
pub struct Model {
    decoder: Decoder,
    device: Device,
    executor: Box<dyn Executor>,
    losses: HashMap<(usize, usize, u64), LossProgram>,
    hidden: HashMap<(usize, usize, bool), (Program, ValueId)>,
    taps: HashMap<(usize, usize), TapProgram>,
}

/// Losses of a batch, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchLosses {
    /// Training objective: the cross-entropy, the z-loss, and the weighted losses of routers.
    pub objective: f64,
    /// The cross-entropy.
    pub cross_entropy: f64,
}

struct LossProgram {
    program: Program,
    objective: ValueId,
    cross_entropy: ValueId,
}

impl Model {
    /// Makes a model with initial values drawn by (seed, parameter name).
    ///
    /// # Errors
    /// If the configuration is not valid, see [`ModelConfig::resolve`], or the parameters do not fit into
    /// memory.
    pub fn new(config: &ModelConfig, seed: u64, device: Device) -> Result<Self> {
        let mut model = Self::uninitialized(config, device)?;
        for spec in model.decoder.registry().iter() {
            let executor = &mut model.executor;
            spec.initialize(seed, |at, values| {
                executor.write(PARAMETERS, spec.offset + at, Data::F32(values));
            });
        }
        model.restore_unit_weights();
        Ok(model)
    }

    /// Makes a model whose parameters are zero, for values that come from elsewhere.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn uninitialized(config: &ModelConfig, device: Device) -> Result<Self> {
        let decoder = Decoder::new(config)?;
        let elements = decoder.registry().elements();
        memory::require(4 * elements as u64, "the model's weights")?;
        let mut executor = device.executor();
        let buffer = executor.allocate(DType::F32, elements);
        assert_eq!(buffer, PARAMETERS, "the first buffer holds the parameters");
        Ok(Self {
            decoder,
            device,
            executor,
            losses: HashMap::new(),
            hidden: HashMap::new(),
            taps: HashMap::new(),
        })
    }

    /// The model for sequences up to another length, on which no parameter depends.
    ///
    /// # Errors
    /// If the length is not valid.
    pub fn with_max_seq_len(mut self, max_seq_len: usize) -> Result<Self> {
        let config = ModelConfig {
            max_seq_len,
            ..self.config().clone()
        };
        self.decoder = Decoder::new(&config)?;
        // Programs of the decoder before hold its length.
        self.losses.clear();
        self.hidden.clear();
        self.taps.clear();
        Ok(self)
    }

    /// The configuration that it was made from.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// The decoder: layers and their parameters' names.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The executor, to read parameters.
    pub fn executor_ref(&self) -> &dyn Executor {
        &*self.executor
    }

    /// The executor, which holds the parameters.
    pub fn executor(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// All parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &ParamSpec> {
        self.decoder.registry().iter()
    }

    /// Copies a parameter to the host.
    pub fn read(&self, spec: &ParamSpec) -> Vec<f32> {
        self.executor.read(PARAMETERS, spec.range()).into_f32()
    }

    /// Replaces the elements of a parameter.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn write(&mut self, spec: &ParamSpec, values: &[f32]) {
        assert_eq!(values.len(), spec.elements(), "{}: elements", spec.name);
        self.executor
            .write(PARAMETERS, spec.offset, Data::F32(values));
    }

    /// Copies every parameter to the host.
    pub fn values(&self) -> BTreeMap<String, Values> {
        let value = |spec: &ParamSpec| Values {
            shape: spec.shape.clone(),
            data: self.read(spec),
        };
        self.parameters()
            .map(|spec| (spec.name.clone(), value(spec)))
            .collect()
    }

    /// Replaces every parameter's values; `values` must hold all of them in the right shape.
    ///
    /// # Errors
    /// [`Error::Config`] naming the parameter that is missing, unknown or of another shape.
    pub fn load(&mut self, mut values: BTreeMap<String, Values>) -> Result<()> {
        for spec in self.decoder.registry().iter() {
            let found = values
                .remove(&spec.name)
                .ok_or_else(|| Error::config(format!("parameter {} is missing", spec.name)))?;
            if found.shape != spec.shape {
                return Err(Error::config(format!(
                    "parameter {} has shape {:?}, expected {:?}",
                    spec.name, found.shape, spec.shape
                )));
            }
            self.executor
                .write(PARAMETERS, spec.offset, Data::F32(&found.data));
        }
        match values.into_keys().next() {
            Some(name) => Err(Error::config(format!(
                "parameter {name} is not one of this model's"
            ))),
            None => Ok(()),
        }
    }

    /// Replaces the values of those parameters that `values` holds in the right shape; gives the names of
    /// the others.
    pub fn load_shared(&mut self, mut values: BTreeMap<String, Values>) -> Vec<String> {
        let mut others = Vec::new();
        for spec in self.decoder.registry().by_name() {
            match values
                .remove(&spec.name)
                .filter(|found| found.shape == spec.shape)
            {
                Some(found) => {
                    self.executor
                        .write(PARAMETERS, spec.offset, Data::F32(&found.data));
                }
                None => others.push(spec.name.clone()),
            }
        }
        others
    }

    /// The name of a parameter that is not finite, if there is one.
    pub fn broken(&self) -> Option<String> {
        let is_broken = |spec: &&&ParamSpec| !self.read(spec).iter().all(|x| x.is_finite());
        let by_name = self.decoder.registry().by_name();
        by_name.iter().find(is_broken).map(|spec| spec.name.clone())
    }

    /// Brings matrices back to vectors of length 1 along the width, where the placement keeps them there.
    pub fn restore_unit_weights(&mut self) {
        if !self.decoder.has_unit_weights() {
            return;
        }
        let g = Builder::new();
        self.decoder.unit_weights(&g);
        let program = Program::new(g.finish(), &[], Options::default());
        self.executor.run(&program, Arguments::default(), &[]);
    }

    /// Checks token ids.
    ///
    /// # Errors
    /// If an id is outside the vocabulary or the length is not `batch · seq`.
    pub fn check_ids(&self, ids: &[i32], batch: usize, seq: usize) -> Result<()> {
        let v = self.config().vocab_size;
        if ids.len() != batch * seq {
            return Err(Error::config(format!(
                "{} token ids given, expected {batch} × {seq}",
                ids.len()
            )));
        }
        match ids.iter().position(|&id| id < 0 || id as usize >= v) {
            Some(at) => Err(Error::config(format!(
                "token id {} at position {at} is outside the vocabulary of {v}",
                ids[at]
            ))),
            None => Ok(()),
        }
    }

    /// The residual stream after the final norm, (b, t, d), of ids (b, t): what the head reads.
    ///
    /// # Errors
    /// As [`Model::check_ids`].
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn hidden(&mut self, ids: &[i32], batch: usize, seq: usize) -> Result<Vec<f32>> {
        self.run_forward(ids, batch, seq, false)
            .map(crate::exec::Tensor::into_f32)
    }

    /// Logits (b, t, v) of ids (b, t).
    ///
    /// # Errors
    /// As [`Model::check_ids`].
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn logits(&mut self, ids: &[i32], batch: usize, seq: usize) -> Result<Vec<f32>> {
        self.run_forward(ids, batch, seq, true)
            .map(crate::exec::Tensor::into_f32)
    }

    /// [`Model::hidden`] in double precision, as the reference executor has it.
    ///
    /// # Errors
    /// As [`Model::check_ids`].
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn hidden_f64(&mut self, ids: &[i32], batch: usize, seq: usize) -> Result<Vec<f64>> {
        self.run_forward(ids, batch, seq, false)
            .map(crate::exec::Tensor::into_f64)
    }

    /// [`Model::logits`] in double precision, as the reference executor has them.
    ///
    /// # Errors
    /// As [`Model::check_ids`].
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn logits_f64(&mut self, ids: &[i32], batch: usize, seq: usize) -> Result<Vec<f64>> {
        self.run_forward(ids, batch, seq, true)
            .map(crate::exec::Tensor::into_f64)
    }

    /// [`Model::hidden`] or [`Model::logits`] in the executor's own precision.
    pub(crate) fn run_forward(
        &mut self,
        ids: &[i32],
        batch: usize,
        seq: usize,
        with_head: bool,
    ) -> Result<crate::exec::Tensor> {
        self.check_ids(ids, batch, seq)?;
        let key = (batch, seq, with_head);
        let (program, output) = self.hidden.entry(key).or_insert_with(|| {
            let g = Builder::new();
            let hidden = self
                .decoder
                .forward(Decoder::tokens(&g, "ids", batch, seq), None)
                .hidden;
            let output = match with_head {
                true => self.decoder.logits(hidden),
                false => hidden,
            };
            let output = output.id();
            (
                Program::new(g.finish(), &[output], Options::default()),
                output,
            )
        });
        self.executor
            .run(program, Arguments::default(), &[("ids", Data::I32(ids))]);
        Ok(self.executor.output(program, *output))
    }

    /// The losses of a batch: sums over targets divided by `divisor`. A target of -1 is not counted.
    ///
    /// # Errors
    /// As [`Model::check_ids`].
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn losses(
        &mut self,
        inputs: &[i32],
        targets: &[i32],
        [batch, seq]: [usize; 2],
        divisor: f64,
    ) -> Result<BatchLosses> {
        self.check_ids(inputs, batch, seq)?;
        let key = (batch, seq, divisor.to_bits());
        let found = self.losses.entry(key).or_insert_with(|| {
            let g = Builder::new();
            let ids = Decoder::tokens(&g, "ids", batch, seq);
            let targets = Decoder::tokens(&g, "targets", batch, seq);
            let losses = self.decoder.losses(ids, targets, divisor);
            let (objective, cross_entropy) = (losses.objective.id(), losses.cross_entropy.id());
            let outputs = [objective, cross_entropy];
            LossProgram {
                program: Program::new(g.finish(), &outputs, Options::default()),
                objective,
                cross_entropy,
            }
        });
        let given = [("ids", Data::I32(inputs)), ("targets", Data::I32(targets))];
        self.executor
            .run(&found.program, Arguments::default(), &given);
        let one = |id| self.executor.output(&found.program, id).into_f64()[0];
        Ok(BatchLosses {
            objective: one(found.objective),
            cross_entropy: one(found.cross_entropy),
        })
    }

    /// The activations of every block for these ids.
    ///
    /// # Errors
    /// As [`Model::check_ids`].
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn activations(
        &mut self,
        ids: &[i32],
        batch: usize,
        seq: usize,
    ) -> Result<Vec<Activations>> {
        self.check_ids(ids, batch, seq)?;
        let taps = self.taps.entry((batch, seq));
        let taps = taps.or_insert_with(|| TapProgram::new(&self.decoder, batch, seq));
        Ok(taps.run(&mut *self.executor, ids))
    }

    /// An empty cache for `batch` sequences of up to `capacity` positions.
    pub fn new_cache(&mut self, batch: usize, capacity: usize) -> KvCache {
        let config = self.decoder.config();
        let elements = batch * capacity * config.cache_width();
        let buffers = (0..config.n_layers).map(|_| self.executor.allocate(DType::F32, elements));
        KvCache::new(buffers.collect(), batch, capacity)
    }

    /// Gives the memory of a cache back.
    pub fn free_cache(&mut self, cache: KvCache) {
        for buffer in cache.buffers() {
            self.executor.free(*buffer);
        }
    }

    /// Logits of new positions, `ids` (b, t), behind those in the cache, which grows by them: of the last
    /// position of each sequence (b, v), or with `all` of every one (b, t, v).
    ///
    /// # Errors
    /// As [`Model::check_ids`].
    ///
    /// # Panics
    /// If the cache is full, or the sequence longer than `max_seq_len`.
    pub fn next_logits(&mut self, ids: &[i32], cache: &mut KvCache, all: bool) -> Result<Vec<f32>> {
        let batch = cache.batch();
        let seq = ids.len() / batch;
        self.check_ids(ids, batch, seq)?;
        let past = cache.len();
        assert!(past + seq <= cache.capacity(), "the cache is full");
        let longest = self.config().max_seq_len;
        assert!(
            past + seq <= longest,
            "{} positions, but max_seq_len is {longest}",
            past + seq
        );
        let decoder = &self.decoder;
        let (program, output) = cache.program(seq, all, |caches: Caches<'_>| {
            let g = Builder::new();
            let ids = Decoder::tokens(&g, "ids", batch, seq);
            let hidden = decoder.forward(ids, Some(caches)).hidden;
            let hidden = if all {
                hidden
            } else {
                ops::last_position(hidden)
            };
            let logits = decoder.logits(hidden).id();
            (
                Program::new(g.finish(), &[logits], Options::default()),
                logits,
            )
        });
        let arguments = Arguments {
            past,
            ..Arguments::default()
        };
        self.executor
            .run(program, arguments, &[("ids", Data::I32(ids))]);
        let logits = self.executor.output(program, *output).into_f32();
        cache.advance(seq);
        Ok(logits)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("config", self.config())
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Decoder {
    /// Ids or targets (b, t) as an input of a graph.
    pub(crate) fn tokens<'g>(
        g: &'g Builder,
        name: &str,
        batch: usize,
        seq: usize,
    ) -> crate::graph::Value<'g> {
        g.input(name, Type::i32([batch, seq]))
    }

    /// Records the update that brings matrices back to vectors of length 1 along the width (nGPT, arXiv
    /// 2410.01131): columns of what writes the residual stream, rows of everything else.
    pub(crate) fn unit_weights(&self, g: &Builder) {
        if !self.has_unit_weights() {
            return;
        }
        for spec in self.registry().iter() {
            let &[rows, columns] = &spec.shape[..] else {
                continue;
            };
            let weight = g.state(PARAMETERS, spec.offset, Type::f32([rows, columns]));
            match spec.writes_residual {
                true => ops::unit_columns(weight, columns, spec.matrices.clone()),
                false => ops::unit_rows(weight, columns),
            }
        }
    }
}

impl Model {
    /// Moves the selection biases of mixtures by one step against the load of a batch, one entry for each
    /// mixture: up where an expert got fewer tokens than the mean, down where it got more.
    pub fn rebalance(&mut self, routing: &[crate::model::Routing]) {
        let Some(rate) = self.config().moe.as_ref().and_then(|moe| moe.bias_rate) else {
            return;
        };
        let biases = self
            .decoder
            .blocks
            .iter()
            .filter_map(|block| match &block.feed_forward {
                super::FeedForward::Mixture(mixture) => mixture.selection_bias,
                super::FeedForward::Dense(_) => None,
            });
        let biases: Vec<ParamSpec> = biases
            .map(|bias| self.decoder.registry().spec(bias).clone())
            .collect();
        for (spec, routing) in biases.iter().zip(routing) {
            let (experts, total) = (routing.load.len() as u64, routing.load.iter().sum::<u64>());
            let mut values = self.read(spec);
            for (value, &tokens) in values.iter_mut().zip(&routing.load) {
                *value += match (tokens * experts).cmp(&total) {
                    std::cmp::Ordering::Less => rate as f32,
                    std::cmp::Ordering::Equal => 0.0,
                    std::cmp::Ordering::Greater => -rate as f32,
                };
            }
            self.write(spec, &values);
        }
    }
}
