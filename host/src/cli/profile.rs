//! `profile`: kernels under Nsight Compute, and what launches them under Nsight Systems.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use farpage::device::{DeviceChoice, ptx};
use farpage::harness::profile::{Invocation, Kernels, Tool, around, launching, ncu, nsys};
use farpage::harness::{Machine, registry};
use farpage::launches;

use super::Outcome;
use super::selection::Selected;

#[derive(Debug, Args)]
pub struct ProfileArguments {
    /// Name of a kernel, as profilers show it, or how the names of several begin, such as that of
    /// their room, or `all`: they share a report.
    kernel: String,

    /// Runs the commands instead of only printing them.
    #[arg(long)]
    run: bool,

    /// Only this profiler.
    #[arg(long, value_enum)]
    tool: Option<ToolArgument>,

    /// Folder of the profilers' reports.
    #[arg(long, value_name = "DIR", default_value = "profiles")]
    out: PathBuf,

    /// Launches of each kernel that Nsight Compute looks at.
    #[arg(long, value_name = "N", default_value_t = 3)]
    launches: usize,

    /// Arguments of the `host` command to look at, instead of `launch` with Nsight Compute and `run`
    /// of the kernel's pair with Nsight Systems.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ToolArgument {
    Ncu,
    Nsys,
}

pub fn run(choice: DeviceChoice, arguments: &ProfileArguments) -> Result<Outcome> {
    let archs = ptx::embedded_archs();
    ensure!(!archs.is_empty(), "this build has no GPU kernels: {}", ptx::HOW_TO_EMBED);
    let kernel = arguments.kernel.as_str();
    let launches = launches::select(kernel)?;
    let num_gpus = launches.iter().map(|launch| launch.num_gpus).max().unwrap_or(1);
    let given = (!arguments.command.is_empty()).then(|| arguments.command.clone());
    let launching = launching(kernel, arguments.launches);
    let report = arguments.out.join(kernel);
    let kernels = match &launches[..] {
        [launch] => Kernels::Named(launch.kernel),
        _ if kernel == launches::ALL => Kernels::All,
        _ => Kernels::Beginning(kernel),
    };
    let mut invocations = Vec::new();
    if !matches!(arguments.tool, Some(ToolArgument::Nsys)) {
        let command = of_host(given.clone().unwrap_or_else(|| launching.clone()));
        let ncu = ncu(kernels, arguments.launches, &report, &command);
        // A kernel that waits for another GPU's is replayed with what it waits for already there.
        invocations.push(if num_gpus > 1 { ncu.one_by_one() } else { ncu });
    }
    if !matches!(arguments.tool, Some(ToolArgument::Ncu)) {
        let command =
            given.or_else(|| around(launches[0].kernel, &registry())).unwrap_or(launching);
        invocations.push(nsys(&report, &of_host(command)));
    }
    if !arguments.run {
        invocations.iter().for_each(|invocation| println!("{invocation}"));
        return Ok(Outcome::Passed);
    }
    require(&invocations)?;
    require_gpus(&Machine::open(choice, None)?, num_gpus)?;
    run_all(&invocations)
}

/// A command line of this executable, on a GPU.
fn of_host(arguments: Vec<String>) -> Vec<String> {
    let host = std::env::args().next().unwrap_or_else(|| "host".to_owned());
    [vec![host], arguments, vec!["--device".to_owned(), "cuda".to_owned()]].concat()
}

/// Looks for every profiler before the first one runs.
fn require(invocations: &[Invocation]) -> Result<()> {
    for invocation in invocations {
        invocation.tool().find()?;
    }
    Ok(())
}

fn require_gpus(machine: &Machine, needed: usize) -> Result<()> {
    ensure!(
        machine.is_cuda(),
        "profilers look at a GPU, and this is not one: {}",
        machine.describe()
    );
    Ok(machine.check(needed)?)
}

fn run_all(invocations: &[Invocation]) -> Result<Outcome> {
    for invocation in invocations {
        println!("{invocation}");
        println!("profile: {}", invocation.run()?.display());
    }
    Ok(Outcome::Passed)
}

/// How closely `run` looks in a pass of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Depth {
    /// Not at all.
    #[default]
    None,
    /// At the time line, with Nsight Systems.
    Minimal,
    /// At the pairs' kernels too, with Nsight Compute.
    Deep,
}

/// Launches of the pairs' kernels that a deep pass looks at.
const DEEP_LAUNCHES: usize = 12;

impl Depth {
    /// Refuses what will not work, before anything is measured.
    pub fn check(self, selected: &Selected) -> Result<()> {
        let tools: &[Tool] = match self {
            Self::None => return Ok(()),
            Self::Minimal => &[Tool::Nsys],
            Self::Deep => &[Tool::Nsys, Tool::Ncu],
        };
        for tool in tools {
            tool.find()?;
        }
        ensure!(selected.machine.is_cuda(), "`--profile` looks at a GPU, and this runs on the CPU");
        Ok(())
    }

    /// Runs what was selected once more, under profilers that write to `folder`.
    pub fn pass(self, selected: &Selected, seed: u64, folder: &Path) -> Result<()> {
        if self == Self::None {
            return Ok(());
        }
        let targets = selected.pairs.iter().map(|pair| pair.name().to_owned());
        let options = [
            "--shapes",
            selected.shape_set.name(),
            "--world-size",
            &selected.machine.num_devices().to_string(),
            "--seed",
            &seed.to_string(),
            "--iterations",
            "3",
            "--warmup",
            "0",
        ];
        let command =
            std::iter::once("run".to_owned()).chain(targets).chain(options.map(str::to_owned));
        let command = of_host(command.collect());
        let mut invocations = vec![nsys(&folder.join("timeline"), &command)];
        if self == Self::Deep {
            let rooms: BTreeSet<&'static str> =
                selected.pairs.iter().flat_map(|pair| pair.rooms()).collect();
            let rooms: Vec<&'static str> = rooms.into_iter().collect();
            invocations.push(ncu(
                Kernels::OfRooms(&rooms),
                DEEP_LAUNCHES,
                &folder.join("kernels"),
                &command,
            ));
        }
        run_all(&invocations).map(drop)
    }
}
