//! Study file `STUDY.toml` and the runs that it defines.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::record::Cell;
use crate::digits::written;
use crate::error::{Error, Result};
use crate::lab::analysis::Rules;
use crate::placement::{PlacementChoice, canonical_hash};
use crate::train::config::{from_toml, read_text, settled};
use crate::train::{
    Config, DataSection, InitSection, LogSection, ModelSection, OptimizerConfig, ScheduleConfig,
    TrainSection,
};

/// Incremented whenever the same configuration leads to other results, so that old records are not reused for
/// new runs.
const GENERATION: u32 = 1;

/// Study file: a run configuration with a section `[study]` that defines what varies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyFile {
    /// Varied settings and rules of the analysis.
    pub study: StudySection,
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
    /// Logging of each run.
    #[serde(default)]
    pub log: LogSection,
}

/// Section `[study]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudySection {
    /// Placement names, or tables of the placement algebra with a `name`.
    pub placements: Vec<Value>,
    /// Peak learning rates.
    pub lr: Vec<f64>,
    /// Random seeds: runs with the same seed share initial weights and batches.
    pub seeds: Vec<u64>,
    /// Initializations to compare: tables as in `model.init`, with a `name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inits: Vec<Map<String, Value>>,
    /// Numbers of blocks to compare at about the parameter count of `[model]`; see [`at_depth`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<usize>,
    /// A run that did all its steps has diverged, too, if its mean loss over the last twentieth of the steps is
    /// this much above the lowest mean over a twentieth, in nats. One whose lowest mean is not 0.1 nats below
    /// the loss of token frequencies alone has not learned yet, at any setting.
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
    pub rules: Rules,
}

fn default_diverged_above() -> f64 {
    0.5
}

/// Successive halving (Jamieson, Talwalkar 2016, arXiv 1502.07943) over learning rates.
///
/// After each fraction of the steps in `at`, the learning rates of a placement are ranked by the mean over seeds
/// of the training loss over the last twentieth of the steps done, where a diverged run counts as infinite; the
/// best fraction `keep` of them, rounded up, continues.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halving {
    /// Fractions of the steps, ascending, between 0 and 1.
    pub at: Vec<f64>,
    /// Fraction of the learning rates that continues.
    pub keep: f64,
}

impl Halving {
    /// Returns the step after which runs of `steps` steps are ranked at this fraction: not the last one.
    pub(super) fn step(share: f64, steps: u64) -> u64 {
        ((share * steps as f64).ceil() as u64).clamp(1, (steps - 1).max(1))
    }

    /// Checks that every fraction has a distinct step, at which learning rates can have made a difference.
    pub(super) fn check_steps(&self, steps: u64) -> Result<()> {
        let mut before = None;
        for &share in &self.at {
            let step = Self::step(share, steps);
            let place = match before {
                _ if step == 1 => "step 1, whose loss is that of the initial weights",
                Some(before) if before == step => "the same step as the share before it",
                _ => {
                    before = Some(step);
                    continue;
                }
            };
            return Err(Error::config(format!(
                "study.halving.at: of {steps} steps, {share} falls on {place}"
            )));
        }
        Ok(())
    }
}

/// Validated study.
#[derive(Debug, Clone, PartialEq)]
pub struct Study {
    /// Content of the study file.
    pub file: StudyFile,
    /// Runs, ordered by seed, then depth, initialization, placement, learning rate.
    pub runs: Vec<Planned>,
}

/// Planned run of a study.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Hash of everything that determines the results of the run.
    pub id: String,
    /// Position in the grid of the study.
    pub cell: Cell,
    /// Configuration of the run.
    pub config: Config,
    /// Divergence threshold; see [`StudySection::diverged_above`].
    pub diverged_above: f64,
    /// True if successive halving may eliminate it.
    pub may_be_halved: bool,
}

impl Study {
    /// Reads a study and applies `section.key=value` settings on top.
    ///
    /// # Errors
    /// If the file cannot be read, or has a setting that is invalid or has no effect.
    pub fn load(path: &Path, settings: &[String]) -> Result<Self> {
        read_text(path)
            .and_then(|text| Self::parse(&text, settings))
            .map_err(|error| match error {
                Error::Io { .. } | Error::Format { .. } => error,
                other => Error::config(format!("{}: {other}", path.display())),
            })
    }

