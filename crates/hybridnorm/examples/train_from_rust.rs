//! Train a model from Rust and generate text: `cargo run --release --example train_from_rust`.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use hybridnorm::eval::{self, Sampling};
use hybridnorm::train::{Config, Event, Start, Trainer};
use hybridnorm::{Device, Result, threads};

const CONFIG: &str = r#"
    model = { d_model = 96, n_layers = 3, n_heads = 4, d_ff = 256, placement = "hybridnorm-star" }
    data = { train = ["stories:2000"], tokenizer = "bpe:1024" }
    optimizer.lr = 3e-3
    train = { steps = 150, seq_len = 64, eval_every = 50 }
"#;

fn main() -> Result<()> {
    threads::run(train_and_write)
}

fn train_and_write() -> Result<()> {
    let config = Config::parse(CONFIG, &[])?;
    let mut show = |event: Event<'_>| {
        if let Event::Evaluated { step, loss } = event {
            println!("step {step}: validation loss {:.3} nats", loss.loss);
        }
    };
    // Resumes where an earlier call stopped.
    let (run, device) = (Path::new("runs/from-rust"), Device::Cpu);
    let mut trainer = Trainer::open(config, run, Start::ResumeOrFresh, device, &mut show)?;
    trainer.run(&AtomicBool::new(false), &mut show)?;
    let tokenizer = trainer.tokenizer().expect("the data are text").clone();
    let model = trainer.model_mut();
    let text = eval::generate_text(model, &tokenizer, "One day", 60, Sampling::default())?;
    println!("One day{text}");
    Ok(())
}
