//! Progress output: a bar on a terminal, plain lines elsewhere, nothing when quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hybridnorm::data::Progress;
use hybridnorm::format_number::perplexity;
use hybridnorm::lab::study::{LEARNED_MARGIN, PlannedRun, RunStatus, StudyEvent};
use hybridnorm::text;
use hybridnorm::train::Event;
use hybridnorm::train::metrics::Metrics;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console::Console;
use crate::table;

/// Interval between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress display of one task.
pub struct ProgressDisplay<'a> {
    console: &'a Console,
    bar: ProgressBar,
    stage: String,
    last_line: Option<Instant>,
    started: Instant,
    steps_before: Option<u64>,
}

impl<'a> ProgressDisplay<'a> {
    /// Creates a display without progress.
    pub fn new(console: &'a Console) -> Self {
        Self {
            console,
            bar: ProgressBar::hidden(),
            stage: String::new(),
            last_line: None,
            started: Instant::now(),
            steps_before: None,
        }
    }

    /// Shows an event of a run of `steps` steps.
    pub fn show_event(&mut self, name: &str, steps: u64, event: &Event<'_>) {
        match event {
            Event::Note(text) => self.line(text),
            Event::Progress(progress) => self.show_data_progress(progress),
            Event::Data(data) => data.lines().iter().for_each(|line| self.line(line)),
            Event::Step(metrics) => {
                self.stage(name, Some(steps));
                let steps_before = *self.steps_before.get_or_insert(metrics.step - 1);
                let done = metrics.step - steps_before;
                let left = steps.saturating_sub(metrics.step);
                let remaining = self
                    .started
                    .elapsed()
                    .div_f64(done as f64)
                    .mul_f64(left as f64);
                let numbers = format!(
                    "loss {:.4}  {} tokens/s",
                    metrics.loss,
                    table::with_thousands_separators(metrics.tokens_per_second as u64)
                );
                self.bar.set_position(metrics.step);
                self.bar
                    .set_message(format!("{numbers}  {} remaining", clock(remaining)));
                if self.line_is_due() {
                    self.line(&format!(
                        "{name}  step {:>6}/{steps}  {numbers}  lr {:.2e}  gradient norm {:.2}  {} remaining",
                        metrics.step,
                        metrics.lr,
                        metrics.grad_norm,
                        clock(remaining)
                    ));
                }
            }
            Event::Evaluated { step, loss } => self.line(&format!(
                "{name}  step {step:>6}/{steps}  validation loss {:.4}  perplexity {}",
                loss.loss,
                perplexity(loss.perplexity)
            )),
            Event::Tasks(metrics) => {
                let scores = metrics.tasks.iter().filter_map(|(task, scores)| {
                    Some(format!(
                        "{task} {} {:.4}",
                        scores.main,
                        scores.main_value()?
                    ))
                });
                let scores: Vec<String> = scores.collect();
                self.line(&format!(
                    "{name}  step {:>6}/{steps}  {}",
                    metrics.step,
                    scores.join("  ")
                ));
            }
            Event::Saved(path) => self.line(&format!("{name}  saved {}", path.display())),
            _ => {}
        }
    }

    /// Shows the progress of data preparation.
    pub fn show_data_progress(&mut self, progress: &Progress) {
        self.show_count(progress.stage, progress.done, progress.total, progress.unit);
    }

    /// Shows the number of finished units of a stage.
    pub fn show_count(&mut self, stage: &str, done: u64, total: Option<u64>, unit: &'static str) {
        self.stage(stage, total);
        self.bar.set_position(done);
        self.bar.set_message(unit);
        if self.line_is_due() {
            let total = match total {
                Some(total) => format!("/{}", table::with_thousands_separators(total)),
                None => String::new(),
            };
            self.line(&format!(
                "{stage}  {}{total} {unit}",
                table::with_thousands_separators(done)
            ));
        }
    }

    /// Shows the position within a total, with a message.
    fn show_position(&mut self, stage: &str, (position, total): (u64, u64), message: &str) {
        self.stage(stage, Some(total));
        self.bar.set_position(position);
        self.bar.set_message(text::one_line(message).into_owned());
        if self.line_is_due() {
            self.line(&format!("{stage}  {message}"));
        }
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| self.console.note(text));
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn stage(&mut self, name: &str, total: Option<u64>) {
        if self.stage == name {
            return;
        }
        self.bar.finish_and_clear();
        self.stage = name.to_owned();
        self.started = Instant::now();
        self.steps_before = None;
        self.last_line = Some(Instant::now());
        if !self.console.is_terminal() || self.console.is_quiet() {
            return;
        }
        let template = match total {
            Some(_) => "{prefix} {bar:30.cyan/dim} {pos}/{len}  {msg}",
            None => "{prefix} {spinner} {pos}  {msg}",
        };
        let style = ProgressStyle::with_template(template).expect("a valid template");
        self.bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(8))
            .with_style(style)
            .with_prefix(text::one_line(name).into_owned());
    }

    /// True if a plain line is due; a terminal shows the bar instead.
    fn line_is_due(&mut self) -> bool {
        if self.console.is_terminal() {
            return false;
        }
        let due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if due {
            self.last_line = Some(Instant::now());
        }
        due
    }
}

