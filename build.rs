//! Compiles `gpu-kernels` to PTX and hands it to the crate as `$OUT_DIR/ptx.rs`, an expression of
//! type `&[(&str, &str)]`: architecture and PTX text of each module, portable first.
//!
//! Without the sources of `core` the list is empty, the build says so, and everything runs on the
//! CPU. `FARPAGE_PTX=off` leaves the PTX out on purpose, for tools that only look at the code.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use cuda_builder::{CudaBuilder, CudaBuilderError, NvvmArch};

const WITHOUT_CORE_SOURCES: [&str; 3] = [
    "this build holds NO GPU KERNELS: everything will run on the CPU, also where there is a GPU",
    "why: PTX needs the sources of Rust's `core`, and this toolchain lacks them",
    "how to get them: `rustup component add rust-src`, or `dev/install-rust-src.sh`; then build again",
];

fn main() -> anyhow::Result<()> {
    println!("cargo::rerun-if-env-changed=FARPAGE_PTX");
    let out_dir = env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?;
    let out_dir = Path::new(&out_dir);

    let mut modules = String::new();
    if ptx_wanted()? {
        for arch in NvvmArch::ALL {
            let file = format!("{}.ptx", arch.sm());
            let built =
                CudaBuilder::new("gpu-kernels").arch(arch).copy_to(out_dir.join(&file)).build();
            match built {
                Ok(_) => writeln!(modules, "    ({:?}, include_str!({file:?})),", arch.sm())?,
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
    } else {
        // Without any such line cargo would watch the whole package.
        println!("cargo::rerun-if-changed=build.rs");
    }
    fs::write(out_dir.join("ptx.rs"), format!("&[\n{modules}]\n"))?;
    Ok(())
}

fn ptx_wanted() -> anyhow::Result<bool> {
    match env::var("FARPAGE_PTX").as_deref() {
        Err(_) | Ok("" | "on") => Ok(true),
        Ok("off") => Ok(false),
        Ok(other) => bail!("FARPAGE_PTX={other}: needs `on` or `off`"),
    }
}
