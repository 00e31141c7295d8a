//! Put one HybridNorm block into your own graph and train it: a sequence classifier that learns to predict whether
//! the mean of the first channel is positive.
//!
//! ```sh
//! cargo run --release --example block_in_your_model
//! ```

use hybridnorm::exec::{Cpu, Executor, TensorRef};
use hybridnorm::graph::{Buffer, Builder, DType, Type, Value};
use hybridnorm::model::{Block, ModelConfig, PositionContext, Registry, Residual};
use hybridnorm::ops::{self, AdamW, Arguments};
use hybridnorm::plan::{Options, Program};
use hybridnorm::{Result, passes, placement, threads};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Batch size.
const B: usize = 256;
/// Sequence length.
const T: usize = 16;
/// Channels per position.
const D: usize = 32;

fn main() -> Result<()> {
    threads::run(train)
}

fn train() -> Result<()> {
    let config = ModelConfig::default()
        .with_d_model(D)
        .with_n_layers(1)
        .with_n_heads(4)
        .with_n_kv_heads(2)
        .with_d_ff(88)
        .with_vocab_size(1) // a block has no vocabulary
        .with_max_seq_len(T)
        .with_placement(placement::named("hybridnorm")?);

    // Parameters: one HybridNorm block, and your own projection to two classes.
    let mut registry = Registry::default();
    let block = Block::declare(&config, 0, &mut registry)?;
    let projection = registry.declare_matrix("projection", [2, D], 0.1);

    // Storage: the parameters in the first buffer, their moments in two more.
    let mut cpu = Cpu::new();
    let mut buffer = || cpu.allocate(DType::F32, registry.elements());
    let [parameters, m, v] = [buffer()?, buffer()?, buffer()?];
    for spec in registry.iter() {
        spec.initialize(7, |at, values| {
            cpu.write(parameters, spec.offset + at, TensorRef::F32(values));
        });
    }

    // The forward pass: block, last position, projection, loss.
    let g = Builder::new();
    let x = g.input("x", Type::f32([B, T, D]));
    let y = g.input("y", Type::i32([B]));
    let input = Residual { x, y: None };
    let output = block.forward(input, &PositionContext::from_start(&g, &config, 0, T));
    let last = ops::last_position(output.residual.x);
    let logits = ops::linear(last, projection.value(&g));
    let [loss, _] = ops::cross_entropy(logits, y, 0.0, B as f64);

    add_update(&registry, [parameters, m, v], loss);

    // One program for the whole step.
    let loss = loss.id();
    let step = Program::new(g.finish(), &[loss], Options::default());
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for index in 0..=200 {
        let (x, y) = batch(&mut random);
        let arguments = Arguments {
            lr: 3e-3,
            step: index + 1,
            ..Arguments::default()
        };
        let inputs = [("x", TensorRef::F32(&x)), ("y", TensorRef::I32(&y))];
        cpu.run(&step, arguments, &inputs)?;
        if index % 25 == 0 {
            let loss = cpu.output(&step, loss).into_f32()[0];
            println!("step {index}: loss {loss:.3}");
        }
    }
    Ok(())
}

/// Adds the backward pass of the loss and an AdamW update to the graph of the loss. `buffers` hold the parameters
/// and their first and second moments.
fn add_update(registry: &Registry, buffers: [Buffer; 3], loss: Value) {
    let g = loss.builder();
    let params: Vec<_> = registry.handles().map(|(param, _)| param).collect();
    let values: Vec<_> = params.iter().map(|param| param.value(g)).collect();
    let gradients: Option<Vec<_>> = passes::gradients(loss, &values).into_iter().collect();
    let gradients = gradients.expect("the loss depends on every parameter");
    let squares = ops::squared_norms(g, &gradients);
    let parameters = params.iter().zip(gradients).map(|(param, gradient)| {
        let [p, m, v] = buffers.map(|buffer| param.value_in(buffer, g));
        [gradient, p, m, v]
    });
    let op = AdamW {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        max_grad_norm: 1.0,
        weight_decay: vec![0.0; params.len()],
    };
    ops::adamw(op, loss, squares, &parameters.collect::<Vec<_>>());
}

/// Draws sequences, and their classes.
fn batch(random: &mut ChaCha8Rng) -> (Vec<f32>, Vec<i32>) {
    let numbers = StandardNormal.sample_iter(random).take(B * T * D);
    let x: Vec<f32> = numbers.collect();
    let is_positive = |x: &[f32]| i32::from(x.iter().step_by(D).sum::<f32>() > 0.0);
    let y = x.chunks(T * D).map(is_positive).collect();
    (x, y)
}
