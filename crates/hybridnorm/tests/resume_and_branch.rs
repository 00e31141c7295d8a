//! For every kind of model and optimizer, a resumed run is bit-identical to an uninterrupted one, on any number of
//! threads.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use hybridnorm::Device;
use hybridnorm::train::{Checkpoint, Config, FloatFormat, Start, Trainer};

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

/// Trains up to step `limit` on `threads` threads.
fn train(config: &Config, run: &Path, start: Start, limit: u64, threads: usize) {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    pool.install(|| {
        let mut trainer =
            Trainer::open(config.clone(), run, start, Device::Cpu, &mut |_| {}).unwrap();
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
fn resumed_run_is_bit_identical_to_an_uninterrupted_one() {
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
    let single = cases.map(|(name, model, optimizer)| (name, config(&model, optimizer)));
    let mixed = [
        (
            "mixed precision",
            placed("hybridnorm", dense),
            FloatFormat::F32,
        ),
        (
            "mixed precision, experts",
            placed("pre-norm", moe),
            FloatFormat::Bf16,
        ),
    ];
    let mixed = mixed.map(|(name, model, residual)| {
        let mut config = config(&model, "");
        config.train.precision = FloatFormat::Bf16;
        config.train.residual_precision = Some(residual);
        (name, config)
    });
    for (name, config) in single.into_iter().chain(mixed) {
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

const MOE: &str = "moe = { n_experts = 4, top_k = 2, d_expert = 8 }";

/// Opens a run of `config` that branches off a run of `from`.
fn branched(from: &Config, config: &Config, folder: &Path) -> Trainer {
    let origin = folder.join("origin");
    train(from, &origin, Start::Fresh, STOP, 1);
    let checkpoint = Checkpoint::open(&origin).unwrap();
    let run = folder.join("branch");
    let start = Start::Branch(checkpoint);
    Trainer::open(config.clone(), &run, start, Device::Cpu, &mut |_| {}).unwrap()
}

#[test]
fn branch_with_another_optimizer_starts_with_zero_moments() {
    let model = format!("placement = \"pre-norm\"\n{MOE}");
    let [adamw, muon] = ["", "kind = \"muon\""].map(|optimizer| config(&model, optimizer));
    for (from, to) in [(&adamw, &muon), (&muon, &adamw)] {
        let update = |from: &Config| {
            let folder = tempfile::tempdir().unwrap();
            let step = branched(from, to, folder.path()).step().unwrap();
            step.metrics.update_norm
        };
        let (same, other) = (update(to), update(from));
        assert!(other < 3.0 * same, "{other} after {same}");
    }
}

#[test]
fn branch_starts_moments_of_unshared_parameters_at_zero() {
    let of = |model: &str| config(&format!("placement = \"pre-norm\"\n{model}"), "");
    let other = of("moe = { n_experts = 8, top_k = 2, d_expert = 4 }");
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = branched(&of(MOE), &other, folder.path());
    trainer.save(&mut |_| {}).unwrap();
    let saved = Checkpoint::open(&folder.path().join("branch")).unwrap();
    let moments = saved.moments().unwrap();
    let is_zero = |name: &str| moments.read(name).unwrap().data.iter().all(|&x| x == 0.0);
    for field in ["experts.up", "experts.down", "router"] {
        let name = format!("blocks.0.feed_forward.{field}");
        assert!(trainer.new_parameters().contains(&name), "{name}");
        assert!(is_zero(&format!("m.{name}")), "{name}");
    }
    assert!(!is_zero("m.blocks.0.attention.qkv"));
}

#[test]
fn branch_to_unit_weights_normalizes_initial_weights() {
    let [from, to] = ["pre-norm", "ngpt"].map(|name| {
        let model = format!("placement = \"{name}\"\nd_ff = 24");
        config(&model, "weight_decay = 0.0")
    });
    let folder = tempfile::tempdir().unwrap();
    let trainer = branched(&from, &to, folder.path());
    let embedding = &trainer.model().values()["embedding"];
    for row in embedding.data.chunks(16) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
    }
}
