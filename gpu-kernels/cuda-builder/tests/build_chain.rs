//! The whole chain, from a device crate to PTX, on the crate in `fixture-kernels`.

use std::fs;
use std::path::{Path, PathBuf};

use cuda_builder::{CudaBuilder, CudaBuilderError, NvvmArch};

/// The folder that the root package's `build.rs` uses too, so that `core` is built once.
fn target_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("cuda-builder")
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixture-kernels")
}

/// The finished PTX; `None`, with a word on stderr, on a toolchain without `core` sources.
fn build(crate_dir: &Path, arch: NvvmArch) -> Option<Result<String, CudaBuilderError>> {
    let built = CudaBuilder::new(crate_dir).arch(arch).target_dir(target_dir()).build();
    match built {
        Err(error @ CudaBuilderError::CoreSourcesMissing(_)) => {
            eprintln!("not tested: {error}");
            None
        }
        other => Some(other.map(|path| fs::read_to_string(path).unwrap())),
    }
}

#[test]
fn kernel_becomes_an_entry_with_launch_bounds() {
    for arch in NvvmArch::ALL {
        let Some(ptx) = build(&fixture(), arch) else {
            return;
        };
        let ptx = ptx.unwrap();
        assert!(ptx.contains(&format!(".target {}", arch.sm())), "{ptx}");
        assert!(ptx.contains(".visible .entry scale_f32_baseline("), "{ptx}");
        assert!(ptx.contains(")\n.reqntid 256, 1, 1\n.minnctapersm 2\n{\n"), "{ptx}");
        assert!(!ptx.contains("launch_bounds"), "{ptx}");
    }
}

#[test]
fn compiler_errors_are_passed_on() {
    let broken = tempfile::tempdir().unwrap();
    fs::create_dir(broken.path().join("src")).unwrap();
    fs::copy(fixture().join("Cargo.toml"), broken.path().join("Cargo.toml")).unwrap();
    let source = "#![no_std]\nfn lost() { undefined_name }\n";
    fs::write(broken.path().join("src/lib.rs"), source).unwrap();
    let Some(built) = build(broken.path(), NvvmArch::Compute90a) else {
        return;
    };
    let error = built.unwrap_err().to_string();
    assert!(error.contains("for sm_90a failed"), "{error}");
    assert!(error.contains("cannot find value `undefined_name`"), "{error}");
}
