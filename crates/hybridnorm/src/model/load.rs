//! Loading of a model's parameters.

use std::collections::BTreeMap;

use super::Model;
use crate::error::{Error, Result};
use crate::tensors::{self, HostTensor, TensorFile};

impl Model {
    /// Replaces the values of all parameters; `values` must contain each with its shape.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::UnknownKey`] or [`Error::ShapeMismatch`] with the name of the parameter.
    pub fn load(&mut self, values: BTreeMap<String, HostTensor>) -> Result<()> {
        let shapes = values
            .iter()
            .map(|(name, values)| (name.as_str(), values.shape.as_slice()));
        self.check_shapes(shapes.collect())?;
        for (name, handle) in tensors::parameters(self) {
            handle.write(&mut *self.executor, &values[&name].data);
        }
        Ok(())
    }

    /// Loads parameters as [`Model::load`] does, from a file, without holding a whole tensor in memory.
    ///
    /// # Errors
    /// As [`Model::load`], or if the file cannot be read.
    ///
    /// ```
    /// use hybridnorm::Device;
    /// use hybridnorm::model::Model;
    /// use hybridnorm::tensors::{self, TensorFile};
    ///
    /// # let config = hybridnorm::model::ModelConfig::default()
    /// #     .with_d_model(16)
    /// #     .with_n_layers(2)
    /// #     .with_n_heads(4)
    /// #     .with_n_kv_heads(2)
    /// #     .with_d_ff(40)
    /// #     .with_vocab_size(50)
    /// #     .with_max_seq_len(32)
    /// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
    /// let model = Model::new(&config, 42, Device::Cpu)?;
    /// let folder = tempfile::tempdir().unwrap();
    /// let path = folder.path().join("model.safetensors");
    /// tensors::write(&path, &tensors::parameters(&model), model.executor())?;
    ///
    /// let mut loaded = Model::uninitialized(&config, Device::Cpu)?;
    /// loaded.load_file(&TensorFile::open(&path)?)?;
    /// assert_eq!(loaded.values(), model.values());
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn load_file(&mut self, file: &TensorFile) -> Result<()> {
        let shapes = file.names().map(|name| (name, file.shape(name).unwrap()));
        self.check_shapes(shapes.collect())?;
        for (name, handle) in tensors::parameters(self) {
            handle.load(&mut *self.executor, file, &name)?;
        }
        Ok(())
    }

    /// Checks that names and shapes are those of the parameters.
    fn check_shapes(&self, mut shapes: BTreeMap<&str, &[usize]>) -> Result<()> {
        for spec in self.decoder.registry().iter() {
            match shapes.remove(spec.name.as_str()) {
                Some(shape) if shape == spec.shape => {}
                Some(shape) => {
                    return Err(Error::ShapeMismatch {
                        name: spec.name.clone(),
                        found: shape.to_vec(),
                        expected: spec.shape.clone(),
                    });
                }
                None => return Err(Error::missing(format!("parameter {}", spec.name), "")),
            }
        }
        match shapes.keys().next() {
            Some(name) => Err(Error::unknown_key(
                *name,
                format!("parameter {name} does not exist in this model"),
            )),
            None => Ok(()),
        }
    }

    /// Replaces the values of those parameters that `file` has with the same shape and for which `is_wanted` is true;
    /// returns the names of all others.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load_matching(
        &mut self,
        file: &TensorFile,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>> {
        let mut others = Vec::new();
        for (name, handle) in tensors::parameters(self) {
            match file.shape(&name) == Some(handle.shape()) && is_wanted(&name) {
                true => handle.load(&mut *self.executor, file, &name)?,
                false => others.push(name),
            }
        }
        Ok(others)
    }
}
