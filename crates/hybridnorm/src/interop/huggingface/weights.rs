//! Conversion of tensors from external names to this crate's.

use std::collections::BTreeMap;

use super::super::TensorCounts;
use super::super::experts::{self, ExpertDims};
use super::super::source::TensorSource;
use super::family::Family;
use crate::model::{ModelConfig, MoeConfig};
use crate::omissions::{Omissions, Unit};
use crate::tensors::HostTensor;

/// Name of the LM head's weight.
pub(super) const HEAD: &str = "lm_head.weight";

/// Source tensors, which are converted one by one, and the converted ones. A source tensor that remains at the end is
/// an error.
pub(super) struct Weights {
    source: TensorSource,
    converted: BTreeMap<String, HostTensor>,
    read: u64,
    omissions: Omissions,
}

/// Converted tensors, with counts of the source's tensors and of omitted ones.
pub(super) struct Converted {
    pub(super) values: BTreeMap<String, HostTensor>,
    pub(super) tensors: TensorCounts,
    pub(super) omissions: Omissions,
}

/// Converts all tensors of a checkpoint.
pub(super) fn convert(family: &dyn Family, source: TensorSource) -> Result<Converted, String> {
    let total = source.len();
    let mut weights = Weights::new(source);
    family.convert(&mut weights)?;
    weights.finish(total)
}

impl Weights {
    fn new(source: TensorSource) -> Self {
        Self {
            source,
            converted: BTreeMap::new(),
            read: 0,
            omissions: Omissions::default(),
        }
    }

    /// Takes a source tensor.
    pub(super) fn take(&mut self, name: &str) -> Result<HostTensor, String> {
        let found = self.source.take(name)?;
        let found = found.ok_or_else(|| format!("tensor {name} is missing"))?;
        self.read += 1;
        Ok(found)
    }

    /// Omits all tensors with matching names, for a reason.
    pub(super) fn omit(&mut self, reason: &str, matches: impl Fn(&str) -> bool) {
        let names: Vec<String> = self.source.names().map(str::to_owned).collect();
        for name in names.into_iter().filter(|name| matches(name)) {
            self.source.remove(&name);
            self.omissions.add(Unit::Tensors, reason, 1, Some(name));
        }
    }

    /// Stores a converted tensor.
    pub(super) fn insert(&mut self, name: impl Into<String>, values: HostTensor) {
        self.converted.insert(name.into(), values);
    }

    /// Takes a tensor and stores it under another name.
    pub(super) fn rename(
        &mut self,
        source: &str,
        converted: impl Into<String>,
    ) -> Result<(), String> {
        let values = self.take(source)?;
        self.insert(converted, values);
        Ok(())
    }

    /// Takes a matrix with this number of rows.
    pub(super) fn take_rows(&mut self, name: &str, rows: usize) -> Result<HostTensor, String> {
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
    pub(super) fn stack(
        &mut self,
        sources: &[(&str, usize)],
        converted: String,
    ) -> Result<(), String> {
        let parts = sources
            .iter()
            .map(|(name, rows)| self.take_rows(name, *rows));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let stacked =
            stacked(&parts).map_err(|problem| format!("tensors {sources:?} {problem}"))?;
        self.insert(converted, stacked);
        Ok(())
    }

    /// Converts grouped-query attention: `SOURCE.q_proj`, `.k_proj`, `.v_proj` and `.o_proj`.
    pub(super) fn attention(
        &mut self,
        source: &str,
        converted: &str,
        config: &ModelConfig,
    ) -> Result<(), String> {
        let name = |field: &str| format!("{source}.{field}_proj.weight");
        self.rename(&name("o"), format!("{converted}.out"))?;
        let [q, k, v] = ["q", "k", "v"].map(name);
        let queries = config.n_heads * config.head_dim();
        let keys = config.n_kv_heads * config.head_dim();
        self.stack(
            &[(&q, queries), (&k, keys), (&v, keys)],
            format!("{converted}.qkv"),
        )
    }

    /// Converts a gated feed-forward of inner width `f`: `SOURCE.gate_proj`, `.up_proj` and `.down_proj`.
    pub(super) fn mlp(&mut self, source: &str, converted: &str, f: usize) -> Result<(), String> {
        let [gate, up, down] = projections(source);
        self.stack(&[(&gate, f), (&up, f)], format!("{converted}.up"))?;
        self.rename(&down, format!("{converted}.down"))
    }

    /// Converts the experts of a mixture-of-experts block: `SOURCE.0.gate_proj` and so on.
    pub(super) fn experts(
        &mut self,
        source: &str,
        converted: &str,
        config: &ModelConfig,
        moe: &MoeConfig,
    ) -> Result<(), String> {
        let mut all: [Vec<HostTensor>; 3] = Default::default();
        for expert in 0..moe.n_experts {
            let names = projections(&format!("{source}.{expert}"));
            for (matrices, name) in all.iter_mut().zip(names) {
                matrices.push(self.take(&name)?);
            }
        }
        let dims = ExpertDims {
            d_model: config.d_model,
            d_expert: moe.d_expert,
        };
        self.converted
            .extend(experts::stack_projections(converted, dims, all)?);
        Ok(())
    }

    /// Converts embedding, final norm and head.
    pub(super) fn embedding_norm_and_head(&mut self, config: &ModelConfig) -> Result<(), String> {
        self.rename("model.embed_tokens.weight", "embedding")?;
        self.rename("model.norm.weight", "final_norm.gain")?;
        if !config.tie_embeddings {
            return self.rename(HEAD, "head");
        }
        // Checkpoints with tied embeddings may contain the head as a second copy.
        match self.source.take(HEAD)? {
            None => Ok(()),
            Some(head) if self.converted.get("embedding") != Some(&head) => Err(format!(
                "tie_word_embeddings is set, but {HEAD} differs from the embedding"
            )),
            Some(_) => {
                let reason = "equal to the embedding, to which the head is tied";
                self.omissions
                    .add(Unit::Tensors, reason, 1, Some(HEAD.into()));
                Ok(())
            }
        }
    }

    /// Returns the converted tensors, if no source tensor remains.
    fn finish(mut self, total: usize) -> Result<Converted, String> {
        self.omit(
            "inverse frequencies of the rotary embedding, which follow from the configuration",
            |name| name.ends_with("rotary_emb.inv_freq"),
        );
        match self.source.names().next() {
            Some(name) => Err(format!(
                "tensor {name} is not a tensor of this model family"
            )),
            None => Ok(Converted {
                values: self.converted,
                tensors: TensorCounts {
                    all: total as u64,
                    read: self.read,
                },
                omissions: self.omissions,
            }),
        }
    }
}

fn projections(path: &str) -> [String; 3] {
    ["gate", "up", "down"].map(|kind| format!("{path}.{kind}_proj.weight"))
}

/// Stacks matrices of the same width.
pub(super) fn stacked(parts: &[HostTensor]) -> Result<HostTensor, String> {
    let mut rows = 0;
    let mut width = None;
    for part in parts {
        let [part_rows, columns] = part.shape[..] else {
            return Err("are not matrices".into());
        };
        if *width.get_or_insert(columns) != columns {
            return Err("have different widths".into());
        }
        rows += part_rows;
    }
    let data: Vec<&[f32]> = parts.iter().map(|part| &part.data[..]).collect();
    Ok(HostTensor {
        shape: vec![rows, width.unwrap_or(0)],
        data: data.concat(),
    })
}
