//! The nested `cargo rustc` that turns a device crate into PTX.

use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{CudaBuilderError, NvvmArch};

const TARGET: &str = "nvptx64-nvidia-cuda";

/// Flags for every crate of the graph, `core` included.
const GRAPH_FLAGS: &[&str] = &[
    // There is nothing to link: the assembly of the last crate, after LTO, is the whole module.
    "-Clinker=/bin/true",
    // A panic becomes `trap`, without its message: formatting costs registers and stack.
    "-Zunstable-options",
    "-Cpanic=immediate-abort",
    // Correctness: jump threading copies barriers into divergent branches (rust-lang/rust#137086).
    "-Zmir-enable-passes=-JumpThreading",
    // Correctness: asm blocks are not `convergent`, so runtime unrolling may move them into
    // divergent branches.
    "-Cllvm-args=-unroll-runtime=false",
    // Accumulator arrays stay in registers only where every loop over them is unrolled.
    "-Cllvm-args=-unroll-threshold=4000",
    // a * b + c is one fma.
    "-Cllvm-args=-fp-contract=fast",
    // The host build of the same sources reports what is unused.
    "-Aunused",
    "-Adead_code",
    "-Aunexpected_cfgs",
];

/// Flags for the device crate alone: `extern "ptx-kernel"` functions and asm in their bodies.
const KERNEL_FLAGS: &[&str] = &["-Zcrate-attr=feature(abi_ptx,asm_experimental_arch)"];

/// The release profile of the nested build, whatever the workspace makes of its own.
/// `line-directives-only` is all the debug information that ptxas accepts together with
/// optimization.
const PROFILE: &[&str] = &[
    "profile.release.opt-level=3",
    "profile.release.lto=\"fat\"",
    "profile.release.codegen-units=1",
    "profile.release.panic=\"abort\"",
    "profile.release.debug=\"line-directives-only\"",
    "profile.release.debug-assertions=false",
    "profile.release.overflow-checks=false",
    "profile.release.incremental=false",
    "profile.release.strip=\"none\"",
];

/// What a nested build leaves.
pub(crate) struct Compiled {
    /// The PTX as the compiler wrote it.
    pub(crate) asm: PathBuf,
    /// Every file that the PTX was made from.
    pub(crate) sources: Vec<PathBuf>,
}

/// `<target>/cuda-builder`, where `<target>` is the folder that the outer cargo builds in.
pub(crate) fn target_dir_beside_out_dir() -> Result<PathBuf, CudaBuilderError> {
    let out_dir = std::env::var_os("OUT_DIR").ok_or(CudaBuilderError::NoTargetDir)?;
    // <target>/<profile>/build/<package>/out
    let build = Path::new(&out_dir).ancestors().find(|dir| dir.ends_with("build"));
    let outer = build.and_then(|build| build.ancestors().nth(2));
    Ok(outer.ok_or(CudaBuilderError::NoTargetDir)?.join("cuda-builder"))
}

pub(crate) fn compile(
    crate_dir: &Path,
    arch: NvvmArch,
    target_dir: &Path,
) -> Result<Compiled, CudaBuilderError> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    require_core_sources(&sysroot(&rustc)?)?;

    let crate_dir = std::path::absolute(crate_dir).map_err(CudaBuilderError::io(crate_dir))?;
    let manifest = crate_dir.join("Cargo.toml");
    let library = library_name(&manifest)?;
    let target_dir =
        std::path::absolute(target_dir).map_err(CudaBuilderError::io(target_dir))?.join(arch.sm());
    std::fs::create_dir_all(&target_dir).map_err(CudaBuilderError::io(&target_dir))?;

    let flags = graph_flags(arch);
    let fingerprint = fingerprint(&rustc, &flags, &crate_dir)?;
    let asm = target_dir.join(format!("{library}-{fingerprint:016x}.s"));
    let mut command = Command::new(&cargo);
    command
        .args(["rustc", "--release", "--lib", "--no-default-features"])
        .args(["--crate-type", "cdylib", "--target", TARGET])
        .args(["-Zbuild-std=core", "--color=never", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target_dir)
        .args(PROFILE.iter().flat_map(|setting| ["--config", setting]))
        .arg("--")
        .args(KERNEL_FLAGS)
        .arg(concat_os("--emit=asm=", &asm));
    clean_environment(&mut command);
    command
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "");
    let output = run(&mut command, Path::new(&cargo))?;
    if !output.status.success() {
        return Err(CudaBuilderError::BuildFailed {
            crate_dir,
            arch: arch.sm(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }

    let dep_info = target_dir.join(TARGET).join("release").join(library + ".d");
    let mut sources = parse_dep_info(&crate::read(&dep_info)?);
    sources.extend(manifests_of(&sources));
    Ok(Compiled { asm, sources })
}

fn graph_flags(arch: NvvmArch) -> Vec<String> {
    let mut flags = vec![
        format!("-Ctarget-cpu={}", arch.sm()),
        format!("-Ctarget-feature=+{}", arch.ptx_feature()),
        format!("--cfg=cuda_arch=\"{}\"", arch.sm()),
    ];
    flags.extend(GRAPH_FLAGS.iter().map(|flag| flag.to_string()));
    flags
}

/// Cargo calls a build fresh by its flags, but a `cdylib` has one file name for all flags. So what
/// decides the PTX beside the sources is part of the file name: going back to an earlier compiler
/// or to earlier flags finds their PTX.
fn fingerprint(rustc: &OsStr, flags: &[String], crate_dir: &Path) -> Result<u64, CudaBuilderError> {
    let version = run(Command::new(rustc).arg("-vV"), Path::new(rustc))?;
    let mut hasher = DefaultHasher::new();
    (version.stdout, flags, KERNEL_FLAGS, PROFILE, crate_dir).hash(&mut hasher);
    Ok(hasher.finish())
}

/// The nested cargo must not see the settings of the outer build (its flags, its wrapper, such as
/// clippy, its profile, its target folder), but where crates come from stays the user's choice.
fn clean_environment(command: &mut Command) {
    const KEPT: &[&str] = &[
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
    ];
    const REMOVED: &[&str] = &["MAKEFLAGS", "MFLAGS", "RUSTDOCFLAGS", "RUSTFLAGS"];
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        let of_outer_cargo =
            name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept));
        if of_outer_cargo || REMOVED.contains(&name.as_ref()) {
            command.env_remove(&key);
        }
    }
}

