//! Times training steps of a decoder in Burn, written the way its users write one.
//!
//! Burn's own modules and functions. Of Burn's backends for the CPU `flex` is the faster: `ndarray`
//! took 1.3 times as long for a step at the defaults below. The allocator is the one that
//! `hybridnorm` uses: with glibc's a step took 1.3 times as long, in 0.8 times the memory. Burn's
//! optimizer clips the gradient of each parameter by its own norm, not by the norm of all.
//!
//! Prints one JSON line. Run it through `compare.py`.

use std::time::{Duration, Instant};

use burn::grad_clipping::GradientClippingConfig;
use burn::module::{Initializer, Module};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{
    Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig, RotaryEncoding,
    RotaryEncodingConfig, SwiGlu, SwiGluConfig,
};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Distribution, Int, Tensor};
use clap::{Parser, ValueEnum};
use mimalloc::MiMalloc;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Placement {
    #[value(name = "hybridnorm")]
    HybridNorm,
    PreNorm,
}

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 128)]
    d: usize,
    #[arg(long, default_value_t = 4)]
    layers: usize,
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// 0 for as many as there are heads
    #[arg(long, default_value_t = 0)]
    kv_heads: usize,
    #[arg(long, default_value_t = 344)]
    ff: usize,
    #[arg(long, default_value_t = 4096)]
    vocab: usize,
    #[arg(long, default_value_t = 128)]
    seq: usize,
    #[arg(long, default_value_t = 16)]
    batch: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, value_enum, default_value = "hybridnorm")]
    placement: Placement,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

impl Args {
    fn head_dim(&self) -> usize {
        self.d / self.heads
    }

    fn initializer(&self) -> Initializer {
        let std = (2.5 * self.d as f64).powf(-0.5);
        Initializer::Normal { mean: 0.0, std }
    }

    fn linear(&self, from: usize, to: usize, device: &Device) -> Linear {
        LinearConfig::new(from, to)
            .with_bias(false)
            .with_initializer(self.initializer())
            .init(device)
    }
}

#[derive(Module, Debug)]
struct Attention {
    qkv: Linear,
    out: Linear,
    norms: Option<[RmsNorm; 3]>,
    heads: usize,
    kv_heads: usize,
}

impl Attention {
    fn new(a: &Args, device: &Device) -> Self {
        let kv_heads = if a.kv_heads == 0 { a.heads } else { a.kv_heads };
        let k = a.head_dim();
        let norm = || RmsNormConfig::new(k).init(device);
        Self {
            qkv: a.linear(a.d, (a.heads + 2 * kv_heads) * k, device),
            out: a.linear(a.heads * k, a.d, device),
            norms: (a.placement == Placement::HybridNorm).then(|| [norm(), norm(), norm()]),
            heads: a.heads,
            kv_heads,
        }
    }

    fn forward(&self, x: Tensor<3>, rotary: &RotaryEncoding) -> Tensor<3> {
        let [b, t, _] = x.dims();
        let (h, g) = (self.heads, self.kv_heads);
        let qkv = self.qkv.forward(x);
        let k = qkv.dims()[2] / (h + 2 * g);
        let qkv = qkv.reshape([b, t, h + 2 * g, k]).swap_dims(1, 2);
        let [mut q, mut key, mut v] = [(0, h), (h, g), (h + g, g)]
            .map(|(start, length)| qkv.clone().narrow(1, start, length));
        if let Some([of_q, of_key, of_v]) = &self.norms {
            (q, key, v) = (of_q.forward(q), of_key.forward(key), of_v.forward(v));
        }
        let (q, key) = (rotary.forward(q), rotary.forward(key));
        let repeat = |x: Tensor<4>| match h / g {
            1 => x,
            n => x
                .unsqueeze_dim::<5>(2)
                .expand([b, g, n, t, k])
                .reshape([b, h, t, k]),
        };
        let (key, v) = (repeat(key), repeat(v));
        let scores = q.matmul(key.swap_dims(2, 3)) * (k as f64).powf(-0.5);
        let mask = Tensor::<2, Bool>::tril_mask([t, t], 0, &scores.device());
        let weights = softmax(scores.mask_fill(mask.unsqueeze(), f32::NEG_INFINITY), 3);
        let o = weights.matmul(v);
        self.out.forward(o.swap_dims(1, 2).reshape([b, t, h * k]))
    }
}

#[derive(Module, Debug)]
struct FeedForward {
    up: SwiGlu,
    down: Linear,
}

