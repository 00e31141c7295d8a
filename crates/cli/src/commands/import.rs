//! `hybridnorm import`.

use hybridnorm::data::{Tokenizer, TokenizerSpec};
use hybridnorm::interop::{self, Imported, Tensors};
use hybridnorm::model::inventory;
use hybridnorm::omissions::LeftOut;
use hybridnorm::train::checkpoint::{self, Contents};
use hybridnorm::{Device, Error, files};
use serde::Serialize;

use super::Ending;
use crate::args::ImportArgs;
use crate::console::{self, Console};
use crate::table;

#[derive(Serialize)]
struct Report {
    checkpoint: String,
    parameters: u64,
    tensors: Tensors,
    left_out: LeftOut,
    notes: Vec<String>,
    tokenizer: Option<TokenizerReport>,
}

#[derive(Serialize)]
struct TokenizerReport {
    vocab_size: usize,
    eos_id: u32,
}

pub fn run(args: ImportArgs, console: &Console) -> Result<Ending, Error> {
    interop::require_folder(&args.folder)?;
    let out = files::through_links(&args.out)?;
    checkpoint::check_free(&out)?;
    let (tokenizer, mut read) = find_tokenizer(&args)?;
    let Imported {
        model,
        tensors,
        mut left_out,
        files,
        notes,
    } = interop::import(&args.folder, Device::Cpu)?;
    read.extend(files);
    let why = match (&args.tokenizer, args.no_tokenizer) {
        (Some(_), _) => "another tokenizer was named by --tokenizer",
        (None, true) => "left out by --no-tokenizer",
        (None, false) => "of no use without a tokenizer.json beside it",
    };
    left_out.extend(&interop::not_read(&args.folder, &read, why)?);
    let vocabulary = model.config().vocab_size;
    if let Some(tokenizer) = tokenizer.as_ref().filter(|t| t.vocab_size() > vocabulary) {
        let problem = format!(
            "the tokenizer has {} tokens, the model only {vocabulary}",
            tokenizer.vocab_size()
        );
        return Err(match &args.tokenizer {
            Some(_) => Error::config(problem),
            None => without_it(&Error::format(args.folder.join("tokenizer.json"), problem)),
        });
    }
    files::create_parent(&out)?;
    checkpoint::save(&out, Contents::of_model(&model, tokenizer.as_ref()))?;
    let parameters = inventory::parameters(model.config())?;
    if args.json {
        console::print_json(&Report {
            checkpoint: args.out.display().to_string(),
            parameters,
            tensors,
            left_out,
            notes,
            tokenizer: tokenizer.as_ref().map(|tokenizer| TokenizerReport {
                vocab_size: tokenizer.vocab_size(),
                eos_id: tokenizer.eos_id(),
            }),
        })?;
    } else {
        console.note(&format!(
            "imported {} parameters into {}",
            table::grouped(parameters),
            args.out.display()
        ));
        console.note(&format!("read {} of {} tensors", tensors.read, tensors.all));
        // Notes on tensor names are results, which `--quiet` does not suppress.
        for note in &notes {
            console::print(&format!("{note}\n"))?;
        }
        for line in left_out.lines() {
            console.note(&line);
        }
        console.note(&match (&tokenizer, &args.tokenizer) {
            (Some(tokenizer), None) => format!(
                "with the tokenizer.json beside the weights: {} tokens, end of text {}",
                table::grouped(tokenizer.vocab_size() as u64),
                tokenizer.eos_id()
            ),
            (Some(_), Some(spec)) => format!("with the tokenizer {spec}"),
            (None, _) => "without a tokenizer; the checkpoint cannot read or write text".into(),
        });
    }
    Ok(Ending::Done)
}

/// Returns the requested tokenizer, or the one next to the weights, and the files of the folder read for it.
fn find_tokenizer(args: &ImportArgs) -> Result<(Option<Tokenizer>, Vec<String>), Error> {
    if let Some(spec) = &args.tokenizer {
        let tokenizer = Tokenizer::from_spec(&spec.parse::<TokenizerSpec>()?)?;
        return Ok((Some(tokenizer), Vec::new()));
    }
    if args.no_tokenizer {
        return Ok((None, Vec::new()));
    }
    let beside = interop::tokenizer(&args.folder).map_err(|error| without_it(&error))?;
    Ok(beside.map_or((None, Vec::new()), |beside| {
        (Some(beside.tokenizer), beside.files)
    }))
}

fn without_it(error: &Error) -> Error {
    Error::config(format!(
        "{error}; --no-tokenizer imports the weights without it, --tokenizer takes another"
    ))
}
