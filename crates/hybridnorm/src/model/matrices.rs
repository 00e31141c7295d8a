//! Parameters as the matrices that they are made of.

use burn::module::Module;

use super::config::ModelConfig;
use super::params;
use crate::eager as ops;

/// The linear maps whose matrices lie on top of each other in one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrices {
    /// Rows of each of them.
    pub rows: Vec<usize>,
    /// Whether they give what is added to the stream, so that their columns are vectors of its width;
    /// otherwise their rows are, as far as they read it.
    pub add_to_stream: bool,
}

impl Matrices {
    /// Of the parameter with this name and so many rows.
    pub fn of(name: &str, rows: usize, config: &ModelConfig) -> Self {
        let d = config.d_model;
        let (rows, add_to_stream) = match name.rsplit('.').next().unwrap_or(name) {
            "qkv" => {
                let (h, g) = (config.n_heads, config.n_kv_heads);
                let k = config.head_dim();
                (vec![h * k, g * k, g * k], false)
            }
            "latents" => {
                let widths = config.mla.map(|mla| mla.down_widths(config.n_heads));
                (widths.map_or(vec![rows], Vec::from), false)
            }
            // A feed-forward's, or those of all experts.
            "up" => {
                let is_of_experts = name.contains(".experts.");
                let experts = config.moe.as_ref().filter(|_| is_of_experts);
                let copies = experts.map_or(1, |moe| moe.n_experts) * config.ffn_in_width(1);
                (vec![rows / copies; copies], false)
            }
            "down" => (vec![d; rows / d], true),
            "out" => (vec![rows], true),
            _ => (vec![rows], false),
        };
        Self {
            rows,
            add_to_stream,
        }
    }
}

/// A model, or a part of one, whose matrices' vectors along the width have length 1 (nGPT, arXiv
/// 2410.01131): columns of what adds to the stream, rows of everything else.
pub(super) fn with_unit_vectors<M: Module>(module: M, config: &ModelConfig) -> M {
    params::map(module, |name, tensor| {
        let [rows, columns] = tensor.shape().as_slice().try_into().unwrap_or([0; 2]);
        if rows == 0 {
            return tensor;
        }
        let matrices = Matrices::of(name, rows, config);
        let (place, values) = tensor.take();
        place.put(match matrices.add_to_stream {
            true => ops::unit_columns(values, columns, &matrices.rows),
            false => ops::unit_rows(values, columns),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_linear_map_is_found() {
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24, "vocab_size": 9,
            "max_seq_len": 8, "rope_theta": 100.0, "tie_embeddings": false, "activation": "swiglu",
            "moe": { "n_experts": 3, "top_k": 1, "d_expert": 5, "first_dense": 1 },
            "placement": crate::placement::named("pre-norm").unwrap(),
        }))
        .unwrap();
        for (name, rows, expected, add_to_stream) in [
            ("embedding", 9, vec![9], false),
            ("blocks.0.attention.qkv", 32, vec![16, 8, 8], false),
            ("blocks.0.attention.out", 16, vec![16], true),
            ("blocks.0.feed_forward.up", 48, vec![24, 24], false),
            ("blocks.0.feed_forward.down", 16, vec![16], true),
            ("blocks.1.feed_forward.router", 3, vec![3], false),
            ("blocks.1.feed_forward.experts.up", 30, vec![5; 6], false),
            ("blocks.1.feed_forward.experts.down", 48, vec![16; 3], true),
        ] {
            let found = Matrices::of(name, rows, &config);
            let expected = Matrices {
                rows: expected,
                add_to_stream,
            };
            assert_eq!(found, expected, "{name}");
        }
    }
}
