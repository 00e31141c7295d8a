//! A decoder with its parameters on an executor.

use std::collections::BTreeMap;

use super::cache::KvCache;
use super::config::ModelConfig;
use super::decoder::{Caches, Decoder};
use super::losses::LossPrograms;
use super::recent::Recent;
use super::registry::{PARAMETERS, ParamSpec};
use super::taps::{Activations, TapProgram};
use crate::error::{Error, Result};
use crate::exec::{Cpu, Data, Executor, Reference, Tensor};
use crate::graph::{Builder, DType, ValueId};
use crate::memory;
use crate::ops::{self, Arguments};
use crate::plan::{Options, Program};
use crate::tensors::{self, TensorFile, Values};

/// The executor that a model's programs run on, and its precision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    /// CPU kernels in single precision.
    #[default]
    Cpu,
    /// Plain loops in double precision: slow, the reference that kernels are tested against.
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
/// Training, evaluation, prefill and decoding are programs over the same parameters. Those of the shapes
/// used last are kept, so that a shape that occurs again is not planned again.
pub struct Model {
    decoder: Decoder,
    device: Device,
    executor: Box<dyn Executor>,
    pub(super) losses: LossPrograms,
    pub(super) forward: Recent<(usize, usize, Output), (Program, ValueId)>,
    pub(super) taps: Recent<(usize, usize), TapProgram>,
}

/// The output of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Hidden,
    Logits,
}

