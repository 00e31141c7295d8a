//! Lines of documents: a context, its choices and the correct one.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::document::{Choice, TaskDocument, Unconditional};
use super::read::{CHOICE_LIMIT, Lines, Texts, json_problem};

/// Documents of the lines so far.
#[derive(Default)]
pub(super) struct DocumentLines(Vec<TaskDocument>);

/// Fields of a document, also with the names that tasks of lm-evaluation-harness have (`doc_to_..`).
#[derive(Deserialize)]
struct Line {
    /// Preferred to `context`, which in some documents is only a part of the text.
    #[serde(alias = "doc_to_text")]
    query: Option<String>,
    context: Option<String>,
    #[serde(alias = "doc_to_choice")]
    choices: Choices,
    #[serde(alias = "doc_to_target")]
    gold: Option<Gold>,
    label: Option<Gold>,
    #[serde(default = "space")]
    target_delimiter: String,
    unconditional_context: Option<String>,
}

/// Choices, also as in ARC: `{"text": [..], "label": ["A", ..]}`.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "`choices`: expected a list of texts, or {\"text\": [..], \"label\": [..]} of texts"
)]
enum Choices {
    Plain(Vec<String>),
    Labelled {
        text: Vec<String>,
        label: Vec<String>,
    },
}

/// Correct choice: an index, several, or a label.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "`gold` (or `label`): expected the index of a choice, a list of indices, or the text or label of one"
)]
enum Gold {
    Index(usize),
    Indices(Vec<usize>),
    Label(String),
}

#[derive(Deserialize)]
struct Pair {
    sentence_good: String,
    sentence_bad: String,
    #[serde(default = "space")]
    target_delimiter: String,
}

fn space() -> String {
    " ".to_owned()
}

impl Lines for DocumentLines {
    fn add(&mut self, line: &str, texts: &mut Texts) -> Result<(), String> {
        let fields: Value = serde_json::from_str(line).map_err(|error| json_problem(&error))?;
        let parse = |error: serde_json::Error| error.to_string();
        let (choices, gold) = match fields.get("sentence_good") {
            Some(_) => {
                let pair = Pair::deserialize(&fields).map_err(parse)?;
                let empty: Arc<str> = "".into();
                let choices = [pair.sentence_good, pair.sentence_bad];
                let delimiter = &pair.target_delimiter;
                let choices = choices.map(|text| Choice::new(Arc::clone(&empty), delimiter, &text));
                (choices.to_vec(), vec![0])
            }
            None => choices(Line::deserialize(&fields).map_err(parse)?, texts)?,
        };
        if let Some(index) = choices
            .iter()
            .position(|choice| choice.continuation.is_empty())
        {
            return Err(format!("choice {index} is empty"));
        }
        self.0.push(TaskDocument {
            id: self.0.len() as u64,
            fields,
            choices,
            gold,
        });
        Ok(())
    }

    fn documents(&self) -> usize {
        self.0.len()
    }

    fn finish(self: Box<Self>) -> Result<Vec<TaskDocument>, String> {
        Ok(self.0)
    }
}

fn choices(line: Line, texts: &mut Texts) -> Result<(Vec<Choice>, Vec<usize>), String> {
    let (choices, labels) = match line.choices {
        Choices::Plain(text) => (text.clone(), text),
        Choices::Labelled { text, label } => (text, label),
    };
    let count = choices.len();
    if count == 0 || count > CHOICE_LIMIT || labels.len() != count {
        return Err(format!(
            "{count} choices and {} labels, expected 1 to {CHOICE_LIMIT} of each",
            labels.len()
        ));
    }
    let gold = line.gold.or(line.label).ok_or("`gold` is missing")?;
    let gold = match gold {
        Gold::Index(index) => vec![index],
        Gold::Indices(indices) => indices,
        Gold::Label(label) => match labels.iter().position(|known| *known == label) {
            Some(index) => vec![index],
            None => {
                return Err(format!(
                    "gold = {label:?}, expected one of the choices or their labels"
                ));
            }
        },
    };
    if gold.is_empty() || gold.iter().any(|&index| index >= count) {
        return Err(format!(
            "gold = {gold:?}, expected indices of the {count} choices"
        ));
    }
    let context = line
        .query
        .or(line.context)
        .ok_or("`context` (or `query`) is missing")?;
    let context = texts.shared(&context);
    let unconditional: Option<Arc<str>> = line.unconditional_context.map(Into::into);
    let choices = choices.iter().map(|text| {
        let mut choice = Choice::new(Arc::clone(&context), &line.target_delimiter, text);
        choice.unconditional = unconditional.as_ref().map(|context| Unconditional {
            context: Arc::clone(context),
            continuation: choice.continuation.clone(),
        });
        choice
    });
    Ok((choices.collect(), gold))
}
