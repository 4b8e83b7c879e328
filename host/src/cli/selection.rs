//! Arguments that commands over pairs share: what, and on how many devices.

use anyhow::Result;
use clap::{Args, ValueEnum};
use farpage::device::DeviceChoice;
use farpage::harness::{Machine, Pair, ShapeSet};
use farpage::pairs;

use super::numbers::whole;

/// Devices that a machine may be told to have.
pub const MOST_RANKS: u64 = 64;

/// Which pairs, at which shapes, on how many devices.
#[derive(Debug, Args)]
pub struct Selection {
    /// Pairs, as `host list` shows them; `all`, or nothing, for every one.
    targets: Vec<String>,

    /// More targets, with commas between them.
    #[arg(long, value_delimiter = ',', value_name = "TARGETS")]
    examples: Vec<String>,

    /// Which shapes; `real` on GPUs and `tiny` on the CPU unless given.
    #[arg(long, value_enum)]
    shapes: Option<Shapes>,

    /// Uses at most so many GPUs, or ranks of the CPU.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MOST_RANKS))]
    world_size: Option<usize>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Shapes {
    SeedParity,
    Real,
    Tiny,
}

impl From<Shapes> for ShapeSet {
    fn from(shapes: Shapes) -> Self {
        match shapes {
            Shapes::SeedParity => Self::SeedParity,
            Shapes::Real => Self::Real,
            Shapes::Tiny => Self::Tiny,
        }
    }
}

/// What was selected.
pub struct Selected {
    pub machine: Machine,
    pub pairs: Vec<&'static Pair>,
    pub shape_set: ShapeSet,
}

impl Selection {
    /// Looks everything up, and prints the line that says which device it is.
    pub fn open(&self, choice: DeviceChoice) -> Result<Selected> {
        let pairs = pairs::select(&self.names())?;
        let machine = Machine::open(choice, self.world_size)?;
        println!("{}", machine.describe());
        let shape_set = self.shapes.map_or(machine.usual_shapes(), ShapeSet::from);
        Ok(Selected { machine, pairs, shape_set })
    }

    fn names(&self) -> Vec<String> {
        [&self.targets[..], &self.examples].concat()
    }
}

impl Selected {
    /// What folders call it: the target, or how many there are.
    pub fn label(&self) -> String {
        match self.pairs.as_slice() {
            [pair] => pair.name.to_owned(),
            pairs if pairs.len() == pairs::ALL.len() => "all".to_owned(),
            pairs => format!("{}-targets", pairs.len()),
        }
    }
}
