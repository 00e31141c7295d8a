//! A decoder with its parameters on an executor.

use std::collections::BTreeMap;

use super::cache::KvCache;
use super::config::ModelConfig;
use super::decoder::{Decoder, KvCaches};
use super::device::Device;
use super::losses::LossPrograms;
use super::lru_cache::LruCache;
use super::registry::{PARAMETERS, ParamSpec};
use super::taps::{BlockActivationStats, TapProgram};
use crate::error::{Error, Result};
use crate::exec::{Executor, Tensor, TensorRef};
use crate::graph::{Builder, DType, ValueId};
use crate::memory;
use crate::ops::{self, Arguments};
use crate::plan::{Options, Precision, Program};
use crate::tensors::{self, HostTensor};

/// A decoder language model with its parameters.
///
/// Training, evaluation, prefill and decoding are programs over the same parameters. Programs of the most
/// recently used shapes are cached.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::model::Model;
///
/// # let config = hybridnorm::model::ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(4)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(40)
/// #     .with_vocab_size(50)
/// #     .with_max_seq_len(32)
/// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
/// let mut model = Model::new(&config, 42, Device::Cpu)?;
/// let logits = model.logits(&[1, 2, 3, 4], 1, 4)?.into_f32();
/// assert_eq!(logits.len(), 4 * config.vocab_size);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub struct Model {
    pub(super) decoder: Decoder,
    device: Device,
    pub(super) executor: Box<dyn Executor>,
    pub(super) losses: LossPrograms,
    pub(super) forward: LruCache<(usize, usize, Output), (Program, ValueId)>,
    pub(super) taps: LruCache<(usize, usize), TapProgram>,
    pub(super) head: LruCache<(), (Program, ValueId)>,
}

/// Output of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Hidden,
    Logits,
}

/// Losses of a batch, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct BatchLosses {
    /// Training objective: the cross-entropy, the z-loss, and the weighted router losses.
    pub objective: f64,
    /// The cross-entropy.
    pub cross_entropy: f64,
}

impl Model {
    /// Creates a model with initial values drawn from generators keyed by (seed, parameter name).
    ///
    /// # Errors
    /// If the configuration is not valid, see [`ModelConfig::resolve`], or the parameters do not fit into
    /// memory.
    pub fn new(config: &ModelConfig, seed: u64, device: Device) -> Result<Self> {
        let mut model = Self::uninitialized(config, device)?;
        for spec in model.decoder.registry().iter() {
            let executor = &mut model.executor;
            spec.initialize(seed, |at, values| {
                executor.write(PARAMETERS, spec.offset + at, TensorRef::F32(values));
            });
        }
        model.normalize_unit_weights()?;
        Ok(model)
    }

