//! Are both sides right, and does the check notice when they are not?

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use super::pair::{Pair, Shape, ShapeSet, Variant};
use super::runner::verify_both;
use super::watch::Watch;
use super::wording::in_one_line;

/// What was found for one target and shape.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Name of the pair.
    pub target: &'static str,
    /// Name of the shape; empty where the pair has none in the set.
    pub shape: String,
    /// What was found.
    pub finding: Finding,
}

/// What a check of one shape found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Both sides are right, and a corrupted input was noticed; how closely they were compared.
    Right(String),
    /// It could not run here; never counted as right.
    Skipped(String),
    /// A side is wrong, or a corrupted input went unnoticed.
    Wrong(String),
}

/// Checks every shape of some pairs, all inputs following from `seed`. Ends early if interrupted.
pub fn verify(
    machine: &Machine,
    pairs: &[&'static Pair],
    set: ShapeSet,
    seed: u64,
    watch: &dyn Watch,
) -> Vec<Verdict> {
    let shapes: Vec<_> = pairs.iter().map(|pair| pair.shapes(set)).collect();
    let total = shapes.iter().map(Vec::len).sum();
    let (mut verdicts, mut done) = (Vec::new(), 0);
    for (pair, shapes) in pairs.iter().zip(&shapes) {
        let mut add = |shape: &str, finding| {
            verdicts.push(Verdict { target: pair.name, shape: shape.to_owned(), finding });
        };
        if shapes.is_empty() {
            add("", Finding::Skipped(format!("has no {set} shapes")));
        }
        for shape in shapes {
            if watch.is_interrupted() {
                return verdicts;
            }
            watch.entry(done, total, &format!("{}, {}", pair.name, shape.name));
            let finding = match machine.check(shape.num_gpus) {
                Err(shortage) => Finding::Skipped(shortage.to_string()),
                Ok(()) => match verify_shape(machine, pair, shape, seed, watch) {
                    Ok(said) => Finding::Right(said),
                    Err(error) => Finding::Wrong(in_one_line(&error)),
                },
            };
            add(&shape.name, finding);
            done += 1;
        }
    }
    verdicts
}

fn verify_shape(
    machine: &Machine,
    pair: &Pair,
    shape: &Shape,
    seed: u64,
    watch: &dyn Watch,
) -> Result<String> {
    watch.step("preparing");
    let mut prepared = shape.prepare(&machine.devices(shape.num_gpus)?, seed)?;
    watch.step("checking both sides");
    let said = verify_both(pair, prepared.as_ref())?;
    watch.step("checking that a corrupted input is noticed");
    prepared.corrupt().context("corrupting an input")?;
    for variant in Variant::BOTH {
        if prepared.verify(variant).is_ok() {
            bail!("{variant} ({}): a corrupted input went unnoticed", pair.side_name(variant));
        }
    }
    Ok(said)
}
