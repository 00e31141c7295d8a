//! Tables and caveats on the history of runs: segments, differing configuration keys, missing records.

use super::format::{NONE, count, learning_rate, mebibytes, or_none};
use super::labels::{short_name, unset};
use super::palette::PlacementStyles;
use super::run::{ReportedRun, RunDirectoryData};
use super::table::{Cell, Table};
use super::tables::placement;
use super::view::View;
use crate::format_number::with_thousands_separators;
use crate::train::history::describe_change;

/// Placeholder for values that a run did not record.
pub(super) const NOT_RECORDED: &str = "not recorded";

/// Iterates over the runs that were given by directory.
fn directories<'a>(
    view: &View<'a>,
) -> impl Iterator<Item = (&'a ReportedRun, &'a RunDirectoryData)> {
    (view.runs.iter().copied()).filter_map(|run| Some((run, run.directory.as_ref()?)))
}

/// Builds the table of training segments.
pub(super) fn segments(view: &View, styles: &PlacementStyles) -> Table {
    let mut table = Table::new(
        "Training segments: one row per process that trained a part of a run, with its configuration changes",
    )
    .text("run")
    .number("seed")
    .text("directory")
    .number("steps")
    .number("peak learning rate")
    .text("configuration changes")
    .number("threads")
    .text("machine")
    .text("version")
    .number("peak memory (MiB)")
    .text("started");
    for (run, directory) in directories(view) {
        let row = SegmentRow {
            run,
            directory,
            styles,
        };
        if directory.segments.is_empty() {
            table.row(row.without_segments());
            continue;
        }
        let recorded = (0..directory.segments.len()).map(|index| row.segment(index));
        for cells in row.before_first_segment().into_iter().chain(recorded) {
            table.row(cells);
        }
    }
    table
}

/// Rows of a run in the table of training segments.
struct SegmentRow<'a> {
    run: &'a ReportedRun,
    directory: &'a RunDirectoryData,
    styles: &'a PlacementStyles<'a>,
}

impl SegmentRow<'_> {
    /// Returns the cells that every row starts with.
    fn first_cells(&self, steps: String, lr: Option<f64>) -> Vec<Cell> {
        vec![
            placement(self.styles, self.run.label()),
            self.run.grid_point.seed.to_string().into(),
            self.directory.name.as_str().into(),
            steps.into(),
            or_none(lr, learning_rate).into(),
        ]
    }

    /// Returns the row of a run without recorded segments.
    fn without_segments(&self) -> Vec<Cell> {
        let lr = self.run.peak_lr();
        let mut row = self.first_cells(step_range(0, self.run.steps), lr);
        let changes = match lr {
            Some(_) => NOT_RECORDED,
            None => "its recorded learning rates do not follow its configuration",
        };
        row.push(Cell::new(changes).class("quiet"));
        row.extend(not_recorded(5));
        row
    }

    /// Returns the row of the steps before the first recorded segment, if there are any.
    fn before_first_segment(&self) -> Option<Vec<Cell>> {
        let end = self.directory.segments[0].after_step;
        let lr = self.directory.peak_lrs.first().map(|peak| peak.lr);
        (end > 0).then(|| {
            let mut row = self.first_cells(step_range(0, end), lr);
            row.extend(not_recorded(6));
            row
        })
    }

    /// Returns the row of a segment.
    fn segment(&self, index: usize) -> Vec<Cell> {
        let segments = &self.directory.segments;
        let segment = &segments[index];
        let last = (segments.get(index + 1)).map_or(self.run.steps, |next| next.after_step);
        let lr = (self.directory.peak_lrs.iter().rev())
            .find(|peak| peak.after_step <= segment.after_step)
            .map(|peak| peak.lr);
        let changes: Vec<String> = segment.changed.iter().map(describe_change).collect();
        let changes = match changes.as_slice() {
            [] => NONE.to_owned(),
            some => some.join("; "),
        };
        let peak_memory = segment
            .peak_memory_bytes
            .map_or_else(|| NOT_RECORDED.to_owned(), mebibytes);
        let mut row = self.first_cells(step_range(segment.after_step, last), lr);
        row.extend([
            changes.into(),
            segment.threads.to_string().into(),
            machine(&segment.machine, segment.bf16_unit.as_deref()).into(),
            segment.version.as_str().into(),
            peak_memory.into(),
            segment.started.as_str().into(),
        ]);
        row
    }
}

