use std::path::{Path, PathBuf};

use crate::PostProcessError;

/// Why there is no PTX.
#[derive(Debug, thiserror::Error)]
pub enum CudaBuilderError {
    /// The toolchain lacks the sources of `core`, without which nothing builds for a GPU.
    #[error("the sources of `core` (rustup's component rust-src) are not in {}", .0.display())]
    CoreSourcesMissing(PathBuf),

    /// The nested cargo failed; what it and the compiler said is given in full.
    #[error("compiling {} for {arch} failed:\n{output}", .crate_dir.display())]
    BuildFailed {
        /// The device crate.
        crate_dir: PathBuf,
        /// The architecture, as ptxas names it.
        arch: &'static str,
        /// The standard error of the nested cargo.
        output: String,
    },

    /// The compiler's PTX does not have the form that post-processing needs.
    #[error(transparent)]
    PostProcess(#[from] PostProcessError),

    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or program.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// Outside a build script the builder does not know where to build.
    #[error("no OUT_DIR: outside a build script, CudaBuilder::target_dir must be given")]
    NoTargetDir,
}

impl CudaBuilderError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
