//! Comparison of a written folder with the model that it was written from.

use std::path::Path;

use serde::Serialize;

use super::MatrixType;
use super::self_test::SelfTest;
use crate::Device;
use crate::error::{Error, Result};
use crate::model::{Model, ParamSpec};
use crate::tensors::TensorFile;

/// Result of reading an exported folder back.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// Number of parameters.
    pub parameters: usize,
    /// Number of parameters whose elements all have the bits that were written; in a GGUF file, those of the model.
    pub equal_parameters: usize,
    /// Largest difference of the logits of the imported model from those of the model before its weights were rounded
    /// to the type of the file; `None` if it is not imported.
    pub logits_difference: Option<f32>,
    /// Largest absolute value of these logits.
    pub largest_logit: Option<f32>,
}

/// Imports a folder for `transformers`, and compares weights, and logits with those before rounding.
///
/// # Errors
/// If it cannot be imported, or a weight differs.
pub(super) fn hugging_face(
    folder: &Path,
    model: &Model,
    before: &SelfTest,
) -> Result<Verification> {
    let mut imported = super::super::huggingface::import(folder, Device::Cpu)?;
    let mut equal_parameters = 0;
    for spec in model.parameters() {
        let found = imported.decoder().registry().get(&spec.name).cloned();
        let found = found.map(|found| imported.read(&found));
        check(folder, spec, &model.read(spec), found.as_deref())?;
        equal_parameters += 1;
    }
    Ok(Verification {
        parameters: model.parameters().count(),
        equal_parameters,
        logits_difference: Some(before.logits_difference(&mut imported)?),
        largest_logit: Some(before.largest_logit()),
    })
}

/// Imports a GGUF file, and compares weights up to the rounding of their type, and logits.
///
/// # Errors
/// If it cannot be imported, or a weight differs by more.
pub(super) fn gguf(
    path: &Path,
    model: &Model,
    before: &SelfTest,
    kind: MatrixType,
) -> Result<Verification> {
    let mut imported = super::super::gguf::read(path, Device::Cpu)?.model;
    let mut equal_parameters = 0;
    for spec in model.parameters() {
        let expected = model.read(spec);
        let found = imported.decoder().registry().get(&spec.name).cloned();
        let found = found.map(|found| imported.read(&found));
        match &found {
            Some(found) if is_close(found, &expected, spec, kind) => {
                equal_parameters += usize::from(*found == expected);
            }
            _ => check(path, spec, &expected, found.as_deref())?,
        }
    }
    Ok(Verification {
        parameters: model.parameters().count(),
        equal_parameters,
        logits_difference: Some(before.logits_difference(&mut imported)?),
        largest_logit: Some(before.largest_logit()),
    })
}

/// True if no element differs by more than the rounding of the type.
fn is_close(found: &[f32], expected: &[f32], spec: &ParamSpec, kind: MatrixType) -> bool {
    let width = spec.shape.last().copied().unwrap_or(1);
    let error = kind.largest_error(&spec.shape);
    let rows = found.chunks(width).zip(expected.chunks(width));
    found.len() == expected.len()
        && rows.into_iter().all(|(found, expected)| {
            // A gain may be stored plus 1.
            let largest = expected.iter().fold(1.0, |m: f32, x| m.max(x.abs()));
            let largest = if spec.shape.len() > 1 {
                expected
                    .iter()
                    .fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()))
            } else {
                largest
            };
            found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() <= error * largest)
        })
}

/// Reads a file with this crate's names, and compares weights.
///
/// # Errors
/// If it cannot be read, or a weight differs.
pub(super) fn plain(path: &Path, model: &Model) -> Result<Verification> {
    let file = TensorFile::open(path)?;
    let mut equal_parameters = 0;
    for spec in model.parameters() {
        let found = file.read(&spec.name)?;
        check(path, spec, &model.read(spec), Some(&found.data))?;
        equal_parameters += 1;
    }
    Ok(Verification {
        parameters: equal_parameters,
        equal_parameters,
        logits_difference: None,
        largest_logit: None,
    })
}

fn check(path: &Path, spec: &ParamSpec, expected: &[f32], found: Option<&[f32]>) -> Result<()> {
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    match found {
        Some(found) if bits(found) == bits(expected) => Ok(()),
        Some(_) => Err(Error::format(
            path,
            format!("{} differs from the exported model", spec.name),
        )),
        None => Err(Error::format(
            path,
            format!("{} is missing after the import", spec.name),
        )),
    }
}
