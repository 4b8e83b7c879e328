//! `profile`: kernels under Nsight Compute, and what launches them under Nsight Systems.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use farpage::device::{DeviceChoice, ptx};
use farpage::harness::Machine;
use farpage::harness::profile::{Invocation, Kernels, Replay, Tool, around, launching, ncu, nsys};
use farpage::launches::{self, KernelLaunch};

use super::Outcome;
use super::numbers::whole;
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
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole::<usize>(1, 1000))]
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
    let selected = launches::select(&arguments.kernel)?;
    let num_gpus = selected.iter().map(|launch| launch.num_gpus).max().unwrap_or(1);
    let mut invocations = Vec::new();
    if !matches!(arguments.tool, Some(ToolArgument::Nsys)) {
        invocations.extend(in_depth(arguments, &selected));
    }
    if !matches!(arguments.tool, Some(ToolArgument::Ncu)) {
        let command = given(arguments)
            .or_else(|| around(selected[0].kernel))
            .unwrap_or_else(|| launching(&arguments.kernel, arguments.launches));
        invocations.push(nsys(&arguments.out.join(&arguments.kernel), &of_host(command)));
    }
    if !arguments.run {
        invocations.iter().for_each(|invocation| println!("{invocation}"));
        return Ok(Outcome::Passed);
    }
    require(&invocations)?;
    require_gpus(&Machine::open(choice, None)?, num_gpus)?;
    run_all(&invocations)
}

/// The `host` command that the user wants to look at.
fn given(arguments: &ProfileArguments) -> Option<Vec<String>> {
    (!arguments.command.is_empty()).then(|| arguments.command.clone())
}

/// Nsight Compute on all of these kernels together, but on each that cannot run alone by itself.
fn in_depth(arguments: &ProfileArguments, selected: &[KernelLaunch]) -> Vec<Invocation> {
    let look = |kernel: &str, kernels: Kernels<'_>, replay: Replay, more: &[&str]| {
        let command = given(arguments).unwrap_or_else(|| {
            let more = more.iter().map(|&option| option.to_owned());
            launching(kernel, arguments.launches).into_iter().chain(more).collect()
        });
        let report = arguments.out.join(kernel);
        ncu(kernels, arguments.launches, replay, &report, &of_host(command))
    };
    // A kernel that waits for others' work on another GPU is replayed with that work already done.
    let replay = |num_gpus| match num_gpus {
        0..=1 => Replay::Kernel,
        _ => Replay::KernelAfterKernel,
    };
    let of_one = |launch: &KernelLaunch| {
        let replay = if launch.meets_itself { Replay::Command } else { replay(launch.num_gpus) };
        look(launch.kernel, Kernels::Named(launch.kernel), replay, &[])
    };
    let (together, apart): (Vec<&KernelLaunch>, Vec<&KernelLaunch>) =
        selected.iter().partition(|launch| !launch.meets_itself);
    let mut invocations = Vec::new();
    match together[..] {
        [] => (),
        [launch] => invocations.push(of_one(launch)),
        _ => {
            let name = arguments.kernel.as_str();
            let kernels =
                if name == launches::ALL { Kernels::All } else { Kernels::Beginning(name) };
            let num_gpus = together.iter().map(|launch| launch.num_gpus).max().unwrap_or(1);
            invocations.push(look(name, kernels, replay(num_gpus), &["--alone"]));
        }
    }
    invocations.extend(apart.into_iter().map(of_one));
    invocations
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
        let targets = selected.pairs.iter().map(|pair| pair.name.to_owned());
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
                selected.pairs.iter().flat_map(|pair| pair.rooms).copied().collect();
            let rooms: Vec<&'static str> = rooms.into_iter().collect();
            invocations.push(ncu(
                Kernels::OfRooms(&rooms),
                DEEP_LAUNCHES,
                Replay::Kernel,
                &folder.join("kernels"),
                &command,
            ));
        }
        run_all(&invocations).map(drop)
    }
}
