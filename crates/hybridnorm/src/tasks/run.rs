//! Record of an evaluation on several tasks, and its files.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::document::Task;
use super::evaluate::{TaskOptions, TaskResult};
use super::results::{sample_lines, task_results};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::files::{self, AtomicFile};
use crate::model::Model;

/// Results of several tasks with the checkpoint, the tokenizer and the date.
#[derive(Debug, Clone)]
pub struct TaskRun {
    json: Map<String, Value>,
    date: String,
    start_token: String,
}

impl TaskRun {
    /// Creates the record of finished tasks, with the path and the fingerprint of the model's checkpoint.
    pub fn new(
        checkpoint: (&Path, &str),
        model: &Model,
        tokenizer: &Tokenizer,
        options: TaskOptions,
        finished: &[(Task, TaskResult)],
    ) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let date = chrono::DateTime::from_timestamp(now.as_secs() as i64, now.subsec_nanos());
        let date = date
            .unwrap_or_default()
            .format("%Y-%m-%dT%H-%M-%S%.6f")
            .to_string();
        let mut json = task_results(finished, options);
        let (path, sha256) = checkpoint;
        let name = path.display().to_string();
        let config = json!({
            "model": "hybridnorm",
            "model_args": {"pretrained": name},
            "model_sha256": sha256,
            "model_num_parameters": model.decoder().registry().elements(),
            "model_dtype": "float32",
            "precision": model.precision().to_string(),
            "device": "cpu",
        });
        let (start, empty) = finished.first().map_or((None, None), |(_, result)| {
            (result.start_id, Some(result.empty_context_id))
        });
        let named = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id]));
        let more = [
            ("config", config),
            ("date", json!(now.as_secs_f64())),
            ("model_source", json!("hybridnorm")),
            ("model_name", json!(name)),
            ("max_length", json!(model.config().max_seq_len)),
            ("tokenizer", json!(tokenizer.record())),
            (
                "tokenizer_bos_token",
                json!([named(start), start.map(|id| id.to_string())]),
            ),
            ("eot_token_id", json!(tokenizer.eos_id())),
        ];
        json.extend(more.map(|(key, value)| (key.to_owned(), value)));
        Self {
            json,
            date,
            start_token: start_token_note(tokenizer, start, empty),
        }
    }

    /// Returns the results as one JSON document.
    pub fn to_json(&self) -> Value {
        Value::Object(self.json.clone())
    }

    /// Describes the tokens before contexts in one line.
    pub fn start_token_note(&self) -> String {
        self.start_token.clone()
    }

    /// Creates the folder for [`TaskRun::write`] if it does not exist, and checks that files can be created in it.
    ///
    /// # Errors
    /// If they cannot be.
    pub fn create_folder(folder: &Path) -> Result<()> {
        if !files::exists(folder)? {
            files::create_dir(folder)?;
        }
        // Without `commit`, it is removed.
        AtomicFile::create(folder.join("results.json")).map(drop)
    }

    /// Writes `results_DATE.json` and for each task `samples_TASK_DATE.jsonl` to a folder, which is created if it does
    /// not exist; returns the path of the results, which are written last.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path, finished: &[(Task, TaskResult)]) -> Result<PathBuf> {
        if !files::exists(folder)? {
            files::create_dir(folder)?;
        }
        for (task, result) in finished {
            let path = folder.join(format!(
                "samples_{}_{}.jsonl",
                file_name(&task.name),
                self.date
            ));
            let mut file = AtomicFile::create(&path)?;
            for line in sample_lines(task, result) {
                writeln!(file, "{line}").map_err(Error::io(&path))?;
            }
            file.commit()?;
        }
        let path = folder.join(format!("results_{}.json", self.date));
        let json = serde_json::to_vec_pretty(&self.json)
            .map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(&path, &json)?;
        Ok(path)
    }
}

/// Returns a task name as a part of a file name.
fn file_name(name: &str) -> String {
    let is_safe = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    name.chars()
        .map(|c| if is_safe(c) { c } else { '_' })
        .collect()
}

fn start_token_note(tokenizer: &Tokenizer, start: Option<u32>, empty: Option<u32>) -> String {
    let own = match tokenizer.start_id() {
        Some(id) => format!("the tokenizer adds {}", tokenizer.decode(&[id])),
        None => "the tokenizer adds none".to_owned(),
    };
    match (start, empty) {
        (Some(start), _) => format!(
            "start token of every context: {} ({own})",
            tokenizer.decode(&[start])
        ),
        (None, Some(empty)) => format!(
            "no start token ({own}); an empty context is {}",
            tokenizer.decode(&[empty])
        ),
        (None, None) => own,
    }
}
