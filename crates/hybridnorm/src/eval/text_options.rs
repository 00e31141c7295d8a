//! Options for reading raw text in an evaluation: those of the checkpoint's run, unless they are
//! overridden.

use std::path::{Path, PathBuf};

use derive_setters::Setters;
use serde::Serialize;

use super::sets::EvalSet;
use crate::data::{InvalidUtf8, SourceOptions, Sources};
use crate::error::{Error, Result};
use crate::files;
use crate::train::{Config, checkpoint, history, run_directory, segments};

/// Text options given for this evaluation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Setters)]
#[setters(prefix = "with_", strip_option, into)]
#[non_exhaustive]
pub struct TextOverrides {
    /// See [`SourceOptions::text_field`].
    pub text_field: Option<String>,
    /// See [`SourceOptions::separator`].
    pub separator: Option<String>,
    /// See [`SourceOptions::document_chars`].
    pub document_chars: Option<usize>,
    /// See [`SourceOptions::include`].
    pub include: Vec<String>,
    /// See [`SourceOptions::exclude`].
    pub exclude: Vec<String>,
    /// See [`SourceOptions::skip_invalid`].
    pub skip_invalid: bool,
    /// True if invalid UTF-8 is replaced.
    pub replace_invalid_utf8: bool,
}

impl TextOverrides {
    /// Returns the options with these overrides.
    ///
    /// # Errors
    /// [`Error::Conflict`] if both `separator` and `document_chars` are given, which are mutually exclusive.
    pub fn apply_to(&self, mut options: SourceOptions) -> Result<SourceOptions> {
        if self.separator.is_some() && self.document_chars.is_some() {
            return Err(Error::conflict(
                ["separator", "document_chars"],
                "separator and document_chars are both given, expected one",
            ));
        }
        if let Some(field) = &self.text_field {
            options.text_field.clone_from(field);
        }
        if let Some(separator) = &self.separator {
            options.separator = Some(separator.clone());
            options.document_chars = SourceOptions::default().document_chars;
        }
        if let Some(chars) = self.document_chars {
            options.document_chars = chars;
            options.separator = None;
        }
        if !self.include.is_empty() {
            options.include.clone_from(&self.include);
        }
        if !self.exclude.is_empty() {
            options.exclude.clone_from(&self.exclude);
        }
        options.skip_invalid |= self.skip_invalid;
        if self.replace_invalid_utf8 {
            options.invalid_utf8 = InvalidUtf8::Replace;
        }
        Ok(options)
    }

    /// Returns the names of the overridden options.
    fn overridden(&self) -> Vec<&'static str> {
        let all = [
            ("text_field", self.text_field.is_some()),
            ("separator", self.separator.is_some()),
            ("document_chars", self.document_chars.is_some()),
            ("include", !self.include.is_empty()),
            ("exclude", !self.exclude.is_empty()),
            ("skip_bad", self.skip_invalid),
            ("invalid_utf8", self.replace_invalid_utf8),
        ];
        let given = all.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(name, _)| name).collect()
    }
}

/// Options for reading raw text, and their origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TextOptions {
    /// Path of the configuration of the checkpoint's run; `None` if the checkpoint is not in a run directory, or no
    /// text is read.
    pub from: Option<PathBuf>,
    /// Options given for this evaluation, which override those of the run.
    #[serde(rename = "given")]
    pub overridden: Vec<&'static str>,
    /// Effective options.
    pub options: SourceOptions,
}

impl TextOptions {
    /// Returns the options for a checkpoint's evaluation.
    ///
    /// # Errors
    /// If the configuration of its run cannot be read.
    pub(super) fn new(checkpoint: Option<&Path>, overrides: &TextOverrides) -> Result<Self> {
        let (from, run_options) = match checkpoint.map(run_text_options).transpose()?.flatten() {
            Some((path, options)) => (Some(path), options),
            None => (None, SourceOptions::default()),
        };
        Ok(Self {
            from,
            overridden: overrides.overridden(),
            options: SourceOptions {
                // Options that the run needs for its own text may have no effect here.
                allow_unused_options: true,
                ..overrides.apply_to(run_options)?
            },
        })
    }