    /// Reads a study from text; see [`Study::load`].
    ///
    /// # Errors
    /// As [`Study::load`].
    pub fn parse(text: &str, settings: &[String]) -> Result<Self> {
        let file: StudyFile = from_toml(text, settings)?;
        let table = settled(text, settings)?;
        refuse_what_varies(&table, &file.study)?;
        Self::new(file)
    }

    /// Plans the runs of a study.
    ///
    /// # Errors
    /// If a list is empty or has duplicates, or the configuration of a run is invalid.
    pub fn new(file: StudyFile) -> Result<Self> {
        let study = &file.study;
        check(study)?;
        let placements = named_placements(&study.placements)?;
        let names: Vec<&str> = placements.iter().map(|(name, _)| name.as_str()).collect();
        if !names.contains(&study.rules.baseline.as_str()) {
            let baseline = &study.rules.baseline;
            let is_default = *baseline == Rules::default().baseline;
            return Err(Error::config(format!(
                "study.rules.baseline = {baseline:?}{} is none of study.placements; set it to the one that all \
                 others are compared with",
                if is_default { " (the default)" } else { "" }
            )));
        }
        let inits = named_inits(&study.inits)?;
        let depths: Vec<Option<usize>> = match study.depths.as_slice() {
            [] => vec![None],
            depths => depths.iter().copied().map(Some).collect(),
        };
        let mut runs = Vec::new();
        for &seed in &study.seeds {
            for &depth in &depths {
                for init in &inits {
                    for placement in &placements {
                        for &lr in &study.lr {
                            runs.push(plan(&file, seed, depth, init, placement, lr)?);
                        }
                    }
                }
            }
        }
        different(&runs)?;
        Ok(Self { file, runs })
    }

    /// Returns the study as TOML.
    pub fn to_toml(&self) -> String {
        let mut table = toml::Table::try_from(&self.file).expect("a study is plain data");
        for (section, key, _) in decided(&self.file.study) {
            if let Some(toml::Value::Table(section)) = table.get_mut(section) {
                section.remove(key);
            }
        }
        toml::to_string(&table).expect("a study is plain data")
    }

    /// Returns the number of optimizer steps per run.
    pub fn steps(&self) -> u64 {
        self.file.train.steps as u64
    }
}

impl Cell {
    /// Returns a label for progress and tables.
    pub fn label(&self) -> String {
        let mut label = self.placement.clone();
        if let Some(init) = &self.init {
            label += &format!(" {init}");
        }
        if let Some(depth) = self.depth {
            label += &format!(" L{depth}");
        }
        format!("{label} lr {} seed {}", written(self.lr), self.seed)
    }
}

/// Returns the keys of a run configuration that the study sets: section, key, and the key that sets it.
fn decided(study: &StudySection) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut keys = vec![
        ("model", "placement", "study.placements"),
        ("optimizer", "lr", "study.lr"),
    ];
    if !study.inits.is_empty() {
        keys.push(("model", "init", "study.inits"));
    }
    keys
}

/// Refuses keys that have no effect because the study sets them.
fn refuse_what_varies(table: &toml::Table, study: &StudySection) -> Result<()> {
    for (section, key, instead) in decided(study) {
        let section_table = table.get(section).and_then(toml::Value::as_table);
        if section_table.is_some_and(|table| table.contains_key(key)) {
            return Err(Error::config(format!(
                "{section}.{key} has no effect: {instead} says what it is"
            )));
        }
    }
    Ok(())
}

