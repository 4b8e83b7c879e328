//! `list`: what there is to run, and what can run here.

use anyhow::Result;
use clap::Args;
use farpage::device::DeviceChoice;
use farpage::harness::{Machine, Pair, ShapeSet, Variant, registry};

use super::Outcome;
use super::table::table;

#[derive(Debug, Args)]
pub struct ListArguments {
    /// Uses at most so many GPUs, or ranks of the CPU.
    #[arg(long, value_name = "N")]
    world_size: Option<usize>,
}

pub fn run(choice: DeviceChoice, arguments: &ListArguments) -> Result<Outcome> {
    let machine = Machine::open(choice, arguments.world_size)?;
    println!("{}", machine.describe());
    for pair in registry().pairs() {
        let [baseline, optimized] = Variant::BOTH.map(|variant| pair.side_name(variant));
        println!("\n{}: {}\n", pair.name(), pair.about());
        println!("baseline: {baseline}; optimized: {optimized}\n");
        print!("{}", shapes_table(&machine, *pair));
    }
    Ok(Outcome::Passed)
}

fn shapes_table(machine: &Machine, pair: &dyn Pair) -> String {
    let mut rows = Vec::new();
    for set in ShapeSet::ALL {
        let shapes = pair.shapes(set);
        if shapes.is_empty() {
            rows.push([set.name(), "none", "no such shapes", ""].map(str::to_owned).into());
        }
        for shape in shapes {
            let here = match machine.check(shape.num_gpus) {
                Ok(()) => "runs".to_owned(),
                Err(shortage) => shortage.to_string(),
            };
            let num_gpus = shape.num_gpus.to_string();
            rows.push(vec![set.name().to_owned(), shape.name, here, num_gpus]);
        }
    }
    table(&["shapes", "shape", "here", "GPUs"], 3, &rows)
}
