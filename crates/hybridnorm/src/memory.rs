//! Memory of this process and of the machine.

use crate::error::{Error, Result};

/// Returns the peak resident memory of this process in bytes, where the system reports it (Linux).
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Resets [`peak_bytes`] to the current memory, where the system allows it.
pub fn reset_peak() {
    // On failure the old peak remains, which is an upper bound.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

const MIB: u64 = 1 << 20;

/// Checks that an allocation fits into memory, so that it fails here instead of by the OOM killer.
///
/// # Errors
/// [`Error::OutOfMemory`] if `bytes`, needed for `what`, exceed the sum of memory and swap, the cgroup's limit, or what
/// remains of the address-space limit (`ulimit -v`). Never where the system does not report these.
pub fn check_available(bytes: u64, what: &str) -> Result<()> {
    match available_if_less_than(bytes) {
        Some(available) => Err(Error::OutOfMemory {
            needed: bytes,
            available: Some(available),
            problem: format!(
                "{what} need {}, but {} are available to this process",
                match bytes {
                    ..LARGE => format!("{} MiB of memory", bytes.div_ceil(MIB)),
                    LARGE.. => format!("{:.1} GiB of memory", gib(bytes)),
                },
                match available {
                    ..LARGE => format!("{} MiB", available / MIB),
                    LARGE.. => format!("{:.1} GiB", gib(available)),
                }
            ),
        }),
        None => Ok(()),
    }
}

/// Checks as [`check_available`] does, for the text of a document; the message suggests shortening it.
///
/// # Errors
/// As [`check_available`].
pub fn check_available_for_text(bytes: u64, what: &str) -> Result<()> {
    match available_if_less_than(bytes) {
        Some(available) => Err(Error::OutOfMemory {
            needed: bytes,
            available: Some(available),
            problem: format!(
                "{what} needs another {} MiB of memory, but {} MiB are available; increase the memory limit, \
                 or shorten the text",
                bytes.div_ceil(MIB),
                available / MIB
            ),
        }),
        None => Ok(()),
    }
}

/// Bytes from which a size is written in GiB.
const LARGE: u64 = 10 << 30;

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// Returns the bytes still available to this process, if `bytes` exceed them.
fn available_if_less_than(bytes: u64) -> Option<u64> {
    let occupied = address_space_bytes().unwrap_or(0);
    let free = address_space_limit().map(|limit| limit.saturating_sub(occupied));
    let available = free.into_iter().chain(total_bytes()).min()?;
    (bytes > available).then_some(available)
}

/// Returns the machine's total memory and swap, whether free or not, or the limit of this process's cgroup if that is
/// lower (Linux).
fn total_bytes() -> Option<u64> {
    let number = |text: String| text.trim().parse::<u64>().ok();
    let group = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let groups = group
        .iter()
        .filter_map(|path| number(std::fs::read_to_string(path).ok()?));
    groups.chain(machine_bytes()).min()
}

fn address_space_limit() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let mut lines = limits.lines();
    let line = lines.find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns the bytes of address space that this process uses.
fn address_space_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmSize:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn machine_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some(1024 * (kib("MemTotal:")? + kib("SwapTotal:").unwrap_or(0)))
}
