//! Files of tasks: JSON lines of requests or of documents, also compressed.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::document::{Task, TaskDocument};
use super::{document_lines, request_lines};
use crate::data::open_text;
use crate::error::{Error, Result};
use crate::files;
use crate::parse_errors::plain_message;

/// Maximum size of a line in bytes.
const LINE_LIMIT: usize = 16 << 20;
/// Maximum size of all lines in bytes: documents are kept in memory.
const FILE_LIMIT: u64 = 4 << 30;
/// Maximum number of empty lines, which a small compressed file can have by the billion.
const EMPTY_LINE_LIMIT: u64 = 1 << 20;
/// Mark at the start of files of some editors.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Maximum number of documents.
const DOCUMENT_LIMIT: usize = 1 << 20;
/// Maximum number of choices of a document.
pub(super) const CHOICE_LIMIT: usize = 1 << 12;

/// A file of a task, open for reading.
pub struct TaskFile<'a> {
    /// Name for the results.
    pub name: String,
    /// Path for messages.
    pub path: String,
    /// Decompressed content.
    pub lines: Box<dyn BufRead + 'a>,
    /// `config.json` of a request file of OLMES, if there is one.
    pub config: Option<Vec<u8>>,
}

/// Lines of one form.
pub(super) trait Lines {
    /// Adds a line; the error is the problem, without the position.
    fn add(&mut self, line: &str, texts: &mut Texts) -> Result<(), String>;

    /// Returns the number of documents so far.
    fn documents(&self) -> usize;

    /// Returns the documents of all lines; the error is the problem, without the file.
    fn finish(self: Box<Self>) -> Result<Vec<TaskDocument>, String>;
}

/// Contexts, of which neighbouring choices have the same.
#[derive(Default)]
pub(super) struct Texts(Option<Arc<str>>);

impl Texts {
    /// Returns the text, shared with the previous one if they are equal.
    pub(super) fn shared(&mut self, text: &str) -> Arc<str> {
        match &self.0 {
            Some(last) if &**last == text => Arc::clone(last),
            _ => {
                let text: Arc<str> = text.into();
                self.0 = Some(Arc::clone(&text));
                text
            }
        }
    }
}

impl TaskFile<'_> {
    /// Opens a file of JSON lines (`.jsonl`, also `.gz` or `.zst`). For `requests.jsonl.gz`, the name is that of its
    /// two folders, `arc_easy_rc_0shot`, and a `config.json` next to it is read; otherwise it is the name of the file.
    ///
    /// # Errors
    /// If it cannot be opened, or its name does not end in one of these.
    pub fn open(path: &Path) -> Result<TaskFile<'static>> {
        let lines = open_text(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.split('.').next().unwrap_or_default();
        let folders = || {
            let mut parts = path
                .parent()?
                .iter()
                .rev()
                .map(|part| part.to_string_lossy());
            let (variant, task) = (parts.next()?, parts.next()?);
            Some(format!("{task}_{variant}"))
        };
        let (mut config, mut given) = (None, None);
        if stem == "requests" {
            let path = path.with_file_name("config.json");
            if files::exists(&path)? {
                config = Some(files::read_small(&path, 1 << 20)?);
            }
            given = folders();
        }
        Ok(TaskFile {
            name: given.unwrap_or_else(|| stem.to_owned()),
            path: path.display().to_string(),
            lines,
            config,
        })
    }
}

/// Part of a `config.json` next to requests.
#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    task_config: TaskConfig,
}

#[derive(Debug, Default, Deserialize)]
struct TaskConfig {
    primary_metric: Option<String>,
    num_shots: Option<u64>,
    #[serde(default)]
    version: Value,
}

