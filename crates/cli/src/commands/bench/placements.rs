//! `hybridnorm bench placements`.

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use hybridnorm::Error;
use hybridnorm::bench::placements::{
    Candidate, Compared, Measure, Measured, PlacementsEvent, REFERENCE,
};
use hybridnorm::bench::{self, PlacementsOptions, PlacementsReport};

use crate::args::BenchPlacementsArgs;
use crate::commands::Ending;
use crate::console::Console;
use crate::progress::Display;
use crate::stop::Stop;
use crate::table::{bytes, grouped, numbers};

/// Polling interval for a measurement in another process.
const POLL: Duration = Duration::from_millis(50);
/// Exit code of a process stopped by a signal.
const INTERRUPTED: i32 = 130;

pub fn run(args: &BenchPlacementsArgs, console: &Console, stop: &Stop) -> Result<Ending, Error> {
    if let Some(setting) = args.model.settings.iter().find(|key| sets_placement(key)) {
        return Err(Error::config(format!(
            "--set {setting}: every placement is measured in turn; --only {REFERENCE} chooses one"
        )));
    }
    bench::check_seconds(args.seconds)?;
    let options = PlacementsOptions {
        rounds: args.rounds,
        only: args.only.clone(),
    };
    let config = args.model.configuration()?;
    // A signal must not leave a measurement process behind.
    stop.wait_for_me();
    let mut display = Display::new(console);
    let report = bench::placements(
        &config,
        &options,
        &mut |measure, candidate| measure_apart(args, measure, candidate, stop),
        stop.flag(),
        &mut |event| show(&mut display, &event),
    )?;
    display.finish();
    let Some(report) = report else {
        console.note("stopped");
        return Ok(Ending::Interrupted);
    };
    super::print(&report, args.model.json, text)?;
    Ok(Ending::Done)
}

fn sets_placement(setting: &str) -> bool {
    let key = setting.split('=').next().unwrap_or_default().trim();
    key == "model.placement" || key.starts_with("model.placement.")
}

/// Measures in a separate process, whose peak memory is that of this measurement alone.
fn measure_apart(
    args: &BenchPlacementsArgs,
    measure: Measure,
    candidate: &Candidate,
    stop: &Stop,
) -> Result<Measured, Error> {
    let what = match measure {
        Measure::Step => "step",
        Measure::Decode => "decode",
    };
    let failed = |problem: String| {
        Error::External(format!(
            "bench {what} of placement {}: {problem}",
            candidate.name
        ))
    };
    let program = std::env::current_exe()
        .map_err(|error| failed(format!("cannot find this program: {error}")))?;
    let mut command = Command::new(program);
    command.args(["bench", what, "--json", "--quiet"]);
    command.args(["--threads", &hybridnorm::threads::count().to_string()]);
    command.args(["--seconds", &args.seconds.to_string()]);
    if let Some(path) = &args.model.config {
        command.arg("--config").arg(path);
    }
    let placement = format!("model.placement=\"{}\"", candidate.name);
    for setting in args.model.settings.iter().chain([&placement]) {
        command.args(["--set", setting]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot start: {error}")))?;
    let lost = |error| failed(format!("cannot wait for it: {error}"));
    // The output fits into a pipe, so it need not be read before the process ends.
    while child.try_wait().map_err(lost)?.is_none() {
        if stop.flag().load(Ordering::Relaxed) {
            child.kill().map_err(lost)?;
            child.wait().map_err(lost)?;
            return Err(failed("stopped".into()));
        }
        std::thread::sleep(POLL);
    }
    let output = child.wait_with_output().map_err(lost)?;
    if output.status.code() == Some(INTERRUPTED) {
        // The signal may have reached that process before this one.
        stop.flag().store(true, Ordering::Relaxed);
    }
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().last().unwrap_or_default();
        return Err(failed(match line.strip_prefix("error: ") {
            Some(problem) => problem.to_owned(),
            None => format!("{}", output.status),
        }));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(format!("its output cannot be read: {error}")))
}

fn show(display: &mut Display<'_>, event: &PlacementsEvent<'_>) {
    match event {
        PlacementsEvent::Progress { done, total } => {
            display.count(
                "placements",
                *done as u64,
                Some(*total as u64),
                "measurements",
            );
        }
        PlacementsEvent::Row(row) => display.line(&format!(
            "{}  training {:.3}, decoding {:.3} of {REFERENCE}'s speed",
            row.name, row.step.relative_speed, row.decode.relative_speed
        )),
        PlacementsEvent::Skipped(skipped) => {
            display.line(&format!("{}  {}", skipped.name, skipped.reason));
        }
    }
}

fn text(report: &PlacementsReport) -> String {
    let relative = format!("÷ {}", report.reference);
    let mut table = numbers(&[
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
    let absolute = |measured: &Option<Measured>| {
        measured.map_or("not measured".into(), |measured| {
            format!(
                "{} tokens/s, {}",
                grouped(measured.tokens_per_second as u64),
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
         median ratios of {} pairs of measurements\n{table}\n{skipped}",
        report.threads,
        report.reference,
        absolute(&report.reference_step),
        report.reference,
        absolute(&report.reference_decode),
        report.rounds,
    )
}

fn cells_of(compared: &Compared) -> [String; 4] {
    [
        grouped(compared.tokens_per_second as u64),
        format!("{:.3}", compared.relative_speed),
        compared.peak_rss_bytes.map_or("unknown".into(), bytes),
        compared
            .relative_memory
            .map_or("unknown".into(), |ratio| format!("{ratio:.3}")),
    ]
}
