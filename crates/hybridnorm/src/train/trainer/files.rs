//! Files of a run directory. A process that runs no step writes none.

use std::path::{Path, PathBuf};

use super::State;
use crate::error::Result;
use crate::files;
use crate::memory;
use crate::train::checkpoint::{self, Contents};
use crate::train::config::Config;
use crate::train::layers::LayerRecord;
use crate::train::metrics::Metrics;
use crate::train::recorder::Recorder;
use crate::train::records::{Record, RecordFile};
use crate::train::run_directory;
use crate::train::run_directory_guard::RunDirectoryGuard;
use crate::train::segments::{self, Segment};

/// Files of the run directory that this process writes.
pub(super) struct RunFiles {
    pub(super) run: PathBuf,
    /// Segments of the run; the last one belongs to this process.
    pub(super) segments: Vec<Segment>,
    /// Open once the initial files are written.
    metrics: Option<RecordFile<Metrics>>,
    /// Files to be written before the first step; `None` afterwards.
    pending: Option<InitialFiles>,
    last_saved: Option<u64>,
    guard: RunDirectoryGuard,
}

/// Files that are written before the first step.
#[derive(Debug, Clone, Copy)]
pub(super) struct InitialFiles {
    /// True if the configuration is new or changed.
    pub(super) writes_config: bool,
    /// Step of the checkpoint that the run is resumed from in its directory.
    pub(super) resumed: Option<u64>,
    /// False if the run is restarted from scratch after a kill.
    pub(super) resumes_after_kill: bool,
}

impl RunFiles {
    pub(super) fn new(
        run: &Path,
        segments: Vec<Segment>,
        initial: InitialFiles,
        guard: RunDirectoryGuard,
    ) -> Self {
        Self {
            run: run.to_path_buf(),
            segments,
            metrics: None,
            last_saved: initial.resumed,
            pending: Some(initial),
            guard,
        }
    }

    /// Writes the initial files before the first step, once.
    pub(super) fn write_initial(
        &mut self,
        config: &Config,
        recorder: &mut Recorder,
        step: u64,
    ) -> Result<()> {
        let Some(initial) = self.pending else {
            return Ok(());
        };
        for name in [
            segments::FILE,
            run_directory::CONFIG,
            Metrics::FILE,
            LayerRecord::FILE,
        ] {
            self.guard.register_file(name)?;
        }
        self.guard.register_event_files();
        // Segments first: if the process is killed here, they still describe the old configuration correctly,
        // whereas a new configuration without them would be taken for that of all steps.
        segments::write(&self.run, &self.segments)?;
        if initial.writes_config {
            self.write_config(config)?;
        }
        self.metrics = Some(RecordFile::open(&self.run, step)?);
        recorder.open_files(step)?;
        if initial.resumed.is_some() {
            // A process may have been killed between saving and pruning.
            checkpoint::prune(&self.run, step, config.train.keep_checkpoints)?;
        }
        if initial.resumes_after_kill {
            run_directory::unmark_unfinished(&self.run)?;
        }
        self.guard.disarm();
        self.pending = None;
        Ok(())
    }

    fn write_config(&self, config: &Config) -> Result<()> {
        let path = self.run.join(run_directory::CONFIG);
        files::write(path, config.to_toml().as_bytes()).map(drop)
    }

    /// Appends the metrics of a step.
    pub(super) fn append(&mut self, metrics: &Metrics) -> Result<()> {
        match &mut self.metrics {
            Some(file) => file.append(metrics),
            None => Ok(()),
        }
    }

    /// Starts a segment with a changed configuration.
    pub(super) fn start_segment(&mut self, segment: Segment, config: &Config) -> Result<()> {
        self.segments.push(segment);
        if let Some(initial) = &mut self.pending {
            initial.writes_config = true;
            return Ok(());
        }
        segments::write(&self.run, &self.segments)?;
        self.write_config(config)
    }

    /// True if the newest checkpoint is that of this step.
    pub(super) fn is_saved(&self, step: u64) -> bool {
        self.last_saved == Some(step)
    }

