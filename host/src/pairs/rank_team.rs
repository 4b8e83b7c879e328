//! What pairs have in common whose calls several ranks make together.

use anyhow::{Context, Result, anyhow};

use super::rank_clock::RankClock;
use crate::comm::{Rank, Team, TeamError, World};
use crate::device::{Device, Stream};
use crate::harness::{Batch, Sampler, Variant};

/// One rank's part of both sides. All ranks are asked the same, in the same order.
pub(super) trait RankSides: Sized + 'static {
    fn stream(&self) -> &Stream;

    /// Issues a call of a side.
    fn call(&self, variant: Variant, input: usize) -> Result<()>;

    /// Waits for the calls of a side.
    fn synchronize(&self, variant: Variant) -> Result<()>;

    /// Runs a side, and compares its whole output on this rank with the oracle: what is off, if
    /// anything is.
    fn verify(&mut self, rank: &Rank, variant: Variant, input: usize) -> Result<Option<String>>;

    /// What is compared on all ranks, and how closely.
    fn compared(&self) -> String;

    /// Changes the last input.
    fn corrupt(&mut self) -> Result<()>;
}

/// The ranks of a pair, at work.
pub(super) struct RankTeam<S> {
    team: Team<Timed<S>, anyhow::Error>,
    num_inputs: usize,
}

/// Sides, each with the clock of its samples once they are prepared.
struct Timed<S> {
    sides: S,
    clocks: [Option<RankClock>; 2],
}

impl<S: RankSides> RankTeam<S> {
    /// A rank on each of these devices, whose sides have so many sets of inputs.
    pub fn start(
        devices: &[Device],
        num_inputs: usize,
        make: impl Fn(&Rank) -> Result<S> + Send + Sync + 'static,
    ) -> Result<Self> {
        let make = move |rank: &Rank| Ok(Timed { sides: make(rank)?, clocks: [None, None] });
        let team = Team::start(World::of(devices)?, make).map_err(in_words)?;
        Ok(Self { team, num_inputs })
    }

    pub fn num_inputs(&self) -> usize {
        self.num_inputs
    }

    /// What each rank makes of some work, by rank. A rank that fails ends the team.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl Fn(&Rank, &mut S) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>> {
        self.team.run(move |rank, timed| work(rank, &mut timed.sides)).map_err(in_words)
    }

    /// Samples of a side: the slowest rank's time.
    pub fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        self.team.run(move |_, timed| timed.prepare(variant, batch)).map_err(in_words)?;
        Ok(Box::new(move || {
            let us = self.team.run(move |rank, timed| timed.sample(rank, variant));
            Ok(us.map_err(in_words)?.into_iter().fold(0.0, f64::max))
        }))
    }

    /// Compares every rank's output for every set of inputs.
    pub fn verify(&self, variant: Variant) -> Result<String> {
        let num_inputs = self.num_inputs;
        let said = self.run(move |rank, sides| {
            let mut first_off = None;
            // Also after a result that is off: the others would wait for this rank.
            for input in 0..num_inputs {
                let off = sides.verify(rank, variant, input)?;
                let off = off.map(|off| format!("inputs {input}, rank {}: {off}", rank.index()));
                first_off = first_off.or(off);
            }
            Ok(first_off.map_or_else(|| Ok(sides.compared()), Err))
        })?;
        let said: Result<Vec<String>, String> = said.into_iter().collect();
        let said = said.map_err(|off| anyhow!(off))?.pop().context("no ranks")?;
        Ok(format!("{said}, {num_inputs} times"))
    }

    pub fn corrupt(&self) -> Result<()> {
        self.run(|_, sides| sides.corrupt()).map(drop)
    }
}

impl<S: RankSides> Timed<S> {
    /// Captures a sample's calls.
    fn prepare(&mut self, variant: Variant, batch: Batch) -> Result<()> {
        let sides = &self.sides;
        sides.call(variant, 0)?;
        sides.synchronize(variant)?;
        let clock = RankClock::new(sides.stream(), batch, |input| sides.call(variant, input))?;
        self.clocks[variant as usize] = Some(clock);
        Ok(())
    }

    /// Microseconds of a call on this rank.
    fn sample(&mut self, rank: &Rank, variant: Variant) -> Result<f64> {
        let sides = &self.sides;
        let clock = self.clocks[variant as usize].as_mut().context("not prepared")?;
        let call = |input| sides.call(variant, input);
        clock.sample(rank, sides.stream(), call, || sides.synchronize(variant))
    }
}

fn in_words(error: TeamError<anyhow::Error>) -> anyhow::Error {
    anyhow!("{error:#}")
}
