//! Execution of the runs of a study.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use super::folder::{Begin, Folder};
use super::hold::Passing;
use super::plan::{Halving, Planned, Study};
use super::record::RunRecord;
use super::records::DataOf;
use super::run::{self, Came};
use super::rungs::Rung;
use crate::error::{Error, Result};
use crate::files::Locking;
use crate::train::Event;
use crate::{Device, threads};

/// Options for running a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Number of concurrent runs; the compute threads are divided among them.
    pub jobs: usize,
    /// Resume the study in the folder.
    pub resume: bool,
    /// Do only this shard of the runs.
    pub shard: Option<Shard>,
    /// Locking of the study folder and the run directories.
    pub locking: Locking,
}

/// Every `of`-th run, starting with number `index`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    of: usize,
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/');
        let numbers = parts.and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Self { index, of }),
            _ => Err(Error::config(format!(
                "shard {text:?}: expected I/N with I from 1 to N"
            ))),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// Progress events of a study.
#[derive(Debug)]
pub enum StudyEvent<'a> {
    /// Message for the user.
    Note(String),
    /// The study starts.
    Begun {
        /// Number of runs of this study or shard.
        runs: usize,
        /// Number of runs finished before.
        finished: usize,
        /// Number of optimizer steps per run.
        steps: u64,
    },
    /// Event of a run.
    Run {
        /// The run.
        run: &'a Planned,
        /// Its event.
        event: Event<'a>,
    },
    /// A run has finished.
    Finished(&'a RunRecord),
}

/// Runs a study in `folder`; returns its records, or `None` if stopped.
///
/// # Errors
/// If the folder holds a study that is not to be resumed, another process works on it, a record does not match
/// its run, or data or files are invalid. Diverged runs are results, not errors.
pub fn run(
    study: &Study,
    folder: &Folder,
    options: &Options,
    device: Device,
    stop: &AtomicBool,
    on_event: &(dyn Fn(StudyEvent<'_>) + Sync),
) -> Result<Option<Vec<RunRecord>>> {
    let threads = threads::count();
    if options.jobs == 0 || options.jobs > threads {
        return Err(Error::config(format!(
            "jobs = {}, expected 1 to {threads}: every job takes a thread at least, and there are {threads} \
             (--jobs, --threads)",
            options.jobs
        )));
    }
    let halving = study.file.study.halving.as_ref();
    if let (Some(_), Some(shard)) = (halving, options.shard) {
        return Err(Error::config(format!(
            "shard {shard}: with study.halving runs depend on each other and cannot be split"
        )));
    }
    if let Some(halving) = halving {
        halving.check_steps(study.steps())?;
    }
    let chosen: Vec<Planned> = match options.shard {
        Some(Shard { index, of }) => {
            let own = study.runs.iter().skip(index - 1).step_by(of);
            own.cloned().collect()
        }
        None => study.runs.clone(),
    };
    let how = Begin {
        resume: options.resume,
        is_shard: options.shard.is_some(),
        locking: options.locking,
    };
    // The lock is held until the end.
    let begun = folder.begin(study, &chosen, how)?;
    if let Some(note) = &begun.note {
        on_event(StudyEvent::Note(note.clone()));
    }
    // Invalid records are reported before hours of work, not after.
    let finished = folder.read(&chosen)?;
    // Includes runs of other shards: all runs of a study have the same data.
    let data = DataOf::all(&folder.read(&study.runs)?.records)?;
    if !finished.without_checksum.is_empty() {
        on_event(StudyEvent::Note(format!(
            "{} of {} records have no checksum, as those of earlier versions",
            finished.without_checksum.len(),
            finished.records.len()
        )));
    }
    on_event(StudyEvent::Begun {
        runs: chosen.len(),
        finished: finished.records.len(),
        steps: study.steps(),
    });
    let pass = Pass {
        study,
        folder,
        jobs: options.jobs,
        device,
        how,
        stop,
        on_event,
        data: Mutex::new(data),
        frequencies: OnceLock::new(),
    };
    for record in &finished.records {
        pass.settle(record)?;
    }
    let all: Vec<&Planned> = chosen.iter().collect();
    if let Some(halving) = halving
        && !pass.halve(halving, &all)?
    {
        return Ok(None);
    }
    if !pass.through(&all, None)? {
        return Ok(None);
    }
    folder.records(&chosen).map(Some)
}

struct Pass<'a> {
    study: &'a Study,
    folder: &'a Folder,
    jobs: usize,
    device: Device,
    how: Begin,
    stop: &'a AtomicBool,
    on_event: &'a (dyn Fn(StudyEvent<'_>) + Sync),
    data: Mutex<Option<DataOf>>,
    frequencies: OnceLock<f64>,
}

