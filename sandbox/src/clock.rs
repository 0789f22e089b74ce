//! Wall-clock time and its spellings: seconds, and the three formats of the world around.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// The present moment.
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Whole seconds since 1970; zero for anything earlier.
pub(crate) fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// `2026-11-20T23:12:56Z`, as AWS and Kubernetes write it.
pub(crate) fn iso8601(at: SystemTime) -> String {
    format(at, "%Y-%m-%dT%H:%M:%SZ")
}

/// `2026_11_20_23_12_56`, as the kubelet names the directories of a volume.
pub(crate) fn volume_timestamp(at: SystemTime) -> String {
    format(at, "%Y_%m_%d_%H_%M_%S")
}

/// Reads `20261120T231256Z`, the value of `X-Amz-Date`.
pub(crate) fn parse_amz_date(text: &str) -> Option<SystemTime> {
    if text.len() != "20261120T231256Z".len() {
        return None;
    }
    let at = DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp().into())
}

fn format(at: SystemTime, format: &str) -> String {
    let at = Timestamp::try_from(at).expect("the clock is between the years -9999 and 9999");
    at.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[track_caller]
    fn check(seconds: u64, expect: &str) {
        let at = UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(iso8601(at), expect);
        let basic: String = expect.chars().filter(|c| !matches!(c, '-' | ':')).collect();
        assert_eq!(parse_amz_date(&basic), Some(at));
    }

    #[test]
    fn moments_are_written_and_read_in_utc() {
        check(0, "1970-01-01T00:00:00Z");
        check(1_709_251_199, "2024-02-29T23:59:59Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
    }

    #[test]
    fn a_fraction_of_a_second_is_cut_off() {
        assert_eq!(iso8601(UNIX_EPOCH + Duration::from_millis(1999)), "1970-01-01T00:00:01Z");
    }

    #[test]
    fn anything_but_the_basic_format_is_no_date() {
        for text in ["", "2026-11-20T23:12:56Z", "20261120T231256", "20261120 231256Z", "2026112aT231256Z"] {
            assert_eq!(parse_amz_date(text), None, "{text}");
        }
    }
}
