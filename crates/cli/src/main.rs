//! The command line of hybridnorm.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod console;
mod progress;
mod table;

use std::process::ExitCode;

use clap::Parser;
use hybridnorm::Error;

use args::{Cli, Command};
use commands::Ending;
use console::Console;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Wrong usage leaves with 2 from inside clap.
    let cli = Cli::parse();
    let console = Console::new(cli.quiet);
    match run(cli, &console) {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::from(130),
        Err(error) => {
            console.error(&error.to_string());
            ExitCode::from(if error.is_usage() { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli, console: &Console) -> Result<Ending, Error> {
    if let Some(threads) = cli.threads {
        hybridnorm::threads::set(threads)?;
    }
    match cli.command {
        Command::Quickstart(args) => commands::quickstart::run(args, console),
        Command::Train(args) => commands::train::run(args, console),
        Command::Eval(args) => commands::eval::run(args, console),
        Command::Generate(args) => commands::generate::run(args, console),
        Command::Data { command } => commands::data::run(command, console),
        Command::Placement { command } => commands::placement::run(command, console),
        Command::Inspect(args) => commands::inspect::run(args, console),
        Command::Import(args) => commands::import::run(args, console),
    }
}
