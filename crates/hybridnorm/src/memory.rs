//! Memory of this process.

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
