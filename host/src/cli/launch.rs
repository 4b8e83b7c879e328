//! `launch`: kernels by their names, for profilers and sanitizers.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use farpage::device::DeviceChoice;
use farpage::harness::Machine;
use farpage::launches::{self, Size};

use super::Outcome;
use super::numbers::whole;
use super::table::table;

#[derive(Debug, Args)]
pub struct LaunchArguments {
    /// Name of a kernel, as profilers show it, or how the names of several begin, such as that of
    /// their room, or `all`; without one, all kernels are shown.
    kernel: Option<String>,

    /// How often each is launched.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole::<usize>(1, 1_000_000))]
    times: usize,

    /// Without those that wait for themselves on another GPU, where several are named.
    #[arg(long)]
    alone: bool,

    /// How much there is to do for each; `real` on GPUs and `tiny` on the CPU unless given.
    #[arg(long, value_enum)]
    shapes: Option<Shapes>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shapes {
    Real,
    Tiny,
}

pub fn run(choice: DeviceChoice, arguments: &LaunchArguments) -> Result<Outcome> {
    let selected = arguments.kernel.as_deref().map(launches::select).transpose()?;
    let machine = Machine::open(choice, None)?;
    println!("{}", machine.describe());
    let Some(selected) = selected else {
        print!("\n{}", all_kernels(&machine));
        return Ok(Outcome::Passed);
    };
    let selected: Vec<_> =
        selected.into_iter().filter(|launch| !(arguments.alone && launch.meets_itself)).collect();
    selected.iter().try_for_each(|launch| machine.check(launch.num_gpus))?;
    let size = match arguments.shapes {
        Some(Shapes::Real) => Size::Real,
        Some(Shapes::Tiny) => Size::Tiny,
        None if machine.is_cuda() => Size::Real,
        None => Size::Tiny,
    };
    for launch in selected {
        launch
            .run(&machine.devices(launch.num_gpus)?, size, arguments.times)
            .with_context(|| format!("launching `{}`", launch.kernel))?;
        println!("launched {} times: {}", arguments.times, launch.kernel);
    }
    Ok(Outcome::Passed)
}

fn all_kernels(machine: &Machine) -> String {
    let row = |launch: launches::KernelLaunch| {
        let here = match machine.check(launch.num_gpus) {
            Ok(()) => "runs".to_owned(),
            Err(shortage) => shortage.to_string(),
        };
        vec![launch.kernel.to_owned(), here, launch.num_gpus.to_string()]
    };
    table(&["kernel", "here", "GPUs"], 2, &launches::all().into_iter().map(row).collect::<Vec<_>>())
}
