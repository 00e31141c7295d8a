//! `hybridnorm train`.

use std::path::Path;

use hybridnorm::Error;
use hybridnorm::format_number::perplexity;
use hybridnorm::text::one_line;
use hybridnorm::train::recorder::FLIGHT;
use hybridnorm::train::spikes::SpikeCounts;
use hybridnorm::train::{self, Config, Event, OpenOptions, Start, Trainer};

use super::{Outcome, default_directory, note_precision, resume_command, with_flags};
use crate::args::TrainArgs;
use crate::console::{self, Console};
use crate::progress::ProgressDisplay;
use crate::signals::Signals;
use crate::table::with_thousands_separators;

pub fn run(args: TrainArgs, console: &Console) -> Result<Outcome, Error> {
    let config = Config::load(&args.config, &args.overrides.settings)?;
    let run = args.run.unwrap_or_else(|| default_directory(&args.config));
    let start = match args.resume {
        true => Start::Resume,
        false => Start::Fresh,
    };
    let signals = Signals::install()?;
    note_precision(config.train.program_precision(), console);
    let mut display = ProgressDisplay::new(console);
    let steps = config.train.steps as u64;
    let mut on_event = |event: Event<'_>| display.show_event("train", steps, &event);
    let options = OpenOptions::default().with_locking(args.lock.mode());
    let device = args.device.device;
    let trainer = Trainer::open_with(config, &run, start, &options, device, &mut on_event);
    let mut trainer = trainer.map_err(|error| with_flags(error, "--resume and --run"))?;
    print_notes(&trainer, console);
    let outcome = trainer.run(signals.defer(), &mut on_event)?;
    display.finish();
    if args.output.json {
        console::print_json(&outcome)?;
    }
    if !outcome.finished {
        console.note(&format!(
            "interrupted after step {}; saved {}; resume with: {}",
            outcome.step,
            outcome.checkpoint.display(),
            resume_command()
        ));
        return Ok(Outcome::Interrupted);
    }
    let done = summary(&outcome);
    match args.output.json {
        true => console.note(&done),
        false => console::print(&format!("{done}\n"))?,
    }
    print_spikes(&outcome.spikes, &run, console);
    console.note(&format!("run directory: {}", run.display()));
    Ok(Outcome::Completed)
}

/// Prints the warnings on the model and the notes on its tokenizer.
fn print_notes(trainer: &Trainer, console: &Console) {
    for warning in trainer.warnings() {
        console.warning(&warning.to_string());
    }
    if let Some(tokenizer) = trainer.tokenizer() {
        for note in tokenizer.notes() {
            console.note(&format!("{}: {note}", one_line(tokenizer.name())));
        }
    }
}

fn summary(outcome: &train::Outcome) -> String {
    let validation = match outcome.validation {
        Some(found) => format!(
            "validation loss {:.4} nats, perplexity {}",
            found.loss,
            perplexity(found.perplexity)
        ),
        None => "no validation data".into(),
    };
    format!(
        "finished: {} steps, {} tokens, {validation}",
        outcome.step,
        with_thousands_separators(outcome.tokens)
    )
}

/// Prints the number of spikes, and the folder of their records.
fn print_spikes(spikes: &SpikeCounts, run: &Path, console: &Console) {
    if spikes.total() == 0 {
        return;
    }
    let flight = run.join(FLIGHT);
    // Also printed if the folder's existence cannot be determined.
    let see = match hybridnorm::files::exists(&flight).unwrap_or(true) {
        true => format!("; see {}", flight.display()),
        false => String::new(),
    };
    console.note(&format!(
        "spikes: loss {}, gradient norm {}, update norm {}{see}",
        spikes.loss, spikes.grad_norm, spikes.update_norm,
    ));
}
