//! `hybridnorm probe`.

mod common;

use common::TestDir;

#[test]
fn probe_measures_the_first_and_the_last_step() {
    let dir = TestDir::new();
    let args = [
        "probe",
        "tiny.toml",
        "--quiet",
        "--steps",
        "5",
        "--set",
        "model.n_layers=6",
    ];
    let with = |more: &[&'static str]| [&args[..], more].concat();
    let placements = "--placements=pre-norm,post-norm,hybridnorm";
    let report = dir.json(&with(&[placements, "--out", "probe.json", "--json"]));
    let seen = report["placements"].as_array().unwrap();
    assert_eq!(seen.len(), 3);
    for placement in seen {
        let moments = placement["moments"].as_array().unwrap();
        assert_eq!(
            moments
                .iter()
                .map(|moment| moment["step"].as_u64().unwrap())
                .collect::<Vec<_>>(),
            [1, 5]
        );
        for moment in moments {
            assert_eq!(moment["stream_grad"].as_array().unwrap().len(), 6);
            assert_eq!(moment["layers"]["blocks"].as_array().unwrap().len(), 6);
        }
    }
    // Norms on the residual stream keep its RMS constant; without them it grows (Xiong et al. 2020, arXiv
    // 2002.04745).
    let growth = |index: usize| {
        let blocks = &seen[index]["moments"][0]["layers"]["blocks"];
        let size = |block: usize| blocks[block]["stream"]["rms"].as_f64().unwrap();
        size(5) / size(1)
    };
    assert!(growth(0) > 1.3, "{}", growth(0));
    assert!((growth(1) - 1.0).abs() < 0.1, "{}", growth(1));
    let file = dir.read("probe.json");
    let written: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(written, report);
    let text = dir.ok(&with(&[placements]));
    for word in [
        "gradient norm, last block ÷ first (fitted)",
        "hybridnorm, step 5",
        "gain drift (RMS)",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    // By default the configuration's own placement is probed.
    let own = dir.json(&with(&["--json"]));
    assert_eq!(own["placements"][0]["placement"], "hybridnorm-star");
}

#[test]
fn invalid_probes_are_rejected() {
    let dir = TestDir::new();
    dir.expect_error(
        2,
        &[
            "probe",
            "tiny.toml",
            "--steps",
            "2",
            "--placements",
            "nonsense",
        ],
        &["unknown placement"],
    );
    dir.expect_error(
        2,
        &["probe", "tiny.toml", "--steps", "0"],
        &["steps = 0, expected 1 to train.steps = 20"],
    );
    dir.expect_error(
        2,
        &["probe", "tiny.toml", "--steps", "21"],
        &["expected 1 to train.steps = 20"],
    );
}
