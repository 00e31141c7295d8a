//! Third-party parsers of untrusted files, run so that their panics become errors.
//!
//! Such a panic is caused by the file, not by a bug of hybridnorm: the panic hook checks
//! [`is_parsing_untrusted`] and prints nothing.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

/// Stack size of the parsing thread. The input size is limited so that far less suffices.
const STACK: usize = 64 << 20;

// A panic hook receives the location of the panic, which may be anywhere in the parser, but not the call stack.
thread_local!(static RUNNING: Cell<bool> = const { Cell::new(false) });

/// True while this thread runs such a parser, whose panics become errors.
pub fn is_parsing_untrusted() -> bool {
    RUNNING.get()
}

/// Runs `work` and returns its result, or `None` if it panicked.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    let outer = RUNNING.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    RUNNING.set(outer);
    done.ok()
}

/// Runs `work` as [`catch_panic`] does, on a thread with a large stack.
pub(crate) fn catch_panic_on_large_stack<T: Send>(
    work: impl FnOnce() -> T + Send,
) -> Result<Option<T>, String> {
    thread::scope(|scope| {
        let parser = thread::Builder::new().stack_size(STACK);
        let parser = parser
            .spawn_scoped(scope, || catch_panic(work))
            .map_err(|error| format!("cannot start a thread to parse it: {error}"))?;
        Ok(parser.join().ok().flatten())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_returns_none() {
        assert_eq!(catch_panic(|| 3), Some(3));
        assert_eq!(
            catch_panic(|| -> u8 { panic!("{}", is_parsing_untrusted()) }),
            None
        );
        assert!(!is_parsing_untrusted());
        assert_eq!(catch_panic_on_large_stack(|| 4), Ok(Some(4)));
        assert_eq!(catch_panic_on_large_stack(|| -> u8 { panic!() }), Ok(None));
    }
}
