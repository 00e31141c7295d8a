//! Command line of hybridnorm.
#![deny(unsafe_code)]

mod allocator;
mod args;
mod commands;
mod console;
mod progress;
mod signals;
mod table;

use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::process::ExitCode;

use clap::Parser;
use hybridnorm::Error;

use args::{Cli, GlobalArgs};
use commands::Outcome;
use console::Console;

fn main() -> ExitCode {
    allocator::set_up();
    signals::ignore_file_size_signal();
    std::panic::set_hook(Box::new(|panic| {
        if !hybridnorm::untrusted::is_parsing_untrusted() {
            console::to_stderr(&panic_report(panic));
        }
    }));
    // On wrong usage, clap exits with code 2.
    let cli = Cli::parse();
    let console = Console::new(cli.global.quiet);
    // A panic has been reported by the hook.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        set_threads(&cli.global)?;
        hybridnorm::threads::run(|| commands::run(cli.command, &console))
    }));
    let Ok(outcome) = outcome else {
        return ExitCode::FAILURE;
    };
    match outcome {
        Ok(Outcome::Completed) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        Err(error) => {
            console.error(&error.to_string());
            ExitCode::from(if error.is_user_error() { 2 } else { 1 })
        }
    }
}

/// Returns the one-line report of a panic, an internal error of this program.
fn panic_report(panic: &PanicHookInfo<'_>) -> String {
    let message = panic.payload_as_str().unwrap_or("no message");
    let location = panic
        .location()
        .map(|location| format!(" ({}:{})", location.file(), location.line()))
        .unwrap_or_default();
    format!(
        "error: internal error, please report it: {}{location}",
        hybridnorm::text::one_line(message)
    )
}

fn set_threads(global: &GlobalArgs) -> Result<(), Error> {
    let threads = match global.threads {
        Some(threads) => Some(threads),
        None => hybridnorm::threads::from_environment()?,
    };
    hybridnorm::threads::set(threads)
}
