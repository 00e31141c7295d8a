//! `hybridnorm serve`.

use std::path::Path;

use hybridnorm::Error;
use hybridnorm::data::Tokenizer;
use hybridnorm_server::Started;
use hybridnorm_server::chat::ChatPrompts;

use super::Outcome;
use crate::args::ServeArgs;
use crate::console::{self, Console};
use crate::signals::Signals;

pub fn run(args: ServeArgs, console: &Console) -> Result<Outcome, Error> {
    let options = args.options()?;
    let checkpoint = super::open_checkpoint(&args.checkpoint, console)?;
    let tokenizer = super::require_tokenizer(&checkpoint)?;
    let tokenizer = match &args.chat_template {
        Some(path) => {
            let tokenizer = tokenizer.with_chat_template_file(path)?;
            check_template(&tokenizer, path)?;
            tokenizer
        }
        None => tokenizer,
    };
    let mut model = checkpoint.model(args.device.device)?;
    args.precision.apply(&mut model)?;
    super::note_precision(model.precision(), console);
    let is_open = !args.host.is_loopback() && options.api_key.is_none();
    if is_open {
        console.note("without --api-key-file, anybody who reaches this address can use the model");
    }
    let name = options.model_name.clone();
    let signals = Signals::install()?;
    let stop = signals.defer();
    let mut printed = Ok(true);
    hybridnorm_server::serve(model, tokenizer, options, stop, |started| {
        for line in memory_lines(started) {
            console.note(&line);
        }
        if let Some(problem) = &started.chat_problem {
            console.note(&format!("{problem}; chat requests will be errors"));
        }
        printed =
            console::print_streamed(&format!("serving {name} at http://{}\n", started.address));
    })?;
    printed?;
    console.note("stopped");
    Ok(Outcome::Completed)
}

/// Checks the chat template that was read from `path`.
fn check_template(tokenizer: &Tokenizer, path: &Path) -> Result<(), Error> {
    let Some(template) = tokenizer.chat_template() else {
        return Ok(());
    };
    match ChatPrompts::new(template, tokenizer) {
        Ok(_) => Ok(()),
        Err(problem) => Err(Error::invalid_value(
            "--chat-template",
            format!("--chat-template {}: {problem}", path.display()),
        )),
    }
}

/// Returns the maximum memory of the server, by part.
fn memory_lines(started: &Started) -> [String; 2] {
    let engine = &started.engine;
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    [
        format!(
            "memory: at most {} MiB besides the program and its tokenizer: weights {}, keys and values of {} × {} tokens \
             {}, a step {}, {} requests of up to {} each, connections {}",
            mib(started.total_bytes()),
            mib(engine.weights),
            started.slots,
            started.context,
            mib(engine.cache),
            mib(engine.run),
            started.max_requests,
            mib(started.request_bytes),
            mib(started.connection_bytes)
        ),
        "stop with Ctrl-C: running requests are completed first".into(),
    ]
}
