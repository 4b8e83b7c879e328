//! What a paired benchmark is to the harness.

use std::fmt;

use anyhow::{Result, bail};
use gpu_kernels::contract::Work;
use serde::Serialize;

use super::results::{Metric, Phase, Planned, Published};
use super::sampler::{Batch, Sampler};
use crate::device::Device;

/// What a competent engineer ships first, against what this project has instead: two sides that
/// compute the same function of the same inputs.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The target's name, which is also its bench's.
    pub name: &'static str,
    /// What is compared with what, in a sentence.
    pub about: &'static str,
    /// What the sides are called, baseline first.
    pub sides: [&'static str; 2],
    /// The rooms whose kernels it is there for.
    pub rooms: &'static [&'static str],
    /// The shapes of a set, cheap to list; may be empty.
    pub shapes: fn(ShapeSet) -> Vec<Shape>,
}

impl Pair {
    /// What a side is called.
    pub fn side_name(&self, variant: Variant) -> &'static str {
        self.sides[variant as usize]
    }

    /// The shapes of a set.
    pub fn shapes(&self, set: ShapeSet) -> Vec<Shape> {
        (self.shapes)(set)
    }
}

/// A side of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// What is shipped first.
    Baseline,
    /// What is compared with it.
    Optimized,
}

impl Variant {
    /// Both, baseline first.
    pub const BOTH: [Self; 2] = [Self::Baseline, Self::Optimized];
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Baseline => "baseline",
            Self::Optimized => "optimized",
        })
    }
}

/// Which shapes of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShapeSet {
    /// Those whose ratio was published for other hardware.
    SeedParity,
    /// Those that servers see.
    Real,
    /// Those that the CPU does in seconds.
    Tiny,
}

impl ShapeSet {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::SeedParity, Self::Real, Self::Tiny];

    /// As arguments and results spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SeedParity => "seed_parity",
            Self::Real => "real",
            Self::Tiny => "tiny",
        }
    }
}

impl fmt::Display for ShapeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A size of a pair's problem, and how to make it ready.
pub struct Shape {
    /// Unique within the pair and set.
    pub name: String,
    /// GPUs that it takes; on the CPU, as many ranks.
    pub num_gpus: usize,
    /// Ratios that were published for it.
    pub published: Vec<Published>,
    /// What another program has to know to run the same, as results keep it.
    pub sizes: Option<serde_json::Value>,
    prepare: Box<Prepare>,
}

type Prepare = dyn Fn(&[Device], u64) -> Result<Box<dyn Prepared>>;

impl Shape {
    /// A shape that `prepare` makes ready on `num_gpus` devices, all inputs following from a seed.
    pub fn new<P: Prepared + 'static>(
        name: impl Into<String>,
        num_gpus: usize,
        prepare: impl Fn(&[Device], u64) -> Result<P> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            num_gpus,
            published: Vec::new(),
            sizes: None,
            prepare: Box::new(move |devices, seed| Ok(Box::new(prepare(devices, seed)?))),
        }
    }

    /// Stands for shapes that there are none of, and says why when it is run.
    pub fn refused(name: impl Into<String>, why: String) -> Self {
        let refuse = move |_: &[Device], _| bail!("{why}");
        let (published, sizes, prepare) = (Vec::new(), None, Box::new(refuse));
        Self { name: name.into(), num_gpus: 1, published, sizes, prepare }
    }

    /// The same shape, whose ratio was published: `(hardware, ratio)`.
    #[must_use]
    pub fn published(mut self, ratios: &[(&str, f64)]) -> Self {
        let published =
            |&(hardware, ratio): &(&str, f64)| Published { hardware: hardware.into(), ratio };
        self.published = ratios.iter().map(published).collect();
        self
    }

    /// The same shape, whose sizes results tell.
    ///
    /// # Panics
    /// If the sizes are nothing that JSON can hold.
    #[must_use]
    pub fn sizes(mut self, sizes: &impl Serialize) -> Self {
        self.sizes = Some(serde_json::to_value(sizes).expect("sizes are numbers and names"));
        self
    }

    /// Makes both sides ready on `devices`, of which there are [`num_gpus`](Self::num_gpus).
    ///
    /// # Errors
    /// Whatever the pair says: too little memory, no way between the devices.
    pub fn prepare(&self, devices: &[Device], seed: u64) -> Result<Box<dyn Prepared>> {
        (self.prepare)(devices, seed)
    }
}

/// Both sides of a pair in the memory of some devices, ready to run.
pub trait Prepared {
    /// What one call of a side must do, counted from the contract.
    fn work(&self, variant: Variant) -> Work;

    /// What the optimized side takes from the machine; the demand that takes longest bounds it.
    fn demands(&self) -> Vec<Demand>;

    /// Sets of inputs that calls can rotate through, such that none is left in a cache when its
    /// turn comes again.
    fn num_inputs(&self) -> usize;

    /// Whether a call takes seconds, as serving a load does: then the checks before are its warm-up,
    /// it is sampled call by call, a few rounds are looked at, and [`verify`](Self::verify) may look at
    /// what the last call gave instead of running another.
    fn is_long(&self) -> bool {
        false
    }

    /// Takes samples of a side. Of several ranks, the slowest one's time counts.
    ///
    /// Whatever can be done before the first sample is done here. One stream's work is sampled by
    /// [`stream_sampler`](super::stream_sampler).
    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>>;

    /// Runs a side over every set of inputs, into outputs that hold what no right result holds,
    /// and compares the whole output with the oracle. Says what was compared, and how closely.
    ///
    /// # Errors
    /// The first element that is off, with its place and both values.
    fn verify(&self, variant: Variant) -> Result<String>;

    /// Changes an input of both sides behind the oracle's back: from now on
    /// [`verify`](Self::verify) must fail.
    fn corrupt(&mut self) -> Result<()>;

    /// Named parts of the optimized side's time, where it has any.
    fn phases(&self) -> Result<Vec<Phase>> {
        Ok(Vec::new())
    }

    /// Numbers of a side beside its time, of its last call: both sides have the same, in the same
    /// order.
    fn metrics(&self, _variant: Variant) -> Vec<Metric> {
        Vec::new()
    }

    /// What a plan chose for the optimized side, where there is one, and a time to hold it against.
    fn planned(&self) -> Option<Planned> {
        None
    }
}

/// Something that a call takes from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Name of the ceiling that it is held against: a constant of [`ceilings`](super::ceilings).
    pub ceiling: &'static str,
    /// Bytes, or floating-point operations, of one call.
    pub amount: u64,
}
