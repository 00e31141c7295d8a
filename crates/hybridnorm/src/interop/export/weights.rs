//! Conversion of weights to the names and layouts of a checkpoint, one tensor at a time.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::huggingface::mapping::Mapping;
use crate::error::{Error, Result};
use crate::model::{Model, ParamSpec};
use crate::tensors::{FloatType, HostTensor, StreamWriter};

/// Rounds all weights to the nearest numbers of a type.
///
/// # Errors
/// If a weight is too large for it.
pub(super) fn round(model: &mut Model, dtype: FloatType) -> Result<()> {
    if dtype == FloatType::F32 {
        return Ok(());
    }
    let specs: Vec<ParamSpec> = model.parameters().cloned().collect();
    for spec in specs {
        let mut values = model.read(&spec);
        for x in &mut values {
            let rounded = dtype.round(*x);
            if !rounded.is_finite() {
                return Err(Error::out_of_range(
                    format!("parameter {}", spec.name),
                    *x,
                    format!(
                        "a number in the range of {}; use --dtype f32 or bf16",
                        dtype.torch_name()
                    ),
                ));
            }
            *x = rounded;
        }
        model.write(&spec, &values);
    }
    Ok(())
}

/// Writes the weights of a model as the tensors of `mappings`.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write(
    path: &Path,
    model: &Model,
    mappings: &[Mapping],
    dtype: FloatType,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let spec = |mapping: &Mapping| {
        let spec = model.decoder().registry().get(&mapping.ours);
        spec.expect("mappings are of parameters of the model")
    };
    let shapes = mappings
        .iter()
        .map(|mapping| mapping.shapes(&spec(mapping).shape));
    let tensors = shapes.collect::<Vec<_>>().concat();
    let mut writer = StreamWriter::create(path, &tensors, dtype, metadata)?;
    for mapping in mappings {
        let spec = spec(mapping);
        let ours = HostTensor {
            shape: spec.shape.clone(),
            data: model.read(spec),
        };
        for (_, theirs) in mapping.split(ours) {
            writer.write(&theirs.data)?;
        }
    }
    writer.finish()
}

/// Writes the weights of a model under this crate's names, and its configuration as metadata.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write_plain(path: &Path, model: &Model, dtype: FloatType) -> Result<()> {
    let config = serde_json::to_string(model.config()).expect("a configuration has a JSON form");
    let metadata = BTreeMap::from([
        ("config".to_owned(), config),
        ("placement_hash".to_owned(), model.config().placement.hash()),
    ]);
    let same = model
        .parameters()
        .map(|spec| Mapping::renamed(&spec.name, &spec.name));
    write(path, model, &same.collect::<Vec<_>>(), dtype, &metadata)
}