    /// Writes the checkpoint of a step atomically, then removes old ones. All records up to the step are synced to disk
    /// before.
    pub(super) fn save(
        &mut self,
        contents: Contents<'_, State>,
        step: u64,
        recorder: &Recorder,
        keep: usize,
    ) -> Result<PathBuf> {
        self.guard.check_held()?;
        if let Some(metrics) = &self.metrics {
            metrics.sync()?;
        }
        recorder.sync()?;
        // Also the directory entries of both.
        files::sync_parent(&self.run.join(Metrics::FILE))?;
        let path = checkpoint::step_path(&self.run, step);
        match files::exists(&path)? {
            true => checkpoint::replace(&path, contents),
            false => checkpoint::save(&path, contents),
        }?;
        self.last_saved = Some(step);
        if let Some(segment) = self.segments.last_mut() {
            segment.last_step = Some(step);
            segment.peak_memory_bytes = memory::peak_bytes();
        }
        segments::write(&self.run, &self.segments)?;
        checkpoint::prune(&self.run, step, keep)?;
        Ok(path)
    }

    /// Removes the mark of an unfinished run.
    ///
    /// # Errors
    /// If it cannot be removed, or the directory is no longer locked.
    pub(super) fn mark_finished(&self) -> Result<()> {
        self.guard.check_held()?;
        run_directory::unmark_unfinished(&self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::data::Cursor;
    use crate::files::Locking;
    use crate::model::Model;
    use crate::model::testing::tiny;
    use crate::train::{Checkpoint, Optimizer, OptimizerConfig};

    fn segment() -> Segment {
        Segment {
            after_step: 0,
            last_step: None,
            started: "2026-01-01T00:00:00Z".into(),
            changed: Vec::new(),
            threads: 1,
            machine: "test".into(),
            bf16_unit: None,
            version: "0".into(),
            data: "tokens".into(),
            validation: None,
            weights: None,
            peak_memory_bytes: None,
        }
    }

    /// Returns the files of a new run, marked as unfinished.
    fn new_run(run: &Path, resumes_after_kill: bool) -> (RunFiles, Recorder) {
        let mut guard = RunDirectoryGuard::create(run, Locking::Required).unwrap();
        run_directory::mark_unfinished(run, "a test", &mut guard).unwrap();
        let initial = InitialFiles {
            writes_config: true,
            resumed: None,
            resumes_after_kill,
        };
        let recorder = Recorder::open(run, &Config::default().log, 0).unwrap();
        (
            RunFiles::new(run, vec![segment()], initial, guard),
            recorder,
        )
    }

    #[test]
    fn initial_files_are_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join(run_directory::CONFIG);
        let (mut files, mut recorder) = new_run(folder.path(), true);
        assert!(!config.exists());
        let mut write = || files.write_initial(&Config::default(), &mut recorder, 0);
        write().unwrap();
        assert_eq!(Config::default().to_toml(), text(&config));
        assert_eq!(segments::read(folder.path()).unwrap(), [segment()]);
        std::fs::remove_file(&config).unwrap();
        write().unwrap();
        assert!(!config.exists());
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn only_the_newest_checkpoint_is_saved_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (mut files, mut recorder) = new_run(folder.path(), true);
        files
            .write_initial(&Config::default(), &mut recorder, 0)
            .unwrap();
        let mut model = Model::new(&tiny(), 0, Device::Cpu).unwrap();
        let optimizer = Optimizer::new(OptimizerConfig::default(), &mut model).unwrap();
        let paths = [3, 5].map(|step| {
            let state = State {
                step,
                tokens: 8 * step,
                cursor: Cursor::default(),
                data: "tokens".into(),
                max_grad_norm: 1.0,
            };
            let contents = Contents {
                model: &model,
                tokenizer: None,
                training: Some((optimizer.moment_handles(), &state)),
            };
            assert!(!files.is_saved(step));
            let path = files.save(contents, step, &recorder, 1).unwrap();
            assert!(files.is_saved(step));
            let saved: State = Checkpoint::open(&path).unwrap().state().unwrap();
            assert_eq!(saved, state);
            path
        });
        assert!(!files.is_saved(3));
        assert!(!paths[0].exists() && paths[1].exists());
        let recorded = segments::read(folder.path()).unwrap();
        assert_eq!(recorded[0].last_step, Some(5));
    }

    #[test]
    fn run_that_restarts_after_a_kill_is_marked_unfinished_until_it_finishes() {
        for resumes_after_kill in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let mark = folder.path().join(run_directory::UNFINISHED);
            let (mut files, mut recorder) = new_run(folder.path(), resumes_after_kill);
            assert!(mark.exists());
            files
                .write_initial(&Config::default(), &mut recorder, 0)
                .unwrap();
            assert_eq!(mark.exists(), !resumes_after_kill);
            files.mark_finished().unwrap();
            assert!(!mark.exists());
        }
    }
}