impl Pass<'_> {
    /// Trains runs to step `limit` or to their end, `jobs` at a time; returns true if all reached it.
    fn through(&self, runs: &[&Planned], limit: Option<u64>) -> Result<bool> {
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let all_came = AtomicBool::new(true);
        let work = || {
            while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let has_failed = || lock(&failed).is_some();
                if self.stop.load(Ordering::Relaxed) || has_failed() {
                    all_came.store(false, Ordering::Relaxed);
                    return;
                }
                match self.one(run, limit) {
                    Ok(true) => {}
                    Ok(false) => all_came.store(false, Ordering::Relaxed),
                    Err(error) => {
                        lock(&failed).get_or_insert(error);
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
        match failed.into_inner() {
            Ok(Some(error)) => Err(error),
            _ => Ok(all_came.into_inner()),
        }
    }

    /// Divides the threads among the jobs.
    fn pools(&self) -> Result<Vec<rayon::ThreadPool>> {
        let threads = threads::count();
        (0..self.jobs)
            .map(|job| threads::pool(threads / self.jobs + usize::from(job < threads % self.jobs)))
            .collect()
    }

    /// Locks a run while the returned lock lives: shards may overlap.
    fn claim(&self, id: &str) -> Result<Passing> {
        self.folder.claim(id, self.how.locking)
    }

    /// Completes the clean-up of a recorded run, which a kill may have prevented.
    fn settle(&self, record: &RunRecord) -> Result<()> {
        let claim = self.claim(&record.id)?;
        let keep = self.study.file.study.keep_runs;
        if let Some(note) = self.folder.settle(record, keep)? {
            (self.on_event)(StudyEvent::Note(note));
        }
        claim.release()
    }

    /// Trains one run to step `limit` or to its end; returns true if it reached it.
    fn one(&self, run: &Planned, limit: Option<u64>) -> Result<bool> {
        if self.folder.is_finished(&run.id)? {
            return Ok(true);
        }
        let claim = self.claim(&run.id)?;
        // Another process may have finished it meanwhile.
        let came = match self.folder.is_finished(&run.id)? {
            true => true,
            false => self.train(run, limit)?,
        };
        claim.release()?;
        Ok(came)
    }

    /// As [`Pass::one`], for a run that this process has locked.
    fn train(&self, run: &Planned, limit: Option<u64>) -> Result<bool> {
        self.folder.reclaim(&run.id)?;
        let section = &self.study.file.study;
        let options = run::Options {
            diverged_above: section.diverged_above,
            limit,
            is_alone: self.jobs == 1,
            device: self.device,
            locking: self.how.locking,
            stop: self.stop,
            frequencies: &self.frequencies,
        };
        let agrees = |own| DataOf::add(&mut lock(&self.data), own);
        let work = self.folder.work(&run.id);
        let came = run::execute(run, &work, options, &agrees, &mut |event| {
            (self.on_event)(StudyEvent::Run { run, event });
        })?;
        match came {
            Came::Through(record) => {
                self.folder.finish(&record, section.keep_runs)?;
                (self.on_event)(StudyEvent::Finished(&record));
                Ok(true)
            }
            Came::To => Ok(true),
            Came::Stopped => Ok(false),
        }
    }

    /// Eliminates poor learning rates; returns true if all runs reached the ranking steps.
    fn halve(&self, halving: &Halving, runs: &[&Planned]) -> Result<bool> {
        let mut rungs = self.folder.rungs()?;
        let mut alive: Vec<&Planned> = runs.to_vec();
        for (index, share) in halving.at.iter().enumerate() {
            let step = Halving::step(*share, self.study.steps());
            let of: Vec<String> = alive.iter().map(|run| run.id.clone()).collect();
            if index == rungs.len() {
                if !self.through(&alive, Some(step))? {
                    return Ok(false);
                }
                let on = self.better(halving.keep, &alive, step)?;
                rungs.push(Rung { of, on });
                self.folder.write_rungs(&rungs)?;
            } else if rungs[index].of != of {
                return Err(self.folder.other_rungs());
            }
            let goes_on = |run: &&Planned| rungs[index].on.contains(&run.id);
            let (on, out): (Vec<&Planned>, Vec<&Planned>) = alive.into_iter().partition(goes_on);
            for run in out {
                if self.folder.is_finished(&run.id)? {
                    continue;
                }
                self.folder.reclaim(&run.id)?;
                let work = self.folder.work(&run.id);
                let locking = self.how.locking;
                let record = run::leave_out(run, &work, step, self.device, locking)?;
                self.folder
                    .finish(&record, self.study.file.study.keep_runs)?;
                (self.on_event)(StudyEvent::Finished(&record));
            }
            alive = on;
        }
        Ok(true)
    }

    /// Returns the ids of the runs with the better learning rates of each placement, initialization and depth.
    fn better(&self, keep: f64, runs: &[&Planned], step: u64) -> Result<Vec<String>> {
        let mut losses: BTreeMap<_, BTreeMap<u64, Vec<f64>>> = BTreeMap::new();
        let group = |run: &Planned| {
            let cell = &run.cell;
            (cell.placement.clone(), cell.init.clone(), cell.depth)
        };
        for run in runs {
            // A run that has a record at this point has diverged.
            let loss = match self.folder.is_finished(&run.id)? {
                true => None,
                false => run::loss_at(&self.folder.work(&run.id), step)?,
            };
            let rates = losses.entry(group(run)).or_default();
            let rate = rates.entry(run.cell.lr.to_bits()).or_default();
            rate.push(loss.unwrap_or(f64::INFINITY));
        }
        let mut kept = BTreeMap::new();
        for (group, rates) in losses {
            let mean = |losses: &Vec<f64>| losses.iter().sum::<f64>() / losses.len() as f64;
            let mut ranked: Vec<(f64, u64)> = rates
                .iter()
                .map(|(&lr, losses)| (mean(losses), lr))
                .collect();
            ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            ranked.truncate((keep * ranked.len() as f64).ceil() as usize);
            kept.insert(group, ranked);
        }
        let is_kept = |run: &&&Planned| {
            let lr = run.cell.lr.to_bits();
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
