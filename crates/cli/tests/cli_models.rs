//! Mixtures of experts, multi-head latent attention and other optimizers through the binary.

mod common;

use std::path::Path;

use common::TestDir;

/// Returns a path in this repository.
fn repository_path(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join(path).to_str().unwrap().to_owned()
}

const SPARSE: &str = "seed = 1\n\
    [model]\nd_model = 16\nn_layers = 2\nn_heads = 2\nplacement = \"hybridnorm-star\"\n\
    [model.moe]\nn_experts = 4\ntop_k = 2\nd_expert = 8\n\
    [data]\ntrain = [\"stories:60\"]\ntokenizer = \"bytes\"\n\
    [optimizer]\nlr = 1e-2\n\
    [train]\nsteps = 6\nbatch_size = 4\nseq_len = 16\neval_every = 0\neval_sequences = 4\n\
    checkpoint_every = 0\n[log]\nlayers_every = 2\n";

#[test]
fn paper_moe_parameter_counts() {
    let dir = TestDir::new();
    let config = repository_path("configs/hybridnorm-moe-1b-7b.toml");
    let stdout = dir.ok(&["inspect", &config]);
    let row = |name: &str| {
        let line = stdout
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        line.unwrap_or_else(|| panic!("{stdout}")).to_owned()
    };
    assert!(row("total").contains("6.9B"), "{stdout}");
    assert!(row("active").contains("1.3B"), "{stdout}");
}

#[test]
fn moe_trains_logs_expert_load_and_generates() {
    let dir = TestDir::new();
    dir.write("sparse.toml", SPARSE);
    dir.ok(&["train", "sparse.toml", "--run", "run", "--quiet"]);
    for row in dir.read_jsonl("run/metrics.jsonl") {
        let router = &row["router"];
        assert_eq!(router["dropped"], 0, "{row}");
        assert!(router["load_balance"].as_f64().unwrap() >= 0.9, "{row}");
        assert!(router["imbalance"].as_f64().unwrap() >= 1.0, "{row}");
        assert!(router["z"].as_f64().unwrap() > 0.0, "{row}");
    }
    let layers = dir.read_jsonl("run/layers.jsonl");
    assert_eq!(layers.len(), 3);
    for block in layers
        .iter()
        .flat_map(|row| row["blocks"].as_array().unwrap())
    {
        let experts = &block["experts"];
        let loads = experts["load"].as_array().unwrap();
        let sum: f64 = loads.iter().map(|load| load.as_f64().unwrap()).sum();
        assert!((sum / 4.0 - 1.0).abs() < 1e-5, "{block}");
        let entropy = experts["entropy"].as_f64().unwrap();
        assert!((0.0..=4f64.ln() + 1e-6).contains(&entropy), "{block}");
        assert_eq!(experts["dropped"], 0);
    }
    let stdout = dir.ok(&["generate", "run", "--prompt", "a", "--max-tokens", "5"]);
    assert!(!stdout.is_empty());
}

#[test]
fn latent_attention_trains_with_muon_and_qk_clip() {
    let dir = TestDir::new();
    let text = SPARSE
        .replace(
            "[model.moe]\nn_experts = 4\ntop_k = 2\nd_expert = 8\n",
            "[model.mla]\nq_rank = 8\nkv_rank = 8\nnope_dim = 4\nrope_dim = 4\nv_dim = 4\n",
        )
        .replace("n_heads = 2\n", "n_heads = 2\nd_ff = 24\n")
        .replace(
            "lr = 1e-2\n",
            "lr = 1e-2\nkind = \"muon\"\nqk_clip = 1e-3\n",
        );
    dir.write("latent.toml", text);
    dir.ok(&["train", "latent.toml", "--run", "run", "--quiet"]);
    for row in dir.read_jsonl("run/metrics.jsonl") {
        let clip = &row["qk_clip"];
        assert!(clip["largest_score"].as_f64().unwrap() > 1e-3, "{row}");
        assert!(clip["clipped_heads"].as_u64().unwrap() > 0, "{row}");
    }
    dir.ok(&["generate", "run", "--prompt", "a", "--max-tokens", "5"]);
}

#[test]
fn options_without_effect_are_errors() {
    let dir = TestDir::new();
    dir.write("sparse.toml", SPARSE);
    let moe = "model.moe={ n_experts = 4, top_k = 5, d_expert = 8 }";
    for (set, words) in [
        ("model.d_ff=32", "model.d_ff = 32 has no effect"),
        (moe, "model.moe.top_k = 5, expected 1 to 4"),
        (
            "model.moe.top_groups=2",
            "model.moe.top_groups = 2, expected 1 to 1",
        ),
        (
            "optimizer.momentum=0.9",
            "optimizer.momentum = 0.9 has no effect",
        ),
        (
            "optimizer.qk_clip=100",
            "optimizer.qk_clip cannot limit attention logits",
        ),
        ("model.moe.top=3", "top_k"),
    ] {
        let args = ["train", "sparse.toml", "--run", "run", "--set", set];
        dir.expect_error(2, &args, &[words]);
    }
}

#[test]
fn norms_of_latent_attention_are_explained() {
    let dir = TestDir::new();
    let stdout = dir.ok(&["placement", "explain", "hybridnorm", "--attention", "mla"]);
    for line in ["c_q, c_kv, k_r = split(W_D u)", "k_r", "RoPE(N(k_r))"] {
        assert!(stdout.contains(line), "{stdout}");
    }
    let args = ["placement", "explain", "nanochat", "--attention", "mla"];
    dir.expect_error(2, &args, &["not defined for latent attention"]);
}

#[test]
fn hugging_face_checkpoint_is_imported() {
    let dir = TestDir::new();
    for family in ["olmoe", "deepseek-v3"] {
        let from = repository_path(&format!("crates/hybridnorm/tests/fixtures/hf/{family}"));
        dir.ok(&["import", &from, "--out", family, "--quiet"]);
        let inspection = dir.json(&["inspect", family, "--json"]);
        assert!(inspection["model"]["moe"]["n_experts"] == 8, "{inspection}");
        let (total, active) = (
            &inspection["inventory"]["total"],
            &inspection["inventory"]["active"],
        );
        assert!(active.as_u64() < total.as_u64(), "{inspection}");
    }
}
