//! Training follows its configuration.

mod common;

use common::{TestDir, numpy, stderr};

fn assert_close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "{a} {b}");
}

/// Returns a directory with a run `run` and `fine.toml`, which starts from it, and the text of that file.
fn fine_tuning_dir() -> (TestDir, String) {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let config = String::from_utf8(dir.read("tiny.toml")).unwrap();
    let (before, after) = (
        config.find("[model]").unwrap(),
        config.find("[data]").unwrap(),
    );
    let fine = format!(
        "{}[init]\nfrom = \"run\"\n{}",
        &config[..before],
        &config[after..]
    );
    dir.write("fine.toml", &fine);
    (dir, fine)
}

#[test]
fn training_starts_from_a_checkpoint() {
    let (dir, fine) = fine_tuning_dir();
    let args = ["train", "fine.toml", "--quiet", "--run", "fine"];
    dir.ok(&args);
    assert!(dir.column("fine", "loss")[0] < dir.column("run", "loss")[0] - 0.5);
    assert_eq!(dir.column("fine", "tokens")[0], 64.0);
    assert_eq!(
        dir.column("fine", "lr")[0],
        3e-3 / 4.0,
        "the schedule begins anew"
    );
    dir.ok(&["inspect", "fine.toml"]);
    // The tokenizer may come from the checkpoint, and pre-tokenized data need its vocabulary only.
    dir.write("fine.toml", fine.replace("tokenizer = \"bytes\"\n", ""));
    dir.ok(&["train", "fine.toml", "--quiet", "--run", "again"]);
    assert_eq!(
        dir.reproducible_metrics("fine"),
        dir.reproducible_metrics("again")
    );
    let tokens: Vec<u16> = (0..400).map(|i| 97 + i % 26).collect();
    dir.write("t.npy", numpy("(400,)", &tokens));
    dir.ok(&[
        "train",
        "fine.toml",
        "--quiet",
        "--run",
        "pretokenized",
        "--set",
        "data.train=['t.npy']",
    ]);
    // No parameter depends on the sequence length.
    let long = [
        "train",
        "fine.toml",
        "--quiet",
        "--run",
        "long",
        "--set",
        "train.seq_len=17",
    ];
    dir.ok(&long);
}

#[test]
fn fine_tuning_with_another_tokenizer_prints_a_warning() {
    let (dir, _) = fine_tuning_dir();
    dir.train("run300", &["--set", "model.vocab_size=300"]);
    let fine = |run, more: &[&str]| {
        let args = [
            "train",
            "fine.toml",
            "--run",
            run,
            "--set",
            "init.from=run300",
        ];
        stderr(&dir.run(&[&args[..], more].concat()))
    };
    let words = "warning: the data are tokenized with bpe:270";
    let other = fine("other", &["--set", "data.tokenizer=bpe:270"]);
    assert!(
        other.contains(words) && other.contains("the weights in run300"),
        "{other}"
    );
    assert!(other.contains("finished: 20 steps") || dir.path("other/metrics.jsonl").exists());
    assert!(!fine("same", &[]).contains("warning"));
    let resumed = fine(
        "other",
        &[
            "--set",
            "data.tokenizer=bpe:270",
            "--resume",
            "--set",
            "train.steps=22",
        ],
    );
    assert!(!resumed.contains("warning"), "{resumed}");
    dir.prepare("stories:60", "bpe:270", "data");
    let args = [
        "--set",
        "data.train=['data']",
        "--set",
        "data.tokenizer=bpe:270",
        "--json",
    ];
    let found = dir.json(
        &[
            &[
                "train",
                "fine.toml",
                "--run",
                "prepared",
                "--set",
                "init.from=run300",
            ][..],
            &args,
        ]
        .concat(),
    );
    assert!(
        found["data"]["notes"][0]
            .as_str()
            .unwrap()
            .starts_with(words),
        "{found}"
    );
}

#[test]
fn fine_tuning_on_text_without_a_tokenizer_names_the_key_and_the_checkpoint() {
    let (dir, fine) = fine_tuning_dir();
    let tokens: Vec<u16> = (0..400).map(|i| i % 50).collect();
    dir.write("t.npy", numpy("(400,)", &tokens));
    let config = String::from_utf8(dir.read("tiny.toml")).unwrap();
    dir.write("tiny.toml", config.replace("tokenizer = \"bytes\"\n", ""));
    let data = [
        "--set",
        "data.train=['t.npy']",
        "--set",
        "model.vocab_size=300",
    ];
    dir.train("tokens", &data);
    dir.write("fine.toml", fine.replace("tokenizer = \"bytes\"\n", ""));
    dir.expect_error(
        2,
        &[
            "train",
            "fine.toml",
            "--run",
            "fine",
            "--set",
            "init.from=tokens",
        ],
        &[
            "fine.toml: data.tokenizer is missing",
            "step-00000020 has none",
        ],
    );
}

#[test]
fn initialization_from_a_checkpoint_rejects_a_different_model() {
    let (dir, _) = fine_tuning_dir();
    let from = ["--set", "init.from=run"];
    dir.train("same", &from);
    dir.train_fails(
        2,
        "other",
        &[&from[..], &["--set", "model.d_ff=48"]].concat(),
        &["[model]", "omit it"],
    );
    dir.expect_error(
        1,
        &[
            "train",
            "fine.toml",
            "--run",
            "none",
            "--set",
            "init.from=absent",
        ],
        &["absent"],
    );
}

