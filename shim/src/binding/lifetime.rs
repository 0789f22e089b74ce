//! How long a token lives.

/// Shortest lifetime of a projected token in seconds that the API server takes.
///
/// <https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/volume/>
pub const MIN_LIFETIME: u64 = 600;

/// Longest lifetime in seconds that is asked for; the API server takes no more than 2^32.
pub const MAX_LIFETIME: u64 = u32::MAX as u64;

/// The lifetime of a token in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    pub seconds: u64,
    /// An annotation or the ConfigMap asks for it; it is not the policy's.
    pub is_asked_for: bool,
}

impl Lifetime {
    /// The lifetime that `text` asks for, brought within bounds; and whether it had to be. `None` where it is no
    /// number.
    pub fn asked(text: &str) -> Option<(Self, bool)> {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        // A number that does not fit is far outside of the bounds, on the side that its sign tells.
        let beyond = if text.starts_with('-') { i64::MIN } else { i64::MAX };
        Some(Self::asked_seconds(text.parse().unwrap_or(beyond)))
    }

    /// The same for a number.
    pub fn asked_seconds(seconds: i64) -> (Self, bool) {
        let wanted = u64::try_from(seconds).unwrap_or(0);
        let within = wanted.clamp(MIN_LIFETIME, MAX_LIFETIME);
        (Self { seconds: within, is_asked_for: true }, within != wanted || seconds < 0)
    }

    /// The policy's lifetime.
    pub fn of_policy(seconds: u64) -> Self {
        Self { seconds: seconds.clamp(MIN_LIFETIME, MAX_LIFETIME), is_asked_for: false }
    }

    /// The lifetime less up to a twelfth, as `seed` tells: a day becomes 22 to 24 hours. What somebody asked for
    /// stays as it is.
    ///
    /// The kubelet rotates a token after four fifths of its life; without this, the tokens of pods that started
    /// together would rotate together for ever.
    pub fn jittered(self, seed: u64) -> u64 {
        if self.is_asked_for {
            return self.seconds;
        }
        (self.seconds - seed % (self.seconds / 12 + 1)).max(MIN_LIFETIME)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Option<(u64, bool)>) {
        assert_eq!(Lifetime::asked(text).map(|(l, corrected)| (l.seconds, corrected)), expect, "{text}");
    }

    #[test]
    fn absurd_lifetimes_are_brought_within_bounds() {
        check("3600", Some((3600, false)));
        check("600", Some((600, false)));
        check("599", Some((600, true)));
        check("0", Some((600, true)));
        check("-1", Some((600, true)));
        check("-99999999999999999999", Some((600, true)));
        check("4294967295", Some((4_294_967_295, false)));
        check("4294967296", Some((4_294_967_295, true)));
        check("99999999999999999999", Some((4_294_967_295, true)));
        for text in ["", "-", "1h", "1.5", "3600s", "١"] {
            check(text, None);
        }
    }

    proptest! {
        #[test]
        fn jitter_takes_a_twelfth_at_most(seconds in 600_u64..4_294_967_296, seed: u64) {
            let jittered = Lifetime::of_policy(seconds).jittered(seed);
            prop_assert!(jittered <= seconds);
            prop_assert!(MIN_LIFETIME <= jittered && seconds - seconds / 12 <= jittered.max(seconds - seconds / 12));
            prop_assert_eq!(Lifetime { seconds, is_asked_for: true }.jittered(seed), seconds);
        }
    }

    #[test]
    fn a_day_becomes_22_to_24_hours() {
        let day = Lifetime::of_policy(86_400);
        assert_eq!(day.jittered(0), 86_400);
        assert_eq!(day.jittered(7_200), 79_200);
        assert_eq!(day.jittered(7_201), 86_400);
    }
}
