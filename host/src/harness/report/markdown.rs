//! The report as Markdown.

use super::svg::Svg;
use super::{Counts, INTERRUPTED, RATIO_NOTE, file_of, numbers, tables};
use crate::harness::results::RunResults;

pub(super) fn page(run: &RunResults, plots: &[Svg]) -> String {
    let manifest = &run.manifest;
    let Counts { measured, skipped, failed } = Counts::of(run);
    let mut sections = vec![
        format!("# {}: {}", manifest.hardware, numbers::devices(&manifest.devices)),
        format!(
            "{} at {}: {measured} measured, {skipped} skipped, {failed} failed.",
            manifest.started,
            numbers::commit(&manifest.commit, manifest.dirty)
        ),
    ];
    if run.interrupted {
        sections.push(format!("**{INTERRUPTED}**"));
    }
    let mut section = |title: &str, body: String| {
        sections.push(format!("## {title}"));
        sections.push(body.trim_end().to_owned());
    };
    let not_measured = tables::not_measured(run);
    if !not_measured.is_empty() {
        section("Not measured", not_measured.markdown());
    }
    for plot in plots {
        section(plot.title(), format!("![{}]({})", plot.title(), file_of(plot)));
    }
    for target in tables::targets(run) {
        let (baseline, optimized) = &target.sides;
        section(
            target.name,
            format!(
                "Baseline: {baseline}. Optimized: {optimized}.\n\n{}\n{}",
                target.results.markdown(),
                target.details.markdown()
            ),
        );
    }
    let ceilings = tables::ceilings(run);
    if !ceilings.is_empty() {
        section("Ceilings", ceilings.markdown());
    }
    section("Machine and run", tables::manifest(manifest).markdown());
    sections.push(RATIO_NOTE.to_owned());
    sections.join("\n\n") + "\n"
}
