//! What this machine is.

/// Name of the processor, where the system tells (Linux), else its architecture.
pub fn name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The date in UTC, as in 2026-11-25; `None` where the clock stands at a year that is none.
pub fn date() -> Option<String> {
    date_of(std::time::SystemTime::now())
}

fn date_of(time: std::time::SystemTime) -> Option<String> {
    let time = jiff::Timestamp::try_from(time).ok()?;
    Some(time.strftime("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_clock_beyond_the_calendar_is_no_panic() {
        let day = Duration::from_secs(86_400);
        assert_eq!(date_of(UNIX_EPOCH + day).as_deref(), Some("1970-01-02"));
        let far = UNIX_EPOCH.checked_add(day * 365 * 9000);
        assert_eq!(far.and_then(date_of), None);
    }
}
