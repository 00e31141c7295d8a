//! Plan of a study: the runs of its grid.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::depth::at_depth;
use super::record::GridPoint;
use super::settings::{StudyConfig, StudySettings, check_unique};
use crate::error::{Error, Result};
use crate::format_number::config_number;
use crate::lab::analysis::AnalysisRules;
use crate::placement::{PlacementConfig, canonical_hash};
use crate::train::config::{Origin, from_toml, read_text, with_settings};
use crate::train::{Config, LogSection, OptimizerConfig};

/// Incremented whenever the same configuration leads to different results, so that old records are not reused for new
/// runs.
const NUMERICS_VERSION: u32 = 1;

/// Validated study.
///
/// ```
/// use hybridnorm::lab::study::{Study, StudyConfig, StudySettings};
/// use hybridnorm::train::{DataSection, ModelSection};
///
/// let model = ModelSection::new("hybridnorm")
///     .with_d_model(64)
///     .with_n_layers(2)
///     .with_n_heads(4)
///     .with_d_ff(128);
/// let grid = StudySettings::new(["pre-norm", "hybridnorm"], [1e-3, 3e-3], [1, 2]);
/// let data = DataSection::default()
///     .with_train(vec!["stories:2000".to_owned()])
///     .with_tokenizer("bytes");
/// let study = Study::new(StudyConfig::new(grid, model).with_data(data))?;
/// assert_eq!(study.runs.len(), 2 * 2 * 2);
/// let first = &study.runs[0];
/// assert_eq!((first.config.seed, first.config.optimizer.lr), (1, 1e-3));
/// // Parsing the TOML of the study returns the same plan.
/// assert_eq!(Study::parse(&study.to_toml(), &[])?, study);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Study {
    /// Configuration of the study.
    pub config: StudyConfig,
    /// Runs, ordered by seed, then depth, initialization, placement, learning rate.
    pub runs: Vec<PlannedRun>,
}

/// Planned run of a study.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PlannedRun {
    /// Hash of everything that determines the results of the run.
    pub id: String,
    /// Position in the grid of the study.
    pub grid_point: GridPoint,
    /// Configuration of the run.
    pub config: Config,
    /// Divergence threshold; see [`StudySettings::diverged_above`].
    pub diverged_above: f64,
    /// True if successive halving may eliminate it.
    pub uses_halving: bool,
}

impl Study {
    /// Reads a study and applies `section.key=value` overrides.
    ///
    /// # Errors
    /// If the file cannot be read, or has a setting that is invalid or has no effect.
    pub fn load(path: &Path, settings: &[String]) -> Result<Self> {
        let mut study = read_text(path)
            .and_then(|text| Self::parse(&text, settings))
            .map_err(|error| error.in_file(path))?;
        for run in &mut study.runs {
            run.config.origin = Origin::file(path);
        }
        Ok(study)
    }

    /// Reads a study from TOML; see [`Study::load`].
    ///
    /// # Errors
    /// As [`Study::load`].
    pub fn parse(text: &str, settings: &[String]) -> Result<Self> {
        let config: StudyConfig = from_toml(text, settings)?;
        let table = with_settings(text, settings)?;
        reject_study_keys(&table, &config.study)?;
        Self::new(config)
    }

