//! Every command reports how much of the text of its data was read, left out and cut.

mod common;

use common::{Lab, stderr};
use serde_json::Value;

/// A lab with a trained run in `run`.
fn trained(settings: &[&str]) -> (Lab, Value) {
    let lab = Lab::new();
    lab.write("own.jsonl", RECORDS);
    let mut args = vec!["train", "tiny.toml", "--run", "run", "--json", "--quiet"];
    args.extend([
        "--set",
        "train.steps=2",
        "--set",
        "schedule.warmup_steps=0",
        "--set",
        "train.eval_every=0",
    ]);
    for setting in settings {
        args.extend(["--set", setting]);
    }
    let outcome = lab.json(&args);
    (lab, outcome)
}

const RECORDS: &str = "{\"body\": \"A first text, about the size of a sequence or two.\"}\n\
    {\"body\": null}\n{\"body\": \" \\t\"}\n\
    {\"body\": \"A second text, which the split may well hold out for validation.\"}\n";

/// Sums the counts of a unit in a `left_out` list.
fn count(left_out: &Value, unit: &str) -> u64 {
    let all = left_out.as_array().unwrap().iter();
    let of_unit = all.filter(|omission| omission["unit"] == unit);
    of_unit
        .map(|omission| omission["count"].as_u64().unwrap())
        .sum()
}

#[test]
fn eval_says_what_text_was_read_left_out_and_cut() {
    let (lab, _) = trained(&[]);
    lab.write("d/a.txt", "word after word\n\n".repeat(1500));
    lab.write(
        "d/b.jsonl",
        "{\"text\": null}\n{\"text\": \" \"}\n{\"text\": \"hello there\"}\n",
    );
    lab.write("d/c.csv", "x,y\n");
    let found = lab.json(&["eval", "run", "--data", "d", "--json"]);
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
    let table = lab.ok(&["eval", "run", "--data", "d"]);
    for words in [
        "2 files, 2 records",
        "unknown kind",
        "is null",
        "blank",
        "cut into 2 documents",
    ] {
        assert!(table.contains(words), "{words}\n{table}");
    }
    lab.write("e.txt", "Something else.");
    let both = lab.ok(&["eval", "run", "--data", "d", "e.txt"]);
    assert!(both.contains("d: left out 1 file: unknown kind"), "{both}");
}

