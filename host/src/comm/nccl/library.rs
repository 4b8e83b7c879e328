//! The functions of NCCL that are used here.
//!
//! cudarc's own loader looks for `libnccl.so` and never for `libnccl.so.2`, which is the only name
//! that the runtime packages have; its types are used. Results are plain integers here: an enum
//! must not hold a code that a newer NCCL adds.

use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::driver::sys::CUstream;
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use libloading::Library;

use crate::comm::{CommError, Result};

/// As packages install it, and as a development package links it.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// NCCL, loaded.
        #[allow(non_snake_case)]
        pub(super) struct Nccl {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// The functions above are its.
            _library: Library,
        }

        impl Nccl {
            fn load(name: &str) -> Result<Self, libloading::Error> {
                // SAFETY: loading NCCL runs its initialisers, as linking against it would.
                let library = unsafe { Library::new(name) }?;
                Ok(Self {
                    // SAFETY: the types are those of nccl.h for these names.
                    $($name: unsafe { *library.get(stringify!($name).as_bytes())? },)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    ncclGetVersion: fn(*mut c_int) -> c_int;
    ncclGetErrorString: fn(c_int) -> *const c_char;
    ncclGetUniqueId: fn(*mut ncclUniqueId) -> c_int;
    ncclCommInitRankConfig: fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> c_int;
    ncclCommGetAsyncError: fn(ncclComm_t, *mut c_int) -> c_int;
    ncclCommFinalize: fn(ncclComm_t) -> c_int;
    ncclCommDestroy: fn(ncclComm_t) -> c_int;
    ncclCommAbort: fn(ncclComm_t) -> c_int;
    ncclGroupStart: fn() -> c_int;
    ncclGroupEnd: fn() -> c_int;
    ncclSend: fn(*const c_void, usize, ncclDataType_t, c_int, ncclComm_t, CUstream) -> c_int;
    ncclRecv: fn(*mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, CUstream) -> c_int;
    ncclAllReduce: fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, CUstream) -> c_int;
    ncclAllGather: fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclComm_t, CUstream) -> c_int;
    ncclBroadcast: fn(*const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, CUstream) -> c_int;
}

impl Nccl {
    /// NCCL, loaded once for the process.
    pub(super) fn get() -> Result<&'static Self> {
        static LOADED: OnceLock<Result<Nccl, String>> = OnceLock::new();
        let loaded = LOADED.get_or_init(|| {
            let mut tried = Vec::new();
            for name in NAMES {
                match Self::load(name) {
                    Ok(nccl) => return Ok(nccl),
                    Err(error) => {
                        let why = error.source().map(ToString::to_string);
                        tried.push(why.unwrap_or_else(|| format!("{name}: {error}")));
                    }
                }
            }
            Err(tried.join("; "))
        });
        loaded.as_ref().map_err(|tried| CommError::NcclMissing { tried: tried.clone() })
    }

    pub(super) fn version(&self) -> NcclVersion {
        let mut code = 0;
        // SAFETY: writes one int.
        unsafe { (self.ncclGetVersion)(&raw mut code) };
        NcclVersion { code: u32::try_from(code).unwrap_or(0) }
    }

    pub(super) fn error_text(&self, code: c_int) -> String {
        // SAFETY: returns a static string for any code.
        let text = unsafe { (self.ncclGetErrorString)(code) };
        if text.is_null() {
            return "unknown".to_owned();
        }
        // SAFETY: not null, and NUL-terminated.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// NCCL's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NcclVersion {
    code: u32,
}

impl NcclVersion {
    #[cfg(test)]
    pub(crate) fn of(major: u32, minor: u32, patch: u32) -> Self {
        Self { code: major * 10_000 + minor * 100 + patch }
    }
}

impl fmt::Display for NcclVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code;
        write!(f, "{}.{}.{}", code / 10_000, code % 10_000 / 100, code % 100)
    }
}

/// The NCCL that collectives would use: its version, and the file it was loaded from where the
/// system tells.
pub fn installed() -> Result<(NcclVersion, Option<PathBuf>)> {
    let version = Nccl::get()?.version();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    Ok((version, mapped_nccl(&maps)))
}

/// The file of NCCL among the files that a process has mapped.
fn mapped_nccl(maps: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let mut nccl = paths
        .filter(|path| path.rsplit('/').next().is_some_and(|file| file.starts_with("libnccl.so")));
    nccl.next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_the_release_notes_write_them() {
        assert_eq!(NcclVersion { code: 22_803 }.to_string(), "2.28.3");
        assert_eq!(NcclVersion { code: 21_905 }.to_string(), "2.19.5");
    }

    #[test]
    fn the_loaded_file_is_found_among_the_mapped_ones() {
        let maps = "7f00-7f10 r-xp 00000000 08:01 42   /usr/lib/libnccl-net.so\n\
                    7f20-7f30 r-xp 00000000 08:01 43   /usr/lib/libnccl.so.2.28.3\n\
                    7f40-7f50 rw-p 00000000 00:00 0    [heap]\n";
        assert_eq!(mapped_nccl(maps), Some(PathBuf::from("/usr/lib/libnccl.so.2.28.3")));
        assert_eq!(mapped_nccl(""), None);
    }
}
