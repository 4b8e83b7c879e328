//! What a run leaves behind.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::{self, FileError, RESULTS_FILE};
use super::results::{Manifest, RunResults};

/// Name of a run's manifest in its folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Makes `path` hold `value` as JSON, in one step.
///
/// # Errors
/// A folder that is missing or cannot be written; the file then holds what it held.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let fail = |source| FileError::Write { path: path.to_owned(), source };
    let json = serde_json::to_string_pretty(value).map_err(|error| fail(error.into()))?;
    files::replace(path, &(json + "\n"))
}

/// The folder of one run's artefacts.
#[derive(Clone, Debug)]
pub struct OutputFolder {
    path: PathBuf,
}

impl OutputFolder {
    /// Makes `parent/<time>-<target>` for a run, with its manifest.
    ///
    /// # Errors
    /// A folder that cannot be made or written.
    pub fn create(parent: &Path, target: &str, manifest: &Manifest) -> Result<Self, FileError> {
        let time = manifest.started.replace(['-', ':'], "");
        let path = parent.join(format!("{time}-{target}"));
        fs::create_dir_all(&path)
            .map_err(|source| FileError::Write { path: path.clone(), source })?;
        write_json(&path.join(MANIFEST_FILE), manifest)?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes its results these.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn save(&self, results: &RunResults) -> Result<(), FileError> {
        write_json(&self.path.join(RESULTS_FILE), results)
    }
}