/// Reads a task, of which only the first `limit` documents are kept.
///
/// A line is either a request, with `doc`, `doc_id`, `idx`, `label` and `request: {context, continuation}` (requests
/// with ids from 1,000,000 on are the unconditional ones of the document whose id is 1,000,000 less), or a document, with
/// `context` (or `query`, `doc_to_text`), `choices` (or `doc_to_choice`) and `gold` (or `label`, `doc_to_target`), and
/// optionally `target_delimiter` and `unconditional_context`; or with `sentence_good` and `sentence_bad`, as in BLiMP (after a delimiter, as in
/// lm-evaluation-harness).
///
/// # Errors
/// If the file cannot be read, a line is not of that form or longer than 16 MiB, or the choices of a document are not
/// complete; the message names the line.
///
/// ```
/// use hybridnorm::tasks::{TaskFile, read_task};
///
/// let lines = r#"{"context": "2 + 2 =", "choices": ["4", "5"], "gold": 0}"#;
/// let file = TaskFile {
///     name: "sums".to_owned(),
///     path: "sums.jsonl".to_owned(),
///     lines: Box::new(lines.as_bytes()),
///     config: None,
/// };
/// let task = read_task(file, None)?;
/// assert_eq!(task.documents[0].choices[1].continuation, " 5");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn read_task(file: TaskFile<'_>, limit: Option<usize>) -> Result<Task> {
    let fail = |problem: String| Error::format(&file.path, problem);
    let config = match &file.config {
        Some(config) => serde_json::from_slice(config)
            .map_err(|error| fail(format!("its config.json: {error}")))?,
        None => Config::default(),
    };
    let mut reader = file.lines;
    let (mut lines, mut texts): (Option<Box<dyn Lines>>, _) = (None, Texts::default());
    let (mut number, mut bytes, mut hash) = (0_u64, 0_u64, Sha256::new());
    let mut empty_lines = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader)
            .take(LINE_LIMIT as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(Error::io(&file.path))?;
        if read == 0 {
            break;
        }
        number += 1;
        bytes += read as u64;
        hash.update(&line);
        let at = |problem: String| fail(format!("line {number}: {problem}"));
        if read > LINE_LIMIT {
            return Err(at(format!("longer than {} MiB", LINE_LIMIT >> 20)));
        }
        if bytes > FILE_LIMIT {
            return Err(at(format!(
                "the file is larger than {} GiB",
                FILE_LIMIT >> 30
            )));
        }
        let content = match line.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) if number == 1 => rest,
            _ => &line,
        };
        let text =
            std::str::from_utf8(content).map_err(|error| at(format!("not UTF-8: {error}")))?;
        if text.trim().is_empty() {
            empty_lines += 1;
            if empty_lines > EMPTY_LINE_LIMIT {
                return Err(at(format!("more than {EMPTY_LINE_LIMIT} empty lines")));
            }
            continue;
        }
        let form = match &mut lines {
            Some(lines) => lines,
            None => lines.insert(form(text).map_err(at)?),
        };
        form.add(text, &mut texts).map_err(at)?;
        if form.documents() > DOCUMENT_LIMIT {
            return Err(at(format!("more than {DOCUMENT_LIMIT} documents")));
        }
    }
    let documents = lines.map(Lines::finish).transpose().map_err(fail)?;
    let mut documents = documents.unwrap_or_default();
    if documents.is_empty() {
        return Err(fail("the file contains no document".to_owned()));
    }
    let has_one = |document: &TaskDocument| document.choices.len() == 1;
    if let (true, Some(one)) = (
        documents.iter().any(|document| !has_one(document)),
        documents.iter().find(|document| has_one(document)),
    ) {
        return Err(fail(format!(
            "document {} has one choice, others have several: their metrics differ; split the file",
            one.id
        )));
    }
    let all_documents = documents.len();
    documents.truncate(limit.unwrap_or(usize::MAX));
    Ok(Task {
        name: file.name,
        source: file.path,
        sha256: files::hex(&hash.finalize()),
        primary_metric: config.task_config.primary_metric,
        num_fewshot: config.task_config.num_shots,
        version: config.task_config.version.as_u64().unwrap_or(0),
        all_documents,
        documents,
    })
}

/// Returns a reader of the form of the first line.
fn form(line: &str) -> Result<Box<dyn Lines>, String> {
    let fields: BTreeMap<String, Value> =
        serde_json::from_str(line).map_err(|error| json_problem(&error))?;
    let has = |name: &str| fields.contains_key(name);
    match () {
        () if has("request") => Ok(Box::new(request_lines::RequestLines::default())),
        () if has("choices") || has("doc_to_choice") || has("sentence_good") => Ok(Box::new(document_lines::DocumentLines::default())),
        () => Err(
            "neither a request (with `request`, `doc`, `doc_id`, `idx` and `label`) nor a document (with `context` or \
             `query`, `choices` and `gold`; or with `sentence_good` and `sentence_bad`)"
                .to_owned(),
        ),
    }
}

