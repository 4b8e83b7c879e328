//! Every kernel, launched by its name with as little else as possible: what profilers and
//! sanitizers want to look at.
//!
//! `host launch KERNEL` runs one, or all of a room by the room's name, `host profile KERNEL` does so
//! under Nsight Compute. Nothing is measured or compared with an oracle here: that is what [pairs](crate::pairs) and tests are for.
//!
//! Nsight Compute replays a kernel many times, and in between puts back what memory held before it.
//! So what a kernel waits for must be there when it is launched: those of `far_decode` are issued in
//! an order in which each finds the work of those before it, and `host profile` has each finished
//! before the next one is issued. Those of `dispatch` and `combine`, which push to each other at the
//! same time, are launched in a [mirror](crate::comm::World::mirror), where each has what it waits for
//! from itself; all but `combine_push_bulk`, for which the whole command is run again for each pass.
//!
//! **A new kernel gets one line** in its room's file here; a new room a file, and a line in
//! [`all`]. The tests fail for a kernel of the build that has no line, and for a line that
//! launches something else.
#![forbid(unsafe_code)]

mod ceilings;
mod exchange;
mod far_decode;
mod kv_append;
mod kv_pages;
mod layers;
mod moe;
mod paged_attention;
mod paged_prefill;
mod products;
#[cfg(test)]
mod tests;

use anyhow::{Result, ensure};

use crate::device::{Device, Stream};
use crate::harness::wording::{meant, near};

/// The launches of all kernels.
pub fn all() -> Vec<KernelLaunch> {
    [
        paged_attention::launches(),
        far_decode::launches(),
        paged_prefill::launches(),
        kv_append::launches(),
        kv_pages::launches(),
        moe::launches(),
        products::launches(),
        exchange::launches(),
        layers::launches(),
        ceilings::launches(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The launch of the kernel of this name, or those of all kernels whose names begin with it and a
/// `_`, such as a room's; all of them for [`ALL`].
///
/// # Errors
/// A name that is none's, nor how one begins.
pub fn select(kernels: &str) -> Result<Vec<KernelLaunch>, UnknownKernel> {
    let (mut chosen, others): (Vec<_>, Vec<_>) = all().into_iter().partition(|launch| {
        let rest = launch.kernel.strip_prefix(kernels);
        kernels == ALL || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    });
    if let Some(named) = chosen.iter().position(|launch| launch.kernel == kernels) {
        return Ok(vec![chosen.swap_remove(named)]);
    }
    if chosen.is_empty() {
        return Err(UnknownKernel {
            got: kernels.to_owned(),
            near: near(kernels, others.iter().map(|launch| launch.kernel)),
            num_kernels: others.len(),
        });
    }
    Ok(chosen)
}

/// What [`select`] takes for the name of every kernel.
pub const ALL: &str = "all";

/// A name that no kernel has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`KERNEL` must be one of the {num_kernels} that `host launch` shows, how the names of some begin, \
     or `{ALL}`, got `{got}`{}", meant(.near)
)]
pub struct UnknownKernel {
    /// What was asked for.
    pub got: String,
    /// Names like it, the likest first.
    pub near: Vec<&'static str>,
    /// How many there are.
    pub num_kernels: usize,
}

/// A kernel, and how to launch it.
pub struct KernelLaunch {
    /// Its name, as profilers show it.
    pub kernel: &'static str,
    /// GPUs that it takes; on the CPU, as many ranks.
    pub num_gpus: usize,
    /// Whether it waits for itself on another GPU, so that it cannot run alone.
    pub meets_itself: bool,
    launch: Box<Launch>,
}

type Launch = dyn Fn(&Setting<'_>) -> Result<()>;

/// A kernel that `launch` launches [as often as asked](Setting::repeat), on one GPU; on two:
/// `KernelLaunch { num_gpus: 2, ..kernel(name, launch) }`.
fn kernel(
    kernel: &'static str,
    launch: impl Fn(&Setting<'_>) -> Result<()> + 'static,
) -> KernelLaunch {
    KernelLaunch { kernel, num_gpus: 1, meets_itself: false, launch: Box::new(launch) }
}

impl KernelLaunch {
    /// Launches the kernel `times` times on `devices`, of which there are
    /// [`num_gpus`](Self::num_gpus), and waits for it.
    ///
    /// # Errors
    /// What the kernel's launcher says; that something else was launched.
    pub fn run(&self, devices: &[Device], size: Size, times: usize) -> Result<()> {
        (self.launch)(&Setting { devices, size, times })?;
        let launched: Vec<_> = devices.iter().flat_map(Device::launched_kernels).collect();
        ensure!(
            times == 0 || launched.contains(&self.kernel),
            "`{}` was not launched, but {}",
            self.kernel,
            launched.join(", ")
        );
        Ok(())
    }
}

/// How much there is to do for a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// As servers see it.
    Real,
    /// As much as the CPU, or a sanitizer, does in a moment.
    Tiny,
}

/// Where, how large and how often.
struct Setting<'a> {
    devices: &'a [Device],
    size: Size,
    times: usize,
}

impl Setting<'_> {
    /// A stream of the first device.
    fn stream(&self) -> Result<Stream> {
        Ok(self.devices[0].new_stream()?)
    }

    /// What is of the size asked for.
    fn pick<T>(&self, real: T, tiny: T) -> T {
        match self.size {
            Size::Real => real,
            Size::Tiny => tiny,
        }
    }

    /// Calls `launch` as often as asked for, with the number of the call, and waits.
    fn repeat(&self, stream: &Stream, launch: impl FnMut(usize) -> Result<()>) -> Result<()> {
        (0..self.times).try_for_each(launch)?;
        Ok(stream.synchronize()?)
    }
}
