//! `hybridnorm import`.

use hybridnorm::data::{Tokenizer, TokenizerSpec};
use hybridnorm::interop::{self, Imported, Tensors};
use hybridnorm::model::Recompute;
use hybridnorm::model::inventory::inventory;
use hybridnorm::omissions::LeftOut;
use hybridnorm::train::checkpoint::{self, Contents};
use hybridnorm::{Device, Error};
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
}

pub fn run(args: ImportArgs, console: &Console) -> Result<Ending, Error> {
    let tokenizer = args
        .tokenizer
        .as_deref()
        .map(|spec| Tokenizer::from_spec(&spec.parse::<TokenizerSpec>()?))
        .transpose()?;
    let Imported {
        model,
        tensors,
        left_out,
    } = interop::import(&args.folder, &Device::flex())?;
    let vocabulary = model.config().vocab_size;
    if let Some(tokenizer) = tokenizer.as_ref().filter(|t| t.vocab_size() > vocabulary) {
        return Err(Error::config(format!(
            "the tokenizer has {} tokens, the model only {vocabulary}",
            tokenizer.vocab_size()
        )));
    }
    hybridnorm::files::create_parent(&args.out)?;
    checkpoint::save(&args.out, Contents::of_model(&model, tokenizer.as_ref()))?;
    let parameters = inventory(
        model.config(),
        1,
        model.config().max_seq_len,
        Recompute::None,
    )?
    .total;
    if args.json {
        console::print_json(&Report {
            checkpoint: args.out.display().to_string(),
            parameters,
            tensors,
            left_out,
        })?;
    } else {
        console.note(&format!(
            "imported {} parameters into {}",
            table::grouped(parameters),
            args.out.display()
        ));
        console.note(&format!("read {} of {} tensors", tensors.read, tensors.all));
        for line in left_out.lines() {
            console.note(&line);
        }
        if tokenizer.is_none() {
            console.note("no tokenizer was given; the checkpoint cannot read or write text");
        }
    }
    Ok(Ending::Done)
}
