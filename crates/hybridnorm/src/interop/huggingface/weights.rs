//! Conversion of tensors from external names to this crate's.

use std::collections::BTreeMap;

use super::super::Tensors;
use super::super::experts::{self, Layout};
use super::super::source::Source;
use crate::model::{ModelConfig, MoeConfig};
use crate::omissions::{LeftOut, Unit};
use crate::tensors::Values;

/// Name of the head.
pub(super) const HEAD: &str = "lm_head.weight";

/// Tensors that are taken one by one; a remaining one is an error.
pub(super) struct Weights {
    theirs: Source,
    ours: BTreeMap<String, Values>,
    read: u64,
    left_out: LeftOut,
}

/// Converted tensors and an account of the source.
pub(super) struct Taken {
    pub(super) ours: BTreeMap<String, Values>,
    pub(super) tensors: Tensors,
    pub(super) left_out: LeftOut,
}

impl Weights {
    pub(super) fn new(theirs: Source) -> Self {
        Self {
            theirs,
            ours: BTreeMap::new(),
            read: 0,
            left_out: LeftOut::default(),
        }
    }

    /// Takes a source tensor.
    pub(super) fn take(&mut self, name: &str) -> Result<Values, String> {
        let found = self.theirs.take(name)?;
        let found = found.ok_or_else(|| format!("tensor {name} is missing"))?;
        self.read += 1;
        Ok(found)
    }

    /// Omits all tensors with matching names, for a reason.
    pub(super) fn leave_out(&mut self, reason: &str, is_so: impl Fn(&str) -> bool) {
        let names: Vec<String> = self.theirs.names().map(str::to_owned).collect();
        for name in names.into_iter().filter(|name| is_so(name)) {
            self.theirs.remove(&name);
            self.left_out.add(Unit::Tensors, reason, 1, Some(name));
        }
    }

    /// Stores a converted tensor.
    pub(super) fn put(&mut self, name: impl Into<String>, values: Values) {
        self.ours.insert(name.into(), values);
    }

    /// Takes a tensor and stores it under another name.
    pub(super) fn rename(&mut self, theirs: &str, ours: impl Into<String>) -> Result<(), String> {
        let values = self.take(theirs)?;
        self.put(ours, values);
        Ok(())
    }

    /// Takes a matrix with this number of rows.
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

    /// Stacks matrices with these numbers of rows.
    pub(super) fn stack(&mut self, theirs: &[(&str, usize)], ours: String) -> Result<(), String> {
        let parts = theirs
            .iter()
            .map(|(name, rows)| self.take_rows(name, *rows));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let stacked = stacked(&parts).map_err(|problem| format!("tensors {theirs:?} {problem}"))?;
        self.put(ours, stacked);
        Ok(())
    }

    /// Converts a gated feed-forward of inner width `f`: `THEIRS.gate_proj`, `.up_proj` and `.down_proj`.
    pub(super) fn mlp(&mut self, theirs: &str, ours: &str, f: usize) -> Result<(), String> {
        let [gate, up, down] = projections(theirs);
        self.stack(&[(&gate, f), (&up, f)], format!("{ours}.up"))?;
        self.rename(&down, format!("{ours}.down"))
    }

    /// Converts the experts of a mixture: `THEIRS.0.gate_proj` and so on.
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

    /// Converts embedding, final norm and head.
    pub(super) fn ends(&mut self, config: &ModelConfig) -> Result<(), String> {
        self.rename("model.embed_tokens.weight", "embedding")?;
        self.rename("model.norm.weight", "final_norm.gain")?;
        if !config.tie_embeddings {
            return self.rename(HEAD, "head");
        }
        // Checkpoints with tied embeddings may contain the head as a second copy.
        match self.theirs.take(HEAD)? {
            None => Ok(()),
            Some(head) if self.ours.get("embedding") != Some(&head) => Err(format!(
                "tie_word_embeddings is set, but {HEAD} is not the embedding"
            )),
            Some(_) => {
                let reason = "equal to the embedding, to which the head is tied";
                self.left_out
                    .add(Unit::Tensors, reason, 1, Some(HEAD.into()));
                Ok(())
            }
        }
    }

    /// Returns the converted tensors, if no source tensor remains.
    pub(super) fn finish(mut self, all: usize) -> Result<Taken, String> {
        self.leave_out(
            "wavelengths of the rotary embedding, which follow from the configuration",
            |name| name.ends_with("rotary_emb.inv_freq"),
        );
        match self.theirs.names().next() {
            Some(name) => Err(format!("tensor {name} is not one of this family")),
            None => Ok(Taken {
                ours: self.ours,
                tensors: Tensors {
                    all: all as u64,
                    read: self.read,
                },
                left_out: self.left_out,
            }),
        }
    }
}

fn projections(path: &str) -> [String; 3] {
    ["gate", "up", "down"].map(|kind| format!("{path}.{kind}_proj.weight"))
}

/// Stacks matrices of the same width.
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
