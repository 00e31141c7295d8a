//! `hybridnorm probe`.

use std::collections::{BTreeMap, BTreeSet};

use hybridnorm::lab::probe::{self, Options, ProbeMoment, ProbeReport};
use hybridnorm::train::layers::Measured;
use hybridnorm::train::{Config, Event};
use hybridnorm::{Device, Error, files};

use super::Ending;
use crate::args::ProbeArgs;
use crate::console::{self, Console};
use crate::progress::Display;
use crate::stop::Stop;
use crate::table::{Table, numbers};

pub fn run(args: ProbeArgs, console: &Console) -> Result<Ending, Error> {
    let config = Config::load(&args.config, &args.settings)?;
    let all = config.train.steps as u64;
    let options = Options::default()
        .with_placements(args.placements)
        .with_steps(args.steps.unwrap_or(all.min(100)));
    if let Some(path) = &args.out {
        files::check_writable(path)?;
    }
    let stop = Stop::listen()?;
    let mut display = Display::new(console);
    let steps = options.steps;
    let mut on_event = |name: &str, event: Event<'_>| {
        stop.hear(&event);
        display.event(name, steps, &event);
    };
    let report = probe::run(&config, &options, Device::Cpu, stop.flag(), &mut on_event)?;
    display.finish();
    let Some(report) = report else {
        return Ok(Ending::Interrupted);
    };
    if let Some(path) = &args.out {
        let text =
            serde_json::to_vec(&report).map_err(|error| Error::format(path, error.to_string()))?;
        files::write_named(path, &text)?;
        console.note(&format!("everything that was seen: {}", path.display()));
    }
    match args.json {
        true => console::print_json(&report)?,
        false => console::print(&text(&report))?,
    }
    Ok(Ending::Done)
}

fn text(report: &ProbeReport) -> String {
    let mut growth = numbers(&[
        "placement",
        "step",
        "loss",
        "gradient, last block ÷ first",
        "largest ÷ smallest",
        "stream, last ÷ first",
        "gradient at the stream, last ÷ first",
        "largest score",
        "least entropy",
    ]);
    for placement in &report.placements {
        for moment in &placement.moments {
            let blocks = &moment.layers.blocks;
            let scores = blocks.iter().filter_map(|block| block.scores.max);
            let entropies = blocks.iter().filter_map(|block| block.scores.entropy);
            growth.add_row([
                placement.placement.clone(),
                moment.step.to_string(),
                format!("{:.4}", moment.loss),
                ratio(moment.growth.grad),
                ratio(moment.growth.grad_spread),
                ratio(moment.growth.stream),
                ratio(moment.growth.stream_grad),
                short(scores.reduce(f32::max)),
                short(entropies.reduce(f32::min)),
            ]);
        }
    }
    let mut text = format!("{growth}\n");
    for placement in &report.placements {
        if let Some(problem) = &placement.diverged {
            text += &format!("{} diverged: {problem}\n", placement.placement);
        }
        for moment in &placement.moments {
            text += &format!("\n{}, step {}\n", placement.placement, moment.step);
            let mut table = numbers(&[
                "block",
                "stream rms",
                "attention rms",
                "feed-forward rms",
                "largest score",
                "entropy",
                "gradient",
                "gradient at the stream",
                "gain drift",
            ]);
            let blocks = moment.layers.blocks.iter().zip(&moment.stream_grad);
            for (index, (block, stream_grad)) in blocks.enumerate() {
                table.add_row([
                    (index + 1).to_string(),
                    short(block.stream.rms),
                    short(block.attn.rms),
                    short(block.ffn.rms),
                    short(block.scores.max),
                    short(block.scores.entropy),
                    short(Some(block.grad_norm() as f32)),
                    short(*stream_grad),
                    short(block.roles.gain_drift),
                ]);
            }
            text += &format!("{table}\n{}\n", roles(moment));
        }
    }
    text
}

/// Tabulates gradient norms and relative updates of each block's parameters by role.
fn roles(moment: &ProbeMoment) -> Table {
    let blocks = &moment.layers.blocks;
    let names: BTreeSet<&String> = blocks
        .iter()
        .flat_map(|block| block.roles.grad_norm.keys())
        .collect();
    let header: Vec<String> = ["block".to_owned()]
        .into_iter()
        .chain(names.iter().map(|name| format!("gradient, {name}")))
        .chain(names.iter().map(|name| format!("update ÷ weight, {name}")))
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = numbers(&header);
    for (index, block) in blocks.iter().enumerate() {
        let of = |values: &BTreeMap<String, Measured>| -> Vec<String> {
            let value = |name: &&String| short(values.get(*name).copied().flatten());
            names.iter().map(value).collect()
        };
        let row = [(index + 1).to_string()].into_iter();
        let row = row.chain(of(&block.roles.grad_norm));
        table.add_row(row.chain(of(&block.roles.update_ratio)));
    }
    table
}

/// Formats a value with three significant digits.
fn short(value: Measured) -> String {
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

fn ratio(value: Measured) -> String {
    match value {
        None => "-".into(),
        _ => format!("{}x", short(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let all = [
            Some(0.012345),
            Some(1.0),
            Some(123.456),
            Some(2.5e-5),
            Some(-31.0),
            None,
        ];
        let texts = all.map(short);
        assert_eq!(texts, ["0.0123", "1.00", "123", "2.50e-5", "-31.0", "-"]);
    }
}
