//! The tensors of a checkpoint by name, read one by one.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::model::params::Values;
use crate::tensors::TensorFile;

/// What programs that wrap a model put into the names of its tensors, and who does.
const WRAPPERS: [(&str, &str); 4] = [
    ("_orig_mod", "torch.compile"),
    ("_fsdp_wrapped_module", "FSDP"),
    ("_checkpoint_wrapped_module", "activation checkpointing"),
    ("module", "DistributedDataParallel"),
];

/// Tensors in some files.
pub(super) struct Source {
    files: Vec<TensorFile>,
    /// Which file holds a name.
    places: BTreeMap<String, usize>,
}

impl Source {
    /// The tensors of all files together.
    pub(super) fn new(files: Vec<TensorFile>) -> Result<Self, String> {
        let mut places = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                check_name(name)?;
                if places.insert(name.to_owned(), index).is_some() {
                    return Err(format!("tensor {name} is in two files"));
                }
            }
        }
        Ok(Self { files, places })
    }

    /// The names of the files.
    pub(super) fn files(&self) -> Vec<String> {
        let names = self.files.iter().filter_map(|file| file.path().file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The names that are left.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Leaves a tensor out; says whether it was there.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.places.remove(name).is_some()
    }

    /// Reads a tensor, which is no more there then.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<Values>, String> {
        let Some(index) = self.places.remove(name) else {
            return Ok(None);
        };
        let problem = |error| match error {
            Error::Format { problem, .. } => problem,
            other => other.to_string(),
        };
        self.files[index].read(name).map(Some).map_err(problem)
    }
}

/// Refuses the names of wrapped models, with what to do.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let is_wrapped = |wrapper: &str| match wrapper {
        "module" => name.starts_with("module."),
        _ => name.split('.').any(|part| part == wrapper),
    };
    match WRAPPERS.iter().find(|(wrapper, _)| is_wrapped(wrapper)) {
        None => Ok(()),
        Some((wrapper, who)) => Err(format!(
            "tensor {name}: `{wrapper}.` is what {who} puts into the names; save the state of the model \
             that it wraps, or take `{wrapper}.` out of the names"
        )),
    }
}
