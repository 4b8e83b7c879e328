//! What a run found, for people: one HTML page that needs nothing else, and the same as Markdown
//! with its plots beside it.
//!
//! Both say the same: what was not measured first, then plots, a table for each pair, ceilings,
//! and where the numbers come from. Tables are made once (`Table`) and written twice.

mod expected;
mod html;
mod markdown;
mod numbers;
mod plots;
mod readme;
mod svg;
mod table;
mod tables;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use expected::expectations_table;
pub use readme::{ReadmeError, refresh_readme};

use super::files::{FileError, replace};
use super::results::{Outcome, RunResults};
use svg::Svg;

/// A run's report.
#[derive(Clone, Debug)]
pub struct Report {
    /// The page.
    pub html: String,
    /// The same as Markdown, with links to the plots' files.
    pub markdown: String,
    /// File name and text of each plot.
    pub plots: Vec<(String, String)>,
}

impl Report {
    /// Makes the report of a run.
    pub fn of(run: &RunResults) -> Self {
        let plots = plots::of(run);
        Self {
            html: html::page(run, &plots),
            markdown: markdown::page(run, &plots),
            plots: plots.iter().map(|plot| (file_of(plot), plot.file(plots::STYLE))).collect(),
        }
    }

    /// Writes `report.html`, `report.md` and the plots, and says where. Each file that is there
    /// already is replaced.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>, FileError> {
        let pages = [("report.html", &self.html), ("report.md", &self.markdown)];
        let plots = self.plots.iter().map(|(name, text)| (name.as_str(), text));
        pages
            .into_iter()
            .chain(plots)
            .map(|(name, text)| {
                let path = folder.join(name);
                replace(&path, text).map(|()| path)
            })
            .collect()
    }
}

fn file_of(plot: &Svg) -> String {
    format!("{}.svg", plot.name())
}

/// A shape's name, marked where it is not of real size.
fn shape_name(shape: &str, shape_set: &str) -> String {
    match shape_set {
        "real" => shape.to_owned(),
        set => format!("{shape} ({})", set.replace('_', " ")),
    }
}

/// How many entries were measured, skipped and failed.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    measured: usize,
    skipped: usize,
    failed: usize,
}

impl Counts {
    fn of(run: &RunResults) -> Self {
        let mut counts = Self::default();
        for entry in &run.entries {
            *match entry.outcome {
                Outcome::Measured(_) => &mut counts.measured,
                Outcome::Skipped { .. } => &mut counts.skipped,
                Outcome::Failed { .. } => &mut counts.failed,
            } += 1;
        }
        counts
    }
}

/// What the reader must know of a run that was ended early.
const INTERRUPTED: &str = "This run was ended before its last entry: what is missing below was not \
                           measured.";

/// What the ratios are.
const RATIO_NOTE: &str = "Ratio: baseline time over optimized time, paired round by round; medians \
                          with 95 % intervals. Ratios published for other hardware stand beside \
                          ours to compare the shape of the gain, not its size.";