#[test]
fn eval_reads_text_as_the_run_does_and_options_override() {
    let (lab, outcome) = trained(&[
        "data.train=[\"own.jsonl\"]",
        "data.text={text_field=\"body\"}",
    ]);
    assert_eq!(count(&outcome["left_out"], "records"), 1, "{outcome}");
    assert_eq!(count(&outcome["left_out"], "documents"), 1, "{outcome}");
    assert_eq!(outcome["data"]["text"]["records"], 3, "{outcome}");
    let found = lab.json(&["eval", "run", "--data", "own.jsonl", "--json"]);
    let reading = &found["text_options"];
    assert_eq!(reading["options"]["text_field"], "body", "{reading}");
    assert!(
        reading["from"].as_str().unwrap().ends_with("config.toml"),
        "{reading}"
    );
    let table = lab.ok(&["eval", "run", "--data", "own.jsonl"]);
    assert!(
        table.contains("text_field = \"body\" (run/config.toml)"),
        "{table}"
    );

    lab.write(
        "other.jsonl",
        "{\"story\": \"Yet another field holds this text.\"}\n{\"story\": 3}\n",
    );
    lab.fails(
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
    let table = lab.ok(&args);
    assert!(
        table.contains("text_field = \"story\" (as given)"),
        "{table}"
    );
    assert!(table.contains("left out 1 record"), "{table}");

    lab.write("s.txt", "One.<|sep|>Two.<|sep|>Three.");
    let args = [
        "eval",
        "run",
        "--data",
        "s.txt",
        "--separator",
        "<|sep|>",
        "--json",
    ];
    assert_eq!(lab.json(&args)["sets"][0]["text"]["documents"], 3);
    let args = ["eval", "run", "--data", "s.txt", "--separator", "###"];
    lab.fails(2, &args, &["occurs nowhere"]);
    lab.ok(&[
        "data",
        "prepare",
        "s.txt",
        "--tokenizer",
        "bytes",
        "--out",
        "p",
    ]);
    let args = ["eval", "run", "--data", "p", "--separator", "<|sep|>"];
    lab.fails(2, &args, &["separator has no effect"]);
}

#[test]
fn study_probe_and_replay_give_the_account() {
    let (lab, _) = trained(&[
        "data.train=[\"own.jsonl\"]",
        "data.text={text_field=\"body\"}",
    ]);
    let own = [
        "--set",
        "schedule.warmup_steps=0",
        "--set",
        "data.train=[\"own.jsonl\"]",
        "--set",
        "data.text={text_field=\"body\"}",
    ];
    let probe = [&["probe", "tiny.toml", "--steps", "1", "--json"], &own[..]].concat();
    let replay = ["replay", "run", "--step", "2", "--json"];
    for found in [lab.json(&probe), lab.json(&replay)] {
        assert_eq!(count(&found["left_out"], "records"), 1, "{found}");
        assert_eq!(found["data"]["text"]["documents"], 2);
        assert!(found["data"]["notes"].to_string().contains("is null"));
    }
    lab.write(
        "s.toml",
        String::from_utf8(lab.read("tiny.toml")).unwrap().replace("seed = 3", "")
            .replace("placement = \"hybridnorm-star\"", "").replace("lr = 3e-3", "")
            .replace("stories:60", "own.jsonl").replace("steps = 20", "steps = 2").replace("warmup_steps = 4", "warmup_steps = 0")
            + "[data.text]\ntext_field = \"body\"\n[study]\nplacements = [\"pre-norm\"]\nlr = [1e-3]\nseeds = [1, 2]\n",
    );
    let output = lab.run(&["study", "s.toml", "--out", "s", "--json"]);
    let said = common::stderr(&output);
    assert_eq!(
        said.matches("training data: made of 1 file, 3 records")
            .count(),
        1,
        "{said}"
    );
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(count(&found[0]["left_out"], "records"), 1, "{found}");
    assert_eq!(found[0]["data"][0]["text"]["records"], 3);
}

#[test]
fn notes_on_token_files_are_in_json() {
    let lab = Lab::new();
    let tokens: Vec<u8> = (0..400_u32)
        .flat_map(|i| (i * 7 % 250).to_le_bytes())
        .collect();
    lab.write("t.bin", &tokens);
    let outcome = lab.json(&[
        "train",
        "tiny.toml",
        "--json",
        "--set",
        "train.steps=1",
        "--set",
        "schedule.warmup_steps=0",
        "--set",
        "train.eval_every=0",
        "--set",
        "data.train=[\"t.bin\"]",
    ]);
    assert!(
        outcome["data"]["notes"].to_string().contains("read as u32"),
        "{outcome}"
    );
}

#[test]
fn well_known_ends_are_noted_whatever_the_tokenizer() {
    let lab = Lab::new();
    lab.write(
        "words.json",
        WORDS.replace("UNK", "\"unk_token\": \"<unk>\","),
    );
    lab.write("t.txt", "a b<|endoftext|>a</s>");
    let found = lab.json(&[
        "data",
        "prepare",
        "t.txt",
        "--tokenizer",
        "bytes",
        "--out",
        "p",
        "--json",
    ]);
    let spelled = found["spelled_special_tokens"].to_string();
    assert!(
        spelled.contains("</s>") && spelled.contains("<|endoftext|>"),
        "{spelled}"
    );
}

/// BPE tokenizer file with a few characters.
const WORDS: &str = r#"{"version": "1.0", "added_tokens": [
    {"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 1, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", UNK "vocab": {"</s>": 0, "<unk>": 1, "a": 2, "b": 3, "ab": 4}, "merges": ["a b"]}}"#;

