//! Whatever a model is made of and however it is updated: a run that goes on from a checkpoint ends in
//! the bits of one that never stopped, on any number of threads.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use hybridnorm::train::{Config, Start, Trainer};

const STEPS: usize = 6;
const STOP: u64 = 4;

fn config(model: &str, optimizer: &str) -> Config {
    let text = format!(
        "seed = 3\n\
         [model]\nd_model = 16\nn_layers = 3\nn_heads = 4\n{model}\n\
         [data]\ntrain = [\"stories:40\"]\ntokenizer = \"bytes\"\n\
         [optimizer]\nlr = 1e-2\n{optimizer}\n\
         [train]\nsteps = {STEPS}\nbatch_size = 4\nseq_len = 16\ngrad_accum_steps = 2\n\
         eval_every = 0\neval_sequences = 2\ncheckpoint_every = 0\nkeep_checkpoints = 1\n"
    );
    Config::parse(&text, &[]).unwrap()
}

/// Trains up to step `limit` on so many threads.
fn train(config: &Config, run: &Path, start: Start, limit: u64, threads: usize) {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    pool.install(|| {
        let device = Device::flex();
        let mut trainer = Trainer::open(config.clone(), run, start, &device, &mut |_| {}).unwrap();
        let stop = AtomicBool::new(false);
        trainer.run_to(limit, &stop, &mut |_| {}).unwrap();
    });
}

fn files(run: &Path) -> Vec<(String, Vec<u8>)> {
    let folder = run.join(format!("checkpoints/step-{STEPS:08}"));
    ["model.safetensors", "optimizer.safetensors", "state.json"]
        .map(|name| (name.to_owned(), std::fs::read(folder.join(name)).unwrap()))
        .into()
}

#[test]
fn a_run_that_goes_on_ends_in_the_bits_of_one_that_never_stopped() {
    let moe = "moe = { n_experts = 4, top_k = 2, d_expert = 8, n_shared = 1, bias_rate = 0.01 }";
    let mla = "d_ff = 24\n\
               mla = { q_rank = 12, kv_rank = 8, nope_dim = 4, rope_dim = 4, v_dim = 4 }";
    let dense = "d_ff = 24";
    let placed = |name: &str, rest: &str| format!("placement = \"{name}\"\n{rest}");
    let cases = [
        ("experts", placed("hybridnorm-star", moe), ""),
        ("experts, muon", placed("pre-norm", moe), "kind = \"muon\""),
        ("latents", placed("hybridnorm", mla), ""),
        (
            "latents, clipped",
            placed("deepseek-v3", mla),
            "kind = \"muon\"\nmomentum = 0.9\nqk_clip = 0.01",
        ),
        ("two streams", placed("siamese-hybrid", dense), ""),
        ("two streams, experts", placed("siamese-norm", moe), ""),
        (
            "residual dual",
            placed("resi-dual", dense),
            "qk_clip = 0.01",
        ),
        ("unit weights", placed("ngpt", dense), "weight_decay = 0.0"),
        (
            "unit weights, experts",
            placed("ngpt", moe),
            "kind = \"muon\"",
        ),
    ];
    for (name, model, optimizer) in cases {
        let config = config(&model, optimizer);
        let folder = tempfile::tempdir().unwrap();
        let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
        train(&config, &whole, Start::Fresh, u64::MAX, 1);
        train(&config, &parts, Start::Fresh, STOP, 2);
        train(&config, &parts, Start::Resume, u64::MAX, 3);
        for ((file, whole), (_, parts)) in files(&whole).into_iter().zip(files(&parts)) {
            assert!(whole == parts, "{name}: {file} differs");
        }
    }
}
