//! Kernels as the driver holds them: each a module of its own, compiled when first launched.

use std::collections::HashMap;
use std::ffi::{CString, c_uint, c_void};
use std::ptr;
use std::sync::Mutex;

use cuda_std::{Kernel, PtxTarget};
use cudarc::driver::sys::{self, CUfunction_attribute as FunctionAttribute, CUjit_option};

use super::context::Gpu;
use super::driver::driver;
use crate::device::{DeviceError, PtxModule, Result, lock};

/// Dynamic shared memory that a block may have without asking.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

const LOG_BYTES: usize = 8192;

/// The kernels of one context that have been launched.
///
/// The driver takes seconds to compile all of them, so that each is a module with nothing else in
/// it.
pub(super) struct Kernels {
    ptx: PtxModule,
    functions: Mutex<HashMap<&'static str, Function>>,
}

#[derive(Clone, Copy)]
struct Function {
    module: sys::CUmodule,
    handle: sys::CUfunction,
    /// The dynamic shared memory that it may have by now.
    shared_bytes: u32,
}

impl Kernels {
    pub(super) fn new(ptx: PtxModule) -> Self {
        Self { ptx, functions: Mutex::new(HashMap::new()) }
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
        let mut functions = lock(&self.functions);
        if !functions.contains_key(K::NAME) {
            functions.insert(K::NAME, self.load::<K>(gpu)?);
        }
        let function = functions.get_mut(K::NAME).expect("it is there, or was just inserted");
        if shared_bytes > function.shared_bytes {
            allow_shared::<K>(gpu, function.handle, shared_bytes)?;
            function.shared_bytes = shared_bytes;
        }
        Ok(function.handle)
    }

    fn load<K: Kernel>(&self, gpu: &Gpu) -> Result<Function> {
        if K::TARGET == PtxTarget::Sm90a && !self.ptx.is_hopper() {
            return Err(DeviceError::KernelNeedsHopper {
                kernel: K::NAME,
                device: gpu.id(),
                arch: self.ptx.arch,
            });
        }
        let text = self
            .ptx
            .kernel(K::NAME)
            .ok_or(DeviceError::KernelMissing { kernel: K::NAME, arch: self.ptx.arch })?;
        let module = compile::<K>(gpu, self.ptx.arch, text)?;
        let name = CString::new(K::NAME).expect("a kernel's name holds no NUL");
        let mut handle = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in NUL, the context is bound.
        gpu.checked(unsafe {
            driver!(cuModuleGetFunction(&raw mut handle, module, name.as_ptr()))
        })?;
        Ok(Function { module, handle, shared_bytes: DEFAULT_SHARED_BYTES })
    }
}

/// Loads one kernel's PTX into `gpu`'s context.
fn compile<K: Kernel>(gpu: &Gpu, arch: &'static str, text: String) -> Result<sys::CUmodule> {
    gpu.bind()?;
    let text = CString::new(text).expect("PTX holds no NUL");
    let mut log = vec![0u8; LOG_BYTES];
    let mut options =
        [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
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
        DeviceError::PtxRefused { device: gpu.id(), kernel: K::NAME, arch, source, log }
    })?;
    Ok(module)
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

impl Drop for Kernels {
    fn drop(&mut self) {
        for function in lock(&self.functions).values() {
            // SAFETY: loaded once, in `compile`; whoever drops it has bound the context.
            let _ = unsafe { driver!(cuModuleUnload(function.module)) };
        }
    }
}
