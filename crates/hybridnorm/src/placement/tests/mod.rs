mod explain;
mod hash;
mod latent;
mod named;
mod resolve;
mod serde_forms;
mod serialization;
mod streams;
mod symbolic_count;
mod unit;
mod validate;
mod validate_model;

use serde_json::Value;

use super::*;

/// Shape of a small model that should raise no warnings.
const SMALL: ModelFacts = ModelFacts {
    d_model: 512,
    head_dim: 64,
    has_gated_activation: true,
    is_latent_attention: false,
};

fn get(name: &str) -> Placement {
    named(name).unwrap()
}

/// Reads a placement from JSON.
fn of(value: Value) -> Placement {
    from_value(value).unwrap()
}

/// Returns the error message of rejected JSON.
fn error_message(value: Value) -> String {
    from_value(value).unwrap_err().to_string()
}