fn check(study: &StudySection) -> Result<()> {
    let lists = [
        ("placements", study.placements.is_empty()),
        ("lr", study.lr.is_empty()),
        ("seeds", study.seeds.is_empty()),
    ];
    if let Some((key, _)) = lists.iter().find(|(_, empty)| *empty) {
        return Err(Error::config(format!("study.{key} is empty")));
    }
    unique("study.lr", study.lr.iter().map(|lr| lr.to_bits()))?;
    unique("study.seeds", study.seeds.iter())?;
    unique("study.depths", study.depths.iter())?;
    if study.diverged_above.is_nan() || study.diverged_above <= 0.0 {
        return Err(Error::config(format!(
            "study.diverged_above = {} must be above 0",
            study.diverged_above
        )));
    }
    if let Some(problem) = study.rules.problem() {
        return Err(Error::config(format!("study.rules.{problem}")));
    }
    let Some(Halving { at, keep }) = &study.halving else {
        return Ok(());
    };
    let rising = at.windows(2).all(|pair| pair[0] < pair[1]);
    if at.is_empty() || !rising || !at.iter().all(|at| *at > 0.0 && *at < 1.0) {
        return Err(Error::config(
            "study.halving.at must hold ascending shares of the steps between 0 and 1",
        ));
    }
    if !(*keep > 0.0 && *keep < 1.0) {
        return Err(Error::config(format!(
            "study.halving.keep = {keep} must lie between 0 and 1"
        )));
    }
    Ok(())
}

fn unique<T: PartialEq>(key: &str, items: impl Iterator<Item = T>) -> Result<()> {
    let mut seen = Vec::new();
    for (index, item) in items.enumerate() {
        if seen.contains(&item) {
            return Err(Error::config(format!(
                "{key} repeats itself: entry {} was there before",
                index + 1
            )));
        }
        seen.push(item);
    }
    Ok(())
}

/// Checks that no two cells are the same run.
fn different(runs: &[Planned]) -> Result<()> {
    let mut seen: BTreeMap<&str, &Planned> = BTreeMap::new();
    for run in runs {
        if let Some(other) = seen.insert(&run.id, run) {
            return Err(Error::config(format!(
                "two runs of the study are the same: {} and {}",
                other.cell.label(),
                run.cell.label()
            )));
        }
    }
    Ok(())
}

/// Checks a name, which appears in tables and on terminals.
fn check_name(name: &str) -> Result<()> {
    match name.is_empty() || name.chars().count() > 64 || name.contains(char::is_control) {
        true => Err(Error::config(format!(
            "name {name:?}: expected 1 to 64 characters without control characters"
        ))),
        false => Ok(()),
    }
}

fn named_placements(all: &[Value]) -> Result<Vec<(String, Value)>> {
    let mut named = Vec::new();
    for (index, value) in all.iter().enumerate() {
        let place = |error: &dyn std::fmt::Display| {
            Error::config(format!("study.placements, entry {}: {error}", index + 1))
        };
        let (name, value) = match value {
            Value::Object(table) => take_name(table).map_err(|error| place(&error))?,
            other => (None, other.clone()),
        };
        let choice = PlacementChoice::from_value(&value).map_err(|error| place(&error))?;
        named.push((name.unwrap_or_else(|| choice.label()), value));
    }
    unique("study.placements", named.iter().map(|(name, _)| name))?;
    Ok(named)
}

fn named_inits(all: &[Map<String, Value>]) -> Result<Vec<Option<(String, Value)>>> {
    if all.is_empty() {
        return Ok(vec![None]);
    }
    let mut named = Vec::new();
    for (index, table) in all.iter().enumerate() {
        let place =
            |problem: &str| Error::config(format!("study.inits, entry {}: {problem}", index + 1));
        let (name, value) = take_name(table).map_err(|error| place(&error.to_string()))?;
        let name = name.ok_or_else(|| place("name is missing"))?;
        named.push(Some((name, value)));
    }
    let names = named.iter().flatten().map(|(name, _)| name);
    unique("study.inits", names)?;
    Ok(named)
}

/// Splits a table into its `name` and the rest.
fn take_name(table: &Map<String, Value>) -> Result<(Option<String>, Value)> {
    let mut rest = table.clone();
    let name = match rest.remove("name") {
        None => None,
        Some(Value::String(name)) => {
            check_name(&name)?;
            Some(name)
        }
        Some(other) => return Err(Error::config(format!("name is {other}, expected text"))),
    };
    Ok((name, Value::Object(rest)))
}

