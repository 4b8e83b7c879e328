//! The plots of a report.

mod phases;
mod ratio;
mod roofline;
mod scale;

use super::shape_name;
use super::svg::Svg;
use crate::harness::results::{Entry, Measured, Outcome, RunResults};

/// Colours of the classes, by day and by night.
pub const STYLE: &str = include_str!("plot.css");

/// Width of every plot.
const WIDTH: f64 = 960.0;

/// Hues that can be told apart next to each other; more than these start again.
const HUES: usize = 6;

/// Every plot that the run has something for.
pub fn of(run: &RunResults) -> Vec<Svg> {
    let measured: Vec<(&Entry, &Measured)> = run
        .entries
        .iter()
        .filter_map(|entry| match &entry.outcome {
            Outcome::Measured(measured) => Some((entry, &**measured)),
            _ => None,
        })
        .collect();
    [ratio::plot(&measured), roofline::plot(&measured, &run.ceilings), phases::plot(&measured)]
        .into_iter()
        .flatten()
        .collect()
}

/// Entries with those of the same target together, in order of first appearance.
fn by_target<'a>(
    entries: &[(&'a Entry, &'a Measured)],
) -> Vec<(&'a str, Vec<(&'a Entry, &'a Measured)>)> {
    let mut groups: Vec<(&str, Vec<_>)> = Vec::new();
    for &(entry, measured) in entries {
        match groups.iter_mut().find(|(target, _)| *target == entry.target) {
            Some((_, group)) => group.push((entry, measured)),
            None => groups.push((&entry.target, vec![(entry, measured)])),
        }
    }
    groups
}

fn label(entry: &Entry) -> String {
    shape_name(&entry.shape, &entry.shape_set)
}

/// A text cut to about `width` units of a drawing's usual type.
fn fitted(text: &str, width: f64) -> String {
    let num_letters = (width / 6.6) as usize;
    if text.chars().count() <= num_letters {
        return text.to_owned();
    }
    text.chars().take(num_letters.saturating_sub(1)).chain(['…']).collect()
}