/// Returns the message of a JSON error with its column; the line is known.
pub(super) fn json_problem(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = plain_message(&message);
    match message.rsplit_once(" at line ") {
        Some((problem, _)) => format!("{problem} at column {}", error.column()),
        None => message.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str, limit: Option<usize>) -> Result<Task> {
        let file = TaskFile {
            name: "t".to_owned(),
            path: "t.jsonl".to_owned(),
            lines: Box::new(lines.as_bytes()),
            config: Some(
                br#"{"task_config": {"primary_metric": "acc_per_char", "num_shots": 5}}"#.to_vec(),
            ),
        };
        read_task(file, limit)
    }

    fn request(doc_id: u64, idx: usize, label: &str, continuation: &str) -> String {
        format!(
            r#"{{"doc": {{"id": 1}}, "doc_id": {doc_id}, "idx": {idx}, "label": {label}, "request": {{"context": "Q {doc_id}", "continuation": "{continuation}"}}}}"#
        ) + "\n"
    }

    fn error(lines: &str) -> String {
        read(lines, None).unwrap_err().to_string()
    }

    #[test]
    fn requests_are_grouped_by_document() {
        let lines = [
            request(0, 0, "1", " a"),
            request(0, 1, "1", " bc"),
            request(1, 0, "0", " d"),
            request(1, 1, "0", " e"),
            request(1_000_000, 1, "1", " bc"),
            request(1_000_000, 0, "1", " a"),
        ];
        let task = read(&lines.concat(), None).unwrap();
        assert_eq!((task.documents.len(), task.num_fewshot), (2, Some(5)));
        let first = &task.documents[0];
        assert_eq!(first.gold, [1]);
        assert_eq!(first.choices[1].text(), "bc");
        assert_eq!(
            &*first.choices[1].unconditional.as_ref().unwrap().context,
            "Q 1000000"
        );
        assert!(task.documents[1].choices[0].unconditional.is_none());
        let limited = read(&lines.concat(), Some(1)).unwrap();
        assert_eq!((limited.documents.len(), limited.all_documents), (1, 2));
    }

    #[test]
    fn labels_of_one_continuation_may_be_texts() {
        let task = read(&request(0, 0, r#"["a", "b"]"#, " a"), None).unwrap();
        assert!(!task.is_multiple_choice());
        assert_eq!(task.documents[0].gold, [0]);
    }

    #[test]
    fn documents_name_the_correct_choice_by_index_or_label() {
        let gold = |gold: &str| {
            let line = format!(
                r#"{{"context": "Q", "choices": {{"text": ["x", "y"], "label": ["A", "B"]}}, "gold": {gold}}}"#
            );
            read(&line, None).map(|task| task.documents[0].gold.clone())
        };
        assert_eq!(gold("1").unwrap(), [1]);
        assert_eq!(gold(r#""B""#).unwrap(), [1]);
        assert_eq!(gold("[0, 1]").unwrap(), [0, 1]);
        for wrong in ["2", r#""C""#, "[]", "[5]"] {
            assert!(gold(wrong).is_err(), "{wrong}");
        }
        for wrong in ["-1", "1.0", "true", "{}", "[-1]"] {
            let problem = gold(wrong).unwrap_err().to_string();
            assert!(problem.contains("expected the index"), "{problem}");
        }
        let problem = error(r#"{"context": "Q", "choices": [1], "gold": 0}"#);
        assert!(problem.contains("expected a list of texts"), "{problem}");
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_empty_lines_are_limited() {
        let line = r#"{"context": "Q", "choices": ["x", "y"], "gold": 0}"#;
        assert!(read(&format!("\u{feff}{line}"), None).is_ok());
        assert!(read(&format!("\n\n{line}\n\n"), None).is_ok());
        let many = "\n".repeat(EMPTY_LINE_LIMIT as usize + 1);
        assert!(error(&many).contains("more than 1048576 empty lines"));
    }

    #[test]
    fn documents_may_have_the_field_names_of_the_harness() {
        let line = r#"{"doc_to_text": "Q", "doc_to_choice": ["x", "y"], "doc_to_target": 1}"#;
        let task = read(line, None).unwrap();
        let document = &task.documents[0];
        assert_eq!(
            (&*document.choices[0].context, &document.gold[..]),
            ("Q", &[1][..])
        );
    }

    #[test]
    fn sentences_of_minimal_pairs_have_no_context() {
        let task = read(
            r#"{"sentence_good": "he runs", "sentence_bad": "he run", "UID": "x"}"#,
            None,
        )
        .unwrap();
        let choices = &task.documents[0].choices;
        assert_eq!((&*choices[0].context, choices[1].text()), ("", "he run"));
    }

    #[test]
    fn errors_name_the_line() {
        let first = request(0, 0, "0", " a");
        for (line, expected) in [
            ("{\n", "line 2: "),
            ("[1]\n", "line 2: "),
            (
                &request(0, 0, "0", " b"),
                "line 2: choice 0 of document 0 occurs twice",
            ),
            (
                &request(0, 1, "1", " b"),
                "line 2: the label of document 0 differs",
            ),
            (&request(0, 99_999, "0", " b"), "line 2: idx = 99999"),
            (&request(0, 1, "0", ""), "line 2: the continuation is empty"),
            (
                &request(2, 1, "0", " b"),
                "document 2 has 1 choices, but none with idx = 0",
            ),
            (
                &request(1_000_005, 0, "0", " b"),
                "of document 5, but no such document",
            ),
            (&request(3, 0, "7", " b"), "document 3: label = 7"),
            (
                &request(3, 0, "0", " b").replace("\"idx\": 0", "\"idx\": -1"),
                "line 2: expected a non-negative integer, found -1 at column",
            ),
        ] {
            let found = error(&format!("{first}{line}"));
            assert!(
                found.starts_with("t.jsonl: ") && found.contains(expected),
                "{found}"
            );
        }
        assert!(error("").contains("contains no document"));
        assert!(error("{\"a\": 1}").contains("line 1: neither a request"));
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(LINE_LIMIT));
        assert!(error(&long).contains("longer than 16 MiB"));
    }
}
