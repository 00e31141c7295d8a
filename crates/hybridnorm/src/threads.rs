//! Number of compute threads. Results do not depend on it.

use crate::error::{Error, Result};

/// Maximum number of threads: a larger number is likely a typo, and systems kill processes that request that many.
const MAX_THREADS: usize = 1024;

/// Returns the number of threads requested by the environment variable `RAYON_NUM_THREADS`.
///
/// # Errors
/// If it is not a number.
pub fn from_environment() -> Result<Option<usize>> {
    let Some(text) = std::env::var_os("RAYON_NUM_THREADS").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let number = text.to_str().and_then(|text| text.trim().parse().ok());
    let threads = number.ok_or_else(|| {
        Error::invalid_value(
            "RAYON_NUM_THREADS",
            format!("RAYON_NUM_THREADS is {text:?}, expected a number of threads"),
        )
    })?;
    // Rayon interprets 0 as the number of cores.
    Ok((threads > 0).then_some(threads))
}

/// Stack size of a compute thread: that of a main thread, since [`run`] moves the work of the main thread to a compute
/// thread.
const STACK: usize = 8 << 20;

/// Sets the number of threads of the whole process, `None` for one per core. Must be called before any
/// computation.
///
/// # Errors
/// If `threads` is 0 or above 1024, or the pool is already running.
pub fn set(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads.filter(|threads| !(1..=MAX_THREADS).contains(threads)) {
        return Err(Error::out_of_range(
            "threads",
            threads,
            format!("1 to {MAX_THREADS}"),
        ));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or_default())
        .stack_size(STACK)
        .build_global()
        .map_err(cannot_start)
}

/// Creates a pool of `threads` threads, separate from the global one.
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
    Error::External(format!("cannot start compute threads: {error}"))
}

/// Runs `work` on one of the compute threads.
///
/// This affects only speed: a thread outside the pool sleeps during each op and has to be woken when the op is done, a
/// few hundred times per step.
///
/// ```
/// assert_eq!(hybridnorm::threads::run(|| 1 + 1), 2);
/// ```
pub fn run<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// Returns the number of compute threads.
pub fn count() -> usize {
    rayon::current_num_threads()
}
