//! Downstream tasks of a run, evaluated while it trains.

use std::collections::BTreeMap;

use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::{Model, ModelConfig};
use crate::tasks::{Task, TaskOptions, check_task, evaluate_task, open_tasks};
use crate::train::config::Config;
use crate::train::inventory::inventory;
use crate::train::metrics::TaskScores;

/// Tasks of a run.
#[derive(Default)]
pub(super) struct RunTasks {
    tasks: Vec<Task>,
    every: usize,
}

impl RunTasks {
    /// Opens the tasks of `[eval]` and checks all their requests, before the run begins.
    ///
    /// # Errors
    /// If one cannot be opened, the model cannot be evaluated on it, there is no tokenizer, or there is not enough memory
    /// for training and evaluation.
    pub(super) fn open(
        config: &Config,
        model: &ModelConfig,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Self> {
        let Some(section) = &config.eval else {
            return Ok(Self::default());
        };
        let Some(tokenizer) = tokenizer else {
            return Err(Error::missing(
                "data.tokenizer",
                ": the tasks in [eval] are text, and need the tokenizer of the data",
            ));
        };
        let tasks = open_tasks(&section.tasks, section.limit)?;
        let mut cache = 0;
        for task in &tasks {
            let bytes = check_task(model, tokenizer, task, TaskOptions::default())?;
            cache = cache.max(bytes);
        }
        let memory = inventory(model, config.train.step_shape(), &config.optimizer)?.memory;
        // The weights are in memory.
        let training = memory.total_without_process() - memory.weights;
        memory::check_available(
            training.saturating_add(cache),
            "gradients, moments and activations, and the keys and values of the tasks in [eval]",
        )?;
        Ok(Self {
            tasks,
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
