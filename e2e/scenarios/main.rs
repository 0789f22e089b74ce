//! `rolecall-e2e`: Rolecall on a real cluster of this machine, seen as an operator and the pods see it.
#![allow(clippy::print_stdout, reason = "what the scenarios print is what they are for")]

mod docs;
mod life;
mod metadata;
mod pods;
mod race;
mod report;
mod rotation;
mod sdks;
mod traces;
mod uninstall;
mod world;
mod wrong_pod;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use report::{Figure, Report};
use rolecall_e2e::{isolation, tool};
use rotation::Rotation;
use world::{Built, World};

/// Rolecall on a real cluster of this machine.
#[derive(Debug, Parser)]
#[command(name = "rolecall-e2e", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios: all of them unless some are named.
    Run(Run),
    /// Start the cluster with Rolecall and leave it up until this is ended.
    Up(Images),
    /// End every cluster of this kind on this machine and remove what is left of it.
    Down,
    /// Show that clusters that are killed leave nothing on this machine
    Traces,
    /// A cluster to be killed.
    #[command(hide = true)]
    Victim,
    #[command(hide = true)]
    InsideVictim { folder: PathBuf },
    /// The same as `run`, in the namespaces that were made for it.
    #[command(hide = true)]
    InsideRun {
        #[command(flatten)]
        run: Run,
        folder: PathBuf,
    },
    /// The same as `up`, in the namespaces that were made for it.
    #[command(hide = true)]
    InsideUp {
        #[command(flatten)]
        images: Images,
        folder: PathBuf,
    },
    /// Wait for the end of the input and remove what is left.
    #[command(hide = true)]
    CleanUpAfter { folder: PathBuf },
}

