//! Downstream tasks of a run, evaluated while it trains.

use std::collections::BTreeMap;

use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::tasks::{Task, TaskOptions, evaluate_task, open_tasks};
use crate::train::config::Config;
use crate::train::metrics::TaskScores;

/// Tasks of a run.
#[derive(Default)]
pub(super) struct RunTasks {
    tasks: Vec<Task>,
    every: usize,
}

impl RunTasks {
    /// Opens the tasks of `[eval]`, before the run begins.
    ///
    /// # Errors
    /// If one cannot be opened, or there is no tokenizer.
    pub(super) fn open(config: &Config, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let Some(section) = &config.eval else {
            return Ok(Self::default());
        };
        if tokenizer.is_none() {
            return Err(Error::missing(
                "data.tokenizer",
                ": the tasks in [eval] are text, and need the tokenizer of the data",
            ));
        }
        Ok(Self {
            tasks: open_tasks(&section.tasks, section.limit)?,
            every: section.every,
        })
    }

    /// True if the tasks are due after step `step` of `steps`.
    pub(super) fn is_due(&self, step: u64, steps: u64) -> bool {
        !self.tasks.is_empty() && (super::is_due(self.every, step) || step == steps)
    }

    /// Evaluates the model on all tasks.
    ///
    /// # Errors
    /// As [`evaluate_task`].
    pub(super) fn evaluate(
        &self,
        model: &mut Model,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<BTreeMap<String, TaskScores>> {
        let Some(tokenizer) = tokenizer else {
            return Ok(BTreeMap::new());
        };
        let evaluate = |task: &Task| {
            let result =
                evaluate_task(model, tokenizer, task, TaskOptions::default(), &mut |_| ())?;
            let values = result
                .metrics
                .iter()
                .map(|found| (found.metric.name().to_owned(), found.value));
            let main = result
                .metrics
                .first()
                .map(|found| found.metric.name().to_owned());
            let scores = TaskScores {
                documents: task.documents.len() as u64,
                main: main.unwrap_or_default(),
                values: values.collect(),
            };
            Ok((task.name.clone(), scores))
        };
        self.tasks.iter().map(evaluate).collect()
    }
}
