//! Tables of training history: segments, differing keys, missing records.

use super::format::{NONE, count, mebibytes, or_none, rate};
use super::labels::short_name;
use super::palette::Roster;
use super::run::{Directory, ReportedRun};
use super::table::{Cell, Table};
use super::tables::placement;
use super::view::View;
use crate::digits::grouped;
use crate::train::history::in_words;

/// Placeholder for values that a run did not record.
pub(super) const NOT_RECORDED: &str = "not recorded";

/// Iterates over the runs that were given by directory.
fn directories<'a>(view: &View<'a>) -> impl Iterator<Item = (&'a ReportedRun, &'a Directory)> {
    (view.runs.iter().copied()).filter_map(|run| Some((run, run.directory.as_ref()?)))
}

/// Builds the table of training segments.
pub(super) fn segments(view: &View, roster: &Roster) -> Table {
    let mut table = Table::new(
        "How each run was trained: a line for every process that trained a part of it, with the keys \
         that were changed then",
    )
    .text("run")
    .number("seed")
    .text("directory")
    .number("steps")
    .number("peak learning rate")
    .text("changed")
    .number("threads")
    .text("machine")
    .text("version")
    .number("peak memory (MiB)")
    .text("begun");
    for (run, directory) in directories(view) {
        let first = |steps: String, lr: String| {
            vec![
                placement(roster, run.label()),
                run.cell.seed.to_string().into(),
                directory.name.as_str().into(),
                steps.into(),
                lr.into(),
            ]
        };
        if directory.segments.is_empty() {
            let lr = or_none(run.rate(), rate);
            let mut row = first(span(0, run.steps), lr);
            let why = match run.rate() {
                Some(_) => NOT_RECORDED,
                None => "the learning rates of its rows are not those of its configuration",
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
            let changed: Vec<String> = segment.changed.iter().map(in_words).collect();
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
        true => format!("{}–{}", grouped(after + 1), grouped(last)),
        false => "none".to_owned(),
    }
}

/// Builds the table of configuration keys that differ between the runs of a view.
pub(super) fn differences(view: &View, roster: &Roster) -> Table {
    let mut keys: Vec<String> = directories(view)
        .flat_map(|(_, directory)| directory.differing.keys().cloned())
        .collect();
    keys.sort();
    keys.dedup();
    let mut table = Table::new(
        "Keys of the configurations that differ, beside seed and learning rate and those that change no \
         result",
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
        let mut row = vec![placement(roster, name)];
        row.extend(keys.iter().map(|key| Cell::new(value(key))));
        table.row(row);
    }
    table
}

/// Returns caveats about the records of these runs, in sentences.
pub(super) fn remarks(view: &View) -> Vec<String> {
    let mut remarks = Vec::new();
    for (run, directory) in directories(view) {
        let rows = &directory.rows;
        if rows.missing > 0 {
            remarks.push(format!(
                "{} (seed {}, {}): {} no row in metrics.jsonl, the first is step {}; curves, \
                 training loss, spikes and seconds are of the {} that {}.",
                run.label(),
                run.cell.seed,
                directory.name,
                match rows.missing {
                    1 => "1 step has".to_owned(),
                    n => format!("{} steps have", grouped(n)),
                },
                grouped(rows.first_missing.unwrap_or(1)),
                grouped(rows.found),
                if rows.found == 1 { "has" } else { "have" },
            ));
        }
        if rows.repeated > 0 {
            remarks.push(format!(
                "{} (seed {}, {}): {} in metrics.jsonl; the last of each step counts.",
                run.label(),
                run.cell.seed,
                directory.name,
                match rows.repeated {
                    1 => "1 row repeats a step".to_owned(),
                    n => format!("{} rows repeat a step", grouped(n)),
                },
            ));
        }
    }
    remarks.extend(directories(view).flat_map(|(run, directory)| of_data(run, directory)));
    let changed = view.runs.iter().filter(|run| run.rate().is_none()).count();
    if changed > 0 {
        let many = changed > 1;
        remarks.push(format!(
            "{} not one learning rate from the first step to the last, and so stand{} in no column and \
             at no point of a learning rate.",
            match many {
                true => format!("{} had", count(changed, "run", "runs")),
                false => "1 run had".to_owned(),
            },
            if many { "" } else { "s" },
        ));
    }
    remarks
}

/// Returns caveats about the starting weights and the validation data of a run.
fn of_data(run: &ReportedRun, directory: &Directory) -> Vec<String> {
    let name = format!(
        "{} (seed {}, {})",
        run.label(),
        run.cell.seed,
        directory.name
    );
    let mut remarks = Vec::new();
    for what in &directory.not_recorded {
        remarks.push(format!(
            "{name}: not recorded is {what} when it was trained; it is told from others by the path alone."
        ));
    }
    for pair in directory.segments.windows(2) {
        if let [Some(before), Some(since)] = [&pair[0].validation, &pair[1].validation]
            && before != since
        {
            remarks.push(format!(
                "{name}: the validation data changed after step {}; its validation losses before and after \
                 cannot be compared.",
                grouped(pair[1].after_step)
            ));
        }
    }
    remarks
}
