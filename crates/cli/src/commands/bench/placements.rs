//! `hybridnorm bench placements`.

use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use hybridnorm::Error;
use hybridnorm::bench::placements::{
    BASELINE, BenchmarkKind, Candidate, Comparison, Measurement, PlacementsEvent,
};
use hybridnorm::bench::{self, PlacementsOptions, PlacementsReport};

use crate::args::BenchPlacementsArgs;
use crate::commands::Outcome;
use crate::console::Console;
use crate::progress::ProgressDisplay;
use crate::signals::Signals;
use crate::table::{bytes, numeric_table, with_thousands_separators};

/// Polling interval for a measurement in another process.
const POLL: Duration = Duration::from_millis(50);
/// Exit code of a process stopped by a signal.
const INTERRUPTED: i32 = 130;

pub fn run(
    args: &BenchPlacementsArgs,
    console: &Console,
    signals: &Signals,
) -> Result<Outcome, Error> {
    if let Some(setting) = args
        .model
        .overrides
        .settings
        .iter()
        .find(|key| sets_placement(key))
    {
        return Err(Error::conflict(
            ["--set", "--only"],
            format!(
                "--set {setting}: every placement is measured in turn; --only {BASELINE} chooses one"
            ),
        ));
    }
    bench::check_seconds(args.seconds)?;
    let options = PlacementsOptions::default()
        .with_rounds(args.rounds)
        .with_only(args.only.clone());
    let config = args.model.load_config()?;
    // A signal must not leave a measurement process behind.
    signals.defer();
    let mut display = ProgressDisplay::new(console);
    let report = bench::placements(
        &config,
        &options,
        &mut |kind, candidate| measure_in_subprocess(args, kind, candidate, signals),
        signals.flag(),
        &mut |event| show_event(&mut display, &event),
    )?;
    display.finish();
    let Some(report) = report else {
        console.note("interrupted");
        return Ok(Outcome::Interrupted);
    };
    args.model.output.print(&report, text)?;
    Ok(Outcome::Completed)
}

fn sets_placement(setting: &str) -> bool {
    let key = setting.split('=').next().unwrap_or_default().trim();
    key == "model.placement" || key.starts_with("model.placement.")
}

/// Measures in a separate process, whose peak memory is that of this measurement alone.
fn measure_in_subprocess(
    args: &BenchPlacementsArgs,
    kind: BenchmarkKind,
    candidate: &Candidate,
    signals: &Signals,
) -> Result<Measurement, Error> {
    let benchmark = match kind {
        BenchmarkKind::Step => "step",
        BenchmarkKind::Decode => "decode",
    };
    run_benchmark(args, benchmark, candidate.name, signals).map_err(|problem| {
        Error::External(format!(
            "bench {benchmark} of placement {}: {problem}",
            candidate.name
        ))
    })
}

/// Runs `bench step` or `bench decode` with a placement; the error is a description of the problem.
fn run_benchmark(
    args: &BenchPlacementsArgs,
    benchmark: &str,
    placement: &str,
    signals: &Signals,
) -> Result<Measurement, String> {
    let mut command = benchmark_command(args, benchmark, placement)?;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start: {error}"))?;
    let output = wait_or_kill(child, signals)?;
    if output.status.code() == Some(INTERRUPTED) {
        // The signal may have reached that process before this one.
        signals.flag().store(true, Ordering::Relaxed);
    }
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = stderr.lines().last().unwrap_or_default();
        return Err(match line.strip_prefix("error: ") {
            Some(problem) => problem.to_owned(),
            None => output.status.to_string(),
        });
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("its output cannot be read: {error}"))
}

fn benchmark_command(
    args: &BenchPlacementsArgs,
    benchmark: &str,
    placement: &str,
) -> Result<Command, String> {
    let program =
        std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut command = Command::new(program);
    command.args(["bench", benchmark, "--json", "--quiet"]);
    command.args(["--threads", &hybridnorm::threads::count().to_string()]);
    command.args(["--seconds", &args.seconds.to_string()]);
    args.model.append_to(&mut command);
    command.args(["--set", &format!("model.placement=\"{placement}\"")]);
    Ok(command)
}

/// Waits for a process; kills it if this one is interrupted.
fn wait_or_kill(mut child: Child, signals: &Signals) -> Result<Output, String> {
    let wait_failed = |error| format!("cannot wait for it: {error}");
    // The output fits into a pipe, so it need not be read before the process ends.
    while child.try_wait().map_err(wait_failed)?.is_none() {
        if signals.flag().load(Ordering::Relaxed) {
            child.kill().map_err(wait_failed)?;
            child.wait().map_err(wait_failed)?;
            return Err("interrupted".into());
        }
        std::thread::sleep(POLL);
    }
    child.wait_with_output().map_err(wait_failed)
}

fn show_event(display: &mut ProgressDisplay<'_>, event: &PlacementsEvent<'_>) {
    match event {
        PlacementsEvent::Progress { done, total } => {
            display.show_count(
                "placements",
                *done as u64,
                Some(*total as u64),
                "measurements",
            );
        }
        PlacementsEvent::Row(row) => display.line(&format!(
            "{}  speed relative to {BASELINE}: training {:.3}, decoding {:.3}",
            row.name, row.step.relative_speed, row.decode.relative_speed
        )),
        PlacementsEvent::Skipped(skipped) => {
            display.line(&format!("{}  {}", skipped.name, skipped.reason));
        }
        _ => {}
    }
}

fn text(report: &PlacementsReport) -> String {
    let relative = format!("÷ {}", report.baseline);
    let mut table = numeric_table(&[
        "placement",
        "training tokens/s",
        &relative,
        "memory",
        &relative,
        "decoding tokens/s",
        &relative,
        "memory",
        &relative,
    ]);
    for row in &report.rows {
        let mut cells = vec![row.name.to_owned()];
        cells.extend(cells_of(&row.step));
        cells.extend(cells_of(&row.decode));
        table.add_row(cells);
    }
    let absolute = |measured: &Option<Measurement>| {
        measured.map_or("not measured".into(), |measured| {
            format!(
                "{} tokens/s, {}",
                with_thousands_separators(measured.tokens_per_second as u64),
                measured.peak_rss_bytes.map_or("unknown".into(), bytes)
            )
        })
    };
    let skipped: String = report
        .skipped
        .iter()
        .map(|skipped| format!("not measured: {}: {}\n", skipped.name, skipped.reason))
        .collect();
    format!(
        "threads            {}\n\
         {} training  {}\n\
         {} decoding  {}\n\
         rounds             {} (ratios are medians)\n{table}\n{skipped}",
        report.threads,
        report.baseline,
        absolute(&report.baseline_step),
        report.baseline,
        absolute(&report.baseline_decode),
        report.rounds,
    )
}

fn cells_of(comparison: &Comparison) -> [String; 4] {
    [
        with_thousands_separators(comparison.tokens_per_second as u64),
        format!("{:.3}", comparison.relative_speed),
        comparison.peak_rss_bytes.map_or("unknown".into(), bytes),
        comparison
            .relative_memory
            .map_or("unknown".into(), |ratio| format!("{ratio:.3}")),
    ]
}
