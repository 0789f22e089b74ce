//! The one task that keeps the rules: puts them, reads them back, and repairs them.

use std::{collections::BTreeSet, io, net::IpAddr, pin::pin, time::Duration};

use nix::net::if_::if_nametoindex;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    Config, Error,
    backend::{Backend, Programs},
    events::Events,
    ruleset::{Ruleset, Verdict},
};
use rolecall_process::{drain, readiness::Condition, telemetry::chain};

/// The rules are read back this often. The kernel tells of changes to nftables at once; iptables-legacy and a
/// lost message are what this is for.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Two repairs have this time between them, so that two programs that disagree do not keep the node busy.
const REPAIR_EVERY: Duration = Duration::from_secs(1);

/// An interface of Cilium, whose eBPF host routing takes packets past netfilter.
const CILIUM: &str = "cilium_host";

/// Rules that are in force, and what it takes to keep them so.
pub struct Firewall {
    backend: Backend,
    programs: Programs,
    /// `None` where the kernel does not tell; the rules are read back all the same.
    events: Option<Events>,
    ruleset: Ruleset,
    next_check_at: Instant,
    repaired_at: Option<Instant>,
    bypass_told: bool,
    metrics: Metrics,
}

/// What the metrics say of the rules.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    in_force: Gauge,
    repairs: Counter,
    exempt: Gauge,
    bypass_suspected: Gauge,
}

/// Why the rules are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// It is time to, or the kernel told of a change.
    Check,
    /// Other addresses are exempt.
    NewRuleset,
}

impl Firewall {
    /// Puts the rules and reads them back; `None` if they are turned off.
    ///
    /// With `keep_exempt`, addresses that rules in force let pass go on passing until the first of
    /// [`Firewall::keep`]'s sets: a restart cuts no pod off that the next list will exempt again.
    ///
    /// # Errors
    /// When they are not in force: a daemon that was to block does not start without.
    pub async fn start(config: Config, keep_exempt: bool, metrics: Metrics) -> Result<Option<Self>, Error> {
        let Some(backend) = Backend::of(config.mode, &config.programs) else { return Ok(None) };
        // Before the rules are put, so that a change in between is told.
        let events = Events::listen()
            .inspect_err(|error| debug!(%error, "the kernel tells no changes of nftables"))
            .ok();
        let exempt = if keep_exempt { backend.exempt().await? } else { BTreeSet::new() };
        let mut firewall = Self {
            backend,
            programs: config.programs,
            events,
            ruleset: Ruleset { exempt },
            next_check_at: Instant::now() + CHECK_EVERY,
            repaired_at: None,
            bypass_told: false,
            metrics,
        };
        firewall.settle().await?;
        firewall.told();
        info!(backend = ?firewall.backend, "pods are kept from the instance metadata service");
        firewall.remove_leftovers().await;
        Ok(Some(firewall))
    }

    /// Keeps the rules until the drain begins. They stay when it ends: whatever follows, pods do not get the
    /// node's credentials.
    ///
    /// `exempt` tells the addresses that may pass, `None` as long as that is not known.
    pub async fn keep(
        mut self,
        mut exempt: watch::Receiver<Option<BTreeSet<IpAddr>>>,
        condition: Condition,
        drain: drain::Watch,
    ) {
        let mut begun = pin!(drain.begun());
        let mut exempt_known = true;
        // A daemon that hands over keeps its rules until it has; where they are of another kind, it has put them back.
        let mut leftovers_at = Some(Instant::now() + CHECK_EVERY);
        exempt.mark_changed();
        loop {
            let occasion = tokio::select! {
                () = &mut begun => return,
                changed = exempt.changed(), if exempt_known => {
                    exempt_known = changed.is_ok();
                    let Some(now) = exempt.borrow_and_update().clone() else { continue };
                    if now == self.ruleset.exempt {
                        continue;
                    }
                    self.ruleset.exempt = now;
                    Occasion::NewRuleset
                }
                () = touched(self.events.as_mut(), self.backend.tables()) => {
                    // No matter how many changes there are, one look after the last repair's rest is enough.
                    let earliest = self.repaired_at.map_or_else(Instant::now, |at| at + REPAIR_EVERY);
                    self.next_check_at = self.next_check_at.min(earliest.max(Instant::now()));
                    continue;
                }
                () = sleep_until(leftovers_at.unwrap_or(self.next_check_at)), if leftovers_at.is_some() => {
                    leftovers_at = None;
                    self.remove_leftovers().await;
                    continue;
                }
                () = sleep_until(self.next_check_at) => Occasion::Check,
            };
            self.look(occasion, &condition).await;
        }
    }

