//! Execution of the runs of a study.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use derive_setters::Setters;

use super::folder::{StartOptions, StudyFolder};
use super::folder_lock::TemporaryLock;
use super::plan::{PlannedRun, Study};
use super::record::RunRecord;
use super::records::DataFingerprints;
use super::run::{self, RunProgress};
use super::rungs::Rung;
use super::settings::Halving;
use crate::error::{Error, Result};
use crate::files::{self, Locking};
use crate::train::{self, Event};
use crate::{Device, threads};

/// Options for running a study.
#[derive(Debug, Clone, PartialEq, Eq, Setters)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct Options {
    /// Maximum number of concurrent runs; the compute threads are divided among them.
    pub jobs: usize,
    /// True to resume the study in the folder.
    pub resume: bool,
    /// Shard of the runs to execute; `None`: all runs.
    pub shard: Option<Shard>,
    /// Locking of the study folder and the run directories.
    pub locking: Locking,
}

impl Default for Options {
    /// Returns options for a new study, one run at a time.
    fn default() -> Self {
        Self {
            jobs: 1,
            resume: false,
            shard: None,
            locking: Locking::Required,
        }
    }
}

/// Shard of the runs: every `count`-th run, starting with run `index`, counted from 1.
///
/// ```
/// use hybridnorm::lab::study::{Options, Shard};
///
/// let shard: Shard = "2/4".parse()?;
/// assert_eq!(shard, Shard::new(2, 4)?);
/// assert!(Shard::new(5, 4).is_err());
/// let options = Options::default().with_shard(shard);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// Returns shard `index` of `count`, counted from 1.
    ///
    /// # Errors
    /// If `index` is not between 1 and `count`.
    pub fn new(index: usize, count: usize) -> Result<Self> {
        match (1..=count).contains(&index) {
            true => Ok(Self { index, count }),
            false => Err(Self::invalid(&format!("{index}/{count}"))),
        }
    }

    fn invalid(text: &str) -> Error {
        Error::invalid_value(
            "shard",
            format!("shard {text:?}: expected I/N with I from 1 to N"),
        )
    }

    /// Returns the runs of this shard.
    fn of_runs(self, runs: &[PlannedRun]) -> Vec<PlannedRun> {
        let own = runs.iter().skip(self.index - 1).step_by(self.count);
        own.cloned().collect()
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/');
        let numbers =
            parts.and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        let (index, count) = numbers.ok_or_else(|| Self::invalid(text))?;
        Self::new(index, count)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// Progress events of a study.
#[derive(Debug)]
#[non_exhaustive]
pub enum StudyEvent<'a> {
    /// Message for the user.
    Note(String),
    /// The study starts.
    Started {
        /// Number of runs of this study or shard.
        runs: usize,
        /// Number of runs that had ended before.
        ended: usize,
        /// Number of optimizer steps per run.
        steps: u64,
    },
    /// Event of a run.
    Run {
        /// The run.
        run: &'a PlannedRun,
        /// Its event.
        event: Event<'a>,
    },
    /// A run ended: finished, diverged, not learned yet or eliminated.
    Ended(&'a RunRecord),
}

/// Runs a study in `folder`; returns its records, or `None` if stopped.
///
/// # Errors
/// If the folder has a study and `resume` is not set, another process is working on it, a record does not match its
/// run, or data or files are invalid. Diverged runs are results, not errors.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::lab::study::{self, Options, Study, StudyFolder, StudySettings};
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
/// # let parent = tempfile::tempdir().unwrap();
/// let grid = StudySettings::new(["pre-norm", "hybridnorm"], [3e-3], [1]);
/// let study = Study::from_config(&config, grid)?;
/// let folder = StudyFolder::new(parent.path().join("study"));
/// let (options, stop) = (Options::default(), false.into());
/// let records = study::run(&study, &folder, &options, Device::Cpu, &stop, &|_| {})?;
/// let records = records.expect("`stop` is false");
/// assert_eq!(records[1].grid_point.placement, "hybridnorm");
/// assert!(records.iter().all(|record| record.validation_loss.is_some()));
///
/// // Runs that ended are never repeated.
/// let options = options.with_resume(true);
/// let again = study::run(&study, &folder, &options, Device::Cpu, &stop, &|_| {})?;
/// assert_eq!(again, Some(records));
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn run(
    study: &Study,
    folder: &StudyFolder,
    options: &Options,
    device: Device,
    stop: &AtomicBool,
    on_event: &(dyn Fn(StudyEvent<'_>) + Sync),
) -> Result<Option<Vec<RunRecord>>> {
    check_options(study, options)?;
    let runs = match options.shard {
        Some(shard) => shard.of_runs(&study.runs),
        None => study.runs.clone(),
    };
    let start = StartOptions {
        resume: options.resume,
        is_shard: options.shard.is_some(),
        locking: options.locking,
    };
    check_inputs_of_new_study(folder, &runs, options, on_event)?;
    // The lock is held until the end.
    let started = folder.start(study, &runs, start)?;
    if let Some(note) = &started.note {
        on_event(StudyEvent::Note(note.clone()));
    }
    // Invalid records are reported before hours of work, not after.
    let recorded = folder.read(&runs)?;
    // Includes runs of other shards: all runs of a study have the same data.
    let data = DataFingerprints::common(&folder.read(&study.runs)?.records)?;
    if !recorded.without_checksum.is_empty() {
        on_event(StudyEvent::Note(format!(
            "{} of {} records have no checksum (written by earlier versions)",
            recorded.without_checksum.len(),
            recorded.records.len()
        )));
    }
    on_event(StudyEvent::Started {
        runs: runs.len(),
        ended: recorded.records.len(),
        steps: study.steps(),
    });
    let runner = StudyRunner {
        study,
        folder,
        jobs: options.jobs,
        device,
        locking: options.locking,
        stop,
        on_event,
        data: Mutex::new(data),
        unigram_loss: OnceLock::new(),
    };
    for record in &recorded.records {
        runner.clean_up(record)?;
    }
    match runner.run_all(&runs)? {
        true => folder.records(&runs).map(Some),
        false => Ok(None),
    }
}

/// Checks data and tasks before the folder of a new study is created. All runs have the same.
fn check_inputs_of_new_study(
    folder: &StudyFolder,
    runs: &[PlannedRun],
    options: &Options,
    on_event: &(dyn Fn(StudyEvent<'_>) + Sync),
) -> Result<()> {
    let Some(run) = runs.first() else {
        return Ok(());
    };
    // Without a folder, there is nothing to resume.
    let is_missing = options.resume && !files::exists(folder.path())?;
    if is_missing || folder.has_study()? {
        return Ok(());
    }
    train::check_inputs(&run.config, &mut |event| {
        on_event(StudyEvent::Run { run, event });
    })
}

/// Checks the options before anything is written.
fn check_options(study: &Study, options: &Options) -> Result<()> {
    let threads = threads::count();
    if options.jobs == 0 || options.jobs > threads {
        return Err(Error::out_of_range(
            "jobs",
            options.jobs,
            format!("1 to {threads}: each job needs at least one of the {threads} threads"),
        ));
    }
    let Some(halving) = &study.config.study.halving else {
        return Ok(());
    };
    if let Some(shard) = options.shard {
        return Err(Error::conflict(
            ["shard", "study.halving"],
            format!(
                "shard {shard}: with study.halving runs depend on each other and cannot be split"
            ),
        ));
    }
    halving.check_steps(study.steps())
}

/// Training of the runs of a study.
struct StudyRunner<'a> {
    study: &'a Study,
    folder: &'a StudyFolder,
    jobs: usize,
    device: Device,
    locking: Locking,
    stop: &'a AtomicBool,
    on_event: &'a (dyn Fn(StudyEvent<'_>) + Sync),
    data: Mutex<Option<DataFingerprints>>,
    unigram_loss: OnceLock<f64>,
}

impl StudyRunner<'_> {
    /// Trains all runs to completion, with successive halving if the study uses it; returns true if all ended.
    fn run_all(&self, runs: &[PlannedRun]) -> Result<bool> {
        let runs: Vec<&PlannedRun> = runs.iter().collect();
        match &self.study.config.study.halving {
            Some(halving) if !self.run_halving(halving, &runs)? => Ok(false),
            _ => self.train_all(&runs, None),
        }
    }

    /// Trains runs to step `limit` or to their end, `jobs` at a time; returns true if all reached it.
    fn train_all(&self, runs: &[&PlannedRun], limit: Option<u64>) -> Result<bool> {
        let next = AtomicUsize::new(0);
        let first_error: Mutex<Option<Error>> = Mutex::new(None);
        let all_reached = AtomicBool::new(true);
        let work = || {
            while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let has_failed = || lock(&first_error).is_some();
                if self.stop.load(Ordering::Relaxed) || has_failed() {
                    all_reached.store(false, Ordering::Relaxed);
                    return;
                }
                match self.train_one(run, limit) {
                    Ok(true) => {}
                    Ok(false) => all_reached.store(false, Ordering::Relaxed),
                    Err(error) => {
                        lock(&first_error).get_or_insert(error);
                    }
                }
            }
        };
        if self.jobs == 1 {
            work();
        } else {
            let pools = self.pools()?;
            std::thread::scope(|scope| {
                for pool in &pools {
                    scope.spawn(|| pool.install(work));
                }
            });
        }
        match first_error.into_inner() {
            Ok(Some(error)) => Err(error),
            _ => Ok(all_reached.into_inner()),
        }
    }

    /// Divides the threads among the jobs.
    fn pools(&self) -> Result<Vec<rayon::ThreadPool>> {
        let threads = threads::count();
        (0..self.jobs)
            .map(|job| threads::pool(threads / self.jobs + usize::from(job < threads % self.jobs)))
            .collect()
    }

    /// Locks a run until the returned lock is released: shards may overlap.
    fn lock_run(&self, id: &str) -> Result<TemporaryLock> {
        self.folder.lock_run(id, self.locking)
    }

    /// Completes the clean-up of a recorded run, which a kill may have prevented.
    fn clean_up(&self, record: &RunRecord) -> Result<()> {
        let run_lock = self.lock_run(&record.id)?;
        let keep = self.study.config.study.keep_runs;
        if let Some(note) = self.folder.complete_clean_up(record, keep)? {
            (self.on_event)(StudyEvent::Note(note));
        }
        run_lock.release()
    }

    /// Trains one run to step `limit` or to its end; returns true if it reached it.
    fn train_one(&self, run: &PlannedRun, limit: Option<u64>) -> Result<bool> {
        if self.folder.has_record(&run.id)? {
            return Ok(true);
        }
        let run_lock = self.lock_run(&run.id)?;
        // Another process may have finished it meanwhile.
        let reached = match self.folder.has_record(&run.id)? {
            true => true,
            false => self.train(run, limit)?,
        };
        run_lock.release()?;
        Ok(reached)
    }

    /// As [`StudyRunner::train_one`], for a run that this process has locked.
    fn train(&self, run: &PlannedRun, limit: Option<u64>) -> Result<bool> {
        self.folder.move_back_to_work(&run.id)?;
        let section = &self.study.config.study;
        let options = run::Options {
            diverged_above: section.diverged_above,
            limit,
            exclusive_process: self.jobs == 1,
            device: self.device,
            locking: self.locking,
            stop: self.stop,
            unigram_loss: &self.unigram_loss,
        };
        let data_mismatch = |own| DataFingerprints::merge(&mut lock(&self.data), own);
        let work = self.folder.work(&run.id);
        let progress = run::execute(run, &work, options, &data_mismatch, &mut |event| {
            (self.on_event)(StudyEvent::Run { run, event });
        })?;
        match progress {
            RunProgress::Ended(record) => {
                self.folder.finish(&record, section.keep_runs)?;
                (self.on_event)(StudyEvent::Ended(&record));
                Ok(true)
            }
            RunProgress::LimitReached => Ok(true),
            RunProgress::Stopped => Ok(false),
        }
    }

    /// Eliminates poor learning rates; returns true if the remaining runs reached the step of every rung.
    fn run_halving(&self, halving: &Halving, runs: &[&PlannedRun]) -> Result<bool> {
        let mut rungs = self.folder.rungs()?;
        let mut remaining: Vec<&PlannedRun> = runs.to_vec();
        for (index, &fraction) in halving.at.iter().enumerate() {
            let step = Halving::step(fraction, self.study.steps());
            let ranked: Vec<String> = remaining.iter().map(|run| run.id.clone()).collect();
            if index == rungs.len() {
                if !self.train_all(&remaining, Some(step))? {
                    return Ok(false);
                }
                let kept = self.best_learning_rates(halving.keep, &remaining, step)?;
                rungs.push(Rung { ranked, kept });
                self.folder.write_rungs(&rungs)?;
            } else if rungs[index].ranked != ranked {
                return Err(self.folder.halving_mismatch());
            }
            let is_kept = |run: &&PlannedRun| rungs[index].kept.contains(&run.id);
            let (kept, eliminated): (Vec<&PlannedRun>, Vec<&PlannedRun>) =
                remaining.into_iter().partition(is_kept);
            for run in eliminated {
                self.eliminate(run, step)?;
            }
            remaining = kept;
        }
        Ok(true)
    }

    /// Records that a run was eliminated after `step` steps, unless it ended before.
    fn eliminate(&self, run: &PlannedRun, step: u64) -> Result<()> {
        if self.folder.has_record(&run.id)? {
            return Ok(());
        }
        self.folder.move_back_to_work(&run.id)?;
        let work = self.folder.work(&run.id);
        let record = run::eliminated_record(run, &work, step, self.device, self.locking)?;
        self.folder
            .finish(&record, self.study.config.study.keep_runs)?;
        (self.on_event)(StudyEvent::Ended(&record));
        Ok(())
    }

    /// Returns the ids of the runs with the better learning rates of each placement, initialization and depth.
    fn best_learning_rates(
        &self,
        keep: f64,
        runs: &[&PlannedRun],
        step: u64,
    ) -> Result<Vec<String>> {
        let mut losses: BTreeMap<_, BTreeMap<u64, Vec<f64>>> = BTreeMap::new();
        let group = |run: &PlannedRun| {
            let grid_point = &run.grid_point;
            (
                grid_point.placement.clone(),
                grid_point.init.clone(),
                grid_point.depth,
            )
        };
        for run in runs {
            // A run that has a record at this point has diverged.
            let loss = match self.folder.has_record(&run.id)? {
                true => None,
                false => run::loss_at(&self.folder.work(&run.id), step)?,
            };
            let by_lr = losses.entry(group(run)).or_default();
            let of_lr = by_lr.entry(run.grid_point.lr.to_bits()).or_default();
            of_lr.push(loss.unwrap_or(f64::INFINITY));
        }
        let mut kept = BTreeMap::new();
        for (group, by_lr) in losses {
            let mean = |losses: &Vec<f64>| losses.iter().sum::<f64>() / losses.len() as f64;
            let mut ranked: Vec<(f64, u64)> = by_lr
                .iter()
                .map(|(&lr, losses)| (mean(losses), lr))
                .collect();
            ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            ranked.truncate((keep * ranked.len() as f64).ceil() as usize);
            kept.insert(group, ranked);
        }
        let is_kept = |run: &&&PlannedRun| {
            let lr = run.grid_point.lr.to_bits();
            kept[&group(run)].iter().any(|&(_, kept)| kept == lr)
        };
        Ok(runs
            .iter()
            .filter(is_kept)
            .map(|run| run.id.clone())
            .collect())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
