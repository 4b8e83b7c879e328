//! NVIDIA's assembler: where to find it, and what it says of a module.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The first release (CUDA 12.8) that knows the PTX ISA of the Hopper module.
const OLDEST_RELEASE: (u32, u32) = (12, 8);

/// An assembler that can assemble every module of this builder.
#[derive(Clone, Debug)]
pub struct Ptxas {
    path: PathBuf,
    release: (u32, u32),
}

/// No assembler that would do.
#[derive(Debug, thiserror::Error)]
#[error(
    "no ptxas of CUDA 12.8 or later; set PTXAS, install a CUDA toolkit, or `pip install \
     nvidia-cuda-nvcc nvidia-nvvm` in a virtual environment; looked at: {}", looked_at.join(", ")
)]
pub struct PtxasNotFound {
    looked_at: Vec<String>,
}

impl Ptxas {
    /// Looks at `$PTXAS`, then at CUDA toolkits (`$CUDA_HOME`, `$CUDA_PATH`, `PATH`,
    /// `/usr/local/cuda`), then at NVIDIA's wheels in `$VIRTUAL_ENV` and `python_env`.
    pub fn find(python_env: Option<&Path>) -> Result<Self, PtxasNotFound> {
        let mut looked_at = Vec::new();
        for path in candidates(python_env) {
            match release(&path) {
                Some(release) if release >= OLDEST_RELEASE => return Ok(Self { path, release }),
                Some((major, minor)) => {
                    looked_at.push(format!("{} ({major}.{minor})", path.display()));
                }
                None => looked_at.push(path.display().to_string()),
            }
        }
        Err(PtxasNotFound { looked_at })
    }

    /// Assembles a module for the architecture that it was compiled for, and returns what ptxas
    /// said of each kernel; `Err` holds its errors.
    pub fn assemble(&self, ptx: &str, arch: &str) -> std::io::Result<Result<Report, String>> {
        let mut child = Command::new(&self.path)
            .args(["-v", "-arch", arch, "/dev/stdin", "-o", "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let output = std::thread::scope(|scope| {
            // A failed write is ptxas giving up early, which its status tells.
            scope.spawn(move || stdin.write_all(ptx.as_bytes()));
            child.wait_with_output()
        })?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text += &String::from_utf8_lossy(&output.stderr);
        Ok(if output.status.success() { Ok(Report::parse(&text)) } else { Err(text) })
    }
}

impl fmt::Display for Ptxas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.release;
        write!(f, "ptxas {major}.{minor} ({})", self.path.display())
    }
}

/// What `ptxas -v` says of a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Every kernel and function, in the order of the module.
    pub functions: Vec<Usage>,
    /// Warnings, and remarks with a number, such as `(C7510) Potential Performance Loss`.
    pub complaints: Vec<String>,
}

/// What a kernel takes of the GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The kernel or function.
    pub name: String,
    /// Registers of each thread.
    pub registers: u32,
    /// Stack of each thread.
    pub stack_bytes: u32,
    /// Registers saved to local memory, counted over the instructions that do.
    pub spill_store_bytes: u32,
    /// Registers brought back from local memory.
    pub spill_load_bytes: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
}

impl Report {
    /// Reads the output of `ptxas -v`.
    pub fn parse(output: &str) -> Self {
        let mut report = Self::default();
        for line in output.lines() {
            let line = line.trim();
            if let Some((_, name)) = line.split_once("Function properties for ") {
                report.functions.push(Usage { name: name.to_owned(), ..Usage::default() });
            } else if line.contains("(C7") || line.to_lowercase().contains("warning") {
                report.complaints.push(line.to_owned());
            } else if let Some(usage) = report.functions.last_mut() {
                let set = |field: &mut u32, what| {
                    if let Some(number) = number_before(line, what) {
                        *field = number;
                    }
                };
                set(&mut usage.registers, " registers");
                set(&mut usage.stack_bytes, " bytes stack frame");
                set(&mut usage.spill_store_bytes, " bytes spill stores");
                set(&mut usage.spill_load_bytes, " bytes spill loads");
                set(&mut usage.shared_bytes, " bytes smem");
            }
        }
        report
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for usage in &self.functions {
            writeln!(
                f,
                "{:4} registers {:6} bytes shared  {}",
                usage.registers, usage.shared_bytes, usage.name
            )?;
        }
        Ok(())
    }
}

fn number_before(line: &str, what: &str) -> Option<u32> {
    let (before, _) = line.split_once(what)?;
    before.rsplit([' ', ',']).next()?.parse().ok()
}

fn candidates(python_env: Option<&Path>) -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let mut paths: Vec<PathBuf> = variable("PTXAS").map(PathBuf::from).into_iter().collect();
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
    paths.extend(toolkits.map(|home| Path::new(&home).join("bin/ptxas")));
    let search = variable("PATH").unwrap_or_default();
    let found = std::env::split_paths(&search).map(|dir| dir.join("ptxas"));
    paths.extend(found.filter(|path| path.is_file()));
    paths.push("/usr/local/cuda/bin/ptxas".into());
    let venv = variable("VIRTUAL_ENV").map(PathBuf::from);
    for env in venv.iter().map(PathBuf::as_path).chain(python_env) {
        for python in std::fs::read_dir(env.join("lib")).into_iter().flatten().flatten() {
            paths.push(python.path().join("site-packages/nvidia/cu13/bin/ptxas"));
        }
    }
    paths
}

/// The release in `Cuda compilation tools, release 13.0, V13.0.88`.
fn release(ptxas: &Path) -> Option<(u32, u32)> {
    let output = Command::new(ptxas).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, after) = text.split_once("release ")?;
    let (major, minor) = after.split(',').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
