//! Train a placement of your own on tokens in memory, without TOML and without tokenizers:
//! `cargo run --release --no-default-features --features model --example custom_placement`.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use hybridnorm::data::TokenDataset;
use hybridnorm::placement::{Explanation, Formula, Scale, named};
use hybridnorm::train::{
    Config, Event, ModelSection, OptimizerConfig, Start, TrainSection, Trainer, TrainingData,
};
use hybridnorm::{Device, Result, threads};

fn main() -> Result<()> {
    // HybridNorm whose feed-forward branch shrinks with depth, as 1/√l.
    let mut placement = named("hybridnorm")?;
    placement.block.ffn.out_scale = Scale::Formula(Formula::InvSqrtLayer);
    println!("{}", Explanation::of(&placement)?.to_text());

    let model = ModelSection::new(placement)
        .with_d_model(64)
        .with_n_layers(2)
        .with_n_heads(4)
        .with_d_ff(128);
    let config = Config::default()
        .with_model(model)
        .with_optimizer(OptimizerConfig::default().with_lr(3e-3))
        .with_train(TrainSection::default().with_steps(100).with_seq_len(32));

    // Counts upwards in steps of 3, modulo 64.
    let tokens: Vec<u32> = (0..20_000).map(|i| i * 3 % 64).collect();
    let (train, validation) = tokens.split_at(18_000);
    let dataset = |tokens| TokenDataset::from_tokens(tokens, 32, 64);
    let data = TrainingData::new(&config, dataset(train)?, Some(dataset(validation)?));

    let mut on_event = |event: Event<'_>| {
        if let Event::Evaluated { step, loss } = event {
            println!("step {step}: validation loss {:.3} nats", loss.loss);
        }
    };
    let (run, start) = (Path::new("runs/custom-placement"), Start::ResumeOrFresh);
    threads::run(|| {
        Trainer::open_with_data(config, data, run, start, Device::Cpu, &mut on_event)?
            .run(&AtomicBool::new(false), &mut on_event)
            .map(drop)
    })
}
