//! `hybridnorm quickstart`.

use std::time::Instant;

use hybridnorm::format_number::perplexity;
use hybridnorm::lab::quickstart::{self, Options, Results};
use hybridnorm::{Device, Error};

use super::Outcome;
use crate::args::QuickstartArgs;
use crate::console::Console;
use crate::progress::{ProgressDisplay, clock};
use crate::signals::Signals;
use crate::table::{bytes, numeric_table, with_thousands_separators};

pub fn run(args: QuickstartArgs, console: &Console) -> Result<Outcome, Error> {
    let started = Instant::now();
    let mut options = Options::new(args.out)
        .with_data(args.data)
        .with_precision(args.precision.into())
        .with_locking(args.lock.mode());
    options.steps = args.steps;
    let signals = Signals::install()?;
    let mut display = ProgressDisplay::new(console);
    let results = quickstart::run(
        &options,
        Device::Cpu,
        signals.flag(),
        &mut |name, steps, event| {
            signals.defer_from_first_step(&event);
            display.show_event(name, steps, &event);
        },
    )?;
    display.finish();
    let Some(results) = results else {
        console.note("interrupted; run the same command again to restart");
        return Ok(Outcome::Interrupted);
    };
    args.output.print(&results, report)?;
    console.note(&format!(
        "took {}; results: {}",
        clock(started.elapsed()),
        options.out.join("results.json").display()
    ));
    Ok(Outcome::Completed)
}

fn report(results: &Results) -> String {
    let mut table = numeric_table(&[
        "placement",
        "validation loss (nats)",
        "perplexity",
        "tokens/s",
        "peak memory",
        "largest gradient norm",
    ]);
    for row in &results.placements {
        table.add_row([
            row.placement.clone(),
            format!("{:.4}", row.validation_loss),
            perplexity(row.perplexity),
            with_thousands_separators(row.tokens_per_second as u64),
            row.peak_memory_bytes.map_or("unknown".into(), bytes),
            format!("{:.2}", row.max_grad_norm),
        ]);
    }
    table.add_row([
        "unigram baseline".to_owned(),
        format!("{:.4}", results.unigram_nats),
        perplexity(results.unigram_nats.exp()),
        "-".into(),
        "-".into(),
        "-".into(),
    ]);
    let samples: String = results
        .placements
        .iter()
        .map(|row| {
            format!(
                "\n{} generates:\n  {}\n",
                row.placement,
                row.sample.replace('\n', "\n  ")
            )
        })
        .collect();
    let runs: String = results
        .placements
        .iter()
        .map(|row| format!("  {}\n", row.run.display()))
        .collect();
    format!(
        "{} · {} tokens each · {} · same initial weights, same batches\n{table}\n{samples}\nrun directories:\n{runs}",
        results.data.join(" "),
        with_thousands_separators(results.tokens),
        results.precision,
    )
}
