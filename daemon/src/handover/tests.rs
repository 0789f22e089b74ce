//! Every order in which two daemons can act, be slow and die: somebody serves in the end, and never two.

use std::collections::HashSet;

use super::{
    giving,
    message::{Message, Origin, PROTOCOL},
    taking,
};

/// A message, as far as the steps look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Said {
    Hello,
    Offer,
    Commit,
    Release,
    Serving,
    Refuse,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Side<S> {
    state: S,
    is_alive: bool,
    is_connected: bool,
    inbox: Vec<Said>,
}

/// Both, and what they do to the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Two {
    old: Side<giving::State>,
    new: Side<taking::State>,
    old_accepts: bool,
    old_is_frozen: bool,
    new_accepts: bool,
    /// The new one has served, whatever became of it.
    has_served: bool,
    new_gave_up: bool,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    OldReceives,
    NewReceives,
    OldSeesTheEnd,
    NewSeesTheEnd,
    OldGivesUp,
    NewGivesUp,
    NewAdopts,
    NewLooks,
    OldDies,
    NewDies,
}

const ACTS: [Act; 10] = [
    Act::OldReceives,
    Act::NewReceives,
    Act::OldSeesTheEnd,
    Act::NewSeesTheEnd,
    Act::OldGivesUp,
    Act::NewGivesUp,
    Act::NewAdopts,
    Act::NewLooks,
    Act::OldDies,
    Act::NewDies,
];

fn origin() -> Origin {
    Origin { region: None, endpoint: None, fips: false, dual_stack: false, audience: "a".to_owned() }
}

impl Said {
    fn message(self) -> Message {
        let version = String::new();
        match self {
            Self::Hello => Message::Hello { protocol: PROTOCOL, version, origin: origin() },
            Self::Offer => Message::Offer { version, doors: Vec::new(), has_cache: true },
            Self::Commit => Message::Commit,
            Self::Release => Message::Release,
            Self::Serving => Message::Serving,
            Self::Refuse => Message::Refuse { reason: String::new() },
        }
    }
}

impl Two {
    fn met() -> Self {
        let side = |inbox| (true, true, inbox);
        let (is_alive, is_connected, inbox) = side(vec![Said::Hello]);
        Self {
            old: Side { state: giving::State::Met, is_alive, is_connected, inbox },
            new: Side { state: taking::State::Asked, is_alive, is_connected, inbox: Vec::new() },
            old_accepts: true,
            old_is_frozen: false,
            new_accepts: false,
            has_served: false,
            new_gave_up: false,
        }
    }

    /// What is the case after `act`; `None` where it cannot happen.
    fn after(&self, act: Act) -> Option<Self> {
        let mut two = self.clone();
        let (old_runs, new_runs) =
            (two.old.is_alive && two.old.is_connected, two.new.is_alive && two.new.is_connected);
        match act {
            Act::OldReceives if old_runs && !two.old.inbox.is_empty() => {
                let message = two.old.inbox.remove(0).message();
                two.old_does(giving::Event::Received(&message));
            }
            Act::NewReceives if new_runs && !two.new.inbox.is_empty() => {
                let message = two.new.inbox.remove(0).message();
                two.new_does(taking::Event::Received(&message));
            }
            Act::OldSeesTheEnd if old_runs && !new_runs && two.old.inbox.is_empty() => {
                two.old_does(giving::Event::Closed);
            }
            Act::NewSeesTheEnd if new_runs && !old_runs && two.new.inbox.is_empty() => {
                two.new_does(taking::Event::Closed);
            }
            Act::OldGivesUp if old_runs => two.old_does(giving::Event::GaveUp),
            Act::NewGivesUp if new_runs && two.new.state != taking::State::Wondering => {
                two.new_gave_up = true;
                two.new_does(taking::Event::GaveUp);
            }
            Act::NewAdopts if new_runs && two.new.state == taking::State::Adopting => {
                two.new_does(taking::Event::Adopted);
            }
            Act::NewLooks if two.new.is_alive && two.new.state == taking::State::Wondering => {
                let lives = two.old.is_alive && two.old_accepts;
                two.new_does(if lives { taking::Event::OtherLives } else { taking::Event::OtherIsGone });
            }
            Act::OldDies if two.old.is_alive => two.old.is_alive = false,
            Act::NewDies if two.new.is_alive => two.new.is_alive = false,
            Act::OldReceives
            | Act::NewReceives
            | Act::OldSeesTheEnd
            | Act::NewSeesTheEnd
            | Act::OldGivesUp
            | Act::NewGivesUp
            | Act::NewAdopts
            | Act::NewLooks
            | Act::OldDies
            | Act::NewDies => return None,
        }
        (two != *self).then_some(two)
    }

    fn old_does(&mut self, event: giving::Event<'_>) {
        let (state, step) = giving::step(self.old.state, event, &origin());
        self.old.state = state;
        let new_hears = self.new.is_alive && self.new.is_connected;
        match step {
            giving::Step::Wait | giving::Step::TakeGiven => {}
            giving::Step::Refuse(_) => {
                self.new.inbox.push(Said::Refuse);
                self.old.is_connected = false;
            }
            giving::Step::Offer { has_cache } => {
                assert!(has_cache);
                self.old_is_frozen = true;
                self.new.inbox.push(Said::Offer);
            }
            giving::Step::Release if new_hears => {
                self.new.inbox.push(Said::Release);
                self.old_does(giving::Event::Sent);
            }
            giving::Step::Release => self.old_does(giving::Event::Closed),
            giving::Step::Retire => self.old_accepts = false,
            giving::Step::ServeOn => {
                self.old_is_frozen = false;
                self.old.is_connected = false;
            }
            giving::Step::End => self.old.is_connected = false,
        }
    }

