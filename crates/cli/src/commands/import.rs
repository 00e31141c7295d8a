//! `hybridnorm import`.

use hybridnorm::data::{Tokenizer, TokenizerSpec};
use hybridnorm::interop::{self, Imported, TensorCounts};
use hybridnorm::model::counts;
use hybridnorm::omissions::Omissions;
use hybridnorm::train::checkpoint::{self, Contents};
use hybridnorm::{Device, Error, files};
use serde::Serialize;

use super::Outcome;
use crate::args::ImportArgs;
use crate::console::{self, Console};
use crate::table;

#[derive(Serialize)]
struct Report {
    checkpoint: String,
    parameters: u64,
    tensors: TensorCounts,
    #[serde(rename = "left_out")]
    omissions: Omissions,
    notes: Vec<String>,
    tokenizer: Option<TokenizerReport>,
}

#[derive(Serialize)]
struct TokenizerReport {
    vocab_size: usize,
    eos_id: u32,
    end_ids: Vec<u32>,
}

pub fn run(mut args: ImportArgs, console: &Console) -> Result<Outcome, Error> {
    download(&mut args, console)?;
    interop::require_source(&args.folder)?;
    let out = files::resolve_links(&args.out)?;
    checkpoint::check_does_not_exist(&out)?;
    let FoundTokenizer {
        tokenizer,
        files: mut read,
        notes: tokenizer_notes,
    } = find_tokenizer(&args)?;
    let Imported {
        model,
        tensors,
        mut omissions,
        files,
        mut notes,
        ..
    } = interop::import(&args.folder, Device::Cpu)?;
    read.extend(files);
    notes.extend(tokenizer_notes);
    omissions.extend(&interop::unread_files(
        &args.folder,
        &read,
        skip_reason(&args),
    )?);
    if let Some(tokenizer) = &tokenizer {
        check_vocabulary(tokenizer, model.config().vocab_size, &args)?;
    }
    files::create_parent(&out)?;
    checkpoint::save(&out, Contents::model_only(&model, tokenizer.as_ref()))?;
    let report = Report {
        checkpoint: args.out.display().to_string(),
        parameters: counts::parameters(model.config())?,
        tensors,
        omissions,
        notes,
        tokenizer: tokenizer.as_ref().map(|tokenizer| TokenizerReport {
            vocab_size: tokenizer.vocab_size(),
            eos_id: tokenizer.eos_id(),
            end_ids: tokenizer.end_ids().to_vec(),
        }),
    };
    match args.output.json {
        true => console::print_json(&report)?,
        false => print_text(&report, &args, console)?,
    }
    Ok(Outcome::Completed)
}

/// Replaces the name of a model by the folder that it is downloaded to. A folder that exists is never a name.
#[cfg(feature = "hub")]
fn download(args: &mut ImportArgs, console: &Console) -> Result<(), Error> {
    if args.folder.exists() {
        return match &args.revision {
            Some(revision) => Err(Error::no_effect(
                format!("--revision {revision}"),
                format!(": {} is a folder", args.folder.display()),
            )),
            None => Ok(()),
        };
    }
    let name = args.folder.to_string_lossy().into_owned();
    let revision = args.revision.as_deref().unwrap_or("main");
    console.note(&format!("downloading {name} ({revision})"));
    args.folder = interop::hub::Hub::from_env().download(&name, revision)?;
    Ok(())
}

/// Without the feature `hub`, a model is a folder.
#[cfg(not(feature = "hub"))]
fn download(args: &mut ImportArgs, _console: &Console) -> Result<(), Error> {
    let name = args.folder.to_string_lossy();
    let is_name = matches!(name.split('/').collect::<Vec<_>>()[..], [owner, model]
        if !owner.is_empty() && !owner.starts_with('.') && !model.is_empty());
    if !is_name || files::exists(&args.folder)? {
        return Ok(());
    }
    Err(Error::format(
        &args.folder,
        "no such file or folder; to download a model by its name, build hybridnorm with `--features hub`",
    ))
}

