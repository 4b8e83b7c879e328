//! `verify`: are both sides of every pair right, and is a corrupted input noticed?

use anyhow::Result;
use clap::Args;
use farpage::device::DeviceChoice;
use farpage::harness::{self, Finding, Watch};

use super::Outcome;
use super::progress::Progress;
use super::selection::Selection;

#[derive(Debug, Args)]
pub struct VerifyArguments {
    #[command(flatten)]
    selection: Selection,

    /// What all inputs follow from; another one every time unless given.
    #[arg(long)]
    seed: Option<u64>,
}

pub fn run(choice: DeviceChoice, arguments: &VerifyArguments) -> Result<Outcome> {
    let selected = arguments.selection.open(choice)?;
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed: {seed}\n");
    let progress = Progress::start()?;
    let verdicts =
        harness::verify(&selected.machine, &selected.pairs, selected.shape_set, seed, &progress);
    progress.finish();

    let (mut num_right, mut num_wrong) = (0, 0);
    for verdict in &verdicts {
        let name = [verdict.target, &verdict.shape].join(" ");
        let name = name.trim_end();
        match &verdict.finding {
            Finding::Right(said) => {
                num_right += 1;
                println!("{name}: right: {said}; a corrupted input was noticed");
            }
            Finding::Skipped(reason) => println!("{name}: skipped: {reason}"),
            Finding::Wrong(error) => {
                num_wrong += 1;
                println!("{name}: WRONG: {error}");
            }
        }
    }
    if progress.is_interrupted() {
        println!("interrupted: the others were not checked");
    }
    match num_right > 0 && num_wrong == 0 && !progress.is_interrupted() {
        true => Ok(Outcome::Passed),
        false => Ok(Outcome::Violation),
    }
}
