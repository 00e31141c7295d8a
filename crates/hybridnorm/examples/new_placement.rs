//! Define a new placement, read its equations, and build a model with it.
//!
//! ```sh
//! cargo run --release --example new_placement
//! ```

use hybridnorm::Result;
use hybridnorm::model::{Decoder, ModelConfig};
use hybridnorm::placement::{self, Explanation};
use serde_json::json;

fn main() -> Result<()> {
    // HybridNorm with branches that shrink with depth, and a last block that is Pre-Norm with norms on q, k and v.
    let placement = placement::from_value(json!({
        "base": "hybridnorm",
        "block": {
            "attn": { "out_scale": "inv_sqrt_layer" },
            "ffn": { "out_scale": "inv_sqrt_layer" },
        },
        "overrides": [
            { "layers": { "last": 1 }, "set": { "attn": { "in_norm": true }, "ffn": { "skip": "raw" } } },
        ],
    }))?;
    println!("{}", Explanation::of(&placement)?.to_text());

    let config = ModelConfig::default()
        .with_d_model(64)
        .with_n_layers(4)
        .with_n_heads(4)
        .with_n_kv_heads(2)
        .with_d_ff(176)
        .with_vocab_size(256)
        .with_max_seq_len(128)
        .with_tie_embeddings(true)
        .with_placement(placement);
    let model = Decoder::new(&config)?;
    println!("{} parameter tensors", model.registry().iter().len());
    Ok(())
}
