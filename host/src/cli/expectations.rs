//! `host expectations`: what each machine is expected to reach.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use farpage::device::DeviceChoice;
use farpage::harness::expectations::{Expectations, Finding, Verdict, check, passed, update};
use farpage::harness::files::read_results;
use farpage::harness::report::expectations_table;
use farpage::harness::results::{Manifest, RunResults};

use super::Outcome;
use super::run::{Measuring, measure};
use super::selection::Selection;

/// What to do with the expectations.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder with one file a machine.
    #[arg(long, global = true, default_value = "expectations")]
    folder: PathBuf,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Holds a run against what its machine is expected to reach; a regression fails.
    Check(Box<CheckArguments>),
    /// Takes over what a run measured: new entries, and entries that left their band.
    Update {
        /// Results of a run: a file, or the run's folder.
        #[arg(long)]
        results: PathBuf,
        /// Takes over measured entries that are in their band, too.
        #[arg(long)]
        force: bool,
    },
    /// Prints what machines are expected to reach.
    Show {
        /// One machine, as `h200_x2`; all without it.
        #[arg(long)]
        hardware: Option<String>,
    },
}

#[derive(Debug, Args)]
struct CheckArguments {
    /// Results of a run: a file, or the run's folder. Without it, pairs are measured now.
    #[arg(long, conflicts_with_all = ["targets", "examples", "shapes", "world_size"])]
    results: Option<PathBuf>,

    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    measuring: Measuring,
}

pub fn run(choice: DeviceChoice, arguments: Arguments) -> Result<Outcome> {
    let folder = arguments.folder;
    match arguments.action {
        Action::Check(arguments) => check_run(choice, &folder, &arguments),
        Action::Update { results, force } => update_from(&folder, &read_results(&results)?, force),
        Action::Show { hardware } => show(&folder, hardware),
    }
}

/// Prints how a run compares with what its machine is expected to reach.
fn check_run(choice: DeviceChoice, folder: &Path, arguments: &CheckArguments) -> Result<Outcome> {
    let (expectations, results) = match &arguments.results {
        Some(path) => {
            let results = read_results(path)?;
            (Expectations::load(folder, &results.manifest.hardware)?, results)
        }
        None => {
            let selected = arguments.selection.open(choice)?;
            let expectations = Expectations::load(folder, &selected.machine.hardware()?)?;
            let plan = arguments.measuring.plan(&selected)?;
            let manifest = Manifest::gather(&selected.machine, plan.seed)?;
            let results = measure(&selected.machine, &plan, manifest, &mut |_| Ok(()))?;
            (expectations, results)
        }
    };
    let verdicts = check(&results, &expectations);
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    println!("{}", summary(&verdicts));
    if results.interrupted {
        println!("interrupted: the run was not measured to its end");
    }
    let has_passed = passed(&verdicts) && !results.interrupted;
    Ok(if has_passed { Outcome::Passed } else { Outcome::Violation })
}

fn summary(verdicts: &[Verdict]) -> String {
    let mut counts =
        [(0, "held"), (0, "regressed"), (0, "failed"), (0, "new"), (0, "skipped"), (0, "not run")];
    for verdict in verdicts {
        let which = match verdict.finding {
            Finding::Held(_) => 0,
            Finding::Regressed(_) => 1,
            Finding::Failed { .. } => 2,
            Finding::New => 3,
            Finding::Skipped { .. } => 4,
            Finding::Absent => 5,
        };
        counts[which].0 += 1;
    }
    let told = counts.iter().filter(|&&(count, word)| count > 0 || word == "held");
    let told: Vec<String> = told.map(|(count, word)| format!("{count} {word}")).collect();
    told.join(", ")
}

fn update_from(folder: &Path, results: &RunResults, force: bool) -> Result<Outcome> {
    let hardware = &results.manifest.hardware;
    let stored = Expectations::load_if_there(folder, hardware)?;
    let update = update(&stored.unwrap_or_else(|| Expectations::new(hardware)), results, force);
    if update.changes.is_empty() {
        bail!("the run measured nothing that could be expected");
    }
    print!("{update}");
    if update.is_change() {
        println!("wrote {}", update.expectations.save(folder)?.display());
    } else {
        println!("nothing to write");
    }
    Ok(Outcome::Passed)
}

fn show(folder: &Path, hardware: Option<String>) -> Result<Outcome> {
    let machines = match hardware {
        Some(hardware) => vec![hardware],
        None => Expectations::known(folder)?,
    };
    if machines.is_empty() {
        println!("no expectations in {}", folder.display());
    }
    for hardware in machines {
        println!("{}", expectations_table(&Expectations::load(folder, &hardware)?));
    }
    Ok(Outcome::Passed)
}
