//! Conversion of a checkpoint's tensors to this crate's.

use std::collections::BTreeMap;

use super::super::TensorCounts;
use super::super::source::TensorSource;
use super::family::Family;
use super::layouts::HEADS;
use super::mapping::Mapping;
use crate::omissions::{Omissions, Unit};
use crate::tensors::HostTensor;

/// Source tensors, which are converted one by one. A source tensor that remains at the end is an error.
pub(in crate::interop) struct Weights {
    source: TensorSource,
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
pub(super) fn convert(family: &dyn Family, mut source: TensorSource) -> Result<Converted, String> {
    let total = source.len();
    if let Some(prefix) = family.optional_prefix() {
        source.add_missing_prefix(prefix);
    }
    let mut weights = Weights {
        source,
        read: 0,
        omissions: Omissions::default(),
    };
    family.omit(&mut weights);
    let mut values = BTreeMap::new();
    for mapping in family.mappings() {
        values.insert(mapping.ours.clone(), weights.convert(&mapping)?);
    }
    if family.config().tie_embeddings {
        weights.omit_tied_head(&values["embedding"])?;
    }
    weights.finish(total, values)
}

impl Weights {
    /// Omits all tensors with matching names, for a reason.
    pub(super) fn omit(&mut self, reason: &str, matches: impl Fn(&str) -> bool) {
        let names: Vec<String> = self.source.names().map(str::to_owned).collect();
        for name in names.into_iter().filter(|name| matches(name)) {
            self.source.remove(&name);
            self.omissions.add(Unit::Tensors, reason, 1, Some(name));
        }
    }

    fn convert(&mut self, mapping: &Mapping) -> Result<HostTensor, String> {
        match mapping.fused.as_ref().filter(|name| self.source.has(name)) {
            Some(name) => mapping.assemble_fused(self.take(name)?),
            None => mapping.assemble(|name| self.take(name)),
        }
    }

    fn take(&mut self, name: &str) -> Result<HostTensor, String> {
        let found = self.source.take(name)?;
        let found = found.ok_or_else(|| format!("tensor {name} is missing"))?;
        self.read += 1;
        Ok(found)
    }

    /// Checkpoints with tied embeddings may contain the head as a second copy.
    fn omit_tied_head(&mut self, embedding: &HostTensor) -> Result<(), String> {
        for name in HEADS {
            match self.source.take(name)? {
                None => {}
                Some(head) if head != *embedding => {
                    return Err(format!(
                        "tie_word_embeddings is set, but {name} differs from the embedding"
                    ));
                }
                Some(_) => {
                    let reason = "equal to the embedding, to which the head is tied";
                    self.omissions
                        .add(Unit::Tensors, reason, 1, Some(name.into()));
                }
            }
        }
        Ok(())
    }

    /// Returns the converted tensors, if no source tensor remains.
    fn finish(
        mut self,
        total: usize,
        values: BTreeMap<String, HostTensor>,
    ) -> Result<Converted, String> {
        self.omit(
            "inverse frequencies of the rotary embedding, which follow from the configuration",
            |name| name.ends_with("rotary_emb.inv_freq"),
        );
        match self.source.names().next() {
            Some(name) => Err(format!(
                "tensor {name} is not a tensor of this model family"
            )),
            None => Ok(Converted {
                values,
                tensors: TensorCounts {
                    all: total as u64,
                    read: self.read,
                },
                omissions: self.omissions,
            }),
        }
    }
}
