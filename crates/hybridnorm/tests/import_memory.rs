//! An import takes at most three times the model's size in single precision plus a constant.

mod common;

use common::reference::*;
use hybridnorm::interop::gguf::{self, MatrixType};
use hybridnorm::model::{Model, counts};
use hybridnorm::{Device, interop, memory};

const CONSTANT: u64 = 64 << 20;

#[test]
#[cfg_attr(
    not(target_os = "linux"),
    ignore = "peak memory is measured on Linux only"
)]
fn import_memory_is_at_most_three_times_the_model() {
    let from = fixture("hf/olmoe");
    let folder = tempfile::tempdir().unwrap();
    let rows = 300_000;
    let mut config = json(&from.join("config.json"));
    config["vocab_size"] = rows.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let bytes = {
        let file = std::fs::read(from.join("model.safetensors")).unwrap();
        let mut all = tensors(&file, "");
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let values = all.get_mut(name).unwrap();
            values.data.resize(rows * values.shape[1], 0.5);
            values.shape[0] = rows;
        }
        write_tensors(folder.path(), &all);
        all.values().map(|v| 4 * v.data.len() as u64).sum::<u64>()
    };
    memory::reset_peak();
    let before = memory::peak_bytes().unwrap();
    let imported = interop::import(folder.path(), Device::Cpu).unwrap();
    let peak = memory::peak_bytes().unwrap().saturating_sub(before);
    drop(imported);
    println!("{} MB for {} MB", peak >> 20, bytes >> 20);
    assert!(peak <= 3 * bytes + CONSTANT, "{peak} bytes for {bytes}");
    gguf_memory_is_at_most_three_times_the_model();
}

/// Measured after the other import, since the peak is that of the process.
fn gguf_memory_is_at_most_three_times_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let bytes = {
        let small = interop::import(&fixture("hf/llama"), Device::Cpu).unwrap();
        let config = small.model.config().clone().with_vocab_size(300_000);
        let model = Model::new(&config, 0, Device::Cpu).unwrap();
        gguf::write(&model, None, &path, MatrixType::Q8_0).unwrap();
        4 * counts::parameters(&config).unwrap()
    };
    memory::reset_peak();
    let before = memory::peak_bytes().unwrap();
    let imported = interop::import(&path, Device::Cpu).unwrap();
    let peak = memory::peak_bytes().unwrap().saturating_sub(before);
    drop(imported);
    println!("{} MB for {} MB", peak >> 20, bytes >> 20);
    assert!(peak <= 3 * bytes + CONSTANT, "{peak} bytes for {bytes}");
}
