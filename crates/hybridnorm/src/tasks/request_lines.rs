//! Lines of pre-rendered requests: one for each choice of each document.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::document::{Choice, TaskDocument, Unconditional};
use super::read::{CHOICE_LIMIT, Lines, Texts, json_problem};

/// Added to the ids of documents in unconditional requests.
const UNCONDITIONAL_OFFSET: u64 = 1_000_000;

/// Documents of the lines so far, by id.
#[derive(Default)]
pub(super) struct RequestLines {
    documents: Vec<Partial>,
    by_id: BTreeMap<u64, usize>,
    /// Unconditional requests by document and choice.
    unconditional: BTreeMap<(u64, usize), Unconditional>,
}

/// A document whose choices are not complete yet.
struct Partial {
    id: u64,
    fields: Value,
    label: Value,
    choices: BTreeMap<usize, Choice>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    doc: Value,
    doc_id: u64,
    idx: usize,
    #[serde(default)]
    label: Value,
    request: Text,
}

#[derive(Deserialize)]
struct Text {
    context: String,
    continuation: String,
}

impl Lines for RequestLines {
    fn add(&mut self, line: &str, texts: &mut Texts) -> Result<(), String> {
        let line: Line = serde_json::from_str(line).map_err(|error| json_problem(&error))?;
        let Line { doc_id, idx, .. } = line;
        if idx >= CHOICE_LIMIT {
            return Err(format!("idx = {idx}, expected less than {CHOICE_LIMIT}"));
        }
        if line.request.continuation.is_empty() {
            return Err("the continuation is empty".to_owned());
        }
        let context = texts.shared(&line.request.context);
        let twice = || format!("choice {idx} of document {doc_id} occurs twice");
        if doc_id >= UNCONDITIONAL_OFFSET {
            let request = Unconditional {
                context,
                continuation: line.request.continuation,
            };
            let key = (doc_id - UNCONDITIONAL_OFFSET, idx);
            return match self.unconditional.insert(key, request) {
                None => Ok(()),
                Some(_) => Err(twice()),
            };
        }
        let index = *self.by_id.entry(doc_id).or_insert_with(|| {
            self.documents.push(Partial {
                id: doc_id,
                fields: line.doc,
                label: line.label.clone(),
                choices: BTreeMap::new(),
            });
            self.documents.len() - 1
        });
        let document = &mut self.documents[index];
        if document.label != line.label {
            return Err(format!(
                "the label of document {doc_id} differs from that of its first choice"
            ));
        }
        let continuation = line.request.continuation;
        let choice = Choice {
            context,
            delimiter_bytes: usize::from(continuation.starts_with(' ')),
            continuation,
            unconditional: None,
        };
        match document.choices.insert(idx, choice) {
            None => Ok(()),
            Some(_) => Err(twice()),
        }
    }

    fn documents(&self) -> usize {
        self.documents.len()
    }

    fn finish(self: Box<Self>) -> Result<Vec<TaskDocument>, String> {
        let Self {
            documents,
            by_id,
            mut unconditional,
        } = *self;
        if let Some((id, idx)) = unconditional.keys().find(|(id, _)| !by_id.contains_key(id)) {
            return Err(format!(
                "there is an unconditional request of choice {idx} of document {id}, but no such document"
            ));
        }
        documents
            .into_iter()
            .map(|document| complete(document, &mut unconditional))
            .collect()
    }
}

/// Checks that the choices of a document are complete.
fn complete(
    document: Partial,
    unconditional: &mut BTreeMap<(u64, usize), Unconditional>,
) -> Result<TaskDocument, String> {
    let Partial {
        id,
        fields,
        label,
        choices,
    } = document;
    let count = choices.len();
    if let Some(absent) = (0..count).find(|idx| !choices.contains_key(idx)) {
        return Err(format!(
            "document {id} has {count} choices, but none with idx = {absent}"
        ));
    }
    let choices: Vec<Choice> = choices
        .into_iter()
        .map(|(idx, choice)| Choice {
            unconditional: unconditional.remove(&(id, idx)),
            ..choice
        })
        .collect();
    // A document with one continuation has texts or nothing as its label.
    let gold = match (label.as_u64(), count) {
        (None, 1) => 0,
        (Some(gold), _) if gold < count as u64 => gold as usize,
        _ => {
            return Err(format!(
                "document {id}: label = {label}, expected the index of one of its {count} choices"
            ));
        }
    };
    Ok(TaskDocument {
        id,
        fields,
        choices,
        gold: vec![gold],
    })
}
