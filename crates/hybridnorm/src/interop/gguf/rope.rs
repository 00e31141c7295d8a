//! Rotary embedding in GGUF: base and scaling are keys, except Llama 3's scaling, which is a tensor of factors.

use serde_json::{Value as Json, json};

use super::keys::Keys;
use super::reader::GgufFile;
use crate::model::{ModelConfig, RopeScaling};

/// Tensor of one factor for each frequency, by which the frequency is divided.
pub(super) const FACTORS: &str = "rope_freqs.weight";
/// Name in Hugging Face's format of the tensor that follows from the configuration, as [`FACTORS`] does.
pub(super) const FREQUENCIES: &str = "model.rotary_emb.inv_freq";
/// Settings of Llama 3.1 to 3.3, the only published ones besides the factor.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const ORIGINAL_LENGTH: usize = 8192;
/// Largest relative deviation of the factors in single precision.
const TOLERANCE: f64 = 1e-5;

/// Returns the `rope_parameters` of a `config.json`; `head_dim` is the width of a head.
pub(super) fn parameters(
    file: &GgufFile,
    keys: &mut Keys,
    head_dim: usize,
) -> Result<Json, String> {
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let kind = keys.text("rope.scaling.type")?.unwrap_or("none");
    // Says that the model was trained with its scaling.
    keys.ignore("rope.scaling.finetuned");
    let mut parameters = json!({"rope_theta": theta, "rope_type": "default"});
    match kind {
        "none" => {}
        "linear" => {
            parameters["rope_type"] = "linear".into();
            parameters["factor"] = json!(keys.required_number("rope.scaling.factor")?);
        }
        "yarn" => yarn(keys, &mut parameters)?,
        other => {
            return Err(format!(
                "{} = {:?}, expected \"none\", \"linear\" or \"yarn\"",
                keys.name("rope.scaling.type"),
                crate::text::truncated_line(other, 40)
            ));
        }
    }
    if file.shape(FACTORS).is_none() {
        return Ok(parameters);
    }
    if kind != "none" {
        return Err(format!(
            "tensor {FACTORS} is present and {} = {kind:?}; expected one of them",
            keys.name("rope.scaling.type")
        ));
    }
    let factors = file.read(FACTORS).map_err(|error| error.to_string())?;
    if let Some(factor) = llama3_factor(&factors.data, theta, head_dim)? {
        parameters["rope_type"] = "llama3".into();
        parameters["factor"] = json!(factor);
        parameters["low_freq_factor"] = json!(LOW_FREQ_FACTOR);
        parameters["high_freq_factor"] = json!(HIGH_FREQ_FACTOR);
        parameters["original_max_position_embeddings"] = json!(ORIGINAL_LENGTH);
    }
    Ok(parameters)
}

/// Returns the `rope_parameters` of a configuration.
pub(super) fn to_parameters(config: &ModelConfig) -> Json {
    let mut parameters = json!({"rope_theta": config.rope_theta});
    let mut set = |key: &str, value: Json| parameters[key] = value;
    match config.rope_scaling {
        None => set("rope_type", json!("default")),
        Some(RopeScaling::Linear { factor }) => {
            set("rope_type", json!("linear"));
            set("factor", json!(factor));
        }
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_seq_len,
        }) => {
            set("rope_type", json!("llama3"));
            set("factor", json!(factor));
            set("low_freq_factor", json!(low_freq_factor));
            set("high_freq_factor", json!(high_freq_factor));
            set(
                "original_max_position_embeddings",
                json!(original_max_seq_len),
            );
        }
        // `attention_factor` is that of the paper, the only one that is the same in llama.cpp.
        Some(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_seq_len,
            ..
        }) => {
            set("rope_type", json!("yarn"));
            set("factor", json!(factor));
            set("beta_fast", json!(beta_fast));
            set("beta_slow", json!(beta_slow));
            set(
                "original_max_position_embeddings",
                json!(original_max_seq_len),
            );
        }
    }
    parameters
}

