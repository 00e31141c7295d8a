//! Statistics of prepared files and their records.

use super::*;

fn prepare_args<'a>(inputs: &[&'a str], out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["data", "prepare"];
    args.extend(inputs);
    args.extend(["--tokenizer", "bytes", "--out", out]);
    args.extend(more);
    args
}

#[test]
fn a_file_is_read_through_one_input_only() {
    let dir = TestDir::new();
    dir.write("v/a.txt", "First text.");
    dir.write("v/b.txt", "Second text.");
    let found = dir.json(&prepare_args(
        &["v/a.txt", "v", "./v/b.txt"],
        "p",
        &["--json"],
    ));
    let files: Vec<&Value> = found["sources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| &s["files"])
        .collect();
    assert_eq!(files, [1, 1, 0]);
    assert_eq!(count(&found["left_out"], "files"), 2, "{found}");
    let table = dir.ok(&prepare_args(&["v", "v"], "p2", &[]));
    assert!(table.contains("omitted 2 files: duplicate file"), "{table}");
    let found = dir.json(&prepare_args(
        &["stories:5", "stories:8"],
        "p3",
        &["--json"],
    ));
    assert_eq!(count(&found["left_out"], "documents"), 5, "{found}");
    assert_eq!(found["sources"][1]["documents"], 3);
    for (train, validation) in [
        ("v", "v/b.txt"),
        ("v/a.txt", "v/a.txt"),
        ("stories:5", "stories:2"),
    ] {
        let args = prepare_args(&[train], "p4", &["--validation", validation]);
        dir.expect_error(2, &args, &["training text", "validation text"]);
    }
    dir.write("t.bin", [5_u8, 0].repeat(400));
    for twice in [
        "\"t.bin:u16\", \"t.bin:u16\"",
        "\"t.bin:u16\", \"./t.bin:u16\"",
        "\"p\", \"./p\"",
    ] {
        let data = format!("data.train=[{twice}]");
        dir.expect_error(2, &["train", "tiny.toml", "--set", &data], &["given twice"]);
    }
}

#[test]
fn files_of_skipped_folders_are_counted() {
    let dir = TestDir::new();
    dir.write("d/a.txt", "A text.");
    for name in ["d/.git/x", "d/.git/y/z", "d/.hidden.txt"] {
        dir.write(name, "x");
    }
    let found = dir.json(&prepare_args(&["d"], "p", &["--json"]));
    assert_eq!(count(&found["left_out"], "files"), 3, "{found}");
    dir.write("d/sub/b.txt", "B.");
    dir.write("d/sub/c.txt", "C.");
    let found = dir.json(&prepare_args(&["d/*"], "p2", &["--json"]));
    assert_eq!(count(&found["left_out"], "files"), 5, "{found}");
    dir.write("zero.parquet", "");
    dir.expect_error(
        2,
        &prepare_args(&["zero.parquet"], "p3", &[]),
        &["contains no text", "too short for a Parquet file"],
    );
}

#[test]
fn rest_of_a_broken_array_is_one_invalid_record() {
    let dir = TestDir::new();
    let broken = [
        (
            "comma",
            r#"[{"text":"a"} {"text":"b"}]"#,
            1,
            "expected `,` or `]`",
        ),
        ("tail", r#"[{"text":"a"},]"#, 1, "expected a record"),
        ("cut", r#"[{"text":"a"},{"tex"#, 1, "not valid JSON"),
        ("open", r#"[{"text":"a"}"#, 1, "after 1 record of an array"),
        (
            "more",
            r#"[{"text":"a"}] x"#,
            1,
            "expected the end of the file",
        ),
    ];
    for (name, text, records, message) in broken {
        let file = format!("{name}.json");
        dir.write(&file, text);
        dir.write("z.jsonl", "{\"text\":\"z\"}\n");
        let inputs = [file.as_str(), "z.jsonl"];
        dir.expect_error(1, &prepare_args(&inputs, "p", &[]), &[message]);
        let out = format!("p-{name}");
        let found = dir.json(&prepare_args(&inputs, &out, &["--skip-bad", "--json"]));
        assert_eq!(found["sources"][0]["records"], records, "{found}");
        assert_eq!(found["sources"][1]["records"], 1);
        assert_eq!(count(&found["left_out"], "records"), 1, "{name}: {found}");
    }
}
