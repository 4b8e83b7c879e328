//! The `#[kernel]` attribute of `cuda_std`.

use proc_macro::TokenStream;

mod bounds;
mod expand;
#[cfg(test)]
mod tests;

/// Makes a GPU kernel of a function: an entry point in PTX, and elsewhere a struct of the
/// function's name that holds its arguments, ready to launch.
///
/// ```ignore
/// /// `y[i] += a * x[i]`, one thread an element.
/// #[kernel(threads = 256, min_blocks = 4)]
/// pub unsafe fn saxpy(
///     a: f32,
///     /// `[n]`
///     x: Global<f32>,
///     /// `[n]`
///     y: GlobalMut<f32>,
/// ) {
///     let i = thread::index_1d() as usize;
///     y.store(i, y.load(i) + a * x.load(i));
/// }
///
/// launch(config, saxpy { a: 2.0, x, y })
/// ```
///
/// | argument | meaning |
/// |---|---|
/// | `threads = 256` | blocks have this many threads, and a launch with another number is refused |
/// | `min_blocks = 2` | blocks that an SM should be able to hold at once |
/// | `cluster = 2` | blocks of a cluster: see `cuda_std::cluster` |
/// | `early = true` | blocks may start before the kernel before this one has ended: see `cuda_std::grid` |
/// | `target = "sm_90a"` | only in the PTX for Hopper |
///
/// A parameter that is a `TensorMap` or `TensorMaps` is known by that name of its type.
///
/// The function is `pub unsafe`, not generic, and returns nothing. Doc comments, on it and on its
/// parameters, become those of the struct and its fields.
#[proc_macro_attribute]
pub fn kernel(arguments: TokenStream, function: TokenStream) -> TokenStream {
    expand::kernel(arguments.into(), function.into())
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