#[test]
fn array_rows_are_read_in_order() {
    let dir = TestDir::new();
    let config = String::from_utf8(dir.read("tiny.toml")).unwrap();
    dir.write("tiny.toml", config.replace("tokenizer = \"bytes\"\n", ""));
    // Row i repeats the token i.
    let rows = |order: &[u16]| order.iter().flat_map(|&i| vec![i; 17]).collect::<Vec<_>>();
    let order: Vec<u16> = (0..80).collect();
    let backward: Vec<u16> = (0..80).rev().collect();
    dir.write("forward.npy", numpy("(80, 17)", &rows(&order)));
    dir.write("backward.npy", numpy("(80, 17)", &rows(&backward)));
    for i in 0..20_u16 {
        dir.write(
            &format!("{i}.npy"),
            numpy("(4, 17)", &rows(&order[4 * usize::from(i)..][..4])),
        );
    }
    let all: Vec<String> = (0..20).map(|i| format!("'{i}.npy'")).collect();
    let train = |run: &str, data: &str, order: &str| {
        let data = format!("data.train=[{data}]");
        let order = format!("data.order={order}");
        dir.train(
            run,
            &[
                "--set",
                &data,
                "--set",
                &order,
                "--set",
                "model.vocab_size=80",
            ],
        );
        dir.column(run, "loss")
    };
    let forward = train("forward", "'forward.npy'", "sequential");
    assert_eq!(forward, train("pieces", &all.join(","), "sequential"));
    assert_ne!(forward, train("backward", "'backward.npy'", "sequential"));
    assert_ne!(forward, train("shuffled", "'forward.npy'", "shuffled"));
    // The first losses are those of the first four rows.
    dir.train(
        "first",
        &[
            "--set",
            "data.train=['0.npy']",
            "--set",
            "data.order=sequential",
            "--set",
            "model.vocab_size=80",
        ],
    );
    assert_eq!(dir.column("first", "loss")[0], forward[0]);
    assert_ne!(dir.column("first", "loss")[1], forward[1]);
}

#[test]
fn learning_rates_follow_their_schedules() {
    let dir = TestDir::new();
    let lr = |run: &str, settings: &[&str]| {
        let mut more = vec![
            "--set",
            "optimizer.lr=1.0e-3",
            "--set",
            "schedule.warmup_steps=0",
            "--set",
            "train.checkpoint_every=0",
        ];
        settings
            .iter()
            .for_each(|setting| more.extend(["--set", setting]));
        dir.train(run, &more);
        dir.column(run, "lr")
    };
    assert_eq!(lr("constant", &["schedule.kind=constant"]), [1e-3; 20]);
    let linear = lr(
        "linear",
        &["schedule.kind=linear", "schedule.min_lr_ratio=0"],
    );
    assert_close(linear[9], 0.5e-3);
    assert_close(linear[19], 0.0);
    let wsd = lr(
        "wsd",
        &[
            "schedule.kind=wsd",
            "schedule.decay_steps=10",
            "schedule.min_lr_ratio=0.5",
        ],
    );
    assert_eq!(wsd[..10], [1e-3; 10]);
    assert_close(wsd[14], 0.75e-3);
    assert_close(wsd[19], 0.5e-3);
    let cosine = lr("cosine", &["schedule.min_lr_ratio=0"]);
    assert_close(cosine[9], 0.5e-3);
    // 300 tokens are five steps of 64, rounded up.
    let config = String::from_utf8(dir.read("tiny.toml")).unwrap();
    dir.write(
        "tiny.toml",
        config.replace("warmup_steps = 4", "warmup_tokens = 300"),
    );
    dir.train(
        "tokens",
        &[
            "--set",
            "schedule.kind=constant",
            "--set",
            "optimizer.lr=1e-3",
        ],
    );
    let tokens = dir.column("tokens", "lr");
    assert_close(tokens[0], 0.2e-3);
    assert_close(tokens[4], 1e-3);
    assert_eq!(tokens[5..], [1e-3; 15]);
}

#[test]
fn training_without_validation_data_is_reported() {
    let dir = TestDir::new();
    dir.write("one.txt", "one two three four five six seven. ".repeat(100));
    let args = [
        "train",
        "tiny.toml",
        "--run",
        "run",
        "--set",
        "data.train=['one.txt']",
    ];
    let output = dir.run(&args);
    let stderr = common::stderr(&output);
    assert_eq!(common::code(&output), 0, "{stderr}");
    assert!(stderr.contains("no validation: "), "{stderr}");
    let result = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        result,
        "finished: 20 steps, 1,280 tokens, no validation data\n"
    );
}

#[test]
fn a_run_that_cannot_start_writes_nothing() {
    let dir = TestDir::new();
    dir.train_fails(
        1,
        "run",
        &["--set", "data.train=['absent.txt']"],
        &["absent.txt"],
    );
    assert!(!dir.path("run").exists());
    dir.train_fails(
        2,
        "run",
        &["--set", "model.vocab_size=9"],
        &["tiny.toml", "model.vocab_size = 9"],
    );
    assert!(!dir.path("run").exists());
}

#[test]
fn a_tokenizer_other_than_that_of_prepared_data_is_rejected() {
    let dir = TestDir::new();
    dir.prepare("stories:60", "bpe:300", "p");
    let folder = "data.train=['p']";
    dir.train_fails(
        1,
        "run",
        &["--set", folder, "--set", "data.tokenizer=bpe:400"],
        &["p: tokenized with bpe:300", "bpe:400 was requested"],
    );
    dir.train("run", &["--set", folder, "--set", "data.tokenizer=bpe:300"]);
    let of_config = dir.json(&[
        "inspect",
        "tiny.toml",
        "--json",
        "--set",
        folder,
        "--set",
        "data.tokenizer=bpe:300",
    ]);
    let of_run = dir.json(&["inspect", "run", "--json"]);
    assert_eq!(
        of_config["model"]["vocab_size"],
        of_run["model"]["vocab_size"]
    );
}
