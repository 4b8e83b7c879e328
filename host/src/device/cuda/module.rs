//! Kernels as the driver holds them: each a module of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_uint, c_void};
use std::ptr;
use std::sync::Mutex;

use cuda_std::{Kernel, PtxTarget};
use cudarc::driver::sys::{self, CUfunction_attribute as FunctionAttribute, CUjit_option};
use rayon::prelude::*;

use super::context::Gpu;
use super::driver::driver;
use crate::device::ptx::SeparateKernels;
use crate::device::{DeviceError, PtxModule, Result, lock};

/// Dynamic shared memory that a block may have without asking.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

const LOG_BYTES: usize = 8192;

/// The kernels of one context.
///
/// The driver takes seconds to compile all of them, so that each is a module with nothing else in
/// it, and is loaded when it is first launched.
pub(super) struct Kernels {
    ptx: PtxModule,
    texts: SeparateKernels,
    loaded: Mutex<HashMap<&'static str, Function>>,
}

struct Function {
    handle: sys::CUfunction,
    /// The dynamic shared memory that it may have by now.
    shared_bytes: u32,
    _module: Module,
}

// SAFETY: the driver's handles may be used from any thread that has bound their context.
unsafe impl Send for Function {}

impl Kernels {
    pub(super) fn new(ptx: PtxModule) -> Self {
        Self { ptx, texts: ptx.take_apart(), loaded: Mutex::default() }
    }

    /// Whether kernels wait for the grids before them, if they start early: the portable ones do not.
    pub(super) fn can_wait_for_grids(&self) -> bool {
        self.ptx.is_hopper()
    }

    /// The kernel's function, allowed `shared_bytes` of dynamic shared memory.
    ///
    /// The first call for a kernel compiles its PTX, or finds it in the driver's cache.
    pub(super) fn function<K: Kernel>(
        &self,
        gpu: &Gpu,
        shared_bytes: u32,
    ) -> Result<sys::CUfunction> {
        if K::TARGET == PtxTarget::Sm90a && !self.ptx.is_hopper() {
            return Err(DeviceError::KernelNeedsHopper {
                kernel: K::NAME,
                device: gpu.id(),
                arch: self.ptx.arch,
            });
        }
        let mut loaded = lock(&self.loaded);
        let function = match loaded.entry(K::NAME) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => place.insert(self.load(gpu, K::NAME)?),
        };
        if shared_bytes > function.shared_bytes {
            allow_shared::<K>(gpu, function.handle, shared_bytes)?;
            function.shared_bytes = shared_bytes;
        }
        Ok(function.handle)
    }

    /// Loads every kernel that is not loaded yet.
    ///
    /// To load one the driver may wait for all that runs on the GPU. Where kernels wait for other
    /// GPUs, which wait for kernels that are about to be launched here, that would never end.
    pub(super) fn load_all(&self, gpu: &Gpu) -> Result<()> {
        let is_missing = |name: &&str| !lock(&self.loaded).contains_key(name);
        let missing: Vec<&'static str> = self.texts.names().filter(is_missing).collect();
        missing.into_par_iter().try_for_each(|name| {
            let function = self.load(gpu, name)?;
            lock(&self.loaded).entry(name).or_insert(function);
            Ok(())
        })
    }

    fn load(&self, gpu: &Gpu, name: &'static str) -> Result<Function> {
        let missing = DeviceError::KernelMissing { kernel: name, arch: self.ptx.arch };
        let module = Module::compile(gpu, name, self.texts.module(name).ok_or(missing)?)?;
        let c_name = CString::new(name).expect("a kernel's name holds no NUL");
        let mut handle = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in NUL, the context is bound.
        gpu.checked(unsafe {
            driver!(cuModuleGetFunction(&raw mut handle, module.0, c_name.as_ptr()))
        })?;
        Ok(Function { handle, shared_bytes: DEFAULT_SHARED_BYTES, _module: module })
    }
}

/// A loaded module. Whoever drops it has bound its context.
struct Module(sys::CUmodule);

impl Module {
    /// Loads one kernel's PTX into `gpu`'s context, and binds that.
    fn compile(gpu: &Gpu, kernel: &'static str, text: String) -> Result<Self> {
        gpu.bind()?;
        let text = CString::new(text).expect("PTX holds no NUL");
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The driver wants a size as the value of a pointer.
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = ptr::null_mut();
        // SAFETY: the text ends in NUL; two options with their values; the log outlives the call.
        let done = unsafe {
            driver!(cuModuleLoadDataEx(
                &raw mut module,
                text.as_ptr().cast(),
                options.len() as c_uint,
                options.as_mut_ptr(),
                values.as_mut_ptr()
            ))
        };
        done.map_err(|source| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]).into_owned();
            DeviceError::PtxRefused { device: gpu.id(), kernel, source, log }
        })?;
        Ok(Self(module))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once, in `compile`.
        let _ = unsafe { driver!(cuModuleUnload(self.0)) };
    }
}

fn allow_shared<K: Kernel>(gpu: &Gpu, function: sys::CUfunction, shared_bytes: u32) -> Result<()> {
    let most = gpu.max_shared_bytes()?;
    if shared_bytes > most {
        return Err(DeviceError::Launch {
            kernel: K::NAME,
            argument: "shared_bytes",
            needed: format!("at most {most}"),
            got: shared_bytes.to_string(),
        });
    }
    // SAFETY: the function is of a loaded module; the driver refuses what it cannot give.
    gpu.checked(unsafe {
        driver!(cuFuncSetAttribute(
            function,
            FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            shared_bytes as i32
        ))
    })
}