fn plan(
    file: &StudyFile,
    seed: u64,
    depth: Option<usize>,
    init: &Option<(String, Value)>,
    (name, placement): &(String, Value),
    lr: f64,
) -> Result<Planned> {
    let mut model = file.model.clone();
    if let Some(depth) = depth {
        model = at_depth(&model, depth)?;
    }
    model.placement = placement.clone();
    if let Some((_, init)) = init {
        model.init = Some(init.clone());
    }
    let config = Config {
        seed,
        model: Some(model),
        init: None::<InitSection>,
        data: file.data.clone(),
        optimizer: OptimizerConfig {
            lr,
            ..file.optimizer.clone()
        },
        schedule: file.schedule.clone(),
        train: file.train.clone(),
        log: file.log.clone(),
        ..Config::default()
    };
    let cell = Cell {
        placement: name.clone(),
        lr,
        seed,
        init: init.as_ref().map(|(name, _)| name.clone()),
        depth,
    };
    config
        .check()
        .map_err(|error| Error::config(format!("{}: {error}", cell.label())))?;
    Ok(Planned {
        id: id(&config, &file.study),
        cell,
        config,
        diverged_above: file.study.diverged_above,
        may_be_halved: file.study.halving.is_some(),
    })
}

/// Returns the id of a run, which does not depend on the `[log]` section.
fn id(config: &Config, study: &StudySection) -> String {
    let config = Config {
        log: LogSection::default(),
        ..config.clone()
    };
    canonical_hash(&(GENERATION, config, study.diverged_above, &study.halving))
}

/// Returns a model of `depth` blocks with about the same number of parameters in its blocks: the head dimension
/// is unchanged, the number of heads scales as `1/√depth` in multiples of query heads per key/value head, and
/// the feed-forward width takes the rest, in multiples of 8.
///
/// # Errors
/// If no parameters are left for the feed-forward layer.
pub fn at_depth(model: &ModelSection, depth: usize) -> Result<ModelSection> {
    if depth == model.n_layers {
        return Ok(model.clone());
    }
    if model.moe.is_some() || model.mla.is_some() {
        return Err(Error::config(
            "study.depths keeps the number of parameters of dense models with ordinary heads; it is \
             not defined with model.moe or model.mla",
        ));
    }
    let kv_heads = model.n_kv_heads.unwrap_or(model.n_heads);
    let sizes = [
        depth,
        model.n_layers,
        model.n_heads,
        kv_heads,
        model.d_model,
    ];
    let divides = |part: usize, whole: usize| part > 0 && whole.is_multiple_of(part);
    let fits = divides(kv_heads, model.n_heads) && divides(model.n_heads, model.d_model);
    if sizes.contains(&0) || !fits {
        return Err(Error::config(format!(
            "study.depths: no model of {depth} blocks can be made of {} heads and {kv_heads} \
             key/value heads of a width of {} in {} blocks",
            model.n_heads, model.d_model, model.n_layers
        )));
    }
    let (head_dim, group) = (model.d_model / model.n_heads, model.n_heads / kv_heads);
    let projections = if model.activation.is_gated() { 3 } else { 2 };
    let attention = |d: usize, h: usize| d * head_dim * (2 * h + 2 * h / group);
    let block = attention(model.d_model, model.n_heads) + projections * model.d_model * model.d_ff;
    let target = (block * model.n_layers) as f64 / depth as f64;
    let ratio = (model.n_layers as f64 / depth as f64).sqrt();
    let groups = (model.n_heads as f64 * ratio / group as f64)
        .round()
        .max(1.0) as usize;
    let heads = groups * group;
    let d_model = heads * head_dim;
    let left = (target - attention(d_model, heads) as f64) / (projections * d_model) as f64;
    let d_ff = 8 * (left / 8.0).round() as usize;
    if d_ff == 0 {
        return Err(Error::config(format!(
            "study.depths: {depth} blocks of the parameters of [model] leave no feed-forward"
        )));
    }
    Ok(ModelSection {
        d_model,
        n_layers: depth,
        n_heads: heads,
        n_kv_heads: model.n_kv_heads.map(|_| groups),
        d_ff,
        ..model.clone()
    })
}
