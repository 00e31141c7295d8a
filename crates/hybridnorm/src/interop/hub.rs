//! Download of model folders by name.

use std::collections::BTreeSet;
use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::huggingface::{CONFIG, INDEX, WEIGHTS, read_index};
use crate::error::{Error, Result};

/// Files that are downloaded if the model has them, besides its configuration and weights.
const OPTIONAL: [&str; 4] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// A server of models, and the folder that keeps what was downloaded.
///
/// ```no_run
/// use hybridnorm::interop::hub::Hub;
///
/// let folder = Hub::from_env().download("HuggingFaceTB/SmolLM2-135M", "main")?;
/// let imported = hybridnorm::interop::import(&folder, hybridnorm::Device::Cpu)?;
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Hub {
    endpoint: Option<String>,
    cache: Cache,
}

impl Hub {
    /// Returns the server that `HF_ENDPOINT` names, by default that of Hugging Face, and the cache below `HF_HOME`, by
    /// default `~/.cache/huggingface`.
    pub fn from_env() -> Self {
        Self {
            endpoint: std::env::var("HF_ENDPOINT").ok(),
            cache: Cache::from_env(),
        }
    }

    /// Returns a server at this address, such as `http://127.0.0.1:8000`, with a cache in this folder.
    pub fn new(endpoint: impl Into<String>, cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: Some(endpoint.into()),
            cache: Cache::new(cache.into()),
        }
    }

    /// Downloads configuration, weights and tokenizer of a model, unless the cache has them, and returns their folder.
    /// Weights in other formats than safetensors are never downloaded.
    ///
    /// # Errors
    /// If the name is not one of a model, the server cannot be reached or has no such model or revision, or the model
    /// has no safetensors.
    pub fn download(&self, name: &str, revision: &str) -> Result<PathBuf> {
        check_name("the name of a model", name)?;
        check_name("a revision", revision)?;
        let mut builder = ApiBuilder::from_cache(self.cache.clone()).with_progress(false);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let problem = |file: &str| {
            let key = format!("{name} ({revision})");
            let file = file.to_owned();
            move |error: ApiError| {
                Error::invalid_value(
                    key.clone(),
                    format!("{key}: {file} cannot be downloaded: {error}"),
                )
            }
        };
        let api = builder.build().map_err(problem("a list of files"))?;
        let repo = api.repo(Repo::with_revision(
            name.to_owned(),
            RepoType::Model,
            revision.to_owned(),
        ));
        let mut folder = None;
        let mut get = |file: &str| {
            let path = repo.get(file).map_err(problem(file))?;
            folder = path.parent().map(PathBuf::from);
            Ok::<_, Error>(path)
        };
        for file in files(&repo, name, &problem("a list of files"))? {
            let path = get(&file)?;
            if file == INDEX {
                let shards: BTreeSet<String> = read_index(&path)?.into_values().collect();
                for shard in shards {
                    get(&shard)?;
                }
            }
        }
        folder.ok_or_else(|| Error::missing(CONFIG, format!(": {name} has no files")))
    }
}

/// Returns the files to download, and of weights in several files the index, which lists them.
fn files(repo: &ApiRepo, name: &str, problem: &dyn Fn(ApiError) -> Error) -> Result<Vec<String>> {
    let listed = repo.info().map_err(problem)?.siblings;
    // Files of other folders, and names that would leave the cache, are none of a model's.
    let is_plain = |file: &String| !file.starts_with('.') && !file.contains(['/', '\\']);
    let listed: Vec<String> = listed
        .into_iter()
        .map(|file| file.rfilename)
        .filter(is_plain)
        .collect();
    let has = |file: &str| listed.iter().any(|listed| listed == file);
    let missing = |file: &str| Error::missing(file, format!(", which {name} does not have"));
    if !has(CONFIG) {
        return Err(missing(CONFIG));
    }
    let weights = match (has(WEIGHTS), has(INDEX)) {
        (true, _) => WEIGHTS.to_owned(),
        (false, true) => INDEX.to_owned(),
        (false, false) => return Err(missing(WEIGHTS)),
    };
    let optional = OPTIONAL
        .into_iter()
        .filter(|file| has(file))
        .map(str::to_owned);
    Ok(std::iter::once(CONFIG.to_owned())
        .chain(optional)
        .chain([weights])
        .collect())
}

/// Checks a name that becomes a part of paths and addresses.
fn check_name(what: &str, name: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.');
    match name.chars().all(is_allowed) && name.split('/').all(is_part) {
        true => Ok(()),
        false => Err(Error::invalid_value(
            name,
            format!("{name:?} is not {what}, as in ORGANIZATION/MODEL or main"),
        )),
    }
}
