//! Decides what is due for the shared certificates. No clock, no I/O.
//!
//! Replicas may disagree about the time. No step makes anything end earlier than it did, and only what ends soon is
//! made anew, so the replica whose clock is furthest ahead makes everything, the others find nothing to do, and no two
//! of them undo each other's steps for ever.

use std::time::{Duration, SystemTime};

use super::{
    mint::{self, MintError, Names},
    stored::{Read, Stored},
};

const DAY: Duration = Duration::from_secs(86_400);

/// How long things live, and how far apart the steps of a rotation are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of an authority; the next one is prepared when a fifth of it is left.
    pub authority: Duration,
    /// Of a serving certificate, which is renewed after two thirds of it.
    pub serving: Duration,
    /// How long an authority has to have been published before it signs: every API server has seen it then.
    pub settle: Duration,
    /// How long the former authority stays published: no replica serves with a certificate of it then.
    pub retire: Duration,
}

/// A step of the certificates' life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// There is nothing that could be used: make everything.
    Create,
    /// A new serving certificate by the same authority.
    Renew,
    /// A next authority, to be published.
    Prepare,
    /// The next authority signs from now on.
    Promote,
    /// Nobody needs the previous authority any more.
    Retire,
}

/// Why a step could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error("read back what was made")]
    Read(#[from] mint::ReadError),
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { authority: 1826 * DAY, serving: 90 * DAY, settle: Duration::from_secs(60), retire: DAY }
    }
}

impl Due {
    /// For the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "make an authority and a serving certificate",
            Self::Renew => "renew the serving certificate",
            Self::Prepare => "prepare the next authority",
            Self::Promote => "sign with the next authority",
            Self::Retire => "forget the previous authority",
        }
    }
}

/// The step that is due for `stored` at `now`, if any.
///
/// `next_published_for` says for how long the next authority has been in the published `caBundle`.
#[must_use]
pub fn due(
    stored: Option<&Stored>,
    names: &Names,
    next_published_for: Option<Duration>,
    now: SystemTime,
    lifetimes: &Lifetimes,
) -> Option<Due> {
    let Some(stored) = stored else { return Some(Due::Create) };
    let authority = &stored.authority.facts;
    let serving = &stored.serving.facts;
    // What is made here begins long ago; what somebody else has put there may not have begun.
    if authority.expires <= now || now < authority.begins {
        return Some(Due::Create);
    }
    if stored.next.is_some() && next_published_for.is_some_and(|published| lifetimes.settle <= published) {
        return Some(Due::Promote);
    }
    // A serving certificate that ends with its authority cannot be bettered by renewing it.
    let ends_soon = serving.expires <= now + lifetimes.serving / 3 && serving.expires != authority.expires;
    if !names.are_among(&serving.names) || ends_soon || now < serving.begins {
        return Some(Due::Renew);
    }
    let authority_left = authority.expires.duration_since(now).unwrap_or_default();
    if stored.next.is_none() && authority_left < lifetimes.authority / 5 {
        return Some(Due::Prepare);
    }
    if stored.previous.is_some() && serving.expires + lifetimes.retire <= now + lifetimes.serving {
        return Some(Due::Retire);
    }
    None
}

