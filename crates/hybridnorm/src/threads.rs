//! How many threads compute. Results do not depend on it.

use crate::error::{Error, Result};

/// More would only be a slip of the finger, and systems end processes that ask for them.
const MOST: usize = 1024;

/// The number of threads that the environment asks for through `RAYON_NUM_THREADS`.
///
/// # Errors
/// If it is no number.
pub fn from_environment() -> Result<Option<usize>> {
    let Ok(text) = std::env::var("RAYON_NUM_THREADS") else {
        return Ok(None);
    };
    let threads = text.trim().parse().map_err(|_| {
        Error::config(format!(
            "RAYON_NUM_THREADS is {text:?}, expected a number of threads"
        ))
    })?;
    // Rayon takes 0 for the number of cores.
    Ok((threads > 0).then_some(threads))
}

/// Sets the number of threads for the whole process; to be called before anything is computed.
///
/// # Errors
/// If `threads` is 0 or above 1024, or the pool is already running.
pub fn set(threads: usize) -> Result<()> {
    if threads == 0 || threads > MOST {
        return Err(Error::config(format!(
            "{threads} threads, expected 1 to {MOST}"
        )));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| Error::config(format!("cannot set the number of threads: {error}")))
}

/// Number of threads that compute.
pub fn count() -> usize {
    rayon::current_num_threads()
}