#[derive(Debug, clap::Args)]
struct Run {
    #[command(flatten)]
    images: Images,
    /// The scenarios to run
    #[arg(long = "scenario", value_enum)]
    scenarios: Vec<Scenario>,
    /// Pods of each race, and of all races while daemons come and go
    #[arg(long, default_value_t = 200)]
    race_pods: usize,
    /// Write what was shown into this folder: e2e.md if all scenarios were run, and sdks.md
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Images {
    /// The folder that `make image` has left the images in
    #[arg(long, value_name = "FOLDER")]
    images: PathBuf,
}

/// What can be shown, in the order in which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// The first request succeeds of pods that were there before the daemon
    LateDaemon,
    /// The first request of every pod succeeds while the DaemonSet is updated
    Update,
    /// The first request of every pod succeeds, however slow STS is
    Race,
    /// Every SDK, unmodified, gets the credentials of its pod and renews them
    Sdks,
    /// No pod gets another's credentials, whatever it presents and wherever it comes from
    WrongPod,
    /// Pods go on while everything around them fails and comes back
    Life,
    /// The metadata service is out of reach for pods
    Metadata,
    /// Tokens of ten minutes are renewed while pods go on asking
    Rotation,
    /// Uninstalling leaves nothing behind
    Uninstall,
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Run(_) => isolated("inside-run"),
        Command::Up(_) => isolated("inside-up"),
        Command::InsideRun { run, folder } => inside(run_scenarios(run, folder)),
        Command::InsideUp { images, folder } => inside(up(images, folder)),
        Command::Traces => traces::run().map(|()| ExitCode::SUCCESS),
        Command::Victim => isolated("inside-victim"),
        Command::InsideVictim { folder } => {
            inside(async { traces::victim(folder, &tool("probe")?.join("probe")).await })
        }
        Command::Down => down(),
        Command::CleanUpAfter { folder } => isolation::clean_up_after(&folder).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        // Nobody is left to tell if even this cannot be written.
        let _unwritable = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs this program again as `command`, with the arguments that it was given.
fn isolated(command: &str) -> Result<ExitCode> {
    let mut arguments = vec![OsString::from(command)];
    arguments.extend(std::env::args_os().skip(2));
    let status = isolation::run(&arguments, &["clean-up-after".into()])?;
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("With ROLECALL_KEEP=1 the folder of the cluster stays, with the log of each process.");
    Ok(ExitCode::FAILURE)
}

fn inside(work: impl Future<Output = Result<()>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(work)?;
    Ok(ExitCode::SUCCESS)
}

async fn run_scenarios(run: Run, folder: PathBuf) -> Result<()> {
    let mut report = Report::new();
    let docs = match &run.docs {
        Some(folder) => {
            sdks::ensure_complete().context("the documentation is about every SDK")?;
            Some((folder, docs::machine(folder)?))
        }
        None => None,
    };
    let mut world = World::start(&folder, &built(&run.images)?).await?;
    world.install().await?;
    world.ensure_shims_are_apart().await?;
    report.begin(report::CLUSTER);
    report.add(Figure::new(
        "two nodes with Rolecall are up, a replica of the shim on each",
        format!("{:.0} s", report.elapsed().as_secs_f64()),
    ));
    let mut failures = Vec::new();
    let mut table_of_sdks = None;
    let mut rotation = None;
    let chosen = Scenario::chosen(&run.scenarios);
    let rotation_begins = Scenario::rotation_begins(&chosen);
    for scenario in chosen {
        report.begin(scenario.name());
        let played = async {
            world.reset().await.context("put back what the one before has left")?;
            if rotation_begins == Some(scenario) {
                rotation = Some(Rotation::begin(&world).await);
            }
            match (scenario, rotation.take_if(|_| scenario == Scenario::Rotation)) {
                (_, Some(begun)) => begun.context("start its pods")?.end(&world, &mut report).await,
                (Scenario::Sdks, None) => {
                    sdks::run(&world, &mut report).await.map(|table| table_of_sdks = Some(table))
                }
                (_, None) => play(scenario, &mut world, &mut report, run.race_pods).await,
            }
        }
        .await;
        if let Err(error) = played {
            println!("FAILED   {}: {error:#}", scenario.name());
            failures.push(scenario.name());
        }
    }
    ensure!(failures.is_empty(), "these scenarios failed: {}", failures.join(", "));
    let Some((folder, machine)) = docs else { return Ok(()) };
    if let Some(table) = table_of_sdks {
        docs::write_sdks(folder, &table, &machine)?;
    }
    if run.scenarios.is_empty() {
        docs::write_e2e(folder, &report, &machine)?;
    }
    Ok(())
}

async fn play(scenario: Scenario, world: &mut World, report: &mut Report, race_pods: usize) -> Result<()> {
    match scenario {
        Scenario::Race => race::run(world, report, race_pods).await,
        Scenario::LateDaemon => race::late_daemon(world, report, race_pods).await,
        Scenario::Update => race::update(world, report, race_pods).await,
        Scenario::Sdks => bail!("its table is kept"),
        Scenario::WrongPod => wrong_pod::run(world, report).await,
        Scenario::Life => life::run(world, report).await,
        Scenario::Metadata => metadata::run(world, report).await,
        Scenario::Rotation => bail!("its pods have not begun: there was no reset before them"),
        Scenario::Uninstall => uninstall::run(world, report).await,
    }
}

impl Scenario {
    /// Those that are named, or all of them if none is, in the order in which they are shown.
    fn chosen(named: &[Self]) -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|scenario| named.is_empty() || named.contains(scenario)).collect()
    }

    /// The one of these before which the pods of [`Scenario::Rotation`] begin, if it is among them.
    ///
    /// Tokens take ten minutes, in which other things can be shown that leave the second node alone.
    fn rotation_begins(chosen: &[Self]) -> Option<Self> {
        let among_them = chosen.contains(&Self::Rotation);
        chosen.iter().copied().find(|scenario| among_them && !scenario.replaces_daemons())
    }

    /// Whether there is a time without a daemon on the second node.
    fn replaces_daemons(self) -> bool {
        match self {
            Self::LateDaemon | Self::Update => true,
            Self::Race
            | Self::Sdks
            | Self::WrongPod
            | Self::Life
            | Self::Metadata
            | Self::Rotation
            | Self::Uninstall => false,
        }
    }

    /// Its name on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Race => "race",
            Self::LateDaemon => "late-daemon",
            Self::Update => "update",
            Self::Sdks => "sdks",
            Self::WrongPod => "wrong-pod",
            Self::Life => "life",
            Self::Metadata => "metadata",
            Self::Rotation => "rotation",
            Self::Uninstall => "uninstall",
        }
    }
}

async fn up(images: Images, folder: PathBuf) -> Result<()> {
    let world = World::start(&folder, &built(&images)?).await?;
    world.install().await?;
    println!("kubeconfig {}", world.cluster.control_plane().kubeconfig_path().display());
    println!("kubectl    {}", tool("kubernetes")?.join("kubectl").display());
    println!("make e2e-down ends it");
    std::future::pending::<()>().await;
    Ok(())
}

fn built(images: &Images) -> Result<Built> {
    let image = |name: &str| images.images.join(format!("{name}.tar"));
    Ok(Built {
        images: vec![image("rolecall-daemon"), image("rolecall-shim")],
        probe: tool("probe")?.join("probe"),
    })
}

fn down() -> Result<ExitCode> {
    for folder in isolation::end_all_but(&[])? {
        println!("removed {}", folder.display());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_rotation_begins(named: &[Scenario], expect: Option<Scenario>) {
        assert_eq!(Scenario::rotation_begins(&Scenario::chosen(named)), expect, "{named:?}");
    }

    #[test]
    fn rotation_begins_once_and_after_the_daemons_that_are_replaced() {
        check_rotation_begins(&[], Some(Scenario::Race));
        check_rotation_begins(&[Scenario::Uninstall, Scenario::Rotation], Some(Scenario::Rotation));
        check_rotation_begins(&[Scenario::Update, Scenario::Rotation, Scenario::Life], Some(Scenario::Life));
        check_rotation_begins(&[Scenario::Race, Scenario::Uninstall], None);
    }
}
