//! `expectations/<hardware>.json`, read and written.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Expectations, SCHEMA};
use crate::harness::files::{FileError, read_json, replace};

/// Why there is no expectation to be had.
#[derive(Debug, thiserror::Error)]
pub enum ExpectationsError {
    /// A file is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nobody has measured such a machine.
    #[error(
        "hardware '{hardware}': {} has no expectations for it; it has {}",
        folder.display(),
        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
    )]
    UnknownHardware {
        /// What was asked for.
        hardware: String,
        /// Where it was looked for.
        folder: PathBuf,
        /// What is there.
        known: Vec<String>,
    },
    /// It would not do as a file's name.
    #[error("hardware '{hardware}': letters, digits and '_' are needed")]
    BadHardware {
        /// What was asked for.
        hardware: String,
    },
}

impl Expectations {
    /// Reads what `folder` expects of a machine.
    ///
    /// # Errors
    /// No file for this machine, or one that is not whole and right.
    pub fn load(folder: &Path, hardware: &str) -> Result<Self, ExpectationsError> {
        match Self::load_if_there(folder, hardware)? {
            Some(expectations) => Ok(expectations),
            None => Err(ExpectationsError::UnknownHardware {
                hardware: hardware.to_owned(),
                folder: folder.to_owned(),
                known: Self::known(folder)?,
            }),
        }
    }

    /// Reads what `folder` expects of a machine; none if it has no file for it.
    ///
    /// # Errors
    /// A file that is not whole and right.
    pub fn load_if_there(folder: &Path, hardware: &str) -> Result<Option<Self>, ExpectationsError> {
        let path = path_of(folder, hardware)?;
        if !path.exists() {
            return Ok(None);
        }
        let read: Self = read_json(&path, SCHEMA)?;
        match read.problem(hardware) {
            Some((field, problem)) => Err(FileError::Content { path, field, problem }.into()),
            None => Ok(Some(read)),
        }
    }

    /// All machines that `folder` has expectations for, in order of their names.
    ///
    /// # Errors
    /// The folder is there and cannot be read.
    pub fn known(folder: &Path) -> Result<Vec<String>, ExpectationsError> {
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let fail = |source| FileError::Read { path: folder.to_owned(), source };
        let mut known = Vec::new();
        for entry in fs::read_dir(folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_stem().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|name| is_hardware(name))
                && path.extension().is_some_and(|extension| extension == "json")
            {
                known.push(name.to_owned());
            }
        }
        known.sort();
        Ok(known)
    }

    /// Writes the machine's file in `folder`, all of it or nothing.
    ///
    /// # Errors
    /// The folder cannot be written to; the old file is whole.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, ExpectationsError> {
        let path = path_of(folder, &self.hardware)?;
        let fail = |source| FileError::Write { path: path.clone(), source };
        fs::create_dir_all(folder).map_err(fail)?;
        let text = serde_json::to_string_pretty(self).map_err(|error| fail(error.into()))?;
        replace(&path, &(text + "\n"))?;
        Ok(path)
    }

    /// The first field that cannot be meant, and why.
    fn problem(&self, hardware: &str) -> Option<(String, String)> {
        if self.hardware != hardware {
            let problem =
                format!("'{hardware}' is needed, as the file's name says, got '{}'", self.hardware);
            return Some(("hardware".to_owned(), problem));
        }
        self.entries.iter().enumerate().find_map(|(i, entry)| {
            if let Some((field, problem)) = entry.problem() {
                return Some((format!("entries[{i}].{field}"), problem));
            }
            let key = entry.key();
            let twin = self.entries[..i].iter().position(|earlier| earlier.key() == key)?;
            Some((format!("entries[{i}]"), format!("{key} stands at entries[{twin}] already")))
        })
    }
}

fn path_of(folder: &Path, hardware: &str) -> Result<PathBuf, ExpectationsError> {
    if !is_hardware(hardware) {
        return Err(ExpectationsError::BadHardware { hardware: hardware.to_owned() });
    }
    Ok(folder.join(format!("{hardware}.json")))
}

fn is_hardware(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
