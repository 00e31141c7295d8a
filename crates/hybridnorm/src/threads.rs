//! How many threads compute. Results do not depend on it.

use crate::error::{Error, Result};

/// More would only be a slip of the finger, and systems end processes that ask for them.
const MOST: usize = 1024;

/// The number of threads that the environment asks for through `RAYON_NUM_THREADS`.
///
/// # Errors
/// If it is no number.
pub fn from_environment() -> Result<Option<usize>> {
    let Some(text) = std::env::var_os("RAYON_NUM_THREADS").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let number = text.to_str().and_then(|text| text.trim().parse().ok());
    let threads = number.ok_or_else(|| {
        Error::config(format!(
            "RAYON_NUM_THREADS is {text:?}, expected a number of threads"
        ))
    })?;
    // Rayon takes 0 for the number of cores.
    Ok((threads > 0).then_some(threads))
}

/// Stack of a thread: as much as a main thread has, whose work [`run`] gives to one of them.
const STACK: usize = 8 << 20;

/// Sets the number of threads for the whole process, `None` for one per core; to be called before
/// anything is computed.
///
/// # Errors
/// If `threads` is 0 or above 1024, or the pool is already running.
pub fn set(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads.filter(|threads| !(1..=MOST).contains(threads)) {
        return Err(Error::config(format!(
            "{threads} threads, expected 1 to {MOST}"
        )));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or_default())
        .stack_size(STACK)
        .build_global()
        .map_err(cannot_start)
}

/// A pool of so many threads beside the one of the process.
///
/// # Errors
/// If the threads cannot be started.
pub fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(STACK)
        .build()
        .map_err(cannot_start)
}

fn cannot_start(error: rayon::ThreadPoolBuildError) -> Error {
    Error::External(format!("cannot start threads to compute with: {error}"))
}

/// Does `work` on one of the threads that compute.
///
/// Nothing depends on it but time: an op that is called from another thread waits to be woken when
/// the threads that compute are done, some hundred times a step.
pub fn run<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// Number of threads that compute.
pub fn count() -> usize {
    rayon::current_num_threads()
}