fn sysroot(rustc: &OsStr) -> Result<PathBuf, CudaBuilderError> {
    let output = run(Command::new(rustc).args(["--print", "sysroot"]), Path::new(rustc))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

fn require_core_sources(sysroot: &Path) -> Result<(), CudaBuilderError> {
    let rustlib = sysroot.join("lib/rustlib");
    // `cargo -Zbuild-std` resolves against this file, so it stands for the whole.
    if rustlib.join("src/rust/library/Cargo.lock").is_file() {
        return Ok(());
    }
    if std::env::var_os("OUT_DIR").is_some() {
        println!("cargo::rerun-if-changed={}", rustlib.display());
    }
    Err(CudaBuilderError::CoreSourcesMissing(rustlib.join("src/rust")))
}

fn library_name(manifest: &Path) -> Result<String, CudaBuilderError> {
    let text = crate::read(manifest)?;
    text.lines()
        .skip_while(|line| line.trim() != "[package]")
        .find_map(|line| line.trim().strip_prefix("name")?.trim().strip_prefix('='))
        .map(|name| name.trim().trim_matches('"').replace('-', "_"))
        .ok_or_else(|| {
            let error = std::io::Error::other("no `name` in [package]");
            CudaBuilderError::io(manifest)(error)
        })
}

/// The prerequisites of a make rule as cargo writes it: one line, spaces in paths escaped.
fn parse_dep_info(rule: &str) -> Vec<PathBuf> {
    let line = rule.lines().next().unwrap_or_default();
    let prerequisites = line.split_once(": ").map_or("", |(_, right)| right);
    prerequisites
        .replace("\\ ", "\0")
        .split_ascii_whitespace()
        .map(|path| PathBuf::from(path.replace('\0', " ")))
        .collect()
}

/// The manifests and lock files above the sources: dependencies and features stand there.
fn manifests_of(sources: &[PathBuf]) -> Vec<PathBuf> {
    let mut manifests: Vec<PathBuf> = sources
        .iter()
        .flat_map(|source| source.ancestors().skip(1))
        .flat_map(|dir| [dir.join("Cargo.toml"), dir.join("Cargo.lock")])
        .filter(|file| file.is_file())
        .collect();
    manifests.sort();
    manifests.dedup();
    manifests
}

fn run(command: &mut Command, program: &Path) -> Result<Output, CudaBuilderError> {
    command.output().map_err(CudaBuilderError::io(program))
}

fn concat_os(prefix: &str, path: &Path) -> OsString {
    let mut joined = OsString::from(prefix);
    joined.push(path);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dep_info_with_spaces_in_paths() {
        let rule = "/t/kernels.ptx: /a\\ b/lib.rs /a\\ b/room/mod.rs\n";
        let expected = [PathBuf::from("/a b/lib.rs"), PathBuf::from("/a b/room/mod.rs")];
        assert_eq!(parse_dep_info(rule), expected);
    }

    #[test]
    fn missing_core_sources_are_told_apart_and_found_once_there() {
        let sysroot = tempfile::tempdir().unwrap();
        let error = require_core_sources(sysroot.path()).unwrap_err();
        assert!(matches!(error, CudaBuilderError::CoreSourcesMissing(_)));
        let library = sysroot.path().join("lib/rustlib/src/rust/library");
        std::fs::create_dir_all(&library).unwrap();
        std::fs::write(library.join("Cargo.lock"), "").unwrap();
        require_core_sources(sysroot.path()).unwrap();
    }

    #[test]
    fn other_flags_and_crates_name_another_file() {
        let of = |arch, crate_dir| {
            let rustc = OsStr::new("rustc");
            fingerprint(rustc, &graph_flags(arch), Path::new(crate_dir)).unwrap()
        };
        let portable = of(NvvmArch::Compute80, "/a");
        assert_eq!(portable, of(NvvmArch::Compute80, "/a"));
        assert_ne!(portable, of(NvvmArch::Compute80, "/b"));
        assert_ne!(portable, of(NvvmArch::Compute90a, "/a"));
    }

    #[test]
    fn library_is_named_like_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("Cargo.toml");
        let text = "[workspace]\n[package]\nname = \"gpu-kernels\"\nversion = \"0.1.0\"\n";
        std::fs::write(&manifest, text).unwrap();
        assert_eq!(library_name(&manifest).unwrap(), "gpu_kernels");
    }
}
