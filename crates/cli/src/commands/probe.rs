//! `hybridnorm probe`.

use std::collections::{BTreeMap, BTreeSet};

use hybridnorm::lab::probe::{self, Options, ProbeReport, ProbeStep};
use hybridnorm::train::layers::FiniteOrNone;
use hybridnorm::train::{Config, Event};
use hybridnorm::{Error, files};

use super::Outcome;
use crate::args::ProbeArgs;
use crate::console::Console;
use crate::progress::ProgressDisplay;
use crate::signals::Signals;
use crate::table::{Table, numeric_table};

pub fn run(args: ProbeArgs, console: &Console) -> Result<Outcome, Error> {
    let config = Config::load(&args.config, &args.overrides.settings)?;
    super::note_precision(config.train.program_precision(), console);
    let all = config.train.steps as u64;
    let options = Options::default()
        .with_placements(
            args.placements
                .into_iter()
                .map(Into::into)
                .collect::<Vec<_>>(),
        )
        .with_steps(args.steps.unwrap_or(all.min(100)));
    if let Some(path) = &args.out {
        files::check_writable(path)?;
    }
    let signals = Signals::install()?;
    let mut display = ProgressDisplay::new(console);
    let steps = options.steps;
    let mut on_event = |name: &str, event: Event<'_>| {
        signals.defer_from_first_step(&event);
        display.show_event(name, steps, &event);
    };
    let report = probe::run(
        &config,
        &options,
        args.device.device,
        signals.flag(),
        &mut on_event,
    )?;
    display.finish();
    let Some(report) = report else {
        return Ok(Outcome::Interrupted);
    };
    if let Some(path) = &args.out {
        let text =
            serde_json::to_vec(&report).map_err(|error| Error::format(path, error.to_string()))?;
        files::write_user_path(path, &text)?;
        console.note(&format!("full probe results: {}", path.display()));
    }
    args.output.print(&report, text)?;
    Ok(Outcome::Completed)
}

fn text(report: &ProbeReport) -> String {
    let mut text = format!("{}\n", growth(report));
    for placement in &report.placements {
        if let Some(problem) = &placement.diverged {
            text += &format!("{} diverged: {problem}\n", placement.placement);
        }
        for measured in &placement.measured_steps {
            text += &format!(
                "\n{}, step {}\n{}\n{}\n",
                placement.placement,
                measured.step,
                block_statistics(measured),
                parameters_by_label(measured)
            );
        }
    }
    text
}

/// Tabulates how the signals of each placement change with depth.
fn growth(report: &ProbeReport) -> Table {
    let mut table = numeric_table(&[
        "placement",
        "step",
        "loss",
        "gradient norm, last block ÷ first (fitted)",
        "gradient norm, largest block ÷ smallest",
        "residual RMS, last ÷ first (fitted)",
        "residual gradient, last ÷ first (fitted)",
        "max attention logit",
        "min attention entropy",
    ]);
    for placement in &report.placements {
        for measured in &placement.measured_steps {
            let blocks = &measured.layers.blocks;
            let logits = blocks.iter().filter_map(|block| block.attention.max);
            let entropies = blocks.iter().filter_map(|block| block.attention.entropy);
            table.add_row([
                placement.placement.clone(),
                measured.step.to_string(),
                format!("{:.4}", measured.loss),
                ratio(measured.growth.grad),
                ratio(measured.growth.grad_spread),
                ratio(measured.growth.stream),
                ratio(measured.growth.stream_grad),
                three_digits(logits.reduce(f32::max)),
                three_digits(entropies.reduce(f32::min)),
            ]);
        }
    }
    table
}

/// Tabulates the activations, attention statistics and gradients of each block.
fn block_statistics(measured: &ProbeStep) -> Table {
    let mut table = numeric_table(&[
        "block",
        "residual RMS",
        "attention RMS",
        "feed-forward RMS",
        "max attention logit",
        "attention entropy",
        "gradient norm",
        "residual gradient",
        "gain drift (RMS)",
    ]);
    let blocks = measured.layers.blocks.iter().zip(&measured.stream_grad);
    for (index, (block, stream_grad)) in blocks.enumerate() {
        table.add_row([
            (index + 1).to_string(),
            three_digits(block.residual.rms),
            three_digits(block.attn.rms),
            three_digits(block.ffn.rms),
            three_digits(block.attention.max),
            three_digits(block.attention.entropy),
            three_digits(Some(block.grad_norm() as f32)),
            three_digits(*stream_grad),
            three_digits(block.parameters.gain_drift),
        ]);
    }
    table
}

/// Tabulates gradient norms and relative updates of each block's parameters by label.
fn parameters_by_label(measured: &ProbeStep) -> Table {
    let blocks = &measured.layers.blocks;
    let names: BTreeSet<&String> = blocks
        .iter()
        .flat_map(|block| block.parameters.grad_norm.keys())
        .collect();
    let header: Vec<String> = ["block".to_owned()]
        .into_iter()
        .chain(names.iter().map(|name| format!("gradient, {name}")))
        .chain(names.iter().map(|name| format!("update ÷ weight, {name}")))
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = numeric_table(&header);
    for (index, block) in blocks.iter().enumerate() {
        let of = |values: &BTreeMap<String, FiniteOrNone>| -> Vec<String> {
            let value = |name: &&String| three_digits(values.get(*name).copied().flatten());
            names.iter().map(value).collect()
        };
        let row = [(index + 1).to_string()].into_iter();
        let row = row.chain(of(&block.parameters.grad_norm));
        table.add_row(row.chain(of(&block.parameters.update_ratio)));
    }
    table
}

/// Formats a value with three significant digits.
fn three_digits(value: FiniteOrNone) -> String {
    match value {
        None => "-".into(),
        Some(0.0) => "0".into(),
        Some(value) if (1e-3..1e4).contains(&value.abs()) => {
            let digits = (2 - value.abs().log10().floor() as i32).max(0) as usize;
            format!("{value:.digits$}")
        }
        Some(value) => format!("{value:.2e}"),
    }
}

fn ratio(value: FiniteOrNone) -> String {
    match value {
        None => "-".into(),
        _ => format!("{}x", three_digits(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_significant_digits() {
        let all = [
            Some(0.012345),
            Some(1.0),
            Some(123.456),
            Some(2.5e-5),
            Some(-31.0),
            None,
        ];
        let texts = all.map(three_digits);
        assert_eq!(texts, ["0.0123", "1.00", "123", "2.50e-5", "-31.0", "-"]);
    }
}
