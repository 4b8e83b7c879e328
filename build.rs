//! Compiles `gpu-kernels` to PTX and hands it to the crate as `$OUT_DIR/ptx.rs`, an expression of
//! type `&[(&str, &str)]`: architecture and PTX text of each module, portable first.
//!
//! Without the sources of `core` the list is empty, the build says so, and everything runs on the
//! CPU. `FARPAGE_PTX=off` leaves the PTX out on purpose, for tools that only look at the code.
//!
//! What a run was built from goes into its results: `FARPAGE_COMMIT` is the commit, or `unknown`
//! outside a Git checkout, and `FARPAGE_DIRTY` says whether the sources had changes.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, bail};
use cuda_builder::{CudaBuilder, CudaBuilderError, NvvmArch};

const WITHOUT_CORE_SOURCES: [&str; 3] = [
    "this build holds NO GPU KERNELS: everything will run on the CPU, also where there is a GPU",
    "why: PTX needs the sources of Rust's `core`, and this toolchain lacks them",
    "how to get them: `rustup component add rust-src`, or `dev/install-rust-src.sh`; then build again",
];

/// What the executable is made from.
const SOURCES: [&str; 5] = ["host", "gpu-kernels", "build.rs", "Cargo.toml", "Cargo.lock"];

fn main() -> anyhow::Result<()> {
    println!("cargo::rerun-if-env-changed=FARPAGE_PTX");
    tell_revision();
    let out_dir = env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?;
    let out_dir = Path::new(&out_dir);

    let mut modules = String::new();
    if ptx_wanted()? {
        for (arch, built) in build_for_all_archs(out_dir) {
            match built {
                Ok(_) => {
                    let file = file_of(arch);
                    writeln!(modules, "    ({:?}, include_str!({file:?})),", arch.sm())?;
                }
                Err(CudaBuilderError::CoreSourcesMissing(place)) => {
                    for line in WITHOUT_CORE_SOURCES {
                        println!("cargo::warning={line}");
                    }
                    println!("cargo::warning=looked for them in {}", place.display());
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    fs::write(out_dir.join("ptx.rs"), format!("&[\n{modules}]\n"))?;
    Ok(())
}

/// At a time: each is mostly one crate, which one thread compiles.
fn build_for_all_archs(
    out_dir: &Path,
) -> [(NvvmArch, Result<PathBuf, CudaBuilderError>); NvvmArch::ALL.len()] {
    let build = |arch| {
        let builder = CudaBuilder::new("gpu-kernels").arch(arch);
        builder.copy_to(out_dir.join(file_of(arch))).build()
    };
    thread::scope(|scope| {
        NvvmArch::ALL
            .map(|arch| (arch, scope.spawn(move || build(arch))))
            .map(|(arch, built)| (arch, built.join().expect("a build returns its errors")))
    })
}

fn file_of(arch: NvvmArch) -> String {
    format!("{}.ptx", arch.sm())
}

fn ptx_wanted() -> anyhow::Result<bool> {
    match env::var("FARPAGE_PTX").as_deref() {
        Err(_) | Ok("" | "on") => Ok(true),
        Ok("off") => Ok(false),
        Ok(other) => bail!("FARPAGE_PTX={other}: needs `on` or `off`"),
    }
}

fn tell_revision() {
    let commit = git(&["rev-parse", "HEAD"]);
    let changes =
        git(&[&["--no-optional-locks", "status", "--porcelain", "--"][..], &SOURCES].concat());
    let is_dirty = changes.is_some_and(|changes| !changes.is_empty());
    println!("cargo::rustc-env=FARPAGE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    println!("cargo::rustc-env=FARPAGE_DIRTY={is_dirty}");
    // Changes whenever another commit is checked out; a missing file would count as changed.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists());
    for watched in SOURCES.into_iter().chain(log.as_deref()) {
        println!("cargo::rerun-if-changed={watched}");
    }
}

/// What `git` prints; nothing where there is no Git, or no checkout.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
