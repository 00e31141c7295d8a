//! `hybridnorm quickstart`.

use std::time::Instant;

use hybridnorm::digits::perplexity;
use hybridnorm::lab::quickstart::{self, Options, Results};
use hybridnorm::{Device, Error};

use super::Ending;
use crate::args::QuickstartArgs;
use crate::console::{self, Console};
use crate::progress::{Display, clock};
use crate::stop::Stop;
use crate::table::{bytes, grouped, numbers};

pub fn run(args: QuickstartArgs, console: &Console) -> Result<Ending, Error> {
    let started = Instant::now();
    let mut options = Options::new(args.out)
        .with_data(args.data)
        .with_locking(super::locking(args.no_lock));
    options.steps = args.steps;
    let stop = Stop::listen()?;
    let mut display = Display::new(console);
    let results = quickstart::run(
        &options,
        Device::Cpu,
        stop.flag(),
        &mut |name, steps, event| {
            stop.hear(&event);
            display.event(name, steps, &event);
        },
    )?;
    display.finish();
    let Some(results) = results else {
        console.note("interrupted; run the same command again to restart");
        return Ok(Ending::Interrupted);
    };
    if args.json {
        console::print_json(&results)?;
    } else {
        console::print(&report(&results))?;
    }
    console.note(&format!(
        "took {}; results: {}",
        clock(started.elapsed()),
        options.out.join("results.json").display()
    ));
    Ok(Ending::Done)
}

fn report(results: &Results) -> String {
    let mut table = numbers(&[
        "placement",
        "validation loss (nats)",
        "perplexity",
        "tokens/s",
        "peak memory",
        "largest gradient norm",
    ]);
    for row in &results.rows {
        table.add_row([
            row.placement.clone(),
            format!("{:.4}", row.validation_loss),
            perplexity(row.perplexity),
            grouped(row.tokens_per_second as u64),
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
        .rows
        .iter()
        .map(|row| {
            format!(
                "\n{} writes:\n  {}\n",
                row.placement,
                row.sample.replace('\n', "\n  ")
            )
        })
        .collect();
    let runs: String = results
        .rows
        .iter()
        .map(|row| format!("  {}\n", row.run.display()))
        .collect();
    format!(
        "{} · {} tokens each · same initial weights, same batches\n{table}\n{samples}\nrun directories:\n{runs}",
        results.data.join(" "),
        grouped(results.tokens),
    )
}
