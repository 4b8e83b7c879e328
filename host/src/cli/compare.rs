//! `compare`: baseline beside optimized.

use anyhow::Result;
use clap::Args;
use farpage::device::DeviceChoice;
use farpage::harness::results::{
    Entry, Estimate, Manifest, Measured, Metric, Outcome as Found, Planned, PlannedTime,
    RunResults, Side,
};

use super::run::{Measuring, measure, outcome};
use super::selection::Selection;
use super::table::{table, table_without_empty_columns};
use super::{Outcome, ceilings};

#[derive(Debug, Args)]
pub struct CompareArguments {
    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    measuring: Measuring,
}

pub fn run(choice: DeviceChoice, arguments: &CompareArguments) -> Result<Outcome> {
    let selected = arguments.selection.open(choice)?;
    let plan = arguments.measuring.plan(&selected)?;
    let manifest = Manifest::gather(&selected.machine, plan.seed)?;
    let results = measure(&selected.machine, &plan, manifest, &mut |_| Ok(()))?;
    print!("{}", report(&results));
    Ok(outcome(&results))
}

/// What must be known of times where there is no GPU.
const TIMES_OF_THE_CPU: &str =
    "; times are the CPU executor's, which checks every access, and say nothing of a GPU's";

/// What a run found, as text: a table of what was measured, and a line for everything else.
pub fn report(results: &RunResults) -> String {
    let mut text = String::new();
    if !results.ceilings.is_empty() {
        text += &format!("\n{}", ceilings::as_table(&results.ceilings));
    }
    let measured: Vec<(&Entry, &Measured)> = results
        .entries
        .iter()
        .filter_map(|entry| match &entry.outcome {
            Found::Measured(measured) => Some((entry, &**measured)),
            Found::Skipped { .. } | Found::Failed { .. } => None,
        })
        .collect();
    if let Some((_, first)) = measured.first() {
        let rows: Vec<Vec<String>> =
            measured.iter().map(|&(entry, found)| row(entry, found)).collect();
        const HEADER: [&str; 9] = [
            "target",
            "shape",
            "baseline µs",
            "optimized µs",
            "ratio",
            "95 %",
            "n",
            "of its ceiling",
            "published",
        ];
        text += &format!(
            "\n{} calls, {} inputs{}:\n\n{}",
            first.mode,
            first.inputs,
            if results.manifest.hardware == "cpu" { TIMES_OF_THE_CPU } else { "" },
            table_without_empty_columns(&HEADER, 2, &rows)
        );
    }
    for (entry, found) in &measured {
        if !found.optimized.metrics.is_empty() {
            text += &format!("\n{} {}:\n\n{}", entry.target, entry.shape, metrics(found));
        }
    }
    for entry in &results.entries {
        let name = [entry.target.as_str(), &entry.shape].join(" ");
        let name = name.trim_end();
        match &entry.outcome {
            Found::Measured(measured) => {
                if let Some(planned) = &measured.planned {
                    text += &format!("\n{name}: {}", beside_plan(planned, &measured.optimized));
                }
            }
            Found::Skipped { reason } => text += &format!("\n{name}: skipped: {reason}"),
            Found::Failed { error } => text += &format!("\n{name}: FAILED: {error}"),
        }
    }
    if results.interrupted {
        text += "\ninterrupted: what was not measured is missing above";
    }
    text.trim_end().to_owned() + "\n"
}

/// The pair's own numbers, side by side.
fn metrics(found: &Measured) -> String {
    let Measured { baseline, optimized, .. } = found;
    let row = |(baseline, optimized): (&Metric, &Metric)| {
        let name = match optimized.unit.as_str() {
            "" => optimized.name.clone(),
            unit => format!("{}, {unit}", optimized.name),
        };
        vec![name, format!("{:.2}", baseline.value), format!("{:.2}", optimized.value)]
    };
    let rows: Vec<_> = baseline.metrics.iter().zip(&optimized.metrics).map(row).collect();
    table(&["", &baseline.name, &optimized.name], 1, &rows)
}

/// What was planned, and how far from the measured time its own is.
fn beside_plan(planned: &Planned, optimized: &Side) -> String {
    let Planned { choice, us, meaning } = planned;
    let measured_us = optimized.time_us.median;
    match meaning {
        PlannedTime::Predicted => {
            let off = 100.0 * (us / measured_us - 1.0);
            format!("predicted {us:.1} µs ({off:+.1} %): {choice}")
        }
        PlannedTime::Floor => {
            format!("{:.2} x its floor of {us:.1} µs: {choice}", measured_us / us)
        }
    }
}

fn row(entry: &Entry, found: &Measured) -> Vec<String> {
    let Measured { baseline, optimized, ratio, ceiling, published, .. } = found;
    let Estimate { median, low, high, n } = ratio;
    let share =
        ceiling.as_ref().map(|share| format!("{:.0} % {}", 100.0 * share.share, share.ceiling));
    let published: Vec<String> = published
        .iter()
        .map(|published| format!("{:.2} {}", published.ratio, published.hardware))
        .collect();
    vec![
        entry.target.clone(),
        entry.shape.clone(),
        format!("{:.1}", baseline.time_us.median),
        format!("{:.1}", optimized.time_us.median),
        format!("{median:.3}"),
        format!("{low:.3} to {high:.3}"),
        n.to_string(),
        share.unwrap_or_default(),
        published.join(", "),
    ]
}
