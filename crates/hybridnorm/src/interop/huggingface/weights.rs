//! Tensors on their way from their names to ours.

use std::collections::BTreeMap;

use super::super::experts::{self, Layout};
use crate::model::params::Values;
use crate::model::{ModelConfig, MoeConfig};

/// Tensors that are taken one by one; what is left over is an error.
pub(super) struct Weights {
    theirs: BTreeMap<String, Values>,
    ours: BTreeMap<String, Values>,
}

impl Weights {
    pub(super) fn new(theirs: BTreeMap<String, Values>) -> Self {
        Self {
            theirs,
            ours: BTreeMap::new(),
        }
    }

    /// Takes a tensor of theirs.
    pub(super) fn take(&mut self, name: &str) -> Result<Values, String> {
        let found = self.theirs.remove(name);
        found.ok_or_else(|| format!("tensor {name} is missing"))
    }

    /// Drops all tensors whose names begin so.
    pub(super) fn leave_out(&mut self, prefix: &str) {
        self.theirs.retain(|name, _| !name.starts_with(prefix));
    }

    /// Puts down a tensor of ours.
    pub(super) fn put(&mut self, name: impl Into<String>, values: Values) {
        self.ours.insert(name.into(), values);
    }

    /// One tensor under another name.
    pub(super) fn rename(&mut self, theirs: &str, ours: impl Into<String>) -> Result<(), String> {
        let values = self.take(theirs)?;
        self.put(ours, values);
        Ok(())
    }

    /// Takes a matrix of so many rows.
    pub(super) fn take_rows(&mut self, name: &str, rows: usize) -> Result<Values, String> {
        let values = self.take(name)?;
        match values.shape[..] {
            [found, _] if found == rows => Ok(values),
            _ => Err(format!(
                "tensor {name} has shape {:?}, expected a matrix of {rows} rows",
                values.shape
            )),
        }
    }

    /// Matrices of so many rows on top of each other.
    pub(super) fn stack(&mut self, theirs: &[(&str, usize)], ours: String) -> Result<(), String> {
        let parts = theirs
            .iter()
            .map(|(name, rows)| self.take_rows(name, *rows));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let stacked = stacked(&parts).map_err(|problem| format!("tensors {theirs:?} {problem}"))?;
        self.put(ours, stacked);
        Ok(())
    }

    /// A gated feed-forward of inner width `f`: `THEIRS.gate_proj`, `.up_proj` and `.down_proj`.
    pub(super) fn mlp(&mut self, theirs: &str, ours: &str, f: usize) -> Result<(), String> {
        let [gate, up, down] = projections(theirs);
        self.stack(&[(&gate, f), (&up, f)], format!("{ours}.up"))?;
        self.rename(&down, format!("{ours}.down"))
    }

    /// The experts of a mixture: `THEIRS.0.gate_proj` and so on.
    pub(super) fn experts(
        &mut self,
        theirs: &str,
        ours: &str,
        config: &ModelConfig,
        moe: &MoeConfig,
    ) -> Result<(), String> {
        let mut all: [Vec<Values>; 3] = Default::default();
        for expert in 0..moe.n_experts {
            let names = projections(&format!("{theirs}.{expert}"));
            for (matrices, name) in all.iter_mut().zip(names) {
                matrices.push(self.take(&name)?);
            }
        }
        let layout = Layout {
            d_model: config.d_model,
            d_expert: moe.d_expert,
        };
        self.ours.extend(experts::stacks(ours, layout, all)?);
        Ok(())
    }

    /// Embedding, final norm and head.
    pub(super) fn ends(&mut self, config: &ModelConfig) -> Result<(), String> {
        self.rename("model.embed_tokens.weight", "embedding")?;
        self.rename("model.norm.weight", "final_norm.gain")?;
        const HEAD: &str = "lm_head.weight";
        if !config.tie_embeddings {
            return self.rename(HEAD, "head");
        }
        // Checkpoints of tied models may carry the head as a second copy.
        match self.theirs.remove(HEAD) {
            Some(head) if self.ours.get("embedding") != Some(&head) => Err(format!(
                "tie_word_embeddings is set, but {HEAD} is not the embedding"
            )),
            _ => Ok(()),
        }
    }

    /// All of ours, if nothing of theirs is left.
    pub(super) fn finish(self) -> Result<BTreeMap<String, Values>, String> {
        match self.theirs.keys().next() {
            Some(name) => Err(format!("tensor {name} is not one of this family")),
            None => Ok(self.ours),
        }
    }
}

fn projections(path: &str) -> [String; 3] {
    ["gate", "up", "down"].map(|kind| format!("{path}.{kind}_proj.weight"))
}

/// Matrices of one width on top of each other.
pub(super) fn stacked(parts: &[Values]) -> Result<Values, String> {
    let mut rows = 0;
    let mut width = None;
    for part in parts {
        let [part_rows, columns] = part.shape[..] else {
            return Err("are not matrices".into());
        };
        if *width.get_or_insert(columns) != columns {
            return Err("are not of one width".into());
        }
        rows += part_rows;
    }
    let data: Vec<&[f32]> = parts.iter().map(|part| &part.data[..]).collect();
    Ok(Values {
        shape: vec![rows, width.unwrap_or(0)],
        data: data.concat(),
    })
}
