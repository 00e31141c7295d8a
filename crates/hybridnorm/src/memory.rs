//! Memory of this process and of the machine.

use crate::error::{Error, Result};

/// Largest resident memory of this process so far, in bytes, where the system tells (Linux).
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Starts [`peak_bytes`] over from the present memory, where the system allows it.
pub fn reset_peak() {
    // A refusal leaves the old peak in force, which is the safe side.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Refuses what cannot fit into the machine, before the system ends the process for asking.
///
/// # Errors
/// If `bytes`, needed for `what`, are more than memory and swap together; where the system does
/// not tell how much there is, never.
pub fn require(bytes: u64, what: &str) -> Result<()> {
    const GIB: f64 = (1u64 << 30) as f64;
    match available_bytes() {
        Some(there) if bytes > there => Err(Error::config(format!(
            "{what} need {:.1} GiB of memory, this process may have {:.1} GiB",
            bytes as f64 / GIB,
            there as f64 / GIB
        ))),
        _ => Ok(()),
    }
}

/// As [`require`], of memory besides what this process has: where its address space is limited, what it
/// occupies of that does not count.
///
/// # Errors
/// As [`require`].
pub fn require_more(bytes: u64, what: &str) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let occupied = address_space_bytes().unwrap_or(0);
    let free = address_space_limit().map(|limit| limit.saturating_sub(occupied));
    match free.into_iter().chain(available_bytes()).min() {
        Some(there) if bytes > there => Err(Error::config(format!(
            "{what} needs {} MiB of memory more, and this process may have {} MiB more; allow it more memory, or make it shorter",
            bytes.div_ceil(MIB),
            there / MIB
        ))),
        _ => Ok(()),
    }
}

/// What this process may have: memory and swap of the machine, or less where its control group or
/// its limit of address space says so (Linux).
fn available_bytes() -> Option<u64> {
    let number = |text: String| text.trim().parse::<u64>().ok();
    let group = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let groups = group
        .iter()
        .filter_map(|path| number(std::fs::read_to_string(path).ok()?));
    groups
        .chain(address_space_limit())
        .chain(machine_bytes())
        .min()
}

fn address_space_limit() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let mut lines = limits.lines();
    let line = lines.find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Address space that this process occupies.
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
