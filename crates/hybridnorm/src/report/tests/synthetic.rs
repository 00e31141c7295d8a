//! Synthetic study: deterministic numbers of realistic size and shape.

use std::collections::BTreeMap;

use super::analysis::{AnalysisRules, Outcome, RunOutcome, analyze, comparison_text, summary_text};
use super::layers::{
    ActivationStats, AttentionStats, BlockStats, LayerRecord, ParameterStats, finite_or_none,
};
use super::random::Random;
use super::record::{Cost, Curve, GridPoint, RunRecord, RunStatus, ValidationLoss};
use super::spikes::SpikeCounts;
use super::{DepthGrowth, Document, Group, ProbePlacement, ProbeReport, ProbeStep};

/// Blocks of every model.
const BLOCKS: usize = 6;
/// Steps of every run.
const STEPS: u64 = 1600;

/// A placement: name, hash, best loss, best learning rate, largest stable learning rate, growth of the
/// residual stream and of gradients per block, tokens per second, and the blocks' equations.
pub struct SyntheticPlacement {
    name: &'static str,
    hash: &'static str,
    loss: f64,
    best_lr: f64,
    largest_stable_lr: f64,
    residual_growth: f64,
    grad_growth: f64,
    tokens_per_second: f64,
    equations: &'static str,
}

/// Eight placements.
pub const PLACEMENTS: [SyntheticPlacement; 8] = [
    SyntheticPlacement {
        name: "pre-norm",
        hash: "a229c0b6e6c6e877",
        loss: 3.452,
        best_lr: 3e-3,
        largest_stable_lr: 1.2e-2,
        residual_growth: 1.25,
        grad_growth: 0.88,
        tokens_per_second: 48_012.0,
        equations: "  Y  = X + A(N(X))\n  X′ = Y + F(N(Y))",
    },
    SyntheticPlacement {
        name: "post-norm",
        hash: "0c66894167fa92d6",
        loss: 3.498,
        best_lr: 1e-3,
        largest_stable_lr: 2e-3,
        residual_growth: 1.0,
        grad_growth: 1.6,
        tokens_per_second: 48_530.0,
        equations: "  Y  = N(X + A(X))\n  X′ = N(Y + F(Y))",
    },
    SyntheticPlacement {
        name: "hybridnorm",
        hash: "a62977297bdb054b",
        loss: 3.431,
        best_lr: 3e-3,
        largest_stable_lr: 1e-1,
        residual_growth: 1.02,
        grad_growth: 1.05,
        tokens_per_second: 47_100.0,
        equations: "  Y  = X + A_QKV(X)\n  Z  = N(Y)\n  X′ = Z + F(Z)",
    },
    SyntheticPlacement {
        name: "hybridnorm-star",
        hash: "f829ce781f6d29f4",
        loss: 3.422,
        best_lr: 1e-2,
        largest_stable_lr: 1e-1,
        residual_growth: 1.03,
        grad_growth: 1.02,
        tokens_per_second: 47_030.0,
        equations: "  Y  = X + A_QKV(X)\n  Z  = N(Y)\n  X′ = Z + F(Z)",
    },
    SyntheticPlacement {
        name: "pre-norm-qk",
        hash: "1d5629236c4ff8d7",
        loss: 3.446,
        best_lr: 3e-3,
        largest_stable_lr: 4e-2,
        residual_growth: 1.22,
        grad_growth: 0.9,
        tokens_per_second: 47_390.0,
        equations: "  Y  = X + A_QK(N(X))\n  X′ = Y + F(N(Y))",
    },
    SyntheticPlacement {
        name: "sandwich",
        hash: "b22a1754c3d29a91",
        loss: 3.441,
        best_lr: 3e-3,
        largest_stable_lr: 4e-2,
        residual_growth: 1.12,
        grad_growth: 0.97,
        tokens_per_second: 45_020.0,
        equations: "  Y  = X + N₂(A(N₁(X)))\n  X′ = Y + N₄(F(N₃(Y)))",
    },
    SyntheticPlacement {
        name: "olmo2",
        hash: "763f4fe3d6e2bc54",
        loss: 3.449,
        best_lr: 3e-3,
        largest_stable_lr: 4e-2,
        residual_growth: 1.1,
        grad_growth: 1.0,
        tokens_per_second: 46_440.0,
        equations: "  Y  = X + N(A_QK(X))\n  X′ = Y + N(F(Y))",
    },
    SyntheticPlacement {
        name: "mix-ln",
        hash: "6bf42b66f2172fb6",
        loss: 3.461,
        best_lr: 3e-3,
        largest_stable_lr: 1.2e-2,
        residual_growth: 1.18,
        grad_growth: 1.1,
        tokens_per_second: 48_150.0,
        equations: "  Y  = N(X + A(X))\n  X′ = N(Y + F(Y))",
    },
];

