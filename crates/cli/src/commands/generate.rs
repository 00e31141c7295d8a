//! `hybridnorm generate`.

use std::sync::atomic::{AtomicBool, Ordering};

use hybridnorm::Error;
use hybridnorm::eval::{PromptCoverage, TextGenerator};
use hybridnorm::omissions::Omissions;
use serde::Serialize;

use super::Outcome;
use crate::args::GenerateArgs;
use crate::console::{self, Console};
use crate::signals::Signals;

#[derive(Serialize)]
struct GenerationReport {
    prompt: String,
    /// Generated text, without the prompt.
    text: String,
    /// Number of generated tokens.
    tokens: usize,
    /// Precision of the model, such as `bf16, residual stream in f32`.
    precision: String,
    /// Token before those of the prompt.
    start_id: Option<u32>,
    prompt_tokens: usize,
    context_tokens: usize,
    /// Tokens outside the context of the last sampled token.
    #[serde(rename = "left_out")]
    omissions: Omissions,
    #[serde(flatten)]
    prompt_coverage: PromptCoverage,
}

pub fn run(args: GenerateArgs, console: &Console) -> Result<Outcome, Error> {
    let sampling = args.sampling()?;
    let checkpoint = super::open_checkpoint(&args.checkpoint, console)?;
    let tokenizer = super::require_tokenizer(&checkpoint)?;
    let mut model = checkpoint.model(args.device.device)?;
    args.precision.apply(&mut model)?;
    super::note_precision(model.precision(), console);
    let signals = Signals::install()?;
    let stop = signals.defer();
    let mut generator = TextGenerator::new(
        &mut model,
        &tokenizer,
        &args.prompt,
        args.start_token.into(),
        sampling,
    )?;
    let prompt_coverage = generator.prompt().clone();
    let dropped_prompt_tokens = generator.omissions().lines();
    for line in prompt_coverage.lines().iter().chain(&dropped_prompt_tokens) {
        console.note(line);
    }
    if let Some(id) = generator.start_id() {
        let name = tokenizer.decode(&[id]);
        console.note(&format!(
            "the prompt follows the start token {name} (--start-token)"
        ));
    }
    let mut sink = TextSink::new(&args);
    let Some(tokens) = generate(&mut generator, &mut sink, args.max_tokens, stop)? else {
        return Ok(Outcome::Completed);
    };
    let (start_id, prompt_tokens) = (generator.start_id(), generator.prompt_tokens());
    let omissions = generator.omissions();
    sink.write(&generator.finish())?;
    if !args.output.json {
        console::print("\n")?;
    }
    // The first ones, on the prompt, were printed before generation.
    for line in omissions.lines().iter().skip(dropped_prompt_tokens.len()) {
        console.note(line);
    }
    if args.output.json {
        console::print_json(&GenerationReport {
            prompt: args.prompt,
            text: sink.collected.unwrap_or_default(),
            tokens,
            precision: model.precision().to_string(),
            start_id,
            prompt_tokens,
            context_tokens: model.config().max_seq_len,
            omissions,
            prompt_coverage,
        })?;
    }
    if stop.load(Ordering::Relaxed) {
        console.note(&format!("interrupted after {tokens} tokens"));
        return Ok(Outcome::Interrupted);
    }
    Ok(Outcome::Completed)
}

/// Generates up to `max_tokens` tokens and returns their number; `None` if standard output was
/// closed.
fn generate(
    generator: &mut TextGenerator<'_>,
    sink: &mut TextSink,
    max_tokens: usize,
    stop: &AtomicBool,
) -> Result<Option<usize>, Error> {
    let mut tokens = 0;
    while tokens < max_tokens && !stop.load(Ordering::Relaxed) {
        let Some(piece) = generator.next_piece()? else {
            break;
        };
        tokens += 1;
        if !sink.write(&piece)? {
            return Ok(None);
        }
    }
    Ok(Some(tokens))
}

/// Destination of generated text.
struct TextSink {
    /// The text so far, for a JSON document; `None` if it is streamed to standard output.
    collected: Option<String>,
    /// Text that a stream begins with. Printed with the first piece, so that standard output stays empty if the model does
    /// not fit into memory.
    prompt: String,
}

impl TextSink {
    fn new(args: &GenerateArgs) -> Self {
        Self {
            collected: args.output.json.then(String::new),
            prompt: args.prompt.clone(),
        }
    }

    /// Adds text; returns false if standard output was closed.
    fn write(&mut self, piece: &str) -> Result<bool, Error> {
        match &mut self.collected {
            Some(text) => {
                text.push_str(piece);
                Ok(true)
            }
            None => {
                let prompt = std::mem::take(&mut self.prompt);
                console::print_streamed(&(prompt + piece))
            }
        }
    }
}