/// Makes the step: what the Secret is to hold next.
///
/// # Errors
/// When the cryptography fails, or a name of `names` can be in no certificate.
pub fn step(
    due: Due,
    stored: Option<&Stored>,
    names: &Names,
    now: SystemTime,
    lifetimes: &Lifetimes,
) -> Result<Stored, StepError> {
    let new_authority = || Ok::<_, StepError>(Read::new(mint::authority(now, lifetimes.authority)?)?);
    let sign = |authority: &Read, names: &Names, until: SystemTime| {
        let pair = mint::serving(&authority.pair, &authority.facts, names, until)?;
        Ok::<_, StepError>(Read::new(pair)?)
    };
    let until = now + lifetimes.serving;
    let Some(stored) = stored else {
        let authority = new_authority()?;
        let serving = sign(&authority, names, until)?;
        return Ok(Stored { authority, next: None, previous: None, serving });
    };
    let mut after = stored.clone();
    let until = until.max(stored.serving.facts.expires);
    match due {
        Due::Create => return step(due, None, names, now, lifetimes),
        Due::Renew => {
            // While two versions of the shim want different names, neither takes the other's away.
            let missing = !names.are_among(&stored.serving.facts.names);
            let names = if missing { names.with(&stored.serving.facts.names) } else { names.clone() };
            after.serving = sign(&stored.authority, &names, until)?;
        }
        Due::Prepare => after.next = Some(new_authority()?),
        Due::Promote => {
            if let Some(next) = after.next.take() {
                after.previous = Some(stored.authority.to_authority());
                after.serving = sign(&next, names, until)?;
                after.authority = next;
            }
        }
        Due::Retire => after.previous = None,
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rolecall_process::time::from_unix_seconds;

    use super::*;

    const LIFETIMES: Lifetimes = Lifetimes {
        authority: Duration::from_secs(1826 * 86_400),
        serving: Duration::from_secs(90 * 86_400),
        settle: Duration::from_secs(60),
        retire: DAY,
    };

    fn names() -> Names {
        Names::of_service("rolecall", "shim", &[])
    }

    fn start() -> SystemTime {
        from_unix_seconds(1_800_000_000)
    }

    /// Applies every step that is due as time goes by, and tells when each was.
    fn live(until: Duration, step_by: Duration, published: bool) -> (Vec<(u64, Due)>, Stored) {
        let mut stored: Option<Stored> = None;
        let mut next_since = None;
        let mut steps = Vec::new();
        let mut at = Duration::ZERO;
        while at < until {
            let now = start() + at;
            let has_next = stored.as_ref().is_some_and(|stored| stored.next.is_some());
            next_since = if has_next && published { next_since.or(Some(at)) } else { None };
            let published_for = next_since.map(|since| at - since);
            match due(stored.as_ref(), &names(), published_for, now, &LIFETIMES) {
                Some(step_due) => {
                    steps.push((at.as_secs() / 86_400, step_due));
                    stored = Some(step(step_due, stored.as_ref(), &names(), now, &LIFETIMES).unwrap());
                }
                None => at += step_by,
            }
            if let Some(stored) = &stored {
                assert!(
                    now < stored.serving.facts.expires,
                    "nothing valid to serve on day {}",
                    at.as_secs() / 86_400
                );
                assert_eq!(stored.serving.facts.issuer, stored.authority.facts.subject);
            }
        }
        (steps, stored.unwrap())
    }

    #[test]
    fn a_serving_certificate_is_renewed_after_two_thirds_of_its_life() {
        let (steps, _) = live(200 * DAY, DAY / 4, true);
        assert_eq!(steps, [(0, Due::Create), (60, Due::Renew), (120, Due::Renew), (180, Due::Renew)]);
    }

    #[test]
    fn an_authority_is_replaced_long_before_it_ends_and_one_step_at_a_time() {
        let (steps, _) = live(3700 * DAY, DAY / 2, true);
        let others: Vec<_> = steps.into_iter().filter(|(_, due)| *due != Due::Renew).collect();
        assert_eq!(
            others,
            [
                (0, Due::Create),
                (1461, Due::Prepare),
                (1461, Due::Promote),
                (1462, Due::Retire),
                (2922, Due::Prepare),
                (2922, Due::Promote),
                (2923, Due::Retire)
            ]
        );
    }

    #[test]
    fn an_authority_that_is_not_published_never_signs() {
        let (steps, stored) = live(1800 * DAY, DAY, false);
        assert!(steps.iter().all(|(_, due)| *due != Due::Promote));
        assert!(stored.next.is_some() && stored.previous.is_none());
    }

    #[test]
    fn what_has_expired_is_made_anew() {
        let stored = step(Due::Create, None, &names(), start(), &LIFETIMES).unwrap();
        let at = |days: u32| due(Some(&stored), &names(), None, start() + days * DAY, &LIFETIMES);
        assert_eq!(
            (at(1), at(70), at(100), at(1826)),
            (None, Some(Due::Renew), Some(Due::Renew), Some(Due::Create))
        );
    }

    #[test]
    fn a_new_name_is_added_to_those_of_the_other_version() {
        let stored = step(Due::Create, None, &names(), start(), &LIFETIMES).unwrap();
        let renamed = Names::of_service("rolecall", "renamed", &[]);
        assert_eq!(due(Some(&stored), &renamed, None, start(), &LIFETIMES), Some(Due::Renew));
        let stored = step(Due::Renew, Some(&stored), &renamed, start(), &LIFETIMES).unwrap();
        for either in [&renamed, &names()] {
            assert_eq!(due(Some(&stored), either, None, start(), &LIFETIMES), None);
        }
    }

    #[test]
    fn what_is_stored_is_read_back_the_same() {
        let mut stored = step(Due::Create, None, &names(), start(), &LIFETIMES).unwrap();
        let read = |stored: &Stored| {
            let data = stored.to_data();
            Stored::read(|key| data.get(key).map(Vec::as_slice))
        };
        for due in [Due::Prepare, Due::Promote, Due::Retire] {
            assert_eq!(read(&stored).unwrap(), stored);
            stored = step(due, Some(&stored), &names(), start(), &LIFETIMES).unwrap();
        }
        assert_eq!(read(&stored).unwrap(), stored);
        let other = step(Due::Create, None, &names(), start(), &LIFETIMES).unwrap();
        stored.serving = other.serving;
        assert!(read(&stored).is_err());
    }

    /// Does everything that is due to the replica whose clock is `skew` ahead of the true time, all of it published.
    fn act(stored: &mut Option<Stored>, service: &str, now: SystemTime, skew: i64) -> usize {
        let names = Names::of_service("rolecall", service, &[]);
        let by = Duration::from_secs(skew.unsigned_abs());
        let own = if skew < 0 { now - by } else { now + by };
        for done in 0..5 {
            let published = stored.as_ref().and_then(|stored| stored.next.as_ref()).map(|_| LIFETIMES.settle);
            let Some(due) = due(stored.as_ref(), &names, published, own, &LIFETIMES) else { return done };
            *stored = Some(step(due, stored.as_ref(), &names, own, &LIFETIMES).unwrap());
        }
        panic!("it does not come to rest: {:?}", due(stored.as_ref(), &names, None, own, &LIFETIMES));
    }

    #[test]
    fn what_has_not_begun_is_made_anew() {
        let stored = step(Due::Create, None, &names(), start(), &LIFETIMES).unwrap();
        for (of_authority, of_serving, expect) in
            [(0, 0, None), (2, 0, Some(Due::Create)), (0, 2, Some(Due::Renew))]
        {
            let mut stored = stored.clone();
            stored.authority.facts.begins = start() + of_authority * DAY;
            stored.serving.facts.begins = start() + of_serving * DAY;
            assert_eq!(due(Some(&stored), &names(), None, start() + DAY / 2, &LIFETIMES), expect);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn replicas_with_wrong_clocks_neither_break_nor_fight_the_one_that_is_right(
            skews in proptest::collection::vec((-40 * 365 * 86_400_i64..40 * 365 * 86_400, any::<bool>()), 1..3),
            days in proptest::collection::vec(0..700_u32, 1..5),
            right_is_first: bool,
        ) {
            let mut replicas: Vec<(i64, &str)> =
                skews.into_iter().map(|(skew, renamed)| (skew, if renamed { "renamed" } else { "shim" })).collect();
            replicas.insert(if right_is_first { 0 } else { replicas.len() }, (0, "shim"));
            let mut stored = None;
            let mut now = start();
            for days in days {
                now += days * DAY;
                // Each mends what it minds, and what the others did to it; then nobody minds anything.
                let rounds: Vec<usize> = (0..3)
                    .map(|_| replicas.iter().map(|(skew, service)| act(&mut stored, service, now, *skew)).sum())
                    .collect();
                prop_assert_eq!(rounds[2], 0, "{:?}", rounds);
                let stored = stored.as_ref().unwrap();
                for facts in [&stored.authority.facts, &stored.serving.facts] {
                    prop_assert!(facts.begins <= now && now < facts.expires);
                }
                prop_assert!(names().are_among(&stored.serving.facts.names));
                prop_assert_eq!(&stored.serving.facts.issuer, &stored.authority.facts.subject);
            }
        }
    }
}
