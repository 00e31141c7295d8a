//! Models of other depths with about the same number of parameters.

use crate::error::{Error, Result};
use crate::train::ModelSection;

/// Returns a model of `depth` blocks with about the same number of parameters in its blocks: the head dimension
/// is unchanged, the number of heads scales as `1/√depth` in multiples of query heads per key/value head, and the
/// feed-forward width makes up the remaining parameters, in multiples of 8.
///
/// # Errors
/// If the model is not a dense one with standard attention, or sets `head_dim`, `n_heads` is not a multiple of `n_kv_heads` or `d_model`
/// of `n_heads`, or no parameters are left for the feed-forward layer.
pub fn at_depth(model: &ModelSection, depth: usize) -> Result<ModelSection> {
    if depth == model.n_layers {
        return Ok(model.clone());
    }
    if model.moe.is_some() || model.mla.is_some() {
        return Err(Error::conflict(
            ["study.depths", "model.moe", "model.mla"],
            "study.depths keeps the number of parameters of dense models with standard attention; it is not \
             defined with model.moe or model.mla",
        ));
    }
    if model.head_dim.is_some() {
        return Err(Error::conflict(
            ["study.depths", "model.head_dim"],
            "study.depths scales d_model with the number of heads; it is not defined with model.head_dim",
        ));
    }
    let kv_heads = model.n_kv_heads.unwrap_or(model.n_heads);
    check_divisible(model, kv_heads, depth)?;
    let (head_dim, group) = (model.d_model / model.n_heads, model.n_heads / kv_heads);
    let projections = if model.activation.is_gated() { 3 } else { 2 };
    let attention = |d: usize, h: usize| d * head_dim * (2 * h + 2 * h / group);
    let block = attention(model.d_model, model.n_heads) + projections * model.d_model * model.d_ff;
    let target = (block * model.n_layers) as f64 / depth as f64;
    let ratio = (model.n_layers as f64 / depth as f64).sqrt();
    let groups = (model.n_heads as f64 * ratio / group as f64)
        .round()
        .max(1.0) as usize;
    let heads = groups * group;
    let d_model = heads * head_dim;
    let exact_d_ff = (target - attention(d_model, heads) as f64) / (projections * d_model) as f64;
    let d_ff = 8 * (exact_d_ff / 8.0).round() as usize;
    if d_ff == 0 {
        return Err(Error::invalid_value(
            "study.depths",
            format!(
                "study.depths: {depth} blocks at the parameter count of [model] leave d_ff = 0"
            ),
        ));
    }
    Ok(ModelSection {
        d_model,
        n_layers: depth,
        n_heads: heads,
        n_kv_heads: model.n_kv_heads.map(|_| groups),
        d_ff,
        ..model.clone()
    })
}

fn check_divisible(model: &ModelSection, kv_heads: usize, depth: usize) -> Result<()> {
    let sizes = [
        depth,
        model.n_layers,
        model.n_heads,
        kv_heads,
        model.d_model,
    ];
    let divides = |part: usize, whole: usize| part > 0 && whole.is_multiple_of(part);
    let fits = divides(kv_heads, model.n_heads) && divides(model.n_heads, model.d_model);
    match fits && !sizes.contains(&0) {
        true => Ok(()),
        false => Err(Error::conflict(
            ["study.depths", "model.n_heads", "model.d_model"],
            format!(
                "study.depths: cannot scale to {depth} blocks: n_heads = {}, n_kv_heads = {kv_heads}, \
                 d_model = {}, n_layers = {}",
                model.n_heads, model.d_model, model.n_layers
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_need_a_dense_model_with_heads_of_the_default_width() {
        let model = ModelSection::new("pre-norm")
            .with_d_model(64)
            .with_n_layers(4)
            .with_n_heads(4)
            .with_d_ff(128);
        assert_eq!(at_depth(&model, 2).unwrap().n_layers, 2);
        let error = at_depth(&model.with_head_dim(32), 2).unwrap_err();
        assert!(error.to_string().contains("model.head_dim"), "{error}");
    }
}
