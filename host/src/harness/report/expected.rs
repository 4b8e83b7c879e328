//! What machines are expected to reach, as a table for the terminal and for README.

use std::collections::BTreeSet;

use super::table::{Cell, Table};
use super::{numbers, shape_name};
use crate::harness::expectations::Expectations;

/// One machine's expectations as Markdown: a heading with where they come from, and a table.
pub fn expectations_table(expectations: &Expectations) -> String {
    let Expectations { hardware, .. } = expectations;
    format!("**{hardware}**{}\n\n{}", origins(expectations), rows(expectations))
}

/// The same as a line that opens to the table.
pub fn folded_table(expectations: &Expectations) -> String {
    let Expectations { hardware, entries, .. } = expectations;
    format!(
        "<details>\n<summary><b>{hardware}</b>, {} shapes{}</summary>\n\n{}\n</details>\n",
        entries.len(),
        origins(expectations),
        rows(expectations)
    )
}

fn rows(expectations: &Expectations) -> String {
    let mut table = Table::new(&[
        "pair",
        "shape",
        "protocol",
        "baseline",
        "optimized",
        "ratio (95 % interval)",
        "share of ceiling",
        "published, other hardware",
    ]);
    for entry in &expectations.entries {
        table.push(vec![
            Cell::Text(entry.target.clone()),
            Cell::Text(shape_name(&entry.shape, &entry.shape_set)),
            Cell::Text(format!("{}, {}", entry.mode, entry.inputs)),
            Cell::Number(numbers::time(entry.baseline.time_us.median)),
            Cell::Number(numbers::time(entry.optimized.time_us.median)),
            Cell::ratio(entry.ratio),
            Cell::share(entry.ceiling.as_ref()),
            Cell::published(&entry.published),
        ]);
    }
    table.without_empty_columns().markdown()
}

/// `: 2 × NVIDIA H200, CUDA 13.0; 2026-01-02 at 0123456`, each different one once.
fn origins(expectations: &Expectations) -> String {
    let origins: BTreeSet<String> = expectations
        .entries
        .iter()
        .map(|entry| {
            let from = &entry.provenance;
            let day = from.date.split('T').next().unwrap_or_default();
            format!(
                "{}, CUDA {}, {day} at {}",
                numbers::devices(&from.devices),
                from.cuda,
                numbers::commit(&from.commit, from.dirty)
            )
        })
        .collect();
    match origins.len() {
        0 => ": nothing yet".to_owned(),
        _ => format!(": {}", origins.into_iter().collect::<Vec<_>>().join("; ")),
    }
}
