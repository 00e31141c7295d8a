//! What benchmarks print.

mod common;

use common::Lab;

#[test]
fn a_step_is_measured_with_a_model_and_a_batch_alone() {
    let lab = Lab::new();
    lab.write(
        "bench.toml",
        "[model]\nd_model = 32\nn_layers = 2\nn_heads = 2\nd_ff = 64\nvocab_size = 300\n\
         [train]\nbatch_size = 4\nseq_len = 32\ngrad_accum_steps = 2\n",
    );
    let args = ["bench", "step", "--config", "bench.toml", "--seconds", "0"];
    let found = lab.json(&[&args[..], &["--json"]].concat());
    let number = |key: &str| {
        found[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key}: {found}"))
    };
    for key in [
        "tokens_per_second",
        "step_seconds",
        "gflops",
        "sgemm_gflops",
        "sgemm_share",
    ] {
        assert!(number(key) > 0.0, "{key}: {found}");
    }
    let speed = 4.0 * 32.0 / number("step_seconds");
    assert!((number("tokens_per_second") / speed - 1.0).abs() < 1e-9);
    assert!((number("sgemm_share") * number("sgemm_gflops") / number("gflops") - 1.0).abs() < 1e-9);
    if cfg!(target_os = "linux") {
        assert!(number("peak_rss_bytes") > 1e6);
        assert!(number("page_faults_per_step") >= 0.0);
    }
    let ops = found["seconds_by_op"].as_object().unwrap();
    for op in ["linear", "attention", "head and loss", "adamw", "other"] {
        assert!(ops.contains_key(op), "{op}: {found}");
    }
    assert!(lab.ok(&args).contains("tokens/s"));
    lab.fails(
        2,
        &[
            "bench",
            "step",
            "--config",
            "bench.toml",
            "--set",
            "train.grad_accum_steps=3",
        ],
        &["train.grad_accum_steps = 3"],
    );
}
