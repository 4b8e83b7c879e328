//! Launches follow each other; what early kernels may do before they wait.

use super::fault::Violation;
use super::lane;

#[inline(always)]
#[track_caller]
pub fn wait_prerequisites() {
    lane::current().wait_prerequisites();
}

#[inline(always)]
pub fn launch_dependents() {}

/// Reports what a thread did before it waited.
#[cold]
#[inline(never)]
#[track_caller]
pub(super) fn raise_early(what: &str) -> ! {
    let rule = format!("{what} before wait_prerequisites, in a kernel that starts early");
    lane::raise(Violation::Early(rule))
}
