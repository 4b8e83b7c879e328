//! A run: every shape of some pairs, made ready, checked, measured, checked again.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};

use super::ceilings;
use super::conditions::Recorder;
use super::machine::Machine;
use super::pair::{Demand, Pair, Prepared, Shape, ShapeSet, Variant};
use super::protocol::{Protocol, measure};
use super::results::{
    Ceiling, Entry, Estimate, Manifest, Measured, Outcome, RunResults, SCHEMA, Share, Side,
};
use super::watch::Watch;
use super::wording::{in_one_line, meant, near};
use crate::device::nvtx;

/// What to run, and how.
#[derive(Clone)]
pub struct Plan {
    /// The targets.
    pub pairs: Vec<&'static Pair>,
    /// Which shapes of theirs.
    pub shape_set: ShapeSet,
    /// Of these, the ones in whose name one of these stands; all, if there are none.
    pub only: Vec<String>,
    /// How they are measured.
    pub protocol: Protocol,
    /// What all inputs follow from.
    pub seed: u64,
}

/// Runs a plan on a machine. `save` gets what there is before the first entry, after every one, and
/// at the end: whatever ends the run early loses the entry under way and nothing else, and what
/// was saved last says that the run was interrupted.
///
/// An entry that fails is one of the results, and the others still run.
///
/// # Errors
/// A machine whose ceilings cannot be measured; what `save` says.
pub fn run(
    machine: &Machine,
    plan: &Plan,
    manifest: Manifest,
    watch: &dyn Watch,
    save: &mut dyn FnMut(&RunResults) -> Result<()>,
) -> Result<RunResults> {
    let ceilings = ceilings::measure(machine, watch).context("measuring the ceilings")?;
    let mut results =
        RunResults { schema: SCHEMA, manifest, ceilings, entries: Vec::new(), interrupted: true };
    save(&results)?;
    let shapes: Vec<_> = plan.pairs.iter().map(|pair| plan.shapes_of(pair)).collect();
    let total = shapes.iter().map(Vec::len).sum();
    let mut done = 0;
    for (pair, shapes) in plan.pairs.iter().zip(&shapes) {
        if shapes.is_empty() && plan.only.is_empty() {
            let reason = format!("has no {} shapes", plan.shape_set);
            results.entries.push(plan.entry(pair, None, Outcome::Skipped { reason }));
        }
        for shape in shapes {
            if watch.is_interrupted() {
                return Ok(results);
            }
            watch.entry(done, total, &format!("{}, {}", pair.name, shape.name));
            let outcome = match run_shape(machine, pair, shape, plan, &results.ceilings, watch) {
                Ok(outcome) => outcome,
                // What an interruption breaks is no failure.
                Err(_) if watch.is_interrupted() => return Ok(results),
                Err(error) => Outcome::Failed { error: in_one_line(&error) },
            };
            results.entries.push(plan.entry(pair, Some(shape), outcome));
            save(&results)?;
            done += 1;
        }
    }
    results.interrupted = false;
    save(&results)?;
    Ok(results)
}

/// Shapes that were asked for, and are none's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`--only` must be a part of the name of a {shape_set} shape that `host list all` shows, got \
     `{got}`{}",
    meant(&.near.iter().map(String::as_str).collect::<Vec<_>>())
)]
pub struct UnknownShape {
    /// Of which shapes.
    pub shape_set: ShapeSet,
    /// What was asked for.
    pub got: String,
    /// Names like it, the likest first.
    pub near: Vec<String>,
}

impl Plan {
    /// Whether each of [`only`](Self::only) names a shape.
    ///
    /// # Errors
    /// The first that names none.
    pub fn check(&self) -> Result<(), UnknownShape> {
        let shapes = self.pairs.iter().flat_map(|pair| pair.shapes(self.shape_set));
        let names: BTreeSet<String> = shapes.map(|shape| shape.name).collect();
        let names_none = |part: &&String| !names.iter().any(|name| is_called(name, part));
        match self.only.iter().find(names_none) {
            None => Ok(()),
            Some(got) => {
                let near = near(got, names.iter().map(String::as_str));
                let near = near.into_iter().map(str::to_owned).collect();
                Err(UnknownShape { shape_set: self.shape_set, got: got.clone(), near })
            }
        }
    }

    /// The shapes of a pair that it is about.
    pub fn shapes_of(&self, pair: &Pair) -> Vec<Shape> {
        let is_asked_for = |shape: &Shape| {
            self.only.is_empty() || self.only.iter().any(|part| is_called(&shape.name, part))
        };
        pair.shapes(self.shape_set).into_iter().filter(is_asked_for).collect()
    }

