//! `hybridnorm export`.

use hybridnorm::interop::export::{
    self, Exported, Extras, Format, Options, Support, TrainingFacts,
};
use hybridnorm::{Device, Error};
use serde::Serialize;

use super::Outcome;
use crate::args::ExportArgs;
use crate::console::{self, Console};
use crate::table;

#[derive(Serialize)]
struct Report {
    out: String,
    #[serde(flatten)]
    exported: Exported,
}

pub fn run(args: ExportArgs, console: &Console) -> Result<Outcome, Error> {
    let checkpoint = super::open_checkpoint(&args.checkpoint, console)?;
    if args.explain {
        let programs = export::support(&checkpoint.config()?)?;
        args.output
            .print(&programs, |programs| support_table(programs))?;
        return Ok(Outcome::Completed);
    }
    let (options, out) = args.options()?;
    let tokenizer = checkpoint.tokenizer()?;
    if tokenizer.is_none() {
        console.note("without a tokenizer, which the checkpoint does not have");
    }
    let training = TrainingFacts::of(&checkpoint)?;
    let extras = Extras {
        tokenizer: tokenizer.as_ref(),
        training: training.as_ref(),
    };
    let exported = export::export(checkpoint.model(Device::Cpu)?, out, options, extras)?;
    let report = Report {
        out: out.display().to_string(),
        exported,
    };
    match args.output.json {
        true => console::print_json(&report)?,
        false => print_text(&report, options)?,
    }
    Ok(Outcome::Completed)
}

fn print_text(report: &Report, options: Options) -> Result<(), Error> {
    let Report { out, exported } = report;
    let parameters = table::with_thousands_separators(exported.parameters);
    let kind = match exported.model_type.as_deref() {
        None if matches!(options.format, Format::Gguf(_)) => "for llama.cpp".to_owned(),
        None => "with the names of hybridnorm".to_owned(),
        Some("hybridnorm") => {
            "with generated Python; `export --explain` lists the programs that can run it".into()
        }
        Some(name) => format!("as {name}, whose equations are equal"),
    };
    console::print(&format!(
        "exported {parameters} parameters as {} into {out}, {kind}\n",
        options.format.type_name(options.dtype)
    ))?;
    let Some(found) = &exported.verification else {
        return Ok(());
    };
    let logits = match (found.logits_difference, found.largest_logit) {
        (Some(0.0), _) => {
            "; the imported model's logits are equal to those of the checkpoint".into()
        }
        (Some(difference), Some(largest)) => format!(
            "; the imported model's logits, of at most {largest:.1e}, differ from those of the checkpoint by at most \
             {difference:.1e}"
        ),
        _ => String::new(),
    };
    let (equal, all) = (found.equal_parameters, found.parameters);
    let weights = match equal == all {
        true => format!("all {all} parameters have equal bits when read back"),
        false => format!(
            "weights are equal up to the rounding of their type when read back, those of {equal} of {all} parameters in \
             every bit"
        ),
    };
    console::print(&format!("verified: {weights}{logits}\n"))
}

fn support_table(programs: &[Support]) -> String {
    let mut rows = table::text_table(&["program", "runs it", "how, or why not"]);
    for support in programs {
        let can_run = if support.can_run { "yes" } else { "no" };
        rows.add_row([support.program, can_run, support.reason.as_str()]);
    }
    format!("{rows}\n")
}
