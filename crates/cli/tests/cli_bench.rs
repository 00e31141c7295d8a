//! Output of the benchmarks.

mod common;

use common::TestDir;
use serde_json::Value;

const SHAPE: &str = "[model]\nd_model = 32\nn_layers = 2\nn_heads = 2\nd_ff = 64\nvocab_size = 300\n\
     [train]\nbatch_size = 4\nseq_len = 32\ngrad_accum_steps = 2\n";

/// Creates a folder with the configuration of a tiny model.
fn test_dir() -> TestDir {
    let dir = TestDir::new();
    dir.write("bench.toml", SHAPE);
    dir
}

/// Returns the arguments of a minimal `bench WHAT` of that model.
fn args<'a>(what: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["bench", what, "--config", "bench.toml", "--seconds", "0"];
    args.extend(more);
    args
}

fn number(found: &Value, key: &str) -> f64 {
    found[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key}: {found}"))
}

#[track_caller]
fn assert_close(a: f64, b: f64) {
    assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
}

#[test]
fn bench_step_measures_one_model_on_one_batch() {
    let dir = test_dir();
    let found = dir.json(&args("step", &["--json"]));
    let number = |key: &str| number(&found, key);
    for key in [
        "tokens_per_second",
        "step_seconds",
        "gflops",
        "sgemm_gflops",
        "sgemm_share",
        "bf16_gemm_gflops",
        "bf16_gemm_share",
    ] {
        assert!(number(key) > 0.0, "{key}: {found}");
    }
    assert_close(
        number("tokens_per_second") * number("step_seconds"),
        4.0 * 32.0,
    );
    assert_close(
        number("sgemm_share") * number("sgemm_gflops"),
        number("gflops"),
    );
    assert_close(
        number("bf16_gemm_share") * number("bf16_gemm_gflops"),
        number("gflops"),
    );
    assert_eq!(found["precision"], "f32");
    assert!(!found["matmul_unit"].as_str().unwrap().is_empty());
    if cfg!(target_os = "linux") {
        assert!(number("peak_rss_bytes") > 1e6);
        assert!(number("page_faults_per_step") >= 0.0);
    }
    let ops = found["seconds_by_op"].as_object().unwrap();
    for op in [
        "linear",
        "attention",
        "head and loss",
        "squared norms",
        "adamw",
        "other",
    ] {
        assert!(ops.contains_key(op), "{op}: {found}");
    }
    assert!(dir.ok(&args("step", &[])).contains("tokens/s"));
    dir.expect_error(
        2,
        &args("step", &["--set", "train.grad_accum_steps=3"]),
        &["train.grad_accum_steps = 3"],
    );
}

#[test]
fn bench_decode_is_relative_to_the_memory_bandwidth() {
    let dir = test_dir();
    let found = dir.json(&args("decode", &["--json", "--threads", "1"]));
    let number_of = |key: &str| number(&found, key);
    assert_eq!(number_of("threads"), 1.0);
    assert_eq!(number_of("tokens"), 8.0);
    assert_eq!(number_of("prompt_tokens"), 16.0);
    assert_close(
        number_of("tokens_per_second") * number_of("token_seconds"),
        1.0,
    );
    assert_close(
        number_of("bandwidth_share") * number_of("bandwidth_bytes_per_second"),
        number_of("bytes_per_token") * number_of("tokens_per_second"),
    );
    // All weights but the embedding rows that are not read.
    let parameters = number_of("parameters");
    assert_eq!(
        number_of("bytes_per_token"),
        4.0 * (parameters - 299.0 * 32.0)
    );
    // After the prompt and two more tokens, 19 to 26 positions are attended to; each has keys and values in two
    // blocks.
    assert_eq!(
        number_of("cache_bytes_per_token"),
        4.0 * 2.0 * 2.0 * 32.0 * 22.5
    );
    if cfg!(target_os = "linux") {
        assert!(number_of("peak_rss_bytes") > 1e6);
    }

    let tied = ["--json", "--set", "model.tie_embeddings=true"];
    let tied = dir.json(&args("decode", &tied));
    assert_eq!(
        number(&tied, "bytes_per_token"),
        4.0 * number(&tied, "parameters")
    );

    // Matrices are read in bfloat16, the gains of pre-norm's five norms are not.
    let bf16 = [
        "--json",
        "--set",
        "model.placement=pre-norm",
        "--set",
        "train.precision=bf16",
    ];
    let bf16 = dir.json(&args("decode", &bf16));
    assert_eq!(bf16["precision"], "bf16, residual stream in f32");
    let (parameters, gains) = (number(&bf16, "parameters"), 5.0 * 32.0);
    assert_eq!(
        number(&bf16, "bytes_per_token"),
        2.0 * (parameters - 300.0 * 32.0 - gains) + 4.0 * (32.0 + gains)
    );

    // The cache is full after a single token and is then refilled.
    let short = dir.json(&args("decode", &["--json", "--set", "train.seq_len=2"]));
    assert_eq!(number(&short, "prompt_tokens"), 1.0);
    assert_eq!(number(&short, "tokens"), 8.0);
    assert!(dir.ok(&args("decode", &[])).contains("memory bandwidth"));
}

