//! `hybridnorm replay`.

use std::path::{Path, PathBuf};

use hybridnorm::lab::replay::{self, Options, Replay};
use hybridnorm::train::metrics::Metrics;
use hybridnorm::train::{Event, history};
use hybridnorm::{Device, Error};

use super::Outcome;
use crate::args::ReplayArgs;
use crate::console::Console;
use crate::progress::ProgressDisplay;
use crate::signals::Signals;
use crate::table::numeric_table;

/// Number of steps in the table before and after the step of interest.
const CONTEXT_STEPS: u64 = 20;

pub fn run(args: ReplayArgs, console: &Console) -> Result<Outcome, Error> {
    let step = args.step;
    let out = args.out.unwrap_or_else(|| default_out(&args.run, step));
    let mut options = Options::new(step, out)
        .with_steps_after(args.after)
        .with_settings(args.overrides.settings)
        .with_locking(args.lock.mode());
    options.placement = args.placement.map(Into::into);
    let signals = Signals::install()?;
    let mut display = ProgressDisplay::new(console);
    let last = step.saturating_add(args.after);
    let mut on_event = |event: Event<'_>| {
        signals.defer_from_first_step(&event);
        display.show_event("replay", last, &event);
    };
    let replay = replay::run(
        &args.run,
        &options,
        Device::Cpu,
        signals.flag(),
        &mut on_event,
    )?;
    display.finish();
    let Some(replay) = replay else {
        console.note("interrupted; run the same command again to restart");
        return Ok(Outcome::Interrupted);
    };
    args.output.print(&replay, |replay| text(replay, step))?;
    console.note(&format!("run directory: {}", replay.out.display()));
    Ok(Outcome::Completed)
}

/// Formats the comparison of the replay with the run.
fn describe_comparison(replay: &Replay) -> String {
    let found = &replay.comparison;
    let steps = match found.steps {
        0 => return "the run has no metrics of these steps to compare with".to_owned(),
        1 => "the one common step".to_owned(),
        n => format!("all {n} common steps"),
    };
    let Some(first) = &found.first_difference else {
        return format!("bit-identical to the run at {steps}");
    };
    let mut text = format!(
        "differs from the run from step {} on (first differing metric: {})",
        first.step, first.quantity
    );
    if !found.other_conditions.is_empty() {
        text += &format!("; other differences: {}", found.other_conditions.join("; "));
    }
    text
}

/// Returns the default run directory of a replay, next to the run.
fn default_out(run: &Path, step: u64) -> PathBuf {
    let mut name = run.file_name().unwrap_or_default().to_os_string();
    name.push(format!("-replay-{step}"));
    run.with_file_name(name)
}

fn text(replay: &Replay, step: u64) -> String {
    let changed = match replay.changed.as_slice() {
        [] => "no changes".to_owned(),
        changed => changed.join(", "),
    };
    let mut text = format!("replayed from step {} with {changed}", replay.from);
    for change in &replay.config_changes {
        let keys: Vec<String> = change
            .changed
            .iter()
            .map(history::describe_change)
            .collect();
        text += &format!(
            "; configuration change of the run after step {}: {}",
            change.after_step,
            keys.join(", ")
        );
    }
    text += &format!("\n{}\n", describe_comparison(replay));
    if !replay.new_parameters.is_empty() {
        text += &format!(
            "newly initialized parameters: {}\n",
            replay.new_parameters.join(", ")
        );
    }
    let mut table = numeric_table(&[
        "step",
        "loss (run)",
        "loss (replay)",
        "gradient norm (run)",
        "gradient norm (replay)",
        "update norm (run)",
        "update norm (replay)",
    ]);
    let near = |pair: &&replay::StepPair| pair.step.abs_diff(step) <= CONTEXT_STEPS;
    for pair in replay.steps.iter().filter(near) {
        let run = |f: fn(&Metrics) -> f64| {
            let run = pair.run.as_ref();
            run.map_or("-".to_owned(), |row| format!("{:.4}", f(row)))
        };
        let replay = |f: fn(&Metrics) -> f64| format!("{:.4}", f(&pair.replay));
        let mark = if pair.step == step { ">" } else { "" };
        table.add_row([
            format!("{mark}{}", pair.step),
            run(|row| row.loss),
            replay(|row| row.loss),
            run(|row| row.grad_norm),
            replay(|row| row.grad_norm),
            run(|row| row.update_norm),
            replay(|row| row.update_norm),
        ]);
    }
    text += &format!("{table}\n");
    if let Some(reason) = &replay.early_end_reason {
        text += &format!("the replay ended early: {reason}\n");
    }
    text
}
