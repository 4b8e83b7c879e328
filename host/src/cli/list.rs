//! `list`: what there is to run, and what can run here.

use anyhow::Result;
use clap::Args;
use farpage::device::DeviceChoice;
use farpage::harness::{Machine, Pair, ShapeSet};
use farpage::pairs;

use super::Outcome;
use super::numbers::whole;
use super::selection::MOST_RANKS;
use super::table::table;

#[derive(Debug, Args)]
pub struct ListArguments {
    /// Pairs whose shapes are shown, or `all`; without them, one line for each pair.
    targets: Vec<String>,

    /// Uses at most so many GPUs, or ranks of the CPU.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MOST_RANKS))]
    world_size: Option<usize>,
}

pub fn run(choice: DeviceChoice, arguments: &ListArguments) -> Result<Outcome> {
    let pairs = pairs::select(&arguments.targets)?;
    let machine = Machine::open(choice, arguments.world_size)?;
    println!("{}", machine.describe());
    if arguments.targets.is_empty() {
        print!("\n{}", pairs_table(&machine, &pairs));
        println!(
            "\nshapes that run here are counted; `host list PAIR` names them and says what is compared"
        );
        return Ok(Outcome::Passed);
    }
    for pair in pairs {
        let [baseline, optimized] = pair.sides;
        println!("\n{}: {}\n", pair.name, pair.about);
        println!("baseline: {baseline}; optimized: {optimized}\n");
        print!("{}", shapes_table(&machine, pair));
    }
    Ok(Outcome::Passed)
}

/// A line for each pair: its sides, and how many of its shapes can run here.
fn pairs_table(machine: &Machine, pairs: &[&Pair]) -> String {
    let row = |pair: &&Pair| {
        let sides = pair.sides.map(str::to_owned);
        let counts = ShapeSet::ALL.map(|set| {
            let shapes = pair.shapes(set);
            let num_here =
                shapes.iter().filter(|shape| machine.check(shape.num_gpus).is_ok()).count();
            match (num_here, shapes.len()) {
                (_, 0) => String::new(),
                (here, all) if here == all => all.to_string(),
                (here, all) => format!("{here} of {all}"),
            }
        });
        [&[pair.name.to_owned()][..], &sides, &counts].concat()
    };
    let [a, b, c] = ShapeSet::ALL.map(ShapeSet::name);
    table(
        &["pair", "baseline", "optimized", a, b, c],
        3,
        &pairs.iter().map(row).collect::<Vec<_>>(),
    )
}

fn shapes_table(machine: &Machine, pair: &Pair) -> String {
    let mut rows = Vec::new();
    for set in ShapeSet::ALL {
        let shapes = pair.shapes(set);
        if shapes.is_empty() {
            rows.push([set.name(), "none", "no such shapes", ""].map(str::to_owned).into());
        }
        for shape in shapes {
            let here = match machine.check(shape.num_gpus) {
                Ok(()) if machine.is_cuda() || set == ShapeSet::Tiny => "runs".to_owned(),
                Ok(()) => "runs, for a long time".to_owned(),
                Err(shortage) => shortage.to_string(),
            };
            let num_gpus = shape.num_gpus.to_string();
            rows.push(vec![set.name().to_owned(), shape.name, here, num_gpus]);
        }
    }
    table(&["shapes", "shape", "here", "GPUs"], 3, &rows)
}
