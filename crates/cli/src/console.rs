//! Where lines go: results to standard output, everything else to standard error.

use std::io::{IsTerminal, Write};

use hybridnorm::Error;
use serde::Serialize;

/// Standard error with or without colour, or silent.
pub struct Console {
    quiet: bool,
    terminal: bool,
    colour: bool,
}

impl Console {
    /// A console; a quiet one prints errors only.
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Self {
            quiet,
            terminal,
            colour,
        }
    }

    /// Whether progress may move on one line.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether notes and progress are wanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// A line worth knowing.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            to_stderr(text);
        }
    }

    /// A line worth a thought.
    pub fn warning(&self, text: &str) {
        if !self.quiet {
            to_stderr(&format!("{} {text}", self.painted("warning:", "33")));
        }
    }

    /// The line that says why the program failed.
    pub fn error(&self, text: &str) {
        // Names out of files may hold anything.
        let line = text.replace(char::is_control, " ");
        to_stderr(&format!("{} {line}", self.painted("error:", "31")));
    }

    fn painted(&self, text: &str, colour: &str) -> String {
        match self.colour {
            true => format!("\x1b[{colour};1m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// Writes a line to standard error. Where nobody reads it any more, work goes on without it.
pub fn to_stderr(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints a result. A reader that went away is not an error.
pub fn print(text: &str) -> Result<(), Error> {
    print_while_read(text).map(drop)
}

/// As [`print()`]; says whether somebody still reads.
pub fn print_while_read(text: &str) -> Result<bool, Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("standard output")(error)),
    }
}

/// Prints one JSON document.
pub fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::Config(format!("cannot write JSON: {error}")))?;
    text.push('\n');
    print(&text)
}