    /// Creates a model with zero parameters, whose values are loaded later.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn uninitialized(config: &ModelConfig, device: Device) -> Result<Self> {
        let mut decoder = Decoder::new(config)?;
        decoder.set_plan_options(Options::default().with_target(device.target()));
        let elements = decoder.registry().elements();
        memory::check_available(4 * elements as u64, "the model's weights")?;
        let mut executor = device.executor()?;
        let buffer = executor.allocate(DType::F32, elements)?;
        assert_eq!(buffer, PARAMETERS, "the first buffer holds the parameters");
        Ok(Self {
            decoder,
            device,
            executor,
            losses: LossPrograms::default(),
            forward: LruCache::default(),
            taps: LruCache::default(),
            head: LruCache::default(),
        })
    }

    /// Returns the model with a different maximum sequence length, on which no parameter depends.
    ///
    /// # Errors
    /// If the length is not valid.
    pub fn with_max_seq_len(mut self, max_seq_len: usize) -> Result<Self> {
        let config = ModelConfig {
            max_seq_len,
            ..self.config().clone()
        };
        let mut decoder = Decoder::new(&config)?;
        decoder.set_plan_options(self.decoder.plan_options());
        self.decoder = decoder;
        self.forget_programs();
        Ok(self)
    }

    /// Returns the precision of evaluation and generation.
    pub fn precision(&self) -> Precision {
        self.decoder.plan_options().precision
    }

    /// Sets the options of programs of evaluation and generation planned from now on; those of a training step are in its
    /// [`StepShape`](crate::train::StepShape).
    ///
    /// ```
    /// use hybridnorm::Device;
    /// use hybridnorm::graph::DType;
    /// use hybridnorm::model::Model;
    /// use hybridnorm::plan::{Options, Precision};
    ///
    /// # let config = hybridnorm::model::ModelConfig::default()
    /// #     .with_d_model(16)
    /// #     .with_n_layers(2)
    /// #     .with_n_heads(4)
    /// #     .with_n_kv_heads(2)
    /// #     .with_d_ff(40)
    /// #     .with_vocab_size(50)
    /// #     .with_max_seq_len(32)
    /// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
    /// let mut model = Model::new(&config, 42, Device::Cpu)?;
    /// let bf16 = Options::default().with_precision(Precision::Bf16 { residual: DType::F32 });
    /// model.set_plan_options(bf16)?;
    /// let rounded_when_used = model.logits(&[1, 2, 3, 4], 1, 4)?;
    /// model.set_plan_options(bf16.with_keep_rounded_weights(true))?;
    /// assert_eq!(model.logits(&[1, 2, 3, 4], 1, 4)?.into_f32(), rounded_when_used.into_f32());
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the precision of the residual stream has no effect on this model.
    pub fn set_plan_options(&mut self, options: Options) -> Result<()> {
        self.decoder.check_residual(options.precision)?;
        self.decoder
            .set_plan_options(options.with_target(self.device.target()));
        self.forget_programs();
        Ok(())
    }

    /// Returns an upper bound on the bytes of the parameters and of the copy that the executor keeps with
    /// [`Options::keep_rounded_weights`].
    pub fn weight_bytes(&self) -> u64 {
        let options = self.decoder.plan_options();
        let is_copied = options.keep_rounded_weights && options.precision != Precision::F32;
        let per_element = DType::F32.bytes() + if is_copied { DType::Bf16.bytes() } else { 0 };
        (per_element * self.decoder.registry().elements()) as u64
    }

    /// Drops existing programs, which depend on the maximum sequence length and the options of programs.
    fn forget_programs(&mut self) {
        self.losses = LossPrograms::default();
        self.forward = LruCache::default();
        self.taps = LruCache::default();
        self.head = LruCache::default();
    }

    /// Returns the model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// Returns the decoder: layers and their parameters' names.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Returns the kind of executor.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Returns the executor, which holds the parameters in the buffer [`PARAMETERS`].
    pub fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    /// Returns the executor, to run programs and change buffers.
    pub fn executor_mut(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// Returns all parameters.
    ///
    /// ```
    /// use hybridnorm::Device;
    /// use hybridnorm::model::{Model, Role};
    ///
    /// # let config = hybridnorm::model::ModelConfig::default()
    /// #     .with_d_model(16)
    /// #     .with_n_layers(2)
    /// #     .with_n_heads(4)
    /// #     .with_n_kv_heads(2)
    /// #     .with_d_ff(40)
    /// #     .with_vocab_size(50)
    /// #     .with_max_seq_len(32)
    /// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
    /// let model = Model::new(&config, 42, Device::Cpu)?;
    /// let attention = model.parameters().filter(|spec| spec.role == Role::Attention);
    /// let elements: usize = attention.map(|spec| spec.elements()).sum();
    /// assert_eq!(elements, 2 * (32 + 16) * 16);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
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
    /// If the number of values differs.
    pub fn write(&mut self, spec: &ParamSpec, values: &[f32]) {
        assert_eq!(values.len(), spec.elements(), "{}: elements", spec.name);
        self.executor
            .write(PARAMETERS, spec.offset, TensorRef::F32(values));
    }

    /// Copies every parameter to the host.
    pub fn values(&self) -> BTreeMap<String, HostTensor> {
        let value = |spec: &ParamSpec| HostTensor {
            shape: spec.shape.clone(),
            data: self.read(spec),
        };
        self.parameters()
            .map(|spec| (spec.name.clone(), value(spec)))
            .collect()
    }

    /// Returns the name of the first parameter with a NaN or infinite element, if any.
    pub fn first_non_finite(&self) -> Option<String> {
        let mut parameters = tensors::parameters(self).into_iter();
        let broken = parameters.find(|(_, values)| !values.is_finite(self.executor()));
        broken.map(|(name, _)| name)
    }

    /// Checks the inputs (b, t) of a forward pass.
    ///
    /// # Errors
    /// As [`Model::check_ids`]; [`Error::OutOfRange`] if a sequence is longer than `max_seq_len`.
    pub fn check_batch(&self, ids: &[i32], batch: usize, seq: usize) -> Result<()> {
        self.check_ids(ids, batch, seq)?;
        self.check_length(seq)
    }

    fn check_length(&self, seq: usize) -> Result<()> {
        let longest = self.config().max_seq_len;
        match seq <= longest {
            true => Ok(()),
            false => Err(Error::out_of_range(
                "sequence length",
                seq,
                format!("at most max_seq_len = {longest}"),
            )),
        }
    }

    /// Checks token ids (b, t).
    ///
    /// # Errors
    /// [`Error::InvalidValue`] if an id is outside the vocabulary, there is none, or their number is not
    /// `batch · seq`.
    pub fn check_ids(&self, ids: &[i32], batch: usize, seq: usize) -> Result<()> {
        self.check_range(0, ids, batch, seq)
    }

    /// Checks targets (b, t): token ids, or -1 for an ignored position.
    ///
    /// # Errors
    /// As [`Model::check_ids`].
    pub fn check_targets(&self, targets: &[i32], batch: usize, seq: usize) -> Result<()> {
        self.check_range(-1, targets, batch, seq)
    }

    fn check_range(&self, least: i32, ids: &[i32], batch: usize, seq: usize) -> Result<()> {
        let v = self.config().vocab_size;
        if ids.is_empty() {
            return Err(Error::invalid_value("ids", "there are no token ids"));
        }
        if ids.len() != batch * seq {
            let found = format!("{} token ids, expected {batch} × {seq}", ids.len());
            return Err(Error::invalid_value("ids", found));
        }
        let is_outside = |&id: &i32| id < least || id >= v as i32;
        match ids.iter().position(is_outside) {
            Some(at) => Err(Error::invalid_value(
                "ids",
                format!(
                    "token id {} at position {at} is outside the vocabulary of {v}",
                    ids[at]
                ),
            )),
            None => Ok(()),
        }
    }

    /// Computes the hidden states after the final norm, (b, t, d), for ids (b, t): the input of the output head.
    ///
    /// # Errors
    /// As [`Model::check_batch`], or if there is not enough memory.
    pub fn hidden(&mut self, ids: &[i32], batch: usize, seq: usize) -> Result<Tensor> {
        self.run_forward(ids, [batch, seq], Output::Hidden)
    }

    /// Computes the logits (b, t, v) for ids (b, t).
    ///
    /// # Errors
    /// As [`Model::check_batch`], or if there is not enough memory.
    pub fn logits(&mut self, ids: &[i32], batch: usize, seq: usize) -> Result<Tensor> {
        self.run_forward(ids, [batch, seq], Output::Logits)
    }

    fn run_forward(&mut self, ids: &[i32], [batch, seq]: [usize; 2], of: Output) -> Result<Tensor> {
        self.check_batch(ids, batch, seq)?;
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
                Program::new(g.finish(), &[output], self.decoder.plan_options()),
                output,
            )
        });
        self.executor.run(
            program,
            Arguments::default(),
            &[("ids", TensorRef::I32(ids))],
        )?;
        Ok(self.executor.output(program, *output))
    }

    /// Computes the losses of a batch: sums over targets divided by `divisor`. Targets of -1 are ignored.
    ///
    /// # Errors
    /// As [`Model::check_batch`] and [`Model::check_targets`], or if there is not enough memory.
    pub fn losses(
        &mut self,
        inputs: &[i32],
        targets: &[i32],
        [batch, seq]: [usize; 2],
        divisor: f64,
    ) -> Result<BatchLosses> {
        self.check_batch(inputs, batch, seq)?;
        self.check_targets(targets, batch, seq)?;
        let program = self
            .losses
            .get_or_plan(&self.decoder, [batch, seq], divisor);
        program.run(&mut *self.executor, inputs, targets)
    }

    /// Allocates the memory for [`Model::losses`] of batches (b, t), so that later calls do not fail for lack of it.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn prepare_losses(&mut self, [batch, seq]: [usize; 2]) -> Result<()> {
        let divisor = (batch * seq) as f64;
        let program = self
            .losses
            .get_or_plan(&self.decoder, [batch, seq], divisor);
        self.executor.prepare(program.program())
    }

    /// Computes activation statistics of every block for these ids.
    ///
    /// # Errors
    /// As [`Model::check_batch`], or if there is not enough memory.
    pub fn activation_stats(
        &mut self,
        ids: &[i32],
        batch: usize,
        seq: usize,
    ) -> Result<Vec<BlockActivationStats>> {
        self.check_batch(ids, batch, seq)?;
        let make = || TapProgram::new(&self.decoder, batch, seq);
        let taps = self.taps.get_or_insert_with((batch, seq), make);
        taps.run(&mut *self.executor, ids)
    }

    /// Allocates an empty cache for `batch` sequences of up to `capacity` positions.
    ///
    /// # Errors
    /// If `batch` is 0, or the cache does not fit into memory.
    pub fn new_cache(&mut self, batch: usize, capacity: usize) -> Result<KvCache> {
        if batch == 0 {
            return Err(Error::out_of_range("batch", 0, "at least 1"));
        }
        let config = self.decoder.config();
        let width = config.cache_width();
        let elements = batch.saturating_mul(capacity).saturating_mul(width);
        let bytes = elements.saturating_mul(4 * config.n_layers);
        memory::check_available(
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

    /// Frees the memory of a cache.
    pub fn free_cache(&mut self, cache: KvCache) {
        for buffer in cache.buffers() {
            self.executor.free(*buffer);
        }
    }

    /// Runs new positions, `ids` (b, t), that follow those in the cache, and appends them to it. Returns the logits of
    /// the last position of each sequence (b, v), or of every position (b, t, v) with `all_positions`.
    ///
    /// # Errors
    /// As [`Model::check_batch`], if the positions exceed those of the cache, or there is not enough memory.
    ///
    /// ```
    /// use hybridnorm::Device;
    /// use hybridnorm::model::Model;
    ///
    /// # let config = hybridnorm::model::ModelConfig::default()
    /// #     .with_d_model(16)
    /// #     .with_n_layers(2)
    /// #     .with_n_heads(4)
    /// #     .with_n_kv_heads(2)
    /// #     .with_d_ff(40)
    /// #     .with_vocab_size(50)
    /// #     .with_max_seq_len(32)
    /// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
    /// let mut model = Model::new(&config, 42, Device::Cpu)?;
    /// let mut cache = model.new_cache(1, 8)?;
    /// let mut logits = model.next_logits(&[1, 2, 3], &mut cache, false)?;
    /// for _ in 0..2 {
    ///     let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    ///     logits = model.next_logits(&[best.unwrap() as i32], &mut cache, false)?;
    /// }
    /// assert_eq!(cache.len(), 5);
    /// model.free_cache(cache);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn next_logits(
        &mut self,
        ids: &[i32],
        cache: &mut KvCache,
        all_positions: bool,
    ) -> Result<Vec<f32>> {
        let batch = cache.batch();
        let seq = ids.len() / batch;
        self.check_ids(ids, batch, seq)?;
        let past = cache.len();
        let positions = past + seq;
        self.check_length(positions)?;
        if positions > cache.capacity() {
            let expected = format!("at most {}, the capacity of the cache", cache.capacity());
            return Err(Error::out_of_range("positions", positions, expected));
        }
        let decoder = &self.decoder;
        let (program, output) = cache.program(seq, all_positions, |caches: KvCaches<'_>| {
            let g = Builder::new();
            let ids = Decoder::tokens(&g, "ids", batch, seq);
            let hidden = decoder.forward(ids, Some(caches)).hidden;
            let hidden = if all_positions {
                hidden
            } else {
                ops::last_position(hidden)
            };
            let logits = decoder.logits(hidden).id();
            (
                Program::new(g.finish(), &[logits], decoder.plan_options()),
                logits,
            )
        });
        let arguments = Arguments {
            past,
            ..Arguments::default()
        };
        self.executor
            .run(program, arguments, &[("ids", TensorRef::I32(ids))])?;
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
