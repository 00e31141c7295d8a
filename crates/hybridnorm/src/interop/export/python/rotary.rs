//! Python of rotary embeddings.

use super::Generator;
use super::source::{number, replace_line};
use crate::model::{ModelConfig, Rope, RopeScaling, yarn_ramp};

const ROTARY_EMBEDDING: &str = include_str!("fragments/rotary_embedding.py");

/// Returns the classes of the rotary embeddings, and the index of each block's.
pub(super) fn rotary_embeddings(generator: &Generator<'_>) -> (Vec<String>, Vec<usize>) {
    let config = generator.config;
    let mut known: Vec<Rope> = Vec::new();
    let of_layer = (0..config.n_layers).map(|layer| match config.rope_of_layer(layer) {
        // Blocks without a rotary embedding ignore it.
        Rope::Off => 0,
        rope => known
            .iter()
            .position(|other| *other == rope)
            .unwrap_or_else(|| {
                known.push(rope);
                known.len() - 1
            }),
    });
    let of_layer = of_layer.collect();
    let classes = known
        .iter()
        .enumerate()
        .map(|(i, rope)| rotary_embedding(config, rope, &name_of(i)));
    (classes.collect(), of_layer)
}

/// Returns the name of the class of a rotary embedding.
pub(super) fn name_of(index: usize) -> String {
    match index {
        0 => "RotaryEmbedding".into(),
        i => format!("RotaryEmbedding{}", i + 1),
    }
}

fn rotary_embedding(config: &ModelConfig, rope: &Rope, name: &str) -> String {
    let Rope::On {
        theta,
        scaling: scaled,
    } = rope
    else {
        unreachable!("only blocks with a rotary embedding have a class of it")
    };
    let theta_text = match *theta == config.rope_theta {
        true => "config.rope_theta".to_owned(),
        false => number(*theta),
    };
    let channels = match (config.mla, config.rope_dim) {
        (Some(_), _) => "config.qk_rope_head_dim".to_owned(),
        (None, Some(rope_dim)) => rope_dim.to_string(),
        (None, None) => "config.head_dim".to_owned(),
    };
    let (mut lines, magnitude) = scaling(config, *theta, scaled.as_ref());
    if let Some(rope_dim) = config.rope_dim {
        let rest = config.head_dim() / 2 - rope_dim / 2;
        lines.push("# The other channels are not rotated.".into());
        lines.push(format!("f = nn.functional.pad(f, (0, {rest}))"));
    }
    let text = ROTARY_EMBEDDING
        .replace("RotaryEmbedding", name)
        .replace("CHANNELS", &channels)
        .replace("THETA", &theta_text)
        .replace("MAGNITUDE", &magnitude);
    replace_line(&text, "SCALING", &lines)
}

/// Returns the statements that scale the frequencies, and the factor of cosines and sines.
fn scaling(
    config: &ModelConfig,
    theta: f64,
    scaling: Option<&RopeScaling>,
) -> (Vec<String>, String) {
    // Kept: the part of the way from the divided frequency back to the unscaled one.
    let interpolate = |factor: f64| {
        let factor = number(factor);
        format!("f = f / {factor} * (1 - kept) + f * kept")
    };
    match scaling {
        None => (vec![], String::new()),
        Some(RopeScaling::Linear { factor }) => {
            (vec![format!("f = f / {}", number(*factor))], String::new())
        }
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_seq_len,
        }) => {
            let lines = vec![
                format!("turns = {original_max_seq_len} * f / (2 * torch.pi)"),
                format!("kept = ((turns - {low:?}) / ({high:?} - {low:?})).clamp(0, 1)"),
                interpolate(*factor),
            ];
            (lines, String::new())
        }
        Some(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_seq_len,
            attention_factor,
        }) => {
            let turns = [*beta_fast, *beta_slow];
            let [low, width] = yarn_ramp(turns, *original_max_seq_len, theta, config.rope_dim());
            let lines = vec![
                format!(
                    "kept = (1 - (i - {}) / {}).clamp(0, 1)",
                    number(low),
                    number(width)
                ),
                interpolate(*factor),
            ];
            (lines, format!("{} * ", number(*attention_factor)))
        }
    }
}
