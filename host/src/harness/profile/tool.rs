//! Profilers: where they are, and how they are run.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// A profiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Nsight Compute: one kernel in depth.
    Ncu,
    /// Nsight Systems: a command's time line.
    Nsys,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The profiler is not installed.
    #[error(
        "`{}` is not installed: {} was not found in PATH, /usr/local/cuda/bin or {}",
        tool.name(), tool.product(), tool.installations()
    )]
    MissingTool {
        /// Which.
        tool: Tool,
    },
    /// The profiler does not start.
    #[error("`{}` does not start: {source}", tool.name())]
    Start {
        /// Which.
        tool: Tool,
        /// Why.
        source: io::Error,
    },
    /// The profiler, or the command under it, failed.
    #[error("`{}` failed with {status}: what it said stands above", tool.name())]
    Failed {
        /// Which.
        tool: Tool,
        /// How it ended.
        status: ExitStatus,
    },
    /// The profiler found nothing to report.
    #[error(
        "`{}` wrote no {}: the command launched no such kernel",
        tool.name(), report.display()
    )]
    NoReport {
        /// Which.
        tool: Tool,
        /// What it should have written.
        report: PathBuf,
    },
}

impl Tool {
    /// What its command is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ncu => "ncu",
            Self::Nsys => "nsys",
        }
    }

    fn product(self) -> &'static str {
        match self {
            Self::Ncu => "Nsight Compute",
            Self::Nsys => "Nsight Systems",
        }
    }

    /// Folder of its versions, where its packages put them.
    fn installations(self) -> &'static str {
        match self {
            Self::Ncu => "/opt/nvidia/nsight-compute",
            Self::Nsys => "/opt/nvidia/nsight-systems",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Ncu => "ncu-rep",
            Self::Nsys => "nsys-rep",
        }
    }

    /// Where it is.
    ///
    /// # Errors
    /// Nowhere.
    pub fn find(self) -> Result<PathBuf, ProfileError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        folders.push("/usr/local/cuda/bin".into());
        folders.extend(versions(Path::new(self.installations())));
        self.find_in(&folders).ok_or(ProfileError::MissingTool { tool: self })
    }

    fn find_in(self, folders: &[PathBuf]) -> Option<PathBuf> {
        folders.iter().map(|folder| folder.join(self.name())).find(|file| file.is_file())
    }
}

/// Folders of all versions, the newest first, each with its `bin`.
fn versions(installations: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(installations).into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().flat_map(|version| [version.join("bin"), version]).collect()
}

/// A profiler with its arguments, and the command that it is about.
#[derive(Clone, Debug)]
pub struct Invocation {
    tool: Tool,
    variables: Vec<(&'static str, &'static str)>,
    arguments: Vec<String>,
    report: PathBuf,
}

impl Invocation {
    /// The profiler writes its report to what is named last before the command.
    pub(super) fn new(tool: Tool, options: &[&str], report: &Path, command: &[String]) -> Self {
        let report_argument = report.display().to_string();
        let mut arguments: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        arguments.push(report_argument.clone());
        arguments.extend_from_slice(command);
        // Not `with_extension`, which would take the end of a name with a dot for one.
        let report = format!("{report_argument}.{}", tool.extension()).into();
        Self { tool, variables: Vec::new(), arguments, report }
    }

    /// The same, each launch finished before the next one is issued.
    pub(super) fn one_by_one(mut self) -> Self {
        self.variables.push(("CUDA_LAUNCH_BLOCKING", "1"));
        self
    }

    /// Which profiler.
    pub fn tool(&self) -> Tool {
        self.tool
    }

    /// Runs the profiler, whose output goes where this process's does. Returns the report.
    ///
    /// # Errors
    /// A profiler that is missing, fails, or reports nothing.
    pub fn run(&self) -> Result<&Path, ProfileError> {
        self.run_with(&self.tool.find()?)
    }

    fn run_with(&self, program: &Path) -> Result<&Path, ProfileError> {
        let tool = self.tool;
        if let Some(folder) = self.report.parent() {
            fs::create_dir_all(folder).map_err(|source| ProfileError::Start { tool, source })?;
        }
        let status = Command::new(program)
            .envs(self.variables.iter().copied())
            .args(&self.arguments)
            .status()
            .map_err(|source| ProfileError::Start { tool, source })?;
        if !status.success() {
            return Err(ProfileError::Failed { tool, status });
        }
        match self.report.is_file() {
            true => Ok(&self.report),
            false => Err(ProfileError::NoReport { tool, report: self.report.clone() }),
        }
    }
}

impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.variables.iter().try_for_each(|(name, value)| write!(f, "{name}={value} "))?;
        f.write_str(self.tool.name())?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {}", quoted(argument)))
    }
}

/// An argument as a shell takes it.
fn quoted(argument: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,+%@".contains(&byte);
    if !argument.is_empty() && argument.bytes().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tool_is_found_in_the_first_folder_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["2025.1", "2025.3"] {
            fs::create_dir_all(folder.path().join(version).join("bin")).unwrap();
            fs::write(folder.path().join(version).join("bin/nsys"), "").unwrap();
        }
        let folders = versions(folder.path());
        let newest = folder.path().join("2025.3/bin/nsys");
        assert_eq!(Tool::Nsys.find_in(&folders), Some(newest));
        assert_eq!(Tool::Ncu.find_in(&folders), None);
        assert!(versions(Path::new("/no/such/folder")).is_empty());
    }

    #[test]
    fn a_missing_tool_is_named() {
        let error = ProfileError::MissingTool { tool: Tool::Ncu }.to_string();
        assert_eq!(
            error,
            "`ncu` is not installed: Nsight Compute was not found in PATH, /usr/local/cuda/bin or \
             /opt/nvidia/nsight-compute"
        );
    }

    #[test]
    fn a_profile_is_what_the_profiler_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("made/by.name");
        let run = |script: &str| {
            let program = folder.path().join("ncu");
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let invocation = Invocation::new(Tool::Ncu, &["--export"], &report, &["host".into()]);
            invocation.run_with(&program).map(Path::to_owned)
        };
        assert!(matches!(run("exit 9"), Err(ProfileError::Failed { .. })));
        let error = run("exit 0").unwrap_err();
        assert!(error.to_string().ends_with("launched no such kernel"), "{error}");
        let written = folder.path().join("made/by.name.ncu-rep");
        assert_eq!(
            run("[ $1 = --export ] && [ $3 = host ] && echo > $2.ncu-rep").unwrap(),
            written
        );
    }

    #[test]
    fn launches_one_by_one_are_told_in_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let (program, report) = (folder.path().join("ncu"), folder.path().join("report"));
        let script = "#!/bin/sh\n[ \"$CUDA_LAUNCH_BLOCKING\" = 1 ] && echo > $1.ncu-rep\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let invocation = Invocation::new(Tool::Ncu, &[], &report, &["host".into()]);
        assert!(invocation.run_with(&program).is_err());
        let invocation = invocation.one_by_one();
        invocation.run_with(&program).unwrap();
        assert!(invocation.to_string().starts_with("CUDA_LAUNCH_BLOCKING=1 ncu "), "{invocation}");
    }

    #[test]
    fn arguments_are_quoted_where_a_shell_would_read_them() {
        for (argument, text) in [
            ("--set", "--set"),
            ("", "''"),
            ("regex:^(a|b)_", "'regex:^(a|b)_'"),
            ("it's", r"'it'\''s'"),
        ] {
            assert_eq!(quoted(argument), text);
        }
    }
}