/// Returns why the tokenizer files of the folder are not imported, if they are not.
fn skip_reason(args: &ImportArgs) -> &'static str {
    match (&args.tokenizer, args.no_tokenizer) {
        (Some(_), _) => "replaced by --tokenizer",
        (None, true) => "omitted by --no-tokenizer",
        (None, false) => "unused without a tokenizer.json in the folder",
    }
}

/// Checks that the model has an embedding for every token.
fn check_vocabulary(
    tokenizer: &Tokenizer,
    vocab_size: usize,
    args: &ImportArgs,
) -> Result<(), Error> {
    if tokenizer.vocab_size() <= vocab_size {
        return Ok(());
    }
    let problem = format!(
        "the tokenizer has {} tokens, the model only {vocab_size}",
        tokenizer.vocab_size()
    );
    Err(match &args.tokenizer {
        Some(spec) => Error::conflict(
            ["--tokenizer", "model.vocab_size"],
            format!("{}: --tokenizer {spec}: {problem}", args.folder.display()),
        ),
        None => {
            let in_folder = args.folder.join("tokenizer.json");
            let file = if in_folder.exists() {
                &in_folder
            } else {
                &args.folder
            };
            tokenizer_error(&Error::format(file, problem))
        }
    })
}

fn print_text(report: &Report, args: &ImportArgs, console: &Console) -> Result<(), Error> {
    console::print(&format!(
        "imported {} parameters into {}\n",
        table::with_thousands_separators(report.parameters),
        report.checkpoint
    ))?;
    let tensors = &report.tensors;
    console.note(&format!("read {} of {} tensors", tensors.read, tensors.all));
    // Notes on tensor names are results, which `--quiet` does not suppress.
    for note in &report.notes {
        console::print(&format!("{note}\n"))?;
    }
    for line in report.omissions.lines() {
        console.note(&line);
    }
    console.note(&match (&report.tokenizer, &args.tokenizer) {
        (Some(tokenizer), None) => format!(
            "with the tokenizer of the model: {} tokens, end-of-text id {}{}",
            table::with_thousands_separators(tokenizer.vocab_size as u64),
            tokenizer.eos_id,
            other_ends(&tokenizer.end_ids)
        ),
        (Some(_), Some(spec)) => format!("with the tokenizer {spec}"),
        (None, _) => {
            "without a tokenizer: `generate` and `eval` on text will not work with this checkpoint"
                .into()
        }
    });
    Ok(())
}

/// Describes the tokens, other than the first, that end generated text.
fn other_ends(ids: &[u32]) -> String {
    match ids.get(1..) {
        None | Some([]) => String::new(),
        Some(others) => {
            let others: Vec<String> = others.iter().map(u32::to_string).collect();
            format!("; generation also ends at {}", others.join(", "))
        }
    }
}

/// The tokenizer to store, the files of the folder read for it, and notes.
#[derive(Default)]
struct FoundTokenizer {
    tokenizer: Option<Tokenizer>,
    files: Vec<String>,
    notes: Vec<String>,
}

/// Returns the requested tokenizer, or the one of the imported model.
fn find_tokenizer(args: &ImportArgs) -> Result<FoundTokenizer, Error> {
    if let Some(spec) = &args.tokenizer {
        let tokenizer = Tokenizer::from_spec(&spec.parse::<TokenizerSpec>()?)?;
        return Ok(FoundTokenizer {
            tokenizer: Some(tokenizer),
            ..FoundTokenizer::default()
        });
    }
    if args.no_tokenizer {
        return Ok(FoundTokenizer::default());
    }
    let imported = interop::tokenizer(&args.folder).map_err(|error| tokenizer_error(&error))?;
    Ok(
        imported.map_or_else(FoundTokenizer::default, |imported| FoundTokenizer {
            tokenizer: Some(imported.tokenizer),
            files: imported.files,
            notes: imported.notes,
        }),
    )
}

/// Adds the options that import the weights with another tokenizer or none.
fn tokenizer_error(error: &Error) -> Error {
    Error::invalid_value(
        "--tokenizer",
        format!(
            "{error}; use --no-tokenizer to import the weights only, or --tokenizer SPEC to store another tokenizer"
        ),
    )
}
