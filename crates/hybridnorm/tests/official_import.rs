//! Checkpoint folders of the official code, as PyTorch writes them, and corrupt ones.
//!
//! `hybridnorm-star.pt` was written by `torch.save` of PyTorch 2.15 from the weights in
//! `hybridnorm-star.safetensors`.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use hybridnorm::interop::official;
use hybridnorm::model::Model;
use hybridnorm::tensors::HostTensor;
use hybridnorm::{Device, Error, memory};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

const STORED: CompressionMethod = CompressionMethod::Stored;
const DEFLATED: CompressionMethod = CompressionMethod::Deflated;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/official")
        .join(name)
}

/// Creates an official checkpoint folder with the given `model.pt`.
fn folder(torch: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let json = fs::read(fixture("hybridnorm-star.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    // JSON is valid YAML.
    let config = serde_json::json!({ "model": json["model"] }).to_string();
    fs::write(folder.path().join("config.yaml"), config).unwrap();
    fs::write(folder.path().join("model.pt"), torch).unwrap();
    folder
}

fn import(torch: &[u8]) -> Result<Model, Error> {
    official::import(folder(torch).path(), Device::Cpu)
}

#[test]
fn pytorch_and_safetensors_files_give_equal_weights() {
    let torch = fs::read(fixture("hybridnorm-star.pt")).unwrap();
    let model = import(&torch).unwrap();
    let found = model.values();

    let bytes = fs::read(fixture("hybridnorm-star.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let weights = file.tensors().into_iter().filter_map(|(name, view)| {
        let name = name.strip_prefix("weight.")?.to_owned();
        let data = view.data().chunks_exact(4);
        let data = data.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let (shape, data) = (view.shape().to_vec(), data.collect());
        Some((name, HostTensor { shape, data }))
    });
    let expected = official::convert_all(weights.collect(), model.config()).unwrap();
    assert_eq!(found.len(), expected.len());
    for (name, expected) in expected {
        assert!(found[&name].data == expected.data, "{name}");
    }
}

#[test]
fn corrupted_pytorch_file_is_named_in_the_error() {
    let whole = fs::read(fixture("hybridnorm-star.pt")).unwrap();
    let assert_names_file = |error: Error| {
        let text = error.to_string();
        assert!(text.contains("model.pt"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    };
    for length in [0, 1, 4, 100, whole.len() / 2, whole.len() - 1] {
        assert_names_file(import(&whole[..length]).unwrap_err());
    }
    // A changed byte must never cause a panic. In the padding between the entries of the archive it has no effect.
    for place in (0..whole.len()).step_by(397) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x41;
        if let Err(error) = import(&bytes) {
            assert_names_file(error);
        }
    }
}

#[test]
fn folder_without_weights_is_an_error() {
    let folder = folder(b"");
    fs::remove_file(folder.path().join("model.pt")).unwrap();
    let error = official::import(folder.path(), Device::Cpu).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("neither model.safetensors nor model.pt"),
        "{text}"
    );
}

#[test]
fn unsupported_settings_are_rejected() {
    let folder = folder(b"");
    let path = folder.path().join("config.yaml");
    let config = fs::read_to_string(&path).unwrap();
    for key in [
        "alibi",
        "norm_after",
        "scale_logits",
        "use_value_nrom",
        "qk_scale",
    ] {
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["model"][key] = true.into();
        fs::write(&path, config.to_string()).unwrap();
        let text = official::read_config(&path).unwrap_err().to_string();
        assert!(text.contains(key) && text.contains("config.yaml"), "{text}");
    }
}

/// Returns a PyTorch file of one f32 tensor with a shape and strides, whose storage has `elements` elements.
fn torch_file(elements: u32, shape: [u32; 2], strides: [u32; 2]) -> Vec<u8> {
    torch_archive(elements, shape, strides, STORED)
}

fn torch_archive(
    elements: u32,
    shape: [u32; 2],
    strides: [u32; 2],
    compression: CompressionMethod,
) -> Vec<u8> {
    let int = |n: u32| [&b"J"[..], &n.to_le_bytes()].concat();
    let pair = |pair: [u32; 2]| [int(pair[0]), int(pair[1]), b"\x86".to_vec()].concat();
    let text = |text: &str| {
        [
            &b"X"[..],
            &(text.len() as u32).to_le_bytes(),
            text.as_bytes(),
        ]
        .concat()
    };
    let pickle = [
        b"\x80\x02}".to_vec(),
        text("transformer.wte.weight"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        int(elements),
        b"tQ".to_vec(),
        int(0),
        pair(shape),
        pair(strides),
        b"\x89ccollections\nOrderedDict\n)RtRs.".to_vec(),
    ]
    .concat();
    let zeros = vec![0; 4 * elements as usize];
    let files: [(&str, &[u8]); 4] = [
        ("archive/data.pkl", &pickle),
        ("archive/byteorder", b"little"),
        ("archive/data/0", &zeros),
        ("archive/version", b"3\n"),
    ];
    archive(&files, compression)
}

/// Returns an archive of files, stored or deflated.
fn archive(files: &[(&str, &[u8])], compression: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(compression);
    for (name, bytes) in files {
        archive.start_file(*name, options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn tensor_larger_than_its_file_is_rejected_before_allocation() {
    // 4 GiB of one repeated element in a file of a few hundred bytes.
    let error = import(&torch_file(1, [1 << 15, 1 << 15], [0, 0])).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("transformer.wte.weight would take 4294967296"),
        "{text}"
    );
    assert!(text.contains("strides repeat elements"), "{text}");
    // A valid tensor passes this check; the import fails later, since other tensors of the model are missing.
    let text = import(&torch_file(12, [4, 3], [3, 1]))
        .unwrap_err()
        .to_string();
    assert!(
        !text.contains("strides") && text.contains("model.pt"),
        "{text}"
    );
}

#[test]
fn exponential_yaml_aliases_are_rejected() {
    let folder = folder(b"");
    let mut yaml = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        yaml += &format!("a{level}: &a{level} [{before}]\n");
    }
    fs::write(folder.path().join("config.yaml"), yaml + "model: *a11\n").unwrap();
    let text = official::import(folder.path(), Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(text.contains("config.yaml"), "{text}");
}

#[test]
#[cfg_attr(
    not(target_os = "linux"),
    ignore = "peak memory is measured on Linux only"
)]
fn memory_is_bounded_by_the_size_of_the_file() {
    const CONSTANT: u64 = 64 << 20;
    // Returns the peak memory and the error of a failing import.
    let peak = |torch: &[u8]| {
        let folder = folder(torch);
        memory::reset_peak();
        let before = memory::peak_bytes().unwrap();
        let problem = official::import(folder.path(), Device::Cpu).unwrap_err();
        // Linux counts pages per processor, so the sum can decrease slightly.
        let peak = memory::peak_bytes().unwrap().saturating_sub(before);
        (peak, problem.to_string())
    };
    // 256 MiB of zeros in 256 kB, and pickles with one list per byte.
    let zeros = torch_archive(1 << 26, [1 << 13; 2], [1 << 13, 1], DEFLATED);
    assert!(zeros.len() < 1 << 19, "{}", zeros.len());
    let lists: [(&str, &[u8]); 1] = [("archive/data.pkl", &vec![b']'; 9 << 20])];
    for (torch, expected) in [
        (zeros, "archive/data.pkl is compressed"),
        (archive(&lists, DEFLATED), "archive/data.pkl is compressed"),
        (
            archive(&lists, STORED),
            "has 9437184 bytes, expected at most",
        ),
        (archive(&[("a/b", b"")], STORED), "No data.pkl entry"),
        (b"\x80\x02}q\0.".to_vec(), "saved before PyTorch 1.6"),
        (vec![0; 2048], "saved before PyTorch 1.6"),
    ] {
        let (peak, problem) = peak(&torch);
        assert!(problem.contains(expected), "{problem}");
        assert!(peak < CONSTANT, "{problem}: {peak} bytes");
    }
    // The longest pickle that is always read: one object per byte.
    let longest: [(&str, &[u8]); 1] = [("archive/data.pkl", &vec![b']'; 128 << 10])];
    let (peak_of_longest, problem) = peak(&archive(&longest, STORED));
    assert!(!problem.contains("expected at most"), "{problem}");
    assert!(
        peak_of_longest < CONSTANT,
        "{problem}: {peak_of_longest} bytes"
    );
    // A tensor of 64 MiB that is read, but is not the complete model.
    let whole = torch_file(1 << 24, [1 << 12; 2], [1 << 12, 1]);
    let (peak, problem) = peak(&whole);
    assert!(problem.contains("model.pt"), "{problem}");
    assert!(peak < 3 * whole.len() as u64 + CONSTANT, "{peak} bytes");
}
