//! `hybridnorm eval`.

use hybridnorm::data::Split;
use hybridnorm::train::Checkpoint;
use hybridnorm::{Device, Error, eval};

use super::Ending;
use crate::args::{EvalArgs, EvalSplit};
use crate::console::{self, Console};
use crate::progress::Display;
use crate::stop::Stop;

pub fn run(args: EvalArgs, console: &Console) -> Result<Ending, Error> {
    Stop::listen()?;
    if args.batch_size == 0 {
        return Err(Error::Config(
            "--batch-size is 0, expected at least 1".into(),
        ));
    }
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let model = checkpoint.model(&Device::flex())?;
    let mut display = Display::new(console);
    let split = args.split.map(|split| match split {
        EvalSplit::Train => Split::Train,
        EvalSplit::Validation => Split::Validation,
        EvalSplit::All => Split::All,
    });
    let data = eval::open_data(
        &args.data,
        split,
        &model,
        checkpoint.tokenizer()?,
        args.seq_len,
        &mut |progress| display.data(&progress),
    )?;
    display.finish();
    let found = eval::loss(&model, &data, args.batch_size, 0)?;
    if args.json {
        console::print_json(&found)?;
    } else {
        console::print(&format!(
            "loss        {:.4} nats per token\nperplexity  {:.3}\ntokens      {}\n",
            found.loss,
            found.perplexity,
            crate::table::grouped(found.tokens)
        ))?;
    }
    Ok(Ending::Done)
}
