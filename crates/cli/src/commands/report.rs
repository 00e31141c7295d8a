//! `hybridnorm report`.

use std::path::{Path, PathBuf};

use hybridnorm::report::{self, Document};
use hybridnorm::{Error, files};

use super::Ending;
use crate::args::{ReportArgs, ReportFormat};
use crate::console::{self, Console};
use crate::table::bytes;

/// What runs and studies consist of, as it is named in their folders.
const PARTS: [&str; 13] = [
    "checkpoints",
    "config.toml",
    "flight",
    "halving.json",
    "history.json",
    "kept",
    "layers.jsonl",
    "lock",
    "metrics.jsonl",
    "runs",
    "segments.json",
    "study.toml",
    "work",
];

/// A report does not take the place of what it is about.
fn refuse_inputs(out: &Path, inputs: &[PathBuf]) -> Result<(), Error> {
    let Ok(out_there) = out.canonicalize() else {
        return Ok(());
    };
    let is_part = |input: &PathBuf| {
        let input = input.canonicalize().unwrap_or_default();
        let below = out_there.strip_prefix(&input).ok();
        let first = below.and_then(|below| below.iter().next());
        out_there == input || first.is_some_and(|name| PARTS.iter().any(|part| name == *part))
    };
    match inputs.iter().find(|input| is_part(input)) {
        None => Ok(()),
        Some(input) => Err(Error::config(format!(
            "--out {} is a part of {}, which the report is about; choose another name",
            out.display(),
            input.display()
        ))),
    }
}

pub fn run(args: ReportArgs, console: &Console) -> Result<Ending, Error> {
    if args.format == ReportFormat::Html && args.out.is_none() {
        return Err(Error::config(
            "--out is missing: a page goes to a file, e.g. --out report.html",
        ));
    }
    if let Some(out) = &args.out {
        files::check_writable(out)?;
        refuse_inputs(out, &args.paths)?;
    }
    let document = Document::open(&args.paths)?;
    let text = match args.format {
        ReportFormat::Html => report::html(&document),
        ReportFormat::Markdown => report::markdown(&document),
        ReportFormat::Json => {
            let json = serde_json::to_string_pretty(&document)
                .map_err(|error| Error::config(format!("cannot write JSON: {error}")))?;
            hybridnorm::text::visible_json(&json).into_owned()
        }
    };
    let Some(out) = &args.out else {
        console::print(&text)?;
        return Ok(Ending::Done);
    };
    files::write_named(out, text.as_bytes())?;
    console.note(&format!(
        "{}: {}, {} runs",
        out.display(),
        bytes(text.len() as u64),
        document.runs.len()
    ));
    Ok(Ending::Done)
}
