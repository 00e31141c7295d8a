//! Console output: results on standard output, everything else on standard error.

use std::io::{IsTerminal, Write};

use hybridnorm::{Error, text};
use serde::Serialize;

/// Standard error with or without colour, or silent.
pub struct Console {
    quiet: bool,
    terminal: bool,
    colour: bool,
}

impl Console {
    /// Creates a console; a quiet one prints only errors.
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Self {
            quiet,
            terminal,
            colour,
        }
    }

    /// True if progress can be redrawn on one line.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// True if notes and progress are suppressed.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Prints a note, unless quiet.
    pub fn note(&self, line: &str) {
        if !self.quiet {
            to_stderr(&text::one_line(line));
        }
    }

    /// Prints a warning, unless quiet.
    pub fn warning(&self, line: &str) {
        if !self.quiet {
            let line = text::one_line(line);
            to_stderr(&format!("{} {line}", self.coloured("warning:", "33")));
        }
    }

    /// Prints the error that ended the program.
    pub fn error(&self, text: &str) {
        // Names from files may contain any character.
        let line = text.replace(char::is_control, " ");
        to_stderr(&format!("{} {line}", self.coloured("error:", "31")));
    }

    fn coloured(&self, text: &str, colour: &str) -> String {
        match self.colour {
            true => format!("\x1b[{colour};1m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// Writes a line to standard error. Failures, such as a closed pipe, are ignored.
pub fn to_stderr(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints a result; characters from files that would move the cursor or colour the terminal are escaped. A closed
/// pipe is not an error.
pub fn print(result: &str) -> Result<(), Error> {
    write(&text::escape_unprintable(result)).map(drop)
}

/// Prints generated text; returns false if the pipe is closed. Text is escaped on a terminal as in [`print()`], and
/// verbatim in a file or pipe.
pub fn print_streamed(piece: &str) -> Result<bool, Error> {
    match std::io::stdout().is_terminal() {
        true => write(&text::escape_unprintable(piece)),
        false => write(piece),
    }
}

fn write(text: &str) -> Result<bool, Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("standard output")(error)),
    }
}

/// Prints one JSON document.
pub fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let mut json = serde_json::to_string_pretty(value)
        .map_err(|error| Error::External(format!("cannot write JSON: {error}")))?;
    json.push('\n');
    write(&text::escape_unprintable_json(&json)).map(drop)
}
