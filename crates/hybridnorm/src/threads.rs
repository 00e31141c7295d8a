//! How many threads compute. Results do not depend on it.

use crate::error::{Error, Result};

/// Sets the number of threads for the whole process; to be called before anything is computed.
///
/// # Errors
/// If `threads` is 0 or the pool is already running.
pub fn set(threads: usize) -> Result<()> {
    if threads == 0 {
        return Err(Error::config("0 threads, expected at least 1"));
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
