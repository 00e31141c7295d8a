//! Placements, recipes and imported checkpoints.

use super::*;

#[test]
fn placements_are_listed_and_explained() {
    let dir = TestDir::new();
    let table = dir.ok(&["placement", "list"]);
    assert!(
        table.contains("qkv-post") && !table.contains("\\n"),
        "{table}"
    );
    let rows = dir.json(&["placement", "list", "--json"]);
    let rows = rows.as_array().unwrap();
    assert!(rows.len() > 20);
    let table = dir.ok(&["placement", "list"]);
    for row in rows {
        let name = row["name"].as_str().unwrap();
        assert!(table.contains(name));
        assert!(!dir.ok(&["placement", "explain", name]).is_empty());
        let found = dir.json(&[
            "placement",
            "explain",
            name,
            "--format",
            "json",
            "--layers",
            "4",
        ]);
        assert!(found.is_object());
    }
    assert!(
        dir.ok(&[
            "placement",
            "explain",
            "hybridnorm-star",
            "--format",
            "latex"
        ])
        .contains('\\')
    );
    dir.write("mine.toml", "base = \"pre-norm\"\nnorm = { eps = 1e-4 }\n");
    dir.ok(&["placement", "explain", "mine.toml"]);
    dir.write("mine.toml", "base = \"pre-norm\"\nnrom = { eps = 1e-4 }\n");
    dir.expect_error(
        2,
        &["placement", "explain", "mine.toml"],
        &["mine.toml", "`norm`"],
    );
    dir.expect_error(2, &["placement", "explain", "pre-nrom"], &["`pre-norm`"]);
    dir.expect_error(
        2,
        &["placement", "explain", "pre-norm", "--layers", "0"],
        &["n_layers and d_model must be at least 1"],
    );
    dir.expect_error(
        2,
        &["placement", "explain", "pre-norm", "--layers", "100000000"],
        &["n_layers = 100000000, expected at most"],
    );
}

#[test]
fn inspect_handles_every_recipe() {
    let dir = TestDir::new();
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["../../configs", "../hybridnorm/configs", "configs"];
    let mut seen = 0;
    for entry in folders
        .iter()
        .flat_map(|name| fs::read_dir(package.join(name)).unwrap())
    {
        let path = entry.unwrap().path();
        let started = Instant::now();
        let found = dir.json(&["inspect", path.to_str().unwrap(), "--json"]);
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "{}",
            path.display()
        );
        let total = found["inventory"]["total"].as_u64().unwrap();
        if path.ends_with("hybridnorm-1.2b.toml") {
            assert!((1_100_000_000..1_400_000_000).contains(&total), "{total}");
        }
        dir.ok(&["inspect", path.to_str().unwrap()]);
        seen += 1;
    }
    assert!(seen >= 7);
    dir.train("run", &[]);
    let of_config = dir.json(&["inspect", "tiny.toml", "--json"]);
    for path in ["run", "run/checkpoints/step-00000020"] {
        let of_checkpoint = dir.json(&["inspect", path, "--json"]);
        assert_eq!(of_config["placement_hash"], of_checkpoint["placement_hash"]);
        assert_eq!(
            of_config["inventory"]["total"],
            of_checkpoint["inventory"]["total"]
        );
    }
    // For a run the configured training is inspected, for a checkpoint alone a single sequence.
    let inventory = |path| dir.json(&["inspect", path, "--json"])["inventory"].clone();
    assert_eq!(inventory("run"), inventory("tiny.toml"));
    assert_eq!(inventory("run")["micro_batch"], 4);
    assert_eq!(inventory("run/checkpoints/step-00000020")["micro_batch"], 1);
    let wider = dir.json(&["inspect", "tiny.toml", "--set", "model.d_ff=64", "--json"]);
    assert_eq!(wider["model"]["d_ff"], 64);
    dir.expect_error(
        2,
        &["inspect", "run", "--set", "seed=2"],
        &["--set has no effect"],
    );
    dir.expect_error(1, &["inspect", "absent"], &["absent", "no such file"]);
}

/// Returns `model.safetensors` as the official code writes it, from a fixture.
fn official_weights(fixture: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(fixture[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&fixture[8..8 + length]).unwrap();
    let (mut kept, mut data) = (BTreeMap::new(), Vec::new());
    for (name, mut entry) in header {
        let Some(name) = name.strip_prefix("weight.") else {
            continue;
        };
        let at = |i: usize| 8 + length + entry["data_offsets"][i].as_u64().unwrap() as usize;
        let bytes = &fixture[at(0)..at(1)];
        let start = data.len();
        data.extend_from_slice(bytes);
        entry["data_offsets"] = json!([start, data.len()]);
        kept.insert(name.to_owned(), entry);
    }
    let mut text = serde_json::to_vec(&kept).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), &text[..], &data].concat()
}

#[test]
fn official_checkpoints_are_imported() {
    let dir = TestDir::new();
    let fixtures =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../hybridnorm/tests/fixtures/official");
    for name in ["hybridnorm-star", "hybridnorm", "pre-norm"] {
        let facts: Value =
            serde_json::from_slice(&fs::read(fixtures.join(format!("{name}.json"))).unwrap())
                .unwrap();
        dir.write(
            "theirs/config.yaml",
            json!({"model": facts["model"]}).to_string(),
        );
        let weights =
            official_weights(&fs::read(fixtures.join(format!("{name}.safetensors"))).unwrap());
        dir.write("theirs/model.safetensors", &weights);
        let found = dir.json(&["import", "theirs", "--out", name, "--json"]);
        assert!(found["parameters"].as_u64().unwrap() > 0);
        let report = dir.json(&["inspect", name, "--json"]);
        assert_eq!(report["model"]["d_model"], facts["model"]["d_model"]);
        dir.expect_error(
            2,
            &["import", "theirs", "--out", name],
            &[name, "already exists"],
        );
        dir.expect_error(
            2,
            &["generate", name, "--prompt", "a"],
            &["has no tokenizer"],
        );
        let deep = format!("deep/er/{name}");
        dir.ok(&["import", "theirs", "--out", &deep, "--quiet"]);
        dir.write("theirs/model.safetensors", &weights[..weights.len() - 9]);
        dir.expect_error(
            1,
            &["import", "theirs", "--out", "other"],
            &["theirs/model.safetensors"],
        );
    }
    dir.write("theirs/config.yaml", "model: [");
    dir.expect_error(
        1,
        &["import", "theirs", "--out", "other"],
        &["theirs/config.yaml"],
    );
    dir.expect_error(1, &["import", "absent", "--out", "other"], &["absent"]);
}
