//! Files that must be whole: read with the place of every problem, replaced in one step.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::results::{self, RunResults};

/// Name of a run's results in its folder.
pub const RESULTS_FILE: &str = "results.json";

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what its format says.
    #[error("{}: {field}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The field, as `entries[2].ratio.median`; `.` is the file itself.
        field: String,
        /// What is wrong there, with line and column.
        source: serde_json::Error,
    },
    /// It has a format that this build does not know.
    #[error("{}: schema {found}: this build reads schema {known}{}", path.display(), newer(*found, *known))]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format of this build.
        known: u32,
    },
    /// It is well formed, but cannot be meant.
    #[error("{}: {field}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The field, as `entries[2].ratio`.
        field: String,
        /// What is needed there, and what was found.
        problem: String,
    },
    /// It cannot be written; what it held before is still there.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn newer(found: u32, known: u32) -> &'static str {
    if found > known { "; a newer build wrote it" } else { "" }
}

/// Every format begins with its version.
#[derive(Deserialize)]
struct Versioned {
    schema: u32,
}

/// Reads a JSON file whose field `schema` must be `known`.
///
/// # Errors
/// No such file; another schema, which is told before anything else of it is looked at; a field
/// that is missing, unknown or of the wrong type.
pub fn read_json<T: DeserializeOwned>(path: &Path, known: u32) -> Result<T, FileError> {
    let text = fs::read_to_string(path)
        .map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    let Versioned { schema: found } = parse(path, &text)?;
    if found != known {
        return Err(FileError::Schema { path: path.to_owned(), found, known });
    }
    parse(path, &text)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, FileError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fail = |field, source| FileError::Format { path: path.to_owned(), field, source };
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| fail(error.path().to_string(), error.into_inner()))?;
    deserializer.end().map_err(|error| fail(".".to_owned(), error))?;
    Ok(value)
}

/// The folder of a run: `path`, if it has results; else the last run of those in it, by their
/// folders' names, which begin with the time.
///
/// # Errors
/// No results at either place.
pub fn run_folder(path: &Path) -> Result<PathBuf, FileError> {
    let has_results = |folder: &PathBuf| folder.join(RESULTS_FILE).is_file();
    if has_results(&path.to_owned()) {
        return Ok(path.to_owned());
    }
    let fail = |source| FileError::Read { path: path.to_owned(), source };
    let folders = fs::read_dir(path).map_err(fail)?.map(|entry| Ok(entry?.path()));
    let folders: Vec<PathBuf> = folders.collect::<io::Result<_>>().map_err(fail)?;
    let last = folders.into_iter().filter(has_results).max();
    last.ok_or_else(|| {
        fail(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "neither it nor a folder in it has a {RESULTS_FILE}, which `host run --out` writes"
            ),
        ))
    })
}

/// Reads the results of a run: a file, or that of a [`run_folder`].
///
/// # Errors
/// As [`run_folder`] and [`read_json`].
pub fn read_results(path: &Path) -> Result<RunResults, FileError> {
    let file = match path.is_dir() {
        true => run_folder(path)?.join(RESULTS_FILE),
        false => path.to_owned(),
    };
    read_json(&file, results::SCHEMA)
}

/// Makes a file hold `contents`. Whatever happens on the way, the file holds all of the old or all
/// of the new.
///
/// # Errors
/// The folder is missing or full, or may not be written to.
pub fn replace(path: &Path, contents: &str) -> Result<(), FileError> {
    replace_with(path, |file| file.write_all(contents.as_bytes()))
        .map_err(|source| FileError::Write { path: path.to_owned(), source })
}

fn replace_with(
    path: &Path,
    write: impl FnOnce(&mut fs::File) -> io::Result<()>,
) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|old| !old.is_file()) {
        // A device or a pipe stays what it is, and is written to.
        return write(&mut fs::OpenOptions::new().write(true).open(path)?);
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let permissions = match fs::metadata(path) {
        Ok(old) => old.permissions(),
        Err(_) => fs::Permissions::from_mode(0o666),
    };
    // Beside the file, because only within a file system is renaming one step.
    let mut file =
        tempfile::Builder::new().permissions(permissions).suffix(".tmp").tempfile_in(folder)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        schema: u32,
        values: Vec<f64>,
    }

    fn read(text: &str) -> Result<Vec<f64>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample.json");
        fs::write(&path, text).unwrap();
        let read = read_json::<Sample>(&path, 1).map_err(|error| error.to_string());
        let folder = format!("{}/", folder.path().display());
        read.map(|sample| sample.values).map_err(|error| error.replace(&folder, ""))
    }

    #[test]
    fn problems_have_their_place() {
        assert_eq!(read(r#"{"schema": 1, "values": [1, 2.5]}"#), Ok(vec![1.0, 2.5]));
        for (text, problem) in [
            ("", "sample.json: .: EOF while parsing a value at line 1 column 0"),
            ("{\"schema\": 1}\n", "sample.json: .: missing field `values` at line 1 column 13"),
            (
                "{\"schema\": 1,\n\"values\": [1, \"two\"]}",
                "sample.json: values[1]: invalid type: string \"two\", expected f64 at line 2 \
                 column 19",
            ),
            (
                r#"{"schema": 1, "values": [], "more": 0}"#,
                "sample.json: more: unknown field `more`, expected `schema` or `values` at line 1 \
                 column 34",
            ),
            (
                r#"{"schema": 1, "values": []} {}"#,
                "sample.json: .: trailing characters at line 1 column 29",
            ),
        ] {
            assert_eq!(read(text), Err(problem.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_newer_schema_is_told_whatever_else_the_file_holds() {
        let error = read(r#"{"schema": 2, "series": "unheard of"}"#).unwrap_err();
        assert_eq!(
            error,
            "sample.json: schema 2: this build reads schema 1; a newer build wrote it"
        );
        let error = read(r#"{"schema": 0, "values": []}"#).unwrap_err();
        assert_eq!(error, "sample.json: schema 0: this build reads schema 1");
    }

    #[test]
    fn a_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&path, "old").unwrap();
        replace(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn writing_that_breaks_off_leaves_the_old_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&path, "old").unwrap();
        let error = replace_with(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn of_several_runs_the_last_is_meant() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path();
        let error = run_folder(parent).unwrap_err().to_string();
        assert!(error.contains("neither it nor a folder in it has a results.json"), "{error}");
        for run in ["20260102T030405Z-all", "20260102T030406Z-all", "20270101T000000Z-without"] {
            fs::create_dir(parent.join(run)).unwrap();
            if !run.ends_with("without") {
                fs::write(parent.join(run).join(RESULTS_FILE), "{}").unwrap();
            }
        }
        let last = parent.join("20260102T030406Z-all");
        assert_eq!(run_folder(parent).unwrap(), last);
        assert_eq!(run_folder(&last).unwrap(), last);
    }

    #[test]
    fn a_folder_that_is_missing_is_told() {
        let error = replace(Path::new("no/such/folder/file"), "text").unwrap_err().to_string();
        assert!(error.starts_with("no/such/folder/file: cannot be written: "), "{error}");
    }
}
