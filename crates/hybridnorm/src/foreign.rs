//! Code of other crates that reads files of other people, run so that its panics become errors.
//!
//! A panic there is the file's fault, not a defect of this program: a panic hook asks
//! [`is_running`] and stays silent.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

/// Stack of the thread that reads a file. What is read is limited so that far less is enough.
const STACK: usize = 64 << 20;

// A hook is told the place of a panic, which may be anywhere below, but not who called.
thread_local!(static RUNNING: Cell<bool> = const { Cell::new(false) });

/// True while this thread runs such code. Panics there become errors.
pub fn is_running() -> bool {
    RUNNING.get()
}

/// The result of `work`, or none where it panicked.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let outer = RUNNING.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    RUNNING.set(outer);
    done.ok()
}

/// As [`caught`], on a thread with a large stack.
pub(crate) fn caught_on_large_stack<T: Send>(
    work: impl FnOnce() -> T + Send,
) -> Result<Option<T>, String> {
    thread::scope(|scope| {
        let reader = thread::Builder::new().stack_size(STACK);
        let reader = reader
            .spawn_scoped(scope, || caught(work))
            .map_err(|error| format!("no thread to read it on: {error}"))?;
        Ok(reader.join().ok().flatten())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_no_result() {
        assert_eq!(caught(|| 3), Some(3));
        assert_eq!(caught(|| -> u8 { panic!("{}", is_running()) }), None);
        assert!(!is_running());
        assert_eq!(caught_on_large_stack(|| 4), Ok(Some(4)));
        assert_eq!(caught_on_large_stack(|| -> u8 { panic!() }), Ok(None));
    }
}