#[test]
fn placements_are_compared_with_pre_norm() {
    let dir = test_dir();
    let only = ["--only", "hybridnorm", "--only", "llama", "--rounds", "1"];
    let found = dir.json(
        &[
            &args("placements", &["--json", "--threads", "1"])[..],
            &only,
        ]
        .concat(),
    );
    assert_eq!(found["reference"], "pre-norm");
    assert_eq!(number(&found, "rounds"), 1.0);
    assert_eq!(number(&found, "threads"), 1.0);
    assert_eq!(found["skipped"].as_array().unwrap().len(), 0);
    let rows = found["rows"].as_array().unwrap();
    let names: Vec<_> = rows
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["hybridnorm", "pre-norm"]);
    for (row, what) in rows.iter().flat_map(|row| [(row, "step"), (row, "decode")]) {
        let compared = &row[what];
        assert!(number(compared, "tokens_per_second") > 0.0);
        let ratios = compared["relative_speeds"].as_array().unwrap();
        assert_eq!(ratios.len(), 1);
        assert_eq!(ratios[0], compared["relative_speed"]);
        if cfg!(target_os = "linux") {
            let memory = number(compared, "peak_rss_bytes");
            let reference = number(&found[format!("reference_{what}")], "peak_rss_bytes");
            let ratio = number(compared, "relative_memory");
            assert!((0.5..2.0).contains(&ratio), "{found}");
            assert!((0.5..2.0).contains(&(memory / reference)), "{found}");
        }
    }
    // The same model, measured by `bench step`.
    assert_eq!(
        rows[1]["parameters"],
        dir.json(&args(
            "step",
            &["--json", "--set", "model.placement=pre-norm"]
        ))["parameters"]
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_stops_bench_placements_and_its_child_processes() {
    let dir = test_dir();
    let what = "bench placements --config bench.toml --only hybridnorm --seconds 1000";
    let child = dir.start(&what.split(' ').collect::<Vec<_>>());
    // Child process: `/proc/PID/stat` is "PID (NAME) STATE PARENT ...".
    let parent = child.id().to_string();
    let measuring = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes.map(|process| process.path()).find(|process| {
            let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
            let of = stat.rsplit(") ").next().unwrap_or_default();
            of.split_whitespace().nth(1) == Some(&parent)
        })
    };
    common::wait_until("a measurement", || measuring().is_some());
    let other = measuring().unwrap();
    common::signal(&child, "TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(common::code(&output), 130, "{output:?}");
    assert!(!other.exists(), "{other:?} is still running");
}

#[test]
fn a_placement_that_cannot_be_built_is_listed_with_the_reason() {
    let dir = test_dir();
    // A norm on a gate that an ungated feed-forward does not have.
    let ungated = [
        "--only",
        "simple-norm",
        "--only",
        "olmo2",
        "--rounds",
        "1",
        "--set",
        "model.activation=gelu",
    ];
    let output = dir.run(&args("placements", &ungated));
    let stderr = common::stderr(&output);
    assert_eq!(common::code(&output), 0, "{stderr}");
    assert!(stderr.contains("olmo2") && stderr.contains("simple-norm"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("not measured: simple-norm: "), "{text}");
    assert!(text.contains("gate"), "{text}");
    let quiet = ["--only", "gemma2", "--rounds", "1", "--quiet"];
    let output = dir.run(&args("placements", &quiet));
    assert_eq!(common::stderr(&output), "");
}

#[test]
fn bench_ops_compares_every_kernel_with_the_reference_and_its_limit() {
    let dir = test_dir();
    let found = dir.json(&args("ops", &["--json", "--threads", "1"]));
    assert_eq!(number(&found, "threads"), 1.0);
    assert_eq!(number(&found, "micro_batch"), 2.0);
    assert_eq!(number(&found, "seq_len"), 32.0);
    let rows = found["rows"].as_array().unwrap();
    for row in rows {
        let number = |key: &str| number(row, key);
        for key in ["seconds", "rate", "naive_seconds", "naive_part"] {
            assert!(number(key) > 0.0, "{key}: {row}");
        }
        let limit = match row["bound"].as_str().unwrap() {
            "arithmetic" => "sgemm_gflops",
            "read" => "read_gb_per_second",
            "read_write" => "read_write_gb_per_second",
            other => panic!("{other}"),
        };
        assert_eq!(row["limit"], found[limit]);
        assert_close(number("share_of_limit") * number("limit"), number("rate"));
        assert_close(
            number("speedup_over_naive") * number("seconds"),
            number("naive_seconds"),
        );
        assert!(number("largest_difference") < 1e-4, "{row}");
    }
    let row = |op: &str, direction: &str| {
        let found = rows
            .iter()
            .find(|row| row["op"] == op && row["direction"] == direction);
        found.unwrap_or_else(|| panic!("{op} {direction}"))
    };
    // 64 rows from width 32 to 128, and 64 rows of width 32 read and written with a gain of 32.
    let work = |row: &Value| 1e9 * number(row, "rate") * number(row, "seconds");
    assert_close(
        work(row("linear up", "backward weight")),
        2.0 * 64.0 * 32.0 * 128.0,
    );
    assert_close(
        work(row("norm rms", "forward")),
        4.0 * (2.0 * 64.0 * 32.0 + 32.0),
    );
    assert_close(
        work(row("attention", "forward")),
        4.0 * 2.0 * 32.0 * 33.0 / 2.0 * 32.0,
    );
    assert!(dir.ok(&args("ops", &[])).contains("adamw"));
}

#[test]
fn bench_ops_measures_ops_in_bf16() {
    let dir = test_dir();
    let bf16 = ["--set", "train.precision=bf16"];
    let found = dir.json(&args("ops", &[&bf16[..], &["--json"]].concat()));
    assert_eq!(found["precision"], "bf16, residual stream in f32");
    let rows = found["rows"].as_array().unwrap();
    for row in rows {
        let difference = number(row, "largest_difference");
        assert!(difference <= 1.0 / 128.0, "{row}");
        if row["bound"] == "arithmetic" {
            assert_eq!(row["limit"], found["bf16_gemm_gflops"]);
        }
    }
    let activation = rows
        .iter()
        .find(|row| row["op"] == "activation swiglu" && row["direction"] == "forward")
        .unwrap();
    // 64 rows of gates and values of width 64 each read, and 64 hidden units written, two bytes each.
    let bytes = 1e9 * number(activation, "rate") * number(activation, "seconds");
    assert_close(bytes, 2.0 * 64.0 * 3.0 * 64.0);
    assert!(
        dir.ok(&args("ops", &bf16))
            .contains("precision       bf16, residual stream in f32")
    );
}

#[test]
fn kernels_below_their_minimum_speedup_fail() {
    let dir = test_dir();
    let floor = |op: &str, speedup: &str| {
        format!("[[kernel]]\nop = \"{op}\"\ndirection = \"forward\"\nspeedup = {speedup}\n")
    };
    let with_floors = args("ops", &["--quiet", "--floors", "floors.toml"]);
    dir.write("floors.toml", floor("attention", "1e-9"));
    dir.ok(&with_floors);
    let high = [floor("attention", "1e9"), floor("nothing", "1.0")].concat();
    dir.write("floors.toml", &high);
    dir.expect_error(
        1,
        &with_floors,
        &[
            "floors.toml: attention forward is",
            "expected at least 1000000000; there is no kernel `nothing`, `forward`",
        ],
    );
    dir.write("floors.toml", floor("attention", "nan"));
    dir.expect_error(
        1,
        &with_floors,
        &["floors.toml: speedup = NaN is not above 0"],
    );
    dir.write("floors.toml", "[[kernel]]\nop = \"attention\"\n");
    dir.expect_error(1, &with_floors, &["floors.toml: missing field `direction`"]);
}

#[test]
fn recomputation_reduces_activation_memory() {
    let dir = test_dir();
    let recompute = |value: &str| format!("train.recompute={value}");
    let (none, block) = (recompute("none"), recompute("block"));
    let planned = |settings: &[&str]| {
        let found = dir.json(&[&["inspect", "bench.toml", "--json"], settings].concat());
        number(&found["inventory"]["memory"], "activations")
    };
    let activations = |setting: &str| planned(&["--set", setting]);
    assert!(activations(&block) < activations(&none));
    // As few blocks are recomputed as the budget allows: all of them, none, some.
    let within = |bytes: f64| activations(&recompute(&format!("budget:{bytes}")));
    assert_eq!(within(activations(&block)), activations(&block));
    assert_eq!(within(activations(&none)), activations(&none));
    let between = ((activations(&block) + activations(&none)) / 2.0).floor();
    assert!(within(between) <= between && within(between) >= activations(&block));
    // The peak of a step falls with the planned memory, in a model with many activations.
    let settings = |recompute| {
        let deep = ["--set", "model.n_layers=8", "--set", "train.seq_len=256"];
        [&["--set", recompute][..], &deep].concat()
    };
    let [with, without] = [&block, &none].map(|recompute| {
        let settings = settings(recompute);
        let found = dir.json(&[&args("step", &["--json"])[..], &settings].concat());
        assert!(number(&found["seconds_by_op"], "attention") > 0.0);
        let peak = cfg!(target_os = "linux").then(|| number(&found, "peak_rss_bytes"));
        (planned(&settings), peak)
    });
    let less = without.0 - with.0;
    assert!(less > 4e6, "{less}");
    if let (Some(with), Some(without)) = (with.1, without.1) {
        assert!(without - with > less / 2.0, "{with} {without} {less}");
    }
    dir.expect_error(
        2,
        &["inspect", "bench.toml", "--set", &recompute("budget:1")],
        &["train.recompute = \"budget:1\"", "even with recomputation"],
    );
    dir.expect_error(
        2,
        &args("step", &["--set", &recompute("layer")]),
        &[
            "train.recompute",
            "\"none\", \"block\", or \"budget:BYTES\"",
        ],
    );
    dir.expect_error(
        2,
        &args("step", &["--set", "model.max_seq_len=16"]),
        &["max_seq_len"],
    );
}

#[test]
fn invalid_benchmarks_fail_with_one_line() {
    let dir = test_dir();
    dir.expect_error(
        2,
        &args("decode", &["--set", "train.seq_len=1"]),
        &["train.seq_len = 1, expected 2 to"],
    );
    dir.expect_error(
        2,
        &args("placements", &["--only", "hybridnrom"]),
        &[
            "unknown placement hybridnrom",
            "nearest known: `hybridnorm`",
        ],
    );
    dir.expect_error(
        2,
        &args("placements", &["--rounds", "0"]),
        &["rounds = 0, expected at least 1"],
    );
    dir.expect_error(
        2,
        &args("placements", &["--set", "model.placement=olmo2"]),
        &["--set model.placement=olmo2", "--only"],
    );
    for what in ["step", "decode", "placements", "ops"] {
        for seconds in ["-1", "nan", "inf"] {
            dir.expect_error(
                2,
                &[
                    "bench",
                    what,
                    "--config",
                    "bench.toml",
                    "--seconds",
                    seconds,
                ],
                &["seconds", "expected a finite non-negative number"],
            );
        }
    }
}

#[test]
fn devices_are_listed_and_missing_ones_are_errors() {
    let dir = test_dir();
    let found = dir.json(&["devices", "--json"]);
    assert!(found["cpu"]["threads"].as_u64() > Some(0), "{found}");
    assert!(found["cards"].is_array(), "{found}");
    assert!(dir.ok(&["devices"]).contains("cpu"));
    // No machine has that many cards.
    let step = args("step", &["--device", "cuda:1000000"]);
    dir.expect_error(1, &step, &["CUDA"]);
    let step = args("step", &["--device", "gpu"]);
    let output = dir.run(&step);
    assert_eq!(common::code(&output), 2);
    let message = common::stderr(&output);
    assert!(
        message.contains("expected cpu, cuda or cuda:INDEX"),
        "{message}"
    );
}