#[test]
fn unknown_tokens_and_dropped_characters_are_counted() {
    let lab = Lab::new();
    lab.write("u.json", WORDS.replace("UNK", "\"unk_token\": \"<unk>\","));
    lab.write("d.json", WORDS.replace("UNK", ""));
    lab.write("t.txt", "ab axb \u{e9}\u{5de8}ab a\u{e9}b ab ab ba ab");
    for (tokenizer, unknown, dropped, note) in [
        ("u.json", 4, 0, "4 of the targets are the unknown token"),
        ("d.json", 0, 4, "no token stands for 4 characters"),
    ] {
        let out = format!("p-{tokenizer}");
        let args = [
            "data",
            "prepare",
            "t.txt",
            "--tokenizer",
            tokenizer,
            "--out",
            &out,
            "--json",
        ];
        let source = lab.json(&args)["sources"][0].clone();
        assert_eq!(source["unknown_tokens"], unknown, "{source}");
        assert_eq!(source["dropped_chars"], dropped, "{source}");
        let run = format!("run-{tokenizer}");
        let tokenizer = format!("data.tokenizer=\"{tokenizer}\"");
        lab.ok(&[
            "train",
            "tiny.toml",
            "--run",
            &run,
            "--set",
            "train.steps=1",
            "--set",
            "schedule.warmup_steps=0",
            "--set",
            "train.eval_every=0",
            "--set",
            "train.seq_len=4",
            "--set",
            "data.train=[\"t.txt\"]",
            "--set",
            &tokenizer,
        ]);
        let found = lab.json(&["eval", &run, "--data", "t.txt", "--json"]);
        let set = &found["sets"][0];
        assert_eq!(set["unknown_tokens"], unknown, "{set}");
        assert!(set["notes"].to_string().contains(note), "{set}");
        assert!(lab.ok(&["eval", &run, "--data", "t.txt"]).contains(note));
    }
}