/// Learning rates of the study.
pub const LEARNING_RATES: [f64; 5] = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2];

/// Returns a study of 8 placements at 5 learning rates with 3 seeds; some runs diverge.
pub fn study() -> Document {
    let runs = runs(3, None);
    Document {
        planned: None,
        title: "Placements on Gutenberg, 1.3M parameters".to_owned(),
        created: "2026-11-25".to_owned(),
        version: "0.1.0".to_owned(),
        groups: vec![group("", None, &runs)],
        data_groups: Vec::new(),
        runs: runs.into_iter().map(Into::into).collect(),
        probe: None,
    }
}

/// Returns a study of two initializations, with three placements and two seeds each.
pub fn two_groups() -> Document {
    let mut document = study();
    document.runs = [Some("megatron"), Some("own")]
        .into_iter()
        .flat_map(|init| runs(2, init))
        .filter(|run| {
            ["pre-norm", "hybridnorm", "olmo2"].contains(&run.grid_point.placement.as_str())
        })
        .map(Into::into)
        .collect();
    document.groups = ["megatron", "own"]
        .map(|init| {
            let runs: Vec<RunRecord> = (document.runs.iter())
                .filter(|run| run.grid_point.init.as_deref() == Some(init))
                .map(|run| run.record.clone())
                .collect();
            group(&format!("initialization {init}"), Some(init), &runs)
        })
        .into();
    document
}

/// Returns a probe of 8 placements at two steps, without runs.
pub fn probe() -> Document {
    Document {
        planned: None,
        title: "Probe of eight placements".to_owned(),
        groups: Vec::new(),
        runs: Vec::new(),
        probe: Some(probe_report()),
        ..study()
    }
}

/// Returns a probe report of eight placements at two steps.
pub fn probe_report() -> ProbeReport {
    let measured_step = |position: usize, placement: &SyntheticPlacement, step: u64| {
        let mut random = Random::of(&[7, position as u64, step]);
        let layers = layers(placement, step, 3e-3, &mut random);
        let depth = (BLOCKS - 1) as i32;
        ProbeStep {
            step,
            loss: 7.62 - 0.4 * (step as f64).ln() + random.normal(0.01),
            layers,
            stream_grad: (0..BLOCKS)
                .map(|block| {
                    finite_or_none(
                        0.1 * placement.grad_growth.powi(block as i32)
                            * (1.0 + random.normal(0.05)),
                    )
                })
                .collect(),
            growth: DepthGrowth {
                stream: finite_or_none(placement.residual_growth.powi(depth)),
                grad: finite_or_none(placement.grad_growth.powi(depth)),
                grad_spread: finite_or_none(
                    placement
                        .grad_growth
                        .powi(depth)
                        .max(placement.grad_growth.powi(-depth))
                        * 1.1,
                ),
                stream_grad: finite_or_none(placement.grad_growth.powi(depth)),
            },
        }
    };
    ProbeReport {
        config: config(&PLACEMENTS[0], 3e-3, 1),
        data: None,
        omissions: Default::default(),
        steps: 10,
        placements: (PLACEMENTS.iter().enumerate())
            .map(|(position, placement)| ProbePlacement {
                placement: placement.name.to_owned(),
                placement_hash: placement.hash.to_owned(),
                equations: equations(placement),
                measured_steps: [1, 10]
                    .map(|step| measured_step(position, placement, step))
                    .into(),
                diverged: None,
            })
            .collect(),
    }
}

fn group(name: &str, init: Option<&str>, runs: &[RunRecord]) -> Group {
    let run_outcomes: Vec<RunOutcome> = (runs.iter())
        .map(|run| RunOutcome {
            placement: run.grid_point.placement.clone(),
            lr: run.grid_point.lr,
            seed: run.grid_point.seed,
            outcome: match (&run.status, run.validation_loss) {
                (RunStatus::Finished, Some(loss)) => Outcome::Loss(loss),
                (RunStatus::Eliminated { .. }, _) => Outcome::Eliminated,
                _ => Outcome::Diverged,
            },
            tokens_per_second: run.cost.tokens_per_second,
            spikes: run.spikes.loss,
        })
        .collect();
    let analysis = analyze(&run_outcomes, &AnalysisRules::default());
    Group {
        name: name.to_owned(),
        init: init.map(str::to_owned),
        depth: None,
        summary: summary_text(&analysis),
        sentences: (analysis.placements.iter())
            .map(|placement| comparison_text(placement, &analysis) + ".")
            .collect(),
        without_checksum: 0,
        caveats: Vec::new(),
        analysis,
    }
}