    /// Describes the options in one line.
    pub fn summary(&self) -> String {
        let found = serde_json::json!(self.options);
        let defaults = serde_json::json!(SourceOptions::default());
        let source = match &self.from {
            Some(path) => path.display().to_string(),
            None => "the default".into(),
        };
        let all = found.as_object().into_iter().flatten();
        let named: Vec<String> = all
            .filter(|(name, value)| {
                self.overridden.contains(&name.as_str()) || defaults.get(*name) != Some(*value)
            })
            .map(|(name, value)| {
                let by = match self.overridden.contains(&name.as_str()) {
                    true => "as given",
                    false => &source,
                };
                format!("{name} = {value} ({by})")
            })
            .collect();
        match (named.is_empty(), &self.from) {
            (false, _) => format!("text is read with {}", named.join(", ")),
            (true, Some(_)) => format!("text is read with the default options, as in {source}"),
            (true, None) => {
                "text is read with the default options: the checkpoint is not in a run directory"
                    .into()
            }
        }
    }
}

/// Returns the configuration path of a checkpoint's run, and its text options at the checkpoint's step.
fn run_text_options(checkpoint: &Path) -> Result<Option<(PathBuf, SourceOptions)>> {
    let path = checkpoint.canonicalize().map_err(Error::io(checkpoint))?;
    let step = path.file_name().and_then(|name| name.to_str());
    let step = step.and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok());
    let (Some(step), Some(folder)) = (step, path.parent()) else {
        return Ok(None);
    };
    let run = folder
        .parent()
        .filter(|_| folder.ends_with(checkpoint::CHECKPOINTS));
    let Some(run) = run else { return Ok(None) };
    let config = run.join(run_directory::CONFIG);
    if !files::exists(&config)? {
        return Ok(None);
    }
    let newest = Config::load(&config, &[])?;
    let then = history::config_at_step(&newest, &segments::read(run)?, step)?;
    // Relative to the checkpoint path as given, if possible.
    let named = checkpoint.parent().and_then(Path::parent);
    let named = named.filter(|named| !named.as_os_str().is_empty());
    let config = named.map_or(config, |named| named.join(run_directory::CONFIG));
    Ok(Some((config, then.data.text.unwrap_or_default())))
}

/// Checks that each override has an effect on at least one raw text input.
pub(super) fn check_overrides_used(raw: &[String], overrides: &TextOverrides) -> Result<()> {
    match overrides.overridden().first() {
        None => Ok(()),
        Some(first) if raw.is_empty() => {
            Err(Error::no_effect(*first, ": none of the data is raw text"))
        }
        Some(_) => Sources::resolve(raw, &overrides.apply_to(SourceOptions::default())?).map(drop),
    }
}

/// Checks that a given separator occurs in one of the sets.
pub(super) fn check_separator(sets: &[EvalSet], overrides: &TextOverrides) -> Result<()> {
    let texts = sets.iter().filter(|set| set.text_options.is_some());
    let found: u64 = texts
        .filter_map(|set| Some(set.text.as_ref()?.separators))
        .sum();
    match &overrides.separator {
        Some(separator) if found == 0 => Err(Error::invalid_value(
            "separator",
            format!("separator `{separator}` occurs nowhere in the plain text files of the data"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separator_and_document_chars_are_mutually_exclusive() {
        let overrides = TextOverrides::default().with_separator("---");
        let options = overrides.apply_to(SourceOptions::default()).unwrap();
        assert_eq!(options.separator.as_deref(), Some("---"));
        let both = overrides.with_document_chars(10_usize);
        let error = both.apply_to(SourceOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{error}");
    }
}
