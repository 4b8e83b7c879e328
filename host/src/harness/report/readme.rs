//! README's result tables, which follow from the expectation files.

use std::fs;
use std::path::{Path, PathBuf};

use super::expected::folded_table;
use crate::harness::expectations::{Expectations, ExpectationsError};
use crate::harness::files::{FileError, replace};

const BEGIN: &str = "<!-- results:begin -->";
const END: &str = "<!-- results:end -->";

/// Why a result table was not refreshed. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReadmeError {
    /// There is no one place for the table.
    #[error(
        "{}: a line `{BEGIN}` and a later line `{END}` are needed, each once, got {begins} and \
         {ends}",
        path.display()
    )]
    Markers {
        /// The file.
        path: PathBuf,
        /// Number of first markers.
        begins: usize,
        /// Number of last markers.
        ends: usize,
    },
    /// There is nothing to put there.
    #[error("{}: there are no expectations to make a table from", .0.display())]
    NoExpectations(PathBuf),
    /// Expectations cannot be read.
    #[error(transparent)]
    Expectations(#[from] ExpectationsError),
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Replaces what stands between the markers of a file with a folded table for each machine that
/// `folder` has expectations for. Returns whether that changed anything.
///
/// # Errors
/// Markers that are missing, doubled or in the wrong order; expectations that are missing or
/// wrong; a file that cannot be read or written.
pub fn refresh_readme(readme: &Path, folder: &Path) -> Result<bool, ReadmeError> {
    let old = fs::read_to_string(readme)
        .map_err(|source| FileError::Read { path: readme.to_owned(), source })?;
    let machines = Expectations::known(folder)?;
    if machines.is_empty() {
        return Err(ReadmeError::NoExpectations(folder.to_owned()));
    }
    let tables: Vec<String> = machines
        .iter()
        .map(|hardware| Ok(folded_table(&Expectations::load(folder, hardware)?)))
        .collect::<Result<_, ExpectationsError>>()?;
    let new = between_markers(&old, &tables.join("\n"))
        .map_err(|(begins, ends)| ReadmeError::Markers { path: readme.to_owned(), begins, ends })?;
    if new != old {
        replace(readme, &new)?;
    }
    Ok(new != old)
}

/// The text with `contents` between the marker lines, or how many of each marker there are.
fn between_markers(text: &str, contents: &str) -> Result<String, (usize, usize)> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let places = |marker| -> Vec<usize> {
        (0..lines.len()).filter(|&idx| lines[idx].trim() == marker).collect()
    };
    let (begins, ends) = (places(BEGIN), places(END));
    match (&begins[..], &ends[..]) {
        (&[begin], &[end]) if begin < end => {
            let (before, after) = (lines[..=begin].concat(), lines[end..].concat());
            Ok(format!("{before}{contents}{after}"))
        }
        _ => Err((begins.len(), ends.len())),
    }
}
