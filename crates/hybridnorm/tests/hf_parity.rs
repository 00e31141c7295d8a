//! Hugging Face model folders reproduce logits, loss, gradients and the greedy continuation of `transformers`
//! (`fixtures/hf`).

mod common;

use common::hf::modified_checkpoint;
use common::largest_difference;
use common::reference::*;
use hybridnorm::interop::huggingface;
use hybridnorm::model::Model;
use hybridnorm::plan::Options;
use hybridnorm::{Device, train};

/// Decodes greedily after `ids`, with a KV cache.
fn greedy(model: &mut Model, ids: &[i32], new: usize) -> Vec<i32> {
    let mut cache = model.new_cache(1, ids.len() + new).unwrap();
    let mut new_ids = ids.to_vec();
    let mut found = Vec::new();
    for _ in 0..new {
        let last = model.next_logits(&new_ids, &mut cache, false).unwrap();
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b]));
        new_ids = vec![best.unwrap() as i32];
        found.extend(&new_ids);
    }
    found
}

#[test]
fn logits_and_greedy_continuation_match_transformers() {
    for name in ["llama", "qwen3", "olmo2", "olmoe", "deepseek-v3"] {
        let folder = fixture(&format!("hf/{name}"));
        let mut model = huggingface::import(&folder, Device::Cpu).unwrap();
        let bytes = std::fs::read(folder.join("reference.safetensors")).unwrap();
        let (ids, shape) = tokens(&bytes);
        let (inputs, _) = shifted(&ids, shape[1]);
        let logits = model
            .logits(&inputs, shape[0], shape[1] - 1)
            .unwrap()
            .into_f32();
        let difference = largest_difference(&logits, &tensors(&bytes, "logits")[""].data);
        println!("{name} logits {difference:.1e}");
        assert!(difference < 1e-4, "{name}: {difference}");

        let reference = json(&folder.join("reference.json"));
        let expected = reference["greedy_from_first_8_tokens_of_row_0"]
            .as_array()
            .unwrap();
        let expected: Vec<i32> = expected
            .iter()
            .map(|id| id.as_i64().unwrap() as i32)
            .collect();
        // Some references include the prompt.
        let expected = expected.strip_prefix(&ids[..8]).unwrap_or(&expected);
        assert_eq!(
            greedy(&mut model, &ids[..8], expected.len()),
            expected,
            "{name}"
        );
    }
}

#[test]
fn loss_and_gradients_match_transformers() {
    for name in ["llama", "qwen3", "olmo2"] {
        let folder = fixture(&format!("hf/{name}"));
        let mut model = huggingface::import(&folder, Device::Cpu).unwrap();
        let bytes = std::fs::read(folder.join("reference.safetensors")).unwrap();
        let (ids, shape) = tokens(&bytes);
        let (inputs, targets) = shifted(&ids, shape[1]);
        let (b, t) = (shape[0], shape[1] - 1);
        let divisor = (b * t) as f64;
        let options = Options::default();
        let gradients =
            train::gradients(&mut model, &inputs, &targets, [b, t], divisor, options).unwrap();
        let expected = json(&folder.join("reference.json"))["loss"]
            .as_f64()
            .unwrap();
        let loss = (gradients.stats.losses.cross_entropy - expected).abs();
        // Gradients have the names and layouts of the weights, so that the import converts them as well.
        let expected = modified_checkpoint(
            name,
            |_| {},
            |weights| {
                let of_weights = weights.len();
                *weights = tensors(&bytes, "grad.");
                assert_eq!(weights.len(), of_weights);
            },
        );
        let expected = huggingface::import(expected.path(), Device::Cpu).unwrap();
        let gradient = gradient_deviation(&gradients, &expected.values());
        println!("{name} loss {loss:.1e} gradient {gradient:.1e}");
        assert!(loss < 1e-5, "{name}: loss {loss}");
        assert!(gradient < 1e-4, "{name}: gradient {gradient}");
    }
}
