//! `hybridnorm eval`.

use hybridnorm::data::{SourceOptions, Split, Windows};
use hybridnorm::digits::perplexity;
use hybridnorm::eval::{self, EvalOptions, Evaluation, Measured, SetLoss};
use hybridnorm::text::one_line;
use hybridnorm::train::{run_directory, text_options_of};
use hybridnorm::{Device, Error};

use super::Ending;
use crate::args::{EvalArgs, EvalSplit, EvalWindows};
use crate::console::{self, Console};
use crate::progress::Display;
use crate::stop::Stop;
use crate::table::{self, grouped};

pub fn run(args: EvalArgs, console: &Console) -> Result<Ending, Error> {
    Stop::listen()?;
    if args.batch_size == 0 {
        return Err(Error::Config(
            "--batch-size is 0, expected at least 1".into(),
        ));
    }
    let checkpoint = super::open_checkpoint(&args.checkpoint, console)?;
    let mut text = SourceOptions::default();
    if !super::set_text_options(&mut text, args.text)
        && let Some(as_in_run) = text_options_of(&checkpoint)?
    {
        let words = in_words(&as_in_run);
        console.note(&format!("raw text is read as in the run: {words}"));
        text = as_in_run;
        text.may_be_unused = true;
    }
    let options = EvalOptions {
        text,
        split: args.split.map(|split| match split {
            EvalSplit::Train => Split::Train,
            EvalSplit::Validation => Split::Validation,
            EvalSplit::All => Split::All,
        }),
        seq_len: args.seq_len,
        batch_size: args.batch_size,
        windows: match args.windows {
            EvalWindows::All => Windows::All,
            EvalWindows::Whole => Windows::Whole { limit: None },
        },
    };
    let model = checkpoint.model(&Device::flex())?;
    let tokenizer = checkpoint.tokenizer()?;
    let mut display = Display::new(console);
    let sets = eval::open_sets(
        &args.data,
        &options,
        &model,
        tokenizer.as_ref(),
        &mut |progress| display.data(&progress),
    )?;
    display.finish();
    for note in sets.iter().flat_map(|set| &set.notes) {
        console.note(&one_line(note));
    }
    let mut found = eval::measure(&model, &sets, &options)?;
    if args.json {
        let broken = checkpoint.passed_over().iter();
        found
            .notes
            .extend(broken.map(|problem| run_directory::passed_over(problem)));
        console::print_json(&found)?;
        return Ok(Ending::Done);
    }
    console::print(&match found.sets.as_slice() {
        [set] => lines(set),
        _ => rows(&found),
    })?;
    Ok(Ending::Done)
}

/// Options of reading text that are not the default.
fn in_words(text: &SourceOptions) -> String {
    let fields = |options: &SourceOptions| match serde_json::json!(options) {
        serde_json::Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    let default = fields(&SourceOptions::default());
    let others = fields(text);
    let others = others
        .iter()
        .filter(|(key, value)| default.get(*key) != Some(value));
    let words: Vec<String> = others
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    words.join(", ")
}

fn bits_per_byte(measured: &Measured) -> String {
    let bits = measured.bits_per_byte;
    bits.map_or("-".into(), |bits| format!("{bits:.4}"))
}

/// Results of a single set, a line each.
fn lines(set: &SetLoss) -> String {
    let measured = &set.measured;
    let why = set.no_bits_per_byte.iter();
    let why: String = why.map(|why| format!(" ({})", one_line(why))).collect();
    let mut text = format!(
        "data           {}\nsplit          {}\nloss           {:.4} nats per token\nperplexity     {}\n\
         bits per byte  {}{why}\ntokens         {}\n",
        one_line(&set.name),
        set.split,
        measured.loss.loss,
        perplexity(measured.loss.perplexity),
        bits_per_byte(measured),
        grouped(measured.loss.tokens),
    );
    for line in omissions(set) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// What is left out of the tokens, and what was of the text they were made from.
fn omissions(set: &SetLoss) -> impl Iterator<Item = String> {
    let text = set.text.iter().flat_map(|text| &text.notes);
    let text = text.map(|note| format!("text: {note}"));
    let tokens = set.measured.left_out.lines();
    tokens.into_iter().chain(text)
}

/// A row for each set, and one for all.
fn rows(found: &Evaluation) -> String {
    let mut table = table::numbers(&[
        "data",
        "split",
        "loss (nats)",
        "perplexity",
        "bits per byte",
        "tokens",
        "left out",
    ]);
    let mut add = |name: &str, split: &str, measured: &Measured| {
        let loss = measured.loss;
        table.add_row([
            one_line(name).into_owned(),
            split.to_owned(),
            format!("{:.4}", loss.loss),
            perplexity(loss.perplexity),
            bits_per_byte(measured),
            grouped(loss.tokens),
            grouped(measured.all_tokens - loss.tokens),
        ]);
    };
    for set in &found.sets {
        add(&set.name, set.split, &set.measured);
    }
    add("all sets, pooled", "", &found.pooled);
    let mut text = format!("{table}\n");
    for set in &found.sets {
        for line in omissions(set) {
            text.push_str(&format!("{}: {line}\n", one_line(&set.name)));
        }
        if let Some(why) = &set.no_bits_per_byte {
            text.push_str(&format!(
                "{}: no bits per byte: {}\n",
                one_line(&set.name),
                one_line(why)
            ));
        }
    }
    for note in &found.notes {
        text.push_str(&format!("{}\n", one_line(note)));
    }
    text
}
