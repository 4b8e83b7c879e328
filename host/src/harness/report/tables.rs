//! The tables of a report.

use super::table::{Cell, Table};
use super::{numbers, shape_name};
use crate::harness::results::{Entry, Manifest, Measured, Outcome, RunResults, Side};

/// What there is to say of one target.
pub struct Target<'a> {
    /// Its name.
    pub name: &'a str,
    /// What its sides are called: baseline, optimized.
    pub sides: (String, String),
    /// Times, ratios and shares.
    pub results: Table,
    /// Work, checks and conditions.
    pub details: Table,
}

/// All targets of which something was measured, in order of first appearance.
pub fn targets(run: &RunResults) -> Vec<Target<'_>> {
    let mut targets: Vec<(&str, Vec<(&Entry, &Measured)>)> = Vec::new();
    for entry in &run.entries {
        let Outcome::Measured(measured) = &entry.outcome else { continue };
        match targets.iter_mut().find(|(target, _)| *target == entry.target) {
            Some((_, of_target)) => of_target.push((entry, measured)),
            None => targets.push((&entry.target, vec![(entry, measured)])),
        }
    }
    targets
        .into_iter()
        .map(|(name, entries)| Target {
            name,
            sides: (
                names(entries.iter().map(|(_, measured)| &measured.baseline)),
                names(entries.iter().map(|(_, measured)| &measured.optimized)),
            ),
            results: results(run, &entries),
            details: details(&entries),
        })
        .collect()
}

/// The sides' names, each once.
fn names<'a>(sides: impl Iterator<Item = &'a Side>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for side in sides {
        if !names.contains(&side.name.as_str()) {
            names.push(&side.name);
        }
    }
    names.join(" / ")
}

fn results(run: &RunResults, entries: &[(&Entry, &Measured)]) -> Table {
    let mut table = Table::new(&[
        "shape",
        "baseline",
        "optimized",
        "ratio",
        "rate",
        "share of ceiling",
        "published, other hardware",
    ]);
    for (entry, measured) in entries {
        table.push(vec![
            Cell::Text(shape_name(&entry.shape, &entry.shape_set)),
            Cell::time(measured.baseline.time_us),
            Cell::time(measured.optimized.time_us),
            Cell::ratio(measured.ratio),
            rate(run, measured),
            Cell::share(measured.ceiling.as_ref()),
            Cell::published(&measured.published),
        ]);
    }
    table.without_empty_columns()
}

/// In the unit of the ceiling that bounds the optimized side; without one, bytes a second.
fn rate(run: &RunResults, measured: &Measured) -> Cell {
    let bound = measured.ceiling.as_ref().and_then(|share| {
        let ceiling = run.ceilings.iter().find(|ceiling| ceiling.name == share.ceiling)?;
        Some((share.rate, ceiling.unit.as_str()))
    });
    let side = &measured.optimized;
    let num_bytes = side.read_bytes + side.written_bytes;
    let moved = || (num_bytes as f64 / side.time_us.median / 1e3, "GB/s");
    match bound.or_else(|| (num_bytes > 0).then(moved)) {
        Some((rate, unit)) => Cell::Number(format!("{} {unit}", numbers::significant(rate))),
        None => Cell::Empty,
    }
}

fn details(entries: &[(&Entry, &Measured)]) -> Table {
    let mut table = Table::new(&[
        "shape",
        "protocol",
        "samples",
        "read",
        "written",
        "arithmetic",
        "check of the output",
        "SM clock",
        "power",
        "temperature",
    ]);
    for (entry, measured) in entries {
        let side = &measured.optimized;
        let conditions = measured.conditions.as_ref();
        let condition = |text: Option<String>| text.map_or(Cell::Empty, Cell::Number);
        table.push(vec![
            Cell::Text(shape_name(&entry.shape, &entry.shape_set)),
            Cell::Text(format!("{}, {}", measured.mode, measured.inputs)),
            Cell::Number(measured.ratio.n.to_string()),
            Cell::Number(numbers::bytes(side.read_bytes)),
            Cell::Number(numbers::bytes(side.written_bytes)),
            Cell::Number(numbers::flops(side.flops)),
            Cell::Text(measured.parity.clone()),
            condition(conditions.map(|all| numbers::range(all.sm_clock_mhz, "MHz"))),
            condition(conditions.map(|all| numbers::range(all.power_w, "W"))),
            condition(conditions.map(|all| numbers::range(all.temperature_c, "°C"))),
        ]);
    }
    table.without_empty_columns()
}

/// What was skipped or failed, and why.
pub fn not_measured(run: &RunResults) -> Table {
    let mut table = Table::new(&["", "target", "shape", "why"]);
    for entry in &run.entries {
        let (what, why) = match &entry.outcome {
            Outcome::Measured(_) => continue,
            Outcome::Skipped { reason } => ("skipped", reason),
            Outcome::Failed { error } => ("FAILED", error),
        };
        let text = |text: &str| Cell::Text(text.to_owned());
        table.push(vec![
            text(what),
            text(&entry.target),
            Cell::Text(shape_name(&entry.shape, &entry.shape_set)),
            text(why),
        ]);
    }
    table
}

/// What the machine reaches at most.
pub fn ceilings(run: &RunResults) -> Table {
    let mut table = Table::new(&["ceiling", "measured"]);
    for ceiling in &run.ceilings {
        let rate = format!("{} {}", numbers::significant(ceiling.rate), ceiling.unit);
        table.push(vec![Cell::Text(ceiling.name.clone()), Cell::Number(rate)]);
    }
    table
}

/// The command line that made the run.
pub fn command(manifest: &Manifest) -> String {
    format!("host {}", manifest.arguments.join(" "))
}

/// Where, when and with what the run was made.
pub fn manifest(manifest: &Manifest) -> Table {
    let environment = manifest.environment.iter().map(|(name, value)| format!("{name}={value}"));
    let facts = [
        ("hardware", manifest.hardware.clone()),
        ("devices", numbers::devices(&manifest.devices)),
        ("driver supports CUDA", manifest.cuda.clone()),
        ("NCCL", manifest.nccl.clone()),
        ("PTX", manifest.ptx.clone()),
        ("commit", numbers::commit(&manifest.commit, manifest.dirty)),
        ("started", manifest.started.clone()),
        ("command", command(manifest)),
        ("seed", manifest.seed.to_string()),
        ("environment", environment.collect::<Vec<_>>().join(" ")),
    ];
    let mut table = Table::new(&["fact", "value"]);
    for (name, value) in facts.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.push(vec![Cell::Text(name.to_owned()), Cell::Text(value)]);
    }
    table
}
