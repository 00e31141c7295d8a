//! Hugging Face model folders reproduce the logits and the greedy continuation of `transformers` (`fixtures/hf`).

mod common;

use common::largest_difference;
use common::reference::*;
use hybridnorm::Device;
use hybridnorm::interop::huggingface;
use hybridnorm::model::Model;

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
