//! Train a model on text from Rust and generate text: `cargo run --release --example train_from_rust`.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use hybridnorm::eval::{self, Sampling};
use hybridnorm::train::{
    Config, DataSection, Event, ModelSection, OptimizerConfig, Start, TrainSection, Trainer,
};
use hybridnorm::{Device, Result, threads};

fn main() -> Result<()> {
    threads::run(train_and_generate)
}

fn train_and_generate() -> Result<()> {
    let model = ModelSection::new("hybridnorm-star")
        .with_d_model(96)
        .with_n_layers(3)
        .with_n_heads(4)
        .with_d_ff(256);
    let data = DataSection::default()
        .with_train(vec!["stories:2000".into()])
        .with_tokenizer("bpe:1024");
    let train = TrainSection::default()
        .with_steps(150)
        .with_seq_len(64)
        .with_eval_every(50);
    let config = Config::default()
        .with_model(model)
        .with_data(data)
        .with_optimizer(OptimizerConfig::default().with_lr(3e-3))
        .with_train(train);
    let mut on_event = |event: Event<'_>| {
        if let Event::Evaluated { step, loss } = event {
            println!("step {step}: validation loss {:.3} nats", loss.loss);
        }
    };
    // Resumes where an earlier call stopped.
    let (run, start) = (Path::new("runs/from-rust"), Start::ResumeOrFresh);
    let mut trainer = Trainer::open(config, run, start, Device::Cpu, &mut on_event)?;
    trainer.run(&AtomicBool::new(false), &mut on_event)?;
    let tokenizer = trainer.tokenizer().expect("the data are text").clone();
    let model = trainer.model_mut();
    let text = eval::generate_text(model, &tokenizer, "One day", 60, Sampling::default())?;
    println!("One day{text}");
    Ok(())
}
