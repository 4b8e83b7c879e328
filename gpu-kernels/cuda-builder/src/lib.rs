//! Compiles a device crate to PTX, from a `build.rs`, on the PTX backend of the stock compiler.
//!
//! The API follows rust-cuda's `cuda_builder`:
//!
//! ```no_run
//! use cuda_builder::{CudaBuilder, NvvmArch};
//!
//! let ptx = CudaBuilder::new("gpu-kernels")
//!     .arch(NvvmArch::Compute90a)
//!     .copy_to("kernels.ptx")
//!     .build()?;
//! # Ok::<(), cuda_builder::CudaBuilderError>(())
//! ```
//!
//! Behind it stands a nested `cargo rustc` for `nvptx64-nvidia-cuda`, which builds `core` from the
//! sources of rustup's component `rust-src` (`nested_cargo.rs` holds the flags and why each is
//! there), and a text pass over its output, which adds what rustc has no attribute for
//! ([`post_process`]). [`gate`] then holds the result to what a GPU needs.

mod error;
pub mod gate;
pub mod inspect;
mod nested_cargo;
mod post_process;
pub mod ptxas;

use std::path::{Path, PathBuf};

pub use error::CudaBuilderError;
pub use post_process::{LaunchBounds, PostProcessError, post_process};

/// The GPU architecture that a module is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvvmArch {
    /// Portable PTX: the driver compiles it for every GPU from Ampere (A100) on.
    Compute80,
    /// Hopper (H100, H200) with `wgmma` and cluster instructions; runs on no other GPU.
    Compute90a,
}

impl NvvmArch {
    /// Every architecture, portable first.
    pub const ALL: [Self; 2] = [Self::Compute80, Self::Compute90a];

    /// The name that PTX, ptxas and `cfg(cuda_arch = …)` use: `sm_80` or `sm_90a`.
    pub const fn sm(self) -> &'static str {
        match self {
            Self::Compute80 => "sm_80",
            Self::Compute90a => "sm_90a",
        }
    }

    /// The PTX ISA of the module. It decides the oldest driver that loads it: 7.8 came with CUDA
    /// 11.8 (driver 520), 8.7 with CUDA 12.8 (driver 570).
    const fn ptx_feature(self) -> &'static str {
        match self {
            Self::Compute80 => "ptx78",
            Self::Compute90a => "ptx87",
        }
    }
}

/// Builds one device crate for one architecture.
#[derive(Clone, Debug)]
pub struct CudaBuilder {
    crate_dir: PathBuf,
    arch: NvvmArch,
    copy_to: Option<PathBuf>,
    target_dir: Option<PathBuf>,
}

impl CudaBuilder {
    /// A builder for the crate in `crate_dir`, whose library is named like its package; a relative
    /// path counts from the folder of the package being built.
    pub fn new(crate_dir: impl AsRef<Path>) -> Self {
        Self {
            crate_dir: crate_dir.as_ref().to_owned(),
            arch: NvvmArch::Compute80,
            copy_to: None,
            target_dir: None,
        }
    }

    /// The architecture to compile for; [`NvvmArch::Compute80`] unless told.
    pub fn arch(mut self, arch: NvvmArch) -> Self {
        self.arch = arch;
        self
    }

    /// Writes the finished PTX to this file too.
    pub fn copy_to(mut self, path: impl AsRef<Path>) -> Self {
        self.copy_to = Some(path.as_ref().to_owned());
        self
    }

    /// The folder under which the nested cargo builds, one folder per architecture.
    ///
    /// In a build script this is `<target>/cuda-builder` by itself, found from `OUT_DIR`, so that
    /// all profiles share it. It must not be the target folder of the outer cargo, which holds
    /// that folder's lock.
    pub fn target_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.target_dir = Some(path.as_ref().to_owned());
        self
    }

    /// Compiles, post-processes, and returns the file with the finished PTX.
    ///
    /// In a build script it also tells cargo which files the PTX depends on.
    pub fn build(&self) -> Result<PathBuf, CudaBuilderError> {
        let target_dir = match &self.target_dir {
            Some(dir) => dir.clone(),
            None => nested_cargo::target_dir_beside_out_dir()?,
        };
        let compiled = nested_cargo::compile(&self.crate_dir, self.arch, &target_dir)?;
        if std::env::var_os("OUT_DIR").is_some() {
            for source in &compiled.sources {
                println!("cargo::rerun-if-changed={}", source.display());
            }
        }

        let ptx = post_process(&read(&compiled.asm)?)?;
        let finished = compiled.asm.with_extension("ptx");
        write(&finished, &ptx)?;
        if let Some(path) = &self.copy_to {
            write(path, &ptx)?;
        }
        Ok(finished)
    }
}

fn read(path: &Path) -> Result<String, CudaBuilderError> {
    std::fs::read_to_string(path).map_err(CudaBuilderError::io(path))
}

fn write(path: &Path, text: &str) -> Result<(), CudaBuilderError> {
    std::fs::write(path, text).map_err(CudaBuilderError::io(path))
}
