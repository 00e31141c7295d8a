//! `hybridnorm generate`.

use std::sync::atomic::Ordering;

use hybridnorm::eval::{PromptAccount, Sampling, TextGenerator};
use hybridnorm::omissions::LeftOut;
use hybridnorm::{Device, Error};
use serde::Serialize;

use super::Ending;
use crate::args::GenerateArgs;
use crate::console::{self, Console};
use crate::stop::Stop;

#[derive(Serialize)]
struct Written {
    prompt: String,
    /// Generated text, without the prompt.
    text: String,
    /// Number of generated tokens.
    tokens: usize,
    prompt_tokens: usize,
    context_tokens: usize,
    /// Tokens outside the context of the last sampled token.
    left_out: LeftOut,
    #[serde(flatten)]
    prompt_account: PromptAccount,
}

pub fn run(args: GenerateArgs, console: &Console) -> Result<Ending, Error> {
    let sampling = sampling(&args)?;
    let checkpoint = super::open_checkpoint(&args.checkpoint, console)?;
    let tokenizer = checkpoint.tokenizer()?.ok_or_else(|| {
        Error::format(
            checkpoint.path(),
            "has no tokenizer; import or train with one to generate text",
        )
    })?;
    let mut model = checkpoint.model(Device::Cpu)?;
    let stop = Stop::listen()?;
    let stop = stop.wait_for_me();
    let mut generator = TextGenerator::new(&mut model, &tokenizer, &args.prompt, sampling)?;
    let prompt_account = generator.prompt().clone();
    for line in prompt_account.lines() {
        console.note(&line);
    }
    let unread = generator.left_out();
    for line in unread.lines() {
        console.note(&line);
    }
    let mut text = String::new();
    let mut show = |piece: &str| match args.json {
        true => {
            text.push_str(piece);
            Ok(true)
        }
        false => console::print_while_read(piece),
    };
    if !args.json {
        show(&args.prompt)?;
    }
    let mut tokens = 0;
    while tokens < args.max_tokens && !stop.load(Ordering::Relaxed) {
        let Some(piece) = generator.next_piece()? else {
            break;
        };
        tokens += 1;
        if !show(&piece)? {
            return Ok(Ending::Done);
        }
    }
    let prompt_tokens = generator.prompt_tokens();
    let left_out = generator.left_out();
    show(&generator.finish())?;
    if !args.json {
        console::print("\n")?;
    }
    // The others were printed above.
    for line in left_out.lines().iter().skip(unread.lines().len()) {
        console.note(line);
    }
    if args.json {
        console::print_json(&Written {
            prompt: args.prompt,
            text,
            tokens,
            prompt_tokens,
            context_tokens: model.config().max_seq_len,
            left_out,
            prompt_account,
        })?;
    }
    if stop.load(Ordering::Relaxed) {
        console.note(&format!("stopped after {tokens} tokens"));
        return Ok(Ending::Interrupted);
    }
    Ok(Ending::Done)
}

/// Returns the sampling options; options without effect are errors.
fn sampling(args: &GenerateArgs) -> Result<Sampling, Error> {
    let one_of = match (args.temperature == 0.0, args.top_k) {
        (true, _) => Some("--temperature 0"),
        (false, Some(1)) => Some("--top-k 1"),
        _ => None,
    };
    if let Some(chosen) = one_of {
        let given = [
            ("--top-k", args.top_k.is_some() && chosen != "--top-k 1"),
            ("--top-p", args.top_p.is_some()),
            ("--seed", args.seed.is_some()),
        ];
        let unused = given.into_iter().filter(|(_, is_given)| *is_given);
        let unused: Vec<&str> = unused.map(|(name, _)| name).collect();
        if !unused.is_empty() {
            return Err(Error::Config(format!(
                "{} without effect: decoding is greedy ({chosen}); remove one of them",
                unused.join(" and ")
            )));
        }
    }
    let usual = Sampling::default();
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k.unwrap_or(usual.top_k),
        top_p: args.top_p.unwrap_or(usual.top_p),
        seed: args.seed.unwrap_or(usual.seed),
    };
    sampling.check()?;
    Ok(sampling)
}