    /// Plans a study of the model and training settings of a run.
    ///
    /// The study sets seed, placement and learning rate: those of `config` are not used.
    ///
    /// ```
    /// use hybridnorm::lab::study::{Study, StudySettings};
    /// use hybridnorm::train::{Config, DataSection, ModelSection, TrainSection};
    ///
    /// let model = ModelSection::new("hybridnorm")
    ///     .with_d_model(64)
    ///     .with_n_layers(2)
    ///     .with_n_heads(4)
    ///     .with_d_ff(128);
    /// let config = Config::default()
    ///     .with_model(model)
    ///     .with_data(DataSection::default().with_train(vec!["stories:2000".to_owned()]))
    ///     .with_train(TrainSection::default().with_steps(200));
    /// let grid = StudySettings::new(["pre-norm", "hybridnorm"], [1e-3, 3e-3], [1, 2, 3]);
    /// let study = Study::from_config(&config, grid)?;
    /// assert_eq!(study.runs.len(), 2 * 2 * 3);
    /// assert_eq!(study.runs[0].grid_point.label(), "pre-norm lr 0.001 seed 1");
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// If `config` has no model or takes its weights from a checkpoint, otherwise as [`Study::new`].
    pub fn from_config(config: &Config, study: StudySettings) -> Result<Self> {
        if config.init.is_some() {
            return Err(Error::conflict(
                ["init.from", "study"],
                "init.from: the runs of a study start from random initial weights, not from a checkpoint",
            ));
        }
        let model = config
            .model
            .clone()
            .ok_or_else(|| Error::missing("[model]", ": a study needs a model"))?;
        Self::new(StudyConfig {
            study,
            model,
            data: config.data.clone(),
            optimizer: config.optimizer.clone(),
            schedule: config.schedule.clone(),
            train: config.train.clone(),
            eval: config.eval.clone(),
            log: config.log.clone(),
        })
    }

    /// Plans the runs of a study.
    ///
    /// # Errors
    /// If a list is empty or has duplicates, or the configuration of a run is invalid.
    pub fn new(config: StudyConfig) -> Result<Self> {
        let study = &config.study;
        study.validate()?;
        let placements = named_placements(&study.placements)?;
        check_baseline(&study.rules.baseline, &placements)?;
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
                            runs.push(plan_run(&config, seed, depth, init, placement, lr)?);
                        }
                    }
                }
            }
        }
        check_unique_runs(&runs)?;
        Ok(Self { config, runs })
    }

    /// Returns the study as TOML.
    pub fn to_toml(&self) -> String {
        let mut table = toml::Table::try_from(&self.config).expect("a study is plain data");
        for (section, key, _) in keys_set_by_study(&self.config.study) {
            if let Some(toml::Value::Table(section)) = table.get_mut(section) {
                section.remove(key);
            }
        }
        toml::to_string(&table).expect("a study is plain data")
    }

    /// Returns the number of optimizer steps per run.
    pub fn steps(&self) -> u64 {
        self.config.train.steps as u64
    }
}

impl GridPoint {
    /// Returns a label for progress and tables.
    pub fn label(&self) -> String {
        let mut label = self.placement.clone();
        if let Some(init) = &self.init {
            label += &format!(" {init}");
        }
        if let Some(depth) = self.depth {
            label += &format!(" L{depth}");
        }
        format!("{label} lr {} seed {}", config_number(self.lr), self.seed)
    }
}

/// Returns the keys of a run configuration that the study sets: section, key, and the key that sets it.
fn keys_set_by_study(study: &StudySettings) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut keys = vec![
        ("model", "placement", "study.placements"),
        ("optimizer", "lr", "study.lr"),
    ];
    if !study.inits.is_empty() {
        keys.push(("model", "init", "study.inits"));
    }
    keys
}

/// Rejects keys that have no effect because the study sets them.
fn reject_study_keys(table: &toml::Table, study: &StudySettings) -> Result<()> {
    for (section, key, set_by) in keys_set_by_study(study) {
        let section_table = table.get(section).and_then(toml::Value::as_table);
        if section_table.is_some_and(|table| table.contains_key(key)) {
            return Err(Error::no_effect(
                format!("{section}.{key}"),
                format!(": it is set by {set_by}"),
            ));
        }
    }
    Ok(())
}

fn check_baseline(baseline: &str, placements: &[(String, Value)]) -> Result<()> {
    if placements.iter().any(|(name, _)| name == baseline) {
        return Ok(());
    }
    let default = match baseline == AnalysisRules::default().baseline {
        true => " (the default)",
        false => "",
    };
    Err(Error::conflict(
        ["study.rules.baseline", "study.placements"],
        format!(
            "study.rules.baseline = {baseline:?}{default} is not in study.placements; set it to the placement \
             that all others are compared with"
        ),
    ))
}