#[test]
fn pooled_bits_per_byte_that_are_missing_have_a_reason() {
    let (lab, _) = trained(&[]);
    lab.write("a.npy.bin", [5_u8, 0].repeat(40));
    let found = lab.json(&[
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
fn sets_of_the_same_documents_share_tokens() {
    let (lab, _) = trained(&[]);
    lab.write(
        "t.jsonl",
        (0..40)
            .map(|i| format!("{{\"text\": \"text number {i}\"}}\n"))
            .collect::<String>(),
    );
    lab.ok(&[
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
    let found = lab.json(&["eval", "run", "--data", "p", "t.jsonl", "--json"]);
    let notes = found["notes"].to_string();
    assert!(
        notes.contains("p and t.jsonl share tokens") && notes.contains("documents"),
        "{notes}"
    );
}

#[test]
fn whole_windows_of_rows_of_any_length() {
    let (lab, _) = trained(&[]);
    for (width, rows) in [(40_u16, 6_u64), (9, 6)] {
        let mut npy = b"\x93NUMPY\x01\x00v\x00".to_vec();
        let header =
            format!("{{'descr': '<u2', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
        npy.extend(format!("{header:<117}\n").bytes());
        npy.extend((0..width * rows as u16).flat_map(|i| (i % 200).to_le_bytes()));
        lab.write("r.npy", npy);
        let args = [
            "eval",
            "run",
            "--data",
            "r.npy",
            "--windows",
            "whole",
            "--json",
        ];
        if width == 9 {
            lab.fails(
                2,
                &args,
                &["none of which contains a complete sequence of 16"],
            );
            continue;
        }
        let found = lab.json(&args);
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

fn prepare<'a>(inputs: &[&'a str], out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["data", "prepare"];
    args.extend(inputs);
    args.extend(["--tokenizer", "bytes", "--out", out]);
    args.extend(more);
    args
}

#[test]
fn a_file_is_read_through_one_input_only() {
    let lab = Lab::new();
    lab.write("v/a.txt", "First text.");
    lab.write("v/b.txt", "Second text.");
    let found = lab.json(&prepare(&["v/a.txt", "v", "./v/b.txt"], "p", &["--json"]));
    let files: Vec<&Value> = found["sources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| &s["files"])
        .collect();
    assert_eq!(files, [1, 1, 0]);
    assert_eq!(count(&found["left_out"], "files"), 2, "{found}");
    let table = lab.ok(&prepare(&["v", "v"], "p2", &[]));
    assert!(
        table.contains("left out 2 files: duplicate file"),
        "{table}"
    );
    let found = lab.json(&prepare(&["stories:5", "stories:8"], "p3", &["--json"]));
    assert_eq!(count(&found["left_out"], "documents"), 5, "{found}");
    assert_eq!(found["sources"][1]["documents"], 3);
    for (train, validation) in [
        ("v", "v/b.txt"),
        ("v/a.txt", "v/a.txt"),
        ("stories:5", "stories:2"),
    ] {
        let args = prepare(&[train], "p4", &["--validation", validation]);
        lab.fails(2, &args, &["training text", "validation text"]);
    }
    lab.write("t.bin", [5_u8, 0].repeat(400));
    for twice in [
        "\"t.bin:u16\", \"t.bin:u16\"",
        "\"t.bin:u16\", \"./t.bin:u16\"",
        "\"p\", \"./p\"",
    ] {
        let data = format!("data.train=[{twice}]");
        lab.fails(2, &["train", "tiny.toml", "--set", &data], &["given twice"]);
    }
}

#[test]
fn files_of_folders_that_are_not_visited_are_counted() {
    let lab = Lab::new();
    lab.write("d/a.txt", "A text.");
    for name in ["d/.git/x", "d/.git/y/z", "d/.hidden.txt"] {
        lab.write(name, "x");
    }
    let found = lab.json(&prepare(&["d"], "p", &["--json"]));
    assert_eq!(count(&found["left_out"], "files"), 3, "{found}");
    lab.write("d/sub/b.txt", "B.");
    lab.write("d/sub/c.txt", "C.");
    let found = lab.json(&prepare(&["d/*"], "p2", &["--json"]));
    assert_eq!(count(&found["left_out"], "files"), 5, "{found}");
    lab.write("zero.parquet", "");
    lab.fails(
        2,
        &prepare(&["zero.parquet"], "p3", &[]),
        &["no text in it", "too short for a Parquet file"],
    );
}

#[test]
fn prompts_have_their_account() {
    let lab = Lab::new();
    lab.write("d.json", WORDS.replace("UNK", ""));
    lab.write("u.json", WORDS.replace("UNK", "\"unk_token\": \"<unk>\","));
    lab.write("t.txt", "ab ba ab ab ba. ".repeat(300));
    let train = |run: &str, tokenizer: &str| {
        let tokenizer = format!("data.tokenizer={tokenizer}");
        let data = ["--set", r#"data.train=["t.txt"]"#, "--set", &tokenizer];
        lab.train(run, &[&data[..], &["--set", "train.steps=4"]].concat());
    };
    train("dropping", "d.json");
    train("unknown", "u.json");
    let written = |run: &str, prompt: &str| {
        lab.json(&[
            "generate",
            run,
            "--prompt",
            prompt,
            "--max-tokens",
            "1",
            "--json",
        ])
    };
    assert_eq!(written("dropping", "ab zz")["dropped_chars"], 2);
    assert_eq!(written("unknown", "ab zz")["unknown_tokens"], 2);
    let spelled = &written("unknown", "ab</s>")["spelled_special_tokens"];
    assert_eq!(spelled[0]["token"], "</s>", "{spelled}");
    let whole = written("unknown", "ab");
    assert!(whole.get("unknown_tokens").is_none(), "{whole}");
    let said = stderr(&lab.run(&[
        "generate",
        "dropping",
        "--prompt",
        "zz",
        "--max-tokens",
        "1",
    ]));
    assert!(said.contains("prompt: 2 characters left out"), "{said}");
}

#[test]
fn the_rest_of_a_broken_array_is_one_bad_record() {
    let lab = Lab::new();
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
            "expected nothing after the array",
        ),
    ];
    for (name, text, records, message) in broken {
        let file = format!("{name}.json");
        lab.write(&file, text);
        lab.write("z.jsonl", "{\"text\":\"z\"}\n");
        let inputs = [file.as_str(), "z.jsonl"];
        lab.fails(1, &prepare(&inputs, "p", &[]), &[message]);
        let out = format!("p-{name}");
        let found = lab.json(&prepare(&inputs, &out, &["--skip-bad", "--json"]));
        assert_eq!(found["sources"][0]["records"], records, "{found}");
        assert_eq!(found["sources"][1]["records"], 1);
        assert_eq!(count(&found["left_out"], "records"), 1, "{name}: {found}");
    }
}
