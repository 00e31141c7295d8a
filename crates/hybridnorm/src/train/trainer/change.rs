//! Configuration changes in the middle of a run.

use super::initial::check_memory;
use super::open::check_config;
use super::{Trainer, resume};
use crate::error::{Error, Result};
use crate::machine;
use crate::train::config::Config;
use crate::train::history;
use crate::train::segments::Segment;

impl Trainer {
    /// Continues with a changed configuration, as a process would that resumes the run at the current step. Adds a
    /// segment that records the change.
    ///
    /// # Errors
    /// If the configuration is not valid, or the run cannot continue with it (different model, data, data order or
    /// optimizer kind), a step would exceed memory or its budget, or the history cannot be written. `[log]` must not
    /// change either.
    pub fn set_config(&mut self, config: Config) -> Result<()> {
        check_config(&config)?;
        resume::check_same_run(&self.config, &config, &self.files.run)?;
        let kept = [
            ("[data]", self.config.data == config.data),
            ("[log]", self.config.log == config.log),
        ];
        if let Some((key, _)) = kept.iter().find(|(_, same)| !same) {
            return Err(Error::conflict(
                [key],
                format!("{key} cannot change during a run"),
            ));
        }
        if config.optimizer.qk_clip.is_some() {
            self.model().config().check_qk_clip()?;
        }
        check_memory(&config, self.model().config())?;
        let options = config.train.evaluation_options();
        self.learner.model.set_plan_options(options)?;
        let changed = history::diff(&self.config, &config);
        let schedule = config.resolved_schedule()?;
        self.learner
            .reconfigure(config.optimizer.clone(), schedule)?;
        self.config = config;
        let next = Segment {
            after_step: self.state.step,
            last_step: None,
            started: machine::timestamp(),
            changed,
            bf16_unit: self.config.train.program_precision().bf16_unit(),
            weights: None,
            peak_memory_bytes: None,
            ..self.segment().clone()
        };
        self.files.start_segment(next, &self.config)
    }
}
