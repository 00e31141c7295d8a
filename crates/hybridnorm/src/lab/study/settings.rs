//! Settings of a study: its TOML file, or the same values set in Rust.

use derive_setters::Setters;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::format_number::config_number;
use crate::lab::analysis::AnalysisRules;
use crate::placement::{Init, Placement};
use crate::train::{
    DataSection, EvalSection, LogSection, ModelSection, OptimizerConfig, ScheduleConfig,
    TrainSection,
};

/// Configuration of a study: a run configuration with a section `[study]` that defines the grid.
///
/// To plan a study of the settings of a run, use [`Study::from_config`](super::Study::from_config).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct StudyConfig {
    /// Varied settings and rules of the analysis.
    pub study: StudySettings,
    /// Model architecture, without a placement.
    pub model: ModelSection,
    /// Training and validation data.
    #[serde(default)]
    pub data: DataSection,
    /// Optimizer, without a learning rate.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Learning rate schedule.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Training length and batch size.
    #[serde(default)]
    pub train: TrainSection,
    /// Downstream tasks that each run is evaluated on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalSection>,
    /// Logging of each run.
    #[serde(default)]
    pub log: LogSection,
}

impl StudyConfig {
    /// Returns a study of a model with default training settings.
    pub fn new(study: StudySettings, model: ModelSection) -> Self {
        Self {
            study,
            model,
            data: DataSection::default(),
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
            train: TrainSection::default(),
            eval: None,
            log: LogSection::default(),
        }
    }
}

/// Section `[study]`: the grid of runs, and how they are compared.
///
/// ```
/// use hybridnorm::lab::analysis::AnalysisRules;
/// use hybridnorm::lab::study::{Halving, StudySettings};
/// use hybridnorm::placement::{Init, InitScheme, named};
///
/// let settings = StudySettings::new(["pre-norm", "hybridnorm"], [1e-3, 3e-3], [1, 2, 3])
///     .with_placement("mine", &named("olmo2")?)
///     .with_halving(Halving::new([0.25], 0.5))
///     .with_rules(AnalysisRules::default().with_margin(0.02));
/// assert_eq!(settings.placements.len(), 3);
/// let megatron = Init { scheme: InitScheme::Megatron, ..Init::default() };
/// assert_eq!(settings.with_init("megatron", megatron).inits[0]["scheme"], "megatron");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_", strip_option)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct StudySettings {
    /// Placement names, or tables of the placement algebra with a `name`.
    pub placements: Vec<Value>,
    /// Peak learning rates.
    #[setters(into)]
    pub lr: Vec<f64>,
    /// Random seeds: runs with the same seed share initial weights and batches.
    #[setters(into)]
    pub seeds: Vec<u64>,
    /// Initializations to compare: tables as in `model.init`, with a `name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inits: Vec<Map<String, Value>>,
    /// Numbers of blocks to compare at about the parameter count of `[model]`; see
    /// [`at_depth`](super::at_depth).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[setters(into)]
    pub depths: Vec<usize>,
    /// Divergence threshold, in nats: a run that completed all steps counts as diverged if its mean training loss over
    /// the last 5 % of the steps exceeds the lowest mean over any 5 % by more than this. Independently of this value, a
    /// run whose lowest mean is not at least 0.1 nats below the unigram loss counts as not learned yet.
    #[serde(default = "default_diverged_above")]
    pub diverged_above: f64,
    /// True to keep metrics and checkpoints of finished runs, in `kept/`.
    #[serde(default)]
    pub keep_runs: bool,
    /// Early elimination of poor learning rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halving: Option<Halving>,
    /// Rules of the analysis.
    #[serde(default)]
    pub rules: AnalysisRules,
}

fn default_diverged_above() -> f64 {
    0.5
}

impl StudySettings {
    /// Returns a grid of placements by name, peak learning rates and seeds, with default rules.
    pub fn new<P: Into<Value>>(
        placements: impl IntoIterator<Item = P>,
        lr: impl Into<Vec<f64>>,
        seeds: impl Into<Vec<u64>>,
    ) -> Self {
        Self {
            placements: placements.into_iter().map(Into::into).collect(),
            lr: lr.into(),
            seeds: seeds.into(),
            inits: Vec::new(),
            depths: Vec::new(),
            diverged_above: default_diverged_above(),
            keep_runs: false,
            halving: None,
            rules: AnalysisRules::default(),
        }
    }

    /// Adds a placement under a new name.
    #[must_use]
    pub fn with_placement(mut self, name: impl Into<String>, placement: &Placement) -> Self {
        let mut table = serde_json::to_value(placement).expect("a placement is plain data");
        table["name"] = Value::String(name.into());
        self.placements.push(table);
        self
    }

    /// Adds an initialization under a new name.
    #[must_use]
    pub fn with_init(mut self, name: impl Into<String>, init: Init) -> Self {
        if let Value::Object(mut table) = init.into() {
            table.insert("name".into(), Value::String(name.into()));
            self.inits.push(table);
        }
        self
    }

