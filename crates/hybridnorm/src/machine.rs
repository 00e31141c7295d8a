//! CPU model name, date and time.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// Returns the CPU model name where the system reports it (Linux), else the architecture.
pub fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Returns the date in UTC, as in 2026-11-25; `None` if the clock is outside the calendar's range.
pub fn date() -> Option<String> {
    date_of(SystemTime::now())
}

/// Returns date and time in UTC, as in 2026-11-25T09:30:00.125Z; "not known" if the clock is outside the
/// calendar's range.
pub fn timestamp() -> String {
    let time = utc(SystemTime::now());
    time.map_or_else(
        || "not known".to_owned(),
        |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
    )
}

fn date_of(time: SystemTime) -> Option<String> {
    Some(utc(time)?.format("%Y-%m-%d").to_string())
}

fn utc(time: SystemTime) -> Option<DateTime<Utc>> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    DateTime::from_timestamp(i64::try_from(since.as_secs()).ok()?, since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_clock_outside_the_calendar_does_not_panic() {
        let day = Duration::from_secs(86_400);
        assert_eq!(date_of(UNIX_EPOCH + day).as_deref(), Some("1970-01-02"));
        let far = UNIX_EPOCH.checked_add(day * 365 * 300_000);
        assert_eq!(far.and_then(date_of), None);
    }
}
