//! When to refresh, when to try again and what to hand out: arithmetic, without clock and state.

use std::time::{Duration, SystemTime};

use super::Credentials;

/// How long a failure is remembered that a request has waited for in vain.
pub(super) const REMEMBER_UNAVAILABLE: Duration = Duration::from_secs(5);

/// How long after it was last asked for a key is retried for nobody, where nothing but a request wanted it.
pub(super) const KEEP_UNASKED: Duration = Duration::from_secs(60);

/// How soon a waiting request may have a missing token looked for anew.
pub(super) const LOOK_FOR_TOKEN: Duration = Duration::from_secs(1);

/// Longest wait between two attempts while a request waits.
pub(super) const RETRY_WAITED_FOR: Duration = Duration::from_secs(10);

/// Longest wait between two attempts when nobody waits and nothing is valid.
pub(super) const RETRY_UNASKED: Duration = Duration::from_secs(60);

/// Longest wait between two attempts when something is valid.
pub(super) const RETRY_REFRESH: Duration = Duration::from_secs(300);

/// Less is not handed out while STS is healthy: below 15 min botocore fetches at each signing, and clocks differ.
const FLOOR: Duration = Duration::from_secs(20 * 60);

/// Shorter sessions have no floor: they would spend most of their life below it.
const SHORTEST_WITH_FLOOR: Duration = Duration::from_secs(40 * 60);

/// What must remain when a session is refreshed, where it is long enough.
const REFRESH_REMAINING: Duration = Duration::from_secs(30 * 60);

/// When to fetch anew: once less than half, and less than 30 min where the session allows, remains.
///
/// `jitter`, from 0 to 1, spreads keys that were fetched together over a twelfth of the lifetime.
pub(super) fn refresh_at(issued_at: SystemTime, expires_at: SystemTime, jitter: f64) -> SystemTime {
    let lifetime = expires_at.duration_since(issued_at).unwrap_or_default();
    let half = lifetime / 2;
    let remaining = if REFRESH_REMAINING <= lifetime / 4 * 3 { half.max(REFRESH_REMAINING) } else { half };
    issued_at + (lifetime - remaining) + (lifetime / 12).mul_f64(jitter.clamp(0.0, 1.0))
}

/// Whether `credentials` are long-lived enough at `now` to be handed out although newer ones can be had.
pub(super) fn is_above_floor(credentials: &Credentials, now: SystemTime) -> bool {
    let expires_at = credentials.expires_at();
    let lifetime = expires_at.duration_since(credentials.issued_at()).unwrap_or_default();
    lifetime < SHORTEST_WITH_FLOOR || FLOOR <= expires_at.duration_since(now).unwrap_or_default()
}

/// Wait before the next attempt after `failures` in a row: full jitter over 0.2 s, doubling up to `longest`.
pub(super) fn retry_in(failures: u32, longest: Duration, jitter: f64) -> Duration {
    let doubled = Duration::from_millis(200).saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(longest).mul_f64(jitter.clamp(0.0, 1.0))
}

/// Longest wait between attempts to replace credentials of which `remaining` is left: well before they expire.
pub(super) fn longest_retry(remaining: Duration) -> Duration {
    (remaining / 4).clamp(RETRY_WAITED_FOR, RETRY_REFRESH)
}

/// How long the `refusals`-th refusal in a row is remembered: 5 s, doubling up to 30 s, so that a trust policy
/// that was mended is noticed soon.
pub(super) fn remember_refusal(refusals: u32) -> Duration {
    doubling(Duration::from_secs(5), Duration::from_secs(30), refusals)
}

/// When to ask again, unasked, after the `refusals`-th refusal in a row: 30 s to 5 min.
pub(super) fn ask_again_in(refusals: u32, jitter: f64) -> Duration {
    let shortest = Duration::from_secs(30);
    let longest = doubling(Duration::from_secs(60), Duration::from_secs(300), refusals);
    shortest + (longest - shortest).mul_f64(jitter.clamp(0.0, 1.0))
}

/// How long the whole daemon keeps quiet after the `throttles`-th throttling in a row: 0.5 s, doubling up to 10 s,
/// of which a half is jitter.
pub(super) fn throttle_pause(throttles: u32, jitter: f64) -> Duration {
    let longest = doubling(Duration::from_millis(500), RETRY_WAITED_FOR, throttles);
    longest / 2 + (longest / 2).mul_f64(jitter.clamp(0.0, 1.0))
}

fn doubling(first: Duration, longest: Duration, times: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times.saturating_sub(1))).min(longest)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Minutes that remain when a session of `lifetime` minutes is refreshed, at the earliest and at the latest.
    #[track_caller]
    fn check_refresh(lifetime: u32, expect: (f64, f64)) {
        let expires_at = UNIX_EPOCH + lifetime * MINUTE;
        let remaining = |jitter| {
            expires_at.duration_since(refresh_at(UNIX_EPOCH, expires_at, jitter)).unwrap().as_secs_f64()
                / 60.0
        };
        let is = (remaining(0.0), remaining(1.0));
        assert!(
            (is.0 - expect.0).abs() < 0.01 && (is.1 - expect.1).abs() < 0.01,
            "{lifetime} min: {is:?}, not {expect:?}"
        );
    }

    #[test]
    fn a_session_is_refreshed_at_half_time_and_no_later_than_thirty_minutes_before_its_end() {
        check_refresh(15, (7.5, 6.25));
        check_refresh(39, (19.5, 16.25));
        check_refresh(40, (30.0, 26.667));
        check_refresh(50, (30.0, 25.833));
        check_refresh(60, (30.0, 25.0));
        check_refresh(120, (60.0, 50.0));
        check_refresh(720, (360.0, 300.0));
    }

    #[test]
    fn retries_double_up_to_their_longest_with_full_jitter() {
        let millis = |failures, jitter| retry_in(failures, RETRY_WAITED_FOR, jitter).as_millis();
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 7, 99].map(|n| millis(n, 1.0)),
            [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!(millis(7, 0.0), 0);
        assert_eq!(millis(7, 0.5), 5000);
        assert_eq!(retry_in(u32::MAX, RETRY_REFRESH, 1.0), RETRY_REFRESH);
    }

    #[test]
    fn refusals_are_remembered_for_thirty_seconds_at_most() {
        assert_eq!([1, 2, 3, 4, 99].map(|n| remember_refusal(n).as_secs()), [5, 10, 20, 30, 30]);
        assert_eq!([1, 2, 3, 4, 99].map(|n| ask_again_in(n, 1.0).as_secs()), [60, 120, 240, 300, 300]);
        assert_eq!([1, 2, 3, 4, 99].map(|n| ask_again_in(n, 0.0).as_secs()), [30; 5]);
    }

    proptest! {
        #[test]
        fn a_refresh_comes_within_the_life_of_the_session_and_above_the_floor(
            lifetime in 900_u64..43_200, jitter in 0.0_f64..=1.0,
        ) {
            let lifetime = Duration::from_secs(lifetime);
            let at = refresh_at(UNIX_EPOCH, UNIX_EPOCH + lifetime, jitter).duration_since(UNIX_EPOCH).unwrap();
            prop_assert!(lifetime / 4 <= at && at < lifetime);
            if SHORTEST_WITH_FLOOR <= lifetime {
                prop_assert!(FLOOR < lifetime - at, "{:?} remain", lifetime - at);
            }
        }
    }
}
