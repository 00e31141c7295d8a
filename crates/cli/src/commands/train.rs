//! `hybridnorm train`.

use std::path::{Path, PathBuf};

use hybridnorm::digits::perplexity;
use hybridnorm::text::one_line;
use hybridnorm::train::recorder::FLIGHT;
use hybridnorm::train::{Config, Event, OpenOptions, Start, Trainer};
use hybridnorm::{Device, Error};

use super::Ending;
use crate::args::TrainArgs;
use crate::console::{self, Console};
use crate::progress::Display;
use crate::stop::Stop;
use crate::table::grouped;

pub fn run(args: TrainArgs, console: &Console) -> Result<Ending, Error> {
    let config = Config::load(&args.config, &args.settings)?;
    let run = args
        .run
        .clone()
        .unwrap_or_else(|| default_run(&args.config));
    let start = match args.resume {
        true => Start::Resume,
        false => Start::Fresh,
    };
    let stop = Stop::listen()?;
    let mut display = Display::new(console);
    let steps = config.train.steps as u64;
    let mut on_event = |event: Event<'_>| display.event("train", steps, &event);
    let options = OpenOptions {
        locking: super::locking(args.no_lock),
        unfinished: None,
    };
    let device = Device::Cpu;
    let mut trainer = Trainer::open_with(config, &run, start, &options, device, &mut on_event)?;
    for warning in trainer.warnings() {
        console.warning(&warning.to_string());
    }
    if let Some(tokenizer) = trainer.tokenizer() {
        for note in tokenizer.notes() {
            console.note(&format!("{}: {note}", one_line(tokenizer.name())));
        }
    }
    let outcome = trainer.run(stop.wait_for_me(), &mut on_event)?;
    display.finish();
    if args.json {
        console::print_json(&outcome)?;
    }
    if !outcome.finished {
        console.note(&format!(
            "interrupted after step {}; saved {}; resume with: hybridnorm train {} --run {} --resume{}{}",
            outcome.step,
            outcome.checkpoint.display(),
            shell_word(&args.config.to_string_lossy()),
            shell_word(&run.to_string_lossy()),
            args.settings
                .iter()
                .map(|setting| format!(" --set {}", shell_word(setting)))
                .collect::<String>(),
            if args.no_lock { " --no-lock" } else { "" }
        ));
        return Ok(Ending::Interrupted);
    }
    let measured = match outcome.validation {
        Some(found) => format!(
            "validation loss {:.4} nats, perplexity {}",
            found.loss,
            perplexity(found.perplexity)
        ),
        None => "no validation data".into(),
    };
    let done = format!(
        "done: {} steps, {} tokens, {measured}",
        outcome.step,
        grouped(outcome.tokens)
    );
    match args.json {
        true => console.note(&done),
        false => console::print(&format!("{done}\n"))?,
    }
    let spikes = outcome.spikes;
    if spikes.total() > 0 {
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
    console.note(&format!("run directory: {}", run.display()));
    Ok(Ending::Done)
}

pub fn default_run(config: &Path) -> PathBuf {
    Path::new("runs").join(config.file_stem().unwrap_or_default())
}

/// Quotes a word for a POSIX shell.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(shell_word("train.steps=3"), "train.steps=3");
        assert_eq!(shell_word("my run"), "'my run'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
