//! Statistics of evaluated data sets.

use super::*;

#[test]
fn eval_reports_omitted_and_truncated_text() {
    let (dir, _) = trained(&[]);
    dir.write("d/a.txt", "word after word\n\n".repeat(1500));
    dir.write(
        "d/b.jsonl",
        "{\"text\": null}\n{\"text\": \" \"}\n{\"text\": \"hello there\"}\n",
    );
    dir.write("d/c.csv", "x,y\n");
    let found = dir.json(&["eval", "run", "--data", "d", "--json"]);
    let text = &found["sets"][0]["text"];
    assert_eq!(text["files"], 2, "{text}");
    assert_eq!(text["records"], 2, "{text}");
    assert_eq!(
        (&text["cut_texts"], &text["cut_documents"]),
        (&1.into(), &2.into()),
        "{text}"
    );
    for unit in ["files", "records", "documents"] {
        assert_eq!(count(&text["left_out"], unit), 1, "{unit}: {text}");
    }
    let table = dir.ok(&["eval", "run", "--data", "d"]);
    for words in [
        "2 files, 2 records",
        "unknown kind",
        "is null",
        "blank",
        "split into 2 documents",
    ] {
        assert!(table.contains(words), "{words}\n{table}");
    }
    dir.write("e.txt", "Something else.");
    let both = dir.ok(&["eval", "run", "--data", "d", "e.txt"]);
    assert!(both.contains("d: omitted 1 file: unknown kind"), "{both}");
}

#[test]
fn eval_uses_the_text_options_of_the_run() {
    let (dir, outcome) = trained(&[
        "data.train=[\"own.jsonl\"]",
        "data.text={text_field=\"body\"}",
    ]);
    assert_eq!(count(&outcome["left_out"], "records"), 1, "{outcome}");
    assert_eq!(count(&outcome["left_out"], "documents"), 1, "{outcome}");
    assert_eq!(outcome["data"]["text"]["records"], 3, "{outcome}");
    let found = dir.json(&["eval", "run", "--data", "own.jsonl", "--json"]);
    let reading = &found["text_options"];
    assert_eq!(reading["options"]["text_field"], "body", "{reading}");
    assert!(
        reading["from"].as_str().unwrap().ends_with("config.toml"),
        "{reading}"
    );
    let table = dir.ok(&["eval", "run", "--data", "own.jsonl"]);
    assert!(
        table.contains("text_field = \"body\" (run/config.toml)"),
        "{table}"
    );
}

#[test]
fn text_options_of_eval_override_those_of_the_run() {
    let (dir, _) = trained(&[
        "data.train=[\"own.jsonl\"]",
        "data.text={text_field=\"body\"}",
    ]);
    dir.write(
        "other.jsonl",
        "{\"story\": \"Yet another field holds this text.\"}\n{\"story\": 3}\n",
    );
    dir.expect_error(
        1,
        &["eval", "run", "--data", "other.jsonl"],
        &["no field `body`"],
    );
    let args = [
        "eval",
        "run",
        "--data",
        "other.jsonl",
        "--text-field",
        "story",
        "--skip-bad",
    ];
    let table = dir.ok(&args);
    assert!(
        table.contains("text_field = \"story\" (as given)"),
        "{table}"
    );
    assert!(table.contains("omitted 1 record"), "{table}");

    dir.write("s.txt", "One.<|sep|>Two.<|sep|>Three.");
    let args = [
        "eval",
        "run",
        "--data",
        "s.txt",
        "--separator",
        "<|sep|>",
        "--json",
    ];
    assert_eq!(dir.json(&args)["sets"][0]["text"]["documents"], 3);
    let args = ["eval", "run", "--data", "s.txt", "--separator", "###"];
    dir.expect_error(2, &args, &["occurs nowhere"]);
    dir.ok(&[
        "data",
        "prepare",
        "s.txt",
        "--tokenizer",
        "bytes",
        "--out",
        "p",
    ]);
    let args = ["eval", "run", "--data", "p", "--separator", "<|sep|>"];
    dir.expect_error(2, &args, &["separator has no effect"]);
}

#[test]
fn missing_pooled_bits_per_byte_have_a_reason() {
    let (dir, _) = trained(&[]);
    dir.write("a.npy.bin", [5_u8, 0].repeat(40));
    let found = dir.json(&[
        "eval",
        "run",
        "--data",
        "a.npy.bin:u16",
        "stories:3",
        "--json",
    ]);
    match found["bits_per_byte"].is_null() {
        true => assert!(found["no_bits_per_byte"].is_string(), "{found}"),
        false => assert!(found.get("no_bits_per_byte").is_none(), "{found}"),
    }
}

#[test]
fn data_sets_of_the_same_documents_share_tokens() {
    let (dir, _) = trained(&[]);
    dir.write(
        "t.jsonl",
        (0..40)
            .map(|i| format!("{{\"text\": \"text number {i}\"}}\n"))
            .collect::<String>(),
    );
    dir.ok(&[
        "data",
        "prepare",
        "t.jsonl",
        "--tokenizer",
        "bytes",
        "--out",
        "p",
        "--validation-fraction",
        "0.3",
    ]);
    let found = dir.json(&["eval", "run", "--data", "p", "t.jsonl", "--json"]);
    let notes = found["notes"].to_string();
    assert!(
        notes.contains("p and t.jsonl share ")
            && notes.contains(" documents of ")
            && notes.contains(" tokens in total"),
        "{notes}"
    );
}

#[test]
fn full_windows_come_from_rows_of_any_length() {
    let (dir, _) = trained(&[]);
    for (width, rows) in [(40_u16, 6_u64), (9, 6)] {
        let mut npy = b"\x93NUMPY\x01\x00v\x00".to_vec();
        let header =
            format!("{{'descr': '<u2', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
        npy.extend(format!("{header:<117}\n").bytes());
        npy.extend((0..width * rows as u16).flat_map(|i| (i % 200).to_le_bytes()));
        dir.write("r.npy", npy);
        let args = [
            "eval",
            "run",
            "--data",
            "r.npy",
            "--windows",
            "whole",
            "--json",
        ];
        let found = dir.json(&args);
        if width == 9 {
            // A row that is shorter than the model's longest sequence is evaluated as it is.
            assert_eq!(found["tokens"], 6 * 8, "{found}");
            continue;
        }
        assert_eq!(found["tokens"], 6 * 32, "{found}");
        assert_eq!(found["all_tokens"], 240);
        assert_eq!(count(&found["left_out"], "tokens"), 48);
        assert!(
            found["left_out"]
                .to_string()
                .contains("at the end of a row")
        );
    }
}