    fn new_does(&mut self, event: taking::Event<'_>) {
        let (state, step) = taking::step(self.new.state, event);
        self.new.state = state;
        match step {
            taking::Step::Wait | taking::Step::Adopt | taking::Step::Note | taking::Step::Look => {}
            taking::Step::Commit if self.old.is_alive && self.old.is_connected => {
                self.old.inbox.push(Said::Commit);
            }
            taking::Step::Commit => self.new_does(taking::Event::Closed),
            taking::Step::Serve => {
                self.new_accepts = true;
                self.has_served = true;
                if self.old.is_alive && self.old.is_connected {
                    self.old.inbox.push(Said::Serving);
                }
            }
            taking::Step::StartOver => self.new.is_connected = false,
        }
    }

    fn check_always(&self) {
        let new_exchanges = self.new.is_alive && self.new_accepts;
        let old_exchanges = self.old.is_alive && !self.old_is_frozen;
        assert!(!(old_exchanges && new_exchanges), "both make exchanges: {self:?}");
        assert!(self.old_accepts || self.has_served, "nobody accepts: {self:?}");
    }

    /// Once nothing happens any more but a death.
    fn check_at_rest(&self) {
        let old_serves = self.old.is_alive && self.old_accepts;
        let new_serves = self.new.is_alive && self.new_accepts;
        // A new daemon that took nothing asks again, and binds where nobody is.
        let new_begins_anew = self.new.is_alive && self.new.state == taking::State::Ended;
        assert!(!old_serves || !self.old_is_frozen || new_serves, "nobody makes exchanges: {self:?}");
        assert!(!(old_serves && new_serves), "{self:?}");
        match (self.old.is_alive, self.new.is_alive) {
            (false, false) => {}
            (true, false) => assert!(old_serves || self.has_served, "{self:?}"),
            (false, true) => assert!(new_serves || new_begins_anew, "{self:?}"),
            (true, true) => {
                assert!(old_serves || new_serves || (new_begins_anew && self.new_gave_up), "{self:?}");
            }
        }
    }
}

#[test]
fn whoever_dies_or_is_slow_at_whatever_step_one_healthy_daemon_is_left() {
    let mut seen = HashSet::new();
    let mut next = vec![Two::met()];
    let mut at_rest = 0;
    while let Some(two) = next.pop() {
        if !seen.insert(two.clone()) {
            continue;
        }
        two.check_always();
        let further: Vec<(Act, Two)> =
            ACTS.into_iter().filter_map(|act| Some((act, two.after(act)?))).collect();
        let goes_on =
            |act: &Act| !matches!(act, Act::OldDies | Act::NewDies | Act::OldGivesUp | Act::NewGivesUp);
        if !further.iter().any(|(act, _)| goes_on(act)) {
            at_rest += 1;
            two.check_at_rest();
        }
        next.extend(further.into_iter().map(|(_, two)| two));
    }
    assert!(100 < seen.len() && 10 < at_rest, "{} states, {at_rest} at rest", seen.len());
}

#[test]
fn undisturbed_the_new_daemon_serves_and_the_old_one_does_not() {
    let acts = [Act::OldReceives, Act::NewReceives, Act::NewAdopts, Act::OldReceives, Act::NewReceives];
    let two = acts.into_iter().fold(Two::met(), |two, act| two.after(act).unwrap());
    assert!(two.new_accepts && two.old_accepts, "{two:?}");
    let two = two.after(Act::OldReceives).unwrap();
    assert!(two.new_accepts && !two.old_accepts, "{two:?}");
}

#[test]
fn a_daemon_of_another_version_is_refused_and_the_old_one_serves_on() {
    let hello = Message::Hello { protocol: PROTOCOL + 1, version: String::new(), origin: origin() };
    let (state, step) = giving::step(giving::State::Met, giving::Event::Received(&hello), &origin());
    assert_eq!(state, giving::State::Ended);
    let giving::Step::Refuse(refusal) = step else { panic!("{step:?}") };
    assert!(refusal.to_string().contains("starts cold once the old one has ended"), "{refusal}");
}

#[test]
fn credentials_of_another_origin_stay_where_they_are_and_the_sockets_go() {
    for other in [
        Origin { region: Some("eu-west-1".to_owned()), ..origin() },
        Origin { endpoint: Some("http://sts".to_owned()), ..origin() },
        Origin { fips: true, ..origin() },
        Origin { dual_stack: true, ..origin() },
        Origin { audience: "b".to_owned(), ..origin() },
    ] {
        let hello = Message::Hello { protocol: PROTOCOL, version: String::new(), origin: other };
        let (_, step) = giving::step(giving::State::Met, giving::Event::Received(&hello), &origin());
        assert_eq!(step, giving::Step::Offer { has_cache: false });
    }
}
