//! The two ways of having the rules in the kernel, behind one face.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{
    Error, Mode, iptables, nftables,
    program::{self, ProgramError},
    ruleset::{Ruleset, Verdict},
};

/// Where the programs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `nft`.
    pub nft: PathBuf,
    /// `iptables`, or one of its variants; the others are named after it.
    pub iptables: PathBuf,
}

/// What has the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A table of our own, both families in one.
    Nftables(PathBuf),
    /// A chain of our own in each family's table raw.
    Iptables(Vec<Family>),
}

/// One family's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    family: iptables::Family,
    save: PathBuf,
    restore: PathBuf,
}

impl Backend {
    /// What `mode` asks for; `None` for nothing.
    pub(super) fn of(mode: Mode, programs: &Programs) -> Option<Self> {
        match mode {
            Mode::Off => None,
            Mode::Nftables => Some(Self::Nftables(programs.nft.clone())),
            Mode::Iptables => Some(Self::iptables(&programs.iptables)),
        }
    }

    fn iptables(iptables: &Path) -> Self {
        let mut families = vec![Family::of(iptables::Family::V4, iptables)];
        // Without the module of IPv6 there is nothing to block, and ip6tables fails.
        if Path::new("/proc/self/net/if_inet6").exists() {
            families.push(Family::of(iptables::Family::V6, iptables));
        }
        Self::Iptables(families)
    }

    /// Every place in which a daemon with some other settings may have left rules. Two may be one.
    pub fn all(programs: &Programs) -> Vec<Self> {
        let mut all = vec![Self::Nftables(programs.nft.clone())];
        for name in [programs.iptables.as_path(), Path::new("iptables-nft"), Path::new("iptables-legacy")] {
            let backend = Self::iptables(name);
            if !all.contains(&backend) {
                all.push(backend);
            }
        }
        all
    }

    /// Whether `other` is this one by another name: `iptables` is either `iptables-nft` or `iptables-legacy`.
    pub(super) async fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Iptables(a), Self::Iptables(b)) => match (a.first(), b.first()) {
                (Some(a), Some(b)) => matches!(
                    (a.is_legacy().await, b.is_legacy().await),
                    (Ok(a), Ok(b)) if a == b
                ),
                (None, _) | (_, None) => false,
            },
            (Self::Nftables(_), _) | (_, Self::Nftables(_)) => self == other,
        }
    }

    /// The tables of nftables whose changes concern it.
    pub(super) fn tables(&self) -> &'static [&'static str] {
        match self {
            Self::Nftables(_) => &[nftables::TABLE],
            Self::Iptables(_) => &[iptables::TABLE],
        }
    }

    /// Brings the rules about, in one transaction per family.
    pub(super) async fn apply(&self, ruleset: &Ruleset) -> Result<(), Error> {
        match self {
            Self::Nftables(nft) => {
                program::run(nft, &["-f", "-"], &nftables::script(ruleset)).await?;
            }
            Self::Iptables(families) => {
                for family in families {
                    let saved = family.saved().await?;
                    family.restore(&iptables::script(family.family, ruleset, &saved)).await?;
                }
            }
        }
        Ok(())
    }

    /// Reads back what is in force.
    pub(super) async fn check(&self, ruleset: &Ruleset) -> Result<Verdict, Error> {
        match self {
            Self::Nftables(nft) => match listed(nft).await? {
                None => Ok(Verdict::Absent),
                Some(listed) => Ok(nftables::compare(ruleset, &listed)?),
            },
            Self::Iptables(families) => {
                for family in families {
                    match iptables::compare(family.family, ruleset, &family.saved().await?) {
                        Verdict::Same => {}
                        other => return Ok(other),
                    }
                }
                Ok(Verdict::Same)
            }
        }
    }

    /// The addresses that the rules in force let pass.
    pub(super) async fn exempt(&self) -> Result<BTreeSet<IpAddr>, Error> {
        match self {
            Self::Nftables(nft) => match listed(nft).await? {
                None => Ok(BTreeSet::new()),
                Some(listed) => Ok(nftables::exempt(&listed)?),
            },
            Self::Iptables(families) => {
                let mut exempt = BTreeSet::new();
                for family in families {
                    exempt.extend(iptables::exempt(&family.saved().await?));
                }
                Ok(exempt)
            }
        }
    }

    /// Removes the rules, and says what there was in words. Nothing, where there is no such program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(&self) -> Result<Vec<String>, Error> {
        match self {
            Self::Nftables(nft) => match listed(nft).await {
                Ok(None) | Err(Error::Missing(_)) => Ok(Vec::new()),
                Ok(Some(_)) => {
                    program::run(nft, &["-f", "-"], &nftables::removal()).await?;
                    Ok(vec![format!("the nftables table {} {}", nftables::FAMILY, nftables::TABLE)])
                }
                Err(error) => Err(error),
            },
            Self::Iptables(families) => {
                let mut removed = Vec::new();
                for family in families {
                    let saved = match family.saved_if_any().await {
                        Ok(Some(saved)) => saved,
                        Ok(None) | Err(Error::Missing(_)) => continue,
                        Err(error) => return Err(error),
                    };
                    if let Some(removal) = iptables::removal(&saved) {
                        family.restore(&removal).await?;
                        removed.push(format!(
                            "the chain {} of {}",
                            iptables::CHAIN,
                            family.restore.display()
                        ));
                    }
                }
                Ok(removed)
            }
        }
    }
}