    fn entry(&self, pair: &Pair, shape: Option<&Shape>, outcome: Outcome) -> Entry {
        Entry {
            target: pair.name.to_owned(),
            shape: shape.map(|shape| shape.name.clone()).unwrap_or_default(),
            shape_set: self.shape_set.name().to_owned(),
            sizes: shape.and_then(|shape| shape.sizes.clone()),
            outcome,
        }
    }
}

/// Whether `part` stands in a name, or is all of it behind a `=`.
fn is_called(name: &str, part: &str) -> bool {
    match part.strip_prefix('=') {
        Some(whole) => name == whole,
        None => name.contains(part),
    }
}

fn run_shape(
    machine: &Machine,
    pair: &Pair,
    shape: &Shape,
    plan: &Plan,
    ceilings: &[Ceiling],
    watch: &dyn Watch,
) -> Result<Outcome> {
    if let Err(shortage) = machine.check(shape.num_gpus) {
        return Ok(Outcome::Skipped { reason: shortage.to_string() });
    }
    let _range = nvtx::range(&format!("{}, {}", pair.name, shape.name));
    watch.step("preparing");
    let prepared = shape.prepare(&machine.devices(shape.num_gpus)?, plan.seed)?;
    let prepared = prepared.as_ref();
    watch.step("checking both sides");
    let parity = verify_both(pair, prepared)?;

    let num_gpus = if machine.is_cuda() { shape.num_gpus } else { 0 };
    let recorder = Recorder::start(num_gpus);
    let timings = measure(prepared, &plan.protocol, watch)?;
    let conditions = recorder.finish();
    let Some(timings) = timings else { bail!("interrupted") };
    verify_both(pair, prepared).context("after it was measured")?;

    let side = |variant, time_us| {
        let work = prepared.work(variant);
        Side {
            name: pair.side_name(variant).to_owned(),
            time_us,
            read_bytes: work.read_bytes,
            written_bytes: work.written_bytes,
            flops: work.flops,
            metrics: prepared.metrics(variant),
        }
    };
    Ok(Outcome::Measured(Box::new(Measured {
        mode: plan.protocol.mode.name().to_owned(),
        inputs: plan.protocol.inputs.name().to_owned(),
        baseline: side(Variant::Baseline, timings.baseline_us),
        optimized: side(Variant::Optimized, timings.optimized_us),
        ratio: timings.ratio,
        ceiling: share_of_ceiling(&prepared.demands(), ceilings, &timings.optimized_us),
        phases: prepared.phases()?,
        planned: prepared.planned(),
        parity,
        conditions,
        published: shape.published.clone(),
    })))
}

/// What the check of the optimized side says, after that of the baseline.
///
/// # Errors
/// The side that is wrong, and where.
pub fn verify_both(pair: &Pair, prepared: &dyn Prepared) -> Result<String> {
    let mut said = String::new();
    for variant in Variant::BOTH {
        let _range = nvtx::range(&format!("verify {variant}"));
        said = prepared
            .verify(variant)
            .with_context(|| format!("{variant} ({}) is wrong", pair.side_name(variant)))?;
    }
    Ok(said)
}

/// How near the optimized side comes to what bounds it: the demand that would take longest at its
/// ceiling. None where some demand has no ceiling, for that one may be what bounds it.
fn share_of_ceiling(
    demands: &[Demand],
    ceilings: &[Ceiling],
    optimized_us: &Estimate,
) -> Option<Share> {
    let us = optimized_us.median;
    let shares = demands.iter().map(|demand| {
        let ceiling = ceilings.iter().find(|ceiling| ceiling.name == demand.ceiling)?;
        let rate = ceiling.rate_of(demand.amount, us)?;
        Some(Share { ceiling: ceiling.name.clone(), rate, share: rate / ceiling.rate })
    });
    let shares: Vec<Share> = shares.collect::<Option<_>>()?;
    shares.into_iter().max_by(|a, b| a.share.total_cmp(&b.share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_longest_at_its_ceiling_bounds() {
        let ceiling = |name: &str, rate| Ceiling { name: name.into(), rate, unit: "GB/s".into() };
        let ceilings = [ceiling("fast", 4000.0), ceiling("slow", 400.0)];
        let demand = |ceiling, amount| Demand { ceiling, amount };
        let us = Estimate { median: 1000.0, low: 1000.0, high: 1000.0, n: 1 };
        let share = |demands: &[Demand]| share_of_ceiling(demands, &ceilings, &us);

        // Of 1000 µs, the fast one needs 500 and the slow one 750.
        let both = [demand("fast", 2_000_000_000), demand("slow", 300_000_000)];
        let bound = Share { ceiling: "slow".into(), rate: 300.0, share: 0.75 };
        assert_eq!(share(&both), Some(bound));
        assert_eq!(share(&both[..1]).unwrap().ceiling, "fast");
        assert_eq!(share(&[both[0], demand("unmeasured", 1)]), None);
        assert_eq!(share(&[]), None);
    }
}