fn runs(seeds: u64, init: Option<&str>) -> Vec<RunRecord> {
    let mut runs = Vec::new();
    for (position, placement) in PLACEMENTS.iter().enumerate() {
        for (lr_index, &lr) in LEARNING_RATES.iter().enumerate() {
            for seed in 1..=seeds {
                let parts = [
                    position as u64,
                    lr_index as u64,
                    seed,
                    init.map_or(0, str::len) as u64,
                ];
                runs.push(run(placement, lr, seed, init, Random::of(&parts)));
            }
        }
    }
    runs
}

fn run(
    placement: &SyntheticPlacement,
    lr: f64,
    seed: u64,
    init: Option<&str>,
    mut random: Random,
) -> RunRecord {
    let relative_lr = lr / placement.largest_stable_lr * (1.0 + random.normal(0.35));
    let final_loss = final_loss(placement, lr, seed, &mut random);
    let diverged_at = (relative_lr > 1.0).then(|| 80 + (400.0 * random.next()) as u64);
    let (end, finished) = (diverged_at.unwrap_or(STEPS), diverged_at.is_none());
    let reason = "training loss above the unigram loss for 50 steps".to_owned();
    let diverged = |step| RunStatus::Diverged { step, reason };
    let status = diverged_at.map_or(RunStatus::Finished, diverged);
    let curve = curve(final_loss, end, finished, &mut random);
    let id = format!("{:016x}", (random.next() * u64::MAX as f64) as u64);
    RunRecord {
        id,
        grid_point: GridPoint {
            placement: placement.name.to_owned(),
            lr,
            seed,
            init: init.map(str::to_owned),
            depth: None,
        },
        config: config(placement, lr, seed),
        placement_hash: placement.hash.to_owned(),
        equations: equations(placement),
        data: "sha256:5f1c0e7a9b3d".to_owned(),
        validation_data: None,
        parameters: 1_312_896,
        active_parameters: None,
        steps: end,
        tokens: end * 2048,
        validation_loss: finished.then_some(final_loss),
        tasks: BTreeMap::new(),
        train_loss: finished.then_some(final_loss - 0.03),
        max_grad_norm: match finished {
            true => 3.0 + 4.0 * random.next(),
            false => 180.0,
        },
        spikes: spikes(relative_lr, &mut random),
        validation: match finished {
            true => validation_losses(final_loss),
            false => Vec::new(),
        },
        layers: (0..=20)
            .map(|part| (part * STEPS / 20).max(1))
            .filter(|step| *step <= end)
            .map(|step| layers(placement, step, lr, &mut random))
            .collect(),
        status,
        curve,
        cost: cost(placement, end, &mut random),
    }
}

/// Returns the loss after all steps, which rises with the distance from the best learning rate.
fn final_loss(placement: &SyntheticPlacement, lr: f64, seed: u64, random: &mut Random) -> f64 {
    let seed_effect = Random::of(&[99, seed]).normal(0.006);
    let off = (lr / placement.best_lr).log10();
    placement.loss
        + 0.11 * off.powi(2)
        + 0.05 * off.max(0.0).powi(3)
        + seed_effect
        + random.normal(0.0025)
}

fn spikes(relative_lr: f64, random: &mut Random) -> SpikeCounts {
    SpikeCounts {
        loss: (relative_lr > 0.4) as u64 * (3.0 * random.next()) as u64,
        grad_norm: (relative_lr > 0.3) as u64 * (9.0 * random.next()) as u64,
        update_norm: (relative_lr > 0.3) as u64 * (3.0 * random.next()) as u64,
    }
}

/// Returns the four evaluations of a finished run.
fn validation_losses(final_loss: f64) -> Vec<ValidationLoss> {
    (1..=4)
        .map(|part| part * STEPS / 4)
        .map(|step| ValidationLoss {
            step,
            loss: loss_at(final_loss, step) + 0.02 * (1.0 - step as f64 / STEPS as f64),
        })
        .collect()
}

fn cost(placement: &SyntheticPlacement, steps: u64, random: &mut Random) -> Cost {
    Cost {
        tokens_per_second: placement.tokens_per_second * (1.0 + random.normal(0.01)),
        seconds: steps as f64 * 2048.0 / placement.tokens_per_second,
        estimated_memory_bytes: None,
        peak_memory_bytes: Some(((158.0 + placement.residual_growth * 12.0) * 1_048_576.0) as u64),
        machine: Some("AMD EPYC 9V45".to_owned()),
        bf16_unit: None,
        threads: Some(2),
        version: Some("0.1.0".to_owned()),
    }
}

/// Returns the loss at a step of a curve whose final loss is `last`.
fn loss_at(last: f64, step: u64) -> f64 {
    let share = step as f64 / STEPS as f64;
    last + (7.6 - last) * ((1.0 - share) / (1.0 + 14.0 * share)).powf(1.15)
}