impl Family {
    fn of(family: iptables::Family, iptables: &Path) -> Self {
        let name = iptables.file_name().unwrap_or_default().to_string_lossy();
        let name = match family {
            iptables::Family::V4 => name.into_owned(),
            iptables::Family::V6 => name.replacen("iptables", "ip6tables", 1),
        };
        let beside = |suffix: &str| iptables.with_file_name(format!("{name}-{suffix}"));
        Self { family, save: beside("save"), restore: beside("restore") }
    }

    async fn saved(&self) -> Result<String, Error> {
        Ok(program::run(&self.save, &["-t", iptables::TABLE], "").await?)
    }

    /// `None` where there is no such table. The legacy programs make it by looking into it, and it could not be
    /// removed again.
    async fn saved_if_any(&self) -> Result<Option<String>, Error> {
        let is_there = match std::fs::read_to_string(self.family.legacy_tables()) {
            Ok(tables) => tables.lines().any(|table| table == iptables::TABLE),
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        };
        if !is_there && self.is_legacy().await? {
            return Ok(None);
        }
        self.saved().await.map(Some)
    }

    /// Whether it is the variant that came before nftables. Releases before 1.8 knew no other, and do not say so.
    async fn is_legacy(&self) -> Result<bool, Error> {
        Ok(!program::run(&self.save, &["--version"], "").await?.contains("nf_tables"))
    }

    async fn restore(&self, input: &str) -> Result<(), Error> {
        // Without flushing what others have, and waiting for their lock.
        program::run(&self.restore, &["--wait", "10", "--noflush"], input).await?;
        Ok(())
    }
}

async fn listed(nft: &Path) -> Result<Option<String>, Error> {
    // By number: the names of protocols come from /etc/protocols, which not every image has.
    let list = ["--json", "--numeric-protocol", "list", "table", nftables::FAMILY, nftables::TABLE];
    match program::run(nft, &list, "").await {
        Ok(listed) => Ok(Some(listed)),
        Err(error @ ProgramError::Failed { .. })
            if error.complaint().contains("No such file or directory") =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_named_after_the_one_that_is_given() {
        for (given, family, save) in [
            ("iptables", iptables::Family::V4, "iptables-save"),
            ("iptables", iptables::Family::V6, "ip6tables-save"),
            ("iptables-legacy", iptables::Family::V6, "ip6tables-legacy-save"),
            ("/usr/sbin/iptables-nft", iptables::Family::V4, "/usr/sbin/iptables-nft-save"),
            ("/opt/iptables/bin/iptables", iptables::Family::V6, "/opt/iptables/bin/ip6tables-save"),
        ] {
            assert_eq!(Family::of(family, Path::new(given)).save, Path::new(save), "{given}");
        }
    }

    #[test]
    fn leftovers_are_looked_for_with_every_program_once() {
        let programs = |iptables: &str| Programs { nft: "nft".into(), iptables: iptables.into() };
        let all = Backend::all(&programs("iptables-nft"));
        assert_eq!(all[0], Backend::Nftables("nft".into()));
        let nft = Backend::iptables(Path::new("iptables-nft"));
        assert_eq!(all.iter().filter(|backend| **backend == nft).count(), 1);
        assert!(
            Backend::all(&programs("/x/iptables")).contains(&Backend::iptables(Path::new("/x/iptables")))
        );
    }
}
