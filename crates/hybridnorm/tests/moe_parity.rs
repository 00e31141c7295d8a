//! MoE models in the format of the official code match a plain PyTorch implementation: logits, every loss and every
//! gradient against its outputs (`fixtures/official/moe-*`).

mod common;

use common::largest_difference;
use common::reference::*;
use hybridnorm::Device;
use hybridnorm::interop::official;
use hybridnorm::model::RouterStatistics;
use hybridnorm::plan::Options;
use hybridnorm::train;

#[test]
fn logits_losses_and_gradients_match_the_reference() {
    for name in ["moe-pre-norm", "moe-hybridnorm-star"] {
        let json = json(&fixture(&format!("official/{name}.json")));
        let bytes = std::fs::read(fixture(&format!("official/{name}.safetensors"))).unwrap();
        let number = |key: &str| json[key].as_f64().unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_official(folder.path(), &json["model"], &tensors(&bytes, "weight."));
        let mut model = official::import(folder.path(), Device::Cpu).unwrap();

        let (ids, shape) = tokens(&bytes);
        let (inputs, targets) = shifted(&ids, shape[1]);
        let (b, t) = (shape[0], shape[1] - 1);

        let logits = model.logits(&inputs, b, t).unwrap().into_f32();
        let logits = largest_difference(&logits, &tensors(&bytes, "logits")[""].data);
        assert!(logits < 1e-4, "{name}: logits {logits}");

        let divisor = (b * t) as f64;
        let options = Options::default();
        let gradients =
            train::gradients(&mut model, &inputs, &targets, [b, t], divisor, options).unwrap();
        let pass = &gradients.stats;
        let mean = |f: fn(&RouterStatistics) -> f64| {
            pass.routing.iter().map(f).sum::<f64>() / pass.routing.len() as f64
        };
        let model_json = &json["model"];
        let weight = |key: &str| model_json[key].as_f64().unwrap();
        let total = number("cross_entropy")
            + weight("moe_loss_weight") * number("load_balance_loss")
            + weight("moe_zloss_weight") * number("router_z_loss");
        for (label, found, expected) in [
            (
                "cross-entropy",
                pass.losses.cross_entropy,
                number("cross_entropy"),
            ),
            (
                "load balance",
                mean(|r| r.load_balancing_loss),
                number("load_balance_loss"),
            ),
            ("z-loss", mean(|r| r.z_loss), number("router_z_loss")),
            ("sum", pass.losses.objective, total),
        ] {
            println!("{name} {label} {:.1e}", (found - expected).abs());
            assert!(
                (found - expected).abs() < 1e-5,
                "{name} {label}: {found}, expected {expected}"
            );
        }
        let expected = official::convert_all(tensors(&bytes, "grad."), model.config()).unwrap();
        assert_eq!(expected.len(), model.parameters().count());
        let gradient = gradient_deviation(&gradients, &expected);
        println!("{name} logits {logits:.1e} gradient {gradient:.1e}");
        assert!(gradient < 1e-4, "{name}: gradient {gradient}");
        assert!(pass.routing.iter().all(|routing| routing.dropped() == 0));
    }
}

#[test]
fn empty_expert_matrices_are_rejected() {
    let name = "moe-pre-norm";
    let json = json(&fixture(&format!("official/{name}.json")));
    let bytes = std::fs::read(fixture(&format!("official/{name}.safetensors"))).unwrap();
    for shape in [[0, 32], [128, 0]] {
        let mut weights = tensors(&bytes, "weight.");
        let matrix = "transformer.blocks.1.ffn.experts.mlp.w2";
        let values = weights.get_mut(matrix).unwrap();
        (values.shape, values.data) = (shape.to_vec(), Vec::new());
        let folder = tempfile::tempdir().unwrap();
        write_official(folder.path(), &json["model"], &weights);
        let error = official::import(folder.path(), Device::Cpu).unwrap_err();
        assert!(error.to_string().contains(matrix), "{error}");
    }
}
