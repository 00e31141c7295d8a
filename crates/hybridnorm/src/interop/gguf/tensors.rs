//! Tensors of a GGUF file under the names and in the layouts of Hugging Face's format.

use std::collections::BTreeMap;
use std::path::Path;

use super::families::{Family, Stored};
use super::reader::GgufFile;
use crate::error::{Error, Result};
use crate::interop::source::NamedTensors;
use crate::tensors::HostTensor;

/// A GGUF file and the translation of its names.
pub(super) struct Tensors {
    file: GgufFile,
    /// Name in the file and storage of each tensor, by its name in Hugging Face's format. Tensors that the family does
    /// not have keep their names, by which they are rejected.
    names: BTreeMap<String, (String, Stored)>,
}

impl Tensors {
    /// Translates the names of a file of this family.
    pub(super) fn new(file: GgufFile, family: &Family) -> std::result::Result<Self, String> {
        let heads = family.heads(&file)?;
        let mut names = BTreeMap::new();
        for name in file.names() {
            let translated = family.tensor(name, heads);
            let (theirs, stored) =
                translated.unwrap_or_else(|| (name.to_owned(), Stored::Unchanged));
            if names.insert(theirs, (name.to_owned(), stored)).is_some() {
                return Err(format!("tensor {name} is given under two names"));
            }
        }
        Ok(Self { file, names })
    }
}

impl NamedTensors for Tensors {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn names(&self) -> Vec<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    fn read(&self, name: &str) -> Result<HostTensor> {
        let format_error = |problem: String| Error::format(self.file.path(), problem);
        let (ours, stored) = self
            .names
            .get(name)
            .ok_or_else(|| format_error(format!("tensor {name} is missing")))?;
        let mut tensor = self.file.read(ours)?;
        match *stored {
            Stored::Unchanged => Ok(tensor),
            Stored::PlusOne => {
                tensor.data.iter_mut().for_each(|value| *value -= 1.0);
                Ok(tensor)
            }
            Stored::Interleaved { heads } => deinterleave(&tensor, heads)
                .map_err(|problem| format_error(format!("tensor {ours} {problem}"))),
        }
    }
}

/// Reorders the rows of each head: 0, 2, …, 1, 3, …, so that rotary pairs become half of the head's rows apart.
fn deinterleave(tensor: &HostTensor, heads: usize) -> std::result::Result<HostTensor, String> {
    let (rows, width) = match tensor.shape[..] {
        [rows, width] if heads > 0 && rows % (2 * heads) == 0 => (rows, width),
        _ => {
            return Err(format!(
                "has shape {:?}, expected a matrix of {heads} heads of an even number of rows",
                tensor.shape
            ));
        }
    };
    let half = rows / heads / 2;
    let mut data = Vec::with_capacity(tensor.data.len());
    for row in 0..rows {
        let (head, at) = (row / (2 * half), row % (2 * half));
        let source = head * 2 * half + 2 * (at % half) + at / half;
        data.extend_from_slice(&tensor.data[source * width..][..width]);
    }
    Ok(HostTensor {
        shape: tensor.shape.clone(),
        data,
    })
}

/// Reorders the rows of each head: 0, d/2, 1, d/2 + 1, …: the inverse of [`deinterleave`].
pub(super) fn interleave(tensor: &HostTensor, heads: usize) -> HostTensor {
    let (rows, width) = (tensor.shape[0], tensor.shape[1]);
    let half = rows / heads / 2;
    let mut data = Vec::with_capacity(tensor.data.len());
    for row in 0..rows {
        let (head, at) = (row / (2 * half), row % (2 * half));
        let source = head * 2 * half + at % 2 * half + at / 2;
        data.extend_from_slice(&tensor.data[source * width..][..width]);
    }
    HostTensor {
        shape: tensor.shape.clone(),
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_pairs_become_half_apart_in_every_head() {
        let tensor = |data: Vec<f32>| HostTensor {
            shape: vec![data.len(), 1],
            data,
        };
        let found = deinterleave(&tensor((0..8).map(|n| n as f32).collect()), 2).unwrap();
        assert_eq!(found, tensor(vec![0., 2., 1., 3., 4., 6., 5., 7.]));
        let twelve = tensor((0..12).map(|n| n as f32).collect());
        assert_eq!(deinterleave(&interleave(&twelve, 2), 2).unwrap(), twelve);
        let problem = deinterleave(&found, 3).unwrap_err();
        assert!(
            problem.contains("expected a matrix of 3 heads"),
            "{problem}"
        );
    }
}
