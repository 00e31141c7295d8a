//! Cost of each named placement, relative to pre-norm.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::timing::median;
use super::{DecodeOptions, StepOptions, decode, step};
use crate::Device;
use crate::error::{Error, Result};
use crate::model::counts;
use crate::placement::{find_named, named_placements};
use crate::train::Config;

/// Placement that all placements are compared with.
pub const BASELINE: &str = "pre-norm";

/// Options of the comparison.
#[derive(Debug, Clone, PartialEq, Setters)]
#[setters(prefix = "with_", strip_option, into)]
#[non_exhaustive]
pub struct PlacementsOptions {
    /// Pairs of measurements per placement, at least 1.
    pub rounds: usize,
    /// Names or aliases of the placements; empty: all named placements.
    pub only: Vec<String>,
}

impl Default for PlacementsOptions {
    /// Three rounds of all named placements.
    fn default() -> Self {
        Self {
            rounds: 3,
            only: Vec::new(),
        }
    }
}

/// A kind of measurement. Not `#[non_exhaustive]`: a [`MeasureFn`] must handle every kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchmarkKind {
    /// A training step; see [`step()`].
    Step,
    /// Generation of a token; see [`decode()`].
    Decode,
}

/// A placement to be measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Name of the placement.
    pub name: &'static str,
    /// The configuration with this placement in it.
    pub config: Config,
}

/// Result of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Throughput in tokens per second.
    pub tokens_per_second: f64,
    /// Peak resident memory of the process in bytes, where the system reports it.
    pub peak_rss_bytes: Option<u64>,
}

/// Function that measures one candidate.
pub type MeasureFn<'a> = &'a mut dyn FnMut(BenchmarkKind, &Candidate) -> Result<Measurement>;

/// Progress of the comparison.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum PlacementsEvent<'a> {
    /// Number of finished measurements.
    Progress {
        /// Finished measurements.
        done: usize,
        /// All measurements.
        total: usize,
    },
    /// A placement is finished.
    Row(&'a PlacementRow),
    /// A placement cannot be measured.
    Skipped(&'a SkippedPlacement),
}

/// The comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PlacementsReport {
    /// Number of compute threads.
    pub threads: usize,
    /// Pairs of measurements per placement.
    pub rounds: usize,
    /// Placement that all placements are compared with.
    #[serde(rename = "reference")]
    pub baseline: &'static str,
    /// Medians over all training measurements of the baseline; `None` if no placement was measured.
    #[serde(rename = "reference_step")]
    pub baseline_step: Option<Measurement>,
    /// Medians over all decoding measurements of the baseline.
    #[serde(rename = "reference_decode")]
    pub baseline_decode: Option<Measurement>,
    /// One row per placement.
    pub rows: Vec<PlacementRow>,
    /// Placements that could not be measured.
    pub skipped: Vec<SkippedPlacement>,
}

/// One placement. If it is the baseline itself, its ratios show the precision of the measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PlacementRow {
    /// Name of the placement.
    pub name: &'static str,
    /// Number of parameters of the model.
    pub parameters: u64,
    /// Training.
    pub step: Comparison,
    /// Decoding.
    pub decode: Comparison,
}

/// Measurements of a placement and their ratios to the baseline.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// Median throughput in tokens per second.
    pub tokens_per_second: f64,
    /// Median over the rounds of its throughput divided by the baseline's, measured just before.
    pub relative_speed: f64,
    /// This ratio in every round.
    pub relative_speeds: Vec<f64>,
    /// Median peak resident memory in bytes, where the system reports it.
    pub peak_rss_bytes: Option<u64>,
    /// Median over the rounds of the peak memory divided by the baseline's.
    pub relative_memory: Option<f64>,
}

/// A placement that could not be measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SkippedPlacement {
    /// Name of the placement.
    pub name: &'static str,
    /// Reason.
    pub reason: String,
}

/// Returns a function that measures in this process, for about `seconds` each.
///
/// Peak memory is that of the whole process, so memory that the allocator retains from one model is included for the
/// next; to compare memory, measure in separate processes.
pub fn in_process(
    seconds: f64,
    device: Device,
) -> impl FnMut(BenchmarkKind, &Candidate) -> Result<Measurement> + use<> {
    move |kind, candidate| {
        let Candidate { config, .. } = candidate;
        let model = config.model_config()?;
        Ok(match kind {
            BenchmarkKind::Step => {
                let report = step(&model, &StepOptions::of(config, seconds), device)?;
                Measurement {
                    tokens_per_second: report.tokens_per_second,
                    peak_rss_bytes: report.peak_rss_bytes,
                }
            }
            BenchmarkKind::Decode => {
                let report = decode(&model, &DecodeOptions::of(config, seconds), device)?;
                Measurement {
                    tokens_per_second: report.tokens_per_second,
                    peak_rss_bytes: report.peak_rss_bytes,
                }
            }
        })
    }
}

