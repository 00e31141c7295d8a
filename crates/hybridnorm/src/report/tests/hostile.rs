//! Injection tests: hostile text in every text field of a document.

use serde_json::Value;

use super::super::data_groups::DataGroup;
use super::super::document::Document;
use super::super::run::{PeakLr, RecordCounts, RunDirectoryData};
use super::{html, json_of, markdown, markup, markup_of, synthetic};
use crate::train::segments::{Change, Segment};

/// Prefix and suffix of every text.
const BEFORE: &str = "=1+1|- <b onclick='x'>\"![i](http://e.example/i) @someone #7 GH-8 www.e.example \
                      :tada: $x$ `c` <!-- </script><script>\u{1b}[31m\u{202e}\u{9b}\n# h\n\n1. ";
const AFTER: &str = "</pre></td></details>\r\n---\n| a | b |\n&#64;someone &lt;i&gt; \\ ~~s~~ __b__ **b** \
                     <http://e.example> mail@e.example\u{2028}\u{0}";

/// Returns a document with content in every text field.
fn full() -> Document {
    let mut document = synthetic::two_groups();
    document.probe = Some(synthetic::probe_report());
    document
}

/// Returns a report on three runs given by directory, in two data groups.
fn directories() -> Document {
    let mut document = synthetic::study();
    document.groups.clear();
    document.runs.truncate(3);
    let group = |data: &str| DataGroup {
        name: format!("Group {data}"),
        train_name: "named".into(),
        data: data.into(),
        validation: "split".into(),
        validation_name: "split".into(),
        tokenizer: "bytes".into(),
        vocabulary: 257,
        seq_len: 16,
        eval_sequences: 0,
    };
    document.data_groups = vec![group("one"), group("two")];
    for (at, run) in document.runs.iter_mut().enumerate() {
        run.directory = Some(RunDirectoryData {
            name: "run".into(),
            label: format!("pre-norm, weight_decay {at}"),
            differing: [("optimizer.weight_decay".to_owned(), at.to_string())].into(),
            group: at % 2,
            planned_steps: 1600,
            not_recorded: Vec::new(),
            peak_lrs: vec![PeakLr {
                after_step: 0,
                lr: 1e-3,
            }],
            segments: vec![Segment {
                after_step: 0,
                last_step: Some(40),
                started: "2026-11-25T00:00:00Z".into(),
                changed: vec![Change {
                    key: "optimizer.lr".into(),
                    from: Some("1".into()),
                    to: None,
                }],
                threads: 2,
                machine: "machine".into(),
                bf16_unit: None,
                version: "0.1.0".into(),
                data: "data".into(),
                validation: None,
                weights: None,
                peak_memory_bytes: None,
            }],
            records: RecordCounts {
                distinct_steps: 5,
                missing: 2,
                first_missing: Some(3),
                repeated: 1,
            },
        });
    }
    document
}

/// Collects the paths of all strings in a value, without list indices.
fn string_paths(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::String(_) if !found.iter().any(|known| known == path) => found.push(path.to_owned()),
        Value::Array(items) => items
            .iter()
            .for_each(|item| string_paths(item, path, found)),
        Value::Object(fields) => {
            for (key, value) in fields {
                string_paths(value, &format!("{path}/{key}"), found);
            }
        }
        _ => {}
    }
}

fn change(value: &mut Value, path: &str, wanted: &str, change_text: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) if path == wanted => *text = change_text(text),
        Value::Array(items) => {
            (items.iter_mut()).for_each(|item| change(item, path, wanted, change_text));
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                change(value, &format!("{path}/{key}"), wanted, change_text);
            }
        }
        _ => {}
    }
}

/// Changes all strings of a document that may be any text; returns it with the number of their paths.
fn changed(document: &Document, change_text: &dyn Fn(&str) -> String) -> (Document, usize) {
    let mut value = serde_json::to_value(document).unwrap();
    let mut all = Vec::new();
    string_paths(&value, "", &mut all);
    let mut count = 0;
    for path in all {
        let mut next = value.clone();
        change(&mut next, "", &path, change_text);
        // Enum values are not free text.
        if serde_json::from_value::<Document>(next.clone()).is_ok() {
            (value, count) = (next, count + 1);
        }
    }
    (serde_json::from_value(value).unwrap(), count)
}

