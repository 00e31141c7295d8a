//! Put one HybridNorm block into a Burn model of your own and train it with Burn's optimizer.
//!
//! ```sh
//! cargo run --release --example block_in_your_model
//! ```

use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor};
use hybridnorm::Result;
use hybridnorm::model::{Block, FfnActivation, ModelConfig, Positions};
use hybridnorm::placement;

/// A regressor over sequences of vectors: one of our blocks, then a projection of yours.
#[derive(Module, Debug)]
struct Regressor {
    block: Block,
    out: Param<Tensor<2>>,
}

impl Regressor {
    fn forward(&self, x_btd: Tensor<3>, positions: &Positions) -> Tensor<2> {
        let y = self.block.forward(x_btd, positions, None);
        let [b, t, d] = y.dims();
        let last = y.narrow(1, t - 1, 1).reshape([b, d]);
        last.matmul(self.out.val())
    }
}

fn main() -> Result<()> {
    let config = ModelConfig {
        d_model: 32,
        n_layers: 1,
        n_heads: 4,
        n_kv_heads: 2,
        d_ff: 88,
        vocab_size: 1, // a block has no vocabulary
        max_seq_len: 16,
        rope_theta: 10_000.0,
        tie_embeddings: true,
        activation: FfnActivation::Swiglu,
        moe: None,
        mla: None,
        placement: placement::named("hybridnorm")?,
    };
    let device = Device::flex().autodiff();
    let positions = Positions::first(&config, 16);
    let out = Tensor::random([32, 1], Distribution::Normal(0.0, 0.1), &device);
    let mut model = Regressor {
        block: Block::of(&config, 0, 7, &device)?,
        out: Param::from_tensor(out),
    };

    let mut optimizer = AdamWConfig::new().init();

    // Learn to say whether the mean of the first channel is positive.
    let x = Tensor::<3>::random([64, 16, 32], Distribution::Normal(0.0, 1.0), &device);
    let y = x
        .clone()
        .narrow(2, 0, 1)
        .mean_dim(1)
        .reshape([64, 1])
        .sign();
    for step in 0..=100 {
        let loss = (model.forward(x.clone(), &positions) - y.clone())
            .square()
            .mean();
        if step % 25 == 0 {
            println!("step {step}: loss {:.4}", loss.clone().into_scalar::<f32>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(3e-3, model, gradients);
    }
    Ok(())
}