/// Compares placements at the shape of a configuration, whose own placement is ignored.
///
/// A machine's speed drifts, so the baseline and a placement are measured alternately and the ratios of
/// these pairs are reported. Returns `None` if interrupted.
///
/// # Errors
/// If a name is unknown, there are no rounds, or the baseline cannot be measured. Other
/// placements that cannot be measured are listed with the reason.
///
/// ```
/// use std::sync::atomic::AtomicBool;
///
/// use hybridnorm::bench::placements::Measurement;
/// use hybridnorm::bench::{PlacementsOptions, placements};
/// use hybridnorm::train::{Config, ModelSection, TrainSection};
///
/// let model = ModelSection::new("hybridnorm")
///     .with_d_model(16)
///     .with_n_layers(1)
///     .with_n_heads(2)
///     .with_d_ff(32)
///     .with_vocab_size(40);
/// let config = Config::default()
///     .with_model(model)
///     .with_train(TrainSection::default().with_seq_len(8));
/// let options = PlacementsOptions::default().with_only(["hybridnorm".to_owned()]);
/// // Stub for this example; `in_process` returns a function that measures.
/// let mut measure = |_, candidate: &hybridnorm::bench::placements::Candidate| {
///     let tokens_per_second = if candidate.name == "pre-norm" { 1000.0 } else { 900.0 };
///     Ok(Measurement { tokens_per_second, peak_rss_bytes: None })
/// };
/// let stop = AtomicBool::new(false);
/// let report = placements(&config, &options, &mut measure, &stop, &mut |_| {})?;
/// assert_eq!(report.unwrap().rows[0].step.relative_speed, 0.9);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn placements(
    config: &Config,
    options: &PlacementsOptions,
    measure: MeasureFn<'_>,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(PlacementsEvent<'_>),
) -> Result<Option<PlacementsReport>> {
    if options.rounds == 0 {
        return Err(Error::out_of_range("rounds", 0, "at least 1"));
    }
    let selected = selected_names(&options.only)?;
    let baseline = candidate(config, BASELINE)?;
    let mut skipped = Vec::new();
    let mut candidates = Vec::new();
    for name in selected {
        match candidate(config, name) {
            Ok(candidate) => candidates.push(candidate),
            Err(error) => skipped.push(skip(name, &error, on_event)),
        }
    }
    let mut session = Session {
        measure,
        stop,
        done: 0,
        total: candidates.len() * options.rounds * 4,
    };
    let (mut rows, mut baselines) = (Vec::new(), Pairs::default());
    for candidate in &candidates {
        match session.compare(&baseline, candidate, options.rounds, on_event)? {
            Outcome::Measured(pairs) => {
                let row = PlacementRow::new(candidate, &pairs)?;
                on_event(PlacementsEvent::Row(&row));
                rows.push(row);
                baselines.append(pairs);
            }
            Outcome::Interrupted => return Ok(None),
            Outcome::Failed(error) => skipped.push(skip(candidate.name, &error, on_event)),
        }
    }
    Ok(Some(PlacementsReport {
        threads: crate::threads::count(),
        rounds: options.rounds,
        baseline: BASELINE,
        baseline_step: medians(baselines.step.iter().map(|pair| pair.baseline)),
        baseline_decode: medians(baselines.decode.iter().map(|pair| pair.baseline)),
        rows,
        skipped,
    }))
}

fn skip(
    name: &'static str,
    error: &Error,
    on_event: &mut dyn FnMut(PlacementsEvent<'_>),
) -> SkippedPlacement {
    let reason = error.to_string();
    let skipped = SkippedPlacement { name, reason };
    on_event(PlacementsEvent::Skipped(&skipped));
    skipped
}

impl PlacementRow {
    fn new(candidate: &Candidate, pairs: &Pairs) -> Result<Self> {
        Ok(Self {
            name: candidate.name,
            parameters: counts::parameters(&candidate.config.model_config()?)?,
            step: Comparison::of(&pairs.step),
            decode: Comparison::of(&pairs.decode),
        })
    }
}

/// Returns the canonical names, each once and in the order of the registry.
fn selected_names(only: &[String]) -> Result<Vec<&'static str>> {
    let chosen = only
        .iter()
        .map(|name| Ok(find_named(name)?.name))
        .collect::<Result<BTreeSet<_>>>()?;
    let all = named_placements().iter().map(|named| named.name);
    Ok(all
        .filter(|name| chosen.is_empty() || chosen.contains(name))
        .collect())
}

