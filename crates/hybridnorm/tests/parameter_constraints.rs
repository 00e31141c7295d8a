//! Changes to weights besides the optimizer's update: QK-clip, unit weights, selection biases.

mod common;

use common::*;
use hybridnorm::Device;
use hybridnorm::model::{FeedForward, Model, ModelConfig, RouterStatistics, Scoring};
use hybridnorm::train::PassStats;

/// Returns the results of a pass over the inputs.
fn pass(model: &mut Model) -> PassStats {
    loss_and_gradients(model).1.stats
}

#[test]
fn qk_clip_limits_logits_and_keeps_smaller_ones() {
    let one_block = |config: ModelConfig| config.with_n_layers(1);
    let grouped = one_block(tiny(named("pre-norm")));
    let capped = one_block(tiny(named("gemma2")));
    let latents = one_block(with_mla(tiny(named("deepseek-v3")), Some(12)));
    let no_query_latent = one_block(with_mla(tiny(named("pre-norm")), None));
    for (name, config) in [
        ("grouped", grouped),
        ("capped", capped),
        ("latents", latents),
        ("no query latent", no_query_latent),
    ] {
        config.check_qk_clip().unwrap();
        let mut model = perturbed_model(&config);
        let before = pass(&mut model).max_attention_logits;
        assert_eq!([before.len(), before[0].len()], [1, 4], "{name}");
        let mut sorted = before[0].clone();
        sorted.sort_by(f32::total_cmp);
        // Two heads exceed the threshold.
        let threshold = (sorted[1] + sorted[2]) / 2.0;
        assert_eq!(
            model.apply_qk_clip(&before, f64::from(threshold)),
            2,
            "{name}"
        );
        let after = pass(&mut model).max_attention_logits;
        for (before, after) in before[0].iter().zip(&after[0]) {
            let expected = before.min(threshold);
            assert!(
                (after - expected).abs() < 1e-4 * threshold.abs(),
                "{name}: {after}, not {expected}"
            );
        }
        assert_eq!(
            model.apply_qk_clip(&after, f64::from(2.0 * threshold)),
            0,
            "{name}"
        );
    }
}

#[test]
fn qk_clip_undone_by_a_norm_is_an_error() {
    let of = |name: &str| tiny(named(name));
    for (config, words) in [
        (of("hybridnorm"), "block 0"),
        (of("pre-norm-qk"), "block 0"),
        (of("ngpt"), "unit_weights"),
        (with_mla(of("hybridnorm"), None), "block 0"),
    ] {
        let error = config.check_qk_clip().unwrap_err().to_string();
        assert!(
            error.contains(words) && error.contains("cannot limit"),
            "{error}"
        );
    }
    with_mla(of("hybridnorm"), Some(12))
        .check_qk_clip()
        .unwrap();
}

/// Returns the L2 norms of a matrix's rows, or of its columns in every block of `d` rows.
fn l2_norms(data: &[f32], columns: usize, of_columns: Option<usize>) -> Vec<f32> {
    let l2_norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    match of_columns {
        None => data
            .chunks(columns)
            .map(|row| l2_norm(&mut row.iter().copied()))
            .collect(),
        Some(d) => data
            .chunks(d * columns)
            .flat_map(|matrix| {
                (0..columns)
                    .map(move |c| l2_norm(&mut matrix[c..].iter().step_by(columns).copied()))
            })
            .collect(),
    }
}

#[test]
fn unit_weights_are_normalized_along_d_model() {
    let d = 16;
    for config in [
        tiny(named("ngpt")),
        with_experts(tiny(named("ngpt")), Scoring::Softmax),
    ] {
        let fresh = Model::new(&config, 1, Device::Cpu).unwrap();
        let mut restored = perturbed_model(&config);
        restored.normalize_unit_weights().unwrap();
        let mut on_reference = on_reference_executor(&perturbed_model(&config));
        on_reference.normalize_unit_weights().unwrap();
        for model in [fresh, restored, on_reference] {
            for (name, values) in model.values() {
                let [_, columns] = values.shape[..] else {
                    continue;
                };
                let writes_residual = name.ends_with("out") || name.ends_with("down");
                let found = l2_norms(&values.data, columns, writes_residual.then_some(d));
                assert!(
                    found.iter().all(|x| (x - 1.0).abs() < 1e-5),
                    "{name}: {found:?}"
                );
            }
        }
    }
}

#[test]
fn balancing_bias_moves_against_the_load() {
    let config = with_experts(tiny(named("pre-norm")), Scoring::Sigmoid);
    let model = |device| Model::new(&config, 1, device).unwrap();
    let routing = pass(&mut model(Device::Cpu)).routing;
    assert_eq!(routing.len(), 2, "one entry per MoE block");
    for device in [Device::Cpu, Device::Reference] {
        check_biases(model(device), &routing);
    }
}

fn check_biases(mut model: Model, routing: &[RouterStatistics]) {
    model.update_balancing_biases(routing);
    let values = model.values();
    let blocks = model.decoder().blocks.iter().enumerate();
    for ((layer, block), routing) in blocks.skip(1).zip(routing) {
        assert!(
            matches!(block.feed_forward, FeedForward::Moe(_)),
            "an MoE feed-forward"
        );
        let bias = &values[&format!("blocks.{layer}.feed_forward.selection_bias")].data;
        let mean = routing.load.iter().sum::<u64>() as f64 / 8.0;
        for (bias, &load) in bias.iter().zip(&routing.load) {
            let expected =
                0.01 * (mean - load as f64).signum() * f64::from(u8::from(mean != load as f64));
            assert!(
                (f64::from(*bias) - expected).abs() < 1e-7,
                "{bias} for {load} of {mean}"
            );
        }
        assert_eq!(routing.dropped(), 0);
    }
}