    async fn look(&mut self, occasion: Occasion, condition: &Condition) {
        match self.settle().await {
            Ok(Verdict::Same) => condition.restored(),
            Ok(verdict) => {
                condition.restored();
                self.repaired_at = Some(Instant::now());
                match occasion {
                    Occasion::NewRuleset => debug!(exempt = ?self.ruleset.exempt, "other pods are exempt"),
                    Occasion::Check => {
                        let found = match verdict {
                            Verdict::Different(what) => what,
                            Verdict::Absent | Verdict::Same => "they were gone".to_owned(),
                        };
                        warn!(
                            found,
                            "something changed the rules that keep pods from the metadata service; put them back"
                        );
                        self.metrics.repairs.inc();
                    }
                }
            }
            Err(error) => {
                let error = chain(&error).to_string();
                warn!(error, "cannot keep pods from the metadata service");
                condition.broken(&error);
            }
        }
        self.told();
        self.next_check_at = Instant::now() + CHECK_EVERY;
    }

    /// Brings the rules about where they are not as they should be, and says how they were.
    async fn settle(&mut self) -> Result<Verdict, Error> {
        let settled = self.bring_about().await;
        self.metrics.in_force.set(settled.is_ok().into());
        settled
    }

    async fn bring_about(&self) -> Result<Verdict, Error> {
        let before = self.backend.check(&self.ruleset).await?;
        if before != Verdict::Same {
            self.backend.apply(&self.ruleset).await?;
            match self.backend.check(&self.ruleset).await? {
                Verdict::Same => {}
                Verdict::Absent => return Err(Error::NotVerified("there are none".to_owned())),
                Verdict::Different(what) => return Err(Error::NotVerified(what)),
            }
        }
        Ok(before)
    }

    /// A daemon with other settings may have left rules elsewhere, which would know of no exemption of today.
    async fn remove_leftovers(&self) {
        for other in Backend::all(&self.programs) {
            if other == self.backend || other.is_same_as(&self.backend).await {
                continue;
            }
            match other.remove().await {
                Ok(removed) => {
                    for what in removed {
                        info!("removed {what}, which a daemon with another --metadata-firewall has left");
                    }
                }
                Err(error) => debug!(error = %chain(&error), "cannot look for rules of other settings"),
            }
        }
    }

    fn told(&mut self) {
        self.metrics.exempt.set(self.ruleset.exempt.len().try_into().unwrap_or(i64::MAX));
        let suspected = if_nametoindex(CILIUM).is_ok();
        self.metrics.bypass_suspected.set(suspected.into());
        if suspected && !self.bypass_told {
            warn!(
                "the interface {CILIUM} is there: Cilium's eBPF host routing takes packets past netfilter, so pods may \
                 reach the metadata service; set the instances' hop limit to 1 or use a CiliumNetworkPolicy"
            );
        }
        self.bypass_told = suspected;
    }
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "metadata_firewall_in_force",
            "Whether the rules that keep pods from the metadata service were there when last read back",
            metrics.in_force.clone(),
        );
        registry.register(
            "metadata_firewall_repairs",
            "Times that something had changed the rules and they were put back",
            metrics.repairs.clone(),
        );
        registry.register(
            "metadata_firewall_exempt_addresses",
            "Pod addresses that may reach the metadata service",
            metrics.exempt.clone(),
        );
        registry.register(
            "metadata_firewall_bypass_suspected",
            "Whether the node's network may take packets past the rules (1)",
            metrics.bypass_suspected.clone(),
        );
        metrics
    }
}

/// Waits for a change of one of `tables`; forever where the kernel tells none.
async fn touched(events: Option<&mut Events>, tables: &[&str]) {
    let told: io::Result<()> = match events {
        Some(events) => events.touched(tables).await,
        None => std::future::pending().await,
    };
    if let Err(error) = told {
        debug!(%error, "the kernel tells no changes of nftables any more");
        std::future::pending().await
    }
}
