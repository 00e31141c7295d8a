//! Tensors of a checkpoint by name, read one at a time.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{self, Error};
use crate::tensors::HostTensor;
use crate::tensors::TensorFile;

/// Name parts that model wrappers add to tensor names, each with the wrapper.
const WRAPPERS: [(&str, &str); 4] = [
    ("_orig_mod", "torch.compile"),
    ("_fsdp_wrapped_module", "FSDP"),
    ("_checkpoint_wrapped_module", "activation checkpointing"),
    ("module", "DistributedDataParallel"),
];

/// A file of tensors by name.
pub(super) trait NamedTensors {
    fn path(&self) -> &Path;

    /// Returns the names of its tensors.
    fn names(&self) -> Vec<&str>;

    /// Reads a tensor, as f32.
    fn read(&self, name: &str) -> error::Result<HostTensor>;
}

impl NamedTensors for TensorFile {
    fn path(&self) -> &Path {
        self.path()
    }

    fn names(&self) -> Vec<&str> {
        self.names().collect()
    }

    fn read(&self, name: &str) -> error::Result<HostTensor> {
        self.read(name)
    }
}

/// Tensors in one or several files.
pub(super) struct TensorSource {
    files: Vec<Box<dyn NamedTensors>>,
    /// File index and original name of each tensor, by its name without the prefix.
    locations: BTreeMap<String, (usize, String)>,
    /// Prefix that was removed from all names.
    wrapper: String,
}

impl TensorSource {
    /// Combines the tensors of all files.
    pub(super) fn new<F: NamedTensors + 'static>(files: Vec<F>) -> Result<Self, String> {
        let names: Vec<&str> = files.iter().flat_map(F::names).collect();
        let wrapper = common_wrapper(&names);
        let mut locations = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for original_name in file.names() {
                let name = &original_name[wrapper.len()..];
                check_name(name)?;
                let location = (index, original_name.to_owned());
                if locations.insert(name.to_owned(), location).is_some() {
                    return Err(format!("tensor {original_name} is in two files"));
                }
            }
        }
        let boxed = |file| Box::new(file) as Box<dyn NamedTensors>;
        Ok(Self {
            files: files.into_iter().map(boxed).collect(),
            locations,
            wrapper,
        })
    }

    /// Adds a prefix to all names but that of the head, if none has it.
    pub(super) fn add_missing_prefix(&mut self, prefix: &str) {
        if self.names().any(|name| name.starts_with(prefix)) {
            return;
        }
        let renamed = |(name, location): (String, _)| match name.starts_with("lm_head.") {
            true => (name, location),
            false => (format!("{prefix}{name}"), location),
        };
        self.locations = std::mem::take(&mut self.locations)
            .into_iter()
            .map(renamed)
            .collect();
    }

    /// Returns the prefix that was removed from all names.
    pub(super) fn wrapper(&self) -> &str {
        &self.wrapper
    }

    /// Returns a note on the removed prefix, if there is one.
    pub(super) fn prefix_note(&self) -> Option<String> {
        prefix_note(&self.wrapper)
    }

    /// Returns the names of the files.
    pub(super) fn files(&self) -> Vec<String> {
        let names = self.files.iter().filter_map(|file| file.path().file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    /// Returns the number of remaining tensors.
    pub(super) fn len(&self) -> usize {
        self.locations.len()
    }

    /// Iterates over the names of the remaining tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.locations.keys().map(String::as_str)
    }

    /// True if a tensor of this name remains.
    pub(super) fn has(&self, name: &str) -> bool {
        self.locations.contains_key(name)
    }

    /// Removes a tensor; returns true if it existed.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.locations.remove(name).is_some()
    }

    /// Reads a tensor and removes it.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<HostTensor>, String> {
        let Some((index, original_name)) = self.locations.remove(name) else {
            return Ok(None);
        };
        let problem = |error| match error {
            Error::Format { problem, .. } => problem,
            other => other.to_string(),
        };
        self.files[index]
            .read(&original_name)
            .map(Some)
            .map_err(problem)
    }
}

/// Returns the prefix of wrappers that all of these names share; empty if there is none.
pub(super) fn common_wrapper(names: &[&str]) -> String {
    let mut common = String::new();
    if names.is_empty() {
        return common;
    }
    while let Some((wrapper, _)) = WRAPPERS.iter().find(|(wrapper, _)| {
        let prefix = format!("{common}{wrapper}.");
        names.iter().all(|name| name.starts_with(&prefix))
    }) {
        common += &format!("{wrapper}.");
    }
    common
}

/// Returns a note on the prefix that was removed from all names.
pub(super) fn prefix_note(wrapper: &str) -> Option<String> {
    let first = wrapper.split('.').next().unwrap_or_default();
    let (_, wrapper_name) = WRAPPERS.iter().find(|(known, _)| *known == first)?;
    Some(format!(
        "all tensor names have the prefix `{wrapper}` of {wrapper_name}, which is removed"
    ))
}

/// Appends a note that the names in the message lack the wrapper prefix.
pub(super) fn with_prefix_note(wrapper: &str, problem: String) -> String {
    match wrapper {
        "" => problem,
        wrapper => format!("{problem} (names without the `{wrapper}` prefix)"),
    }
}

/// Checks that a name is not that of a wrapped model; the message says what to do.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let is_wrapped = |wrapper: &str| match wrapper {
        "module" => name.starts_with("module."),
        _ => name.split('.').any(|part| part == wrapper),
    };
    match WRAPPERS.iter().find(|(wrapper, _)| is_wrapped(wrapper)) {
        None => Ok(()),
        Some((wrapper, wrapper_name)) => Err(format!(
            "tensor {name}: `{wrapper}.` was added to the name by {wrapper_name}; save the state_dict of \
             the wrapped model, or remove `{wrapper}.` from the names"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_prefix_of_wrappers_is_found() {
        let common = common_wrapper;
        assert_eq!(common(&["_orig_mod.a", "_orig_mod.b.c"]), "_orig_mod.");
        assert_eq!(
            common(&["_orig_mod.module.a", "_orig_mod.module.b"]),
            "_orig_mod.module."
        );
        assert_eq!(common(&["module._orig_mod.a", "module.b"]), "module.");
        assert_eq!(common(&["_orig_mod.a", "b"]), "");
        assert_eq!(common(&["model.a", "model.b"]), "");
        assert_eq!(common(&["_orig_modest.a"]), "");
        assert_eq!(common(&[]), "");
        assert_eq!(prefix_note(""), None);
        assert!(
            prefix_note("_orig_mod.module.")
                .unwrap()
                .contains("torch.compile")
        );
        assert!(check_name("a._orig_mod.b").is_err());
    }
}