/// Checks that no two grid points are the same run.
fn check_unique_runs(runs: &[PlannedRun]) -> Result<()> {
    let mut seen: BTreeMap<&str, &PlannedRun> = BTreeMap::new();
    for run in runs {
        if let Some(other) = seen.insert(&run.id, run) {
            return Err(Error::invalid_value(
                "study",
                format!(
                    "two runs of the study are the same: {} and {}",
                    other.grid_point.label(),
                    run.grid_point.label()
                ),
            ));
        }
    }
    Ok(())
}

/// Checks a name, which appears in tables and on terminals.
fn check_name(name: &str) -> Result<()> {
    match name.is_empty() || name.chars().count() > 64 || name.contains(char::is_control) {
        true => Err(Error::invalid_value(
            "name",
            format!("name {name:?}: expected 1 to 64 characters without control characters"),
        )),
        false => Ok(()),
    }
}

fn named_placements(all: &[Value]) -> Result<Vec<(String, Value)>> {
    const KEY: &str = "study.placements";
    let mut named = Vec::new();
    for (index, value) in all.iter().enumerate() {
        let (name, value) = match value {
            Value::Object(table) => {
                take_name(table).map_err(|error| entry_error(KEY, index, error))?
            }
            other => (None, other.clone()),
        };
        let config =
            PlacementConfig::from_value(&value).map_err(|error| entry_error(KEY, index, error))?;
        named.push((name.unwrap_or_else(|| config.label()), value));
    }
    check_unique(KEY, named.iter().map(|(name, _)| name))?;
    Ok(named)
}

fn named_inits(all: &[Map<String, Value>]) -> Result<Vec<Option<(String, Value)>>> {
    const KEY: &str = "study.inits";
    if all.is_empty() {
        return Ok(vec![None]);
    }
    let mut named = Vec::new();
    for (index, table) in all.iter().enumerate() {
        let (name, value) = take_name(table).map_err(|error| entry_error(KEY, index, error))?;
        let name = name.ok_or_else(|| entry_error(KEY, index, "name is missing"))?;
        named.push(Some((name, value)));
    }
    let names = named.iter().flatten().map(|(name, _)| name);
    check_unique(KEY, names)?;
    Ok(named)
}

/// Returns the error for a problem in an entry of a list.
fn entry_error(key: &str, index: usize, problem: impl std::fmt::Display) -> Error {
    Error::invalid_value(key, format!("{key}, entry {}: {problem}", index + 1))
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
        Some(other) => return Err(Error::out_of_range("name", other, "a string")),
    };
    Ok((name, Value::Object(rest)))
}

fn plan_run(
    study: &StudyConfig,
    seed: u64,
    depth: Option<usize>,
    init: &Option<(String, Value)>,
    (name, placement): &(String, Value),
    lr: f64,
) -> Result<PlannedRun> {
    let mut model = study.model.clone();
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
        data: study.data.clone(),
        optimizer: OptimizerConfig {
            lr,
            ..study.optimizer.clone()
        },
        schedule: study.schedule.clone(),
        train: study.train.clone(),
        eval: study.eval.clone(),
        log: study.log.clone(),
        ..Config::default()
    };
    let grid_point = GridPoint {
        placement: name.clone(),
        lr,
        seed,
        init: init.as_ref().map(|(name, _)| name.clone()),
        depth,
    };
    config.check().map_err(|error| {
        Error::invalid_value("study", format!("{}: {error}", grid_point.label()))
    })?;
    Ok(PlannedRun {
        id: run_id(&config, &study.study),
        grid_point,
        config,
        diverged_above: study.study.diverged_above,
        uses_halving: study.study.halving.is_some(),
    })
}

/// Returns the id of a run, which does not depend on the `[log]` section.
fn run_id(config: &Config, study: &StudySettings) -> String {
    let config = Config {
        log: LogSection::default(),
        ..config.clone()
    };
    canonical_hash(&(
        NUMERICS_VERSION,
        config,
        study.diverged_above,
        &study.halving,
    ))
}
