//! `hybridnorm train`.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use hybridnorm::train::{Config, Event, Start, Trainer};
use hybridnorm::{Device, Error};

use super::{Ending, stop_flag};
use crate::args::TrainArgs;
use crate::console::{self, Console};
use crate::progress::Display;

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
    let stop = stop_flag()?;
    let mut display = Display::new(console);
    let steps = config.train.steps as u64;
    let mut on_event = |event: Event<'_>| display.event("train", steps, &event);
    let mut trainer = Trainer::open(config, &run, start, &Device::flex(), &mut on_event)?;
    for warning in trainer.warnings() {
        console.warning(&warning.to_string());
    }
    let outcome = trainer.run(&stop, &mut on_event)?;
    display.finish();
    if args.json {
        console::print_json(&outcome)?;
    }
    if !outcome.finished {
        debug_assert!(stop.load(Ordering::Relaxed));
        console.note(&format!(
            "stopped after step {}; saved {}; go on with: hybridnorm train {} --run {} --resume{}",
            outcome.step,
            outcome.checkpoint.display(),
            args.config.display(),
            run.display(),
            args.settings
                .iter()
                .map(|setting| format!(" --set '{setting}'"))
                .collect::<String>()
        ));
        return Ok(Ending::Interrupted);
    }
    if let Some(validation) = outcome.validation {
        console.note(&format!(
            "done: {} steps, {} tokens, validation loss {:.4} nats, perplexity {:.2}",
            outcome.step, outcome.tokens, validation.loss, validation.perplexity
        ));
    }
    console.note(&format!("run directory: {}", run.display()));
    Ok(Ending::Done)
}

fn default_run(config: &Path) -> PathBuf {
    Path::new("runs").join(config.file_stem().unwrap_or_default())
}