    /// Checks the values that do not depend on the model.
    ///
    /// # Errors
    /// If a list is empty or has duplicates, or a value is out of range.
    pub(super) fn validate(&self) -> Result<()> {
        let lists = [
            ("study.placements", self.placements.is_empty()),
            ("study.lr", self.lr.is_empty()),
            ("study.seeds", self.seeds.is_empty()),
        ];
        if let Some((key, _)) = lists.iter().find(|(_, empty)| *empty) {
            return Err(Error::invalid_value(
                *key,
                format!("{key} is empty, expected at least one entry"),
            ));
        }
        check_unique("study.lr", self.lr.iter().map(|lr| lr.to_bits()))?;
        check_unique("study.seeds", self.seeds.iter())?;
        check_unique("study.depths", self.depths.iter())?;
        if self.diverged_above.is_nan() || self.diverged_above <= 0.0 {
            return Err(Error::out_of_range(
                "study.diverged_above",
                config_number(self.diverged_above),
                "above 0",
            ));
        }
        self.rules.validate_as("study.rules.")?;
        self.halving.as_ref().map_or(Ok(()), Halving::validate)
    }
}

/// Checks that a list has no duplicates.
pub(super) fn check_unique<T: PartialEq>(key: &str, items: impl Iterator<Item = T>) -> Result<()> {
    let mut seen = Vec::new();
    for (index, item) in items.enumerate() {
        if seen.contains(&item) {
            return Err(Error::invalid_value(
                key,
                format!("{key} has a duplicate: entry {}", index + 1),
            ));
        }
        seen.push(item);
    }
    Ok(())
}

/// Successive halving (Jamieson, Talwalkar 2016, arXiv 1502.07943) over learning rates.
///
/// After each fraction of the steps in `at`, the learning rates of a placement are ranked by the mean over seeds
/// of the training loss over the last 5 % of the steps done, where the loss of a diverged run counts as infinite; the
/// best fraction `keep` of them, rounded up, continues.
///
/// ```
/// use hybridnorm::lab::study::{Halving, Study, StudySettings};
/// # use hybridnorm::train::{Config, DataSection, ModelSection, TrainSection};
///
/// # let model = ModelSection::new("hybridnorm")
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_d_ff(32);
/// # let data = DataSection::default()
/// #     .with_train(vec!["stories:20".to_owned()])
/// #     .with_tokenizer("bytes");
/// # let train = TrainSection::default()
/// #     .with_steps(4)
/// #     .with_batch_size(2)
/// #     .with_seq_len(16)
/// #     .with_eval_sequences(2);
/// # let config = Config::default()
/// #     .with_model(model)
/// #     .with_data(data)
/// #     .with_train(train);
/// // Of four learning rates, two continue after a quarter of the steps, and one after half of them.
/// let halving = Halving::new([0.25, 0.5], 0.5);
/// let lrs = [1e-3, 2e-3, 4e-3, 8e-3];
/// let grid = StudySettings::new(["pre-norm"], lrs, [1]).with_halving(halving);
/// let study = Study::from_config(&config, grid)?;
/// assert!(study.runs.iter().all(|run| run.uses_halving));
///
/// let descending = StudySettings::new(["pre-norm"], lrs, [1]).with_halving(Halving::new([0.5, 0.25], 0.5));
/// assert!(Study::from_config(&config, descending).is_err());
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Halving {
    /// Fractions of the steps, ascending, between 0 and 1.
    #[setters(into)]
    pub at: Vec<f64>,
    /// Fraction of the learning rates that continues.
    pub keep: f64,
}

impl Halving {
    /// Returns a successive halving that ranks the learning rates after the fractions `at` of the steps and keeps the
    /// best fraction `keep` of them.
    pub fn new(at: impl Into<Vec<f64>>, keep: f64) -> Self {
        Self {
            at: at.into(),
            keep,
        }
    }

    /// Returns the step after which runs of `steps` steps are ranked at `fraction`; always before the last step.
    pub(super) fn step(fraction: f64, steps: u64) -> u64 {
        ((fraction * steps as f64).ceil() as u64).clamp(1, (steps - 1).max(1))
    }

    fn validate(&self) -> Result<()> {
        let Self { at, keep } = self;
        let rising = at.windows(2).all(|pair| pair[0] < pair[1]);
        if at.is_empty() || !rising || !at.iter().all(|at| *at > 0.0 && *at < 1.0) {
            return Err(Error::out_of_range(
                "study.halving.at",
                format!("{at:?}"),
                "ascending fractions of the steps between 0 and 1",
            ));
        }
        if !(*keep > 0.0 && *keep < 1.0) {
            return Err(Error::out_of_range(
                "study.halving.keep",
                config_number(*keep),
                "between 0 and 1",
            ));
        }
        Ok(())
    }

    /// Checks that every fraction falls on a distinct step after step 1, whose loss does not depend on the learning
    /// rate.
    pub(super) fn check_steps(&self, steps: u64) -> Result<()> {
        let mut before = None;
        for &fraction in &self.at {
            let step = Self::step(fraction, steps);
            let found = match before {
                _ if step == 1 => "step 1, whose loss is that of the initial weights",
                Some(before) if before == step => "the same step as the previous fraction",
                _ => {
                    before = Some(step);
                    continue;
                }
            };
            return Err(Error::conflict(
                ["study.halving.at", "train.steps"],
                format!(
                    "study.halving.at: with train.steps = {steps}, the fraction {fraction} falls on {found}"
                ),
            ));
        }
        Ok(())
    }
}