/// Progress display of a study.
pub struct StudyDisplay<'a> {
    display: ProgressDisplay<'a>,
    runs: usize,
    ended: usize,
    steps: u64,
    /// Initial and current step of this process's unfinished runs, by id.
    active_runs: BTreeMap<String, (u64, u64)>,
    /// Number of steps of the runs finished by this process.
    finished_steps: u64,
    started: Instant,
    /// Data lines already shown: most runs have the same ones.
    shown_data_lines: BTreeSet<String>,
}

impl<'a> StudyDisplay<'a> {
    /// Creates a display without progress.
    pub fn new(console: &'a Console) -> Self {
        Self {
            display: ProgressDisplay::new(console),
            runs: 0,
            ended: 0,
            steps: 0,
            active_runs: BTreeMap::new(),
            finished_steps: 0,
            started: Instant::now(),
            shown_data_lines: BTreeSet::new(),
        }
    }

    /// Shows an event of a study.
    pub fn show_event(&mut self, event: &StudyEvent<'_>) {
        match event {
            StudyEvent::Note(text) => self.display.line(text),
            StudyEvent::Started { runs, ended, steps } => {
                (self.runs, self.ended, self.steps) = (*runs, *ended, *steps);
                self.display.line(&format!(
                    "{runs} runs of {} steps, {ended} of them finished",
                    table::with_thousands_separators(*steps)
                ));
                self.started = Instant::now();
            }
            StudyEvent::Run { run, event } => match event {
                Event::Progress(progress) => self.display.show_data_progress(progress),
                Event::Step(metrics) => self.step(run, metrics),
                Event::Note(text) => self
                    .display
                    .line(&format!("{}  {text}", run.grid_point.label())),
                Event::Data(data) => {
                    for line in data.lines() {
                        if self.shown_data_lines.insert(line.clone()) {
                            self.display.line(&line);
                        }
                    }
                }
                _ => {}
            },
            StudyEvent::Ended(record) => {
                self.ended += 1;
                let (first, _) = self.active_runs.remove(&record.id).unwrap_or_default();
                self.finished_steps += record.steps.saturating_sub(first);
                let outcome = match (&record.status, record.validation_loss) {
                    (RunStatus::Finished, Some(loss)) => format!("validation loss {loss:.4}"),
                    (RunStatus::Finished, None) => "finished".into(),
                    (RunStatus::NotLearned { reason }, _) => format!(
                        "not learned yet: {reason}, and learned are runs that reach {LEARNED_MARGIN} nats below that"
                    ),
                    (RunStatus::Diverged { step, reason }, _) => {
                        format!("diverged at step {step}: {reason}")
                    }
                    (RunStatus::Eliminated { step }, _) => {
                        format!("eliminated after step {step}")
                    }
                    (RunStatus::Unfinished { step }, _) => format!("unfinished after step {step}"),
                    _ => "ended".into(),
                };
                self.display.line(&format!(
                    "{:>4}/{}  {}  {outcome}",
                    self.ended,
                    self.runs,
                    record.grid_point.label()
                ));
            }
            _ => {}
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.display.finish();
    }

    fn step(&mut self, run: &PlannedRun, metrics: &Metrics) {
        let counted = self.active_runs.entry(run.id.clone());
        counted.or_insert((metrics.step - 1, 0)).1 = metrics.step;
        let active = self.active_runs.values();
        let steps_by_this_process =
            self.finished_steps + active.map(|(first, current)| current - first).sum::<u64>();
        let active_steps = self
            .active_runs
            .values()
            .map(|(_, current)| current)
            .sum::<u64>();
        let total = self.runs as u64 * self.steps;
        let position = (self.ended as u64 * self.steps + active_steps).min(total);
        let per_step = self
            .started
            .elapsed()
            .div_f64(steps_by_this_process.max(1) as f64);
        let remaining = clock(per_step.mul_f64((total - position) as f64));
        self.display.show_position(
            "study",
            (position, total),
            &format!(
                "{}/{} runs  {}  loss {:.4}  {remaining} remaining",
                self.ended,
                self.runs,
                run.grid_point.label(),
                metrics.loss
            ),
        );
    }
}

/// Formats a duration as `1:02:03` or `02:03`.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes:02}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_clock_format() {
        assert_eq!(clock(Duration::from_secs(63)), "01:03");
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
    }
}
