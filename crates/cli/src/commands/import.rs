//! `hybridnorm import`.

use hybridnorm::data::{Tokenizer, TokenizerSpec};
use hybridnorm::interop;
use hybridnorm::model::Recompute;
use hybridnorm::model::inventory::inventory;
use hybridnorm::train::checkpoint::{self, Contents};
use hybridnorm::{Device, Error};
use serde::Serialize;

use super::Ending;
use crate::args::ImportArgs;
use crate::console::{self, Console};
use crate::table;

#[derive(Serialize)]
struct Imported {
    checkpoint: String,
    parameters: u64,
}

pub fn run(args: ImportArgs, console: &Console) -> Result<Ending, Error> {
    let tokenizer = args
        .tokenizer
        .as_deref()
        .map(|spec| Tokenizer::from_spec(&spec.parse::<TokenizerSpec>()?))
        .transpose()?;
    let model = interop::import(&args.folder, &Device::flex())?;
    let vocabulary = model.config().vocab_size;
    if let Some(tokenizer) = tokenizer.as_ref().filter(|t| t.vocab_size() > vocabulary) {
        return Err(Error::config(format!(
            "the tokenizer has {} tokens, the model only {vocabulary}",
            tokenizer.vocab_size()
        )));
    }
    if let Some(parent) = args.out.parent() {
        hybridnorm::files::create_dir(parent)?;
    }
    checkpoint::save(&args.out, Contents::of_model(&model, tokenizer.as_ref()))?;
    let parameters = inventory(
        model.config(),
        1,
        model.config().max_seq_len,
        Recompute::None,
    )?
    .total;
    if args.json {
        console::print_json(&Imported {
            checkpoint: args.out.display().to_string(),
            parameters,
        })?;
    } else {
        console.note(&format!(
            "imported {} parameters into {}",
            table::grouped(parameters),
            args.out.display()
        ));
        if tokenizer.is_none() {
            console.note("no tokenizer was given; the checkpoint cannot read or write text");
        }
    }
    Ok(Ending::Done)
}
