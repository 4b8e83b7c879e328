//! Named ranges on the time line of a profiler.
//!
//! They go to NVIDIA's library, which hands them to the profiler that the process runs under, and
//! drops them without one. Where no library is installed, nothing happens at all.
//!
//! cudarc's own loader only knows `libnvToolsExt`, which CUDA 13 no longer has.

use std::ffi::{CString, c_char, c_int};
use std::marker::PhantomData;
use std::sync::OnceLock;

use libloading::Library;

/// As CUDA 12.9 and later have it, and as earlier ones do.
const NAMES: [&str; 3] = ["libnvtx3interop.so.1", "libnvToolsExt.so.1", "libnvToolsExt.so"];

struct Nvtx {
    push: unsafe extern "C" fn(*const c_char) -> c_int,
    pop: unsafe extern "C" fn() -> c_int,
    /// The functions above are its.
    _library: Library,
}

impl Nvtx {
    fn load(name: &str) -> Result<Self, libloading::Error> {
        // SAFETY: loading the library runs its initialisers, as linking against it would.
        let library = unsafe { Library::new(name) }?;
        Ok(Self {
            // SAFETY: the type is that of nvToolsExt.h for this name.
            push: unsafe { *library.get(b"nvtxRangePushA")? },
            // SAFETY: as above.
            pop: unsafe { *library.get(b"nvtxRangePop")? },
            _library: library,
        })
    }

    /// The library, loaded once for the process, if there is one.
    fn get() -> Option<&'static Self> {
        static LOADED: OnceLock<Option<Nvtx>> = OnceLock::new();
        LOADED.get_or_init(|| NAMES.iter().find_map(|name| Self::load(name).ok())).as_ref()
    }
}

/// A range that lasts until this is dropped, by the thread that began it.
#[derive(Debug)]
#[must_use = "the range ends when this is dropped"]
pub struct Range {
    nvtx: Option<&'static Nvtx>,
    /// Ranges nest within a thread.
    _not_send: PhantomData<*const ()>,
}

/// Begins a range. A name with a NUL in it ends there.
pub fn range(name: &str) -> Range {
    let nvtx = Nvtx::get();
    if let Some(nvtx) = nvtx {
        let name = name.split('\0').next().unwrap_or_default();
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: a string that ends with its NUL, which the library copies.
        unsafe { (nvtx.push)(name.as_ptr()) };
    }
    Range { nvtx, _not_send: PhantomData }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(nvtx) = self.nvtx {
            // SAFETY: this thread has begun the range, and those begun since have ended.
            unsafe { (nvtx.pop)() };
        }
    }
}

impl std::fmt::Debug for Nvtx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nvtx")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_harmless_with_and_without_the_library() {
        let outer = range("outer");
        drop(range("inner, with a \0 in it"));
        assert_eq!(outer.nvtx.is_some(), Nvtx::get().is_some());
        assert!(Nvtx::load("libno-such-library.so").is_err());
    }
}
