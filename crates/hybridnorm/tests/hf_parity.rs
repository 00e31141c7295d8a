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

/// Folders of `fixtures/hf`.
const FOLDERS: [&str; 20] = [
    "llama",
    "llama-bias",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_moe-dense-first",
    "olmo2",
    "olmo3",
    "olmoe",
    "deepseek-v3",
    "deepseek_v3-yarn",
    "gemma2",
    "gemma3",
    "phi3",
    "smollm3",
    "gpt2",
    "gpt_neox",
    "gpt_neox-sequential",
];

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
    for name in FOLDERS {
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

/// Returns the model without losses of the router, which the references do not contain.
fn without_router_losses(model: &Model) -> Model {
    let mut config = model.config().clone();
    if let Some(moe) = &mut config.moe {
        (moe.load_balance, moe.z_loss) = (0.0, 0.0);
    }
    let mut changed = Model::uninitialized(&config, Device::Cpu).unwrap();
    changed.load(model.values()).unwrap();
    changed
}

#[test]
fn loss_and_gradients_match_transformers() {
    for name in FOLDERS {
        let folder = fixture(&format!("hf/{name}"));
        let mut model = without_router_losses(&huggingface::import(&folder, Device::Cpu).unwrap());
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
                let mut gradients = tensors(&bytes, "grad.");
                // A balancing bias has no gradient.
                weights.retain(|name, _| name.ends_with("e_score_correction_bias"));
                gradients.append(weights);
                *weights = gradients;
            },
        );
        let expected = huggingface::import(expected.path(), Device::Cpu).unwrap();
        let mut expected = expected.values();
        expected.retain(|name, _| !name.ends_with("selection_bias"));
        let gradient = gradient_deviation(&gradients, &expected);
        println!("{name} loss {loss:.1e} gradient {gradient:.1e}");
        assert!(loss < 1e-5, "{name}: loss {loss}");
        assert!(gradient < 1e-4, "{name}: gradient {gradient}");
    }
}
