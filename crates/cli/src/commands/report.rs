//! `hybridnorm report`.

use hybridnorm::report::{self, Document};
use hybridnorm::{Error, files};

use super::Outcome;
use crate::args::{ReportArgs, ReportFormat};
use crate::console::{self, Console};
use crate::table::bytes;

pub fn run(args: ReportArgs, console: &Console) -> Result<Outcome, Error> {
    if args.format == ReportFormat::Html && args.out.is_none() {
        return Err(Error::missing(
            "--out",
            "; HTML needs a file, e.g. --out report.html",
        ));
    }
    if let Some(out) = &args.out {
        files::check_writable(out)?;
        report::check_output_path(out, &args.paths)?;
    }
    let document = Document::open(&args.paths)?;
    let text = match args.format {
        ReportFormat::Html => report::html(&document),
        ReportFormat::Markdown => report::markdown(&document),
        ReportFormat::Json => {
            let json = serde_json::to_string_pretty(&document)
                .map_err(|error| Error::External(format!("cannot write JSON: {error}")))?;
            hybridnorm::text::escape_unprintable_json(&json).into_owned()
        }
    };
    let Some(out) = &args.out else {
        console::print(&text)?;
        return Ok(Outcome::Completed);
    };
    files::write_user_path(out, text.as_bytes())?;
    console.note(&format!(
        "{}: {}, {} runs",
        out.display(),
        bytes(text.len() as u64),
        document.runs.len()
    ));
    Ok(Outcome::Completed)
}