impl FeedForward {
    fn new(a: &Args, device: &Device) -> Self {
        let up = SwiGluConfig::new(a.d, a.ff).with_initializer(a.initializer());
        Self {
            up: up.init(device),
            down: a.linear(a.ff, a.d, device),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.down.forward(self.up.forward(x))
    }
}

#[derive(Module, Debug)]
struct Block {
    attn: Attention,
    ffn: FeedForward,
    attn_norm: Option<RmsNorm>,
    ffn_norm: RmsNorm,
}

impl Block {
    fn new(a: &Args, device: &Device) -> Self {
        let norm = || RmsNormConfig::new(a.d).init(device);
        Self {
            attn: Attention::new(a, device),
            ffn: FeedForward::new(a, device),
            attn_norm: (a.placement == Placement::PreNorm).then(norm),
            ffn_norm: norm(),
        }
    }

    fn forward(&self, x: Tensor<3>, rotary: &RotaryEncoding) -> Tensor<3> {
        match &self.attn_norm {
            Some(norm) => {
                let y = x.clone() + self.attn.forward(norm.forward(x), rotary);
                y.clone() + self.ffn.forward(self.ffn_norm.forward(y))
            }
            None => {
                let y = x.clone() + self.attn.forward(x, rotary);
                let z = self.ffn_norm.forward(y);
                z.clone() + self.ffn.forward(z)
            }
        }
    }
}

#[derive(Module, Debug)]
struct Decoder {
    embed: Embedding,
    rotary: RotaryEncoding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

impl Decoder {
    fn new(a: &Args, device: &Device) -> Self {
        Self {
            embed: EmbeddingConfig::new(a.vocab, a.d)
                .with_initializer(a.initializer())
                .init(device),
            rotary: RotaryEncodingConfig::new(a.seq, a.head_dim()).init(device),
            blocks: (0..a.layers).map(|_| Block::new(a, device)).collect(),
            norm: RmsNormConfig::new(a.d).init(device),
            head: a.linear(a.d, a.vocab, device),
        }
    }

    fn loss(&self, ids: Tensor<2, Int>, targets: Tensor<2, Int>) -> Tensor<1> {
        let mut x = self.embed.forward(ids);
        for block in &self.blocks {
            x = block.forward(x, &self.rotary);
        }
        let logits: Tensor<2> = self.head.forward(self.norm.forward(x)).flatten(0, 1);
        let loss = CrossEntropyLossConfig::new().init(&logits.device());
        loss.forward(logits, targets.flatten(0, 1))
    }
}

fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let a = Args::parse();
    rayon::ThreadPoolBuilder::new()
        .num_threads(a.threads)
        .build_global()?;
    let device = Device::flex().autodiff();
    device.seed(1);
    let mut model = Decoder::new(&a, &device);
    let mut optimizer = AdamWConfig::new()
        .with_beta_2(0.95)
        .with_epsilon(1e-8)
        .with_weight_decay(0.1)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init();
    let words = Distribution::Uniform(0.0, a.vocab as f64);
    let tokens = Tensor::<2, Int>::random([a.batch, a.seq + 1], words, &device);
    let ids = tokens.clone().narrow(1, 0, a.seq);
    let targets = tokens.narrow(1, 1, a.seq);

    let mut step = |model: Decoder| {
        let loss = model.loss(ids.clone(), targets.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        (optimizer.step(3e-4, model, gradients), loss.detach())
    };
    let mut loss;
    (model, loss) = step(model);
    let first_loss = loss.into_scalar::<f32>();
    for _ in 0..2 {
        (model, _) = step(model);
    }
    let (mut times, begun) = (Vec::new(), Instant::now());
    loop {
        let start = Instant::now();
        (model, loss) = step(model);
        times.push(start.elapsed().as_secs_f64());
        if times.len() >= 5 && begun.elapsed() >= Duration::from_secs_f64(a.seconds) {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    let steps = times.len();
    let seconds = 0.5 * (times[(steps - 1) / 2] + times[steps / 2]);
    println!(
        "{}",
        json!({
            "name": "burn",
            "version": "0.22.1",
            "parameters": model.num_params(),
            "loss": [first_loss, loss.into_scalar::<f32>()],
            "steps": steps,
            "step_seconds": seconds,
            "tokens_per_second": (a.batch * a.seq) as f64 / seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        })
    );
    Ok(())
}