fn yarn(keys: &mut Keys, parameters: &mut Json) -> Result<(), String> {
    parameters["rope_type"] = "yarn".into();
    parameters["factor"] = json!(keys.required_number("rope.scaling.factor")?);
    let original = keys.required_integer("rope.scaling.original_context_length")?;
    parameters["original_max_position_embeddings"] = json!(original);
    for (key, name) in [
        ("rope.scaling.yarn_beta_fast", "beta_fast"),
        ("rope.scaling.yarn_beta_slow", "beta_slow"),
    ] {
        if let Some(value) = keys.number(key)? {
            parameters[name] = json!(value);
        }
    }
    // Factors of llama.cpp with which its frequencies and magnitude are those of the paper.
    for key in [
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_attn_factor",
    ] {
        if let Some(value) = keys.number(key)?.filter(|value| *value != 1.0) {
            return Err(format!("{} = {value}, expected 1", keys.name(key)));
        }
    }
    Ok(())
}

/// Returns the factor of Llama 3's scaling that these factors of frequencies result from; `None` if all are 1.
fn llama3_factor(factors: &[f32], theta: f64, head_dim: usize) -> Result<Option<f64>, String> {
    if factors.len() != head_dim / 2 {
        return Err(format!(
            "tensor {FACTORS} has {} elements, expected {}, half the width of a head",
            factors.len(),
            head_dim / 2
        ));
    }
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    if factors.iter().all(|found| *found == 1.0) {
        return Ok(None);
    }
    let expected = factors_of(&llama3(factor), theta, head_dim);
    let is_close = |(found, expected): (&f32, &f64)| {
        (f64::from(*found) - expected).abs() <= TOLERANCE * expected
    };
    match factors.iter().zip(&expected).all(is_close) {
        true => Ok(Some(factor)),
        false => Err(format!(
            "tensor {FACTORS} has factors other than those of Llama 3's scaling with low_freq_factor \
             {LOW_FREQ_FACTOR}, high_freq_factor {HIGH_FREQ_FACTOR} and original length {ORIGINAL_LENGTH}, which is not \
             supported"
        )),
    }
}

fn llama3(factor: f64) -> RopeScaling {
    RopeScaling::Llama3 {
        factor,
        low_freq_factor: LOW_FREQ_FACTOR,
        high_freq_factor: HIGH_FREQ_FACTOR,
        original_max_seq_len: ORIGINAL_LENGTH,
    }
}

/// Returns the numbers that a scaling divides the frequencies of a head by.
pub(super) fn factors_of(scaling: &RopeScaling, theta: f64, head_dim: usize) -> Vec<f64> {
    let (plain, _) = RopeScaling::Linear { factor: 1.0 }.apply(theta, head_dim);
    let (scaled, _) = scaling.apply(theta, head_dim);
    let quotients = plain.iter().zip(&scaled);
    quotients.map(|(plain, scaled)| plain / scaled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factor_of_llama3_is_recognized() {
        let factors = |factor: f64| -> Vec<f32> {
            let factors = factors_of(&llama3(factor), 500_000.0, 64);
            factors.iter().map(|factor| *factor as f32).collect()
        };
        for factor in [8.0, 32.0] {
            let found = llama3_factor(&factors(factor), 500_000.0, 64);
            assert_eq!(found, Ok(Some(factor)));
        }
        assert_eq!(llama3_factor(&[1.0; 32], 500_000.0, 64), Ok(None));
        let mut other = factors(8.0);
        other[3] = 1.1;
        for (factors, theta) in [
            (other, 500_000.0),
            (factors(8.0), 10_000.0),
            (vec![1.0; 3], 1e4),
        ] {
            let problem = llama3_factor(&factors, theta, 64).unwrap_err();
            assert!(
                problem.starts_with("tensor rope_freqs.weight has "),
                "{problem}"
            );
        }
    }
}