/// Losses of a batch, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchLosses {
    /// Training objective: the cross-entropy, the z-loss, and the weighted losses of routers.
    pub objective: f64,
    /// The cross-entropy.
    pub cross_entropy: f64,
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
        model.restore_unit_weights()?;
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
        let buffer = executor.allocate(DType::F32, elements)?;
        assert_eq!(buffer, PARAMETERS, "the first buffer holds the parameters");
        Ok(Self {
            decoder,
            device,
            executor,
            losses: LossPrograms::default(),
            forward: Recent::default(),
            taps: Recent::default(),
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
        // The programs so far hold the length before.
        self.losses = LossPrograms::default();
        self.forward = Recent::default();
        self.taps = Recent::default();
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

    /// The kind of its executor.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The executor, which holds the parameters in the buffer [`PARAMETERS`].
    pub fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    /// The executor, to run programs and to change its buffers.
    pub fn executor_mut(&mut self) -> &mut dyn Executor {
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
    pub fn load(&mut self, values: BTreeMap<String, Values>) -> Result<()> {
        let shapes = values
            .iter()
            .map(|(name, values)| (name.as_str(), values.shape.as_slice()));
        self.check_shapes(shapes.collect())?;
        for (name, handle) in tensors::parameters(self) {
            handle.write(&mut *self.executor, &values[&name].data);
        }
        Ok(())
    }

    /// As [`Model::load`], from a file, of which no tensor is held in memory as a whole.
    ///
    /// # Errors
    /// As [`Model::load`], or if the file cannot be read.
    pub fn load_file(&mut self, file: &TensorFile) -> Result<()> {
        let shapes = file.names().map(|name| (name, file.shape(name).unwrap()));
        self.check_shapes(shapes.collect())?;
        for (name, handle) in tensors::parameters(self) {
            handle.load(&mut *self.executor, file, &name)?;
        }
        Ok(())
    }

    /// Checks that these are the parameters, in their shapes.
    fn check_shapes(&self, mut shapes: BTreeMap<&str, &[usize]>) -> Result<()> {
        for spec in self.decoder.registry().iter() {
            match shapes.remove(spec.name.as_str()) {
                Some(shape) if shape == spec.shape => {}
                Some(shape) => {
                    return Err(Error::config(format!(
                        "parameter {} has shape {shape:?}, expected {:?}",
                        spec.name, spec.shape
                    )));
                }
                None => {
                    return Err(Error::config(format!("parameter {} is missing", spec.name)));
                }
            }
        }
        match shapes.keys().next() {
            Some(name) => Err(Error::config(format!(
                "parameter {name} is not one of this model's"
            ))),
            None => Ok(()),
        }
    }

    /// Replaces the values of those parameters that `file` has in the right shape and that `is_wanted`; returns the
    /// names of the others.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load_shared(
        &mut self,
        file: &TensorFile,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>> {
        let mut others = Vec::new();
        for (name, handle) in tensors::parameters(self) {
            match file.shape(&name) == Some(handle.shape()) && is_wanted(&name) {
                true => handle.load(&mut *self.executor, file, &name)?,
                false => others.push(name),
            }
        }
        Ok(others)
    }

    /// The name of a parameter that is not finite, if there is one.
    pub fn broken(&self) -> Option<String> {
        let mut parameters = tensors::parameters(self).into_iter();
        let broken = parameters.find(|(_, values)| !values.is_finite(self.executor()));
        broken.map(|(name, _)| name)
    }

    /// Checks token ids (b, t).
    ///
    /// # Errors
    /// If an id is outside the vocabulary or there are not `batch · seq`.
    pub fn check_ids(&self, ids: &[i32], batch: usize, seq: usize) -> Result<()> {
        self.check_range(0, ids, batch, seq)
    }

    /// Checks targets (b, t): token ids, or -1 for a position whose loss is not counted.
    ///
    /// # Errors
    /// As [`Model::check_ids`].
    pub fn check_targets(&self, targets: &[i32], batch: usize, seq: usize) -> Result<()> {
        self.check_range(-1, targets, batch, seq)
    }

    fn check_range(&self, least: i32, ids: &[i32], batch: usize, seq: usize) -> Result<()> {
        let v = self.config().vocab_size;
        if ids.len() != batch * seq {
            return Err(Error::config(format!(
                "{} token ids given, expected {batch} × {seq}",
                ids.len()
            )));
        }
        let is_outside = |&id: &i32| id < least || id >= v as i32;
        match ids.iter().position(is_outside) {
            Some(at) => Err(Error::config(format!(
                "token id {} at position {at} is outside the vocabulary of {v}",
                ids[at]
            ))),
            None => Ok(()),
        }
    }

    /// The residual stream after the final norm, (b, t, d), of ids (b, t): the input of the head.
    ///
    /// # Errors
    /// As [`Model::check_ids`], or if there is not enough memory.
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn hidden(&mut self, ids: &[i32], batch: usize, seq: usize) -> Result<Tensor> {
        self.run_forward(ids, [batch, seq], Output::Hidden)
    }

    /// Logits (b, t, v) of ids (b, t).
    ///
    /// # Errors
    /// As [`Model::check_ids`], or if there is not enough memory.
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn logits(&mut self, ids: &[i32], batch: usize, seq: usize) -> Result<Tensor> {
        self.run_forward(ids, [batch, seq], Output::Logits)
    }

    fn run_forward(&mut self, ids: &[i32], [batch, seq]: [usize; 2], of: Output) -> Result<Tensor> {
        self.check_ids(ids, batch, seq)?;
        let (program, output) = self.forward.get_or_insert_with((batch, seq, of), || {
            let g = Builder::new();
            let ids = Decoder::tokens(&g, "ids", batch, seq);
            let hidden = self.decoder.forward(ids, None).hidden;
            let output = match of {
                Output::Hidden => hidden,
                Output::Logits => self.decoder.logits(hidden),
            };
            let output = output.id();
            (
                Program::new(g.finish(), &[output], Options::default()),
                output,
            )
        });
        self.executor
            .run(program, Arguments::default(), &[("ids", Data::I32(ids))])?;
        Ok(self.executor.output(program, *output))
    }

    /// The losses of a batch: sums over targets divided by `divisor`. A target of -1 is not counted.
    ///
    /// # Errors
    /// As [`Model::check_ids`] and [`Model::check_targets`], or if there is not enough memory.
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
        self.check_targets(targets, batch, seq)?;
        let program = self.losses.of(&self.decoder, [batch, seq], divisor);
        program.run(&mut *self.executor, inputs, targets)
    }

    /// Takes the memory that [`Model::losses`] of batches (b, t) needs, so that none is refused later.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn prepare_losses(&mut self, [batch, seq]: [usize; 2]) -> Result<()> {
        let divisor = (batch * seq) as f64;
        let program = self.losses.of(&self.decoder, [batch, seq], divisor);
        self.executor.prepare(program.program())
    }

    /// The activations of every block for these ids.
    ///
    /// # Errors
    /// As [`Model::check_ids`], or if there is not enough memory.
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
        let make = || TapProgram::new(&self.decoder, batch, seq);
        let taps = self.taps.get_or_insert_with((batch, seq), make);
        taps.run(&mut *self.executor, ids)
    }

    /// An empty cache for `batch` sequences of up to `capacity` positions.
    ///
    /// # Errors
    /// If it does not fit into memory.
    pub fn new_cache(&mut self, batch: usize, capacity: usize) -> Result<KvCache> {
        let config = self.decoder.config();
        let width = config.cache_width();
        let elements = batch.saturating_mul(capacity).saturating_mul(width);
        let bytes = elements.saturating_mul(4 * config.n_layers);
        memory::require(
            bytes as u64,
            &format!("keys and values of up to {capacity} positions"),
        )?;
        let mut cache = KvCache::new(batch, capacity);
        for _ in 0..config.n_layers {
            match self.executor.allocate(DType::F32, elements) {
                Ok(buffer) => cache.push(buffer),
                Err(error) => {
                    self.free_cache(cache);
                    return Err(error);
                }
            }
        }
        Ok(cache)
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
    /// As [`Model::check_ids`], or if there is not enough memory.
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
            .run(program, arguments, &[("ids", Data::I32(ids))])?;
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
