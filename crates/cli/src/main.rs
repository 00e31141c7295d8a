//! Command line of hybridnorm.
#![deny(unsafe_code)]

mod allocator;
mod args;
mod commands;
mod console;
mod progress;
mod stop;
mod table;

use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::process::ExitCode;

use clap::Parser;
use hybridnorm::Error;

use args::{Cli, Command};
use commands::Ending;
use console::Console;

fn main() -> ExitCode {
    allocator::set_up();
    stop::outlive_file_limits();
    std::panic::set_hook(Box::new(|panic| {
        if !hybridnorm::foreign::is_running() {
            console::to_stderr(&defect(panic));
        }
    }));
    // On wrong usage, clap exits with code 2.
    let cli = Cli::parse();
    let console = Console::new(cli.quiet);
    // A panic has been reported by the hook.
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| {
        set_threads(&cli)?;
        hybridnorm::threads::run(|| run(cli, &console))
    }));
    let Ok(ended) = ended else {
        return ExitCode::FAILURE;
    };
    match ended {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::from(130),
        Err(error) => {
            console.error(&error.to_string());
            ExitCode::from(if error.is_usage() { 2 } else { 1 })
        }
    }
}

/// Returns the one-line report of a panic, which is a defect of this program, never the user's fault.
fn defect(panic: &PanicHookInfo<'_>) -> String {
    let message = panic.payload_as_str().unwrap_or("no message");
    let place = panic
        .location()
        .map(|place| format!(" ({}:{})", place.file(), place.line()))
        .unwrap_or_default();
    format!(
        "error: a defect in hybridnorm, please report it: {}{place}",
        hybridnorm::text::one_line(message)
    )
}

fn set_threads(cli: &Cli) -> Result<(), Error> {
    let threads = match cli.threads {
        Some(threads) => Some(threads),
        None => hybridnorm::threads::from_environment()?,
    };
    hybridnorm::threads::set(threads)
}

fn run(cli: Cli, console: &Console) -> Result<Ending, Error> {
    match cli.command {
        Command::Quickstart(args) => commands::quickstart::run(args, console),
        Command::Train(args) => commands::train::run(args, console),
        Command::Probe(args) => commands::probe::run(args, console),
        Command::Replay(args) => commands::replay::run(args, console),
        Command::Study(args) => commands::study::run(args, console),
        Command::Report(args) => commands::report::run(args, console),
        Command::Eval(args) => commands::eval::run(args, console),
        Command::Generate(args) => commands::generate::run(args, console),
        Command::Data { command } => commands::data::run(command, console),
        Command::Placement { command } => commands::placement::run(command, console),
        Command::Inspect(args) => commands::inspect::run(args, console),
        Command::Bench { command } => commands::bench::run(command, console),
        Command::Import(args) => commands::import::run(args, console),
    }
}
