//! Why a model could not be had from its folder.

use std::io;
use std::path::{Path, PathBuf};

use crate::device::DeviceError;
use crate::kernels::KernelError;

/// Why a model could not be loaded, or built.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file, or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that is not what its name says.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A field of `config.json` that is missing, contradicts another, or that nothing here knows.
    #[error("config.json: {field}: needs {needed}, got {got}")]
    Config {
        /// The field.
        field: String,
        /// What it must be.
        needed: String,
        /// What it is.
        got: String,
    },
    /// A tensor that is missing, of another shape or type than the configuration says, or broken.
    #[error("tensor {tensor}: needs {needed}, got {got}")]
    Tensor {
        /// Its name in the checkpoint.
        tensor: String,
        /// What it must be.
        needed: String,
        /// What it is.
        got: String,
    },
    /// The kernels do not take such a model, or a launch failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The device refused, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl ModelError {
    pub(super) fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    pub(super) fn format(path: &Path, problem: impl ToString) -> Self {
        Self::Format { path: path.to_owned(), problem: problem.to_string() }
    }

    pub(super) fn config(field: &str, needed: impl ToString, got: impl ToString) -> Self {
        Self::Config { field: field.to_owned(), needed: needed.to_string(), got: got.to_string() }
    }

    pub(super) fn tensor(tensor: &str, needed: impl ToString, got: impl ToString) -> Self {
        Self::Tensor { tensor: tensor.to_owned(), needed: needed.to_string(), got: got.to_string() }
    }
}