fn candidate(config: &Config, name: &'static str) -> Result<Candidate> {
    let mut config = config.clone();
    let model = config.model.as_mut().ok_or_else(|| {
        Error::missing(
            "[model]",
            "; the placement of a checkpoint cannot be changed",
        )
    })?;
    model.placement = name.into();
    config.model_config()?.resolve()?;
    Ok(Candidate { name, config })
}

/// Measurements of the baseline and, after it, of the placement.
#[derive(Clone, Copy)]
struct Pair {
    baseline: Measurement,
    placement: Measurement,
}

/// Pairs of measurements of one placement.
#[derive(Default)]
struct Pairs {
    step: Vec<Pair>,
    decode: Vec<Pair>,
}

impl Pairs {
    fn append(&mut self, mut other: Self) {
        self.step.append(&mut other.step);
        self.decode.append(&mut other.decode);
    }
}

/// Outcome of the measurements of a placement.
enum Outcome {
    Measured(Pairs),
    Interrupted,
    Failed(Error),
}

struct Session<'a> {
    measure: MeasureFn<'a>,
    stop: &'a AtomicBool,
    done: usize,
    total: usize,
}

impl Session<'_> {
    /// Runs all rounds of one placement. Returns an error only if the baseline fails.
    fn compare(
        &mut self,
        baseline: &Candidate,
        candidate: &Candidate,
        rounds: usize,
        on_event: &mut dyn FnMut(PlacementsEvent<'_>),
    ) -> Result<Outcome> {
        let mut pairs = Pairs::default();
        let kinds = [
            (BenchmarkKind::Step, &mut pairs.step),
            (BenchmarkKind::Decode, &mut pairs.decode),
        ];
        let end = self.done + 4 * rounds;
        for (kind, measured) in kinds {
            for _ in 0..rounds {
                let baseline = (self.measure)(kind, baseline);
                if self.is_stopped() {
                    return Ok(Outcome::Interrupted);
                }
                let baseline = baseline?;
                let placement = (self.measure)(kind, candidate);
                if self.is_stopped() {
                    return Ok(Outcome::Interrupted);
                }
                match placement {
                    Ok(placement) => measured.push(Pair {
                        baseline,
                        placement,
                    }),
                    Err(error) => {
                        self.done = end;
                        return Ok(Outcome::Failed(error));
                    }
                }
                self.done += 2;
                on_event(PlacementsEvent::Progress {
                    done: self.done,
                    total: self.total,
                });
            }
        }
        Ok(Outcome::Measured(pairs))
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Comparison {
    fn of(pairs: &[Pair]) -> Self {
        let ratios = |of: fn(&Pair) -> Option<f64>| pairs.iter().filter_map(of).collect::<Vec<_>>();
        let speeds =
            ratios(|pair| Some(pair.placement.tokens_per_second / pair.baseline.tokens_per_second));
        let memory = ratios(|pair| {
            let baseline = pair.baseline.peak_rss_bytes?;
            Some(pair.placement.peak_rss_bytes? as f64 / baseline as f64)
        });
        let placement = medians(pairs.iter().map(|pair| pair.placement));
        let placement = placement.expect("there is at least one round");
        Self {
            tokens_per_second: placement.tokens_per_second,
            relative_speed: median(&speeds),
            relative_speeds: speeds,
            peak_rss_bytes: placement.peak_rss_bytes,
            relative_memory: (!memory.is_empty()).then(|| median(&memory)),
        }
    }
}

/// Returns the median of each value; `None` without measurements.
fn medians(measured: impl Iterator<Item = Measurement>) -> Option<Measurement> {
    let (mut speeds, mut memory) = (Vec::new(), Vec::new());
    for measured in measured {
        speeds.push(measured.tokens_per_second);
        memory.extend(measured.peak_rss_bytes.map(|bytes| bytes as f64));
    }
    (!speeds.is_empty()).then(|| Measurement {
        tokens_per_second: median(&speeds),
        peak_rss_bytes: (!memory.is_empty()).then(|| median(&memory) as u64),
    })
}

#[cfg(test)]
mod tests;
