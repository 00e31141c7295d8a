//! Tables of training history: segments, differing keys, missing records.

use super::format::{NONE, count, mebibytes, or_none, rate};
use super::labels::short_name;
use super::palette::PlacementStyles;
use super::run::{Directory, ReportedRun};
use super::table::{Cell, Table};
use super::tables::placement;
use super::view::View;
use crate::format_number::with_thousands_separators;
use crate::train::history::describe_change;

/// Placeholder for values that a run did not record.
pub(super) const NOT_RECORDED: &str = "not recorded";

/// Iterates over the runs that were given by directory.
fn directories<'a>(view: &View<'a>) -> impl Iterator<Item = (&'a ReportedRun, &'a Directory)> {
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
        let first = |steps: String, lr: String| {
            vec![
                placement(styles, run.label()),
                run.grid_point.seed.to_string().into(),
                directory.name.as_str().into(),
                steps.into(),
                lr.into(),
            ]
        };
        if directory.segments.is_empty() {
            let lr = or_none(run.peak_lr(), rate);
            let mut row = first(span(0, run.steps), lr);
            let why = match run.peak_lr() {
                Some(_) => NOT_RECORDED,
                None => "its recorded learning rates do not follow its configuration",
            };
            row.push(Cell::new(why).class("quiet"));
            row.extend((0..5).map(|_| Cell::new(NOT_RECORDED).class("quiet")));
            table.row(row);
            continue;
        }
        let begun = directory.segments[0].after_step;
        if begun > 0 {
            let lr = directory.rates.first().map(|since| since.lr);
            let mut row = first(span(0, begun), or_none(lr, rate));
            row.extend((0..6).map(|_| Cell::new(NOT_RECORDED).class("quiet")));
            table.row(row);
        }
        for (at, segment) in directory.segments.iter().enumerate() {
            let next = directory.segments.get(at + 1);
            let last = next.map_or(run.steps, |next| next.after_step);
            let lr =
                (directory.rates.iter().rev()).find(|since| since.after_step <= segment.after_step);
            let changed: Vec<String> = segment.changed.iter().map(describe_change).collect();
            let changed = match changed.as_slice() {
                [] => NONE.to_owned(),
                some => some.join("; "),
            };
            let mut row = first(
                span(segment.after_step, last),
                or_none(lr, |since| rate(since.lr)),
            );
            row.extend([
                changed.into(),
                segment.threads.to_string().into(),
                segment.machine.as_str().into(),
                segment.version.as_str().into(),
                (segment.peak_memory_bytes)
                    .map_or_else(|| NOT_RECORDED.to_owned(), mebibytes)
                    .into(),
                segment.started.as_str().into(),
            ]);
            table.row(row);
        }
    }
    table
}

/// Formats a range of steps: `1–40`.
fn span(after: u64, last: u64) -> String {
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
        let value = |key| {
            directory
                .differing
                .get(key)
                .map_or("not set", String::as_str)
        };
        let mut row = vec![placement(styles, name)];
        row.extend(keys.iter().map(|key| Cell::new(value(key))));
        table.row(row);
    }
    table
}

/// Returns caveats about the records of these runs, in sentences.
pub(super) fn caveats(view: &View) -> Vec<String> {
    let mut caveats = Vec::new();
    for (run, directory) in directories(view) {
        let rows = &directory.rows;
        if rows.missing > 0 {
            caveats.push(format!(
                "{} (seed {}, {}): {} no record in metrics.jsonl, the first is step {}; curves, \
                 training loss, spikes and seconds cover the {} recorded {}.",
                run.label(),
                run.grid_point.seed,
                directory.name,
                match rows.missing {
                    1 => "1 step has".to_owned(),
                    n => format!("{} steps have", with_thousands_separators(n)),
                },
                with_thousands_separators(rows.first_missing.unwrap_or(1)),
                with_thousands_separators(rows.found),
                if rows.found == 1 { "step" } else { "steps" },
            ));
        }
        if rows.repeated > 0 {
            caveats.push(format!(
                "{} (seed {}, {}): {} in metrics.jsonl; the last record of each step is used.",
                run.label(),
                run.grid_point.seed,
                directory.name,
                match rows.repeated {
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

/// Returns caveats about the starting weights and the validation data of a run.
fn data_caveats(run: &ReportedRun, directory: &Directory) -> Vec<String> {
    let name = format!(
        "{} (seed {}, {})",
        run.label(),
        run.grid_point.seed,
        directory.name
    );
    let mut caveats = Vec::new();
    for what in &directory.not_recorded {
        caveats.push(format!(
            "{name}: the {what} was not recorded during training; it is identified by path only."
        ));
    }
    for pair in directory.segments.windows(2) {
        if let [Some(before), Some(since)] = [&pair[0].validation, &pair[1].validation]
            && before != since
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
