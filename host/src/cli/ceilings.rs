//! `ceilings`: the most that this machine reaches.

use anyhow::{Result, ensure};
use clap::Args;
use farpage::device::DeviceChoice;
use farpage::harness::results::Ceiling;
use farpage::harness::{Machine, Watch, ceilings};

use super::Outcome;
use super::numbers::whole;
use super::progress::Progress;
use super::selection::MOST_RANKS;
use super::table::table;

#[derive(Debug, Args)]
pub struct CeilingsArguments {
    /// Uses at most so many GPUs.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MOST_RANKS))]
    world_size: Option<usize>,
}

pub fn run(choice: DeviceChoice, arguments: &CeilingsArguments) -> Result<Outcome> {
    let machine = Machine::open(choice, arguments.world_size)?;
    println!("{}", machine.describe());
    ensure!(machine.is_cuda(), "ceilings are those of a GPU, and this runs on the CPU");
    let progress = Progress::start()?;
    let ceilings = ceilings::measure(&machine, &progress)?;
    progress.finish();
    print!("\n{}", as_table(&ceilings));
    Ok(if progress.is_interrupted() { Outcome::Violation } else { Outcome::Passed })
}

pub fn as_table(ceilings: &[Ceiling]) -> String {
    let row =
        |Ceiling { name, rate, unit }: &Ceiling| vec![name.clone(), format!("{rate:.0} {unit}")];
    table(&["ceiling", "rate"], 1, &ceilings.iter().map(row).collect::<Vec<_>>())
}
