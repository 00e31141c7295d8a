//! Compared runs: initial weights, divergence, successive halving, groups.

use super::*;

#[test]
fn placements_share_initial_weights_and_batches() {
    let dir = test_dir();
    let more = ["--set", "study.lr=[1e-30]", "--set", "study.keep_runs=true"];
    dir.ok(&args("out", &more));
    // With a negligible learning rate, a loss is that of the initial weights on the step's batch.
    let losses = |placement: &str, seed: u64| {
        let mut found = records(&dir, "out").into_iter().filter(|record| {
            record["cell"]["placement"] == placement && record["cell"]["seed"] == seed
        });
        let id = found.next().unwrap()["id"].as_str().unwrap().to_owned();
        dir.column(&format!("out/kept/{id}"), "loss")
    };
    // `mine` differs from hybridnorm only in a skip connection, which has no parameters.
    let (one, other) = (losses("hybridnorm", 1), losses("mine", 1));
    assert_ne!(one, other);
    let correlation = |x: &[f64], y: &[f64]| {
        let centred = |x: &[f64]| -> Vec<f64> {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            x.iter().map(|x| x - mean).collect()
        };
        let (x, y) = (centred(x), centred(y));
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt()
    };
    let same_batches = correlation(&one, &other);
    let other_batches = correlation(&one, &losses("hybridnorm", 2));
    assert!(same_batches > 0.7, "{same_batches}");
    assert!(other_batches < 0.5, "{other_batches}");
}

#[test]
fn divergence_is_recorded_with_its_step() {
    let dir = test_dir();
    let more = [
        "--set",
        "study.lr=[1e-3,1e38]",
        "--set",
        "optimizer.clip_grad_norm=0",
        "--json",
    ];
    let groups = dir.json(&args("out", &more));
    let placements = groups[0]["analysis"]["placements"].as_array().unwrap();
    for placement in placements {
        assert_eq!(placement["rates"][1]["diverged"], 2, "{placement}");
        // Forty steps at this learning rate are too few to learn anything.
        assert_eq!(placement["rates"][0]["not_learned"], 2, "{placement}");
        assert_eq!(placement["largest_stable_lr"], 1e-3);
    }
    let records = records(&dir, "out");
    let diverged = records
        .iter()
        .filter(|record| record["ending"]["kind"] == "diverged");
    let steps: Vec<u64> = diverged
        .map(|record| record["ending"]["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps.len(), 6);
    assert!(steps.iter().all(|&step| step <= 3), "{steps:?}");
}

const HALVING: [&str; 4] = [
    "--set",
    "study.lr=[1e-3,3e-3,1e-2,1e-5]",
    "--set",
    "study.halving={at=[0.25,0.5],keep=0.5}",
];

#[test]
fn successive_halving_is_reproducible_after_interruption() {
    let dir = test_dir();
    let more = HALVING;
    dir.ok(&args("whole", &more));
    let whole = content_with_halving(&dir, "whole");
    let endings = |step: u64| {
        let halved = whole.values().filter(|record| {
            record["ending"]["kind"] == "halved" && record["ending"]["step"] == step
        });
        halved.count()
    };
    // Four learning rates, then two, then one, for three placements and two seeds.
    assert_eq!((endings(10), endings(20)), (12, 6));
    let smallest = whole.values().filter(|record| record["cell"]["lr"] == 1e-5);
    assert!(smallest.clone().count() == 6);
    assert!(
        smallest
            .into_iter()
            .all(|record| record["ending"]["kind"] == "halved")
    );
    let mut resumed = more.to_vec();
    for round in 0..4u64 {
        let mut child = dir.start(&args("killed", &resumed));
        // Its inputs are checked before.
        common::wait_until("the study", || dir.path("killed/study.toml").exists());
        std::thread::sleep(Duration::from_millis(60 + 50 * round));
        let _ = child.kill();
        child.wait().unwrap();
        if round == 0 {
            resumed.push("--resume");
        }
    }
    dir.ok(&args("killed", &resumed));
    assert_eq!(whole, content_with_halving(&dir, "killed"));
}

#[test]
fn halving_decisions_are_final_and_verified() {
    let dir = test_dir();
    let more = HALVING;
    dir.ok(&args("whole", &more));
    let decided = dir.read("whole/halving.json");
    let mut grown = more.to_vec();
    grown.extend(["--resume", "--set", "study.seeds=[1,2,3]"]);
    let stated = dir.read("whole/study.toml");
    dir.expect_error(
        2,
        &args("whole", &grown),
        &["halving has already ranked other runs"],
    );
    assert_eq!(dir.read("whole/study.toml"), stated);
    // Halving decisions must have checksums.
    let mut rungs: Value = serde_json::from_slice(&decided).unwrap();
    for rung in rungs.as_array_mut().unwrap() {
        rung.as_object_mut().unwrap().remove("sha256").unwrap();
    }
    dir.write("whole/halving.json", rungs.to_string());
    let mut again = more.to_vec();
    again.push("--resume");
    dir.expect_error(
        1,
        &args("whole", &again),
        &["halving.json", "has no checksum"],
    );
}

#[test]
fn studies_with_halving_cannot_be_sharded() {
    let dir = test_dir();
    let mut sharded = HALVING.to_vec();
    sharded.extend(["--shard", "1/2"]);
    dir.expect_error(2, &args("no", &sharded), &["shard 1/2", "cannot be split"]);
}

fn content_with_halving(dir: &TestDir, out: &str) -> BTreeMap<String, Value> {
    let decided = dir.path(out).join("halving.json");
    let rungs: Vec<Value> = serde_json::from_slice(&fs::read(&decided).unwrap()).unwrap();
    let sizes = |key: &str| -> Vec<usize> {
        rungs
            .iter()
            .map(|rung| rung[key].as_array().unwrap().len())
            .collect()
    };
    assert_eq!((sizes("of"), sizes("on")), (vec![24, 12], vec![12, 6]));
    fs::remove_file(decided).unwrap();
    content(dir, out)
}

#[test]
fn initializations_and_depths_are_compared_separately() {
    let dir = TestDir::new();
    let text = STUDY.replace("init = { scheme = \"megatron\" }\n", "").replace(
        "seeds = [1, 2]",
        "seeds = [1, 2]\ndepths = [1, 4]\ninits = [{ name = \"a\", scheme = \"megatron\" }, { name = \"b\", std = 0.05 }]",
    );
    dir.write(
        "study.toml",
        text.replace("d_model = 16", "d_model = 32")
            .replace("n_heads = 2", "n_heads = 4"),
    );
    let more = [
        "--set",
        "study.lr=[1e-3]",
        "--set",
        "train.steps=6",
        "--json",
    ];
    let groups = dir.json(&args("out", &more));
    let names: Vec<_> = groups
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group["name"].as_str().unwrap())
        .collect();
    let expected = ["a, 1", "b, 1", "a, 4", "b, 4"];
    assert_eq!(names.len(), 4);
    for (name, expected) in names.iter().zip(expected) {
        let (init, depth) = expected.split_once(", ").unwrap();
        assert_eq!(*name, format!("initialization {init}, {depth} blocks"));
    }
    let records = records(&dir, "out");
    let of_depth = |depth: u64| {
        let found = records
            .iter()
            .filter(move |record| record["cell"]["depth"] == depth);
        let parameters = found.map(|record| record["parameters"].as_u64().unwrap());
        parameters.max().unwrap() as f64
    };
    // The embedding and head of 257 tokens change with the width; the blocks do not.
    let ratio = of_depth(1) / of_depth(4);
    assert!((0.9..1.8).contains(&ratio), "{ratio}");
}
