//! `hybridnorm eval`.

use hybridnorm::Error;
use hybridnorm::data::{Split, Windows};
use hybridnorm::eval::{self, EvalOptions, Evaluation, LossWithCoverage, SetLoss};
use hybridnorm::format_number::perplexity;
use hybridnorm::text::one_line;
use hybridnorm::train::run_directory;

use super::{Outcome, eval_tasks};
use crate::args::{EvalArgs, EvalSplit, EvalWindows};
use crate::console::{self, Console};
use crate::progress::ProgressDisplay;
use crate::signals::Signals;
use crate::table::{self, with_thousands_separators};

pub fn run(args: EvalArgs, console: &Console) -> Result<Outcome, Error> {
    Signals::install()?;
    if !args.tasks.tasks.is_empty() {
        return eval_tasks::run(args, console);
    }
    if args.batch_size == 0 {
        return Err(Error::out_of_range("--batch-size", 0, "at least 1"));
    }
    let checkpoint = super::open_checkpoint(&args.checkpoint, console)?;
    let windows = match args.windows {
        EvalWindows::All => Windows::All,
        EvalWindows::Full => Windows::Full { limit: None },
    };
    let mut options = EvalOptions::default()
        .with_checkpoint(checkpoint.path())
        .with_text(args.text.overrides())
        .with_batch_size(args.batch_size)
        .with_windows(windows);
    options.seq_len = args.seq_len;
    options.stride = args.stride;
    options.split = args.split.map(|split| match split {
        EvalSplit::Train => Split::Train,
        EvalSplit::Validation => Split::Validation,
        EvalSplit::All => Split::All,
    });
    let mut model = checkpoint.model(args.device.device)?;
    args.precision.apply(&mut model)?;
    let tokenizer = checkpoint.tokenizer()?;
    let mut display = ProgressDisplay::new(console);
    let sets = eval::open_sets(
        &args.data,
        &options,
        &model,
        tokenizer.as_ref(),
        &mut |progress| display.show_data_progress(&progress),
    )?;
    display.finish();
    let mut evaluation = eval::evaluate(&mut model, &sets, &options)?;
    if args.output.json {
        let corrupt = checkpoint.skipped_checkpoints().iter();
        evaluation
            .notes
            .extend(corrupt.map(|problem| run_directory::skipped_checkpoint_note(problem)));
        console::print_json(&evaluation)?;
        return Ok(Outcome::Completed);
    }
    let mut text = match evaluation.sets.as_slice() {
        [set] => format_set(set),
        _ => format_sets(&evaluation),
    };
    if let Some(stride) = evaluation.stride {
        let seq_len = options.seq_len.unwrap_or(model.config().max_seq_len);
        text.push_str(&format!(
            "windows of {seq_len} tokens that advance by {stride}; every token counts once\n"
        ));
    }
    if let Some(options) = &evaluation.text_options {
        text.push_str(&format!("{}\n", one_line(&options.summary())));
    }
    console::print(&text)?;
    Ok(Outcome::Completed)
}

fn bits_per_byte(measured: &LossWithCoverage) -> String {
    let bits = measured.bits_per_byte;
    bits.map_or("-".into(), |bits| format!("{bits:.4}"))
}

/// Returns the notes on a data set: text read, omitted, split and replaced, and unknown tokens among the targets.
fn data_notes(set: &SetLoss) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(text) = &set.text {
        lines.push(format!("text: {}", text.summary()));
        lines.extend(text.notes.iter().cloned());
    }
    lines.extend(set.notes.iter().cloned());
    lines
        .iter()
        .map(|line| one_line(line).into_owned())
        .collect()
}

/// Formats the results of a single data set, one per line.
fn format_set(set: &SetLoss) -> String {
    let measured = &set.measured;
    let reason = measured.bits_per_byte_missing_reason.iter();
    let reason: String = reason
        .map(|reason| format!(" ({})", one_line(reason)))
        .collect();
    let mut text = format!(
        "data           {}\nsplit          {}\nloss           {:.4} nats per token\nperplexity     {}\n\
         bits per byte  {}{reason}\ntokens         {}\n",
        one_line(&set.name),
        set.split,
        measured.loss.loss,
        perplexity(measured.loss.perplexity),
        bits_per_byte(measured),
        with_thousands_separators(measured.loss.tokens),
    );
    for summary in measured
        .omissions
        .lines()
        .into_iter()
        .chain(data_notes(set))
    {
        text.push_str(&summary);
        text.push('\n');
    }
    text
}

/// Formats a row per data set and one for all.
fn format_sets(found: &Evaluation) -> String {
    let mut table = table::numeric_table(&[
        "data",
        "split",
        "loss (nats)",
        "perplexity",
        "bits per byte",
        "tokens",
        "omitted tokens",
    ]);
    let mut add = |name: &str, split: &str, measured: &LossWithCoverage| {
        let loss = measured.loss;
        table.add_row([
            one_line(name).into_owned(),
            split.to_owned(),
            format!("{:.4}", loss.loss),
            perplexity(loss.perplexity),
            bits_per_byte(measured),
            with_thousands_separators(loss.tokens),
            with_thousands_separators(measured.all_tokens - loss.tokens),
        ]);
    };
    for set in &found.sets {
        add(&set.name, set.split, &set.measured);
    }
    add("all sets, pooled", "", &found.pooled);
    if let Some(mean) = found.mean_of_sets {
        table.add_row([
            "mean of the sets".to_owned(),
            String::new(),
            format!("{:.4}", mean.loss),
            perplexity(mean.perplexity),
        ]);
    }
    let mut text = format!("{table}\n");
    for set in &found.sets {
        let name = one_line(&set.name);
        let omitted = set.measured.omissions.lines();
        for line in omitted.into_iter().chain(data_notes(set)) {
            text.push_str(&format!("{name}: {line}\n"));
        }
        if let Some(reason) = &set.measured.bits_per_byte_missing_reason {
            text.push_str(&format!("{name}: no bits per byte: {}\n", one_line(reason)));
        }
    }
    for note in &found.notes {
        text.push_str(&format!("{}\n", one_line(note)));
    }
    text
}
