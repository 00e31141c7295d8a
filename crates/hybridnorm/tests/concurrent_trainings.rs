//! Training runs in one process share no state: each is bit-identical to the same run alone, whatever the other runs
//! and for any numbers of threads.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Barrier;

use hybridnorm::tensors::HostTensor;
use hybridnorm::train::{Config, Start, Trainer};
use hybridnorm::{Device, threads};

const STEPS: usize = 4;
const DENSE: &str = "d_ff = 96";
const MOE: &str =
    "moe = { n_experts = 4, top_k = 2, d_expert = 32, n_shared = 1, bias_rate = 0.01 }";

/// Returns a model large enough for its kernels to run on several threads.
fn config(feed_forward: &str, seed: u64) -> Config {
    let text = format!(
        "seed = {seed}\n\
         [model]\nd_model = 64\nn_layers = 2\nn_heads = 4\nplacement = \"hybridnorm\"\n{feed_forward}\n\
         [data]\ntrain = [\"stories:40\"]\ntokenizer = \"bytes\"\n\
         [optimizer]\nlr = 1e-2\n\
         [train]\nsteps = {STEPS}\nbatch_size = 8\nseq_len = 32\ngrad_accum_steps = 2\n\
         eval_every = 0\neval_sequences = 2\ncheckpoint_every = 0\nkeep_checkpoints = 1\n"
    );
    Config::parse(&text, &[]).unwrap()
}

fn open(config: &Config, run: &Path) -> Trainer {
    Trainer::open(config.clone(), run, Start::Fresh, Device::Cpu, &mut |_| {}).unwrap()
}

/// Losses and final weights of a training.
#[derive(Debug, PartialEq)]
struct TrainingResult {
    losses: Vec<f64>,
    weights: BTreeMap<String, HostTensor>,
}

impl TrainingResult {
    fn of(trainer: &Trainer, losses: Vec<f64>) -> Self {
        Self {
            losses,
            weights: trainer.model().values(),
        }
    }
}

/// Trains on one thread, with nothing else running in the process.
fn train_sequentially(config: &Config) -> TrainingResult {
    let folder = tempfile::tempdir().unwrap();
    threads::pool(1).unwrap().install(|| {
        let mut trainer = open(config, &folder.path().join("run"));
        let losses = (0..STEPS).map(|_| trainer.step().unwrap().metrics.loss);
        let losses = losses.collect();
        TrainingResult::of(&trainer, losses)
    })
}

#[test]
fn concurrent_runs_with_different_thread_counts() {
    let configs = [config(DENSE, 3), config(MOE, 3)];
    let expected = configs.each_ref().map(train_sequentially);
    for threads in [[1, 2], [2, 1]] {
        let folder = tempfile::tempdir().unwrap();
        let begin = Barrier::new(2);
        // Steps start together, even if one training is faster.
        let train = |mut trainer: Trainer, threads: usize| {
            let pool = threads::pool(threads).unwrap();
            let steps: Vec<_> = (0..STEPS)
                .map(|_| {
                    begin.wait();
                    pool.install(|| (threads::count(), trainer.step()))
                })
                .collect();
            let losses = steps.into_iter().map(|(count, step)| {
                assert_eq!(count, threads);
                step.unwrap().metrics.loss
            });
            let losses = losses.collect();
            TrainingResult::of(&trainer, losses)
        };
        let found = std::thread::scope(|scope| {
            let train = &train;
            let trainers = ["first", "second"].map(|run| folder.path().join(run));
            let [first, second] = [0, 1].map(|i| open(&configs[i], &trainers[i]));
            let first = scope.spawn(move || train(first, threads[0]));
            let second = scope.spawn(move || train(second, threads[1]));
            [first.join().unwrap(), second.join().unwrap()]
        });
        assert!(found == expected, "{threads:?} threads");
    }
}

#[test]
fn interleaved_runs() {
    for feed_forward in [DENSE, MOE] {
        // Equal shapes, so that a buffer or a program of one would fit the other.
        let configs = [config(feed_forward, 3), config(feed_forward, 4)];
        let expected = configs.each_ref().map(train_sequentially);
        assert!(expected[0].weights != expected[1].weights);
        let folder = tempfile::tempdir().unwrap();
        let mut trainers = [0, 1].map(|i| open(&configs[i], &folder.path().join(i.to_string())));
        let mut losses = [Vec::new(), Vec::new()];
        for _ in 0..STEPS {
            for (trainer, losses) in trainers.iter_mut().zip(&mut losses) {
                losses.push(trainer.step().unwrap().metrics.loss);
            }
        }
        for ((trainer, losses), expected) in trainers.iter().zip(losses).zip(expected) {
            assert!(
                TrainingResult::of(trainer, losses) == expected,
                "{feed_forward}"
            );
        }
    }
}