/// Returns Markdown without fenced code.
fn outside_of_code(text: &str) -> String {
    let (mut fence, mut kept) = (String::new(), String::new());
    for line in text.lines() {
        let ticks: String = line.chars().take_while(|c| *c == '`').collect();
        match (fence.is_empty(), ticks.len() >= 3) {
            (true, true) => fence = ticks,
            (false, true) if line == fence => fence.clear(),
            (true, false) => kept.extend([line, "\n"]),
            _ => {}
        }
    }
    assert!(fence.is_empty(), "unclosed code fence");
    kept
}

#[test]
fn hostile_text_is_escaped() {
    for (name, document) in [("study", full()), ("directories", directories())] {
        let (plain, path_count) = changed(&document, &|text| format!("b{text}a"));
        let (hostile, same) = changed(&document, &|text| format!("{BEFORE}{text}{AFTER}"));
        assert_eq!(path_count, same, "{name}");
        assert!(path_count > 15, "{name}: {path_count}");
        check_html(name, &plain, &hostile);
        check_markdown(name, &plain, &hostile);
    }
}

/// Checks that a page with hostile text has the markup of the page with plain text.
fn check_html(name: &str, plain: &Document, hostile: &Document) {
    let (expected, page) = (html(plain), html(hostile));
    let text = markup_of(&page);
    markup::check(&text).unwrap_or_else(|problem| panic!("{name}: {problem}"));
    assert_eq!(
        markup::tags(&text),
        markup::tags(&markup_of(&expected)),
        "{name}"
    );
    assert_eq!(page.matches("</script>").count(), 4, "{name}");
    let hidden = |c: char| c.is_control() && c != '\n' && c != '\t' || c == '\u{202e}';
    assert!(!text.contains(hidden), "{name}");
    let back: Document = serde_json::from_value(json_of(&page, "document")).unwrap();
    assert!(back == *hostile, "{name}: the data are unchanged");
    let mut drawn = Vec::new();
    let charts = json_of(&page, "charts");
    strings(&charts, &mut drawn);
    for shown in drawn {
        assert!(!shown.contains(['<', '\n', '\u{1b}']), "{name}: {shown}");
    }
}

/// Checks that Markdown with hostile text has the lines, tables and marks of that with plain text.
fn check_markdown(name: &str, plain: &Document, hostile: &Document) {
    let text = markdown(hostile);
    let (own, plain) = (outside_of_code(&text), outside_of_code(&markdown(plain)));
    assert_eq!(own.lines().count(), plain.lines().count(), "{name}");
    for (line, expected) in own.lines().zip(plain.lines()) {
        assert_eq!(bars(line), bars(expected), "{name}: {line}");
        assert_eq!(
            leading_marks(line),
            leading_marks(expected),
            "{name}: {line}"
        );
    }
    let bare = ["\\\\", "\\[", "\\]", "\\!", "\\#"];
    let own = bare
        .iter()
        .fold(own, |own, escaped| own.replace(escaped, ""));
    for wrong in [
        "![", "](http", "<b", "<script", "<!--", "@", "#7", "GH-", "://", "www.", ":tada:", "$",
        "<http", "\u{1b}", "\u{202e}", "\u{2028}",
    ] {
        let found = own.find(wrong).map(|at| &own[at.saturating_sub(30)..]);
        assert!(
            found.is_none(),
            "{name}: {wrong} in {:?}",
            found.map(|s| s.lines().next())
        );
    }
    assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{name}");
}

/// Counts the column separators of a line.
fn bars(line: &str) -> usize {
    line.replace("\\\\", "")
        .replace("\\|", "")
        .matches('|')
        .count()
}

/// Returns the Markdown marks that a line starts with.
fn leading_marks(line: &str) -> &str {
    let end = line
        .find(|c: char| !"#|-> *<".contains(c))
        .unwrap_or(line.len());
    &line[..end]
}

fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => fields.values().for_each(|item| strings(item, found)),
        _ => {}
    }
}

#[test]
fn a_long_name_is_shortened_wherever_it_is_shown() {
    let long = "x".repeat(10_000);
    for document in [full(), directories()] {
        let mut named = document;
        for run in &mut named.runs {
            run.record.grid_point.placement += &long;
            if let Some(directory) = &mut run.directory {
                directory.label += &long;
                directory.name += &long;
            }
        }
        for group in &mut named.groups {
            for summary in &mut group.analysis.placements {
                summary.placement += &long;
            }
        }
        let too_long = "x".repeat(3500);
        assert!(!markup_of(&html(&named)).contains(&too_long));
        assert!(!markdown(&named).contains(&too_long));
        assert!(
            !json_of(&html(&named), "charts")
                .to_string()
                .contains(&too_long)
        );
    }
}