/// Formats a processor, and the unit of matmuls in bfloat16.
pub(super) fn machine(cpu: &str, bf16_unit: Option<&str>) -> String {
    match bf16_unit {
        None => cpu.to_owned(),
        Some(unit) => format!("{cpu}, bf16 matmuls with {unit}"),
    }
}

/// Returns cells of values that were not recorded.
fn not_recorded(cells: usize) -> impl Iterator<Item = Cell> {
    (0..cells).map(|_| Cell::new(NOT_RECORDED).class("quiet"))
}

/// Formats a range of steps: `1–40`.
fn step_range(after: u64, last: u64) -> String {
    match last > after {
        true => format!(
            "{}–{}",
            with_thousands_separators(after + 1),
            with_thousands_separators(last)
        ),
        false => "none".to_owned(),
    }
}

/// Builds the table of configuration keys that differ between the runs of a view.
pub(super) fn differing_keys(view: &View, styles: &PlacementStyles) -> Table {
    let mut keys: Vec<String> = directories(view)
        .flat_map(|(_, directory)| directory.differing.keys().cloned())
        .collect();
    keys.sort();
    keys.dedup();
    let mut table = Table::new(
        "Configuration keys that differ, except seed, learning rate and keys that do not affect results",
    )
    .text("run");
    for key in &keys {
        table = table.text(short_name(key, &keys));
    }
    if keys.is_empty() {
        return table;
    }
    for &name in &view.placements {
        let Some((_, directory)) = directories(view).find(|(run, _)| run.label() == name) else {
            continue;
        };
        let value = |key: &String| {
            let found = directory.differing.get(key);
            found.map_or_else(|| unset(key), String::as_str)
        };
        let mut row = vec![placement(styles, name)];
        row.extend(keys.iter().map(|key| Cell::new(value(key))));
        table.row(row);
    }
    table
}

/// Returns caveats about the records of the runs of a view, one sentence each.
pub(super) fn caveats(view: &View) -> Vec<String> {
    let mut caveats = Vec::new();
    for (run, directory) in directories(view) {
        let records = &directory.records;
        if records.missing > 0 {
            caveats.push(format!(
                "{} (seed {}, {}): {} no record in metrics.jsonl (the first such step is {}); curves, training loss, \
                 spikes and seconds cover only the {} recorded {}.",
                run.label(),
                run.grid_point.seed,
                directory.name,
                match records.missing {
                    1 => "1 step has".to_owned(),
                    n => format!("{} steps have", with_thousands_separators(n)),
                },
                with_thousands_separators(records.first_missing.unwrap_or(1)),
                with_thousands_separators(records.distinct_steps),
                if records.distinct_steps == 1 {
                    "step"
                } else {
                    "steps"
                },
            ));
        }
        if records.repeated > 0 {
            caveats.push(format!(
                "{} (seed {}, {}): {} in metrics.jsonl; the last record of each step is used.",
                run.label(),
                run.grid_point.seed,
                directory.name,
                match records.repeated {
                    1 => "1 record repeats a step".to_owned(),
                    n => format!("{} records repeat a step", with_thousands_separators(n)),
                },
            ));
        }
    }
    caveats.extend(directories(view).flat_map(|(run, directory)| data_caveats(run, directory)));
    let changed = view
        .runs
        .iter()
        .filter(|run| run.peak_lr().is_none())
        .count();
    if changed > 0 {
        caveats.push(format!(
            "{} changed {} peak learning rate during training and {} excluded from tables and charts by learning \
             rate.",
            count(changed, "run", "runs"),
            if changed == 1 { "its" } else { "their" },
            if changed == 1 { "is" } else { "are" },
        ));
    }
    caveats
}

/// Returns caveats about the initial weights and the validation data of a run.
fn data_caveats(run: &ReportedRun, directory: &RunDirectoryData) -> Vec<String> {
    let name = format!(
        "{} (seed {}, {})",
        run.label(),
        run.grid_point.seed,
        directory.name
    );
    let mut caveats = Vec::new();
    for input in &directory.not_recorded {
        caveats.push(format!(
            "{name}: the {input} was not recorded during training; it is identified by path only."
        ));
    }
    for pair in directory.segments.windows(2) {
        if let [Some(before), Some(after)] = [&pair[0].validation, &pair[1].validation]
            && before != after
        {
            caveats.push(format!(
                "{name}: the validation data changed after step {}; its validation losses before and after \
                 are not comparable.",
                with_thousands_separators(pair[1].after_step)
            ));
        }
    }
    caveats
}
