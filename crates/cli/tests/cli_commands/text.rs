//! Evaluation and generation of text.

use super::*;

#[test]
fn eval_json_agrees_with_the_metrics() {
    let dir = TestDir::new();
    dir.ok(&[
        "data",
        "prepare",
        "stories:60",
        "--tokenizer",
        "bytes",
        "--out",
        "p",
        "--validation-fraction",
        "0.2",
    ]);
    dir.train("run", &["--set", "data.train=['p']"]);
    let last = dir.metrics("run")[19]["validation_loss"].as_f64().unwrap();
    let whole = ["eval", "run", "--data", "p", "--json", "--windows", "full"];
    let found = dir.json(&[&whole[..], &["--batch-size", "4"]].concat());
    for key in [
        "loss",
        "perplexity",
        "tokens",
        "bits_per_byte",
        "left_out",
        "sets",
    ] {
        assert!(keys(&found).contains(&key), "{key}");
    }
    assert_close(found["loss"].as_f64().unwrap(), last);
    assert_close(found["perplexity"].as_f64().unwrap(), last.exp());
    let held_out =
        dir.json(&["data", "inspect", "p", "--json"])["manifest"]["validation"]["tokens"]
            .as_u64()
            .unwrap();
    assert_eq!(found["tokens"].as_u64().unwrap(), (held_out - 1) / 16 * 16);
    // Other batch sizes change only the last bits.
    let other = dir.json(&[&whole[..], &["--batch-size", "7"]].concat());
    assert!((other["loss"].as_f64().unwrap() - last).abs() < 1e-6);

    // Explicit validation text is used entirely.
    dir.train("named", &["--set", "data.validation=['stories:9:7']"]);
    let last = dir.metrics("named")[19]["validation_loss"]
        .as_f64()
        .unwrap();
    let found = dir.json(&[
        "eval",
        "named",
        "--data",
        "stories:9:7",
        "--json",
        "--batch-size",
        "4",
        "--windows",
        "whole",
    ]);
    assert_close(found["loss"].as_f64().unwrap(), last);
    let text = dir.ok(&["eval", "named", "--data", "stories:9:7", "p"]);
    assert!(text.contains("perplexity"), "{text}");
}

fn generate_once(dir: &TestDir, more: &[&str]) -> String {
    let args = ["generate", "run", "--prompt", "Once", "--max-tokens", "30"];
    dir.ok(&[&args[..], more].concat())
}

#[test]
fn generation_is_determined_by_the_seed() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let write = |more: &[&str]| generate_once(&dir, more);
    assert!(write(&[]).starts_with("Once"));
    assert!(write(&[]).ends_with('\n'));
    assert_eq!(
        write(&["--seed", "1"]),
        write(&["--seed", "1", "--threads", "1"])
    );
    assert_ne!(write(&["--seed", "1"]), write(&["--seed", "2"]));
    let greedy = ["--temperature", "0"];
    assert_eq!(
        write(&greedy),
        write(&["--threads", "1", "--temperature", "0"])
    );
    assert_eq!(write(&greedy), write(&["--top-k", "1"]));
}

#[test]
fn prompts_and_generated_text_are_printed() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let found = dir.json(&[
        "generate",
        "run",
        "--prompt",
        "Once",
        "--max-tokens",
        "30",
        "--temperature",
        "0",
        "--json",
    ]);
    assert_eq!(
        keys(&found),
        [
            "context_tokens",
            "left_out",
            "precision",
            "prompt",
            "prompt_tokens",
            "start_id",
            "text",
            "tokens"
        ]
    );
    assert_eq!(
        generate_once(&dir, &["--temperature", "0"]),
        format!("Once{}\n", found["text"].as_str().unwrap())
    );
    assert_eq!(
        dir.ok(&["generate", "run", "--prompt", "ä b", "--max-tokens", "0"]),
        "ä b\n"
    );
    dir.ok(&["generate", "run", "--prompt", "", "--max-tokens", "5"]);
    // Longer than the context.
    dir.ok(&[
        "generate",
        "run",
        "--prompt",
        &"word ".repeat(20),
        "--max-tokens",
        "40",
    ]);
}

#[test]
fn invalid_sampling_options_are_rejected() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    dir.expect_error(
        2,
        &["generate", "run", "--prompt", "a", "--temperature", "-1"],
        &["temperature = -1"],
    );
    for (options, words) in [
        (
            &["--temperature", "0", "--seed", "5"][..],
            "seed has no effect with greedy decoding (temperature = 0",
        ),
        (
            &["--temperature", "0", "--top-k", "5", "--top-p", "1"],
            "top_k and top_p has no effect",
        ),
        (
            &["--top-k", "1", "--seed", "0"],
            "seed has no effect with greedy decoding (top_k = 1",
        ),
    ] {
        let args = [&["generate", "run", "--prompt", "a"], options].concat();
        dir.expect_error(2, &args, &[words]);
    }
    dir.expect_error(
        2,
        &["generate", "run", "--prompt", "a", "--top-p", "0"],
        &["top_p = 0"],
    );
}

#[test]
fn prompts_may_start_with_a_hyphen() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    dir.ok(&["generate", "run", "--prompt", "-x", "--max-tokens", "3"]);
}

#[test]
fn eval_uses_the_given_split() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let evaluate = |split: &str| {
        let args = ["eval", "run", "--data", "stories:60", "--split", split];
        dir.json(&[&args[..], &["--json"]].concat())
    };
    let tokens = |split: &str| evaluate(split)["tokens"].as_u64().unwrap();
    let (train, held_out, all) = (tokens("train"), tokens("validation"), tokens("all"));
    assert!(
        held_out > 0 && train > held_out && all >= train,
        "{train} {held_out} {all}"
    );
    // Equal to the validation loss in training, which holds out the same documents.
    let args = [
        "eval",
        "run",
        "--data",
        "stories:60",
        "--split",
        "validation",
    ];
    let found = dir.json(&[&args[..], &["--json", "--windows", "full"]].concat());
    let found = found["loss"].as_f64().unwrap();
    let last = dir.metrics("run").last().unwrap()["validation_loss"]
        .as_f64()
        .unwrap();
    assert!((found - last).abs() < 1e-6, "{found} {last}");
}