fn curve(last: f64, end: u64, finished: bool, random: &mut Random) -> Curve {
    let mut curve = Curve::default();
    for step in (8..=end).step_by(8) {
        let left = (end - step) as f64;
        let burst = if finished {
            0.0
        } else {
            4.0 * (-left / 30.0).exp()
        };
        curve.step.push(step);
        curve
            .loss
            .push((loss_at(last, step) + burst + random.normal(0.02)) as f32);
        let norm = 0.4 + 3.0 / (1.0 + step as f64 / 40.0) + 9.0 * burst;
        curve
            .grad_norm
            .push((norm * (1.0 + random.normal(0.08))) as f32);
        curve.update_norm.push((0.05 + random.next() * 0.01) as f32);
    }
    curve
}

fn layers(placement: &SyntheticPlacement, step: u64, lr: f64, random: &mut Random) -> LayerRecord {
    let time = 1.0 + step as f64 / 200.0;
    let mut activation_stats = |value: f64| {
        let value = value * (1.0 + random.normal(0.06));
        ActivationStats {
            rms: finite_or_none(value),
            max: finite_or_none(5.0 * value),
        }
    };
    let blocks = (0..BLOCKS).map(|block| {
        let depth = block as i32;
        let grow = placement.residual_growth.powi(depth);
        let stream = activation_stats(0.3 * grow * time.sqrt());
        let attn = activation_stats(0.08 * grow);
        let ffn = activation_stats(0.12 * grow);
        let logits = activation_stats(1.5 * time.sqrt() * placement.largest_stable_lr.powf(-0.1));
        let entropy = activation_stats(4.0 / time.powf(0.15 + 0.02 * block as f64));
        let grad = 0.3 * placement.grad_growth.powi(depth) / time.sqrt();
        let labels = ["down", "norm", "out", "qkv", "up"];
        let by_label = |scale: f64| -> BTreeMap<String, Option<f32>> {
            (labels.iter().enumerate())
                .map(|(role, name)| {
                    (
                        (*name).to_owned(),
                        finite_or_none(scale * (1.0 + 0.1 * role as f64)),
                    )
                })
                .collect()
        };
        BlockStats {
            residual: stream,
            attn,
            ffn,
            attention: AttentionStats {
                max: logits.max,
                entropy: entropy.rms,
            },
            experts: None,
            parameters: ParameterStats {
                grad_norm: by_label(grad * activation_stats(1.0).rms.map_or(1.0, f64::from)),
                update_ratio: by_label(lr * (1.0 - 0.9 * step as f64 / STEPS as f64)),
                gain_drift: finite_or_none(lr * time * (1.0 + 0.1 * block as f64)),
            },
        }
    });
    let blocks = blocks.collect();
    let outside_blocks = ParameterStats {
        grad_norm: BTreeMap::from([("embedding".to_owned(), finite_or_none(0.2 / time))]),
        update_ratio: BTreeMap::from([("embedding".to_owned(), finite_or_none(lr))]),
        gain_drift: finite_or_none(lr * time),
    };
    LayerRecord {
        step,
        blocks,
        outside_blocks,
    }
}

fn equations(placement: &SyntheticPlacement) -> String {
    format!(
        "{}  (6 blocks of width 384, hash {})\n\nembedding\n  X₀ = E[token]\n\nblocks 1–6\n{}\nwhere\n  A(u) = W_O · \
         softmax(RoPE(q) RoPE(k)ᵀ / √hd) v,  q, k, v = W_q u, W_k u, W_v u\n  F(u) = W_down (φ(W_gate \
         u) ⊙ W_up u)\n\nhead\n  logits = W_head N(X_L)\n\nnorm\n  N(x) = g ⊙ x / √(mean(x²) + 1e-6)\n",
        placement.name, placement.hash, placement.equations
    )
}

fn config(placement: &SyntheticPlacement, lr: f64, seed: u64) -> String {
    format!(
        "seed = {seed}\n\n[model]\nd_model = 128\nn_layers = {BLOCKS}\nn_heads = 4\nn_kv_heads = \
         2\nd_ff = 344\nplacement = \"{}\"\nnorm = {{ eps = 1e-6 }}\ninit = {{ scheme = \"megatron\" \
         }}\n\n[data]\ntrain = [\"gutenberg\"]\ntokenizer = \"bpe:2048\"\n\n[optimizer]\nlr = \
         {lr:e}\n\n[schedule]\nkind = \"cosine\"\nwarmup_steps = 40\n\n[train]\nsteps = \
         {STEPS}\nbatch_size = 16\nseq_len = 128\n",
        placement.name
    )
}
